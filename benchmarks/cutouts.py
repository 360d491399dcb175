"""What a stamp costs: the pipeline against the ways in which it is done elsewhere.

The same galaxies and frames, one run, one machine: seconds per galaxy (five bands) on the clock
and of processor, and peak memory. Routes are in routes.py, decompressors in decompressors.py,
packages that can do a part of it in natives.py; docs/performance.md tells what is measured. The
last line is one line of JSON with all figures; the exit status does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import decompressors
import density
import measure
import natives
import numpy as np
import pandas as pd
import report
import routes
import sky
from measure import Cost

from pipeline import run
from pipeline.cutouts import cut_shard, dask_client, read_galaxies
from pipeline.images.cutting import DECODE, Recipe
from pipeline.images.gather import header_from
from pipeline.images.shard import open_shard
from pipeline.run import UserError
from pipeline.survey import archive, footprint
from pipeline.survey.names import BANDS, frame_path

RESULTS = Path(__file__).with_name("results")


class Sky(NamedTuple):
    """What is cut: a table of galaxies, the same as a file, the archive, and the frames needed."""

    galaxies: pd.DataFrame
    table: Path
    root: Path
    frames: list[Path]


def prepare(galaxies: pd.DataFrame, root: Path, folder: Path) -> Sky:
    """Write the table and find the frames that its stamps need and the archive has.

    Raises:
        UserError: a frame of a galaxy's own field is not in the archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "galaxies.parquet"
    galaxies.to_parquet(table, index=False)
    needs = footprint.frames_needed(galaxies, Recipe().stamp.reach, header_from(root))
    frames = []
    for key, members in needs.items():
        path = root / frame_path(*key)
        if path.is_file():
            frames.append(path)
        elif any(need.own for need in members):
            raise UserError(f"{path}: no such frame; leave its galaxies out of the table")
    return Sky(galaxies, table, root, frames)


def ours(what: Sky, workers: int, output: Path) -> Cost:
    """All that `python -m pipeline.cutouts` does once it has started."""
    with dask_client(workers) as client:
        return measure.timed(cut_shard, what.galaxies, what.root, output, Recipe(), client)[1]


def race(what: Sky, fastest: str, repeats: int, folder: Path) -> dict[str, list[Cost]]:
    """The floor and the pipeline with 1 and 2 workers, in turn, `repeats` times."""
    decompress = decompressors.installed()[fastest]
    first = what._replace(galaxies=what.galaxies.head(1))
    ours(first, 1, folder / "warm.h5")  # compiles the kernel, or loads it
    costs: dict[str, list[Cost]] = {"floor": [], "ours": [], "ours-2": []}
    progress = run.Progress("floor and pipeline", repeats, "rounds")
    for _ in range(repeats):
        costs["floor"].append(measure.timed(decompressors.floor, what.frames, decompress)[1])
        costs["ours"].append(ours(what, 1, folder / "ours.h5"))
        costs["ours-2"].append(ours(what, 2, folder / "ours-2.h5"))
        progress.add()
    progress.close()
    return costs


def ratios(above: list[Cost], below: list[Cost]) -> Cost:
    """The median of the ratios of runs that followed each other."""
    return measure.middle(
        [Cost(a.wall / b.wall, a.cpu / b.cpu) for a, b in zip(above, below, strict=True)]
    )


def per_object(what: Sky, names: list[str], count: int, shard: Path) -> dict[str, dict]:
    """The routes that go galaxy by galaxy, in turn on each of the first `count` galaxies.

    Each route's cost, its median difference from the stamps in `shard`, or what it misses.
    """
    found = {name: {"missing": routes.missing(name)} for name in names}
    usable = [name for name in names if not found[name]["missing"]]
    costs: dict[str, list[Cost]] = {name: [] for name in usable}
    differences: dict[str, list[float]] = {name: [] for name in usable}
    progress = run.Progress("per object", count * len(usable), "stamps")
    galaxies = routes.galaxies_of(what.galaxies.head(count))
    for objid, galaxy in zip(what.galaxies["objID"], galaxies, strict=False):
        expected = _stamp_of(shard, objid)
        for name in usable:
            planes, cost = measure.timed(routes.cut_object, name, galaxy, what.root, Recipe().stamp)
            costs[name].append(cost)
            if expected is not None:
                differences[name].append(difference(planes, *expected))
            progress.add()
    progress.close()
    for name in usable:
        known = differences[name]
        found[name]["cost"] = measure.mean(costs[name])
        found[name]["difference"] = measure.median(known) if known else None
    return found


