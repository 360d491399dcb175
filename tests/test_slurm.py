"""The Snakefile through workflow/profiles/slurm on a real Slurm: bytes, faults, and bad input.

Slow, and only as root with Debian's slurm-wlm and munge: `make slurm-test`. UGRIZ_SLURM=embedded
takes config.yaml's whole survey, learning included, where else a smaller one is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_workflow
from services import slurm

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing())),
]
PATIENCE = 600
"""Seconds for a moment to come; a busy machine needs them."""
WHOLE = os.environ.get("UGRIZ_SLURM") == "embedded"
SMALL = {
    "simulate": {"camcols": [3], "galaxies_per_field": 60, "stars_per_field": 25},
    "catalog": {"shards": 3},
    "goals": [],
}
SHARDS = 4 if WHOLE else 3
OVERLAY = {} if WHOLE else SMALL
FEW_STEPS = {
    "pretrain": {"steps": 6, "warmup": 1, "batch": 8, "queue": 32, "groups": 2, "probe_every": 0}
}
PROFILE = (
    "--workflow-profile", "workflow/profiles/slurm", "--slurm-status-command", "squeue",
    "--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1",
    "--latency-wait", "20", "--max-threads", "2",
)  # fmt: skip
"""The profile, with what a small machine needs otherwise."""
SAME = ["results/catalog.parquet", "results/dataset.json"]
if WHOLE:
    SAME += ["results/pretrain/moco/encoder.pt", "results/evaluate/photoz/metrics.json"]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    return small_workflow.make_house(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[slurm.Slurm]:
    # its GPUs are names that are asked for, and nothing that computes
    with slurm.slurm(tmp_path_factory.mktemp("slurm"), cpus=2, memory=12_000, gpus=1) as started:
        yield started


@pytest.fixture(scope="module")
def local(house, tmp_path_factory) -> Path:
    """The folder of a run without a cluster."""
    folder = tmp_path_factory.mktemp("local")
    done = small_workflow.snakemake(house, folder, "--cores", "2", overlay=OVERLAY)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Run:
    """A run of Snakemake in the background, its log in `folder`/run.log."""

    def __init__(self, house: Path, folder: Path, *words: str, overlay: dict, cluster: slurm.Slurm):
        command = small_workflow.command(folder, *words, *PROFILE, overlay=overlay)
        self.folder, self.log = folder, folder / "run.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=house, env=cluster.environment, stdout=log, stderr=log
            )

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def text(self) -> str:
        return self.log.read_text()

    def writer(self, other_than: str = "") -> tuple[str, str] | None:
        """(job, node) of a process that is writing a shard, of another job than one."""
        for part in (self.folder / "results" / "cutouts").glob(".*.h5.*.part.h5"):
            number = part.name.split("-")[-2]
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{number}/environ").read_bytes().decode().split("\0")
                job = job_of(dict(word.split("=", 1) for word in words if "=" in word))
                if job[0] != other_than:
                    return job
        return None


def come(moment: Callable[[], object], run: Run) -> object:
    """What `moment` gives as soon as it gives anything."""
    ends = time.monotonic() + PATIENCE
    while not (found := moment()):
        assert run.process.poll() is None, run.text()
        assert time.monotonic() < ends, "the moment did not come"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def faulty(house, cluster, tmp_path_factory) -> Run:
    """A run from the first rule to the last, in which jobs of shards meet with accidents.

    Every shard's first try has too little memory; then one's job is cancelled, and the node of
    another's dies.
    """
    memory = "cutouts:mem_mb=300 if attempt == 1 else 2000"
    words = ("--retries", "5", "--set-resources", memory)
    run = Run(house, tmp_path_factory.mktemp("run"), *words, overlay=OVERLAY, cluster=cluster)
    killed = "being killed"
    logs = list(cluster.folder.glob("slurmd-*.log"))
    come(lambda: sum(log.read_text().count(killed) for log in logs) >= SHARDS, run)
    cancelled, _ = come(run.writer, run)
    cluster.command("scancel", cancelled)
    _, run.dead_node = come(lambda: run.writer(other_than=cancelled), run)
    cluster.kill_node(run.dead_node)
    run.status = run.wait()
    cluster.start_node(run.dead_node)
    return run


def job_of(surroundings: dict[str, str]) -> tuple[str, str]:
    """(job, node) of a process, by its environment variables."""
    array, task = (surroundings.get(f"SLURM_ARRAY_{word}_ID") for word in ("JOB", "TASK"))
    job = f"{array}_{task}" if array else surroundings["SLURM_JOB_ID"]
    return job, surroundings["SLURMD_NODENAME"]


def sums(folder: Path) -> dict[str, str]:
    files = [*(folder / "results" / "cutouts").glob("*.h5"), *(folder / name for name in SAME)]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def test_shards_are_the_bytes_of_a_local_run_whatever_befell_their_jobs(local, faulty):
    assert faulty.status == 0, faulty.text()
    made = sums(faulty.folder)
    assert len(made) == SHARDS + len(SAME) and made == sums(local)
    assert not list((faulty.folder / "results").glob("frames/0*/")), "frames are let go"
    assert not list((faulty.folder / "results" / "cutouts").glob(".*")), "nothing is left"


def test_jobs_over_their_memory_cancelled_or_on_a_dead_node_were_tried_again(cluster, faulty):
    said = faulty.text()
    tries = re.findall(r"message: SLURM-job '\S+' failed", said)
    assert len(tries) >= SHARDS + 1, "all for memory, one cancelled"
    assert "SLURM status is: 'CANCELLED'" in said
    controller = (cluster.folder / "slurmctld.log").read_text()
    assert re.search(rf"Killing JobId=\S+ on failed node {faulty.dead_node}|"
                     rf"requeue job JobId=\S+ due to failure of node {faulty.dead_node}",
                     controller), controller[-3000:]  # fmt: skip


def test_shards_that_are_ready_together_are_one_array(faulty):
    assert "Submitted array job" in faulty.text()


def begun(local: Path, folder: Path) -> Path:
    """A run that has its survey, but has asked it nothing."""
    return small_workflow.copy_of_run(local, folder, ["simulate"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--default-resources", "slurm_partition=nowhere"), "no such partition"),
        (("--default-resources", "slurm_account=closed"), "refuses the account"),
        (("--set-resources", "query:gpu=9"), "no node has what is asked for"),
        (("--set-resources", "query:mem_mb=10**6"), "no node has what is asked for"),
    ],
)
def test_what_slurm_refuses_ends_in_one_line_and_the_run_goes_on(
    house, cluster, local, tmp_path, words, line
):
    folder, target = begun(local, tmp_path), "results/query/fields.parquet"
    refused = Run(house, folder, target, *words, overlay=OVERLAY, cluster=cluster)
    assert refused.wait() == 1, refused.text()
    told = [said for said in refused.text().splitlines() if said.startswith("error: ")]
    assert len(told) == 1 and line in told[0], refused.text()
    assert not (folder / target).exists()
    if "account" in line:  # the same for all of them, and slow
        again = Run(house, folder, target, overlay=OVERLAY, cluster=cluster)
        assert again.wait() == 0, again.text()


def test_a_compute_node_without_a_network_is_told_what_to_do(house, cluster, local, tmp_path):
    away = {"query": {"engine": "skyserver", "source": "http://127.0.0.1:9"},
            "network": {"tries": 1}, **OVERLAY}  # fmt: skip
    run = Run(house, tmp_path, "results/query/fields.parquet", "--retries", "0", overlay=away,
              cluster=cluster)  # fmt: skip
    assert run.wait() == 1
    summary = run.text().rpartition("Exiting because a job execution failed")[2]
    (told,) = [said for said in summary.splitlines() if said.startswith("error: ")]
    assert "submit_host: true" in told and "http://127.0.0.1:9" in told


def test_a_job_whose_snakemake_was_killed_and_its_successor_make_the_same_shard(
    house, cluster, local, tmp_path
):
    made = ["simulate", "query", "catalog.parquet", "catalog.json", "catalog-rejected.parquet"]
    folder = small_workflow.copy_of_run(local, tmp_path, made)
    target = "results/cutouts/0001.h5"
    first = Run(house, folder, "--nolock", target, overlay=OVERLAY, cluster=cluster)
    come(first.writer, first)
    first.process.kill()
    first.process.wait()
    second = Run(house, folder, "--nolock", target, overlay=OVERLAY, cluster=cluster)
    assert second.wait() == 0, second.text()
    ends = time.monotonic() + PATIENCE
    while cluster.jobs("running,pending,completing") and time.monotonic() < ends:
        time.sleep(0.5)
    assert sums_of(folder / target) == sums_of(local / target)


def sums_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_ranks_on_two_nodes_learn_what_two_on_one_node_do(house, cluster, local, tmp_path):
    overlay, encoder = OVERLAY | FEW_STEPS, "results/pretrain/moco/encoder.pt"
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        shutil.copytree(local, folder, symlinks=True)
        shutil.rmtree(folder / "results" / "pretrain", ignore_errors=True)
    ranks = (encoder, "--set-resources", "pretrain:ranks=2", "--rerun-triggers", "mtime")
    done = small_workflow.snakemake(house, one, *ranks, "--cores", "2", overlay=overlay)
    assert done.returncode == 0, done.stderr
    nodes = (encoder, "--set-resources", "pretrain:nodes=2", "pretrain:gres=gpu:1",
             "pretrain:mem_mb=3000", "--rerun-triggers", "mtime")  # fmt: skip
    run = Run(house, two, *nodes, overlay=overlay, cluster=cluster)
    assert run.wait() == 0, run.text()
    assert "2 ranks" in (two / "logs" / "pretrain" / "moco.log").read_text()
    history = "results/pretrain/moco/history.csv"
    assert (one / history).read_text() == (two / history).read_text()
    assert sums_of(one / encoder) == sums_of(two / encoder)
