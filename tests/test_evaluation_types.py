"""Predicted types: what is read, what is refused; their scores and differences."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from small_types import FIRST_ID, STARTS, truth, write_types

from pipeline.evaluation import type_tables
from pipeline.evaluation.classify import MEASURES, Classified
from pipeline.evaluation.intervals import Bootstrap
from pipeline.evaluation.type_scores import (
    score_types,
    scores_of_types,
    type_cells,
    type_difference,
    type_score_row,
)
from pipeline.evaluation.types import TypeRun, TypeSample, read_types, run_of
from pipeline.run import UserError

HOW = Bootstrap(200, 0)
COUNTS = (100, 1000)


@pytest.fixture
def made(tmp_path):
    """(folder, two files of 60 galaxies and two numbers of labels)."""
    galaxies = truth(60)
    return tmp_path, [
        write_types(tmp_path, galaxies, start, 0, COUNTS) for start in ("moco", "pca")
    ]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Four starts, two numbers of labels and three seeds on 300 galaxies."""
    folder, galaxies = tmp_path_factory.mktemp("types"), truth(300)
    for start in STARTS:
        for seed in (0, 1, 2):
            write_types(folder, galaxies, start, seed, COUNTS)
    return read_types([folder])


@pytest.fixture(scope="module")
def scored(sample):
    return {str(one.cell): one for one in score_types(sample, HOW)}


def change(path, edit):
    edit(pd.read_parquet(path)).to_parquet(path, index=False)


def refused(paths):
    with pytest.raises(UserError) as caught:
        read_types(paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def made_sample(early, *predictions, starts=("moco",), seeds=(0,)):
    keys = [TypeRun(start, 100, seed) for start in starts for seed in seeds]
    runs = dict(zip(keys, map(np.asarray, predictions), strict=True))
    return TypeSample(np.arange(len(early)), np.asarray(early), runs, {"compared": len(early)})


def test_only_test_galaxies_are_read_a_run_for_each_number_of_labels(made):
    folder, _ = made
    sample = read_types([folder])
    galaxies = truth(60)
    assert sample.objid.dtype == np.int64 and sample.objid.tolist() == galaxies["objID"].tolist()
    assert sample.early.dtype == bool and sample.early.tolist() == galaxies["early"].tolist()
    assert list(sample.runs) == [TypeRun(start, n, 0) for start in ("moco", "pca") for n in COUNTS]
    early = int(galaxies["early"].sum())
    assert sample.counts == {"compared": 60, "early": early, "late": 60 - early, "predicted": 60}


def test_the_order_of_rows_and_of_files_does_not_matter(made):
    _, paths = made
    first = read_types(paths)
    change(paths[0], lambda table: table.sample(frac=1, random_state=0))
    second = read_types(paths[::-1])
    assert list(first.runs) == list(second.runs) and np.array_equal(first.objid, second.objid)
    for key, chances in first.runs.items():
        assert np.array_equal(chances, second.runs[key])


def test_runs_with_other_galaxies_are_compared_on_the_common_ones(made, caplog):
    """One is missing in a file, another only with some labels."""
    _, paths = made
    change(paths[0], lambda table: table[table["objID"] != FIRST_ID])
    drop = FIRST_ID + 7
    change(paths[1], lambda table: table[(table["objID"] != drop) | (table["labels"] == 100)])
    sample = read_types(paths)
    assert sample.counts["predicted"] == 60 and sample.counts["compared"] == 58
    assert sample.objid[0] == FIRST_ID + 14 and "58 of 60 are in all" in caplog.text
    content = {"test_galaxies": sample.counts, "threshold": 0.5}
    assert "2 left out, not predicted by every run" in type_tables._about(content)


def test_starts_may_have_other_numbers_of_labels(made):
    folder, _ = made
    write_types(folder, truth(60), "supervised", 0, (300,))
    content = scores_of_types(read_types([folder]), HOW)
    assert {(row["start"], row["labels"]) for row in content["methods"]} == {
        ("supervised", 300), ("moco", 1000), ("pca", 1000),
    }  # fmt: skip
    assert [(row["of"], row["minus"]) for row in content["differences"]] == [
        ("moco 100", "pca 100"), ("moco 1000", "pca 1000"),
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["moco/predictions.parquet", "moco/predictions-a.parquet"])
def test_a_path_that_names_no_run_is_refused(tmp_path, path):
    with pytest.raises(UserError, match="START/predictions-SEED.parquet"):
        run_of(tmp_path / path)
    assert run_of(tmp_path / "moco/predictions-12.parquet") == ("moco", 12)


def with_value(column, value):
    return lambda table: table.assign(**{column: table[column].where(table.index % 9 != 0, value)})


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (with_value("p_early", np.nan), f"p_early of galaxy {FIRST_ID + 28} is nan, no probabil"),
        (with_value("p_early", None), "is nan, no probability"),
        (with_value("p_early", 1.01), "is 1.01, no probability (14 such)"),
        (with_value("p_early", -0.01), "is -0.01, no probability"),
        (lambda table: table.assign(p_early="high"), "column p_early is string, not float64"),
        (lambda table: table.assign(early=1), "column early is Int64, not bool"),
        (lambda table: table.assign(objID=1.5), "column objID is Float64, not int64"),
        (lambda table: table.assign(labels=0), "labels are 0 somewhere"),
        (lambda table: table.assign(labels=pd.array([None] * len(table), "Int64")),
         "labels is empty in 120 rows"),
        (lambda table: table.drop(columns="early"), "column early is missing"),
        (lambda table: pd.concat([table, table]), "is in it twice for a number of labels"),
        (lambda table: table[table["split"] == "valid"], "no test galaxy is in it"),
        (lambda table: table.assign(objID=table["objID"] + 3), "no test galaxy in common"),
        (lambda table: table.assign(early=~table["early"]), " labels and not in pca/predictions-0"),
    ],
)  # fmt: skip
def test_spoilt_predictions_are_refused_in_one_line(made, edit, text):
    _, paths = made
    change(paths[0], edit)
    assert text in refused(paths)