def _stamp_of(shard: Path, objid: int) -> tuple[np.ndarray, np.ndarray] | None:
    """A galaxy's images (5, size, size) and sky noise (5,) in a shard.

    None if it has no stamp there, or if its frames have no noise to compare with.
    """
    with open_shard(shard) as file:
        rows = np.flatnonzero(file["ObjID"][:] == objid)
        if not rows.size or not file["sky_noise"][rows[0]].all():
            return None
        return file["images"][rows[0]], file["sky_noise"][rows[0]]


def difference(planes: np.ndarray, images: np.ndarray, sky_noise: np.ndarray) -> float:
    """rms difference within the outermost ring over the sky noise, the median of the bands."""
    inner = (slice(None), slice(1, -1), slice(1, -1))
    rms = np.sqrt(np.nanmean((planes[inner] - images[inner]) ** 2, axis=(1, 2)))
    return float(np.median(rms / sky_noise))


def native(what: Sky, folder: Path) -> dict[str, Cost | None]:
    """cutana and astrocut on all galaxies; None where one is not installed."""
    usable = [name for name in natives.CUTTERS if natives.installed(name)]
    costs: dict[str, Cost | None] = dict.fromkeys(natives.CUTTERS)
    if not usable:
        return costs
    where = [galaxy.field for galaxy in routes.galaxies_of(what.galaxies)]
    galaxies, stamp = what.galaxies.assign(where=where), Recipe().stamp
    plain = natives.plain_frames(sorted(set(where)), what.root, folder)
    for name in usable:
        natives.cut(name, galaxies.head(1), plain, stamp)  # imports
        cost = measure.timed(natives.cut, name, galaxies, plain, stamp)[1]
        costs[name] = cost.per(len(galaxies))
    return costs


def command(
    table: Path, root: Path, output: Path, workers: int, **environment: str
) -> dict[str, float]:
    """wall_s, cpu_s and peak_mb of `python -m pipeline.cutouts` as a process of its own."""
    return measure.peak(
        *("-m", "pipeline.cutouts", "--galaxies", table, "--archive", root),
        *("--output", output, "--workers", str(workers)),
        **environment,
    )


def start_up(what: Sky, folder: Path) -> dict[str, float]:
    """Seconds before the first frame: imports and Dask; and compiling the kernel, once ever."""
    output = folder / "one.h5"
    one = prepare(what.galaxies.head(1), what.root, folder / "one")
    warm = ours(one, 1, output).wall
    cached = command(one.table, one.root, output, 1)["wall_s"]
    cache = str(folder / "numba")
    anew = command(one.table, one.root, output, 1, NUMBA_CACHE_DIR=cache)["wall_s"]
    return {"start_up_s": cached - warm, "compile_s": anew - cached}


def peaks(what: Sky, names: list[str], folder: Path) -> dict[str, float]:
    """Peak memory [MB] of the pipeline with 1 and 2 workers, and of routes with one galaxy."""
    output = folder / "peak.h5"
    found = {
        name: command(what.table, what.root, output, workers)["peak_mb"]
        for name, workers in (("ours", 1), ("ours-2", 2))
    }
    first = routes.galaxies_of(what.galaxies.head(1))[0]
    for name in names:
        place = (*first.field, first.ra, first.dec)
        found[name] = measure.peak(Path(routes.__file__), name, what.root, *place)["peak_mb"]
    return found


def dense(what: Sky, counts: tuple[int, int], folder: Path) -> dict[str, float]:
    """Peak memory [MB] of the pipeline for few and for many galaxies on the same frames."""
    fields = sorted({galaxy.field for galaxy in routes.galaxies_of(what.galaxies)})
    found = {}
    for count in counts:
        table, output = folder / f"{count}.parquet", folder / "dense.h5"
        sky.scattered(fields, what.root, count).to_parquet(table)
        run.log.info("peak memory: %d galaxies on %d fields", count, len(fields))
        found[str(count)] = command(table, what.root, output, 1)["peak_mb"]
        output.unlink()
    return found


def speeds(what: Sky, args: argparse.Namespace, folder: Path) -> dict:
    """What is timed, by name; costs are of one galaxy, five bands."""
    tools = decompressors.compare(what.frames[: len(BANDS)], args.repeats)
    fastest = min(tools, key=lambda name: tools[name].wall)
    costs = race(what, fastest, args.repeats, folder)
    count = len(what.galaxies)
    slow = min(args.slow_galaxies, count)
    return {
        "slow_galaxies": slow, "repeats": args.repeats,
        "decompressors": tools, "fastest": fastest,
        "cost": {name: measure.middle(each).per(count) for name, each in costs.items()},
        "over_floor": ratios(costs["ours"], costs["floor"]),
        "one_over_two": ratios(costs["ours"], costs["ours-2"]),
        "objects": per_object(what, args.routes, slow, folder / "ours.h5"),
        "natives": native(what, folder / "plain"),
    }  # fmt: skip


