"""Wall time, CPU time and peak memory of what the benchmarks run."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PEAK = Path(__file__).with_name("peak.py")


class Cost(NamedTuple):
    """Seconds on the clock, and of all processors together (children too)."""

    wall: float
    cpu: float

    def per(self, count: int) -> Cost:
        """The cost of one of `count`."""
        return Cost(self.wall / count, self.cpu / count)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(function: Callable, *args) -> tuple[object, Cost]:
    """What `function` returns, and what it cost."""
    cpu, wall = _cpu(), time.perf_counter()
    result = function(*args)
    return result, Cost(time.perf_counter() - wall, _cpu() - cpu)


def mean(costs: list[Cost]) -> Cost:
    """The mean of each figure."""
    return Cost(*(sum(values) / len(costs) for values in zip(*costs, strict=True)))


def median(values: list[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def middle(costs: list[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(*(median(list(values)) for values in zip(*costs, strict=True)))


def peak(*command: str | Path, **environment: str) -> dict[str, float]:
    """Run a Python program in a process of its own: wall_s, cpu_s, peak_mb.

    The peak is that of its largest process, in MB of 10^6 bytes; `environment` is added to this
    process's own.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    line = [sys.executable, PEAK, sys.executable, *command]
    done = subprocess.run(
        [str(word) for word in line],
        stdout=subprocess.PIPE,
        env=os.environ | environment,
        check=True,
    )
    return json.loads(done.stdout)
