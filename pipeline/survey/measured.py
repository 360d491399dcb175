"""What the whole survey would take, at the rates that a part of it was made with.

`measured` takes the rates from the records that the stages of that part left, and `whole`
extrapolates from them to the paper's 1.7 million galaxies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pipeline.run import UserError
from pipeline.survey.estimate import Plan, aligned, digits, size_text, time_text
from pipeline.survey.names import BANDS

SURVEY = {"labelled": 502_977, "unlabelled": 1_194_779}
"""Galaxies of Hayat et al. 2020."""
SURVEY_FRAMES = 938_046 * len(BANDS)
"""All frames of rerun 301 (window_flist.fits): no catalogue needs more."""
CORES = (2, 16, 64)


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
        *aligned([
            *_rates(plan, measured),
            ("frames", f"{frames:,.0f}", f"{plan.frames / plan.galaxies:.3g} a galaxy{bound}"),
            ("to fetch", f"{size / 1e12:.2f} TB", f"{time_text(download)} at {digits(rate)} MB/s"),
            ("stamps", size_text(plan.stamp_bytes / plan.galaxies * galaxies), "to keep"),
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
        size = size_text(fetched.bytes_per_file)
        how = f"measured: {fetched.files:,} files of {size} in {fetched.records:,} shards"
        speed = fetched.mb_per_second
    rows = [("fetching", f"{digits(speed)} MB/s", how)]
    seconds, how = plan.seconds_per_frame, "a frame and core, assumed: no record of cutouts"
    if cut:
        seconds = cut.seconds_per_galaxy
        how = f"a galaxy and core, measured: {cut.galaxies:,} in {cut.records:,} shards"
    rows.append(("cutting", f"{digits(seconds)} s", how))
    if measured.skipped:
        rows.append(("skipped", f"{measured.skipped:,}", "records that tell nothing of it"))
    return rows


def _limits(cores: int, cutting: float, download: float) -> str:
    """A line of the table: the longer one counts where fetching and cutting go on side by side.

    The rules take a core for a fetch and two for a cutting.
    """
    both = max(cutting, download)
    limit = "the cores" if cutting > download else "the line"
    if cores < 3:
        both, limit = cutting + download, "taking turns"
    cells = "".join(f"{time_text(hours):>12}" for hours in (cutting, download, both))
    return f"{cores:>7}{cells}  {limit}"
