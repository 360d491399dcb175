"""What a stamp costs by the galaxies on a field, frames decoded whole or block by block."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import decompressors
import measure
import routes
import sky
from measure import Cost

from pipeline import run
from pipeline.cutouts import cut_shard, dask_client
from pipeline.images.cutting import Recipe
from pipeline.survey.names import BANDS, Field, frame_path

COUNTS = (1, 2, 4, 8)
"""Galaxies a field."""


class Row(NamedTuple):
    """A number of galaxies a field: seconds a galaxy and share of blocks decoded, by way."""

    per_field: int
    galaxies: int
    floor: Cost
    costs: dict[str, Cost]
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
                    per_field, draws * count, each.pop("floor"), each,
                    {way: _share(tally, "decoded", "blocks") for way, tally in tallies.items()},
                    {way: _share(tally, "whole", "frames") for way, tally in tallies.items()},
                )
            )  # fmt: skip
    progress.close()
    return rows


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


def table(name: str, paper: float | None, rows: list[Row]) -> str:
    """The rows as text, the paper's way first. How many times faster the last way is than the floor
    (frames decompressed by the fastest other program, and nothing else) and than the first way.
    """
    lines = [f"{name}: seconds per galaxy, five bands, one worker"]
    head = ["a field", "galaxies", "floor"]
    ways = list(rows[0].costs)
    head += [*ways, "over floor", f"over {ways[0]}", "blocks decoded", "frames whole"]
    lines.append("  ".join(f"{word:>14}" for word in head))
    if paper is not None:
        lines.append(f"{'any':>14}  {1:>14}  {'':>14}  {paper:14.3f}  the paper's way")
    for row in rows:
        walls = [row.costs[way].wall for way in ways]
        words = [row.per_field, row.galaxies, f"{row.floor.wall:.3f}"]
        words += [f"{wall:.3f}" for wall in walls]
        words += [f"{row.floor.wall / walls[-1]:.2f}", f"{walls[0] / walls[-1]:.2f}"]
        words += [f"{row.decoded[ways[-1]]:.0%}", f"{row.whole[ways[-1]]:.0%}"]
        lines.append("  ".join(f"{word!s:>14}" for word in words))
    return "\n".join(lines)
