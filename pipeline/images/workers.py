"""Who cuts: threads of this process, or the workers of a Dask scheduler at an address.

Outside workers must run the same code in the same environment and see the same folders, or what
comes out might be other bytes, or nothing. Each task makes sure of that where it runs, and whatever
goes wrong between here and there ends in one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import pickle
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from importlib import metadata
from pathlib import Path
from uuid import uuid4

from dask.distributed import Client, Future, LocalCluster, get_worker
from distributed.comm import CommClosedError, connect
from distributed.scheduler import KilledWorker
from distributed.security import Security
from distributed.versions import VersionMismatchWarning

import pipeline
from pipeline.images.cutting import Recipe, Report, Work
from pipeline.run import UserError, duration, log
from pipeline.survey.excerpt import SUFFIX

ANSWER = 20.0
"""Seconds in which a scheduler must answer."""
PATIENCE = 300.0
"""Seconds for which a scheduler may be without any worker."""
LOOK = 2.0
"""Seconds between looks at how many workers there are."""
_DECIDE = ("numpy", "astropy", "numba", "reproject", "distributed")
"""Packages of which another version might give other bytes, or not understand ours."""
_TOLD = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a disk that end in a line of their own."""
_LOGGERS = ("distributed", "tornado", "asyncio")
MEND = "start workers in the environment of this run, with PYTHONPATH={}"


@contextlib.contextmanager
def threads(count: int) -> Iterator[Client]:
    """A Dask client of `count` threads in this process."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=count, processes=False, memory_limit=0,
        dashboard_address="127.0.0.1:0",  # Dask starts one even for None: on a port that is free
    )  # fmt: skip
    with cluster, Client(cluster) as client:
        yield client


@contextlib.contextmanager
def outside(address: str) -> Iterator[Outside]:
    """The workers of the scheduler at `address`.

    Raises:
        UserError: it does not answer.
    """
    for name in logging.root.manager.loggerDict:  # what goes wrong is told once, in one line
        if name.partition(".")[0] in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore", VersionMismatchWarning)
    try:
        asyncio.run(_knock(address))
        client = Client(address, timeout=ANSWER)
    except Exception as error:  # of many kinds: an unknown scheme, no TLS, nobody there
        raise UserError(
            f"--scheduler {address}: no Dask scheduler answers ({_first_line(error)}); start one "
            "(dask scheduler) or mend the address"
        ) from None
    try:
        yield Outside(client, address)
    finally:
        with contextlib.suppress(Exception):  # a scheduler that is gone cannot be told
            client.close(timeout=ANSWER)


async def _knock(address: str) -> None:
    """See whether a scheduler answers: Dask's client waits for ever for one that says nothing."""
    words = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=ANSWER, **words), ANSWER + 1)
    await comm.close()


class Outside:
    """A client of an outside scheduler whose troubles are `UserError`s."""

    def __init__(self, client: Client, address: str):
        self.client, self.address = client, address
        self.counted, self.looked = {}, float("-inf")
        self.alone_since: float | None = None

    def nthreads(self) -> dict[str, int]:
        """Worker -> threads, as they were not long ago.

        Raises:
            UserError: the scheduler is gone.
        """
        if time.monotonic() - self.looked >= LOOK:
            try:
                ask = self.client.scheduler.ncores
                self.counted = self.client.sync(ask, workers=None, callback_timeout=ANSWER)
            except (OSError, CancelledError, RuntimeError, AttributeError):
                raise self.gone() from None
            self.looked = time.monotonic()
        return self.counted

    def submit(
        self,
        function: Callable[..., Report],
        work: Work,
        root: Path,
        recipe: Recipe,
        losses: dict,
        scratch: Path,
        threads: int = 1,
        pure: bool = False,
    ) -> Task:
        """Let a worker call `function`, once it is sure to see what is seen here."""
        paths = work.paths(recipe.mask)
        named = [root / name for path in paths for name in (path, f"{path}{SUFFIX}")]
        seen = [path for path in named if path.exists()]
        call = _packed(function, work, root, recipe, losses, scratch, threads)
        call = _packed(_alike, identity(), [str(path) for path in (scratch.parent, *seen)], call)
        key = f"{function.__name__}-{uuid4().hex}"
        try:
            return Task(self, self.client.submit(pickle.loads, call, key=key, pure=pure))
        except (OSError, CancelledError, RuntimeError):
            raise self.gone() from None

    def look(self) -> None:
        """See whether there are workers.

        Raises:
            UserError: there has been none for too long, or the scheduler is gone.
        """
        now = time.monotonic()
        if self.nthreads():
            self.alone_since = None
        elif self.alone_since is None:
            self.alone_since = now
            log.info("--scheduler %s: has no worker; waiting up to %s for one", self.address,
                     duration(PATIENCE))  # fmt: skip
        elif now - self.alone_since > PATIENCE:
            raise UserError(
                f"--scheduler {self.address}: has had no worker for {duration(PATIENCE)}; start "
                "some (dask worker), see why the former ones ended, and run again"
            )

    def unlike(self) -> list[str]:
        """Workers that cannot load the pipeline, or have another; as far as they answer."""
        with contextlib.suppress(Exception):
            answers = self.client.sync(
                self.client._run, pickle.loads, _packed(identity), on_error="return",
                callback_timeout=ANSWER,
            )  # fmt: skip
            return [who for who, said in answers.items() if said != identity()]
        return []

    def gone(self) -> UserError:
        """What to raise when the scheduler has gone away."""
        return UserError(
            f"--scheduler {self.address}: went away, or lost its tasks; start it anew (dask "
            "scheduler) and run again; nothing half-written is kept"
        )


