"""The learning half of the Snakefile on a tiny survey: products, reruns, kills, the report."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import pandas as pd
import pytest
import small_workflow

from pipeline import settings

STEPS = 40
OVERLAY = {
    "simulate": {
        "runs": [4207], "camcols": [3], "fields": [1], "galaxies_per_field": 160,
        "stars_per_field": 5, "artefact_rate": 0, "reference_size": 1000,
    },
    "catalog": {"shards": 1, "test_fraction": 0.3, "valid_fraction": 0.1},
    "pretrain": {
        "steps": STEPS, "batch": 8, "queue": 16, "groups": 2, "warmup": 2, "log_every": 1,
        "probe_every": 0,
    },
    "train": {"fractions": [0.5, 1], "seeds": [0], "steps": STEPS, "batch": 8, "check_every": 1},
    "morphology": {
        "counts": [8, 16, 3000], "components": 4, "small_epochs": 20, "steps": 10, "batch": 8,
        "check_every": 5,
    },
    "methods": {"simclr": {
        "encoder": {"width": 0.05}, "pretrain": {"steps": 5, "batch": 8, "probe_every": 0},
    }},
    "atlas": {"neighbours": 5, "stamps": 20},
    "goals": ["redshifts", "search", "morphology", "atlas"],
    "evaluate": {"bootstrap": 100},
    "running": {"device": "cpu"},
}  # fmt: skip
KEPT = OVERLAY | {"running": OVERLAY["running"] | {"checkpoint_minutes": 1e-6}}
"""A state after every step, so that a killed run is taken up in the middle."""
STARTS = ("supervised", "moco", "local_linear", "boosted_trees")
FRACTIONS = ("0.5", "1")
TYPE_STARTS = ("simclr", "moco", "pca", "supervised")
TYPES = {"train_morphology", "evaluate_morphology"}
VECTORS = {"search", "atlas", *TYPES}
FOLLOW = {
    "pretrain": {"pretrain", "train", "photoz", "evaluate", "embed", *VECTORS},
    "train": {"train", "photoz", "evaluate", *TYPES},
    "photoz": {"photoz"},
    "evaluate": {"evaluate", "evaluate_morphology"},
    "embed": {"embed", *VECTORS},
    "search": {"search"},
    "atlas": {"atlas"},
}
"""The rules that run again where a rule does; one model is no ensemble for evaluate."""
ENCODER = ["results/pretrain/moco/encoder.pt", "results/pretrain/moco/history.csv"]
MODELS = [
    f"results/train/photoz/{start}/{fraction}-0/{file}"
    for start in STARTS
    for fraction in FRACTIONS
    for file in ("model.pt", "predictions.parquet", "history.csv")
]
TYPED = [
    "results/pretrain/simclr/encoder.pt", "results/embed/simclr.h5",
    *(f"results/train/morphology/{start}/predictions-0.parquet" for start in TYPE_STARTS),
    *(f"results/evaluate/morphology/{name}" for name in ("metrics.json", "scores.csv", "table.md")),
]  # fmt: skip
FIGURES = [
    *(f"results/evaluate/photoz/{name}.png"
      for name in ("fig2", "redshifts", "residuals", "residuals-sky", "pit")),
    "results/search/moco/gallery.png", "results/search/moco/outliers.png",
    "results/evaluate/morphology/counts.png", "results/evaluate/morphology/roc.png",
    *(f"results/atlas/{method}/atlas.{kind}" for method in ("moco", "simclr")
      for kind in ("png", "html")),
]  # fmt: skip
OTHERS = [
    "results/photoz/catalog.parquet", "results/embed/moco.h5",
    "results/search/moco/neighbours.parquet", "results/search/moco/outliers.parquet",
    "results/evaluate/photoz/metrics.json", "results/evaluate/photoz/scores.csv",
    "results/evaluate/photoz/table.md",
]  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    return small_workflow.make_house(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def survey(house, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("survey")
    done = small_workflow.snakemake(house, folder, "--cores", "2", overlay=OVERLAY)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def rules_to_rerun(house: Path, folder: Path, overlay: dict = OVERLAY) -> set[str]:
    return small_workflow.rules_to_rerun(house, folder, overlay=overlay)


def test_what_speaks_of_an_encoder_is_none_of_the_supervised_net(house, tmp_path):
    """Else the net from scratch would learn at a tenth of its rate, or not at all."""
    tuned = {"train": {**OVERLAY["train"], "encoder_rate": 0.1, "freeze": True},
             "goals": ["redshifts"]}  # fmt: skip
    plan = small_workflow.snakemake(house, tmp_path, "-n", "-p", "--cores", "2",
                                    overlay={**OVERLAY, **tuned})  # fmt: skip
    assert plan.returncode == 0, plan.stderr
    commands = [line for line in plan.stdout.splitlines() if "-m pipeline.train" in line]
    assert len(commands) == 4
    magnitudes = [line for line in commands if "--magnitudes" in line]
    assert len(magnitudes) == 2
    for line in magnitudes:
        assert not any(flag in line for flag in ("--encoder", "--net", "--lr", "--freeze"))
    for line in set(commands) - set(magnitudes):
        own = "--output results/train/photoz/moco" in line
        assert own == ("--encoder-rate 0.1" in line) == ("--freeze" in line)
        assert own == ("--encoder results/pretrain" in line) != ("--net" in line)


def test_a_run_ends_in_every_product(survey):
    missing = [
        name
        for name in (*ENCODER, *MODELS, *OTHERS, *TYPED, *FIGURES)
        if not (survey / name).is_file() or not (survey / name).stat().st_size
    ]
    assert not missing


def test_the_table_has_every_system(survey):
    metrics = json.loads((survey / "results/evaluate/photoz/metrics.json").read_text())
    runs = {(run["start"], run["fraction"], run["seed"]) for run in metrics["runs"]}
    trained = {(start, float(fraction), 0) for start in STARTS for fraction in FRACTIONS}
    assert runs == trained | {("catalogue", None, None)}, "one model is no ensemble"
    assert metrics["test_galaxies"]["predicted"] == metrics["test_galaxies"]["test"] > 0


def test_types_are_told_by_every_system_from_the_counts_that_there_are(survey):
    metrics = json.loads((survey / "results/evaluate/morphology/metrics.json").read_text())
    rows = {(row["start"], row["labels"]) for row in metrics["scores"]}
    assert rows == {(start, count) for start in TYPE_STARTS for count in (8, 16)}
    assert {row["start"] for row in metrics["methods"]} == set(TYPE_STARTS)
    told = (survey / "logs/train/morphology/pca-0.log").read_text()
    assert "counts 3000 are left out" in told


def test_every_stamp_has_a_redshift_and_vectors(survey):
    with h5py.File(survey / "results/cutouts/0000.h5") as file:
        stamps = sorted(file["ObjID"][:].tolist())
    catalog = pd.read_parquet(survey / "results/photoz/catalog.parquet")
    assert catalog["objID"].dtype == "int64"
    assert sorted(catalog["objID"]) == stamps
    with h5py.File(survey / "results/embed/moco.h5") as file:
        assert sorted(file["ObjID"][:].tolist()) == stamps


def test_a_second_run_has_nothing_to_do(house, survey):
    assert rules_to_rerun(house, survey) == set()


@pytest.mark.parametrize(
    "module", ["learning/moco.py", "learning/losses.py", "metrics.py", "similarity/neighbours.py"]
)
def test_an_edit_reruns_the_rules_that_import_the_module_and_what_follows(house, survey, module):
    importers = [
        stage
        for stage in FOLLOW
        if any(path.endswith(f"pipeline/{module}") for path in settings.sources(stage))
    ]
    assert importers
    expected = set.union(*(FOLLOW[stage] for stage in importers))
    with small_workflow.edited(house / "pipeline" / module):
        assert rules_to_rerun(house, survey) == expected


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("running", {"device": "auto", "checkpoint_minutes": 7, "workers": 1}, set()),
        ("train", {"steps": STEPS + 1}, FOLLOW["train"] - TYPES),
        ("morphology", {"steps": 11}, TYPES),
        ("photoz", {"turns": 1}, FOLLOW["photoz"]),
        ("search", {"k": 5}, FOLLOW["search"]),
        ("atlas", {"seed": 1}, FOLLOW["atlas"]),
    ],
)
def test_a_key_that_changes_reruns_its_stage_and_what_follows(
    house, survey, section, values, expected
):
    overlay = OVERLAY | {section: OVERLAY.get(section, {}) | values}
    assert rules_to_rerun(house, survey, overlay) == expected


def commands(house: Path, folder: Path, overlay: dict, *words: str) -> dict[str, list[str]]:
    """Stage -> its command lines in a dry run of the redshifts."""
    target = "results/evaluate/photoz/metrics.json", "results/photoz/catalog.parquet"
    plan = small_workflow.snakemake(house, folder, "-n", "-p", *words, *target, overlay=overlay)
    assert plan.returncode == 0, plan.stderr
    lines = (plan.stdout + plan.stderr).splitlines()
    return {
        stage: [line for line in lines if f"-m pipeline.{stage} " in line]
        for stage in ("photoz", "evaluate")
    }


def test_the_catalogue_of_two_seeds_is_a_row_of_the_table(house, survey):
    """Of every net its own; the catalogue is that of its start, or, of fewer labels, another."""
    catalog, own = "results/photoz/catalog.parquet", "results/photoz/test-{}.parquet"
    overlay = OVERLAY | {"train": OVERLAY["train"] | {"seeds": [0, 1]}}
    planned = commands(house, survey, overlay)
    words = f"--photoz supervised={own.format('supervised')} moco={catalog} --bootstrap"
    assert words in planned["evaluate"][0]
    assert len(planned["photoz"]) == 2, "no models twice"
    (test,) = (line for line in planned["photoz"] if "--split test" in line)
    models = " ".join(f"results/train/photoz/supervised/1-{seed}/model.pt" for seed in (0, 1))
    assert f"--model {models} --dataset" in test
    assert f"--output {own.format('supervised')}" in test
    planned = commands(house, survey, overlay | {"photoz": {"fraction": 0.5}})
    words = " ".join(f"{start}={own.format(start)}" for start in ("supervised", "moco"))
    assert f"--photoz {words} {catalog} --bootstrap" in planned["evaluate"][0]
    assert len(planned["photoz"]) == 3
    planned = commands(house, survey, OVERLAY, "--forceall")
    assert len(planned["photoz"]) == 1 and "--photoz" not in planned["evaluate"][0]


def test_the_report_holds_the_figures(house, survey):
    file = survey / "report.zip"
    done = small_workflow.snakemake(house, survey, "--report", str(file), overlay=OVERLAY)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(file) as report:
        held = {(Path(name).name, report.getinfo(name).file_size) for name in report.namelist()}
    for name in FIGURES:
        assert (Path(name).name, (survey / name).stat().st_size) in held


def rows(history: Path) -> int:
    """Rows of a history that is being written; 0 where there is none."""
    try:
        return history.read_text().count("\n") - 1
    except FileNotFoundError:
        return 0


@pytest.mark.long
def test_killed_trainings_go_on_and_end_in_the_same_bytes(house, survey, tmp_path):
    learnt = {"pretrain", "train", "photoz", "embed", "search", "atlas", "evaluate"}
    images = {path.name for path in (survey / "results").iterdir()} - learnt
    folder = small_workflow.copy_of_run(survey, tmp_path, sorted(images))
    targets = [*ENCODER, *(name for name in MODELS if "/moco/" in name)]
    pretrain, train = folder / "results/pretrain/moco", folder / "results/train/photoz/moco"
    state, log = train / ".state-0", folder / "logs/train/photoz/moco-0.log"

    def kill(history: Path, kept: Path) -> None:
        small_workflow.kill(
            house, folder, "--cores", "1", *targets, overlay=KEPT,
            when=lambda: rows(history) > STEPS // 4 and kept.is_file(),
        )  # fmt: skip
        assert 0 < rows(history) < STEPS, "in the middle"

    kill(pretrain / ".history.csv.live", pretrain / ".state.pt")
    kill(state / ".0.5-0.csv.live", state / "0.5-0.pt")
    assert "goes on after step" in (folder / "logs/pretrain/moco.log").read_text()
    kill(state / ".1-0.csv.live", state / "1-0.pt")
    assert "0.5-0: taken up after step" in log.read_text()
    assert (train / "0.5-0" / "model.pt").is_file(), "some of the job's outputs are there"
    done = small_workflow.snakemake(house, folder, "--cores", "1", *targets, overlay=OVERLAY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1-0: taken up after step" in log.read_text()
    for name in targets:
        assert (folder / name).read_bytes() == (survey / name).read_bytes(), name
    assert not state.exists()
    left = [path.name for path in (folder / "results").rglob(".*")]
    assert [name for name in left if name != ".snakemake_timestamp"] == [], "no state, no part"


def test_a_survey_without_redshifts_ends_in_a_line(house, survey, tmp_path):
    """A list of galaxies on the frames of the survey."""
    catalog = pd.read_parquet(
        survey / "results" / "catalog.parquet", columns=["objID", "ra", "dec"]
    )
    catalog[:6].to_csv(tmp_path / "galaxies.csv", index=False)
    overlay = OVERLAY | {
        "query": {"engine": "table", "source": str(tmp_path / "galaxies.csv")},
        "frames": {"root": str(survey / "results" / "simulate" / "sas" / "dr9")},
    }
    target = "results/train/photoz/supervised/1-0/model.pt"
    done = small_workflow.snakemake(house, tmp_path, "--cores", "2", target, overlay=overlay)
    assert done.returncode != 0
    said = (tmp_path / "logs/train/photoz/supervised-0.log").read_text()
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "no images of train" in said
