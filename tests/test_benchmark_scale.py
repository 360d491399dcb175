"""The benchmark of the full size: its sky, its tables, the model of the run, what it says."""

import argparse
import importlib
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import query
from pipeline.settings import ROOT

QUERIED_ONLY = {"class", "subClass", "targettype", "spectrotype", "galSpecSubClass", "sectarget"}
"""Columns of labelled.sql that no stage reads; the benchmark leaves them out."""


@pytest.fixture(scope="module", autouse=True)
def on_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


@pytest.fixture(scope="module")
def scale():
    return importlib.import_module("scale")


@pytest.fixture(scope="module")
def model():
    return importlib.import_module("scale_model")


@pytest.fixture(scope="module")
def plan(model):
    return model.make_plan(100_000, 0.3, 0.2)


def test_galaxies_lie_on_the_primary_area_and_are_as_many_a_field_as_the_survey_has(model, plan):
    share = model.primary_share(plan, 0.2)
    assert share.sum() == pytest.approx(14_555 / 31_637 * len(share), rel=1e-6)
    assert np.mean((share > 0) & (share < 1)) == pytest.approx(0.2, abs=1e-3)
    number, outside = np.diff(plan.first), plan.latitude() > 15
    assert not share[~outside].any() and not number[outside & (share == 0)].any()
    assert number[outside].sum() / share.sum() == pytest.approx(3.9, abs=0.1)
    part = (share > 0.4) & (share < 0.6)
    assert number[part].mean() == pytest.approx(3.9 / 2, rel=0.2)


def test_primary_fields_lie_in_stretches(model, plan):
    primary = model.primary_share(plan, 0.0) > 0.5
    same = (np.diff(plan.run) == 0) & (np.diff(plan.camcol) == 0)
    assert np.mean(primary[1:][same] == primary[:-1][same]) > 0.9


@pytest.mark.parametrize("variance", [0.0, 0.3])
def test_galaxies_are_clustered_by_the_variance_asked_for(model, variance):
    plan = model.make_plan(400_000, variance, 0.2)
    whole = model.primary_share(plan, 0.2) == 1
    number = np.diff(plan.first).astype(float)
    mean = number[whole].mean()
    assert number[whole].var() == pytest.approx(mean + variance * mean**2, rel=0.07)
    pairs = whole[1:] & whole[:-1] & (np.diff(plan.field) == 1)
    both = np.cov(number[1:][pairs], number[:-1][pairs])[0, 1]
    # densities of neighbours are correlated by 0.67 in their logarithm
    assert both == pytest.approx(mean**2 * np.expm1(0.67 * np.log1p(variance)), rel=0.15, abs=0.15)


def test_sky_is_the_same_again(model, plan):
    again = model.make_plan(100_000, 0.3, 0.2)
    assert np.array_equal(plan.first, again.first) and np.array_equal(plan.kind, again.kind)


def test_tables_are_what_the_queries_find_in_the_database(scale, model, tmp_path):
    plan = model.make_plan(3000, 0.3, 0.2)
    scale.write_tables(plan, model.primary_share(plan, 0.2), tmp_path)
    scale.catalogue.write_database(plan, tmp_path / "survey.duckdb")
    for name in scale.TABLES:
        sql = ROOT / f"queries/{name}.sql"
        page = tmp_path / f"{name}.page.parquet"
        query.run_duckdb(tmp_path / "survey.duckdb", sql.read_text(), str(sql), page)
        wanted, made = (pd.read_parquet(f) for f in (page, tmp_path / f"{name}.parquet"))
        assert set(wanted) - QUERIED_ONLY <= set(made), name
        key = next(key for key in ("specObjID", "objID", "fieldID") if key in wanted)
        wanted, made = (table.set_index(key).sort_index() for table in (wanted, made))
        assert wanted.index.equals(made.index), name
        for column in set(wanted) - QUERIED_ONLY - {"primaryArea"}:
            assert np.allclose(wanted[column], made[column], rtol=1e-6, equal_nan=True) or (
                wanted[column].equals(made[column])
            ), (name, column)


