"""What a catalogue will take: against the footprint itself, and against sums done by hand."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.images.shard import ShardWriter
from pipeline.images.stamp import Stamp
from pipeline.run import UserError
from pipeline.survey import estimate, footprint, measured
from pipeline.survey.names import BANDS

STAMP = Stamp()
ROWC = [f"rowc_{band}" for band in BANDS]
EDGES = (0.5, 79.7, 79.8, 80.7, 80.8, 744.0, 1408.2, 1408.3, 1408.8, 1409.2, 1488.5)


def galaxies(rows) -> pd.DataFrame:
    """A table of (run, rerun, camcol, field, shard, rowc in r); the bands are shifted as SDSS's."""
    names = ["run", "rerun", "camcol", "field", "shard"]
    table = pd.DataFrame([row[:5] for row in rows], columns=names).astype("int32")
    for band, shift in zip(BANDS, (6.2, 11.0, 0.0, 3.0, 6.6), strict=True):
        table[f"rowc_{band}"] = np.array([row[5] + shift for row in rows], dtype="float32")
    return table.assign(ra=10.0, dec=0.0)


def no_header(field, band):
    raise AssertionError("the header was asked for")


def named(table, reach) -> tuple[int, list[int]]:
    """How many frames `footprint.frames_needed` names, over all and shard by shard."""
    each = [
        len(footprint.frames_needed(table[table["shard"] == shard], reach, no_header))
        for shard in range(table["shard"].max() + 1)
    ]
    return len(footprint.frames_needed(table, reach, no_header)), each


galaxy = st.tuples(
    st.sampled_from([94, 95, 8162]), st.sampled_from([301, 157]), st.integers(1, 6),
    st.sampled_from([0, 1, 2, 3, 11, 12, 800]), st.integers(0, 3),
    st.one_of(st.sampled_from(EDGES), st.floats(0, 1489)),
)  # fmt: skip


@given(st.lists(galaxy, min_size=1, max_size=30), st.sampled_from([0.0, 0.004, STAMP.reach, 0.1]))
@example([(94, 301, 1, 0, 0, 5.0), (94, 301, 1, 0, 1, 1480.0), (94, 157, 1, 1, 1, 5.0)], 0.1)
@settings(max_examples=100, deadline=None)
def test_counts_are_those_of_the_frames_that_the_footprint_names(rows, reach):
    table = galaxies(rows)
    counted = footprint.count_frames(table, reach)
    over_all, each = named(table, reach)
    assert counted.least == counted.most == over_all
    assert counted.expected == pytest.approx(over_all)
    np.testing.assert_allclose(counted.in_shard, each)
    assert counted.without_rowc == 0
    assert counted.fields == len(table[["run", "rerun", "camcol", "field"]].drop_duplicates())


