"""SDSS at its full size, before anyone pays for it: what planning takes, what the run would take.

`python benchmarks/scale.py` makes the results of the four queries for 1.7 million galaxies on
938,046 fields of 765 runs, of which 14,555 of 31,637 square degrees are primary; galaxies lie on
the primary part alone, 3.9 on a primary field, clustered. On them it runs, each as a process of its
own and for each of `--shards`, what handles the whole catalogue or all shards: `catalog`, `frames
plan`, Snakemake's planning of surveys/sdss-dr12.yaml, `frames fetch` and `cutouts` of one shard,
`dataset`, a reader of all stamps, `export`. Frames are empty files there and stamps are
tiny, so that what is seen is what grows with catalogue and shards; seconds a frame are measured
apart, on a simulated survey. With these rates, and those of the line that the flags say, it goes
through the run of `--of` shards, job by job (scale_model.py). Tables for people come first, then
one line of JSON with the figures. It fails where a count is wrong; times decide nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import catalogue
import measure
import numpy as np
import pandas as pd
import pyarrow as pa
import scale_model as model
import sky

from pipeline import run
from pipeline.images import reader
from pipeline.images.gather import read_shard
from pipeline.images.shard import ShardWriter, open_shard
from pipeline.images.stamp import Stamp
from pipeline.run import UserError
from pipeline.settings import ROOT
from pipeline.survey import footprint, tables
from pipeline.survey.dr12 import columns
from pipeline.survey.hashing import draw
from pipeline.survey.names import BANDS, frame_path

NUMPY_TYPES = {"bigint": "int64", "int": "int32", "smallint": "int16", "tinyint": "uint8",
               "real": "float32", "float": "float64", "varchar": "str"}  # fmt: skip
TINY = Stamp(3)
FIGURES = ("wall_s", "cpu_s", "peak_mb")
FIELDS, PER_FIELD = 6, 4  # of the simulated survey that seconds a frame are measured on
MAY_BE_0 = ("clustering", "partial", "stamped", "latency", "cache_gb", "check_seconds", "queue")
START = {"start_fetch": 2.0, "start_cut": 4.0}
"""Seconds from the start of a job to its first frame, where they are not measured."""
TABLES = catalogue.QUERIES
READ_ALL = """
import sys, numpy as np
from pipeline.images import reader
images = reader.open_set(sys.argv[1])
first = np.unique(images.table["file"], return_index=True)[1]
print(len(images), len(images.read(first)))
"""
"""One image of every file, all files open at once: as a training reads in the worst case."""


def found_by_queries(block: dict[str, dict]) -> dict[str, pd.DataFrame]:
    """What the four queries find in a block of DR12's tables; each has its objects whole."""
    photo, photoz, spectra, info, votes = (
        pd.DataFrame(block[name])
        for name in ("PhotoObjAll", "Photoz", "SpecObjAll", "galSpecInfo", "zooSpec")
    )
    photo["dered_petro_r"] = photo["petroMag_r"] - photo["extinction_r"]
    photoz = photoz.rename(columns={"z": "photoz", "zErr": "photozErr"})
    seen = photo.merge(photoz, on="objID", how="left")
    with_info = spectra.merge(info[["specObjID", "primtarget", "e_bv_sfd"]], on="specObjID")
    return {
        "labelled": with_info.merge(seen, left_on="bestObjID", right_on="objID"),
        "unlabelled": seen[seen["mode"] == 1],
        "fields": pd.DataFrame(block["Field"]),
        "morphology": votes.rename(columns={"objid": "objID", "specobjid": "specObjID"}),
    }


def write_tables(plan: catalogue.Plan, share: np.ndarray, folder: Path) -> None:
    """The results of the queries as Parquet in DR12's types; `share` of each field is primary."""
    kinds = {"dered_petro_r": "real", "photoz": "real", "photozErr": "real"}
    for table in catalogue.ALIASES:
        kinds = columns(table) | kinds
    types = {name: NUMPY_TYPES[kind] for name, kind in kinds.items()}
    parts: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
    progress = run.Progress("tables", len(plan.run), "fields")
    for block in catalogue.blocks(plan):
        for name, rows in found_by_queries(block).items():
            if name == "fields":
                rows["primaryArea"] = model.FIELD_AREA * share[progress.done :][: len(rows)]
            known = {column: types[column] for column in rows if types.get(column) != "str"}
            rows = rows.astype(known | {"flags": "int64"} if "flags" in rows else known)
            parts[name].append(pa.Table.from_pandas(rows, preserve_index=False))
        progress.add(min(catalogue.BLOCK, len(plan.run) - progress.done))
    progress.close()
    for name, pieces in parts.items():
        tables.write_table(pa.concat_tables(pieces), folder / f"{name}.parquet")


