"""The nodes of a Slurm job: a launcher of ranks on each, and where they find one another."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.run import UserError

_MEETING = "UGRIZ_MEETING"
"""Set for what srun has started: a port, and the addresses of all nodes in their order."""
_KEPT = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME")
"""What srun may read of its surroundings. The rest are habits of the job's or of another step's
(nodes, tasks, cores, memory), which would change what is asked for here."""


@dataclass(frozen=True)
class Place:
    """Where ranks meet (`host`, `port`), the address of this node, and is it that host?"""

    host: str
    port: int
    own: str
    is_host: bool
    name: str


def on_a_node() -> bool:
    """Was this process started by `over_nodes`?"""
    return _MEETING in os.environ


def place() -> Place | None:
    """Of a process that `over_nodes` has started; None elsewhere."""
    if not on_a_node():
        return None
    port, *addresses = os.environ[_MEETING].split()
    number = int(os.environ["SLURM_NODEID"])
    job = os.environ["SLURM_JOB_ID"]
    return Place(addresses[0], int(port), addresses[number], number == 0, job)


def over_nodes(command: Sequence[str], nodes: int, ranks: int) -> None:
    """Run `command` once on each of the `nodes` of this Slurm job, and wait.

    What it says goes through; of its lines that begin with "error: " the first is raised.

    Raises:
        UserError: no job, or one of fewer nodes; what ended it.
    """
    if "SLURM_JOB_ID" not in os.environ:
        stage = " ".join(command[1:3])
        raise UserError(
            f"nodes: {nodes}, but this is no Slurm job; submit it as one, or start on each node, "
            f"without --nodes and --ranks: torchrun --nnodes {nodes} --nproc-per-node {ranks} "
            f"--rdzv-backend c10d --rdzv-endpoint HOST:29400 {stage} ..."
        )
    hosts = _hosts(os.environ["SLURM_JOB_ID"])
    if len(hosts) < nodes:
        raise UserError(f"nodes: {nodes}, but the job has {len(hosts)}; ask for as many (in a "
                        "profile: set-resources: nodes, and as many tasks where there are no "
                        "GPUs), or give fewer")  # fmt: skip
    hosts = hosts[:nodes]
    addresses = [_address(host) for host in hosts]
    surroundings = environment(os.environ, addresses)
    _wait([*srun(hosts), *command], surroundings)


def srun(hosts: Sequence[str]) -> list[str]:
    """What runs a command once on each of `hosts`, with all that the job has there.

    It is a step within the step that a workflow's job is itself: --overlap lets both have the
    same cores, memory and GPUs.
    """
    return [
        "srun", "--overlap", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}",
        "--ntasks-per-node=1", f"--nodelist={','.join(hosts)}", "--mem=0", "--cpu-bind=none",
        "--mpi=none", "--kill-on-bad-exit=1", "--export=ALL",
    ]  # fmt: skip


def environment(given: Mapping[str, str], addresses: Sequence[str]) -> dict[str, str]:
    """`given` without what would change a step, and where its tasks meet."""
    kept = {
        name: value
        for name, value in given.items()
        if not name.startswith(("SLURM_", "SRUN_")) or name in _KEPT
    }
    port = 16384 + int(given["SLURM_JOB_ID"]) % 16384  # below those that systems hand out
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # of a launcher that ends a moment after the first
    return {**quiet, **kept, _MEETING: " ".join([str(port), *addresses])}


def _hosts(job: str) -> list[str]:
    """The nodes of a job. SLURM_JOB_NODELIST, within a step, may be those of the step alone."""
    found = re.search(r" NodeList=(\S+)", _scontrol("--oneliner", "show", "job", job))
    return _scontrol("show", "hostnames", found[1]).split() if found else []


def _address(host: str) -> str:
    """How Slurm itself reaches a node: names of nodes need not be those of hosts."""
    found = re.search(r"\bNodeAddr=(\S+)", _scontrol("--oneliner", "show", "node", host))
    return found[1] if found else host


def _scontrol(*words: str) -> str:
    try:
        made = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"scontrol: {error.strerror}; is Slurm installed on this node?") from None
    if made.returncode:
        said = " ".join((made.stderr or made.stdout).split())[:160]
        raise UserError(f"scontrol {' '.join(words)}: {said}; look at the cluster's Slurm")
    return made.stdout


def _wait(command: Sequence[str], surroundings: Mapping[str, str]) -> None:
    def ended(number: int, _) -> None:
        raise UserError(f"ended by {signal.Signals(number).name}; start it again, it goes on from "
                        "its last state")  # fmt: skip

    before = signal.signal(signal.SIGTERM, ended)
    process = subprocess.Popen(
        command, env=surroundings, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    own, others = [], []
    try:
        for line in process.stderr:
            if line.startswith(b"error: "):
                own.append(line.decode(errors="replace").removeprefix("error: ").strip())
            elif line.startswith((b"srun: ", b"slurmstepd")):
                others.append(line)
            else:
                _pass_on(line)
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        signal.signal(signal.SIGTERM, before)
    if status == 0:
        return
    if own:
        raise UserError(own[0])
    _pass_on(b"".join(others))
    raise UserError(f"srun ended with status {status}; see above, and start it again: it goes on "
                    "from its last state")  # fmt: skip


def _pass_on(said: bytes) -> None:
    sys.stderr.write(said.decode(errors="replace"))
    sys.stderr.flush()
