"""Galaxies and frames -> stamps in one HDF5 shard.

Frame by frame: each frame is read and decompressed once, every galaxy on it is cut, the frame is
let go. Dask runs the frames; what a frame gives is written to a scratch file beside the shard,
and the parent puts each galaxy's bands together, in row order, so that memory does not grow with
the number of galaxies and the bytes do not depend on who finished first.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from dask.distributed import Client

from pipeline import run
from pipeline.images import overlap
from pipeline.images.cutting import DECODE, Recipe, Report, Work, cut_frame
from pipeline.images.engines import ENGINES
from pipeline.images.gather import gather, header_from, read_shard
from pipeline.images.shard import SPLITS, ShardWriter
from pipeline.images.stamp import Stamp
from pipeline.images.workers import Outside, outside, threads
from pipeline.run import UserError
from pipeline.survey import archive, footprint, noise, tables
from pipeline.survey.names import BANDS, Field
from pipeline.survey.transfer import Loss


class Made(NamedTuple):
    """A galaxy's stamp: planes (5, size, size), coverage (5,), sky noise (5,) [nMgy/pixel]."""

    row: int
    planes: dict[str, np.ndarray]
    coverage: np.ndarray
    sky_noise: np.ndarray


class Failed(NamedTuple):
    """A galaxy without a stamp, and why."""

    row: int
    reason: str


def make_stamps(
    galaxies: pd.DataFrame,
    root: Path,
    recipe: Recipe,
    client: Client | Outside,
    scratch: Path,
    losses: dict[str, Loss] | None = None,
    label: str = "cutouts",
    tally: Counter | None = None,
) -> Iterator[Made | Failed]:
    """Make the stamps of `galaxies` from the frames below `root`, in the table's order.

    `galaxies` has ra, dec, run, camcol, field and, where known, rerun, rowc_*, gain_* and
    darkVariance_*. `scratch` is a folder that the workers of `client` can write to as well;
    `label` begins the progress lines; `tally` counts frames, those decoded whole, and their bzip2
    blocks. `losses` tells of frames that were fetched which are not
    there, and why; None: of an archive's own folder, where what is not there is absent.

    Raises:
        UserError: a fetched frame is gone, without a loss: not its galaxies' fault.
    """
    fetched, losses = losses is not None, losses or {}
    galaxies = galaxies.reset_index(drop=True)
    needs = footprint.frames_needed(galaxies, recipe.stamp.reach, header_from(root))
    waiting = _Waiting(galaxies, needs, recipe, scratch)
    sky = galaxies[["ra", "dec"]].to_numpy(dtype="float64")
    works = [_work(key, members, sky, galaxies) for key, members in needs.items()]
    progress = run.Progress(label, len(works), "frames")
    for number, report in _in_order(works, root, recipe, losses, client, scratch):
        progress.add()
        if tally is not None and report.blocks:
            whole = report.decoded == report.blocks
            tally.update(frames=1, whole=whole, blocks=report.blocks, decoded=report.decoded)
        if fetched and report.unknown:
            raise UserError(
                f"{root}: {report.problem.partition(':')[0]} was fetched and is gone; has another "
                "job of this shard let its frames go? Run again to go on"
            )
        yield from waiting.take(number, report)
    progress.close()


def _work(key: tuple[Field, str], members: list, sky: np.ndarray, galaxies: pd.DataFrame) -> Work:
    where, band = key
    rows = [need.row for need in members]
    first = galaxies.loc[rows[0]]
    gain, dark = first.get(f"gain_{band}"), first.get(f"darkVariance_{band}")
    if pd.isna(gain) or pd.isna(dark):
        gain = noise.gain(where.run, where.camcol, band)
        dark = noise.dark_variance(where.run, where.camcol, band)
    return Work(where, band, sky[rows], float(gain), float(dark))


