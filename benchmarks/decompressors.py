"""The exact bzip2 decompressors that pip and Debian give, each kept to one thread."""

from __future__ import annotations

import bz2
import importlib
import shutil
import subprocess
from collections.abc import Callable
from importlib import util
from pathlib import Path

from measure import Cost, middle, timed

Decompressor = Callable[[Path], bytes]
"""Path of a .bz2 file -> its content."""

PROGRAMS = {
    "bzip2": ("bzip2", "-dc"),
    "lbzip2 -n1": ("lbzip2", "-n1", "-dc"),
    "7zz -mmt1": ("7zz", "x", "-so", "-mmt1", "-tbzip2"),
}
"""Debian's bzip2, lbzip2 and 7zip, into a pipe."""


def python_bz2(path: Path) -> bytes:
    """Python's own bz2: what `pipeline.survey.frame` has to be measured against."""
    return bz2.decompress(path.read_bytes())


def _program(*command: str) -> Decompressor:
    def decompress(path: Path) -> bytes:
        return subprocess.run([*command, path], stdout=subprocess.PIPE, check=True).stdout

    return decompress


def _package(name: str) -> Decompressor:
    """Of a package from PyPI: rapidgzip, indexed_bzip2, fbz."""
    package = importlib.import_module(name)

    def decompress(path: Path) -> bytes:
        if name == "fbz":
            return package.decompress(path.read_bytes(), threads=1)
        with package.IndexedBzip2File(str(path), parallelization=1) as file:
            return file.read()

    return decompress


def installed() -> dict[str, Decompressor]:
    """Those that are there, by name."""
    found = {"python bz2": python_bz2}
    for name, command in PROGRAMS.items():
        if shutil.which(command[0]):
            found[name] = _program(*command)
    for name in ("rapidgzip", "indexed_bzip2", "fbz"):
        if util.find_spec(name):
            found[name] = _package(name)
    return found


def compare(paths: list[Path], repeats: int) -> dict[str, Cost]:
    """The median cost of one frame for each decompressor, in turn on each of `paths`.

    Raises:
        RuntimeError: one of them gives other bytes than Python's bz2.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in installed()}
    for path in paths:
        expected = python_bz2(path)
        for _ in range(repeats):
            for name, decompress in installed().items():
                content, cost = timed(decompress, path)
                if content != expected:
                    raise RuntimeError(f"{name} gives other bytes for {path.name}")
                costs[name].append(cost)
    return {name: middle(each) for name, each in costs.items()}


def floor(paths: list[Path], decompress: Decompressor) -> int:
    """Decompress each frame once, one after another, and let it go; the number of bytes."""
    return sum(len(decompress(path)) for path in paths)
