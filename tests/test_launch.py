"""Ranks that a training starts itself: on a node, on many, and the one line that ends them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_pretrain import flags, history, small  # noqa: F401 (a fixture)

from pipeline import pretrain, train
from pipeline.learning import checkpoint, launch, ranks, slurm
from pipeline.learning.launch import Team, what_ended
from pipeline.run import UserError

ROOT = Path(__file__).resolve().parents[1]
PYTHON = [sys.executable, "-m", "pipeline.pretrain"]


def stage(words, **surroundings):
    """The ended `python -m pipeline.pretrain` of `words`."""
    return subprocess.run([*PYTHON, *words], cwd=ROOT, capture_output=True, text=True, timeout=240,
                          env=os.environ | surroundings)  # fmt: skip


def begun(words, state: Path) -> subprocess.Popen:
    """One that runs and has left its first state."""
    process = subprocess.Popen([*PYTHON, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not state.is_file() and process.poll() is None:
        time.sleep(0.02)
    return process


def ranks_of(process: subprocess.Popen) -> dict[int, int]:
    """Process ids of what a launcher has started, by rank."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(") ", 1)[1].split()[1])
            given = dict(
                word.split("=", 1)
                for word in (place / "environ").read_text().split("\0")
                if "=" in word
            )
        except OSError:
            continue
        if parent == process.pid and "RANK" in given:
            found[int(given["RANK"])] = int(place.name)
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def losses(output) -> list[float]:
    return [float(row["loss"]) for row in history(output)]


@pytest.mark.long
def test_two_ranks_have_the_losses_of_one_and_their_states_change_hands(small, tmp_path):  # noqa: F811
    """A run of two ranks whose rank 1 is killed, gone on with by one; and the other way round."""
    whole = tmp_path / "whole"
    settings = {"steps": 18, "double": True, "lr": 0.01}
    pretrain.main(flags(small, whole, **settings))
    for first, then in ((2, 1), (1, 2)):
        output = tmp_path / f"{first}-{then}"
        words = flags(small, output, **settings)
        process = begun([*words, "--ranks", str(first)], output / ".state.pt")
        victim = ranks_of(process)[1] if first == 2 else process.pid
        os.kill(victim, signal.SIGKILL)
        said = process.communicate(timeout=60)[1].splitlines()
        if first == 2:
            assert process.returncode == 1 and len(said) == 2, said
            assert said[1].startswith("error: rank 1 was ended by SIGKILL, for want of memory")
        assert checkpoint.load(output / ".state.pt", "state")["step"] < 18
        made = stage([*words, "--ranks", str(then)])
        assert made.returncode == 0 and made.stderr.count("goes on after step") == 1, made.stderr
        np.testing.assert_allclose(losses(output), losses(whole), rtol=1e-6)  # as they are written
        ours, theirs = (
            checkpoint.load_encoder(each / "encoder.pt")[0].state_dict() for each in (whole, output)
        )
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-8, msg=name)


def test_what_all_ranks_refuse_is_said_once_and_alone(small, tmp_path):  # noqa: F811
    made = stage(flags(small, tmp_path, ranks=2, batch=15, queue=30, groups=3))
    assert made.returncode == 1
    assert made.stderr == (
        "error: groups: 3 cannot be shared by 2 ranks with 1 micro-batches each; give a multiple "
        "of 2\n"
    )


def test_ranks_end_with_a_launcher_that_is_killed(small, tmp_path):  # noqa: F811
    process = begun(flags(small, tmp_path, ranks=2, steps=100_000), tmp_path / ".state.pt")
    started = ranks_of(process)
    process.kill()
    process.communicate()
    ends = time.monotonic() + 30
    while any(map(running, started.values())) and time.monotonic() < ends:
        time.sleep(0.1)
    assert sorted(started) == [0, 1] and not any(map(running, started.values()))


SRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
flags = [word for word in words if word.startswith("--")][:{count}]
with open({log!r}, "w") as file:
    print(*flags, sorted(name for name in os.environ if name.startswith("S")), sep="\\n", file=file)
