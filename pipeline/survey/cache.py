"""A folder of verified files of the archive that several processes share, kept under a size.

Beside a file's place there may be `NAME.part` (what has come of it so far), `NAME.part.json` (what
the server said of it, so that the rest can be asked for) and `NAME.absent` (the archive does not
have it, and when it said so). Of a file that is needed only in parts there is `NAME.excerpt`, and
`NAME.excerpt.part` until all that is needed has come.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.run import whole_file
from pipeline.survey.excerpt import SUFFIX

REFUSED_FOR = 600.0
"""Seconds for which all jobs leave an archive alone that has refused one of them."""
ABSENT_FOR = 30 * 86400.0
"""Seconds for which a file that the archive does not have is not asked for again."""
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)
"""The store is on another disk, or another user's, or on one that has no hard links."""
REFUSED = ".refused"
_NOT_FILES = (".part", ".json", ".absent")
_EXCERPTS = (SUFFIX, f"{SUFFIX}.part")


class Store:
    """A file in use is a hard link elsewhere, so that trimming the store never takes it away."""

    def __init__(self, folder: Path, cap_gb: float = float("inf")):
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
                try:
                    yield part
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        if not part.stat().st_size:
                            Path(f"{part}.json").unlink(missing_ok=True)
                            part.unlink()
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
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source, target)
        return True

    def keep(self, path: str, part: Path) -> None:
        """Give a verified `part` its name; excerpts of the file have no use then."""
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, self.folder / path)
        for rest in (f"{part}.json", *(self.folder / f"{path}{suffix}" for suffix in _EXCERPTS)):
            Path(rest).unlink(missing_ok=True)

    def note_absent(self, path: str, roots: tuple[str, ...]) -> None:
        """Remember that none of `roots` has `path`."""
        with whole_file(self.folder / f"{path}.absent") as part:
            part.write_text(json.dumps({"asked": time.time(), "roots": sorted(roots)}))

    def known_absent(self, path: str, roots: tuple[str, ...]) -> bool:
        """Whether `roots` were found not to have `path`, not long ago."""
        try:
            note = json.loads((self.folder / f"{path}.absent").read_text())
            fresh = 0 <= time.time() - note["asked"] < ABSENT_FOR  # the clock may have been wrong
            return fresh and set(roots) <= set(note["roots"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def note_refused(self, reason: str) -> None:
        """Remember that the archive refuses this machine, for other jobs."""
        with whole_file(self.folder / REFUSED) as part:
            part.write_text(reason)

    def refused(self) -> str | None:
        """Why the archive refused this machine, if that was not long ago."""
        with contextlib.suppress(FileNotFoundError):
            file = self.folder / REFUSED
            if 0 <= time.time() - file.stat().st_mtime < REFUSED_FOR:
                return file.read_text()
        return None

    def files(self) -> Iterator[Path]:
        """The stored files and excerpts of files; not what is half there."""
        return (file for file in self._seen("*.*z*") if file.suffix not in _NOT_FILES)

    def forget(self, path: str) -> None:
        """Remove a stored file, excerpts of it, or the note that it is absent; who holds one keeps
        it.
        """
        for suffix in ("", ".absent", *_EXCERPTS):
            (self.folder / f"{path}{suffix}").unlink(missing_ok=True)

    def absences(self) -> list[str]:
        """The paths that are remembered as absent."""
        found = (file.relative_to(self.folder) for file in self._seen("*.absent"))
        return sorted(str(path)[: -len(".absent")] for path in found)

    def _seen(self, pattern: str) -> Iterator[Path]:
        """Files of a name, without what is hidden: what a killed process left half-written."""
        for file in self.folder.rglob(pattern):
            if not any(part.startswith(".") for part in file.relative_to(self.folder).parts):
                yield file

    def trim(self) -> None:
        """Remove the files longest unused until the store is under its cap."""
        with self._alone() as files:
            _remove(files, sum(size for _, size, _, _ in files) - self.cap)

    def release(self, size: float) -> None:
        """Make room: remove the files longest unused, of those that none holds, up to `size` bytes
        in all.
        """
        with self._alone() as files:
            _remove([file for file in files if file[3] == 1], size)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[list[tuple[float, int, Path, int]]]:
        """(used when, bytes, path, links) of each file, while no other process removes any."""
        with open(self.folder / ".lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            files = []
            for file in self.files():
                with contextlib.suppress(FileNotFoundError):
                    facts = file.stat()
                    files.append((facts.st_mtime, facts.st_size, file, facts.st_nlink))
            yield files


def _remove(files: list[tuple[float, int, Path, int]], excess: float) -> None:
    for _, size, file, _ in sorted(files):
        if excess <= 0:
            break
        file.unlink(missing_ok=True)
        excess -= size


def _same_file(handle, path: Path) -> bool:
    try:
        return os.fstat(handle.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