@pytest.fixture(scope="module")
def home(scale, model, tmp_path_factory):
    """The catalogue of 8 shards of 3,000 galaxies, by the stage itself."""
    folder = tmp_path_factory.mktemp("scale")
    plan = model.make_plan(3000, 0.3, 0.2)
    scale.write_tables(plan, model.primary_share(plan, 0.2), folder)
    cost = scale.run_catalog(folder, folder / "8", 8)
    assert cost["peak_mb"] > 10 and cost["wall_s"] > 0
    expected = scale.catalogue.expected(plan) | {"shards": 8}
    found = scale.catalogue.found(folder / "8")
    assert {name: count for name, count in found.items() if count} == {
        name: count for name, count in expected.items() if count
    }
    return folder / "8"


def test_shards_of_the_catalogue_are_those_of_the_model(scale, model, home, tmp_path):
    shards = model.shards_of(home / "catalog.parquet")
    assert len(shards.frames) == 8 and np.ptp(shards.frames) < 0.05 * shards.frames.mean()
    assert shards.stamp_bytes.sum() == 3000 * (5 * 107**2 * 4 + 250)
    assert scale.empty_archive(home / "catalog.parquet", 3, tmp_path) == shards.frames[3]
    assert sum(1 for _ in tmp_path.rglob("frame-*.fits.bz2")) == shards.frames[3]


def test_tiny_shards_hold_every_galaxy_once(scale, home, tmp_path):
    stamps = sum(scale.write_shards(home / "catalog.parquet", tmp_path, 8, 0.1))
    kept = lost = 0
    for path in tmp_path.glob("*.h5"):
        with scale.open_shard(path) as file:
            kept, lost = kept + len(file["ObjID"]), lost + len(file["failed/ObjID"])
    assert kept == stamps and kept + lost == 3000 and 200 < stamps < 400


def test_a_stage_that_fails_is_told_by_its_last_line(scale):
    words = ("-c", "import sys; print('at work', file=sys.stderr); sys.exit('error: no such file')")
    with pytest.raises(scale.UserError, match="error: no such file"):
        scale.cost(*words)


def test_jobs_of_a_dry_run():
    text = (
        "Job stats:\njob      count\n------- ------\nframes     400\ncutouts      2\ntotal  402\n"
    )
    found = importlib.import_module("scale").jobs(text)
    assert found == {"frames": 400, "cutouts": 2, "total": 402}


# --- the run -----------------------------------------------------------------------------------

SIZE = 3.4e6


def made(model, frames):
    frames = np.asarray(frames, float)
    return model.Shards(frames, frames * SIZE, frames * 1000)


def rates(model, **other):
    usual = {"mb_per_stream": 2.0, "cut": 0.6, "check": 0.5, "start_fetch": 3.0, "start_cut": 4.0}
    return model.Rates(**{**usual, **other})


def boundless(model, **other):
    """Downloads take no time, jobs none to start."""
    free = {"mb_per_stream": 1e15, "latency": 0.0, "requests_per_minute": 1e15, "check": 0.0,
            "start_fetch": 0.0, "start_cut": 0.0}  # fmt: skip
    return rates(model, **{**free, **other})


def test_one_core_does_one_thing_after_another(model):
    shards, rate = made(model, [100, 80, 120]), rates(model)
    came = model.simulate(shards, rate, model.Setting(1, 5))
    files = min(5 / (0.1 + 1.7), 1 / 0.5)  # its streams, or its core that checks
    assert came.seconds == pytest.approx(3 * (3 + 4) + 300 / files + 300 * 0.6)
    assert came.in_flight == 1 and came.waited[model.CHECKING] == pytest.approx(300 / files)


def test_two_cores_take_turns_too_since_cutting_has_two_threads(model):
    shards, rate = made(model, [100, 80, 120]), rates(model)
    came = model.simulate(shards, rate, model.Setting(2, 5))
    assert came.seconds == pytest.approx(3 * (3 + 4) + 300 * (0.1 + 1.7) / 5 + 300 * 0.6 / 2)


@pytest.mark.parametrize(("cores", "at_once"), [(2, 1), (5, 2), (16, 8), (64, 8)])
def test_an_endless_line_leaves_the_cutting(model, cores, at_once):
    came = model.simulate(made(model, [100] * 16), boundless(model), model.Setting(cores, 5))
    assert came.seconds == pytest.approx(16 / at_once * 100 * 0.6 / 2, rel=1e-3)
    assert came.seconds == pytest.approx(came.waited[model.CUTTING] + came.waited[model.TURNS])


