"""The benchmark of downloads: its files are frames, and its command ends with its figures."""

import importlib
import json
import shutil
import subprocess
import sys

import pytest

from pipeline.images.gather import check
from pipeline.settings import ROOT
from pipeline.survey.transfer import Damaged


@pytest.fixture(scope="module")
def module():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("downloads")


def test_files_are_small_frames_each_of_its_own_name(module, tmp_path):
    paths = module.write_frames(tmp_path, 12)
    assert len(set(paths)) == 12
    data = {path: (tmp_path / path).read_bytes() for path in paths}
    assert len(set(data.values())) == 12 and max(map(len, data.values())) < 10_000
    for path in paths[4:7]:
        check(path, data[path])
    with pytest.raises(Damaged, match="another frame"):
        check(paths[0], data[paths[5]])


def test_command_ends_with_its_figures(tmp_path):
    words = [ROOT / "benchmarks/downloads.py", "--files", "25", "--work", tmp_path]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    rows = figures["rows"]
    assert set(rows) >= {"hashes checked", "frames checked", "default manners"}
    assert ("wget" in rows) == bool(shutil.which("wget"))
    for name, row in rows.items():
        assert row["files"] == row["requests"] == row["requests_seen"] == 25
        assert row["share"] == pytest.approx(
            row["files_per_s"] / figures["bound_files_per_s"], rel=0.01
        )
        assert row["connections"] >= 1 and name in done.stdout
    assert figures["one_stream_s_per_file"] > 0.05
    assert rows["default manners"]["seconds"] > 2.3, "ten requests a second, no more"


def test_no_files_are_refused(module):
    with pytest.raises(module.UserError, match="--files 0"):
        module.main(["--files", "0"])


def test_requests_of_the_fullest_minute_are_counted(module):
    assert module._most_within([0.0, 1.0, 50.0, 61.5, 62.0], 60.0) == 3
