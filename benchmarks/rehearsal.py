"""Rehearse surveys/sdss-dr12.yaml against services on this machine, on good days and bad ones.

    make rehearsal                                      once, to the end, learning included
    python benchmarks/rehearsal.py --goals none --faults 0.1 --gone 0.02
    python benchmarks/rehearsal.py --goals none --faults 0.1 --gone 0.02 --kills 20
    python benchmarks/rehearsal.py -- --profile workflow/profiles/slurm --configfile my.yaml

CasJobs, the login, SkyServer and SAS are those of tests/services, over the embedded simulated
survey. With --faults (or --kills) the run is made twice, against services that work and against
services of which that share of the answers goes wrong in every way they know, and what comes out
is compared byte by byte. --kills: the second run is killed so often, with kill -9, at random
moments, and started again. What follows `--` goes to Snakemake. The last line is one line of JSON.
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
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import h5py
import yaml
from serving import PASSWORD, ROOT, USER, services

SNAKEMAKE = Path(sys.executable).with_name("snakemake")
MOST_STARTS = 30
"""Starts of a run that stops by itself (a full MyDB, an archive in trouble) before it fails."""


def simulate(folder: Path, overlay: dict) -> Path:
    """The simulated survey of config.yaml (and `overlay`), made once."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "survey.yaml"
    file.write_text(yaml.safe_dump(overlay))
    targets = ["results/simulate/survey.duckdb", "results/simulate/sas"]
    words = [SNAKEMAKE, "--cores", "all", *targets, "--directory", folder]
    subprocess.run([*words, "--configfile", file], check=True, cwd=ROOT)
    return folder / "results" / "simulate"


def serve(survey: Path, work: Path, faults: float, args: argparse.Namespace):
    """The services over the simulated survey, of whose answers the share `faults` goes wrong."""
    shutil.rmtree(work, ignore_errors=True)
    return services(
        survey / "survey.duckdb", survey / "sas" / "dr9", work, "--faults", faults,
        "--gone", args.gone, "--seed", args.seed, "--queries-a-minute", 100000,
    )  # fmt: skip


class Run:
    """One run of the workflow in a folder of its own, begun anew. `more` goes to Snakemake.

    Its output goes to rehearsal.log in the folder, or, with `show`, to the terminal.
    """

    def __init__(
        self, folder: Path, url: str, goals: list[str] | None, more: list[str], show: bool = False
    ):
        self.folder, self.show = folder, show
        folder.mkdir(parents=True, exist_ok=True)
        self.forget()
        overlays = [ROOT / "surveys" / name for name in ("sdss-dr12.yaml", "rehearsal.yaml")]
        if goals is not None:
            overlays.append(folder / "goals.yaml")
            overlays[-1].write_text(yaml.safe_dump({"goals": goals}))
        at = more.index("--configfile") if "--configfile" in more else len(more)
        self.words = [SNAKEMAKE, "--cores", "all", "--directory", folder, *more[:at]]
        self.words += ["--configfile", *overlays, *more[at + 1 :]]
        self.environment = os.environ | {
            "UGRIZ_SERVICES": url, "SCISERVER_USER": USER, "SCISERVER_PASSWORD": PASSWORD,
        }  # fmt: skip

    def start(self) -> subprocess.Popen:
        """Begin, or go on."""
        log = None if self.show else open(self.folder / "rehearsal.log", "a")  # noqa: SIM115
        return subprocess.Popen(
            self.words, cwd=ROOT, env=self.environment, start_new_session=True,
            stdout=log, stderr=None if self.show else subprocess.STDOUT,
        )  # fmt: skip

    def unlock(self) -> None:
        """Take the lock of a killed run away."""
        subprocess.run([*self.words, "--unlock"], cwd=ROOT, env=self.environment, check=True,
                       capture_output=True)  # fmt: skip

    def finish(self, most: int = MOST_STARTS) -> int:
        """Start until it ends well, `most` times at most; the number of starts that it took."""
        for number in range(1, most + 1):
            process = self.start()
            try:
                if process.wait() == 0:
                    return number
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGINT)
                process.wait()
                sys.exit("error: interrupted")
            print(f"{self.folder.name}: start {number} ended before its time", flush=True)
        where = "above" if self.show else f"{self.folder}/rehearsal.log"
        sys.exit(f"error: {self.folder.name}: did not end well; see {where}")

    def forget(self) -> None:
        """Remove all that it made."""
        for name in ("results", "logs", ".snakemake", "rehearsal.log"):
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def stored(self) -> set[str]:
        """The frames that are whole in the cache."""
        cache = self.folder / "results" / "frames" / "cache"
        return {str(file.relative_to(cache)) for file in cache.rglob("*.bz2")}

    def products(self) -> dict[str, str]:
        """SHA-256 of what comes out: catalogue, funnel, shards, data set."""
        results = self.folder / "results"
        files = [results / name for name in ("catalog.parquet", "catalog.json", "dataset.json")]
        files += sorted((results / "cutouts").glob("*.h5"))
        return {str(file.relative_to(results)): hashlib.sha256(file.read_bytes()).hexdigest()
                for file in files}  # fmt: skip


