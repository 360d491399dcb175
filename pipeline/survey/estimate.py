"""What a catalogue will take, before anything is fetched: frames, bytes, hours, room on the disk.

`plan` counts, by the footprint's own rule, the frames that the stamps of a catalogue need; `lines`
and `as_json` tell it, and `check_room` refuses what a disk has no room for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.run import UserError
from pipeline.survey import footprint
from pipeline.survey.names import BANDS

FRAME_BYTES = (2.9e6, 3.4e6, 3.8e6)
"""Least, mean and most of a frame as bzip2. The range is that of 20 frames of seven runs, the mean
that of twelve (3.39 MB); SAS's whole tree has 3.6 MB a frame, with its JPEGs."""
MASK_BYTES = (0.05e6, 0.1e6, 0.15e6)
"""The same of an fpM file as gzip: the five of field 2583-2-0136, where M2 fills half of it."""
ROW_BYTES = 250
"""What a shard holds of a galaxy beside its pixels: numbers, and its place in the file's index."""
HELPDESK_BYTES = 1e12
"""SDSS asks those who fetch more than 1 TB to write to its helpdesk first."""
PILOT_BYTES = 0.1e12
"""From here on a pilot is worth its while."""
MOST_STREAMS = 5
"""SDSS's own client (sdss_access) opens no more at a time."""
_SPARE = 1.2
"""Frames of more shards than these, over those of these: more lie at the border of two."""
_PLACE = ("shard", "run", "camcol", "field")


class Plan(NamedTuple):
    """What a catalogue will take. `least` and `most` differ from the expected number where the
    catalogue has no rowc, and, of bytes, because frames compress differently.

    A neighbouring frame beyond the end of a run is counted although the archive does not have it.
    `frames_cut` are summed over shards: one that two shards need is decompressed twice. The frames
    of `window` shards take `window_bytes`, they and the cache together at most `disk_bytes`: what
    both hold is there once, as hard links; `disk_bytes_most`, were all frames of the largest kind.
    `stamp_bytes` is what the shards of stamps keep.
    """

    catalog: str
    galaxies: int
    galaxies_without_rowc: int
    shards: int
    fields: int
    frames: int
    frames_least: int
    frames_most: int
    frames_of_own_fields: int
    frames_cut: int
    files: int
    mask: bool
    bytes: int
    bytes_least: int
    bytes_most: int
    mb_per_second: float
    streams: int
    download_hours: float
    seconds_per_frame: float
    cores: int
    cutting_hours: float
    largest_shard: int
    largest_shard_frames: int
    largest_shard_bytes: int
    window: int
    window_bytes: int
    cache_bytes: int
    disk_bytes: int
    disk_bytes_most: int
    disk_gb: float | None
    stamp_bytes: int


def plan(
    catalog: str | Path,
    reach: float,
    mask: bool,
    mb_per_second: float,
    streams: int,
    cutting_seconds: float,
    cores: int,
    *,
    window: int = 8,
    cache_gb: float = 50.0,
    size: int = 107,
    pixel_bytes: int = 4,
    disk_gb: float | None = None,
) -> Plan:
    """Count what the stamps of catalog.parquet take, that reach `reach` degrees (half a diagonal).

    `mb_per_second` is that of all `streams` together (10^6 bytes), `cutting_seconds` what one core
    takes to decompress a frame and cut its stamps. `mask` fetches fpM files and keeps a mask plane.
    Of `window` shards the frames may lie on the disk at once, beside a cache of `cache_gb` GB; all
    this must stay below `disk_gb` GB.
    A stamp has five images of `size` x `size` pixels of `pixel_bytes` bytes (8 with variance).

    Raises:
        UserError: no such catalogue, one that lacks columns or galaxies, or a rate that is none; or
            frames that may take more than `disk_gb`, with what would fit.
    """
    _check(mb_per_second, streams, cutting_seconds, cores, window, cache_gb, disk_gb)
    galaxies = _read(catalog)
    needs = footprint.count_frames(galaxies, reach)
    frames, frames_cut = round(needs.expected), float(needs.in_shard.sum())
    largest, cache = int(needs.in_shard.argmax()), cache_gb * 1e9
    per_frame = [frame + mask * extra for frame, extra in zip(FRAME_BYTES, MASK_BYTES, strict=True)]
    in_window = _in_window(needs.in_shard, window) * per_frame[1]
    room = _Room(needs.most_in_shard * per_frame[2], needs.most * per_frame[2], needs.fields)
    if disk_gb is not None:
        room.check(str(catalog), window, cache, disk_gb * 1e9)
    return Plan(
        catalog=str(catalog), galaxies=len(galaxies), galaxies_without_rowc=needs.without_rowc,
        shards=galaxies["shard"].nunique(), fields=needs.fields,
        frames=frames, frames_least=needs.least, frames_most=needs.most,
        frames_of_own_fields=len(BANDS) * needs.fields, frames_cut=round(frames_cut),
        files=frames * (1 + mask), mask=mask, bytes=round(frames * per_frame[1]),
        bytes_least=round(needs.least * per_frame[0]), bytes_most=round(needs.most * per_frame[2]),
        mb_per_second=mb_per_second, streams=streams,
        download_hours=frames * per_frame[1] / (mb_per_second * 1e6) / 3600,
        seconds_per_frame=cutting_seconds, cores=cores,
        cutting_hours=frames_cut * cutting_seconds / cores / 3600,
        largest_shard=largest, largest_shard_frames=round(needs.in_shard[largest]),
        largest_shard_bytes=round(needs.in_shard[largest] * per_frame[1]),
        window=window, window_bytes=round(in_window), cache_bytes=round(cache),
        disk_bytes=round(min(in_window + cache, frames * per_frame[1])),
        disk_bytes_most=math.ceil(room.bound(window, cache)), disk_gb=disk_gb,
        stamp_bytes=len(galaxies) * (len(BANDS) * size**2 * (pixel_bytes + 2 * mask) + ROW_BYTES),
    )  # fmt: skip


