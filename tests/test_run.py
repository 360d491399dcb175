"""What every stage leans on: errors in one line, progress, files that appear whole."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata

import pytest

from pipeline import run


def interrupt(path):
    with run.whole_file(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt


def test_whole_file_appears_with_its_content_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "name.csv"
    with run.whole_file(path) as part:
        part.write_text("all of it")
        assert not path.exists()
        assert part.suffix == path.suffix and part.parent == path.parent
    assert path.read_text() == "all of it"
    assert os.listdir(path.parent) == ["name.csv"]


def test_a_file_that_fails_leaves_the_former_one(tmp_path):
    path = tmp_path / "name.csv"
    path.write_text("former")
    with pytest.raises(KeyboardInterrupt):
        interrupt(path)
    assert path.read_text() == "former"
    assert os.listdir(tmp_path) == ["name.csv"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline import run
frames = Path(sys.argv[1]).with_name("frames")
with run.whole_file(sys.argv[1]) as part, run.whole_folder(frames) as folder:
    part.write_text("half")
    (folder / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_with_the_next(tmp_path):
    path = tmp_path / "name.csv"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert len(os.listdir(tmp_path)) == 2
    with run.whole_file(path) as part:
        part.write_text("second")
    assert path.read_text() == "second" and len(os.listdir(tmp_path)) == 2
    with run.whole_folder(tmp_path / "frames"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["frames", "name.csv"]


def test_what_another_hosts_process_writes_is_let_be_until_it_is_silent_for_days(tmp_path):
    path = tmp_path / "name.csv"
    others = tmp_path / ".name.csv.node-17.site.edu-1-22.part.csv"
    others.write_text("half")
    (tmp_path / ".name.csv.part.csv").write_text("of a name that is none of ours")
    with run.whole_file(path) as part:
        part.write_text("mine")
    assert others.exists()
    os.utime(others, (0, 0))
    with run.whole_file(path) as part:
        part.write_text("mine")
    assert sorted(os.listdir(tmp_path)) == [".name.csv.part.csv", "name.csv"]


def test_a_job_and_its_successor_write_at_the_same_time_and_both_wholly(tmp_path):
    path = tmp_path / "name.csv"
    with run.whole_file(path) as one, run.whole_file(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["name.csv"]


@pytest.mark.parametrize("was_there", [True, False])
def test_a_folder_that_another_made_meanwhile_stays(tmp_path, was_there):
    path = tmp_path / "frames"
    if was_there:
        path.mkdir()
    with run.whole_folder(path) as late:
        with run.whole_folder(path) as early:
            (early / "a").write_text("early")
        inode = path.stat().st_ino
        (late / "a").write_text("late")
    assert path.stat().st_ino == inode and (path / "a").read_text() == "early"
    assert os.listdir(tmp_path) == ["frames"]


def test_whole_folder_replaces_and_cleans(tmp_path):
    path = tmp_path / "frames"
    with run.whole_folder(path) as part:
        (part / "a").write_text("1")
    with pytest.raises(ValueError), run.whole_folder(path) as part:
        (part / "b").write_text("2")
        raise ValueError
    assert os.listdir(path) == ["a"] and os.listdir(tmp_path) == ["frames"]
    with run.whole_folder(path) as part:
        (part / "c").write_text("3")
    assert os.listdir(path) == ["c"] and os.listdir(tmp_path) == ["frames"]


def test_a_former_folder_that_cannot_be_removed_is_told_and_stays(tmp_path, monkeypatch):
    path = tmp_path / "frames"
    path.mkdir()
    (path / "a").write_text("former")
    remove = shutil.rmtree
    held = lambda folder, **given: folder == path or remove(folder, **given)  # noqa: E731
    monkeypatch.setattr(run.shutil, "rmtree", held)
    with pytest.raises(PermissionError, match="frames"), run.whole_folder(path) as part:
        (part / "a").write_text("new")
    assert (path / "a").read_text() == "former" and os.listdir(tmp_path) == ["frames"]


WAITS = """
import sys, time
from pathlib import Path
from pipeline import run
with run.sole(sys.argv[1]):
    Path(sys.argv[2]).touch()
    time.sleep(float(sys.argv[3]))
