"""HDF5 on a disk that may be full: HDF5 crashes the process where a write to a file fails."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import h5py


class Disk(io.FileIO):
    """A file for HDF5 to write to that keeps its first error, to be raised by `check`."""

    error: OSError | None = None

    def write(self, data) -> int:
        """Write all of `data`, or keep the error."""
        left = memoryview(data).cast("B")
        try:
            while self.error is None and len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self.error = OSError(error.errno, error.strerror, self.name)
        return memoryview(data).nbytes

    def truncate(self, size=None) -> int:
        """As a file's, or keep the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or OSError(error.errno, error.strerror, self.name)
            return size

    def check(self) -> None:
        """Raise the error that was kept."""
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[tuple[h5py.File, Disk]]:
    """A new HDF5 file at `path`, and its disk, to be checked between writes.

    Raises:
        OSError: a write failed; at the latest on leaving.
    """
    with Disk(path, "w+") as disk:
        with h5py.File(disk, "w") as file:
            yield file, disk
        disk.check()