def cost(*words: object, cwd: Path = ROOT) -> dict:
    """Run a Python program in a process of its own: wall_s, cpu_s, peak_mb, and what it `said`.

    Raises:
        UserError: it failed; with its own last line.
    """
    line = [sys.executable, measure.PEAK, sys.executable, *words]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        raise UserError(f"{' '.join(map(str, words[:3]))}: {said[-1]}")
    figures = json.loads(done.stdout)
    name = words[1] if words[0] == "-m" else "reader"
    run.log.info("%s: %.1f s, %.0f MB", name, figures["wall_s"], figures["peak_mb"])
    return figures | {"said": done.stderr}


def run_catalog(folder: Path, home: Path, shards: int) -> dict:
    """The stage catalog, of the tables in `folder`, into `home`, with the flags of the survey."""
    home.mkdir(parents=True, exist_ok=True)
    words: list[object] = []
    for name in TABLES:  # beside the catalogue, where `catalogue.found` looks for them
        link = home / f"{name}.parquet"
        link.unlink(missing_ok=True)
        link.symlink_to((folder / f"{name}.parquet").resolve())
        words += [f"--{name}", link]
    words += ["--funnel", home / catalogue.FUNNEL, "--rejected", home / catalogue.REJECTED]
    words += ["--min-b-unlabelled", catalogue.MIN_B, "--max-photoz", catalogue.MAX_PHOTOZ]
    output = home / "catalog.parquet"
    return cost("-m", "pipeline.catalog", *words, "--shards", shards, "--output", output)


def run_snakemake(home: Path, shards: int) -> dict:
    """Snakemake's own planning of the survey's run, in a folder where nothing is made yet."""
    overlay = home / "shards.yaml"
    overlay.write_text(f"catalog:\n  shards: {shards}\n")
    shutil.rmtree(home / "plan", ignore_errors=True)
    (home / "plan").mkdir()
    return cost(
        "-m", "snakemake", "-n", "--quiet", "rules", "--cores", 2, "--directory", home / "plan",
        "--configfile", ROOT / "surveys/sdss-dr12.yaml", overlay.resolve(),
    )  # fmt: skip


def jobs(said: str) -> dict[str, int]:
    """Rule -> number of jobs, from what a dry run says."""
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", said, re.M)}


def empty_archive(catalog: Path, shard: int, root: Path) -> int:
    """Empty files by the names of a shard's frames, below `root`; how many they are."""
    galaxies = read_shard(catalog, shard)
    needs = footprint.frames_needed(galaxies, Stamp().reach, lambda field, band: None)
    for field, band in needs:
        path = root / frame_path(field, band)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return len(needs)


def write_shards(catalog: Path, folder: Path, shards: int, share: float) -> list[int]:
    """Shards of tiny stamps of `share` of the galaxies, the others failed; each one's stamps."""
    folder.mkdir(parents=True, exist_ok=True)
    random, stamps = np.random.default_rng(catalogue.SEED), []
    progress = run.Progress("shards", shards, "shards")
    for number in range(shards):
        galaxies = read_shard(catalog, number)
        chosen = draw(galaxies["objID"].to_numpy(np.int64), 1) < share
        noise = random.normal(0, 0.02, (len(galaxies), len(BANDS), 3, 3)).astype(np.float32)
        with ShardWriter(folder / f"{number:04d}.h5", galaxies, TINY) as writer:
            for row in range(len(galaxies)):
                if chosen[row]:
                    writer.append(row, {"images": noise[row]}, np.ones(5), np.full(5, 0.02))
                else:
                    writer.fail(row, "frame is missing")
        stamps.append(int(chosen.sum()))
        progress.add()
    progress.close()
    return stamps


