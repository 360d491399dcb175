"""`pipeline.cutouts --scheduler` with a real scheduler and real workers, which are killed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_archive import SMALL, make_archive, make_galaxies, same_bytes, served

from pipeline import cutouts
from pipeline.images import workers
from pipeline.run import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, []
        self.address, self.scheduler = "", None

    def start(self, **environment: str) -> None:
        file = self.folder / "scheduler.json"
        words = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                 "--dashboard-address", "127.0.0.1:0"]  # fmt: skip
        self.scheduler = self._run(
            "scheduler", "", *words, "--scheduler-file", str(file), **environment
        )
        wait_until(lambda: file.exists() and file.read_text().endswith("}"))
        self.address = json.loads(file.read_text())["address"]

    def worker(self, patch: str = "", threads: int = 1) -> subprocess.Popen:
        """Start a worker; `patch` is a program that it runs first."""
        words = ["--nthreads", str(threads), "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
        return self._run("worker", patch, self.address, *words)

    def _run(self, kind: str, patch: str, *words: str, **environment: str) -> subprocess.Popen:
        lines = [patch, f"from distributed.cli.dask_{kind} import main", "main()"]
        log = open(self.folder / f"{len(self.processes)}-{kind}.log", "w")  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(lines), *words], cwd="/", stdout=log, stderr=log,
            env=os.environ | QUIET | environment,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def wait_until(what, process: subprocess.Popen | None = None, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path_factory, request):
    """A scheduler without workers; the parameter: a task's workers that may die."""
    made, may_die = Cluster(tmp_path_factory.mktemp("cluster")), getattr(request, "param", 3)
    try:
        made.start(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=str(may_die))
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return make_archive(tmp_path_factory.mktemp("sas"), make_galaxies())


@pytest.fixture(scope="module")
def local(tmp_path_factory, archive) -> Path:
    """The shard as threads of the stage make it."""
    folder = tmp_path_factory.mktemp("local")
    make_galaxies().to_csv(folder / "galaxies.csv", index=False)
    cutouts.main(arguments(folder / "galaxies.csv", archive, folder / "a.h5"))
    return folder / "a.h5"


def arguments(galaxies, archive, output, *more) -> list[str]:
    words = ["--galaxies", galaxies, "--archive", archive, "--output", output, "--size", 31,
             "--fov", SMALL.stamp.fov, *more]  # fmt: skip
    return [str(word) for word in words]


IMPATIENT = """
from pipeline import cutouts, run
from pipeline.images import workers
workers.PATIENCE, workers.LOOK = 5.0, 0.2
run.start(cutouts.main)
"""


def begin(address, local, archive, folder, *more) -> subprocess.Popen:
    """Start the stage in `folder`, with paths that are relative to it."""
    root = archive if "://" in str(archive) else os.path.relpath(archive, folder)
    argv = arguments(local.with_name("galaxies.csv"), root, "a.h5", "--scheduler", address, *more)
    return subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *argv], cwd=folder, text=True, stderr=subprocess.PIPE,
        env=os.environ | QUIET,
    )  # fmt: skip


def error_of(process: subprocess.Popen, folder: Path) -> str:
    """The one line with which the stage ended; it left nothing."""
    text = process.communicate(timeout=120)[1]
    lines = [line for line in text.splitlines() if not line[:8].replace(":", "").isdigit()]
    assert process.returncode == 1, text
    assert len(lines) == 1 and lines[0].startswith("error: "), text
    assert os.listdir(folder) == []
    return lines[0]


def ends_well(process: subprocess.Popen, local: Path, folder: Path) -> str:
    """Its log; the shard is, byte for byte, that of threads."""
    text = process.communicate(timeout=120)[1]
    assert process.returncode == 0, text
    assert same_bytes(local, folder / "a.h5")
    assert sorted(os.listdir(folder)) == ["a.h5", "a.h5.provenance.json"]
    return text


HOLD = """
import pathlib, time
from pipeline.survey import frame
here, plain = pathlib.Path({folder!r}), frame.read
def read(data, field, band):
    if band == {band!r}:
        (here / "held").touch()
        time.sleep(1000)
    return plain(data, field, band)
frame.read = read
"""


def test_two_workers_of_which_one_is_killed_give_the_bytes_of_threads(
    local, archive, tmp_path, cluster
):
    """What is killed holds the first frame, and has finished others, which are lost with it."""
    doomed = cluster.worker(HOLD.format(folder=str(cluster.folder), band="u"), threads=2)
    process = begin(cluster.address, local, archive, tmp_path)
    wait_until((cluster.folder / "held").exists, process)
    cluster.worker()
    time.sleep(0.5)
    doomed.kill()
    text = ends_well(process, local, tmp_path)
    assert "Traceback" not in text and "distributed" not in text
    facts = json.loads((tmp_path / "a.h5.provenance.json").read_text())
    assert facts["workers"] == 1


