"""Models of SDSS as it is seen from here: where its galaxies lie, and what a run takes.

`make_plan` puts galaxies on the fields of catalogue.py: on the primary part of the area only, and
clustered. `simulate` goes through the run from frames to stamps, by given rates.

Snakemake runs a fetch (one thread) and a cutting (two) a shard. A fetch waits for the stamps of the
shard `window` before it, and at most `fetches` go on at a time; jobs together have no more threads
than there are cores. Between two events (a job starts, begins its work, ends) all goes at constant
rates: downloads share the streams, the line, the requests a minute and the cores that check what
came; whoever wants processor time shares the cores evenly. So it is a fluid, and exact as such.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from catalogue import FIELD_REACH, MIN_B, PIXEL, SEED, Plan
from catalogue import make_plan as lay_out
from scipy.signal import lfilter

from pipeline.images.stamp import Stamp
from pipeline.survey import estimate, footprint
from pipeline.survey.names import BANDS

PRIMARY = 14_555 / 31_637
"""The share of the imaged area that is some field's best view: the survey's unique area."""
FIELD_AREA = 2048 * 1361 * PIXEL**2
"""Square degrees of a field without the rows that it shares with the next."""
PARTIAL = 0.2
"""The share of all fields of which a part is primary; an assumption."""
STRETCH = 100
"""Fields (15 deg) over which primary and other stretches of a strip stay alike."""
CLUSTERING = 0.3
"""Variance of the density of galaxies, field by field, over its mean squared; 0 is Poisson's."""
SCALES = {1: 0.4, 4: 0.3, 16: 0.2, 64: 0.1}
"""Length in fields over which the logarithm of the density stays alike -> its share of the
variance. The two long ones are those of a run, all its camera columns together."""

STREAMS, LINE, REQUESTS, CHECKING = "the streams", "the line", "requests a minute", "checking"
CORES, TURNS, CUTTING, STARTING = "the cores", "taking turns", "cutting", "starting jobs"
LIMITS = (STREAMS, LINE, REQUESTS, CHECKING, CORES, TURNS, CUTTING, STARTING)
"""What a moment of the run waits for. The first four bound a download that goes on: what a stream
carries, what the line carries, how often the archive may be asked, the cores that a fetch may use
to check what came. CORES: downloads are slowed by cutting, or by each other's checks, on a busy
machine. TURNS: a download could begin but jobs of cutting have all threads. CUTTING: the window is
full, or all is fetched. STARTING: a job of fetching that has not begun its work."""
TINY = 1e-9


@dataclass(frozen=True)
class Rates:
    """What line, archive and machine do.

    `mb_per_stream` and `mb_per_second` [10^6 bytes/s] of one stream and of all; `latency` [s] from
    asking to the first byte; `requests_per_minute` of all; `cut` and `check` [core-seconds a frame]
    to decompress and cut, and to check one that came; `start_fetch`, `start_cut` [s] of a job
    before its first frame.
    """

    mb_per_stream: float
    cut: float
    check: float
    mb_per_second: float = np.inf
    latency: float = 0.1
    requests_per_minute: float = 600.0
    start_fetch: float = 0.0
    start_cut: float = 0.0


@dataclass(frozen=True)
class Setting:
    """What the run may use: as in config.yaml, the profile and the rules.

    `fetch_cores`: what a fetch may use beside its one thread's core; a cluster that holds jobs to
    what they asked for gives it 1.
    """

    cores: int
    streams: int
    fetches: int = 1
    window: int = 8
    cut_threads: int = 2
    cache_bytes: float = 50e9
    fetch_cores: float = np.inf


@dataclass(frozen=True)
class Shards:
    """Of each shard, (n,) each: frames, their bytes, and the bytes of its stamps."""

    frames: np.ndarray
    frame_bytes: np.ndarray
    stamp_bytes: np.ndarray

    def window_bytes(self, window: int) -> float:
        """Most bytes of frames that `window` shards hold at once: one of each remainder."""
        parts = (self.frame_bytes[first::window] for first in range(window))
        return float(sum(part.max() for part in parts if len(part)))


def shards_of(catalog: Path) -> Shards:
    """The shards as the run has them: frames by the footprint's rule, stamps of all galaxies."""
    names = [*("shard", "run", "rerun", "camcol", "field"), *(f"rowc_{band}" for band in BANDS)]
    galaxies = pq.read_table(catalog, columns=names).to_pandas()
    frames = footprint.count_frames(galaxies, Stamp().reach).in_shard
    number = np.bincount(galaxies["shard"], minlength=len(frames))
    stamp = len(BANDS) * Stamp().size ** 2 * 4 + estimate.ROW_BYTES
    return Shards(frames, frames * estimate.FRAME_BYTES[1], number * stamp)


