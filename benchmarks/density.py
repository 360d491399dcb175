"""What a stamp costs by the galaxies on a field, frames decoded whole or block by block."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import decompressors
import measure
import pandas as pd
import routes
import sky
from measure import Cost
from serving import services

from pipeline import run
from pipeline.cutouts import cut_shard, dask_client
from pipeline.images.cutting import Recipe
from pipeline.images.gather import gather
from pipeline.simulation import schema
from pipeline.survey.dr12 import columns
from pipeline.survey.excerpt import SUFFIX
from pipeline.survey.names import BANDS, Field, frame_path
from pipeline.survey.network import Manners

COUNTS = (1, 2, 4, 8)
"""Galaxies a field."""
MANNERS = Manners(requests_per_minute=None)


class Row(NamedTuple):
    """A number of galaxies a field: seconds a galaxy and share of blocks decoded, by way."""

    per_field: int
    galaxies: int
    costs: dict[str, Cost]
    """Of the ways, and of the floor: each frame decompressed by the fastest other program."""
    times: dict[str, float]
    """How many times faster the last way is than the others: the median of the rounds."""
    decoded: dict[str, float]
    whole: dict[str, float]
    """Share of frames of which all blocks were decoded."""


def compare(
    fields: list[Field], root: Path, ways: list[str], draws: int, folder: Path
) -> list[Row]:
    """Cut random galaxies of `fields` in each of `ways`, in turn; `draws` times as many as fit.

    Raises:
        RuntimeError: the ways give different stamps.
    """
    tools = decompressors.installed()
    paths = [root / frame_path(field, band) for field in fields for band in BANDS]
    fastest = tools[_fastest(paths[:3])]
    rows = []
    progress = run.Progress("galaxies a field", draws * len(COUNTS) * len(ways), "shards")
    with dask_client(1) as client:
        for per_field in COUNTS:
            costs: dict[str, list[Cost]] = {way: [] for way in ("floor", *ways)}
            tallies = {way: Counter() for way in ways}
            count = per_field * len(fields)
            for draw in range(draws):
                galaxies = sky.scattered(fields, root, count, seed=draw)
                costs["floor"].append(measure.timed(decompressors.floor, paths, fastest)[1])
                for way in ways if draw % 2 else reversed(ways):
                    output, recipe = folder / f"{way}.h5", Recipe(decode=way)
                    arguments = (galaxies, root, output, recipe, client)
                    if not draw and per_field == COUNTS[0]:
                        cut_shard(*arguments)  # compiles, or loads what was
                    options = {"tally": tallies[way]}
                    cost = measure.timed(lambda a=arguments, o=options: cut_shard(*a, **o))[1]
                    costs[way].append(cost)
                    progress.add()
                for one, two in itertools.pairwise(ways):
                    if (folder / f"{one}.h5").read_bytes() != (folder / f"{two}.h5").read_bytes():
                        raise RuntimeError(f"decoding {one} and {two} gave different stamps")
            each = {way: measure.middle(found).per(count) for way, found in costs.items()}
            rows.append(
                Row(
                    per_field, draws * count, each, _times(costs),
                    {way: _share(tally, "decoded", "blocks") for way, tally in tallies.items()},
                    {way: _share(tally, "whole", "frames") for way, tally in tallies.items()},
                )
            )  # fmt: skip
    progress.close()
    return rows


class Fetched(NamedTuple):
    """What fetching frames in parts took, by the server's own count: share of the bytes of the
    whole files, requests a frame, and the share of frames that came whole.
    """

    bytes: float
    requests: float
    whole: float


def fetch(fields: list[Field], root: Path, draws: int, folder: Path) -> dict[int, Fetched]:
    """Fetch the frames of random galaxies in parts, `draws` times; by galaxies a field.

    Raises:
        RuntimeError: the stamps are not those of whole frames.
    """
    names = {name: pd.DataFrame(columns=list(columns(name))) for name in schema.KEYS}
    empty = {name: schema.conform(rows, name) for name, rows in names.items()}
    schema.write_database(empty, folder / "none.duckdb")
    found = {}
    work = folder / "services"
    with dask_client(1) as client, services(folder / "none.duckdb", root, work) as at:
        for per_field in COUNTS:
            before, sizes, frames, whole = _sent(work), 0, 0, 0
            for draw in range(draws):
                galaxies = sky.scattered(fields, root, per_field * len(fields), seed=draw)
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    here, stamp = Path(place) / "frames", Recipe().stamp
                    losses = gather(galaxies, stamp.reach, [at["sas"]], here, parts=stamp,
                                    cache=Path(place) / "cache", manners=MANNERS)  # fmt: skip
                    came = [path.relative_to(here) for path in here.rglob("frame-*")]
                    frames, whole = (
                        frames + len(came),
                        whole + sum(p.suffix == ".bz2" for p in came),
                    )
                    sizes += sum(
                        (root / str(path).removesuffix(SUFFIX)).stat().st_size for path in came
                    )
                    for where, output in ((here, "parts.h5"), (root, "whole.h5")):
                        told = losses if where == here else None
                        cut_shard(galaxies, where, folder / output, Recipe(), client, losses=told)
                if (folder / "parts.h5").read_bytes() != (folder / "whole.h5").read_bytes():
                    raise RuntimeError("frames in parts gave other stamps than whole ones")
            count, size = (b - a for a, b in zip(before, _sent(work), strict=True))
            found[per_field] = Fetched(size / sizes, count / frames, whole / frames)
    return found


def _sent(work: Path) -> tuple[int, int]:
    """Requests for frames that the server has answered, and bytes sent."""
    log = work / "requests.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    frames = [line["sent"] for line in lines if "/frame-" in line["path"]]
    return len(frames), sum(frames)


def _times(costs: dict[str, list[Cost]]) -> dict[str, float]:
    *others, last = costs
    return {
        way: measure.median([a.wall / b.wall for a, b in zip(costs[way], costs[last], strict=True)])
        for way in others
    }


def _fastest(paths: list[Path]) -> str:
    costs = decompressors.compare(paths, 3)
    return min(costs, key=lambda name: costs[name].wall)


def _share(tally: Counter, part: str, total: str) -> float:
    return tally[part] / tally[total] if tally[total] else 1.0


def papers_way(fields: list[Field], root: Path) -> float | None:
    """Seconds for one galaxy in the paper's way; None where Montage is missing."""
    if routes.missing("paper"):
        return None
    galaxies = sky.scattered(fields, root, len(fields))
    galaxy = routes.galaxies_of(galaxies.head(1))[0]
    return measure.timed(routes.cut_object, "paper", galaxy, root, Recipe().stamp)[1].wall


