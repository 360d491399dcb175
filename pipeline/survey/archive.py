"""The archive: a root that is a folder, file:// or http(s)://, with SAS's own layout beneath.

`deliver` brings files from a root into a folder. From a folder they are linked; over HTTP they
are fetched with bounded concurrency, checked, given their name in a cache only when they are
whole, and linked from there. What does not come is told with its reason, never raised.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

import httpx

from pipeline.run import Progress, UserError, write_json

ABSENT = "not in the archive"
RECORD = "frames.json"
"""In a folder of frames: the root they are from, and why files are not there."""
CHUNK = 1 << 20
_UNREACHABLE = (
    httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL, httpx.UnsupportedProtocol,
)  # fmt: skip
TIMEOUT = httpx.Timeout(30.0, connect=15.0)


class Loss(NamedTuple):
    """Why a file did not come. `absent`: the archive does not have it (as beyond a run's end)."""

    absent: bool
    reason: str


def write_record(folder: Path, root: str, losses: dict[str, Loss]) -> None:
    """Leave in a folder of frames where they are from, and which did not come and why."""
    content = {path: loss._asdict() for path, loss in sorted(losses.items())}
    write_json({"root": root, "losses": content}, folder / RECORD)


def read_record(folder: Path) -> tuple[str, dict[str, Loss]]:
    """(root, losses) as `write_record` left them; of any other folder itself and no losses."""
    try:
        content = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return str(folder), {}
    return content["root"], {path: Loss(**loss) for path, loss in content["losses"].items()}


class Damaged(Exception):
    """A file that came but must not be used; the text is the reason."""


class Absent(Exception):
    """The archive does not have the file; the text says so."""


Check = Callable[[str, bytes], None]
"""Called with a file's path below the root and its bytes; raises `Damaged`."""


def local_root(root: str) -> Path | None:
    """The folder that a root is, or None if it is http(s).

    Raises:
        UserError: the folder is not there, or the root is of no known kind.
    """
    try:
        kind = urlparse(root)
    except ValueError as error:
        raise UserError(f"frames: root: {root}: {error}; give a folder or a URL") from None
    if kind.scheme in ("http", "https"):
        return None
    if kind.scheme not in ("", "file"):
        raise UserError(f"frames: root: {root}: give a folder, file:// or http(s)://")
    folder = Path(unquote(kind.path)) if kind.scheme else Path(root)
    if not folder.is_dir():
        raise UserError(f"frames: root: {root}: no such folder; it holds SAS's boss/photoObj/...")
    return folder


def deliver(
    paths: Iterable[str],
    root: str,
    folder: Path,
    check: Check,
    cache: Path | None = None,
    cache_gb: float = 50.0,
    streams: int = 5,
) -> dict[str, Loss]:
    """Put the files `paths` of the archive at `root` into `folder`; return those that failed.

    Files of a local root are symbolic links and are checked when they are read; others come
    through `cache` (default: `folder`/.cache), where at most `cache_gb` GB stay.
    """
    paths = list(paths)
    if not paths:
        return {}
    here = local_root(root)
    if here is not None:
        return _link_local(paths, here, folder)
    store = Store(cache or folder / ".cache", cache_gb)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(
            httpx.Client(
                timeout=TIMEOUT, follow_redirects=True, headers={"Accept-Encoding": "identity"}
            )
        )
        fetch = Fetch(client, root.rstrip("/"), store, folder, check)
        pool = stack.enter_context(ThreadPoolExecutor(streams))
        progress = Progress("frames", len(paths), "files")
        losses = {}
        for path, loss in zip(paths, pool.map(fetch, paths), strict=True):
            progress.add()
            if loss:
                losses[path] = loss
        progress.close()
    store.trim()
    return losses


def _link_local(paths: list[str], root: Path, folder: Path) -> dict[str, Loss]:
    losses = {}
    for path in paths:
        source = (root / path).resolve()
        if not source.is_file():
            losses[path] = Loss(True, ABSENT)
            continue
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            target.symlink_to(source)
    return losses


class Store:
    """A folder of verified files that several processes share, kept under a size.

    A file in use is a hard link elsewhere, so that trimming the store never takes it away.
    """

    def __init__(self, folder: Path, cap_gb: float):
        self.folder, self.cap = Path(folder), cap_gb * 1e9
        self.folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def claim(self, path: str) -> Iterator[Path]:
        """Hold the right to make `path`; yields the name to write to until it is whole."""
        part = self.folder / f"{path}.part"
        while True:
            part.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "ab") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if not _same_file(handle, part):  # the former holder has renamed it meanwhile
                    continue
                yield part
                return

    def link(self, path: str, target: Path) -> bool:
        """Hard-link a stored file to `target`; False if it is not in the store."""
        source = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.utime(source)  # the age by which the store is trimmed
            os.link(source, target)
        except FileExistsError:
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copyfile(source, target)  # the store is on another disk
        return True

    def trim(self) -> None:
        """Remove the files longest unused until the store is under its cap."""
        with open(self.folder / ".lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            files = []
            for file in self.folder.rglob("*.*z*"):
                if file.suffix != ".part":
                    with contextlib.suppress(FileNotFoundError):
                        facts = file.stat()
                        files.append((facts.st_mtime, facts.st_size, file))
            excess = sum(size for _, size, _ in files) - self.cap
            for _, size, file in sorted(files):
                if excess <= 0:
                    break
                file.unlink(missing_ok=True)
                excess -= size


def _same_file(handle, path: Path) -> bool:
    try:
        return os.fstat(handle.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


class Fetch(NamedTuple):
    """Fetches one file after another from an HTTP archive; callable from many threads."""

    client: httpx.Client
    root: str
    store: Store
    folder: Path
    check: Check

    def __call__(self, path: str) -> Loss | None:
        """Bring `path` into the folder, from the store or from the archive."""
        target = self.folder / path
        if self.store.link(path, target):
            return None
        try:
            with self.store.claim(path) as part:
                if not self.store.link(path, target):
                    self._download(path, part)
                    os.replace(part, self.store.folder / path)
                    self.store.link(path, target)
                else:
                    part.unlink(missing_ok=True)
        except Absent as absent:
            return Loss(True, str(absent))
        except Damaged as damaged:
            return Loss(False, str(damaged))
        return None

    def _download(self, path: str, part: Path) -> None:
        url = f"{self.root}/{path}"
        try:
            with self.client.stream("GET", url) as answer, open(part, "wb") as file:
                _check_status(answer)
                for chunk in answer.iter_raw(CHUNK):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            _check_length(answer, part)
            self.check(path, part.read_bytes())
        except _UNREACHABLE as error:
            part.unlink(missing_ok=True)
            raise UserError(f"{self.root}: cannot be reached ({error})") from None
        except httpx.HTTPError as error:
            part.unlink(missing_ok=True)
            raise Damaged(f"the download broke off ({type(error).__name__}: {error})") from None
        except BaseException:  # a full disk as well
            part.unlink(missing_ok=True)
            raise


def _check_status(answer: httpx.Response) -> None:
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise Absent(ABSENT)
    if answer.status_code != httpx.codes.OK:
        raise Damaged(f"the archive answered {answer.status_code} {answer.reason_phrase}")


def _check_length(answer: httpx.Response, part: Path) -> None:
    expected, came = answer.headers.get("Content-Length"), part.stat().st_size
    if expected is not None and int(expected) != came:
        raise Damaged(f"{came} bytes came where {expected} were announced")