def _check(mb_per_second, streams, seconds, cores, window, cache_gb, disk_gb) -> None:
    for flag, value, least in (
        ("--mb-per-second", mb_per_second, 1e-6), ("--seconds-per-frame", seconds, 1e-6),
        ("--streams", streams, 1), ("--cores", cores, 1), ("window", window, 1),
        ("cache-gb", cache_gb, 0), ("--disk-gb", 1 if disk_gb is None else disk_gb, 1e-6),
    ):  # fmt: skip
        if not least <= value < float("inf"):
            raise UserError(f"{flag}: {value}; give a number from {least:g} up")


def _read(catalog: str | Path) -> pd.DataFrame:
    """The columns that tell a galaxy's frames."""
    try:
        names = pq.read_schema(catalog).names
        lacking = [name for name in _PLACE if name not in names]
        if lacking:
            raise UserError(
                f"{catalog}: has no column {', '.join(lacking)}; give the catalogue that the rule "
                "catalog makes (results/catalog.parquet)"
            )
        wanted = [*_PLACE, "rerun", *(f"rowc_{band}" for band in BANDS)]
        table = pq.read_table(catalog, columns=[name for name in wanted if name in names])
    except FileNotFoundError:
        raise UserError(f"{catalog}: no such file; run the rule catalog first") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{catalog}: cannot be read as a catalogue: {reason}") from None
    if not table.num_rows:
        raise UserError(f"{catalog}: has no galaxies; nothing would be fetched")
    for name in {*_PLACE, "rerun"} & set(table.column_names):
        if table[name].null_count:
            raise UserError(
                f"{catalog}: {name} is missing for {table[name].null_count} galaxies; give it, "
                "or a table of fields that tells it (python -m pipeline.catalog --fields)"
            )
    return table.to_pandas()


def _in_window(in_shard: np.ndarray, window: int) -> float:
    """Most frames that lie there at once: a shard waits for the one `window` before it, so that of
    shards whose numbers leave the same remainder there is one at a time.
    """
    return sum(float(in_shard[start::window].max()) for start in range(min(window, len(in_shard))))


class _Room(NamedTuple):
    """The most bytes that the frames of each shard take, and all frames together; how many fields
    there are, of which a shard has at least one.
    """

    in_shard: np.ndarray
    in_all: float
    fields: int

    def bound(self, window: int, cache: float) -> float:
        """The most that fetched frames take at once: of `window` shards, and what of a cache of
        `cache` bytes is of none of them. A part that is being fetched counts as its frame.
        """
        return min(_in_window(self.in_shard, window) + cache, self.in_all)

    def check(self, catalog: str, window: int, cache: float, cap: float) -> None:
        """Refuse a bound above `cap` bytes."""
        bound = self.bound(window, cache)
        if bound > cap:
            raise UserError(
                f"{catalog}: fetched frames may take {size_text(bound)} at once ({window} shards "
                f"in flight: {size_text(_in_window(self.in_shard, window))}, cache: "
                f"{size_text(cache)}), and frames: disk_gb allows {size_text(cap)}; set "
                + self._advice(window, cache, cap)
            )

    def _advice(self, window: int, cache: float, cap: float) -> str:
        ways = []
        narrower = self._widest(window, cache, cap)
        if narrower:
            ways.append(f"frames: window to {narrower}")
        if self.bound(window, 0) <= cap:
            ways.append(f"frames: cache_gb to {self._cache(window, cap)}")
        both = self._widest(window, 0, cap)
        if both and not ways:
            ways.append(f"frames: window to {both} and cache_gb to {self._cache(both, cap)}")
        if not ways:
            shards = int((self.in_shard > 0).sum())
            more = math.ceil(shards * float(self.in_shard.max()) / cap * _SPARE)
            if more > self.fields:
                return f"it higher: {self.fields} fields cannot be cut into shards so small"
            ways.append(f"catalog: shards to {more} or more, window to 1 and cache_gb to 0: no "
                        f"window fits {shards} shards")  # fmt: skip
        return ", or ".join(ways)

    def _widest(self, window: int, cache: float, cap: float) -> int | None:
        """The widest window, up to `window`, that stays below `cap`."""
        fit = (each for each in range(window, 0, -1) if self.bound(each, cache) <= cap)
        return next(fit, None)

    def _cache(self, window: int, cap: float) -> str:
        """GB that are left for the cache, rounded down."""
        return f"{math.floor((cap - self.bound(window, 0)) / 1e6) / 1e3:g}"