def test_a_window_of_one_fetches_and_cuts_in_turn(model):
    shards, rate = made(model, [100, 80, 120]), rates(model)
    came = model.simulate(shards, rate, model.Setting(64, 5, window=1, cache_bytes=0))
    assert came.seconds == pytest.approx(3 * (3 + 4) + 300 * 1.8 / 5 + 300 * 0.6 / 2)
    assert came.held_bytes == pytest.approx(120 * SIZE)


def test_many_cores_leave_the_downloads_and_the_last_cutting(model):
    came = model.simulate(made(model, [100] * 10), rates(model), model.Setting(64, 5))
    assert came.seconds == pytest.approx(10 * (3 + 100 * 1.8 / 5) + 4 + 100 * 0.6 / 2)
    assert next(iter(came.limits)) == model.STREAMS


@pytest.mark.parametrize(
    ("limit", "per_second", "streams", "rate", "setting"),
    [
        ("STREAMS", 5 / 1.8, 5, {}, {}),
        ("REQUESTS", 10, 20, {}, {}),
        ("LINE", 20e6 / SIZE, 20, {"mb_per_second": 20.0}, {}),
        ("CHECKING", 2, 5, {}, {"fetch_cores": 1}),
        ("STREAMS", 10 / 9.8, 5, {"check": 8.0}, {}),  # two files a stream are under way
    ],
)
def test_what_bounds_downloads(model, limit, per_second, streams, rate, setting):
    found = model.supply(rates(model, **rate), model.Setting(64, streams, **setting), SIZE)
    assert found == (pytest.approx(per_second), getattr(model, limit))


def test_a_busy_machine_slows_all_alike(model):
    # 5.56 checks a second want 5.6 of 4 cores: until that is all that goes on
    rate = rates(model, check=1.0, start_fetch=0.0, start_cut=0.0)
    came = model.simulate(made(model, [100]), rate, model.Setting(4, 10))
    assert came.seconds == pytest.approx(100 / 4 + 100 * 0.6 / 2)
    assert came.waited[model.CHECKING] == pytest.approx(25)


def test_the_cache_holds_what_came_last(model):
    shards = made(model, [100] * 6)
    setting = model.Setting(64, 5, window=1, cache_bytes=150 * SIZE)
    came = model.simulate(shards, rates(model), setting)
    assert came.held_bytes == pytest.approx(250 * SIZE)  # and the one that is fetched


runs = {
    "frames": st.lists(st.integers(1, 300), min_size=1, max_size=25),
    "rate": st.fixed_dictionaries({
        "mb_per_stream": st.floats(0.1, 100), "cut": st.floats(0.01, 5), "check": st.floats(0, 5),
        "mb_per_second": st.floats(1, 1000), "latency": st.floats(0, 2),
        "requests_per_minute": st.floats(10, 6000), "start_fetch": st.floats(0, 10),
        "start_cut": st.floats(0, 10),
    }),
    "setting": st.fixed_dictionaries({
        "cores": st.integers(1, 64), "streams": st.integers(1, 20), "fetches": st.integers(1, 3),
        "window": st.integers(1, 8), "cut_threads": st.integers(1, 4),
        "cache_bytes": st.floats(0, 2e9), "fetch_cores": st.floats(0.5, 64),
    }),
}  # fmt: skip


@given(**runs)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_no_run_is_faster_than_its_bounds_or_holds_more_than_was_planned(frames, rate, setting):
    model = importlib.import_module("scale_model")
    shards, rate, setting = made(model, frames), model.Rates(**rate), model.Setting(**setting)
    came = model.simulate(shards, rate, setting)
    files, threads = model.supply(rate, setting, SIZE)[0], min(setting.cut_threads, setting.cores)
    alone = rate.start_fetch + rate.start_cut + shards.frames * (1 / files + rate.cut / threads)
    core_seconds = shards.frames.sum() * (rate.cut + rate.check)
    bounds = (shards.frames.sum() / files, core_seconds / setting.cores, alone.max(),
              len(frames) * rate.start_fetch / setting.fetches)  # fmt: skip
    assert max(bounds) * (1 - 1e-6) <= came.seconds <= alone.sum() * (1 + 1e-6)
    assert came.core_seconds == pytest.approx(core_seconds)
    assert sum(came.waited.values()) == pytest.approx(came.seconds)
    assert came.stamp_bytes == shards.stamp_bytes.sum()
    assert came.in_flight <= setting.window
    most = shards.window_bytes(setting.window) + setting.cache_bytes
    assert shards.frame_bytes.max() * (1 - 1e-6) <= came.held_bytes <= most * (1 + 1e-6)