start = next(at for at, word in enumerate(words) if not word.startswith("--"))
nodes = [subprocess.Popen(words[start:], env=os.environ | dict(SLURM_NODEID=str(node)))
         for node in range(2)]
status = max(abs(node.wait()) for node in nodes)
print("srun: error: task 1: Exited with exit code", status, file=sys.stderr)
sys.exit(status)
"""
SCONTROL = """#!/bin/sh
case "$*" in
    "show hostnames n[1-2]") echo n1; echo n2;;
    *"show job"*) echo "JobId=$4 ReqNodeList=(null) NodeList=n[1-2] BatchHost=n1";;
    *) echo "NodeName=$4 Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName=$4";;
esac
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A Slurm job of two nodes, both of them this machine; where its srun notes what it gets."""
    folder = tmp_path / "bin"
    folder.mkdir()
    noted = str(tmp_path / "srun.txt")
    for name, text in (
        ("srun", SRUN.format(python=sys.executable, log=noted, count=10)), ("scontrol", SCONTROL),
    ):  # fmt: skip
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for name, value in (
        ("PATH", f"{folder}:{os.environ['PATH']}"), ("SLURM_JOB_ID", str(os.getpid())),
        ("SLURM_JOB_NODELIST", "n1"), ("SLURM_NTASKS", "1"), ("SLURM_CPUS_PER_TASK", "1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    return Path(noted)


@pytest.mark.long
def test_two_nodes_of_a_job_train_as_one_rank(small, tmp_path, job):  # noqa: F811
    settings = {"steps": 6, "double": True}
    pretrain.main(flags(small, tmp_path / "one", **settings))
    made = stage(flags(small, tmp_path / "two", nodes=2, **settings))
    assert made.returncode == 0, made.stderr
    assert made.stderr.count("6 steps of 16 (1.0 epochs), on cpu, 2 ranks\n") == 1
    assert "Exited" not in made.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-6)
    noted = job.read_text()
    for flag in ("--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1",
                 "--nodelist=n1,n2", "--mem=0", "--cpu-bind=none"):  # fmt: skip
        assert flag in noted.splitlines()
    assert "SLURM_JOB_ID" in noted and "SLURM_NTASKS" not in noted and "CPUS_PER" not in noted


def test_what_ends_many_nodes_is_one_line(job, capfd):
    says = "echo 12:00 steps >&2; echo error: why >&2; exit 1"
    with pytest.raises(UserError, match="^why$"):
        slurm.over_nodes(["sh", "-c", says], 2, 1)
    assert capfd.readouterr().err == "12:00 steps\n" * 2
    with pytest.raises(UserError, match="srun ended with status 3; see above"):
        slurm.over_nodes(["sh", "-c", "exit 3"], 2, 1)
    assert capfd.readouterr().err == "srun: error: task 1: Exited with exit code 3\n"


def test_more_nodes_than_the_job_has_are_refused(job):
    with pytest.raises(UserError, match="nodes: 3, but the job has 2; ask for as many"):
        slurm.over_nodes(["python"], 3, 1)


def test_nodes_without_a_job_are_refused(small, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="no Slurm job; .* torchrun --nnodes 2 --nproc-per-node 4 "
                       ".* -m pipeline.pretrain") as error:  # fmt: skip
        pretrain.main(flags(small, tmp_path, nodes=2, ranks=4))
    assert "\n" not in str(error.value)


def test_ports_and_places_are_the_jobs_own(monkeypatch):
    given = slurm.environment({"SLURM_JOB_ID": "70000", "SLURM_CONF": "c", "A": "b"}, ["x", "y"])
    assert given["SLURM_CONF"] == "c" and given["A"] == "b"
    assert slurm.place() is None and not slurm.on_a_node()
    for number, own in ((0, "x"), (1, "y")):
        for name, value in given.items() | {("SLURM_NODEID", str(number))}:
            monkeypatch.setenv(name, value)
        assert slurm.place() == slurm.Place("x", 16384 + 70000 % 16384, own, number == 0, "70000")


@pytest.mark.parametrize(("gpus", "device", "wanted", "said"), [
    (0, "cuda", 4, "torch finds no GPU; ask for one .*set-resources: gpu.*, or give cpu or auto"),
    (2, "cuda", 4, "ranks: 4, but torch finds 2 GPUs on this node; ask for more"),
    (2, "auto", 4, "ranks: 4, but torch finds 2 GPUs on this node; ask for more"),
    (2, "cuda", 2, None), (0, "auto", 4, None), (2, "cpu", 4, None),
])  # fmt: skip
def test_gpus_that_are_not_there_are_refused_before_anything_starts(
    monkeypatch, small, tmp_path, gpus, device, wanted, said  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    started = []
    monkeypatch.setattr(launch, "_on_this_node", lambda *_: started.append(True))
    words = flags(small, tmp_path, device=device, ranks=wanted)
    if said is None:
        pretrain.main(words)
        assert started
        return
    with pytest.raises(UserError, match=said) as error:
        pretrain.main(words)
    assert "\n" not in str(error.value) and not started


def test_numbers_that_cannot_be_are_refused(tmp_path, monkeypatch):
    for given, said in (({"ranks": 0}, "ranks: 0"), ({"nodes": -1}, "nodes: -1")):
        with pytest.raises(UserError, match=f"{said}; give 1 or more"):
            Team(**given)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun has started 2; leave --ranks and --nodes out"):
        launch.start(lambda: None, "pipeline.pretrain", [], Team(4), tmp_path / ".lock")


def test_what_takes_one_process_is_done_by_the_first_alone(tmp_path, monkeypatch, caplog):
    done = []
    monkeypatch.setattr(train, "_train", lambda args: done.append(args.ranks))
    words = ["--dataset", "d", "--output", str(tmp_path), "--magnitudes", "local_linear",
             "--catalog", "c", "--ranks", "2"]  # fmt: skip
    with caplog.at_level("INFO", "ugriz"):
        train.main(words)
    assert "this takes one process" in caplog.text
    monkeypatch.setenv("RANK", "1")
    train.main(words)
    assert done == [2]


def test_threads_are_shared_by_the_ranks_of_a_node(monkeypatch):
    before, given = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    ranks.use_threads(None)
    ranks.use_threads(6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for threads in (None, 6, 2):
        ranks.use_threads(threads)
    assert given == [6, 2, 1, 1] and torch.get_num_threads() == before


def failure(exitcode, told=None, message=""):
    data = {"told": told} if told else {}
    return SimpleNamespace(exitcode=exitcode, error_file_data=data, message=message)


@pytest.mark.parametrize(("failures", "said"), [
    ({0: failure(-15, "loss", "lost"), 1: failure(1, "reason", "why")}, "why"),
    ({0: failure(1, "reason", "a"), 1: failure(1, "reason", "b")}, "a"),
    ({0: failure(1), 1: failure(-9)}, "rank 1 was ended by SIGKILL, for want of memory"),
    ({0: failure(1, "loss", "lost"), 2: failure(-11)}, "rank 2 was ended by SIGSEGV; start it"),
    ({0: failure(1, "loss", "lost"), 1: failure(3)}, "rank 1 ended with status 3; see above"),
    ({0: failure(-15), 1: failure(1, "loss", "lost")}, "lost"),
    ({0: failure(-15), 1: failure(-15)}, "rank 0 was ended by SIGTERM; start it again"),
])  # fmt: skip
def test_of_many_ends_the_reason_is_told(failures, said):
    assert what_ended(failures).startswith(said)


def test_a_node_that_only_lost_the_others_has_nothing_to_tell():
    lost = {0: failure(1, "loss", "lost"), 1: failure(-15)}
    assert what_ended(lost, whole=False) is None
    assert what_ended({**lost, 2: failure(1, "reason", "why")}, whole=False) == "why"