def test_what_is_missing_is_named(made):
    folder, paths = made
    (folder / "empty").mkdir()
    assert "no predictions-*.parquet below it; run the rule train_m" in refused([folder / "empty"])
    assert "no such file" in refused([folder / "moco" / "predictions-9.parquet"])
    assert "no predictions to evaluate" in refused([])
    assert "moco with seed 0 is given twice" in refused([*paths, paths[0]])
    paths[0].write_bytes(b"PAR1 no more")
    assert "cannot be read as Parquet" in refused(paths)


def test_trainings_that_are_not_done_are_not_read(made):
    folder, paths = made
    (folder / ".state").mkdir()
    for hidden in (folder / ".state" / "predictions-1.parquet",
                   folder / "moco" / ".predictions-1.parquet.part.parquet"):  # fmt: skip
        hidden.write_bytes(b"half")
    assert len(read_types([folder]).runs) == 4


@pytest.mark.parametrize(("kind", "other"), [(True, "late"), (False, "early")])
def test_a_class_without_a_member_is_refused(made, kind, other):
    _, paths = made
    for path in paths:
        change(path, lambda table: table[table["early"] == kind])
    assert f"is of {other} type, which roc_auc needs" in refused(paths)


def test_supervised_comes_first_and_labels_rise(sample, scored):
    assert list(scored) == [
        f"{start} {n}" for start in ("supervised", "moco", "pca", "simclr") for n in COUNTS
    ]
    assert all(cell.seeds == (0, 1, 2) for cell in type_cells(sample))


def test_values_are_means_over_seeds(sample, scored):
    three = [sample.runs[TypeRun("pca", 100, seed)] for seed in (0, 1, 2)]
    exact = Classified(sample.early, three).measure()[..., 0].mean(axis=0)
    assert np.array_equal(scored["pca 100"].values, exact)
    row = type_score_row(scored["pca 100"])
    assert [row[key] for key in ("start", "labels", "seeds", "galaxies")] == [
        "pca", 100, [0, 1, 2], 300,
    ]  # fmt: skip
    found = [row["measures"][name]["value"] for name in MEASURES]
    assert found == pytest.approx(exact, rel=1e-5)


def test_intervals_hold_their_values_and_stay_within_0_and_1(scored):
    for one in scored.values():
        for found in one.estimates().values():
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


def test_draws_follow_from_the_seed_alone(sample, scored):
    again, other = score_types(sample, HOW), score_types(sample, Bootstrap(200, 1))
    for one, same, unlike in zip(scored.values(), again, other, strict=True):
        assert np.array_equal(one.draws, same.draws)
        assert not np.array_equal(one.draws, unlike.draws)


def test_seeds_that_differ_widen_the_interval_by_students_t():
    early = np.arange(400) % 2 == 0
    p = np.where(early, 0.9, 0.1)
    runs = [np.where(np.arange(400) < wrong, 1 - p, p) for wrong in (40, 60, 80)]
    (one,) = score_types(made_sample(early, *runs, seeds=(0, 1, 2)), Bootstrap(4000, 0))
    found = one.estimates()["accuracy"]
    t = 2 * stats.t(2).ppf(0.975) * 0.05 / np.sqrt(3)
    low, high = np.quantile(one.draws[0], [0.025, 0.975])
    assert 0.9 * t < high - low < 1.15 * np.hypot(t, 2 * 1.96 * np.sqrt(0.85 * 0.15 / 400))
    assert found["value"] == 0.85 and found["high"] == pytest.approx(high, rel=1e-5)


