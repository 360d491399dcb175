"""What every stage needs: errors in one line, progress, whole-file writes, provenance."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TextIO

log = logging.getLogger("ugriz")


_FULL = (errno.ENOSPC, errno.EDQUOT)
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO)
"""What a shared disk says that is not well itself: no fault of the file."""
_SILENT_FOR = 2 * 86400
"""Seconds without a write after which a temporary file is nobody's, though its host is another."""
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class UserError(Exception):
    """What a user can cause and mend: one line that says what, where and what to do."""


def start(main: Callable[[list[str] | None], None]) -> None:
    """Run a stage's `main` as a program: log to stderr, exit 1 with one line on a UserError."""
    # what a file has wrong is told once, as a reason, not by a library in its own words
    warnings.filterwarnings("ignore", module=r"astropy\.")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every file otherwise
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    try:
        main(None)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; nothing half-written is left, start it again to go on")
    except OSError as error:
        if error.errno not in (*_FULL, *_NO_PLACE, *PASSING):
            raise
        sys.exit(f"error: {describe_os_error(error)}")


def describe_os_error(error: OSError) -> str:
    """One line for a disk that is full, or fails, and for a place that cannot be written."""
    where = error.filename or "the disk"
    if error.errno in _FULL:
        return f"{where}: no space left; free some and start again, nothing half-written is kept"
    if error.errno in PASSING:
        return f"{where}: {os.strerror(error.errno)}; the disk is not well, run again to go on"
    return f"{where}: {os.strerror(error.errno)}; choose a place that can be written"


class Progress:
    """Counts towards a total and logs a line, now and then, with rate and time left."""

    def __init__(self, label: str, total: int, unit: str, every: float = 5.0):
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.done, self.began = 0, time.monotonic()
        self.next_line = self.began + every

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def add(self, count: int = 1, note: str = "") -> None:
        """Count `count` more as done; `note` goes into the line, if one is due."""
        self.done += count
        now = time.monotonic()
        if now >= self.next_line:
            self.next_line = now + self.every
            rate = self.done / self.elapsed
            left = (self.total - self.done) / rate if rate else float("inf")
            log.info(
                "%s: %d of %d %s, %.1f/s, %s%s left",
                self.label, self.done, self.total, self.unit, rate, note and f"{note}, ",
                duration(left),
            )  # fmt: skip

    def close(self, note: str = "") -> None:
        """Log the closing line."""
        took, note = duration(self.elapsed), note and f" ({note})"
        log.info("%s: %d %s in %s%s", self.label, self.done, self.unit, took, note)


def duration(seconds: float) -> str:
    """`75.0` -> `1m15s`: short enough for a progress line."""
    if seconds == float("inf"):
        return "an unknown time"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s"


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name to write to; on a clean exit it is fsynced and renamed to `path`.

    On an exception the temporary file is removed and `path` is as it was. The name is this
    process's own: on a cluster a job may still be running when its successor starts, and then
    each writes a file of its own, and whichever is done last gives it the name, whole.
    """
    part = own_name(Path(path))
    try:
        yield part
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """As `whole_file`, for a folder: it has its name only when everything is in it.

    A folder that another process has made meanwhile stays, since that may be in use already.
    """
    path = Path(path)
    part, before = own_name(path), _inode(path)
    part.mkdir()
    try:
        yield part
        if before and _inode(path) == before:
            shutil.rmtree(path, ignore_errors=True)
        try:
            os.replace(part, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if before and _inode(path) == before:  # the former one, which could not be removed
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None
            shutil.rmtree(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def own_name(path: Path) -> Path:
    """A temporary name beside `path` that no other process has; what dead ones left is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part{path.suffix}"):
        if _is_left(left, path):
            shutil.rmtree(left, ignore_errors=True)  # a folder, or
            left.unlink(missing_ok=True)
    owner = f"{platform.node()}-{os.getpid()}-{time.monotonic_ns()}"
    return path.with_name(f".{path.name}.{owner}.part{path.suffix}")


def _is_left(part: Path, path: Path) -> bool:
    """Whether a temporary file is of a process that is dead, here, or silent for long, anywhere."""
    ending = re.escape(f".part{path.suffix}")
    owner = re.fullmatch(rf"\.{re.escape(path.name)}\.(.+)-(\d+)-\d+{ending}", part.name)
    if not owner:
        return False
    with contextlib.suppress(OSError):
        if time.time() - part.stat().st_mtime > _SILENT_FOR:
            return True
    if owner[1] != platform.node():
        return False
    try:
        os.kill(int(owner[2]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


@contextlib.contextmanager
def sole(lock: str | os.PathLike) -> Iterator[None]:
    """Within this, no other process is within this for the same `lock` file; it is waited for.

    For work that goes on from states in a folder, which two would take from one another: a job
    may still be running on its node when its successor starts. The file is there meanwhile. On a
    disk without locks nobody waits.
    """
    lock = Path(lock)
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(lock, "a") as file:
            _lock(file, lock)
            if _inode(lock) != os.fstat(file.fileno()).st_ino:  # its former holder removed it
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _lock(file: TextIO, lock: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("%s: another process is at this; waiting for it", lock.parent)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def write_json(content: object, path: str | os.PathLike) -> None:
    """Write `content` as readable JSON, whole; keys keep their order."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_provenance(product: str | os.PathLike, **facts: object) -> None:
    """Write `<product>.provenance.json`: what a rerun may change without changing the product.

    Holds the command, versions, host, date and duration, and whatever else a stage passes in.
    """
    packages = ("numpy", "astropy", "h5py", "pandas", "dask", "reproject", "numba", "snakemake",
                "torch", "faiss-cpu")  # fmt: skip
    versions = {"ugriz": _version("ugriz"), "python": platform.python_version()}
    versions |= {name: _version(name) for name in packages}
    record = {
        "product": Path(product).name,
        "command": sys.argv,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "machine": platform.machine(),
        "versions": versions,
        **facts,
    }
    write_json(record, f"{product}.provenance.json")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