@given(st.lists(galaxy, min_size=1, max_size=20), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_where_rowc_is_missing_the_truth_lies_between_the_bounds(rows, data):
    table = galaxies(rows)
    truth, _ = named(table, STAMP.reach)
    hidden = table.copy()
    lost = data.draw(st.sets(st.integers(0, len(rows) - 1)))
    hidden.loc[sorted(lost), ROWC] = data.draw(st.sampled_from([np.nan, -9999.0]))
    counted = footprint.count_frames(hidden, STAMP.reach)
    assert counted.least <= truth <= counted.most
    assert counted.least <= counted.expected <= counted.most
    assert counted.without_rowc == len(lost)
    without = footprint.count_frames(table.drop(columns=ROWC), STAMP.reach)
    fields = without.fields * len(BANDS)
    assert without.least == fields <= truth <= without.most <= 3 * fields


def test_the_expected_neighbours_are_those_of_galaxies_that_lie_evenly():
    random = np.random.default_rng(1)
    fields = np.repeat(np.arange(10, 4010, 3), 2)  # no field is another's neighbour
    rows = random.uniform(58.5, 1419.5, len(fields))
    table = galaxies([(94, 301, 1, field, 0, rows[at]) for at, field in enumerate(fields)])
    known = footprint.count_frames(table, STAMP.reach)
    unknown = footprint.count_frames(table.drop(columns=ROWC), STAMP.reach)
    own = unknown.least
    assert known.least - own > 200
    assert unknown.expected - own == pytest.approx(known.least - own, rel=0.2)
    assert footprint.chance_of_neighbour(0.0) == 0
    assert footprint.chance_of_neighbour(1.0) == 1


@pytest.fixture
def catalog(tmp_path):
    """Writes a catalogue of the rows of `galaxies`; returns its path."""

    def write(rows, **columns):
        path = tmp_path / "catalog.parquet"
        galaxies(rows).assign(**columns).to_parquet(path, index=False)
        return path

    return write


ROWS = [
    (94, 301, 1, 11, 0, 700.0), (94, 301, 1, 11, 0, 1480.0), (94, 301, 1, 12, 1, 700.0),
    (94, 301, 1, 13, 1, 700.0), (94, 301, 1, 14, 2, 700.0),
]  # fmt: skip


def planned(path, mask=False, **options):
    return estimate.plan(path, STAMP.reach, mask, 10.0, 5, 0.65, 2, **options)


def test_plan_by_hand(catalog):
    plan = planned(catalog(ROWS), window=2, cache_gb=0.01)
    assert (plan.galaxies, plan.shards, plan.fields) == (5, 3, 4)
    assert plan.frames == plan.frames_least == plan.frames_most == plan.files == 20
    assert plan.frames_cut == 25, "field 12's frames are cut for shard 0 as well"
    assert (plan.largest_shard, plan.largest_shard_frames) == (0, 10)
    assert plan.bytes == 20 * 3.4e6 and plan.bytes_least == 20 * 2.9e6
    assert plan.download_hours == pytest.approx(20 * 3.4 / 10 / 3600)
    assert plan.cutting_hours == pytest.approx(25 * 0.65 / 2 / 3600)
    assert plan.window_bytes == 20 * 3.4e6, "of shards 0 and 2 the larger, and shard 1"
    assert plan.disk_bytes == plan.bytes, "no more than there is"
    assert planned(catalog(ROWS), window=1, cache_gb=0.01).disk_bytes == 10 * 3.4e6 + 0.01e9
    assert json.loads(json.dumps(estimate.as_json(plan), allow_nan=False)) == plan._asdict()


def test_a_cap_that_the_frames_may_exceed_is_refused_with_what_would_fit(catalog):
    """Three shards of 10, 10 and 5 frames of up to 3.8 MB: 20 at once in a window of 2."""
    fits = planned(catalog(ROWS), window=2, cache_gb=0.001, disk_gb=0.076)
    assert (fits.disk_bytes_most, fits.disk_gb) == (20 * 3.8e6, 0.076)
    assert "allows 76 MB" in "\n".join(estimate.lines(fits))
    assert "sets no bound" in "\n".join(estimate.lines(planned(catalog(ROWS))))

    def refused(cap, window=2, cache=0.1):
        with pytest.raises(UserError) as told:
            planned(catalog(ROWS), window=window, cache_gb=cache, disk_gb=cap)
        return str(told.value).partition("; set ")

    before, _, advice = refused(0.075)
    assert "may take 76 MB at once (2 shards in flight: 76 MB, cache: 100 MB), and " in before
    assert before.endswith("frames: disk_gb allows 75 MB")
    assert advice == "frames: window to 1 and cache_gb to 0.037"
    assert refused(0.05, cache=0.012)[2] == "frames: window to 1"
    assert refused(0.05, window=1)[2] == "frames: cache_gb to 0.012"
    assert refused(0.0345)[2] == (
        "catalog: shards to 4 or more, window to 1 and cache_gb to 0: no window fits 3 shards"
    )
    assert refused(0.03)[2] == "it higher: 4 fields cannot be cut into shards so small"
    with pytest.raises(UserError, match="--disk-gb: 0"):
        planned(catalog(ROWS), disk_gb=0.0)


def test_a_cap_holds_where_rowc_is_missing(catalog):
    """Every galaxy may need both neighbours then, and the bound counts them."""
    known = planned(catalog(ROWS), window=1, cache_gb=0)
    unknown = planned(catalog(ROWS, **dict.fromkeys(ROWC)), window=1, cache_gb=0)
    assert known.disk_bytes_most == 10 * 3.8e6, "shard 0's fields 11 and 12"
    assert unknown.disk_bytes_most == 20 * 3.8e6, "shard 1's fields 11 to 14"


def test_masks_are_files_bytes_and_a_plane(catalog):
    plan, masked = planned(catalog(ROWS)), planned(catalog(ROWS), mask=True)
    assert (masked.frames, masked.files) == (20, 40)
    assert masked.bytes == 20 * 3.5e6
    assert masked.stamp_bytes - plan.stamp_bytes == 5 * 5 * 107**2 * 2


@pytest.mark.parametrize("mask", [False, True])
def test_stamps_take_what_a_shard_of_them_takes(catalog, tmp_path, mask):
    path, number = tmp_path / "0000.h5", 60
    table = galaxies([ROWS[0]] * number).assign(objID=np.arange(number), split="unlabelled")
    with ShardWriter(path, table, STAMP, planes=("mask",) * mask) as shard:
        images = {"images": np.ones((5, 107, 107))}
        planes = {"mask": np.ones((5, 107, 107))} if mask else {}
        for row in range(number):
            shard.append(row, images | planes, np.ones(5), np.ones(5))
    with h5py.File(path) as file:
        assert len(file["images"]) == number
    plan = planned(catalog([ROWS[0]] * number), mask=mask)
    assert path.stat().st_size == pytest.approx(plan.stamp_bytes, rel=0.005)


def test_a_catalogue_without_rowc_gives_bounds_and_says_so(catalog):
    path = catalog(ROWS)
    pd.read_parquet(path).drop(columns=ROWC).to_parquet(path)
    plan = planned(path)
    assert (plan.frames_least, plan.frames_most) == (20, 30)
    assert 20 <= plan.frames <= 21 and plan.galaxies_without_rowc == 5
    text = "\n".join(estimate.lines(plan))
    assert "5 galaxies have no rowc" in text and "from 20 to 30" in text
    nulls = catalog(ROWS, **dict.fromkeys(ROWC))
    assert planned(nulls) == plan


def test_lines_are_aligned_and_warn_of_what_is_too_much(catalog):
    plan = planned(catalog(ROWS))
    head, *table = estimate.lines(plan)
    assert head.endswith("catalog.parquet:") and "warning" not in "".join(table)
    ends = [line.index(value) + len(value) for line, value in
            zip(table, ("5", "4", "20", "20", "68 MB"), strict=False)]  # fmt: skip
    assert len(set(ends[1:])) == 1
    large = plan._replace(bytes=1.2e12, bytes_most=1.3e12, frames=1_234_567, streams=8)
    text = "\n".join(estimate.lines(large))
    assert "1,234,567" in text and "8 streams" in text
    assert "warning: more than 1 TB" in text and "helpdesk" in text and "pilot.yaml" in text
    perhaps = plan._replace(bytes=0.9e12, bytes_most=1.1e12)
    assert "perhaps more than 1 TB" in "\n".join(estimate.lines(perhaps))


@pytest.mark.parametrize(
    ("change", "tells"),
    [
        (lambda path: path.unlink(), "no such file; run the rule catalog first"),
        (lambda path: path.write_text("objID,ra"), "cannot be read as a catalogue"),
        (lambda path: pd.DataFrame({"run": [1]}).to_parquet(path), "no column shard, camcol"),
        (lambda path: pd.read_parquet(path)[:0].to_parquet(path), "has no galaxies"),
        (
            lambda path: (
                pd.read_parquet(path)
                .assign(field=pd.array([11, None, 12, 13, 14], dtype="Int32"))
                .to_parquet(path)
            ),
            "field is missing for 1 galaxies",
        ),
    ],
)
def test_a_catalogue_that_is_none_is_told_in_one_line(catalog, change, tells):
    path = catalog(ROWS)
    change(path)
    with pytest.raises(UserError, match=tells) as told:
        planned(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("rates", "flag"),
    [
        ((0.0, 5, 0.65, 2), "--mb-per-second"), ((float("nan"), 5, 0.65, 2), "--mb-per-second"),
        ((10.0, 0, 0.65, 2), "--streams"), ((10.0, 5, -1.0, 2), "--seconds-per-frame"),
        ((10.0, 5, 0.65, 0), "--cores"),
    ],
)  # fmt: skip
def test_a_rate_that_is_none_is_refused(catalog, rates, flag):
    with pytest.raises(UserError, match=flag):
        estimate.plan(catalog(ROWS), STAMP.reach, False, *rates)


@pytest.fixture
def record(tmp_path):
    """Writes a provenance record; returns its path."""
    number = iter(range(100))

    def write(**facts):
        path = tmp_path / f"{next(number):04d}.provenance.json"
        path.write_text(json.dumps(facts))
        return path

    return write


def fetched(seconds=10.0, **more):
    return {"files": 50, "bytes": 150_000_000, "seconds": seconds, "requests": 51, **more}


CUT = {"galaxies": 30, "frames": 50, "seconds": 20.0, "workers": 3}


def test_measured_sums_up_records_and_counts_those_that_tell_nothing(record, tmp_path):
    broken = tmp_path / "broken.provenance.json"
    broken.write_text("{")
    records = [
        record(**fetched()), record(**fetched(seconds=20.0)), record(**CUT), record(**CUT),
        record(files=0, bytes=0, seconds=0.1), record(product="0000.h5"), broken,
        record(**CUT | {"seconds": None}), record(**CUT | {"seconds": float("nan")}),
    ]  # fmt: skip
    found = measured.measured(iter(records))
    assert found.fetched.mb_per_second == pytest.approx(10.0)
    assert found.fetched.bytes_per_file == pytest.approx(3e6)
    assert found.cut.seconds_per_galaxy == pytest.approx(2.0)
    assert (found.fetched.records, found.cut.records, found.skipped) == (2, 2, 5)


def test_shards_that_were_fetched_side_by_side_share_their_seconds(record):
    ends = ("2026-11-20T10:01:40+00:00", "2026-11-20T10:01:30+00:00", "2026-11-20T12:00:00+00:00")
    records = [record(**fetched(seconds=100.0, written=end)) for end in ends]
    # the first two from 09:59:50 to 10:01:40: 110 s, and each end may be up to a second later
    assert measured.measured(records).fetched.seconds == pytest.approx(110 + 100 + 2)
    quick = [record(**fetched(seconds=0.2, written=ends[0])) for _ in range(2)]
    assert measured.measured(quick).fetched.seconds == pytest.approx(0.4), "never more than the sum"


def test_without_a_record_it_says_what_to_run_first(record, tmp_path):
    for records in ([], [record(product="x")]):
        with pytest.raises(UserError, match=r"surveys/pilot\.yaml first") as told:
            measured.measured(records)
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="no such file"):
        measured.measured([tmp_path / "none.json"])
    with pytest.raises(UserError, match="cannot be read"):
        measured.measured([tmp_path])