def test_no_mistakes_are_no_certainty_that_there_are_none():
    """Clopper & Pearson's interval: of accuracy and what else is a share, for any seeds."""
    early = np.arange(50) < 20
    p = np.where(early, 0.8, 0.3)
    (one,) = score_types(made_sample(early, p, p, seeds=(0, 1)), HOW)
    found = one.estimates()
    for name, trials in (("accuracy", 50), ("precision", 20), ("recall", 20)):
        low = stats.binomtest(trials, trials).proportion_ci(0.95, "exact").low
        assert found[name] == {"value": 1.0, "low": pytest.approx(low, rel=1e-5), "high": 1.0}
    assert found["roc_auc"] == {"value": 1.0, "low": None, "high": None}


def test_all_wrong_is_no_certainty_either():
    early = np.arange(50) < 20
    (one,) = score_types(made_sample(early, np.where(early, 0.2, 0.7)), HOW)
    accuracy = one.estimates()["accuracy"]
    assert accuracy == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.0711, abs=1e-4)}


def test_where_nothing_is_called_early_precision_is_not_known():
    """For one of two seeds is enough; recall is known, and 0."""
    early = np.arange(50) < 20
    good = np.where(early, 0.8, 0.3)
    for runs in ([good / 4], [good, good / 4]):
        (one,) = score_types(made_sample(early, *runs, seeds=tuple(range(len(runs)))), HOW)
        found = one.estimates()
        assert found["precision"] == {"value": None, "low": None, "high": None}
        assert found["recall"]["value"] == 1 - len(runs[1:]) * 0.5 - (len(runs) == 1)
        assert found["accuracy"]["low"] is not None


def test_a_class_of_one_galaxy_tells_no_interval_of_the_area():
    early = np.arange(60) == 3
    p = np.random.default_rng(0).random(60)
    (one,) = score_types(made_sample(early, p), HOW)
    found = one.estimates()
    assert found["roc_auc"]["value"] is not None and found["roc_auc"]["low"] is None
    assert found["recall"]["low"] is not None


def test_differences_are_paired_and_of_the_right_cells(sample, scored):
    rows = scores_of_types(sample, HOW)["differences"]
    pairs = [("moco", "supervised"), ("pca", "supervised"), ("simclr", "supervised"),
             ("simclr", "pca"), ("moco", "pca"), ("simclr", "moco")]  # fmt: skip
    assert [(row["of"], row["minus"]) for row in rows] == [
        (f"{first} {n}", f"{second} {n}") for n in COUNTS for first, second in pairs
    ]
    first, second = scored["simclr 100"], scored["supervised 100"]
    found = type_difference(first, second)["measures"]["accuracy"]
    assert found["value"] == pytest.approx(first.values[0] - second.values[0], rel=1e-5)
    assert 0 < found["low"] <= found["value"] <= found["high"]
    assert found["excludes_zero"] and found["p"] < 0.05


def test_a_run_does_not_differ_from_itself():
    random = np.random.default_rng(0)
    early, p = random.random(80) < 0.4, random.random(80)
    one = made_sample(early, p, p, starts=("moco", "supervised"))
    (row,) = scores_of_types(one, HOW)["differences"]
    for found in row["measures"].values():
        assert found["value"] == 0 and found["p"] is None and found["excludes_zero"] is None


def test_paired_draws_are_surer_than_unpaired_ones(sample, scored):
    first, second = scored["moco 100"], scored["pca 100"]
    paired = np.std(first.draws[3] - second.draws[3])
    other = {str(one.cell): one for one in score_types(sample, Bootstrap(200, 1))}["pca 100"]
    assert paired < 0.9 * np.std(first.draws[3] - other.draws[3])


def test_methods_stand_in_the_order_of_accuracy(sample, scored):
    rows = scores_of_types(sample, HOW)["methods"]
    accuracy = [row["measures"]["accuracy"]["value"] for row in rows]
    assert accuracy == sorted(accuracy, reverse=True) and all(row["labels"] == 1000 for row in rows)
    assert {row["start"] for row in rows} == {*STARTS}
    best, *others = rows
    assert best["minus_best"] is None
    for row in others:
        first, second = (scored[f"{one['start']} 1000"] for one in (row, best))
        paired = type_difference(first, second)["measures"]["accuracy"]
        about = {"measure": "accuracy", "minus": str(second.cell), "galaxies": 300}
        assert row == type_score_row(first) | {"minus_best": about | paired}