class Trial(NamedTuple):
    """A run that was killed again and again, and each time started again, until it ended."""

    products: list[dict[str, str]]
    starts: int
    asked_again: set[str]


def killed(run: Run, kills: int, longest: float, seed: int, log: Path) -> Trial:
    """Kill the run so often, then let it end. One that ends before its kill is begun anew."""
    draw, moments, made = random.Random(seed), [], []
    for number in range(1, kills + 1):
        process = run.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(1, longest))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait() == 0:
            made.append(run.products())
            run.forget()
        run.unlock()
        moments.append((len(requests(log)), run.stored()))
        print(f"kill {number} of {kills}: {len(moments[-1][1])} frames whole", flush=True)
    starts = kills + run.finish()
    paths = [each["path"].removeprefix("/sas/dr9/") for each in requests(log)]
    again = set()
    for (count, stored), (end, still) in pairwise([*moments, (len(paths), run.stored())]):
        again |= set(paths[count:end]) & stored & still
    return Trial([*made, run.products()], starts, again)


def requests(log: Path) -> list[dict]:
    """The services' own record of what they were asked."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def put_twice(work: Path) -> list[str]:
    """Tasks of which more than one job ran to its end or is alive."""
    with contextlib.closing(sqlite3.connect(work / "state.db")) as database:
        rows = database.execute("SELECT task FROM jobs WHERE status IN (0, 1, 5)")
        tasks = [task for (task,) in rows]
    return [task for task, count in Counter(tasks).items() if count > 1]


def failures(folder: Path) -> Counter:
    """Reasons of the galaxies without a stamp."""
    reasons: Counter = Counter()
    for shard in sorted((folder / "results" / "cutouts").glob("*.h5")):
        with h5py.File(shard) as file:
            reasons.update(reason.decode() for reason in file["failed/reason"][:])
    return reasons


def secrets_left(folder: Path, work: Path) -> list[str]:
    """Files of a run in which the password is found, or a token that the login gave."""
    with contextlib.closing(sqlite3.connect(work / "state.db")) as database:
        words = [PASSWORD.encode()]
        words += [token.encode() for (token,) in database.execute("SELECT token FROM tokens")]
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [str(file) for file in files if any(word in file.read_bytes() for word in words)]


def rehearse(args: argparse.Namespace) -> dict:
    """Both runs, or one; the figures."""
    goals = None if args.goals is None else [goal for goal in args.goals if goal != "none"]
    overlay = yaml.safe_load(args.survey.read_text()) if args.survey else {}
    survey = simulate(args.work / "survey", overlay)
    figures: dict = {"faults": args.faults, "gone": args.gone, "kills": args.kills}
    bad = args.faults > 0 or args.kills > 0
    began = time.monotonic()
    with serve(survey, args.work / "good-services", 0, args) as at:
        good = Run(args.work / "good", at["url"], goals, args.snakemake, show=not bad)
        print(f"a run on a good day: {good.folder}", flush=True)
        good.finish(most=1)
    figures["seconds_good"] = round(time.monotonic() - began, 1)
    if not bad:
        return figures | _left(good, args.work / "good-services")
    began, work = time.monotonic(), args.work / "bad-services"
    with serve(survey, work, args.faults, args) as at:
        run = Run(args.work / "bad", at["url"], goals, args.snakemake)
        print(f"a run on a bad day: {run.folder} (its log: rehearsal.log)", flush=True)
        log = work / "requests.jsonl"
        trial = killed(run, args.kills, args.longest, args.seed, log)
    seen, right = requests(log), good.products()
    faults = Counter(each["fault"] for each in seen if each["fault"])
    different = {name for made in trial.products for name in right if made.get(name) != right[name]}
    return figures | {
        "seconds_bad": round(time.monotonic() - began, 1), "starts_bad": trial.starts,
        "runs_bad": len(trial.products), "requests": len(seen), "faulty": dict(faults),
        "products": len(right), "different": sorted(different),
        "frames_asked_again": sorted(trial.asked_again), "jobs_put_twice": put_twice(work),
        **_left(run, work),
    }  # fmt: skip


def _left(run: Run, work: Path) -> dict:
    return {"failures": dict(failures(run.folder)), "secrets": secrets_left(run.folder, work)}


def main(argv: list[str] | None = None) -> None:
    """Command line: see --help."""
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, default=ROOT / "benchmarks" / "results" / "rehearsal")
    add("--faults", type=float, default=0.0, help="share of the answers that go wrong")
    add("--gone", type=float, default=0.0, help="share of the frames that are lost for good")
    add("--kills", type=int, default=0, help="kill -9 so often")
    add("--longest", type=float, default=25.0, help="seconds to the next kill, at most")
    add("--seed", type=int, default=0, help="of faults and kills")
    add("--goals", nargs="+", help="goals of the config; none: images only")
    add("--survey", type=Path, help="overlay of config.yaml for the simulated survey")
    args = parser.parse_args(argv[:cut])
    args.snakemake, args.work = argv[cut + 1 :], args.work.resolve()
    figures = rehearse(args)
    print(json.dumps(figures))
    wrong = [key for key in ("different", "frames_asked_again", "jobs_put_twice", "secrets")
             if figures.get(key)]  # fmt: skip
    if wrong:
        sys.exit(f"error: not as promised: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