def as_json(plan: Plan) -> dict:
    """The plan's figures by name; sizes in bytes."""
    return plan._asdict()


def lines(plan: Plan) -> list[str]:
    """The plan for people: a table, then what to mind."""
    neighbours = plan.frames - plan.frames_of_own_fields
    frames = f"{plan.frames_of_own_fields:,} of these fields, {neighbours:,} only of neighbours"
    if plan.frames_least < plan.frames_most:
        frames += f"; from {plan.frames_least:,} to {plan.frames_most:,}"
    rows = [
        ("galaxies", f"{plan.galaxies:,}", f"in {plan.shards:,} shards"),
        ("fields", f"{plan.fields:,}", f"{plan.galaxies / plan.fields:.1f} galaxies a field"),
        ("frames", f"{plan.frames:,}", frames),
        ("files", f"{plan.files:,}", "frames and fpM masks" if plan.mask else "no fpM masks"),
        ("to fetch", size_text(plan.bytes),
         f"from {size_text(plan.bytes_least)} to {size_text(plan.bytes_most)}"),
        ("download", time_text(plan.download_hours),
         f"at {plan.mb_per_second:g} MB/s, {plan.streams} streams together"),
        ("cutting", time_text(plan.cutting_hours),
         f"on {plan.cores:,} cores at {plan.seconds_per_frame:g} s a frame; "
         f"{plan.frames_cut - plan.frames:,} are two shards'"),
        ("largest shard", size_text(plan.largest_shard_bytes),
         f"shard {plan.largest_shard}: {plan.largest_shard_frames:,} frames"),
        ("on the disk", size_text(plan.disk_bytes),
         f"at most at once: frames of {min(plan.window, plan.shards)} shards, "
         f"{size_text(plan.window_bytes)}, and a cache of up to {size_text(plan.cache_bytes)}"),
        ("were all large", size_text(plan.disk_bytes_most),
         "at most at once; frames: disk_gb "
         + (f"allows {size_text(plan.disk_gb * 1e9)}" if plan.disk_gb else "sets no bound")),
        ("stamps", size_text(plan.stamp_bytes), "to keep; exported, as much again"),
    ]  # fmt: skip
    return [f"{plan.catalog}:", *aligned(rows), *_notes(plan)]


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.galaxies_without_rowc:
        notes.append(
            f"note: {plan.galaxies_without_rowc:,} galaxies have no rowc in some band: which need "
            "a neighbour's frame is told by their frames later, and is an expectation here"
        )
    if plan.streams > MOST_STREAMS:
        notes.append(f"warning: {plan.streams} streams; SDSS's own client opens {MOST_STREAMS}")
    if plan.bytes_most > HELPDESK_BYTES:
        notes.append(
            f"warning: {'' if plan.bytes > HELPDESK_BYTES else 'perhaps '}more than 1 TB: SDSS "
            "asks you to write to its helpdesk (www.sdss.org) before you fetch so much"
        )
    if plan.bytes_most > PILOT_BYTES:
        notes.append(
            "advice: run surveys/pilot.yaml first, and plan again with --measured and its records"
        )
    return notes


def aligned(rows: list[tuple[str, str, str]]) -> list[str]:
    left, right = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"  {name:<{left}}  {value:>{right}}  {text}" for name, value, text in rows]


def size_text(size: float) -> str:
    """Bytes in decimal units, as disks and archives count them."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if size >= factor:
            return f"{digits(size / factor)} {unit}"
    return f"{digits(size / 1e6)} MB"


def digits(value: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def time_text(hours: float) -> str:
    """Hours as days, hours or minutes, whichever reads best."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
