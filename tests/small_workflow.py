"""The whole Snakefile in a folder of its own, run as a user would run it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml

from pipeline.images import overlap, statistics
from pipeline.survey.names import BANDS

ROOT = Path(__file__).resolve().parent.parent
CODE = [
    "Snakefile",
    "config.yaml",
    "pipeline",
    "workflow",
    "queries",
    "surveys",
    "profiles",
    "envs",
]


def make_house(folder: Path) -> Path:
    """A copy of the repository's code in `folder`, so that tests may edit it.

    Numba's compiled kernels go along; else they would be compiled anew in every copy.
    """
    corners = np.stack(np.meshgrid(np.arange(4.0), np.arange(4.0)), axis=-1)
    overlap.cut(np.zeros((8, 8), np.float32), corners)
    statistics.PixelCounts().add(np.zeros((1, len(BANDS), 2, 2), np.float32))
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def command(folder: Path, *words: str, overlay: dict) -> list[str]:
    """The command that runs in `folder`, with `overlay` for a config file."""
    file = folder / "overlay.yaml"
    file.write_text(yaml.safe_dump(overlay))
    words = (*words, "--directory", str(folder), "--configfile", str(file))
    return [str(Path(sys.executable).with_name("snakemake")), *words]


def snakemake(
    house: Path, folder: Path, *words: str, overlay: dict
) -> subprocess.CompletedProcess[str]:
    """Run the Snakefile of `house` in `folder`."""
    words = command(folder, *words, overlay=overlay)
    return subprocess.run(words, cwd=house, capture_output=True, text=True)


def rules_to_rerun(house: Path, folder: Path, *targets: str, overlay: dict) -> set[str]:
    """The rules of a dry run."""
    plan = snakemake(house, folder, "-n", "--cores", "2", *targets, overlay=overlay)
    assert plan.returncode == 0, plan.stderr
    found = re.findall(r"^(?:local)?rule (\w+):", plan.stdout + plan.stderr, re.MULTILINE)
    return set(found) - {"all"}


@contextlib.contextmanager
def edited(source: Path) -> Iterator[None]:
    """`source` with a line more, for a while."""
    before, times = source.read_text(), source.stat()
    try:
        source.write_text(before + "\nEDITED = True\n")
        yield
    finally:
        source.write_text(before)
        os.utime(source, (times.st_atime, times.st_mtime))


def copy_of_run(run: Path, to: Path, names: list[str]) -> Path:
    """A run in which of the results only `names` are made."""
    shutil.copytree(run / ".snakemake" / "metadata", to / ".snakemake" / "metadata")
    (to / "results").mkdir(exist_ok=True)
    for name in names:
        source = run / "results" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, to / "results" / name)
    return to


def kill(house: Path, folder: Path, *words: str, overlay: dict, when: Callable[[], bool]) -> None:
    """Begin a run without a lock, and kill -9 all its processes as soon as `when` says so."""
    running = subprocess.Popen(
        command(folder, "--nolock", *words, overlay=overlay), cwd=house, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ends = time.monotonic() + 240
        while not when():
            assert running.poll() is None, "the run ended before its moment"
            assert time.monotonic() < ends, "the moment did not come"
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