def test_the_whole_survey_by_hand(catalog):
    plan = planned(catalog(ROWS))._replace(galaxies=40, files=80, frames=80)
    rates = measured.Measured(
        measured.Fetched(records=2, files=100, bytes=330_000_000, seconds=33.0),
        measured.Cut(records=2, galaxies=40, core_seconds=60.0), 1,
    )  # fmt: skip
    text = "\n".join(measured.whole(plan, rates))
    total = 1_697_756
    assert "1,697,756 galaxies (502,977 labelled and 1,194,779 unlabelled" in text
    assert f"{2 * total:,}" in text and f"{2 * total * 3.3e6 / 1e12:.2f} TB" in text
    download = 2 * total * 3.3e6 / 10e6 / 86400
    for cores in (2, 16, 64):
        cutting = total * 1.5 / cores / 86400
        line = next(line for line in text.splitlines() if line.split()[:1] == [str(cores)])
        assert line.split()[1:7:2] == [
            f"{cutting:.1f}" if cutting >= 2 else f"{cutting * 24:.1f}", f"{download:.1f}",
            f"{cutting + download if cores == 2 else max(cutting, download):.1f}",
        ]  # fmt: skip
        assert line.endswith("taking turns" if cores == 2 else "the line")
    assert "extrapolates from this stretch" in text and "skipped" in text


def test_the_whole_survey_has_no_more_frames_than_there_are_and_tells_what_is_assumed(catalog):
    plan = planned(catalog(ROWS))  # four frames a galaxy would be 6.8 million
    only_fetched = measured.Measured(measured.Fetched(1, 10, 33_000_000, 3.3), None, 0)
    text = "\n".join(measured.whole(plan, only_fetched))
    assert "4,690,230" in text and "all of the survey's" in text
    assert "no record of cutouts" in text and "no record of frames" not in text
    only_cut = measured.Measured(None, measured.Cut(1, 10, 5.0), 0)
    assert "no record of frames" in "\n".join(measured.whole(plan, only_cut))