def run_one_shard(home: Path, shards: int) -> tuple[dict, dict]:
    """`frames fetch` and `cutouts` of the middle shard: costs, counts.

    Its frames are empty files. Every galaxy ends as a failure; only a frame's pixels are not seen.
    """
    catalog, shard = home / "catalog.parquet", shards // 2
    frames = empty_archive(catalog, shard, home / "archive")
    galaxies = len(read_shard(catalog, shard))
    one, output = ["--galaxies", catalog, "--shard", shard], home / f"{shard:04d}"
    costs = {
        "frames fetch": cost("-m", "pipeline.frames", "fetch", *one, "--root", home / "archive",
                             "--output", output),
        "cutouts": cost("-m", "pipeline.cutouts", *one, "--archive", output, "--workers", 2,
                        "--output", home / "one.h5"),
    }  # fmt: skip
    linked = sum(1 for _ in output.rglob("frame-*"))
    with open_shard(home / "one.h5") as file:
        failed = len(file["failed/ObjID"])
    shutil.rmtree(output)
    shutil.rmtree(home / "archive")
    return costs, {"frames of one shard": (frames, linked), "its galaxies": (galaxies, failed)}


def run_all_shards(home: Path, shards: int, share: float, pictures: bool) -> tuple[dict, dict]:
    """What reads all shards: costs, and counts."""
    each = write_shards(home / "catalog.parquet", home / "cutouts", shards, share)
    stamps, filled = sum(each), np.count_nonzero(each)
    files = sorted((home / "cutouts").glob("*.h5"))
    dataset = home / "dataset.json"
    costs = {
        "dataset": cost("-m", "pipeline.dataset", "--shards", *files, "--catalog",
                        home / "catalog.parquet", "--workers", 4, "--output", dataset),
        "reader": cost("-c", READ_ALL, dataset),
        "export": cost("-m", "pipeline.export", "--dataset", dataset, "--output", home / "export"),
    }  # fmt: skip
    if pictures:
        costs["pictures"] = cost(
            "-m", "pipeline.pictures", "--dataset", dataset, "--catalog", home / "catalog.parquet",
            "--fields", home / "fields.parquet", "--output", home / "pictures",
        )  # fmt: skip
    came = json.loads(dataset.read_text())
    exported = len(reader.open_set(sorted((home / "export").glob("*.h5"))))
    shutil.rmtree(home / "cutouts")
    shutil.rmtree(home / "export")
    return costs, {
        "stamps": (stamps, came["galaxies"]["stamps"]),
        "stamps and failures": (came["galaxies"]["catalogue"],
                                came["galaxies"]["stamps"] + came["galaxies"]["failed"]),
        "shards of the set": (shards, len(came["shards"])),
        "exported": (stamps, exported),
        "read": (f"{stamps} {filled}", costs["reader"]["said"].strip().splitlines()[-1]),
    }  # fmt: skip


def run_stages(folder: Path, shards: int, plan: catalogue.Plan, *how: object) -> tuple[dict, dict]:
    """All stages for one number of shards: costs by stage, counts as (put in, came out)."""
    home = folder / str(shards)
    costs = {"catalog": run_catalog(folder, home, shards)}
    put, came = catalogue.expected(plan) | {"shards": shards}, catalogue.found(home)
    counts = {name: (put.get(name, 0), came.get(name, 0)) for name in {**put, **came}}
    words, output = ["plan", "--galaxies", home / "catalog.parquet"], home / "plan.json"
    costs["frames plan"] = cost("-m", "pipeline.frames", *words, "--output", output)
    planned = json.loads(output.read_text())
    for name, known in (("galaxies", "galaxies"), ("fields", "fields with galaxies")):
        counts[f"{name} of the plan"] = (put[known], planned[name])
    costs["snakemake -n"] = run_snakemake(home, shards)
    planned = jobs(costs["snakemake -n"]["said"])
    for name in ("frames", "cutouts"):
        counts[f"jobs of {name}"] = (shards, planned.get(name, 0))
    for runner, more in ((run_one_shard, ()), (run_all_shards, how)):
        found = runner(home, shards, *more)
        costs |= found[0]
        counts |= found[1]
    costs = {name: {key: each[key] for key in FIGURES} for name, each in costs.items()}
    return costs, {f"{shards} shards: {name}": each for name, each in counts.items()}


