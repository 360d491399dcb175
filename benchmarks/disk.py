"""How much of a disk the frames of a run take: with a cap, killed again and again, and without.

    python benchmarks/disk.py
    python benchmarks/disk.py --fields 16 --shards 8 --kills 1

A simulated survey (frames of 3 MB, as SDSS's are) is served over HTTP on this machine and cut into
shards three times: without a cap (every frame is kept), with `frames: disk_gb`, and with it while
Snakemake is killed with kill -9 at random moments and started again. While each runs, what lies in
results/frames is summed up twenty times a second, hard links once. The shards must be the same
bytes, the peaks under the cap. The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import yaml
from rehearsal import simulate
from serving import ROOT, services

from pipeline.survey.estimate import FRAME_BYTES
from pipeline.survey.room import taken

SNAKEMAKE = Path(sys.executable).with_name("snakemake")
EVERY = 0.05
"""Seconds between two looks at the disk."""


class Peaks:
    """The most that frames (in flight and in the cache) and scratch files took, in bytes."""

    def __init__(self, folder: Path):
        self.results, self.frames, self.scratch, self.looks = folder / "results", 0, 0, 0
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.end.wait(EVERY):
            self.frames = max(self.frames, taken([self.results / "frames"]))
            self.scratch = max(self.scratch, taken(self.results.glob("cutouts/.*.scratch*")))
            self.looks += 1

    def __enter__(self) -> Peaks:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.end.set()
        self.thread.join()


class Made(NamedTuple):
    """What a run took and made. `left`: folders of frames that are there at its end."""

    peak: int
    scratch: int
    looks: int
    starts: int
    seconds: float
    shards: dict[str, str]
    left: list[str]


def start(folder: Path) -> subprocess.Popen:
    """Begin a run in `folder`, or go on; what it says goes to disk.log there."""
    words = [SNAKEMAKE, "--cores", "2", "results/dataset.json", "--directory", folder]
    with open(folder / "disk.log", "a") as log:
        return subprocess.Popen(
            [*words, "--configfile", folder / "run.yaml"], cwd=ROOT, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def kill(folder: Path, process: subprocess.Popen, seconds: float) -> bool:
    """Kill a run, all its processes, after so long; False if it had ended before."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    words = [SNAKEMAKE, "--unlock", "--cores", "2", "--directory", folder]
    subprocess.run([*words, "--configfile", folder / "run.yaml"], cwd=ROOT, check=True,
                   capture_output=True)  # fmt: skip
    return True


def run(folder: Path, config: dict, kills: int, draw: random.Random, longest: float) -> Made:
    """Make the survey's shards in `folder`, begun anew, killed so often on the way."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    began, starts = time.monotonic(), 1
    with Peaks(folder) as peaks:
        process = start(folder)
        for _ in range(kills):
            if not kill(folder, process, draw.uniform(0.3, 1.0) * longest):
                break
            starts += 1
            process = start(folder)
        if process.wait() != 0:
            sys.exit(f"error: the run did not end well; see {folder / 'disk.log'}")
    results = folder / "results"
    shards = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()
              for file in sorted((results / "cutouts").glob("*.h5"))}  # fmt: skip
    left = sorted(each.name for each in (results / "frames").iterdir()
                  if each.is_dir() and each.name != "cache")  # fmt: skip
    seconds = round(time.monotonic() - began, 1)
    return Made(peaks.frames, peaks.scratch, peaks.looks, starts, seconds, shards, left)


def configuration(survey: Path, sas: str, args: argparse.Namespace) -> dict:
    """A run on the served survey, without bounds: it keeps all that it fetches."""
    return {
        "query": {"source": str(survey / "survey.duckdb")},
        "catalog": {"shards": args.shards},
        "frames": {"root": sas, "window": args.shards, "cache_gb": 50},
        "network": {"requests_per_minute": 100000},
        "goals": [],
    }


def capped(config: dict, folder: Path, args: argparse.Namespace) -> dict:
    """The same with a window, a small cache, and the least cap that the plan lets through."""
    frames = config["frames"] | {"window": args.window, "cache_gb": args.cache_mb / 1e3}
    plan = json.loads((folder / "results" / "plan.json").read_text())
    shard = plan["largest_shard_frames"] * FRAME_BYTES[2]
    cap = args.window * shard + args.cache_mb * 1e6
    return config | {"frames": frames | {"disk_gb": round(cap / 1e9, 4)}}


def main(argv: list[str] | None = None) -> None:
    """Command line: see --help."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, default=ROOT / "benchmarks" / "results" / "disk")
    add("--fields", type=int, default=32, help="of the one camera column of the one run")
    add("--shards", type=int, default=32)
    add("--window", type=int, default=2)
    add("--cache-mb", type=float, default=10)
    add("--kills", type=int, default=4)
    add("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args(argv)
    work = args.work.resolve()
    overlay = {"runs": [4207], "camcols": [3], "fields": [args.fields], "galaxies_per_field": 5,
               "stars_per_field": 20, "reference_size": 1000}  # fmt: skip
    survey = simulate(work / f"survey-{args.fields}", {"simulate": overlay})
    shutil.rmtree(work / "services", ignore_errors=True)
    with services(survey / "survey.duckdb", survey / "sas" / "dr9", work / "services") as at:
        config, draw = configuration(survey, at["sas"], args), random.Random(args.seed)
        free = run(work / "free", config, 0, draw, 0)
        config = capped(config, work / "free", args)
        once = run(work / "capped", config, 0, draw, 0)
        longest = once.seconds / max(args.kills, 1)
        killed = run(work / "killed", config, args.kills, draw, longest)
    report(free, once, killed, config["frames"]["disk_gb"] * 1e9, args)


def report(free: Made, once: Made, killed: Made, cap: float, args: argparse.Namespace) -> None:
    """A table, a line of JSON, and the exit status."""
    print(
        f"{args.shards} shards, window {args.window}, cache {args.cache_mb:g} MB; "
        f"cap {cap / 1e6:.0f} MB; looked every {EVERY * 1000:.0f} ms; MB are 10^6 bytes\n"
    )
    print("run            peak MB  of the cap  scratch MB  starts       s  frames left")
    for name, made in (("no cap", free), ("capped", once), ("capped, killed", killed)):
        print(f"{name:<15}{made.peak / 1e6:>7.0f}{made.peak / cap:>11.0%}"
              f"{made.scratch / 1e6:>12.1f}{made.starts:>8}{made.seconds:>8.0f}"
              f"  {' '.join(made.left) or 'none'}")  # fmt: skip
    same = free.shards == once.shards == killed.shards and len(free.shards) == args.shards
    print(f"\nthe shards are {'the same bytes' if same else 'NOT the same bytes'}")
    runs = {"free": free, "capped": once, "killed": killed}
    figures = {"cap_mb": cap / 1e6, "same": same} | {
        f"{name}_{key}": value
        for name, made in runs.items()
        for key, value in (
            ("peak_mb", round(made.peak / 1e6, 1)), ("scratch_mb", round(made.scratch / 1e6, 1)),
            ("starts", made.starts), ("seconds", made.seconds), ("looks", made.looks),
            ("left", made.left),
        )
    }  # fmt: skip
    print(json.dumps(figures))
    if not same or max(once.peak, killed.peak) > cap:
        sys.exit("error: not as promised")


if __name__ == "__main__":
    main()