@dataclass
class Outcome:
    """What came of a run: its length [s], the seconds that each of `LIMITS` took of it, the most
    bytes of frames that lay on the disk at once (shards in flight and cache, hard links once), the
    most shards in flight, the core-seconds of cutting and checking, and all stamps' bytes.
    """

    seconds: float = 0.0
    waited: Counter = field(default_factory=Counter)
    held_bytes: float = 0.0
    in_flight: int = 0
    core_seconds: float = 0.0
    stamp_bytes: float = 0.0

    @property
    def limits(self) -> dict[str, float]:
        """Each of `LIMITS` and its share of the run, the largest first."""
        shares = {name: self.waited[name] / self.seconds for name in LIMITS}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


@dataclass
class Job:
    """A job that runs: seconds until it begins its work, and the work left.

    Files of a fetch, core-seconds of a cutting.
    """

    shard: int
    start: float
    left: float
    whole: float


def supply(rates: Rates, setting: Setting, file_bytes: float) -> tuple[float, str]:
    """Files a second that all downloads together bring on an idle machine, and what bounds them.

    A file takes a stream for its latency and its bytes; while it is checked another has the stream,
    but no more than two files a stream are under way.
    """
    loading = rates.latency + file_bytes / (rates.mb_per_stream * 1e6)
    bounds = {
        STREAMS: min(setting.streams / loading, 2 * setting.streams / (loading + rates.check)),
        LINE: rates.mb_per_second * 1e6 / file_bytes,
        REQUESTS: rates.requests_per_minute / 60,
        CHECKING: min(setting.fetch_cores, setting.cores) / max(rates.check, TINY),
    }
    limit = min(bounds, key=bounds.get)
    return bounds[limit], limit


def simulate(shards: Shards, rates: Rates, setting: Setting) -> Outcome:
    """Go through the run, event by event.

    Raises:
        ValueError: a rate or a number that is not positive, or no shards.
    """
    _check(shards, rates, setting)
    state = _Run(shards, rates, setting)
    while state.cut_shards < len(shards.frames):
        state.start_jobs()
        state.go_on()
    return state.outcome


def as_row(shards: Shards, setting: Setting, came: Outcome) -> dict[str, object]:
    """A run's figures by name: days, cores, GB (10^9 bytes), shares of the time."""
    bound = shards.window_bytes(setting.window) + setting.cache_bytes
    return {
        "cores": setting.cores, "streams": setting.streams, "days": came.seconds / 86400,
        "busy_cores": came.core_seconds / came.seconds, "held_gb": came.held_bytes / 1e9,
        "bound_gb": bound / 1e9, "in_flight": came.in_flight, "stamps_gb": came.stamp_bytes / 1e9,
        "limits": came.limits,
    }  # fmt: skip


def as_table(rows: list[dict], rates: Rates) -> list[str]:
    """Rows (`as_row`) as lines, and the rates that they hold for."""
    lines = [
        f"a frame: {rates.cut:.2f} core-s to cut, {rates.check:.2f} to check; jobs start in "
        f"{rates.start_fetch:.1f} s (fetch), {rates.start_cut:.1f} s (cut); "
        f"{rates.mb_per_stream:g} MB/s a stream, {rates.requests_per_minute:g} requests a minute",
        f"{'cores':>6}{'streams':>9}{'days':>8}{'cores busy':>12}{'frames GB':>11}"
        f"{'at most':>9}{'stamps GB':>11}  what limits, share of the time",
    ]
    for row in rows:
        large = (each for each in row["limits"].items() if each[1] >= 0.05)
        limits = ", ".join(f"{name} {share:.0%}" for name, share in large)
        lines.append(
            f"{row['cores']:6}{row['streams']:9}{row['days']:8.1f}{row['busy_cores']:12.1f}"
            f"{row['held_gb']:11.0f}{row['bound_gb']:9.0f}{row['stamps_gb']:11.0f}"
            f"  {limits}"
        )
    return lines


