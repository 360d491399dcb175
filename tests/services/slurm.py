"""A whole Slurm on this machine: munged, slurmctld and a slurmd for each of its nodes.

All of it lives in one folder (keys, sockets, state, logs) and on ports of its own, beside whatever
other Slurm there is. It is stopped by the ids of the processes that were started. It has to run as
root, as munged and slurmd want; Debian has the programs in slurm-wlm and munge.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
SBIN = os.pathsep.join(("/usr/sbin", "/sbin"))
START_SECONDS = 30
PLACE = Path("/etc/slurm/slurm.conf")
"""Where Slurm's commands look; a link stands there meanwhile. SLURM_CONF alone will not do, since
Snakemake's jobs do without the variables of Slurm."""
NODES = ("127.0.0.1", "127.0.0.2")
"""Names that are addresses as well: what runs on many nodes meets there."""

CONF = """\
ClusterName=ugriz
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobSubmitPlugins={submit}
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
SlurmdTimeout=10
MinJobAge=3600
KillWait=2
MessageTimeout=20
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=1 State=UP
"""

NODE = """\
NodeName={name} NodeHostname={name} NodeAddr={name} Port={port} CPUs={cpus} RealMemory={memory} \
Gres={gres}"""

REFUSE_ACCOUNTS = """\
function slurm_job_submit(job, partitions, uid)
    if job.account == "closed" then return slurm.ESLURM_INVALID_ACCOUNT end
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid) return slurm.SUCCESS end
return slurm.SUCCESS
"""
"""Accounts are refused by slurmdbd, which wants an SQL server; so says the same without one."""


def missing() -> str | None:
    """What keeps a Slurm from being started here, in words; None if nothing does."""
    if os.geteuid() != 0:
        return "Slurm's daemons want root"
    if PLACE.exists() and not _is_left():
        return f"{PLACE} is there: this machine has a Slurm, which is left alone"
    lacking = [name for name in PROGRAMS if not _program(name)]
    return f"no {', '.join(lacking)}; on Debian: apt install slurm-wlm munge" if lacking else None


class Slurm:
    """A Slurm in `folder`, of `cpus` cores and `memory` MB on each of `NODES`."""

    def __init__(self, folder: Path, cpus: int = 2, memory: int = 8000, gpus: int = 0):
        self.folder, self.running = folder, {}
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(exist_ok=True)
        ports = _free_ports(1 + len(NODES))
        lua = Path("/usr/lib/x86_64-linux-gnu/slurm-wlm/job_submit_lua.so").exists()
        self.conf = folder / "slurm.conf"
        gres = f"gpu:{gpus}" if gpus else "(null)"
        nodes = [
            NODE.format(name=name, port=port, cpus=cpus, memory=memory, gres=gres)
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        self.conf.write_text(
            CONF.format(
                folder=folder, controller=ports[0], nodes="\n".join(nodes),
                submit="lua" if lua else "",
            )
        )  # fmt: skip
        (folder / "job_submit.lua").write_text(REFUSE_ACCOUNTS)
        devices = ("/dev/null", "/dev/zero", "/dev/full")[:gpus]  # files of some kind are asked for
        (folder / "gres.conf").write_text("".join(f"Name=gpu File={file}\n" for file in devices))
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o600)
        folder.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which Slurm's commands find this one."""
        found = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return found | {"SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Start everything and wait until all nodes are idle.

        Raises RuntimeError for what `missing` says, and if they do not become so.
        """
        if why := missing():
            raise RuntimeError(why)
        PLACE.parent.mkdir(exist_ok=True)
        PLACE.unlink(missing_ok=True)  # a link to nowhere, of one that was killed
        PLACE.symlink_to(self.conf)
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid",
                 "log-file": "munged.log", "seed-file": "munged.seed"}  # fmt: skip
        flags = [f"--{flag}={self.folder / file}" for flag, file in files.items()]
        self._run("munged", "--foreground", "--force", *flags)
        _wait(lambda: (self.folder / "munge.socket").exists(), "munged made no socket")
        self._run("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        _wait(lambda: self.states() == dict.fromkeys(NODES, "idle"), f"see {self.folder}/*.log")

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._run("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """Kill a node: its slurmd, and all that runs on it, at once."""
        self.running.pop(node).kill()
        for job in self.jobs():
            if job["node"] == node:
                for child in _children_of_job(job["id"]):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)

    def stop(self) -> None:
        """Stop everything, last started first."""
        if PLACE.is_symlink() and PLACE.readlink() == self.conf:
            PLACE.unlink()
        for name in [*NODES, "slurmctld", "munged"]:
            if process := self.running.pop(name, None):
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()

    def command(self, *words: str) -> str:
        """What one of Slurm's commands says."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        return done.stdout

    def states(self) -> dict[str, str]:
        """Node -> idle, mixed, allocated, down ..."""
        lines = self.command("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T")
        return dict(line.split() for line in lines.splitlines())

    def jobs(self, states: str = "running") -> list[dict[str, str]]:
        """Jobs: id, rule (Snakemake's comment), node, state."""
        keys = ("id", "rule", "node", "state")
        lines = self.command("squeue", "--noheader", f"--states={states}", "--format=%A|%k|%N|%T")
        return [dict(zip(keys, line.split("|"), strict=True)) for line in lines.splitlines()]

    def _run(self, program: str, *flags: str, name: str = "") -> None:
        log = open(self.folder / f"{name or program}.out", "ab")  # noqa: SIM115
        self.running[name or program] = subprocess.Popen(
            [_program(program), *flags], env=self.environment, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        log.close()


@contextlib.contextmanager
def slurm(folder: Path, **options: int) -> Iterator[Slurm]:
    """A Slurm that runs for a while, see `Slurm`."""
    cluster = Slurm(folder, **options)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.command("scancel", "--user=root", "--full")
        cluster.stop()


def _is_left() -> bool:
    """Whether the link in Slurm's place is of a Slurm from here whose controller has gone."""
    if not PLACE.is_symlink():
        return False
    try:
        os.kill(int((PLACE.readlink().parent / "slurmctld.pid").read_text()), 0)
    except (OSError, ValueError):
        return True
    return False


def _end_with_parent() -> None:
    """Let the process that is about to start end when this one does, even if that is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), SBIN)))


def _free_ports(count: int) -> range:
    """Ports one after the other that nobody listens on."""
    for first in range(26_000 + os.getpid() % 1000, 32_000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return range(first, first + count)
    raise RuntimeError("no free ports")


def _wait(ready, why: str) -> None:
    ends = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > ends:
            raise RuntimeError(f"Slurm did not come up: {why}")
        time.sleep(0.1)


def _children_of_job(job: str) -> list[int]:
    """Processes that have a job's id in their environment, as all of its own have."""
    mark, found = f"SLURM_JOB_ID={job}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if mark in (process / "environ").read_bytes().split(b"\0") or (
                words.startswith(b"slurmstepd: [") and f"[{job}.".encode() in words
            ):
                found.append(int(process.name))
    return found