def test_frames_of_a_url_lie_where_workers_see_them(local, archive, tmp_path, cluster):
    cluster.worker(threads=2)
    table = local.with_name("galaxies.csv")
    with served(archive) as url:
        cutouts.main(arguments(table, url, tmp_path / "a.h5", "--scheduler", cluster.address))
    assert same_bytes(local, tmp_path / "a.h5")
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "a.h5.provenance.json"]


def test_a_scheduler_without_workers_is_waited_for(local, archive, tmp_path, cluster):
    line = error_of(begin(cluster.address, local, archive, tmp_path), tmp_path)
    assert f"--scheduler {cluster.address}: has had no worker for 5.0s; start some" in line


def test_a_worker_that_comes_late_is_used_and_missed_when_it_goes(
    local, archive, tmp_path, cluster
):
    process = begin(cluster.address, local, archive, tmp_path)
    assert "has no worker; waiting up to 5.0s for one" in process.stderr.readline()
    worker = cluster.worker(HOLD.format(folder=str(cluster.folder), band="r"))
    wait_until((cluster.folder / "held").exists, process)
    worker.kill()
    assert "has had no worker for" in error_of(process, tmp_path)


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_a_frame_on_which_workers_die_is_one_line(local, archive, tmp_path, cluster):
    patch = HOLD.format(folder=str(cluster.folder), band="r")
    patch = patch.replace("time.sleep(1000)", "import os; os._exit(9)")
    for _ in range(2):
        cluster.worker(patch.replace("if band", "if field.field == 100 and band"))
    line = error_of(begin(cluster.address, local, archive, tmp_path), tmp_path)
    assert "1 workers ended while they cut the same frame" in line and "memory" in line


def test_the_scheduler_dies(local, archive, tmp_path, cluster):
    cluster.worker(HOLD.format(folder=str(cluster.folder), band="r"))
    process = begin(cluster.address, local, archive, tmp_path)
    wait_until((cluster.folder / "held").exists, process)
    cluster.scheduler.kill()
    line = error_of(process, tmp_path)
    assert f"--scheduler {cluster.address}: went away" in line and "run again" in line


def test_a_worker_without_the_pipeline_is_named(local, archive, tmp_path, cluster):
    cluster.worker("import sys; sys.modules['pipeline'] = None")
    line = error_of(begin(cluster.address, local, archive, tmp_path), tmp_path)
    assert ": tcp://127.0.0.1:" in line and "cannot run this pipeline (No module named" in line
    assert f"PYTHONPATH={REPOSITORY}" in line


def test_a_disk_that_is_full_for_a_worker_is_one_line_and_goes_on(
    local, archive, tmp_path, cluster
):
    cluster.worker()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here (not root)")
    try:
        line = error_of(begin(cluster.address, local, archive, tmp_path), tmp_path)
        assert f"error: {tmp_path}/.a.h5.scratch." in line and "no space left" in line
        subprocess.run(["mount", "-o", "remount,size=10m", str(tmp_path)], check=True)
        ends_well(begin(cluster.address, local, archive, tmp_path), local, tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def packed(tmp_path) -> bytes:
    return workers._packed(os.mkdir, str(tmp_path / "called"))


@pytest.mark.parametrize("name", ["pipeline", "Python", "numpy", "machine"])
def test_a_worker_that_might_make_other_bytes_does_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setattr(workers, "get_worker", lambda: SimpleNamespace(address="tcp://a:1"))
    other = workers.identity() | {name: "another"}
    with pytest.raises(UserError, match=f"worker tcp://a:1: has {name} .*, this run another; star"):
        workers._alike(other, [], packed(tmp_path))
    assert not (tmp_path / "called").exists()


def test_a_worker_that_sees_other_folders_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "get_worker", lambda: SimpleNamespace(address="tcp://a:1"))
    ours, link = workers.identity(), tmp_path / "frame-g"
    link.symlink_to("/no/such/frame")  # of a folder that only some machines have
    for unseen in (tmp_path / "scratch", link):
        with pytest.raises(UserError, match=f"tcp://a:1: does not see {unseen}; run where"):
            workers._alike(ours, [str(tmp_path), str(unseen)], packed(tmp_path))
    assert not (tmp_path / "called").exists()
    workers._alike(ours, [str(tmp_path)], packed(tmp_path))
    assert (tmp_path / "called").exists()
