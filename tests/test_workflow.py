"""The whole Snakefile on a tiny survey: products, reruns, kills, and light against truth."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import duckdb
import h5py
import numpy as np
import pandas as pd
import pytest
import small_workflow
import yaml

from benchmarks import light
from pipeline import settings

OVERLAY = {
    "simulate": {"camcols": [3], "galaxies_per_field": 60, "stars_per_field": 25},
    "catalog": {"shards": 2},
    "cutouts": {"variance": True},
    "goals": [],
}
STAGES = ["simulate", "query", "catalog", "frames", "cutouts", "dataset", "pictures", "export"]


def snakemake(
    house: Path, folder: Path, *words: str, overlay: dict = OVERLAY
) -> subprocess.CompletedProcess[str]:
    return small_workflow.snakemake(house, folder, *words, overlay=overlay)


def rules_to_rerun(house: Path, folder: Path) -> set[str]:
    return small_workflow.rules_to_rerun(house, folder, "all", "export", overlay=OVERLAY)


def shard_sums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "results" / "cutouts").glob("*.h5"))
    }


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    return small_workflow.make_house(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def survey(house, tmp_path_factory) -> Path:
    """The folder of a finished run on the tiny survey, export included."""
    folder = tmp_path_factory.mktemp("survey")
    done = snakemake(house, folder, "--cores", "2", "all", "export")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def shards(survey) -> list[Path]:
    return sorted((survey / "results" / "cutouts").glob("*.h5"))


def joined(shards: list[Path], name: str) -> np.ndarray:
    columns = []
    for path in shards:
        with h5py.File(path) as file:
            columns.append(file[name][:])
    return np.concatenate(columns)


def test_a_run_ends_in_a_checked_set_and_its_figures(survey):
    summary = json.loads((survey / "results" / "dataset.json").read_text())
    assert len(summary["shards"]) == 2
    assert summary["galaxies"]["stamps"] == sum(summary["splits"].values()) > 50
    assert all(summary["splits"][split] > 0 for split in ("train", "valid", "test", "unlabelled"))
    for picture in ("contact-sheet", "sky-map", "funnel", "magnitudes"):
        data = (survey / "results" / "pictures" / f"{picture}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 5000
    assert not list((survey / "results").glob("frames/0*/")), "frames are let go"
    assert not list((survey / "results").rglob(".*.part*")), "nothing half-written is left"


def test_a_second_run_has_nothing_to_do(house, survey):
    again = snakemake(house, survey, "--cores", "2", "all", "export")
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.parametrize(
    "module",
    ["images/sheet.py", "images/overlap.py", "survey/tsql.py", "survey/splits.py", "settings.py"],
)
def test_an_edit_reruns_the_rules_that_import_the_module_and_what_follows(house, survey, module):
    follow = {
        "simulate": STAGES, "query": STAGES[1:], "catalog": STAGES[2:], "frames": STAGES[3:],
        "cutouts": ["frames", "cutouts", "dataset", "pictures", "export"],
        "dataset": ["dataset", "pictures", "export"],
        "pictures": ["pictures"], "export": ["export"],
    }  # fmt: skip
    importers = [
        stage
        for stage in STAGES
        if any(path.endswith(f"pipeline/{module}") for path in settings.sources(stage))
    ]
    expected = {rule for stage in importers for rule in follow[stage]}
    with small_workflow.edited(house / "pipeline" / module):
        assert rules_to_rerun(house, survey) == expected


def test_a_touch_alone_reruns_nothing(house, survey):
    source = house / "pipeline" / "images" / "overlap.py"
    os.utime(source)
    assert rules_to_rerun(house, survey) == set()


def copy_of_run(survey: Path, to: Path) -> Path:
    """A run as it is before its first shard: simulated, queried, catalogued."""
    made = ["simulate", "query", "catalog.parquet", "catalog.json", "catalog-rejected.parquet"]
    return small_workflow.copy_of_run(survey, to, made)


def test_a_shard_is_the_same_bytes_alone_on_one_core(house, survey, tmp_path):
    folder = copy_of_run(survey, tmp_path)
    done = snakemake(house, folder, "--cores", "1", "results/cutouts/0001.h5")
    assert done.returncode == 0, done.stdout + done.stderr
    made = shard_sums(folder)
    assert list(made) == ["0001.h5"] and made.items() <= shard_sums(survey).items()


@pytest.mark.long
def test_shards_are_the_same_bytes_after_kills_at_random_moments(house, survey, tmp_path):
    folder, chance = copy_of_run(survey, tmp_path), random.Random(7)
    for _ in range(3):
        words = small_workflow.command(
            folder, "--nolock", "--cores", "2", "results/dataset.json", overlay=OVERLAY
        )
        running = subprocess.Popen(
            words, cwd=house, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(chance.uniform(2, 9))
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    done = snakemake(house, folder, "--cores", "2", "results/dataset.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert shard_sums(folder) == shard_sums(survey)
    same = "results/dataset.json"
    assert (folder / same).read_bytes() == (survey / same).read_bytes()
    assert not list((folder / "results" / "cutouts").glob(".*")), "nothing half-written is left"


def test_a_frame_that_is_lost_or_damaged_costs_its_own_galaxies_only(house, survey, tmp_path):
    folder = copy_of_run(survey, tmp_path)
    frames = sorted((folder / "results" / "simulate" / "sas").rglob("frame-g-*.bz2"))
    frames[0].unlink()
    frames[-1].write_bytes(frames[-1].read_bytes()[:100_000])
    done = snakemake(
        house, folder, "--cores", "2", "results/dataset.json", "--rerun-triggers", "mtime"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((folder / "results" / "dataset.json").read_text())
    whole = json.loads((survey / "results" / "dataset.json").read_text())
    assert 0 < summary["galaxies"]["failed"] < whole["galaxies"]["stamps"]
    assert (
        sum(summary["galaxies"][key] for key in ("failed", "stamps")) == whole["galaxies"]["stamps"]
    )
    reasons = " ".join(summary["failures"])
    assert "not in the archive" in reasons
    assert "truncated" in reasons


def test_a_plan_of_400_shards_is_made(house, tmp_path):
    many = {"catalog": {"shards": 400}}
    plan = snakemake(house, tmp_path, "-n", "--quiet", "rules", overlay=many)
    assert plan.returncode == 0, plan.stderr
    assert re.search(r"cutouts\s+400", plan.stdout + plan.stderr)


def test_a_misspelt_key_stops_before_any_job(house, tmp_path):
    refused = snakemake(house, tmp_path, "-n", "--config", "cutuots={size: 107}")
    assert refused.returncode != 0
    assert "error: config: unknown key cutuots; did you mean cutouts?" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_report_holds_the_pictures(house, survey):
    done = snakemake(house, survey, "--report", str(survey / "report.zip"))
    assert done.returncode == 0, done.stderr
    assert (survey / "report.zip").stat().st_size > 100_000


def test_real_fields_go_the_whole_way(house, tmp_path, real_data, monkeypatch):
    monkeypatch.setenv("UGRIZ_DATA", str(real_data))
    overlay = yaml.safe_load((small_workflow.ROOT / "surveys" / "real-fields.yaml").read_text())
    done = snakemake(house, tmp_path, "--cores", "2", "all", "export", overlay=overlay)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "results" / "dataset.json").read_text())
    assert summary["galaxies"] == {"catalogue": 44, "stamps": 44, "failed": 0}
    assert summary["splits"]["unlabelled"] == 44
    assert summary["coverage"]["below_1"] == 8


def test_every_true_galaxy_is_a_stamp_or_a_counted_removal(survey, shards):
    results = survey / "results"
    truth = pd.read_parquet(results / "simulate" / "truth.parquet", dtype_backend="numpy_nullable")
    catalog = pd.read_parquet(results / "catalog.parquet", columns=["objID"])
    rejected = pd.read_parquet(results / "catalog-rejected.parquet")
    funnel = json.loads((results / "catalog.json").read_text())["samples"]
    with duckdb.connect(str(results / "simulate" / "survey.duckdb"), read_only=True) as database:
        photo = database.sql("SELECT objID, mode FROM PhotoObjAll").df()

    stamps, kept = set(joined(shards, "ObjID")), set(catalog.objID)
    failed = set(joined(shards, "failed/ObjID"))
    assert stamps | failed == kept and not stamps & failed

    removed = set(rejected.objID)
    queried = removed | kept
    detected = set(photo[photo["mode"] == 1].objID)
    for galaxy in truth.dropna(subset="objID").itertuples():
        assert galaxy.objID in detected
        assert (galaxy.objID in queried) or not_selected(survey, galaxy.objID), galaxy.objID
    counted = sum(step["removed"] for steps in funnel.values() for step in steps)
    assert counted == len(rejected), "every removal is counted once"


def not_selected(survey: Path, objid: int) -> bool:
    """The photometric selection of both queries, said again: an object that it does not take."""
    with duckdb.connect(
        str(survey / "results" / "simulate" / "survey.duckdb"), read_only=True
    ) as database:
        row = database.sql(
            "SELECT type, clean, insideMask, petroMag_r - extinction_r AS r "
            f"FROM PhotoObjAll WHERE objID = {objid}"
        ).df()
    row = row.iloc[0]
    return bool(row.type != 3 or row.clean != 1 or row.insideMask != 0 or not row.r <= 17.8)


@pytest.mark.long
def test_light_of_isolated_galaxies_is_that_of_the_noiseless_sky(survey):
    """chi2 per degree of freedom 0.8 to 1.2; benchmarks/light.py does it for more galaxies."""
    config = yaml.safe_load((small_workflow.ROOT / "config.yaml").read_text())
    results = survey / "results"
    fluxes = light.aperture_fluxes(
        results, config["simulate"] | OVERLAY["simulate"], light.clean_galaxies(results)
    )
    assert len(fluxes) > 200
    np.testing.assert_allclose(fluxes.direct, fluxes.flux, rtol=1e-6)
    fluxes["chi"] = (fluxes.flux - fluxes.true) / fluxes.sigma
    assert (fluxes.groupby("radius").chi.var(ddof=0).between(0.8, 1.2)).all()
    table = light.summary(fluxes, bright=50)
    known = table[table.ratio_error < 0.001]
    assert len(known) >= 2
    assert (np.abs(known.ratio - 1) < 0.002 + 2 * known.ratio_error).all()
