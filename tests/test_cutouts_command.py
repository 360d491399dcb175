"""The command `python -m pipeline.cutouts`: HTTP, bad input, kills, a full disk."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from small_archive import SMALL, make_archive, make_galaxies, same_bytes, served

from pipeline import cutouts, run

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def galaxies() -> pd.DataFrame:
    return make_galaxies()


@pytest.fixture(scope="module")
def archive(tmp_path_factory, galaxies) -> Path:
    return make_archive(tmp_path_factory.mktemp("sas"), galaxies)


def write_csv(galaxies, tmp_path):
    path = tmp_path / "galaxies.csv"
    galaxies.to_csv(path, index=False)
    return str(path)


def arguments(galaxies, archive, output, *more):
    return ["--galaxies", galaxies, "--archive", str(archive), "--output", str(output),
            "--size", "31", "--fov", str(SMALL.stamp.fov), *more]  # fmt: skip


def test_the_command_over_http_gives_the_bytes_of_the_folder(galaxies, archive, tmp_path):
    table = write_csv(galaxies, tmp_path)
    cutouts.main(arguments(table, archive, tmp_path / "a.h5", "--variance"))
    with served(archive) as url:
        cutouts.main(arguments(table, url, tmp_path / "b.h5", "--variance", "--workers", "2"))
    assert same_bytes(tmp_path / "a.h5", tmp_path / "b.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["variance"].shape == file["images"].shape and "mask" not in file
        assert "127.0.0.1" not in str(dict(file.attrs)) and file.attrs["engine"] == "overlap"
    assert (tmp_path / "a.h5.provenance.json").exists()


def test_a_table_of_which_nothing_can_be_made_is_refused(galaxies, tmp_path):
    (tmp_path / "empty").mkdir()
    table = write_csv(galaxies, tmp_path)
    with pytest.raises(
        run.UserError, match="none of .* galaxies has a stamp; .*not in the archive"
    ):
        cutouts.main(arguments(table, tmp_path / "empty", tmp_path / "a.h5"))
    assert not (tmp_path / "a.h5").exists()


def test_a_tables_own_split_is_kept(galaxies, archive, tmp_path):
    splits = ["train", "test"] * len(galaxies)
    table = write_csv(galaxies.assign(split=splits[: len(galaxies)]), tmp_path)
    cutouts.main(arguments(table, archive, tmp_path / "a.h5"))
    with h5py.File(tmp_path / "a.h5") as file:
        ours = dict(zip(galaxies.objID, splits, strict=False))
        kept = dict(zip(file["ObjID"][:], file["split"][:].astype(str), strict=True))
        assert len(set(kept.values())) == 2
        assert kept == {objid: ours[objid] for objid in kept}


BAD = [
    (["--size", "0"], "size: 0"),
    (["--size", "106"], "size: 106"),
    (["--fov", "-0.012"], "fov: -0.012"),
    (["--workers", "0"], "--workers 0"),
    (["--galaxies", "none.csv"], "none.csv: no such file"),
    (["--galaxies", "norun.csv"], "norun.csv: has no column run"),
    (["--galaxies", "half.csv"], "half.csv: has run but not camcol"),
    (["--galaxies", "nan.csv"], "nan.csv: row 2"),
    (["--galaxies", "empty.csv"], "empty.csv"),
    (["--galaxies", "spoilt.csv"], "spoilt.csv: row 1: objID"),
    (["--galaxies", "some.csv", "--shard", "1"], "some.csv: cannot be read as a catalogue"),
    (["--archive", "/no/such/folder"], "/no/such/folder: no such folder"),
    (["--archive", "ftp://x/y"], "ftp://x/y"),
    (["--archive", "http://127.0.0.1:9/sas"], "http://127.0.0.1:9/sas: cannot be reached"),
    (["--output", "some.csv/out.h5"], "some.csv"),
    (["--output", "."], "--output .: is a folder"),
]


@pytest.mark.parametrize(("change", "line"), BAD)
def test_bad_input_ends_in_one_line(galaxies, archive, tmp_path, monkeypatch, capfd, change, line):
    monkeypatch.chdir(tmp_path)
    write_tables(galaxies)
    before = sorted(os.listdir())
    argv = arguments("some.csv", archive, "out.h5", *change)
    monkeypatch.setattr(sys, "argv", ["cutouts", *argv])
    with pytest.raises(SystemExit) as caught:
        run.start(cutouts.main)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "\n" not in message and line in message
    assert "Traceback" not in capfd.readouterr().err
    assert sorted(os.listdir()) == before


def write_tables(galaxies):
    galaxies.to_csv("some.csv", index=False)
    galaxies[["ra", "dec"]].to_csv("norun.csv", index=False)
    galaxies[["ra", "dec", "run"]].to_csv("half.csv", index=False)
    galaxies.assign(dec=[1.0, np.nan] + [1.0] * 4).to_csv("nan.csv", index=False)
    galaxies.iloc[:0].to_csv("empty.csv", index=False)
    galaxies.assign(objID="1.23765E+18").to_csv("spoilt.csv", index=False)


def command(*argv, program=("-m", "pipeline.cutouts")):
    # the parent's files are found beside its modules, whatever the folder it is started in
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, *program, *argv], env=environment, text=True, stderr=subprocess.PIPE
    )


def errors(text):
    """The lines of stderr that are no line of the log."""
    return [line for line in text.splitlines() if not line[:9].replace(":", "").strip().isdigit()]


IMPATIENT = """
from pipeline import cutouts, run
from pipeline.images import workers
workers.ANSWER = 1.0
run.start(cutouts.main)
"""


def test_a_scheduler_that_does_not_answer_ends_the_program_in_one_line(galaxies, archive, tmp_path):
    argv = arguments(write_csv(galaxies, tmp_path), archive, tmp_path / "a.h5")
    process = command(*argv, "--scheduler", "tcp://127.0.0.1:9", program=("-c", IMPATIENT))
    text = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert len(errors(text)) == 1 and text.splitlines()[-1].startswith("error: ")
    assert "tcp://127.0.0.1:9" in text
    assert os.listdir(tmp_path) == ["galaxies.csv"]


def test_an_unknown_engine_is_no_choice(galaxies, archive, tmp_path, capsys):
    table = write_csv(galaxies, tmp_path)
    with pytest.raises(SystemExit) as ended:
        cutouts.main(arguments(table, archive, tmp_path / "a.h5", "--engine", "magic"))
    assert ended.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_a_kill_at_any_moment_leaves_nothing_wrong(galaxies, archive, tmp_path):
    table = write_csv(galaxies, tmp_path)
    argv = arguments(table, archive, tmp_path / "out" / "a.h5", "--workers", "2")
    began = time.monotonic()
    assert command(*argv).wait(120) == 0
    took = time.monotonic() - began
    expected = (tmp_path / "out" / "a.h5").read_bytes()
    (tmp_path / "out" / "a.h5").unlink()
    draw = random.Random(3)
    for _ in range(3):
        process = command(*argv)
        time.sleep(draw.uniform(0.5, 1.0) * took)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        product = tmp_path / "out" / "a.h5"
        assert not product.exists() or product.read_bytes() == expected
    assert command(*argv).wait(120) == 0
    assert (tmp_path / "out" / "a.h5").read_bytes() == expected
    assert sorted(os.listdir(tmp_path / "out")) == ["a.h5", "a.h5.provenance.json"]


@pytest.fixture(params=[64, 200, 700, 1000, 1300])
def small_disk(tmp_path, request):
    """A disk of so many kB: full for the scratch files, in the middle of the shard, at its end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here (not root)")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_in_one_line(galaxies, archive, tmp_path, small_disk):
    table = write_csv(galaxies, tmp_path)
    argv = ["--galaxies", table, "--archive", str(archive), "--output", str(small_disk / "a.h5")]
    process = command(*argv)
    text = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert len(errors(text)) == 1 and text.splitlines()[-1].startswith("error: "), text
    assert "no space left" in text and f"error: {small_disk}/" in text
    assert os.listdir(small_disk) == []
    if os.statvfs(small_disk).f_blocks * os.statvfs(small_disk).f_frsize < 100_000:
        subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
        assert command(*argv).wait(120) == 0, "it goes on when there is room"