def _in_order(works, root, recipe, losses, client, scratch) -> Iterator[tuple[int, Report]]:
    """Run the frames on `client`, a few more at a time than it has threads; results in order.

    Where there are fewer frames than threads, each frame's blocks are decoded by several. Workers
    of an outside scheduler come and go, and the number of frames follows.
    """
    running: deque = deque()
    each = max(1, sum(client.nthreads().values()) // max(len(works), 1))
    for number, work in enumerate(works):
        known = {path: losses[path] for path in work.paths(recipe.mask) if path in losses}
        running.append(
            client.submit(
                cut_frame, work, root, recipe, known, scratch / f"{number}.bin", each, pure=False
            )
        )
        while len(running) > 2 * sum(client.nthreads().values()) + 1:
            yield number - len(running) + 1, running.popleft().result()
    for number in range(len(works) - len(running), len(works)):
        yield number, running.popleft().result()


class _Waiting:
    """Galaxies whose frames are not all done; puts those together that are, in row order."""

    def __init__(self, galaxies: pd.DataFrame, needs: footprint.Needs, recipe: Recipe, scratch):
        self.recipe, self.scratch = recipe, scratch
        self.frames = list(needs)
        self.parts: list[list[tuple[int, int, bool]]] = [[] for _ in range(len(galaxies))]
        self.left = [len(members) for members in needs.values()]
        for number, members in enumerate(needs.values()):
            for position, need in enumerate(members):
                self.parts[need.row].append((number, position, need.own))
        self.reports: dict[int, Report] = {}
        self.next_row = 0

    def take(self, number: int, report: Report) -> Iterator[Made | Failed]:
        self.reports[number] = report
        while self.next_row < len(self.parts):
            parts = self.parts[self.next_row]
            if any(frame_number > number for frame_number, _, _ in parts):
                return
            yield self._assemble(self.next_row, parts)
            self._release(parts)
            self.next_row += 1

    def _release(self, parts) -> None:
        for number, _, _ in parts:
            self.left[number] -= 1
            if self.left[number] == 0:
                (self.scratch / f"{number}.bin").unlink(missing_ok=True)

    def _assemble(self, row: int, parts) -> Made | Failed:
        side = self.recipe.stamp.size
        planes = {
            name: np.zeros((len(BANDS), side, side), dtype=self.recipe.record[name].base)
            for name in ("images", "share", *self.recipe.planes)
        }
        noises = np.full(len(BANDS), np.nan)
        for number, position, own in sorted(parts, key=lambda part: not part[2]):
            report, band = self.reports[number], BANDS.index(self.frames[number][1])
            if report.problem:
                whole = planes["share"][band].min() > 1 - overlap.LEAST_SHARE
                if own or not (report.absent or whole):
                    return Failed(row, report.problem)
                continue
            part = self._part(number, position)
            if own:
                noises[band] = part["sky_noise"]
            _lay(planes, band, part)
        share = planes.pop("share")
        coverage = share.mean(axis=(1, 2), dtype=np.float64)
        centre = share[:, side // 2, side // 2]
        if not centre.all():
            band = BANDS[int(np.argmin(centre))]
            return Failed(row, f"its centre is off the frame, or NaN there, in {band}")
        return Made(row, planes, coverage, noises)

    def _part(self, number: int, position: int) -> np.void:
        """What a frame gives to a stamp."""
        record = self.recipe.record
        with open(self.scratch / f"{number}.bin", "rb") as file:
            file.seek(position * record.itemsize)
            return np.frombuffer(file.read(record.itemsize), dtype=record)[0]


def _lay(planes: dict[str, np.ndarray], band: int, part: np.void) -> None:
    """Lay a frame's part onto the stamp where it covers more than what is there."""
    better = part["share"] > planes["share"][band] + overlap.LEAST_SHARE
    for name in planes:
        planes[name][band][better] = part[name][better]


def dask_client(
    workers: int, scheduler: str | None = None
) -> contextlib.AbstractContextManager[Client | Outside]:
    """A Dask client: of `workers` threads here, or of the scheduler at an address.

    Raises:
        UserError: the scheduler does not answer.
    """
    return outside(scheduler) if scheduler else threads(workers)


def cut_shard(
    galaxies: pd.DataFrame,
    root: Path,
    output: Path,
    recipe: Recipe,
    client: Client | Outside,
    dtype: str = "float32",
    losses: dict[str, Loss] | None = None,
    keep_empty: bool = True,
    tally: Counter | None = None,
) -> tuple[int, int]:
    """Make the stamps of `galaxies` and write them to the shard `output`, whole.

    `losses` and `tally` are as in `make_stamps`.

    Returns:
        The number of stamps and of galaxies without one.

    Raises:
        UserError: no galaxy has a stamp, unless such a shard is to be kept (`keep_empty`).
    """
    attrs = {"engine": recipe.engine, "conserve_flux": recipe.conserve_flux}
    attrs["units"] = "nanomaggy / " + ("stamp pixel" if recipe.conserve_flux else "frame pixel")
    label = f"cutouts {output.stem}"
    with _scratch_folder(output) as scratch, run.whole_file(output) as part:
        with ShardWriter(part, galaxies, recipe.stamp, dtype, recipe.planes, attrs) as writer:
            made = make_stamps(galaxies, root, recipe, client, scratch, losses, label, tally)
            for result in made:
                if isinstance(result, Failed):
                    writer.fail(*result)
                else:
                    writer.append(*result)
        if not writer.kept and not keep_empty:
            reason, count = Counter(reason for _, reason in writer.failures).most_common(1)[0]
            raise UserError(
                f"none of {len(galaxies)} galaxies has a stamp; {count} of them: {reason}"
            )
    return len(writer.kept), len(writer.failures)


@contextlib.contextmanager
def _scratch_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that is this process's own: a job that was given up, and what
    outside workers still write for it, do not meet this one's.
    """
    folder = run.own_name(output.with_name(f"{output.name}.scratch")).absolute()
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _frames_folder(beside: Path | None) -> Iterator[Path]:
    """A folder for fetched frames: this machine's own, or beside a file, as others see it too."""
    place = None
    if beside:
        place = beside.absolute().parent
        place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ugriz-frames-", dir=place) as folder:
        yield Path(folder)


def read_galaxies(path: str | Path, shard: int | None = None) -> pd.DataFrame:
    """The galaxies to cut: a table with ra, dec, run, camcol, field; or one shard of a catalogue.

    Raises:
        UserError: what `tables` refuses; no run, camcol and field; no such shard.
    """
    if shard is None:
        table = tables.read_table(path)
        galaxies = tables.galaxies(table, str(path))
        if "split" in table and set(table["split"]) <= set(SPLITS):
            galaxies["split"] = table["split"].to_numpy()
        missing = [name for name in ("run", "camcol", "field") if name not in galaxies]
        if missing:
            raise UserError(
                f"{path}: has no column {missing[0]}; run, camcol and field name a galaxy's frames "
                "(python -m pipeline.catalog finds them from ra and dec)"
            )
        return galaxies
    return read_shard(path, shard)


def main(argv: list[str] | None = None) -> None:
    """Cut one shard from the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.cutouts", description=__doc__)
    parser.add_argument("--galaxies", required=True, help="table (CSV, FITS, Parquet) of galaxies")
    parser.add_argument("--shard", type=int, help="cut this shard of a catalogue only")
    parser.add_argument("--archive", required=True, help="folder or URL with SAS's layout beneath")
    parser.add_argument(
        "--fetched",
        action="store_true",
        help="the archive is a folder that "
        "`frames fetch` made: what it lacks without a reason is no failure",
    )
    parser.add_argument("--output", required=True, type=Path, help="the shard to write (.h5)")
    parser.add_argument("--engine", choices=ENGINES, default="overlap")
    parser.add_argument("--size", type=int, default=107, help="pixels on a side, odd")
    parser.add_argument("--fov", type=float, default=0.012, help="degrees on a side")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    for name, text in (
        ("conserve-flux", "nanomaggies per stamp pixel, not per frame pixel"),
        ("variance", "add a variance plane: gain and dark variance through the weights"),
        ("mask", "add the fpM mask flags"),
    ):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
    parser.add_argument("--decode", choices=DECODE, default="blocks",
        help="of a frame's bzip2 blocks: those that stamps need (blocks, the default), or all "
        "(whole); the stamps are the same")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="frames at a time")
    parser.add_argument("--scheduler", metavar="ADDRESS",
        help="of a Dask scheduler whose workers, on the same folders, cut instead")  # fmt: skip
    args = parser.parse_args(argv)

    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: give at least one")
    if args.output.is_dir():
        raise UserError(f"--output {args.output}: is a folder; give a file name that ends in .h5")
    recipe = Recipe(
        Stamp(args.size, args.fov), args.engine,
        bool(args.conserve_flux), bool(args.variance), bool(args.mask), args.decode,
    )  # fmt: skip
    galaxies = read_galaxies(args.galaxies, args.shard)
    with contextlib.ExitStack() as stack:
        folder = archive.local_root(args.archive)
        if folder is None:
            folder = stack.enter_context(_frames_folder(args.output if args.scheduler else None))
            roots = [args.archive]
            losses = gather(galaxies, recipe.stamp.reach, roots, folder, recipe.mask)
            archive.write_record(folder, roots, losses)
        folder = folder.absolute()
        roots, losses = archive.read_record(folder, args.fetched)
        client = stack.enter_context(dask_client(args.workers, args.scheduler))
        began, tally = time.monotonic(), Counter()
        made, lost = cut_shard(
            galaxies, folder, args.output, recipe, client, args.dtype, losses,
            keep_empty=args.shard is not None, tally=tally,
        )  # fmt: skip
        workers = sum(client.nthreads().values())
        facts = {
            "archive": roots, "workers": workers, "galaxies": made + lost,
            "frames": sum(1 for _ in folder.rglob("frame-*")),
            "seconds": round(time.monotonic() - began, 3),
            "decoded": dict(tally),
        }  # fmt: skip
    run.log.info("%s: %d stamps, %d galaxies without one", args.output, made, lost)
    run.write_provenance(args.output, **facts)


if __name__ == "__main__":
    run.start(main)
