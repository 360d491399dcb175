"""What a catalogue will take, before anything is fetched: frames, bytes, hours, room on the disk.

`plan` counts, by the footprint's own rule, the frames that the stamps of a catalogue need; `lines`
and `as_json` tell it. `measured` takes the rates of a part that was made from the records that its
stages left, and `whole` extrapolates from them to the paper's 1.7 million galaxies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
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
SURVEY = {"labelled": 502_977, "unlabelled": 1_194_779}
"""Galaxies of Hayat et al. 2020."""
SURVEY_FRAMES = 938_046 * len(BANDS)
"""All frames of rerun 301 (window_flist.fits): no catalogue needs more."""
CORES = (2, 16, 64)
_PLACE = ("shard", "run", "camcol", "field")


class Plan(NamedTuple):
    """What a catalogue will take. `least` and `most` differ from the expected number where the
    catalogue has no rowc, and, of bytes, because frames compress differently.

    A neighbouring frame beyond the end of a run is counted although the archive does not have it.
    `frames_cut` are summed over shards: one that two shards need is decompressed twice. The frames
    of `window` shards take at most `window_bytes`, they and the cache together `disk_bytes`: what
    both hold is there once, as hard links. `stamp_bytes` is what the shards of stamps keep.
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
) -> Plan:
    """Count what the stamps of catalog.parquet take, that reach `reach` degrees (half a diagonal).

    `mb_per_second` is that of all `streams` together (10^6 bytes), `cutting_seconds` what one core
    takes to decompress a frame and cut its stamps. `mask` fetches fpM files and keeps a mask plane.
    Of `window` shards the frames may lie on the disk at once, beside a cache of `cache_gb` GB.
    A stamp has five images of `size` x `size` pixels of `pixel_bytes` bytes (8 with variance).

    Raises:
        UserError: no such catalogue, one that lacks columns or galaxies, or a rate that is none.
    """
    _check(mb_per_second, streams, cutting_seconds, cores, window, cache_gb)
    galaxies = _read(catalog)
    needs = footprint.count_frames(galaxies, reach)
    frames, frames_cut = round(needs.expected), float(needs.in_shard.sum())
    largest, cache = int(needs.in_shard.argmax()), cache_gb * 1e9
    per_frame = [frame + mask * extra for frame, extra in zip(FRAME_BYTES, MASK_BYTES, strict=True)]
    in_window = _in_window(needs.in_shard, window) * per_frame[1]
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
        stamp_bytes=len(galaxies) * (len(BANDS) * size**2 * (pixel_bytes + 2 * mask) + ROW_BYTES),
    )  # fmt: skip


def _check(mb_per_second, streams, seconds, cores, window, cache_gb) -> None:
    for flag, value, least in (
        ("--mb-per-second", mb_per_second, 1e-6), ("--seconds-per-frame", seconds, 1e-6),
        ("--streams", streams, 1), ("--cores", cores, 1), ("window", window, 1),
        ("cache-gb", cache_gb, 0),
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
        ("to fetch", _size(plan.bytes),
         f"from {_size(plan.bytes_least)} to {_size(plan.bytes_most)}"),
        ("download", _time(plan.download_hours),
         f"at {plan.mb_per_second:g} MB/s, {plan.streams} streams together"),
        ("cutting", _time(plan.cutting_hours),
         f"on {plan.cores:,} cores at {plan.seconds_per_frame:g} s a frame; "
         f"{plan.frames_cut - plan.frames:,} are two shards'"),
        ("largest shard", _size(plan.largest_shard_bytes),
         f"shard {plan.largest_shard}: {plan.largest_shard_frames:,} frames"),
        ("on the disk", _size(plan.disk_bytes),
         f"at most at once: frames of {min(plan.window, plan.shards)} shards, "
         f"{_size(plan.window_bytes)}, and a cache of up to {_size(plan.cache_bytes)}"),
        ("stamps", _size(plan.stamp_bytes), "to keep; exported, as much again"),
    ]  # fmt: skip
    return [f"{plan.catalog}:", *_aligned(rows), *_notes(plan)]


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


class Fetched(NamedTuple):
    """What the fetching of some shards took; `seconds` while any of them was being fetched."""

    records: int
    files: int
    bytes: int
    seconds: float

    @property
    def mb_per_second(self) -> float:
        return self.bytes / 1e6 / self.seconds

    @property
    def bytes_per_file(self) -> float:
        return self.bytes / self.files


class Cut(NamedTuple):
    """What the cutting of some shards took; `core_seconds` are seconds times workers."""

    records: int
    galaxies: int
    core_seconds: float

    @property
    def seconds_per_galaxy(self) -> float:
        return self.core_seconds / self.galaxies


class Measured(NamedTuple):
    """What records tell: None of what none tells; `skipped` records tell nothing."""

    fetched: Fetched | None
    cut: Cut | None
    skipped: int


def measured(records: Iterable[Path]) -> Measured:
    """Sum up `*.provenance.json` of results/frames and results/cutouts.

    A record that lacks keys, or of a shard for which nothing was fetched or cut, is skipped.

    Raises:
        UserError: no record tells anything, or a file cannot be read.
    """
    found = [_read_record(Path(path)) for path in records]
    fetched = [each for each in found if _positive(each, "files", "bytes", "seconds")]
    cut = [each for each in found if _positive(each, "galaxies", "seconds", "workers")]
    if not fetched and not cut:
        raise UserError(
            f"--measured: none of {len(found)} records tells what fetching or cutting took; run "
            "snakemake --configfile surveys/pilot.yaml first, and give its "
            "results/frames/*.provenance.json and results/cutouts/*.provenance.json"
        )
    skipped = len(found) - len(fetched) - len(cut)
    return Measured(_sum_fetched(fetched), _sum_cut(cut), skipped)