def measured_rates(folder: Path, repeats: int = 3) -> dict[str, float]:
    """Core-seconds to cut and to check a frame, and seconds before the first, of this machine.

    The stage cuts a simulated survey of 6 fields with 4 galaxies each, by two threads as the rule
    does, and one field of it; `frames verify` checks its frames, and no frames. The differences
    in processor time count, so that other work on the machine does not; the median of some rounds.
    """
    galaxies, archive = sky.simulated(folder, FIELDS, PER_FIELD)
    words = ["-m", "pipeline.cutouts", "--archive", archive, "--output", folder / "stamps.h5"]
    verify = ["-m", "pipeline.frames", "verify", "--workers", 1, "--cache"]
    empty, frames = folder / "empty", FIELDS * len(BANDS)
    empty.mkdir(exist_ok=True)
    samples = {"all": galaxies, "few": galaxies[galaxies["field"] == galaxies["field"].min()]}
    for name, rows in samples.items():
        rows.to_parquet(folder / f"{name}.parquet", index=False)
    rounds = []
    for _ in range(repeats + 1):  # the first warms up
        every, few = (cost(*words, "--workers", 2, "--galaxies", folder / f"{name}.parquet")
                      for name in samples)  # fmt: skip
        check, idle = (cost(*verify, cache) for cache in (archive, empty))
        cut = (every["cpu_s"] - few["cpu_s"]) / (frames - len(BANDS))
        rounds.append({
            "cut": cut, "check": (check["cpu_s"] - idle["cpu_s"]) / frames,
            "start_fetch": idle["wall_s"],
            "start_cut": max(few["wall_s"] - len(BANDS) * cut / 2, 0.0),
        })  # fmt: skip
    return {name: statistics.median(each[name] for each in rounds[1:]) for name in rounds[0]}


def rates_of(args: argparse.Namespace, own: dict[str, float]) -> model.Rates:
    """The rates of the model: those of the flags, and what was measured where they say nothing."""
    cut = own["cut"] if args.seconds_per_frame is None else args.seconds_per_frame
    check = own["check"] if args.check_seconds is None else args.check_seconds
    return model.Rates(
        mb_per_stream=args.mb_per_stream, cut=cut, check=check,
        mb_per_second=args.mb_per_second or np.inf, latency=args.latency,
        requests_per_minute=args.requests_per_minute, start_fetch=own["start_fetch"] + args.queue,
        start_cut=own["start_cut"] + args.queue,
    )  # fmt: skip


def model_runs(args: argparse.Namespace, shards: model.Shards, rates: model.Rates) -> list[dict]:
    """The run for each number of streams and cores, as rows of a table."""
    settings = (
        model.Setting(
            cores, streams, args.fetches, args.window, cache_bytes=args.cache_gb * 1e9,
            fetch_cores=args.fetch_cores or np.inf,
        )
        for streams in args.streams
        for cores in args.cores
    )  # fmt: skip
    return [model.as_row(shards, setting, model.simulate(shards, rates, setting))
            for setting in settings]  # fmt: skip


