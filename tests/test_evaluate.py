import csv
import json
import shutil

import matplotlib.image
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_predictions import CENTRES, EDGES, make_catalog, make_pdf, write_run, write_runs
from small_types import STARTS, truth, write_types

from pipeline import evaluate
from pipeline.evaluation.intervals import Bootstrap
from pipeline.evaluation.predictions import read_sample
from pipeline.run import UserError

TYPES = ("--task", "morphology", "--predictions")
FIGURES = ("fig2", "redshifts", "residuals", "residuals-sky", "pit")


def evaluated(folder, paths, *more, output="out"):
    evaluate.main([
        "--predictions", *map(str, paths), "--catalog", str(folder / "catalog.parquet"),
        "--output", str(folder / output), "--bootstrap", "200", *more,
    ])  # fmt: skip
    return json.loads((folder / output / "metrics.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """40 test galaxies, three fractions, one seed: (folder, prediction files, metrics.json)."""
    folder = tmp_path_factory.mktemp("evaluate")
    catalog = make_catalog(folder / "catalog.parquet", 40)
    paths = write_runs(folder / "train", catalog)
    return folder, paths, evaluated(folder, paths)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_start_and_fraction_and_the_catalogue_have_a_row(made):
    scores = made[2]["scores"]
    assert [(row["start"], row["fraction"], row["labels"]) for row in scores] == [
        *((start, fraction, round(240 * fraction))
          for start in ("supervised", "moco") for fraction in (0.05, 0.25, 1.0)),
        ("catalogue", None, None),
    ]  # fmt: skip
    assert [row["galaxies"] for row in scores] == [40] * 6 + [36]
    assert made[2]["catalogue"] == {"with": 36, "without": 4}


def test_comparisons_with_the_catalogue_take_the_galaxies_that_it_knows(made):
    found = made[2]["differences"]
    assert [(row["of"], row["minus"], row["galaxies"]) for row in found[:4]] == [
        ("moco 0.05", "supervised 0.05", 40),
        ("moco 0.25", "supervised 0.25", 40),
        ("moco 1", "supervised 1", 40),
        ("supervised 0.05", "catalogue", 36),
    ]
    assert len(found) == 9


def test_all_methods_stand_in_one_table_the_first_of_table_md(made):
    folder, _, content = made
    rows = content["methods"]
    sigma = [row["measures"]["sigma_mad"]["value"] for row in rows]
    assert sigma == sorted(sigma) and {row["start"] for row in rows} == {
        "supervised", "moco", "catalogue",
    }  # fmt: skip
    for row in rows:
        of = (row["start"], row["fraction"])
        (score,) = (one for one in content["scores"] if (one["start"], one["fraction"]) == of)
        assert row == score | {"minus_best": row["minus_best"]} and row["fraction"] in (1, None)
    assert [row["minus_best"] is None for row in rows] == [True, False, False]
    text = (folder / "out" / "table.md").read_text()
    first = text[text.index("## All methods, most labels") :].split("\n\n")[2].splitlines()
    assert [line.split(" | ")[0] for line in first[2:]] == [f"| {row['start']}" for row in rows]
    assert "on all 40 test galaxies, but the catalogue on 36" in text


def test_runs_tell_their_pit(made):
    runs = made[2]["runs"]
    assert [row["start"] for row in runs] == ["moco"] * 3 + ["supervised"] * 3 + ["catalogue"]
    for row in runs:
        assert 0 < row["pit_ks"] < 1 and 0 <= row["pit_ks_p"] <= 1
        assert row["pit_bins"] == (7 if row["start"] == "catalogue" else 8)


def test_tables_say_what_the_numbers_are(made):
    folder, _, content = made
    text = (folder / "out" / "table.md").read_text()
    assert (
        "40 test galaxies compared" in text
        and "4 without a photo-z with its error in the catalogue" in text
    )
    sigma = content["scores"][0]["measures"]["sigma_mad"]
    assert f"{sigma['value']:.5f} [{sigma['low']:.5f}, {sigma['high']:.5f}]" in text
    rows = list(csv.DictReader((folder / "out" / "scores.csv").open()))
    assert len(rows) == 7 and float(rows[0]["sigma_mad_low"]) == sigma["low"]
    assert rows[6]["start"] == "catalogue" and rows[6]["fraction"] == ""


def test_figures_are_drawn(made):
    for name in FIGURES:
        image = matplotlib.image.imread(made[0] / "out" / f"{name}.png")
        assert image.shape[1] > 500 and len(np.unique(image[..., 0])) > 10


def test_the_same_predictions_give_the_same_bytes(made):
    folder, paths, _ = made
    evaluated(folder, paths[::-1], output="again")
    first, second = contents(folder / "out"), contents(folder / "again")
    assert first == second and len(first) == 3 + len(FIGURES)


def test_what_the_runs_are_not_tested_on_changes_nothing(made, tmp_path):
    folder, paths, content = made
    shutil.copytree(folder / "train", tmp_path / "train")
    shutil.copy(folder / "catalog.parquet", tmp_path)
    for path in (tmp_path / "train").rglob("*.parquet"):
        table = pd.read_parquet(path)
        table.loc[table["split"] == "valid", "z_phot"] = 9.0
        table.to_parquet(path, index=False)
    sample = read_sample([tmp_path / "train"], tmp_path / "catalog.parquet")
    assert evaluate.evaluate(sample, Bootstrap(200, 0)) == content


def write_ensemble(path, catalog, sigma):
    """A photo-z catalogue of scatter `sigma`."""
    z = catalog["z"].to_numpy(dtype=float)
    pdf = make_pdf(z + sigma * np.random.default_rng(5).normal(size=len(z)), sigma)
    table = catalog[["objID", "split", "z"]].assign(z_phot=pdf @ CENTRES, pdf=list(pdf))
    table = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"edges": json.dumps(EDGES.tolist())}), path)
    return str(path)


def test_ensembles_of_starts_are_rows_of_every_table(made, tmp_path):
    folder, paths, alone = made
    catalog = pd.read_parquet(folder / "catalog.parquet")
    files = {start: write_ensemble(tmp_path / f"{start}.parquet", catalog, 0.004)
             for start in ("moco", "supervised")}  # fmt: skip
    words = [f"{start}={file}" for start, file in files.items()]
    content = evaluated(folder, paths, "--photoz", *words, output="both")
    named = ["supervised ensemble", "moco ensemble"]
    for key in ("runs", "scores", "methods"):
        found = [row["start"] for row in content[key] if row["start"].endswith("ensemble")]
        assert sorted(found) == sorted(named), key
        others = [row for row in content[key] if row["start"] not in named]
        assert key == "methods" or others == alone[key]
    assert content["bins"] == alone["bins"]
    pairs = {(row["of"], row["minus"]) for row in content["differences"]}
    of_ensembles = {pair for pair in pairs if pair[0] in named}
    assert of_ensembles == {
        (f"{start} ensemble", minus) for start in files for minus in (f"{start} 1", "catalogue")
    }
    assert content["methods"][0]["start"] in named
    text = (folder / "both" / "table.md").read_text()
    assert text.count("| moco ensemble | – | – | – | 40 |") == 2
    first, second = contents(folder / "out"), contents(folder / "both")
    assert {name for name in first if first[name] != second[name]} == {
        "metrics.json", "table.md", "scores.csv", "fig2.png",
    }  # fmt: skip
    evaluated(folder, paths, "--photoz", words[1], "--photoz", words[0], output="reversed")
    assert contents(folder / "reversed") == second


def test_a_file_without_a_name_is_the_ensemble_and_compared_with_all(made, tmp_path):
    folder, paths, _ = made
    catalog = pd.read_parquet(folder / "catalog.parquet")
    file = write_ensemble(tmp_path / "p.parquet", catalog, 0.004)
    content = evaluated(folder, paths, "--photoz", file, output="plain")
    found = [row["minus"] for row in content["differences"] if row["of"] == "ensemble"]
    assert found == ["supervised 1", "moco 1", "catalogue"]
    assert "ensemble" in {row["of"] for row in content["bins"]}


def test_one_run_without_a_catalogues_photoz_is_enough(tmp_path):
    catalog = make_catalog(tmp_path / "catalog.parquet", 12)
    catalog[["objID", "split"]].to_parquet(tmp_path / "catalog.parquet", index=False)
    path = write_run(tmp_path / "train", catalog, "moco", 1, 0, 0.01)
    content = evaluated(tmp_path, [path])
    assert len(content["scores"]) == 1
    assert not content["differences"] and not content["label_efficiency"] and not content["bins"]
    assert len(contents(tmp_path / "out")) == 3 + len(FIGURES)
    assert "nothing to compare" in (tmp_path / "out" / "table.md").read_text()


def test_one_test_galaxy_has_no_interval(tmp_path):
    catalog = make_catalog(tmp_path / "catalog.parquet", 1, training=30)
    path = write_run(tmp_path / "train", catalog, "moco", 1, 0, 0.01)
    measures = evaluated(tmp_path, [path])["scores"][0]["measures"]
    assert measures["sigma_mad"] == {"value": 0.0, "low": None, "high": None}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--bootstrap", "20"), "--bootstrap 20: an interval needs 100 at least"),
        (("--seed", "-1"), "--seed -1"),
        (("--photoz", "nowhere.parquet"), "nowhere.parquet: no such file"),
        (("--photoz", "moco=nowhere.parquet"), "^nowhere.parquet: no such file"),
        (("--photoz", "moco=a", "moco=b"), "--photoz moco=b: moco ensemble is given twice"),
        (("--photoz", "a", "--photoz", "b"), "--photoz b: ensemble is given twice"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(made, more, text):
    folder, paths, _ = made
    with pytest.raises(UserError, match=text):
        evaluated(folder, paths, *more, output="refused")
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--predictions", "train"), "--task photoz needs --catalog, results/catalog.parquet"),
        ((*TYPES, "train", "--catalog", "c.parquet"), "takes neither --catalog nor --photoz"),
        ((*TYPES, "nowhere.parquet"), "nowhere.parquet: its path names no run"),
        ((*TYPES, "train", "--bootstrap", "9"), "--bootstrap 9: an interval needs 100 at least"),
    ],
)
def test_flags_that_do_not_fit_a_task_are_refused_in_one_line(tmp_path, arguments, text):
    with pytest.raises(UserError, match=text) as caught:
        evaluate.main([*arguments, "--output", str(tmp_path / "refused")])
    assert "\n" not in str(caught.value) and not (tmp_path / "refused").exists()


def types_evaluated(folder, paths, output="out"):
    evaluate.main(
        [*TYPES, *map(str, paths), "--output", str(folder / output), "--bootstrap", "200"]
    )
    return json.loads((folder / output / "metrics.json").read_text())


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """90 test galaxies, four starts, three numbers of labels: (folder, files, metrics.json)."""
    folder = tmp_path_factory.mktemp("types")
    paths = [write_types(folder / "train", truth(90), start) for start in STARTS]
    return folder, paths, types_evaluated(folder, [folder / "train"])


def test_types_have_the_format_and_its_keys(typed):
    content = typed[2]
    assert list(content) == [
        "format", "format_version", "task", "test_galaxies", "positive", "threshold", "bootstrap",
        "scores", "differences", "methods",
    ]  # fmt: skip
    assert content["format"] == "ugriz-evaluation" and content["task"] == "morphology"
    early = int(truth(90)["early"].sum())
    assert content["test_galaxies"] == {
        "compared": 90, "early": early, "late": 90 - early, "predicted": 90,
    }  # fmt: skip
    assert content["positive"] == "early" and len(content["scores"]) == 12
    assert len(content["differences"]) == 18 and len(content["methods"]) == 4


def test_tables_of_types_say_what_the_numbers_are(typed):
    folder, _, content = typed
    text = (folder / "out" / "table.md").read_text()
    assert "90 test galaxies compared: " in text and "early types, the positive class" in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## All methods, most labels", "## All numbers of labels", "## Paired differences",
    ]  # fmt: skip
    best = content["methods"][0]
    assert f"\n| {best['start']} | 1000 | 1 | 90 | " in text
    one = best["measures"]["roc_auc"]
    assert f"{one['value']:.4f} [{one['low']:.4f}, {one['high']:.4f}] | – |" in text
    rows = list(csv.DictReader((folder / "out" / "scores.csv").open()))
    assert len(rows) == 12 and (rows[0]["start"], rows[0]["labels"]) == ("supervised", "100")
    assert float(rows[0]["recall_low"]) == content["scores"][0]["measures"]["recall"]["low"]


def test_what_of_types_cannot_be_known_is_a_dash_and_an_empty_field(tmp_path):
    path = write_types(tmp_path / "train", truth(60), "moco", labels=(100,))
    table = pd.read_parquet(path)
    table.assign(p_early=table["p_early"] / 3).to_parquet(path, index=False)
    content = types_evaluated(tmp_path, [path])
    assert content["scores"][0]["measures"]["precision"] == dict.fromkeys(("value", "low", "high"))
    assert " | – | 0.0000 [0.0000, " in (tmp_path / "out" / "table.md").read_text()
    (row,) = csv.DictReader((tmp_path / "out" / "scores.csv").open())
    assert row["precision"] == row["precision_low"] == "" and row["recall"] == "0.0"


def test_the_same_types_give_the_same_bytes(typed):
    folder, paths, _ = typed
    types_evaluated(folder, paths[::-1], "again")
    first, second = contents(folder / "out"), contents(folder / "again")
    assert first == second
    assert sorted(first) == ["counts.png", "metrics.json", "roc.png", "scores.csv", "table.md"]


def test_what_is_not_test_changes_no_type(typed, tmp_path):
    folder, _, content = typed
    shutil.copytree(folder / "train", tmp_path / "train")
    for path in (tmp_path / "train").rglob("*.parquet"):
        table = pd.read_parquet(path)
        table.loc[table["split"] == "valid", "p_early"] = 9.0
        table.to_parquet(path, index=False)
    assert types_evaluated(tmp_path, [tmp_path / "train"]) == content