def sizes(what: Sky, args: argparse.Namespace, folder: Path) -> dict:
    """What needs processes of its own, by name: peak memory and the time to start."""
    usable = [name for name in args.routes if not routes.missing(name)]
    return {
        "peak_mb": peaks(what, usable, folder),
        "dense_mb": dense(what, args.dense, folder),
        **start_up(what, folder),
    }


def decoding(galaxies: pd.DataFrame, root: Path, args: argparse.Namespace) -> None:
    """Compare ways to decode frames, on the fields of the galaxies."""
    fields = sorted({galaxy.field for galaxy in routes.galaxies_of(galaxies)})
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=args.keep) as folder:
        rows = density.compare(fields, root, args.decode, args.repeats, Path(folder))
        fetched = density.fetch(fields, root, args.repeats, Path(folder))
        memory = density.peaks(fields, root, args.decode, Path(folder)) if args.memory else {}
    paper = density.papers_way(fields, root)
    print(density.table(f"{len(fields)} fields below {root}", paper, rows, memory, fetched))
    figures = {"cores": os.cpu_count(), "fields": len(fields), "paper": paper, "peak_mb": memory}
    figures["fetched"] = {str(count): found._asdict() for count, found in fetched.items()}
    figures["by_count"] = {str(row.per_field): report.bare(row._asdict()) for row in rows}
    print(json.dumps(figures, allow_nan=False))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/cutouts.py", description=__doc__)
    add = parser.add_argument
    add("--galaxies-per-field", type=int, default=5, help="galaxies cut from each field")
    add("--fields", type=int, default=4, help="fields of the simulated survey")
    add("--slow-galaxies", type=int, default=4, help="galaxies for the per-object routes")
    add("--repeats", type=int, default=3, help="rounds of floor, one worker, two workers")
    add("--routes", nargs="*", choices=routes.ROUTES, default=list(routes.ROUTES),
        help="per-object routes to time (default: all)")  # fmt: skip
    add("--memory", action=argparse.BooleanOptionalAction, default=True,
        help="measure peak memory and the time to start as well")  # fmt: skip
    add("--dense", type=int, nargs=2, default=(1000, 4000), metavar=("FEW", "MANY"),
        help="galaxies whose peak memory is compared")  # fmt: skip
    add("--decode", nargs="+", choices=DECODE, metavar="WAY",
        help="compare only frames decoded whole and in blocks, 1 to 8 galaxies each")  # fmt: skip
    add("--archive", help="folder with SAS's layout beneath, instead of the simulated survey")
    add("--galaxies", help="table of galaxies on that archive, as pipeline.cutouts takes it")
    add("--keep", type=Path, default=RESULTS, metavar="FOLDER",
        help="where the simulated survey is kept (default: benchmarks/results)")  # fmt: skip
    args = parser.parse_args(argv)
    for name in ("galaxies_per_field", "fields", "slow_galaxies", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: give 1 or more")
    if min(args.dense) < 1:
        raise UserError(f"--dense {min(args.dense)}: give 1 or more")
    if bool(args.archive) != bool(args.galaxies):
        raise UserError("--archive and --galaxies: give both, or neither for the simulated survey")
    return args


def _choose(args: argparse.Namespace) -> tuple[pd.DataFrame, Path]:
    """The galaxies and the archive asked for."""
    if not args.archive:
        return sky.simulated(args.keep, args.fields, args.galaxies_per_field)
    root = archive.local_root(args.archive)
    if root is None:
        raise UserError(f"--archive {args.archive}: give a folder; downloads are not measured")
    return read_galaxies(args.galaxies), root


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table and one line of JSON."""
    args = _arguments(argv)
    galaxies, root = _choose(args)
    args.keep.mkdir(parents=True, exist_ok=True)
    if args.decode:
        decoding(galaxies, root, args)
        return
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=args.keep) as folder:
        what = prepare(galaxies, root, Path(folder))
        run.log.info("%d galaxies on %d frames", len(galaxies), len(what.frames))
        figures = {"galaxies": len(galaxies), "frames": len(what.frames), "cores": os.cpu_count()}
        figures |= speeds(what, args, Path(folder))
        if args.memory:
            figures |= sizes(what, args, Path(folder))
    print(report.table(figures))
    print(json.dumps(report.plain(figures), allow_nan=False))


if __name__ == "__main__":
    run.start(main)