class Task:
    """A frame that is being cut elsewhere."""

    def __init__(self, crew: Outside, future: Future):
        self.crew, self.future = crew, future

    def result(self) -> Report:
        """Wait for the report.

        Raises:
            UserError: it will not come; why, and what to do.
            OSError: the worker could not write its scratch file.
        """
        where = f"--scheduler {self.crew.address}:"
        try:
            return self._wait()
        except (CancelledError, CommClosedError):
            raise self.crew.gone() from None
        except KilledWorker as killed:
            raise UserError(
                f"{where} {killed.allowed_failures + 1} workers ended while they cut the same "
                "frame; give them more memory (some 250 MB a thread; --memory-limit, --nthreads), "
                "see their logs, and run again"
            ) from None
        except UserError:
            raise
        except OSError as error:
            if error.errno in _TOLD:
                raise
            raise UserError(f"{where} a worker: {error}; see to it and run again") from None
        except Exception as error:
            unlike = ", ".join(self.crew.unlike())
            if not unlike and not isinstance(error, ImportError):
                raise
            raise UserError(
                f"{where} {unlike or 'a worker'} cannot run this pipeline ({_first_line(error)}); "
                f"{mend()}"
            ) from None

    def _wait(self) -> Report:
        while True:
            try:
                return self.future.result(timeout=LOOK)
            except TimeoutError as error:
                if error.errno:  # a worker's
                    raise
            self.crew.look()


class _Call:
    """Unpickling it calls a function: where that cannot be loaded, the task fails, and not the
    worker or the scheduler that the task goes through.
    """

    def __init__(self, function: Callable, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def _packed(function: Callable, *args) -> bytes:
    return pickle.dumps(_Call(function, *args))


def _alike(expected: dict[str, str], seen: list[str], call: bytes) -> Report:
    """Make a packed call on a worker, or say why this worker should not (UserError)."""
    who = f"worker {get_worker().address}"
    for name, value in identity().items():
        if value != expected.get(name):
            raise UserError(f"{who}: has {name} {value}, this run {expected.get(name)}; {mend()}")
    unseen = next((path for path in seen if not Path(path).exists()), None)
    if unseen:
        raise UserError(
            f"{who}: does not see {unseen}; run where workers and this run share one file system "
            "under the same names, frames: root and cache included"
        )
    return pickle.loads(call)


def _identify() -> dict[str, str]:
    here = Path(pipeline.__file__).parent
    digest = hashlib.sha256()
    for file in sorted([here / "run.py", *here.glob("survey/*.py"), *here.glob("images/*.py")]):
        digest.update(file.read_bytes())
    found = {"pipeline": digest.hexdigest()[:12], "machine": platform.machine()}
    found["Python"] = ".".join(platform.python_version_tuple()[:2])
    return found | {name: metadata.version(name) for name in _DECIDE}


_IDENTITY = _identify()  # when the code is loaded: a worker may live longer than the files


def identity() -> dict[str, str]:
    """What decides the bytes that a process makes: its code, its packages, its machine."""
    return _IDENTITY


def mend() -> str:
    """What to do about workers that are not alike."""
    return MEND.format(Path(pipeline.__file__).parent.parent)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