def _read_record(path: Path) -> dict:
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"--measured {path}: no such file; it is made with a shard") from None
    except OSError as error:
        raise UserError(f"--measured {path}: cannot be read ({error.strerror})") from None
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _positive(record: dict, *keys: str) -> bool:
    values = [record.get(key) for key in keys]
    return all(isinstance(value, int | float) and 0 < value < float("inf") for value in values)


def _sum_fetched(records: list[dict]) -> Fetched | None:
    files, size = (sum(record[key] for record in records) for key in ("files", "bytes"))
    return Fetched(len(records), files, size, _busy_seconds(records)) if records else None


def _sum_cut(records: list[dict]) -> Cut | None:
    seconds = sum(record["seconds"] * record["workers"] for record in records)
    galaxies = sum(record["galaxies"] for record in records)
    return Cut(len(records), galaxies, seconds) if records else None


def _busy_seconds(records: list[dict]) -> float:
    """Seconds in which at least one shard was being fetched: several may share the bandwidth."""
    in_all = sum(record["seconds"] for record in records)
    try:
        ends = [datetime.fromisoformat(record["written"]).timestamp() for record in records]
    except (KeyError, TypeError, ValueError):
        return in_all
    busy, until = 0.0, float("-inf")
    spans = ((end - record["seconds"], end + 1)  # `written` is cut to whole seconds
             for end, record in zip(ends, records, strict=True))  # fmt: skip
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return min(busy, in_all)


def whole(plan: Plan, measured: Measured) -> list[str]:
    """What the paper's galaxies would take, by the frames a galaxy of `plan` and measured rates.

    What was not measured is taken from `plan`, and said to be.
    """
    galaxies = sum(SURVEY.values())
    unbounded = plan.frames / plan.galaxies * galaxies
    frames = min(unbounded, SURVEY_FRAMES)
    files = frames * plan.files / plan.frames
    rate, per_file = plan.mb_per_second, plan.bytes / plan.files
    if measured.fetched:
        rate, per_file = measured.fetched.mb_per_second, measured.fetched.bytes_per_file
    size = files * per_file
    download = size / (rate * 1e6) / 3600
    of_plan = plan.frames_cut * plan.seconds_per_frame / plan.galaxies
    per_galaxy = measured.cut.seconds_per_galaxy if measured.cut else of_plan
    core_hours = per_galaxy * galaxies * frames / unbounded / 3600
    bound = ", all of the survey's" if frames < unbounded else ""
    return [
        f"the whole survey, {galaxies:,} galaxies ({SURVEY['labelled']:,} labelled and "
        f"{SURVEY['unlabelled']:,} unlabelled, Hayat et al. 2020):",
        *_aligned([
            *_rates(plan, measured),
            ("frames", f"{frames:,.0f}", f"{plan.frames / plan.galaxies:.3g} a galaxy{bound}"),
            ("to fetch", f"{size / 1e12:.2f} TB", f"{_time(download)} at {_digits(rate)} MB/s"),
            ("stamps", _size(plan.stamp_bytes / plan.galaxies * galaxies), "to keep"),
        ]),
        "  cores     cutting    download        both  what limits",
        *(_limits(cores, core_hours / cores, download) for cores in CORES),
        "This extrapolates from this stretch of sky, this machine and line: it holds as far as "
        "the rest has as many galaxies a field, frames that compress as well, and as quick a line.",
    ]  # fmt: skip


def _rates(plan: Plan, measured: Measured) -> list[tuple[str, str, str]]:
    fetched, cut = measured.fetched, measured.cut
    speed, how = plan.mb_per_second, "assumed: no record of frames"
    if fetched:
        size = _size(fetched.bytes_per_file)
        how = f"measured: {fetched.files:,} files of {size} in {fetched.records:,} shards"
        speed = fetched.mb_per_second
    rows = [("fetching", f"{_digits(speed)} MB/s", how)]
    seconds, how = plan.seconds_per_frame, "a frame and core, assumed: no record of cutouts"
    if cut:
        seconds = cut.seconds_per_galaxy
        how = f"a galaxy and core, measured: {cut.galaxies:,} in {cut.records:,} shards"
    rows.append(("cutting", f"{_digits(seconds)} s", how))
    if measured.skipped:
        rows.append(("skipped", f"{measured.skipped:,}", "records that tell nothing of it"))
    return rows


def _limits(cores: int, cutting: float, download: float) -> str:
    """A line of the table; fetching and cutting go on side by side, so the longer one counts."""
    both = max(cutting, download)
    limit = "the cores" if cutting > download else "the line"
    cells = "".join(f"{_time(hours):>12}" for hours in (cutting, download, both))
    return f"{cores:>7}{cells}  {limit}"


def _aligned(rows: list[tuple[str, str, str]]) -> list[str]:
    left, right = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"  {name:<{left}}  {value:>{right}}  {text}" for name, value, text in rows]


def _size(size: float) -> str:
    """Bytes in decimal units, as disks and archives count them."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if size >= factor:
            return f"{_digits(size / factor)} {unit}"
    return f"{_digits(size / 1e6)} MB"


def _digits(value: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(hours: float) -> str:
    """Hours as days, hours or minutes, whichever reads best."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