def of_sky(plan: Plan, share: np.ndarray, shards: Shards) -> list[str]:
    """How the galaxies fall, in words."""
    number = np.diff(plan.first)
    there, whole = number[number > 0], number[share == 1]
    return [
        f"{number.sum():,} galaxies on {len(there):,} of {len(number):,} fields, of which "
        f"{(share > 0).sum():,} are primary, {((share > 0) & (share < 1)).sum():,} in part; "
        f"{number[share > 0].sum() / share.sum():.2f} galaxies a primary field's area",
        f"on a field that is all primary: mean {whole.mean():.2f}, variance {whole.var():.2f}, "
        f"none on {np.mean(whole == 0):.1%}, at most {whole.max()}",
        f"{len(shards.frames):,} shards: {shards.frames.sum():,.0f} frames, "
        f"{shards.frame_bytes.sum() / 1e12:.2f} TB; in a shard {shards.frames.min():,.0f} to "
        f"{shards.frames.max():,.0f}",
    ]


def _check(shards: Shards, rates: Rates, setting: Setting) -> None:
    least = (rates.mb_per_stream, rates.mb_per_second, rates.requests_per_minute, rates.cut,
             setting.cores, setting.streams, setting.fetches, setting.window, setting.cut_threads,
             setting.fetch_cores)  # fmt: skip
    others = (rates.latency, rates.check, rates.start_fetch, rates.start_cut, setting.cache_bytes)
    if not (min(least) > 0 and min(others) >= 0 and len(shards.frames)):
        raise ValueError(f"no run can be modelled of {rates}, {setting}")


class _Run:
    """Where a run is."""

    def __init__(self, shards: Shards, rates: Rates, setting: Setting):
        self.shards, self.rates, self.setting = shards, rates, setting
        self.threads = min(setting.cut_threads, setting.cores)  # Snakemake lowers a job's to these
        self.fetching: list[Job] = []
        self.cutting: list[Job] = []
        self.ready: list[int] = []
        self.next_fetch = self.cut_shards = 0
        self.is_cut = np.zeros(len(shards.frames), bool)
        self.held: dict[int, float] = {}
        """Bytes of the frames of shards in flight."""
        self.cached: dict[int, float] = {}
        """Bytes of each shard in the cache; hard links of `held` as far as both have them."""
        self.outcome = Outcome()

    def free(self) -> int:
        """Threads that no job has."""
        return self.setting.cores - len(self.fetching) - self.threads * len(self.cutting)

    def window_is_full(self) -> bool:
        """Whether the next fetch waits for earlier stamps."""
        earlier = self.next_fetch - self.setting.window
        return earlier >= 0 and not self.is_cut[earlier]

    def start_jobs(self) -> None:
        """Start what can be: cutting first, which frees the disk."""
        while self.ready and self.free() >= self.threads:
            shard = self.ready.pop(0)
            work = float(self.shards.frames[shard] * self.rates.cut)
            self.cutting.append(Job(shard, self.rates.start_cut, work, work))
        while self.may_fetch() and self.free() >= 1:
            files = float(self.shards.frames[self.next_fetch])
            self.fetching.append(Job(self.next_fetch, self.rates.start_fetch, files, files))
            self.next_fetch += 1
        flying = len(self.fetching) + len(self.ready) + len(self.cutting)
        self.outcome.in_flight = max(self.outcome.in_flight, flying)

    def may_fetch(self) -> bool:
        """Whether a shard is left to fetch that need not wait for stamps or another fetch."""
        left = self.next_fetch < len(self.shards.frames)
        return left and len(self.fetching) < self.setting.fetches and not self.window_is_full()

    def go_on(self) -> None:
        """Until the next event."""
        loading = [job for job in self.fetching if not job.start]
        cutting = [job for job in self.cutting if not job.start]
        files, core, limit = self.rates_now(loading, cutting)
        times = [job.start for job in (*self.fetching, *self.cutting) if job.start]
        times += [job.left / files for job in loading] + [job.left / core for job in cutting]
        step = min(times)
        self.outcome.seconds += step
        self.outcome.waited[limit] += step
        used = files * len(loading) * self.rates.check + core * len(cutting)
        self.outcome.core_seconds += step * used
        for job in (*self.fetching, *self.cutting):
            if job.start:
                job.start = job.start - step if job.start > step * (1 + TINY) else 0.0
        for jobs, rate in ((loading, files), (cutting, core)):
            for job in jobs:
                job.left = job.left - rate * step if job.left > rate * step * (1 + TINY) else 0.0
        self.note_bytes(loading)
        self.end_jobs()

    def rates_now(self, loading: list[Job], cutting: list[Job]) -> tuple[float, float, str]:
        """Files a second of each fetch, cores of each cutting, and what the run waits for."""
        files, limit = 0.0, CUTTING
        if loading:
            frames = sum(self.shards.frames[job.shard] for job in loading)
            size = sum(self.shards.frame_bytes[job.shard] for job in loading) / frames
            files, limit = supply(self.rates, self.setting, size)
        elif self.fetching:
            limit = STARTING
        elif self.may_fetch():
            limit = TURNS
        wanted = files * self.rates.check + self.threads * len(cutting)
        share = min(1.0, self.setting.cores / max(wanted, TINY))
        if loading and share < 1:
            limit = CORES
        return files * share / max(len(loading), 1), self.threads * share, limit

    def note_bytes(self, loading: list[Job]) -> None:
        """What lies on the disk now."""
        for job in loading:
            came = 1 - job.left / job.whole
            self.held[job.shard] = self.cached[job.shard] = (
                came * self.shards.frame_bytes[job.shard]
            )
        each = {*self.held, *self.cached}
        held = sum(max(self.held.get(one, 0), self.cached.get(one, 0)) for one in each)
        self.outcome.held_bytes = max(self.outcome.held_bytes, held)

    def end_jobs(self) -> None:
        """End what has no work left."""
        for job in [job for job in self.fetching if not job.start and not job.left]:
            self.fetching.remove(job)
            self.ready.append(job.shard)
            self.trim()
        for job in [job for job in self.cutting if not job.start and not job.left]:
            self.cutting.remove(job)
            del self.held[job.shard]  # temp(): its folder goes, the cache keeps what it has
            self.is_cut[job.shard] = True
            self.cut_shards += 1
            self.outcome.stamp_bytes += float(self.shards.stamp_bytes[job.shard])
        self.ready.sort()

    def trim(self) -> None:
        """As the cache is at the end of a fetch: what has lain longest goes first."""
        excess = sum(self.cached.values()) - self.setting.cache_bytes
        for shard in sorted(self.cached):
            if excess <= 0:
                return
            gone = min(excess, self.cached[shard])
            excess -= gone
            self.cached[shard] -= gone
            if self.cached[shard] <= 0:
                del self.cached[shard]