def kept(path: Path, again: bool, make: Callable, *args: object):
    """What `make` returns, written to `path`; or, if `again`, what an earlier run has written."""
    if not again:
        run.write_json(make(*args), path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run once without --model-only") from None


def report_costs(costs: dict[int, dict[str, dict]]) -> list[str]:
    """What each stage took for each number of shards."""
    head = "".join(f"{f'{shards:,} shards':>19}" for shards in costs)
    lines = [f"{'':14}{head}", f"{'':14}" + f"{'s':>10}{'peak MB':>9}" * len(costs)]
    for name in next(iter(costs.values())):
        each = (costs[shards][name] for shards in costs)
        lines.append(
            f"{name:14}" + "".join(f"{c['wall_s']:10.1f}{c['peak_mb']:9,.0f}" for c in each)
        )
    return lines


def main(argv: list[str] | None = None) -> None:
    """Make the survey, measure, model, check, and print the tables and one line of JSON."""
    args = _parser().parse_args(argv)
    _refuse(args)
    plan = model.make_plan(args.galaxies, args.clustering, args.partial)
    share = model.primary_share(plan, args.partial)
    folder = args.work / f"{args.galaxies}-{args.clustering:g}-{args.partial:g}"
    if not all((folder / f"{name}.parquet").is_file() for name in TABLES):
        write_tables(plan, share, folder)
    costs, counts, again = {}, {}, args.model_only
    of = args.of if args.of in args.shards else args.shards[0]
    for number in [of] if again else args.shards:
        made = kept(folder / str(number) / "costs.json", again, run_stages, folder, number, plan,
                    args.stamped, args.pictures)  # fmt: skip
        costs[number], more = made
        counts |= more
    shards = model.shards_of(folder / str(of) / "catalog.parquet")
    own = START
    if args.seconds_per_frame is None or args.check_seconds is None:
        own = kept(args.work / "rates.json", again, measured_rates, args.work)
    rates = rates_of(args, own)
    rows = model_runs(args, shards, rates)
    parts = [model.of_sky(plan, share, shards), report_costs(costs), model.as_table(rows, rates)]
    print("\n\n".join("\n".join(part) for part in parts), end="\n\n")
    wrong = [name for name, (put, came) in counts.items() if put != came]
    for name in wrong:
        print(f"{name}: put in {counts[name][0]}, came out {counts[name][1]}")
    figures = {"galaxies": args.galaxies, "shards": of, "frames": float(shards.frames.sum()),
               "bytes": float(shards.frame_bytes.sum()), "cost": costs, "measured": own,
               "runs": rows, "counts": len(counts), "wrong": wrong}  # fmt: skip
    print(json.dumps(figures))
    if wrong:
        raise UserError(f"{', '.join(wrong)}: not as many as were put in")


def _refuse(args: argparse.Namespace) -> None:
    if args.galaxies < 10 * max(args.shards):
        raise UserError(f"--galaxies {args.galaxies}: give ten or more a shard")
    for name, value in vars(args).items():
        least = min(value) if isinstance(value, list) else value
        if type(least) in (int, float) and least <= 0 and name not in MAY_BE_0:
            raise UserError(f"--{name.replace('_', '-')}: {least:g}; give a number above 0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks/scale.py", description=__doc__)
    add = parser.add_argument
    add("--galaxies", type=int, default=catalogue.GALAXIES, metavar="N",
        help="of the catalogue; the fields go with it (default %(default)s)")  # fmt: skip
    add("--clustering", type=float, default=model.CLUSTERING,
        help="variance of the density from field to field (default %(default)s)")  # fmt: skip
    add("--partial", type=float, default=model.PARTIAL,
        help="share of the fields that are primary in part (default %(default)s)")  # fmt: skip
    add("--shards", type=int, nargs="+", default=[100, 400, 1600], help="(default 100 400 1600)")
    add("--of", type=int, default=catalogue.SHARDS,
        help="shards of the run that is modelled (default %(default)s)")  # fmt: skip
    add("--stamped", type=float, default=0.1,
        help="share of the galaxies that have a (tiny) stamp (default %(default)s)")  # fmt: skip
    add("--cores", type=int, nargs="+", default=[2, 32, 256], help="(default 2 32 256)")
    add("--streams", type=int, nargs="+", default=[5, 20], help="(default 5 20)")
    add("--mb-per-stream", type=float, default=2.0, help="MB/s of one (default %(default)s)")
    add("--mb-per-second", type=float, help="of the line (default: no less than the streams)")
    add("--latency", type=float, default=0.1, help="s before a file's first byte (%(default)s)")
    add("--requests-per-minute", type=float, default=600.0, help="(default %(default)g)")
    add("--seconds-per-frame", type=float, help="core-s to decompress and cut (default: measured)")
    add("--check-seconds", type=float, help="core-s to check a frame (default: measured)")
    add("--fetches", type=int, default=1, help="shards fetched at a time (default %(default)s)")
    add("--fetch-cores", type=float, help="cores that a fetch may use (default: all)")
    add("--queue", type=float, default=0.0, help="s that a job waits in a cluster's queue (0)")
    add("--window", type=int, default=8, help="shards whose frames are there (%(default)s)")
    add("--cache-gb", type=float, default=50.0, help="GB of the cache (default %(default)g)")
    add("--pictures", action="store_true", help="draw the pictures too (10 minutes, 7 GB)")
    add("--model-only", action="store_true", help="go by what an earlier run has measured")
    add("--work", type=Path, default=ROOT / "benchmarks/results/scale", metavar="DIR",
        help="where files are kept; tables there are used again (default %(default)s)")  # fmt: skip
    return parser


if __name__ == "__main__":
    run.start(main)
