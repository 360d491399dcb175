"""Starts a training on many processes, and tells in one line what ended it.

On one node: `ranks` processes through the launcher behind torchrun. On the nodes of a Slurm job:
one such launcher on each, through srun. A rank that was started here tells its error to the
launcher, which alone prints it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline import run
from pipeline.learning import slurm
from pipeline.learning.ranks import check_devices
from pipeline.run import UserError

_LAUNCHED = "UGRIZ_LAUNCHED"
"""Set for ranks that were started here, not by a torchrun of the user's own."""
_REASON, _LOSS = "reason", "loss"
"""What a rank tells: its own error, or that another one has gone."""
_GRACE = 5.0
"""Seconds that a node with nothing to tell leaves to the one that has."""
_AGAIN = "start it again, it goes on from its last state"


@dataclass(frozen=True)
class Team:
    """So many `ranks` on each of so many `nodes`, with a device each."""

    ranks: int = 1
    nodes: int = 1
    device: str = "auto"

    def __post_init__(self):
        for name in ("ranks", "nodes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)}; give 1 or more")

    @property
    def size(self) -> int:
        """Ranks on all nodes."""
        return self.ranks * self.nodes


def start(
    work: Callable[[], None], module: str, argv: Sequence[str] | None, team: Team, lock: Path
) -> None:
    """Do `work` here, if this is a rank or one is enough; else start `module` as often as needed.

    `argv` are the arguments of this process (None: those of the command line), which all get.
    Who does the same, by the file `lock`, is waited for.

    Raises:
        UserError: devices or nodes that are not there, and what ended a rank; what `work` raises.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    joined = int(os.environ.get("WORLD_SIZE", 1))
    if joined > 1:
        if team.size not in (1, joined):
            raise UserError(f"ranks: {team.ranks} on {team.nodes} nodes, but torchrun has started "
                            f"{joined}; leave --ranks and --nodes out")  # fmt: skip
        _as_rank(work)
    elif slurm.on_a_node():
        _start_ranks(module, argv, team)
    else:
        with run.sole(lock):
            if team.size == 1:
                check_devices(team.device)
                work()
            elif team.nodes > 1:
                slurm.over_nodes([sys.executable, "-m", module, *argv], team.nodes, team.ranks)
            else:
                _start_ranks(module, argv, team)


def _start_ranks(module: str, argv: Sequence[str], team: Team) -> None:
    check_devices(team.device, team.ranks)
    _on_this_node([sys.executable, "-m", module, *argv], team)


def alone(work: Callable[[], None], team: Team) -> None:
    """Do `work`, which takes one process: where there are many, the first does it."""
    if int(os.environ.get("RANK", 0)):
        return
    if team.size > 1:
        run.log.info("ranks: %d on %d nodes; this takes one process", team.ranks, team.nodes)
    work()


def _as_rank(work: Callable[[], None]) -> None:
    """Do `work` as one of many; the first alone says how it goes."""
    if int(os.environ.get("RANK", 0)):
        run.log.setLevel(logging.ERROR)
    if _LAUNCHED not in os.environ:
        work()
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the launcher has the word for it
    _end_with(os.getppid())
    try:
        run.start(lambda _: work())
    except SystemExit as ended:
        if isinstance(ended.code, str):
            _tell(_REASON, ended.code.removeprefix("error: "))
            sys.exit(1)
        raise
    except Exception as error:
        if not _is_loss(error):
            raise
        said = re.sub(r"^\[\S+:\d+\] ", "", " ".join(str(error).split()))  # where in gloo's source
        _tell(_LOSS, f"the ranks lost one another ({said[:80]}); {_AGAIN}")
        sys.exit(1)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even if that was killed: two would write else."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_loss(error: Exception) -> bool:
    """Is it what gloo or NCCL say where another rank has gone?"""
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo/" in str(error)
    )


def _tell(kind: str, line: str) -> None:
    """Leave `line` where the launcher looks for it."""
    with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
        json.dump({"message": line, "timestamp": int(time.time()), "told": kind}, file)


def _on_this_node(command: Sequence[str], team: Team) -> None:
    """Start `command` as the ranks of this node and wait for them."""
    place = slurm.place() or slurm.Place("127.0.0.1", 0, "127.0.0.1", True, str(os.getpid()))
    with tempfile.TemporaryDirectory(prefix="ugriz-ranks-") as folder, _quiet():
        config = LaunchConfig(
            min_nodes=team.nodes, max_nodes=team.nodes, nproc_per_node=team.ranks,
            run_id=place.name, rdzv_backend="c10d", rdzv_endpoint=f"{place.host}:{place.port}",
            rdzv_configs={"is_host": place.is_host, "read_timeout": 120}, local_addr=place.own,
            max_restarts=0, logs_specs=DefaultLogsSpecs(log_dir=folder),
        )  # fmt: skip
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            line = what_ended(error.failures, whole=team.nodes == 1)
        except SignalException as error:
            line = f"ended by {signal.Signals(error.sigval).name}; {_AGAIN}"
        except (RendezvousError, distributed.DistError) as error:
            reason = error.__cause__ or error
            line = (f"{place.host}:{place.port}: the nodes do not find one another there "
                    f"({' '.join(str(reason).split())[:160]}); look at the nodes, or start it "
                    "again")  # fmt: skip
        else:
            return
    if line is None:
        time.sleep(_GRACE)  # srun ends all nodes with the first
        sys.exit(1)
    raise UserError(line)


def what_ended(failures: Mapping[int, ProcessFailure], whole: bool = True) -> str | None:
    """One line for why a group of ranks ended, from all that did not end well.

    What a rank told comes first, then one that was killed (not by the launcher, which ends all
    others when one has failed), then a traceback. A lost connection is no reason but where there
    is no other: None, if the ranks are not the `whole` group.
    """
    told = {rank: failures[rank].error_file_data.get("told") for rank in sorted(failures)}
    status = {rank: failures[rank].exitcode for rank in told}
    for rank, kind in told.items():
        if kind == _REASON:
            return failures[rank].message
    for rank, number in status.items():
        if number < 0 and number != -signal.SIGTERM:
            return _killed(rank, -number)
    for rank, number in status.items():
        if number > 0 and told[rank] != _LOSS:
            return f"rank {rank} ended with status {number}; see above"
    if not whole:
        return None
    lost = [rank for rank, kind in told.items() if kind == _LOSS]
    return failures[lost[0]].message if lost else _killed(min(told), signal.SIGTERM)


def _killed(rank: int, number: int) -> str:
    why = ""
    if number == signal.SIGKILL:
        why = ", for want of memory perhaps: ask for more, or give a smaller memory-gb or workers"
    return f"rank {rank} was ended by {signal.Signals(number).name}{why}; {_AGAIN}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within this, ranks are told who started them, and torch's launcher says nothing itself."""
    os.environ[_LAUNCHED] = "1"
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        del os.environ[_LAUNCHED]