def smooth(random: np.random.Generator, groups: np.ndarray, length: float) -> np.ndarray:
    """A normal number for each field, alike over `length` fields within a group (strip or run).

    `groups` (n,) is sorted. Autoregressive of first order: the correlation falls by e in `length`.
    """
    keep = np.exp(-1 / length)
    values = random.normal(size=len(groups))
    edges = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1], True])
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        part = values[start:stop]
        part[1:] *= np.sqrt(1 - keep**2)
        values[start:stop] = lfilter([1.0], [1.0, -keep], part)
    return values


def primary_share(plan: Plan, partial: float = PARTIAL) -> np.ndarray:
    """The share of each field that is primary, (fields,): in stretches, none near the plane.

    All sum up to `PRIMARY` of the fields; `partial` of them are primary in part.
    """
    strip = plan.run * 10 + plan.camcol
    order = smooth(np.random.default_rng([SEED, 1]), strip, STRETCH)
    order[plan.latitude() <= MIN_B + FIELD_REACH] = -np.inf
    place = np.empty(len(order))
    place[np.argsort(-order, kind="stable")] = np.arange(len(order)) + 0.5
    part = max(partial * len(order), 1.0)
    return np.clip((PRIMARY * len(order) + part / 2 - place) / part, 0, 1)


def density(plan: Plan, variance: float = CLUSTERING) -> np.ndarray:
    """The density of galaxies on each field, (fields,), of mean 1: log-normal, clustered."""
    random = np.random.default_rng([SEED, 2])
    strip, sigma = plan.run * 10 + plan.camcol, np.sqrt(np.log1p(variance))
    number = plan.field - plan.field.min()
    logarithm = np.zeros(len(strip))
    for length, share in SCALES.items():
        if length < 10:
            values = smooth(random, strip, length)
        else:  # one row a run, as long as its longest strip
            span = number.max() + 1
            runs, row = np.unique(plan.run, return_inverse=True)
            of_run = smooth(random, np.repeat(runs, span), length)
            values = of_run[row * span + number]
        logarithm += np.sqrt(share) * values
    return np.exp(sigma * logarithm - sigma**2 / 2)


def make_plan(galaxies: int, clustering: float, partial: float) -> Plan:
    """The fields of catalogue.py, with galaxies as the primary area has them."""

    def weigh(plan: Plan) -> np.ndarray:
        return primary_share(plan, partial) * density(plan, clustering)

    return lay_out(galaxies, weigh)