@pytest.mark.parametrize("wrong", [{"cores": 0}, {"window": 0}, {"fetch_cores": 0.0}])
def test_what_cannot_be_modelled_is_refused(model, wrong):
    setting = model.Setting(**{"cores": 2, "streams": 5, **wrong})
    with pytest.raises(ValueError, match="no run can be modelled"):
        model.simulate(made(model, [10]), rates(model), setting)


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def no_stages(scale, model, monkeypatch):
    """The command without its stages; whose counts are those of the list."""
    counts = {"4 shards: galaxies": (3000, 3000)}
    cost = {"catalog": {"wall_s": 1.0, "cpu_s": 1.0, "peak_mb": 100.0}}
    monkeypatch.setattr(scale, "write_tables", lambda *_: None)
    monkeypatch.setattr(scale, "run_stages", lambda *_: (cost, counts))
    monkeypatch.setattr(model, "shards_of", lambda _: made(model, [100.0] * 4))
    return counts


WORDS = [
    "--galaxies=3000",
    "--shards=4",
    "--of=4",
    "--seconds-per-frame=0.6",
    "--check-seconds=0.5",
]


def test_command_ends_with_its_figures(scale, no_stages, tmp_path, capsys):
    scale.main([*WORDS, "--work", str(tmp_path), "--cores", "2", "32"])
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert [(row["cores"], row["streams"]) for row in figures["runs"]] == [
        (2, 5), (32, 5), (2, 20), (32, 20),
    ]  # fmt: skip
    assert figures["shards"] == 4 and figures["wrong"] == [] and figures["frames"] == 400
    assert next(iter(figures["runs"][1]["limits"])) == "the streams"
    assert any("galaxies a primary field" in line for line in lines)


def test_another_model_goes_by_what_was_measured(scale, no_stages, tmp_path, capsys, monkeypatch):
    words = [*WORDS, "--work", str(tmp_path), "--cores", "32"]
    with pytest.raises(scale.UserError, match="run once without --model-only"):
        scale.main([*words, "--model-only"])
    scale.main(words)
    monkeypatch.setattr(scale, "run_stages", None)
    scale.main([*words, "--model-only", "--requests-per-minute", "60"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert next(iter(figures["runs"][0]["limits"])) == "requests a minute"
    assert figures["cost"]["4"]["catalog"]["peak_mb"] == 100 and figures["counts"] == 1


def test_a_wrong_count_fails_and_no_time_does(scale, no_stages, tmp_path, capsys):
    no_stages["4 shards: jobs of frames"] = (4, 3)
    with pytest.raises(scale.UserError, match="4 shards: jobs of frames: not as many"):
        scale.main([*WORDS, "--work", str(tmp_path)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["wrong"] == [
        "4 shards: jobs of frames"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--galaxies 30 --shards 4", "--galaxies 30: give ten or more a shard"),
        ("--cores 0", "--cores: 0; give a number above 0"),
        ("--mb-per-stream -1", "--mb-per-stream: -1"),
    ],
)
def test_what_makes_no_sense_is_refused(scale, words, message):
    with pytest.raises(scale.UserError, match=message):
        scale.main(words.split())


def test_rates_are_those_of_the_flags_or_those_measured(scale):
    args = argparse.Namespace(
        seconds_per_frame=None, check_seconds=0.4, mb_per_stream=2.0, mb_per_second=None,
        latency=0.1, requests_per_minute=600.0, queue=30.0,
    )  # fmt: skip
    own = {"cut": 0.7, "check": 0.3, "start_cut": 3.0, "start_fetch": 5.0}
    found = scale.rates_of(args, own)
    assert (found.cut, found.check, found.start_cut, found.start_fetch) == (0.7, 0.4, 33.0, 35.0)
    assert found.mb_per_second == np.inf
