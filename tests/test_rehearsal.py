"""The workflow against services that fail, killed and started again: the same bytes at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SURVEY = {
    "simulate": {
        "camcols": [3],
        "fields": [2, 1],
        "galaxies_per_field": 30,
        "stars_per_field": 15,
        "reference_size": 1000,
    }
}


@pytest.mark.long
def test_a_run_on_bad_days_that_is_killed_thrice_gives_the_same_bytes(tmp_path):
    survey = tmp_path / "survey.yaml"
    survey.write_text(yaml.safe_dump(SURVEY))
    two_shards = tmp_path / "two-shards.yaml"
    two_shards.write_text(yaml.safe_dump({"catalog": {"shards": 2}}))
    done = subprocess.run(
        [sys.executable, "benchmarks/rehearsal.py", "--work", tmp_path, "--survey", survey,
         "--goals", "none", "--faults", "0.2", "--gone", "0.08", "--seed", "1", "--kills", "3",
         "--longest", "15", "--", "results/dataset.json", "--configfile", two_shards],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    log = tmp_path / "bad" / "rehearsal.log"
    assert done.returncode == 0, done.stdout + done.stderr + log.read_text()[-5000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["products"] == 5 and figures["different"] == []
    assert figures["frames_asked_again"] == [] and figures["jobs_put_twice"] == []
    assert figures["secrets"] == []
    assert sum(figures["faulty"].values()) > 5 and len(figures["faulty"]) > 3
    assert all("not in the archive" in reason for reason in figures["failures"])
    assert figures["failures"], "galaxies on frames that are gone are failures"
