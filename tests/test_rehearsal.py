"""The workflow against services that fail, killed and started again: the same bytes at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SIMULATED = {"camcols": [3], "fields": [2, 1], "galaxies_per_field": 30, "stars_per_field": 15,
             "reference_size": 1000}  # fmt: skip
ONE_FIELD = {"runs": [4207], "camcols": [3], "fields": [1], "galaxies_per_field": 12,
             "stars_per_field": 5, "artefact_rate": 0, "reference_size": 300}  # fmt: skip


@pytest.mark.parametrize(
    ("kills", "shards", "gone", "simulated"),
    [
        pytest.param(1, 1, 0, ONE_FIELD, id="once"),
        pytest.param(3, 2, 0.08, SIMULATED, id="thrice", marks=pytest.mark.long),
    ],
)
def test_a_run_on_bad_days_that_is_killed_gives_the_same_bytes(
    tmp_path, kills, shards, gone, simulated
):
    survey, overlay = tmp_path / "survey.yaml", tmp_path / "shards.yaml"
    survey.write_text(yaml.safe_dump({"simulate": simulated}))
    overlay.write_text(yaml.safe_dump({"catalog": {"shards": shards}}))
    words = [
        sys.executable, "benchmarks/rehearsal.py", "--work", tmp_path, "--survey", survey,
        "--goals", "none", "--faults", 0.2, "--gone", gone, "--seed", 1, "--kills", kills,
        "--longest", 15, "--", "results/dataset.json", "--configfile", overlay,
    ]  # fmt: skip
    done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True)
    log = tmp_path / "bad" / "rehearsal.log"
    told = log.read_text()[-5000:] if log.exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + told
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["products"] == 3 + shards and figures["different"] == []
    assert figures["frames_asked_again"] == [] and figures["jobs_put_twice"] == []
    assert figures["secrets"] == []
    assert sum(figures["faulty"].values()) > kills and len(figures["faulty"]) > kills
    assert all("not in the archive" in reason for reason in figures["failures"])
    assert bool(figures["failures"]) == (gone > 0), "galaxies on frames that are gone"