"""


def test_one_at_a_time_and_a_killed_one_is_not_waited_for(tmp_path):
    lock, inside = tmp_path / "moco" / ".lock", tmp_path / "inside"
    first = subprocess.Popen([sys.executable, "-c", WAITS, str(lock), str(inside), "600"])
    while not inside.exists():
        time.sleep(0.05)
    words = [sys.executable, "-c", WAITS, str(lock), str(tmp_path / "second"), "0"]
    second = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    assert second.poll() is None and not (tmp_path / "second").exists()
    first.kill()
    assert second.wait(60) == 0 and (tmp_path / "second").exists()
    assert os.listdir(lock.parent) == []


CROWD = """
import sys
from pathlib import Path
from pipeline import run
for _ in range(60):
    with run.sole(sys.argv[1]):
        inside = Path(sys.argv[1] + ".inside")
        inside.touch(exist_ok=False)
        inside.unlink()
"""


def test_of_many_one_at_a_time(tmp_path):
    words = [sys.executable, "-c", CROWD, str(tmp_path / ".lock")]
    crowd = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in crowd:
        assert "Traceback" not in process.communicate(timeout=120)[1] and process.returncode == 0
    assert os.listdir(tmp_path) == []


def test_json_keeps_order_and_refuses_nan(tmp_path):
    path = tmp_path / "a.json"
    run.write_json({"z": 1, "a": [1237653651835781245]}, path)
    assert list(json.loads(path.read_text())) == ["z", "a"]
    assert "1237653651835781245" in path.read_text()
    with pytest.raises(ValueError):
        run.write_json({"z": float("nan")}, path)
    assert list(json.loads(path.read_text())) == ["z", "a"] and os.listdir(tmp_path) == ["a.json"]


def test_provenance_lies_beside_the_product(tmp_path):
    product = tmp_path / "0001.h5"
    product.write_bytes(b"x")
    run.write_provenance(product, archive="somewhere", workers=2)
    record = json.loads((tmp_path / "0001.h5.provenance.json").read_text())
    assert record["product"] == "0001.h5" and record["workers"] == 2
    assert record["versions"]["ugriz"] and product.read_bytes() == b"x"
    assert record["versions"]["torch"] == metadata.version("torch")


def test_sha256_of_a_known_text(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert run.sha256(path).startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4s"), (75, "1m15s"), (59.6, "1m00s"), (3700, "1h01m"), (float("inf"), "an unknown")],
)
def test_duration(seconds, text):
    assert run.duration(seconds).startswith(text)


def test_progress_tells_counts(caplog):
    caplog.set_level(logging.INFO, logger="ugriz")
    progress = run.Progress("frames", 10, "files", every=0)
    progress.add(4)
    progress.close()
    assert "4 of 10 files" in caplog.text and "4 files in" in caplog.text


PROGRAM = """
import errno
from pipeline import run
def main(argv):
    raise {error}
run.start(main)
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("run.UserError('galaxies.csv: row 3: mend it')", "error: galaxies.csv: row 3: mend it"),
        ("OSError(errno.ENOSPC, 'No space', 'x.h5')", "error: x.h5: no space left"),
        ("OSError(errno.ENOTDIR, 'Not a directory', 'a/b')", "error: a/b: Not a directory"),
        ("PermissionError(errno.EACCES, 'no', '/there')", "error: /there: Permission denied"),
        ("KeyboardInterrupt", "error: interrupted"),
    ],
)
def test_start_ends_in_one_line(error, line):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(error=error)], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_start_hides_no_fault_of_ours():
    code = PROGRAM.format(error="RuntimeError('a fault')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_full_disk_is_told_apart(tmp_path):
    full = run.describe_os_error(OSError(errno.ENOSPC, "", "a.h5"))
    closed = run.describe_os_error(OSError(errno.EROFS, "", "a.h5"))
    assert "no space" in full and "Read-only" in closed and "\n" not in full + closed
    stale = run.describe_os_error(OSError(errno.ESTALE, "", "a.h5"))
    assert "a.h5: Stale file handle" in stale and "run again" in stale
