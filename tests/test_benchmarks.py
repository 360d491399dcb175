"""The benchmark of the cutouts: its routes make one stamp, its command runs, its peaks hold."""

import html
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import small_sky

from pipeline.images.stamp import Stamp
from pipeline.survey.names import BANDS

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def on_path():
    """The benchmarks are programs: their folder comes first on the path, as for a program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> tuple[Path, Path]:
    """One field with two galaxies: (root, table).

    Its frames have noise around the galaxies, and where their sky noise is sampled.
    """
    folder = tmp_path_factory.mktemp("benchmark")
    sky = small_sky.Sky(angle=30)
    galaxies = sky.galaxies([(700.3, 600.8), (1301.2, 911.6)])
    for band in BANDS:
        image = sky.image(galaxies, band)
        sample = image[::4, ::4]
        sample += np.random.default_rng(1).normal(0, small_sky.NOISE, sample.shape) * (sample == 0)
        small_sky.write_frame(folder / "dr9", sky.field(), band, image, sky.wcs(band))
    galaxies.to_parquet(folder / "galaxies.parquet")
    return folder / "dr9", folder / "galaxies.parquet"


@pytest.fixture(scope="module")
def run_of(archive, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """A minimal run of the command, and the folder it keeps things in."""
    root, table = archive
    keep = tmp_path_factory.mktemp("kept")
    done = subprocess.run(
        [
            *(sys.executable, BENCHMARKS / "cutouts.py", "--archive", root, "--galaxies", table),
            *("--repeats", "1", "--slow-galaxies", "1", "--routes", "reproject-exact", "montage"),
            *("--no-memory", "--keep", keep),
        ],
        capture_output=True,
        text=True,
    )
    return done, keep


def module(name: str):
    return importlib.import_module(name)


def test_command_ends_with_its_figures_in_one_line_of_json(run_of):
    done, keep = run_of
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["galaxies"], figures["frames"], figures["slow_galaxies"]) == (2, 5, 1)
    assert figures["fastest"] in figures["decompressors"]
    assert {"python bz2"} <= set(figures["decompressors"])
    for name in ("floor", "ours", "ours-2"):
        assert figures["cost"][name]["wall"] > 0
    over = figures["comparisons"]["ours_over_floor"]["wall"]
    ratio = figures["cost"]["ours"]["wall"] / figures["cost"]["floor"]["wall"]
    assert over == pytest.approx(ratio, rel=1e-2)
    assert figures["comparisons"]["paper_over_ours"] is None  # was not asked for
    assert set(figures["comparisons"]) == set(figures["expected"])
    assert not list(keep.iterdir()), "the scratch folder is left behind"


def test_ways_to_decode_are_compared_at_1_to_8_galaxies_a_field(archive, tmp_path):
    root, table = archive
    words = ["--decode", "whole", "blocks", "--repeats", "1", "--no-memory", "--keep", tmp_path]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "cutouts.py", "--archive", root, "--galaxies", table, *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert list(figures["by_count"]) == ["1", "2", "4", "8"]
    for row in figures["by_count"].values():
        assert set(row["times"]) == {"floor", "whole"} and min(row["times"].values()) > 0
        assert row["whole"]["blocks"] == 1  # frames of several streams, which are read whole


def test_command_prints_every_route_and_expectation(run_of):
    done, _ = run_of
    for words in ("floor", "ours-2", "reproject-exact", "montage", "cutana", ">= 20", "<= 1.25"):
        assert words in done.stdout


def test_stamp_of_reproject_is_ours_and_difference_sees_a_shift(run_of):
    figures = json.loads(run_of[0].stdout.splitlines()[-1])
    assert figures["objects"]["reproject-exact"]["difference"] < 1e-3
    cutouts = module("cutouts")
    images = np.random.default_rng(0).normal(size=(5, 20, 20))
    shifted = np.roll(images, 1, axis=2)
    assert cutouts.difference(images, images, np.ones(5)) == 0
    assert cutouts.difference(shifted, images, np.ones(5)) == pytest.approx(2**0.5, rel=0.1)


@pytest.mark.parametrize("name, bound", [("montage", 0.02), ("montage-pp", 0.02)])
def test_routes_through_montage_make_our_stamp(archive, tmp_path, name, bound):
    routes, cutouts = module("routes"), module("cutouts")
    if routes.missing(name):
        pytest.skip(f"Montage is not installed: no {routes.missing(name)[0]}")
    root, table = archive
    what = cutouts.prepare(cutouts.read_galaxies(table), root, tmp_path)
    cutouts.ours(what, 1, tmp_path / "ours.h5")
    with h5py.File(tmp_path / "ours.h5") as file:
        images, sky_noise = file["images"][1], file["sky_noise"][1]
    assert sky_noise == pytest.approx(small_sky.NOISE, rel=0.1)
    galaxy = routes.galaxies_of(what.galaxies)[1]
    planes = routes.cut_object(name, galaxy, root, Stamp())
    assert cutouts.difference(planes, images, sky_noise) < bound


def test_decompressors_agree_and_all_are_compared(archive):
    decompressors = module("decompressors")
    frames = sorted(archive[0].rglob("frame-r-*.bz2"))
    found = decompressors.compare(frames, 1)
    assert set(found) == set(decompressors.installed())
    assert all(cost.wall > 0 for cost in found.values())


def test_a_missing_program_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    routes, report = module("routes"), module("report")
    assert routes.missing("paper") == ["bzip2", "mProject"]
    assert routes.missing("reproject-exact") == []
    cost = module("measure").Cost(1.0, 1.0)
    figures = {
        "galaxies": 1, "frames": 5, "cores": 2, "repeats": 1, "slow_galaxies": 1,
        "decompressors": {"python bz2": cost}, "fastest": "python bz2",
        "cost": {"floor": cost, "ours": cost, "ours-2": cost},
        "over_floor": cost, "one_over_two": cost,
        "objects": {"paper": {"missing": routes.missing("paper")}}, "natives": {"cutana": None},
    }  # fmt: skip
    text = report.table(figures)
    assert "bzip2, mProject not on the PATH" in text
    assert "pip install cutana" in text


def test_peak_is_of_the_child_alone():
    measure = module("measure")
    ballast = np.ones(40_000_000)  # 320 MB here, which the child must not be charged with
    small = measure.peak("-c", "pass")["peak_mb"]
    large = measure.peak("-c", "x = b'x' * 150_000_000")["peak_mb"]
    assert ballast.nbytes / 1e6 > 2 * small
    assert 140 < large - small < 170


def test_ratios_are_of_runs_that_followed_each_other():
    cutouts, cost = module("cutouts"), module("measure").Cost
    above = [cost(2, 1), cost(20, 1), cost(3, 1)]
    below = [cost(1, 1), cost(10, 2), cost(1, 4)]
    assert cutouts.ratios(above, below) == (2, 0.5)


def test_help_is_usable(capsys):
    with pytest.raises(SystemExit) as end:
        module("cutouts").main(["--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "--slow-galaxies" in told and "one line of JSON" in " ".join(told.split())


@pytest.mark.parametrize(
    "words, told",
    [
        (["--repeats", "0"], "--repeats 0"),
        (["--archive", "somewhere"], "give both"),
        (["--archive", "http://localhost/dr9", "--galaxies", "t.csv"], "give a folder"),
    ],
)
def test_bad_arguments_end_in_one_line(words, told):
    cutouts = module("cutouts")
    with pytest.raises(cutouts.UserError, match=told) as error:
        cutouts.main(words)
    assert "\n" not in str(error.value)


def test_a_frame_that_is_not_there_is_named(archive, tmp_path):
    cutouts = module("cutouts")
    galaxies = cutouts.read_galaxies(archive[1]).assign(field=101)
    with pytest.raises(cutouts.UserError, match="000101|0101.*no such frame"):
        cutouts.prepare(galaxies, archive[0], tmp_path)


def test_the_picture_of_the_rules_is_that_of_the_full_run():
    rules = importlib.import_module("rules")
    found = rules.edges(rules.ROOT / "surveys" / "sdss-dr12.yaml")
    svg = html.unescape((rules.ROOT / "docs" / "rules.svg").read_text())
    drawn = set(re.findall(r"<title>(\w+)->(\w+)</title>", svg))
    assert drawn <= found and rules.BACK in drawn
    assert {rule for edge in drawn for rule in edge} == {rule for edge in found for rule in edge}