def peaks(fields: list[Field], root: Path, ways: list[str], folder: Path) -> dict[str, dict]:
    """Peak memory [MB] of the command for each way, by the number of workers."""
    galaxies = folder / "galaxies.parquet"
    sky.scattered(fields, root, 4 * len(fields)).to_parquet(galaxies)
    return {
        way: {
            workers: measure.peak(
                *("-m", "pipeline.cutouts", "--galaxies", galaxies, "--archive", root),
                *("--output", folder / "peak.h5", "--workers", workers, "--decode", way),
            )["peak_mb"]
            for workers in ("1", "2", "4")
        }
        for way in ways
    }


def table(
    name: str,
    paper: float | None,
    rows: list[Row],
    memory: dict[str, dict],
    fetched: dict[int, Fetched],
) -> str:
    """The rows as text, the paper's way first.

    The last columns: how many times faster the last way is, the share of blocks decoded, and of
    frames of which all were.
    """
    lines = [f"{name}: seconds per galaxy, five bands, one worker"]
    ways, others = list(rows[0].costs), list(rows[0].times)
    head = ["a field", "galaxies", *ways, *(f"over {way}" for way in others)]
    lines.append("  ".join(f"{word:>11}" for word in [*head, "decoded", "all blocks"]))
    if paper is not None:
        lines.append(f"{'any':>11}  {1:>11}  {paper:11.3f}  in the paper's way")
    for row in rows:
        words = [row.per_field, row.galaxies, *(f"{row.costs[way].wall:.3f}" for way in ways)]
        words += [f"{row.times[way]:.2f}" for way in others]
        words += [f"{row.decoded[ways[-1]]:.0%}", f"{row.whole[ways[-1]]:.0%}"]
        lines.append("  ".join(f"{word!s:>11}" for word in words))
    for per_field, found in fetched.items():
        lines.append(
            f"fetched in parts, {per_field} a field: {found.bytes:.0%} of the bytes, "
            f"{found.requests:.2f} requests a frame, {found.whole:.0%} of frames whole"
        )
    for way, found in memory.items():
        sizes = ", ".join(f"{mb:.0f} MB with {workers}" for workers, mb in found.items())
        each = (found["4"] - found["1"]) / 3
        lines.append(f"peak memory, {way}: {sizes} workers; {each:.0f} MB for each more")
    return "\n".join(lines)
