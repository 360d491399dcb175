"""Photons, noise, sky and the rows that neighbouring frames share."""

from __future__ import annotations

import bz2
import io
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import map_coordinates

from pipeline.simulation import artefacts, detector, masks, observe, population, render, scan
from pipeline.simulation.plan import Plan
from pipeline.survey.names import FIELD_STEP, FRAME_SHAPE, Field, frame_path, mask_path

PLAN = Plan(
    runs=(4207,), camcols=(3,), fields=(2,), galaxies_per_field=25, stars_per_field=25,
    artefact_rate=1.0, shared_sky=True,
)  # fmt: skip
FIRST, SECOND = PLAN.all_fields()


@pytest.fixture(scope="module")
def sky() -> population.Sky:
    return population.make_sky(PLAN)


@pytest.fixture(scope="module")
def pair(sky) -> list[tuple]:
    """(noiseless light, frame, DN) of two neighbouring fields in i."""
    taken = []
    for field in (FIRST, SECOND):
        clean = render.noiseless_frame(sky, field, "i")
        found = artefacts.artefacts(PLAN, field, "i")
        frame, _, dn = observe.take_frame(sky, field, "i", clean, found)
        taken.append((clean, frame, dn))
    return taken


def test_neighbouring_frames_share_their_raw_rows(pair):
    (light0, frame0, dn0), (light1, frame1, dn1) = pair
    np.testing.assert_array_equal(light0[FIELD_STEP:], light1[:128])
    np.testing.assert_array_equal(dn0[FIELD_STEP:], dn1[:128])
    np.testing.assert_array_equal(frame0[FIELD_STEP:], frame1[:128])
    assert light0[FIELD_STEP:].max() > 0
    assert not np.array_equal(dn0[:128], dn1[:128])


def test_each_field_has_its_own_sky_estimate(pair):
    own = replace(PLAN, shared_sky=False)
    tables = [detector.sky_table(own, field, "i") for field in (FIRST, SECOND)]
    upper = detector.interpolate_sky(tables[0])[FIELD_STEP:]
    lower = detector.interpolate_sky(tables[1])[:128]
    nmgy = detector.chip(own, 4207, 3, "i").nmgy_per_dn
    difference = np.sqrt(np.mean((upper - lower) ** 2)) * nmgy
    assert 1e-5 < difference < 0.01
    assert tables[0].shape == (192, 256)


def test_counts_come_back_as_integers(pair):
    _, frame, dn = pair[0]
    vector = detector.calibration(PLAN, 4207, 3, "i").astype(np.float64)
    x, y = detector.interpolation_grid()
    table = detector.sky_table(PLAN, FIRST, "i").astype(np.float64)
    at = np.meshgrid(y, x, indexing="ij")
    full = map_coordinates(table, at, order=1, mode="nearest")
    np.testing.assert_allclose(detector.interpolate_sky(table), full, atol=1e-9)
    counts = frame / vector + full
    faint = np.abs(frame) < 0.1
    assert np.abs(counts - dn)[faint].max() < 0.02
    assert np.median(np.abs(counts - np.rint(counts))) < 0.005


def test_noise_is_that_of_the_formula(pair):
    """Variance dn / gain + darkVariance [DN^2] (SDSS data model, frame)."""
    light, frame, _ = pair[0]
    here = detector.chip(PLAN, 4207, 3, "i")
    vector = detector.calibration(PLAN, 4207, 3, "i").astype(np.float64)
    row, col = np.arange(FRAME_SHAPE[0])[:, None], np.arange(FRAME_SHAPE[1])
    sky = detector.true_sky(PLAN, 4207, 3, "i", row, col)
    sigma = np.sqrt((light / vector + sky) / here.gain + here.dark_variance) * vector
    spoiled = artefacts.add_artefacts(
        np.zeros(FRAME_SHAPE), artefacts.artefacts(PLAN, FIRST, "i"), PLAN, FIRST
    )
    good = (spoiled < 1e-6) & (light < 50)
    pull = ((frame - light) / sigma)[good]
    assert pull.std() == pytest.approx(1, abs=0.005)
    assert abs(pull.mean()) < 0.02


@pytest.mark.parametrize("band", "urz")
def test_depth_is_that_of_real_frames(band, real_data):
    """Noise, zero point and sky within 40 % of a real frame of the same camera column."""
    path = real_data / "sas/dr9" / frame_path(Field(2820, 3, 122), band)
    with fits.open(io.BytesIO(bz2.decompress(path.read_bytes()))) as hdus:
        image, nmgy = hdus[0].data, hdus[1].data.mean()
        noise = 1.4826 * np.median(np.abs(image - np.median(image)))
        sky = hdus[2].data["ALLSKY"].mean()
    here = detector.chip(PLAN, 4207, 3, band)
    assert 0.7 < here.noise / noise < 1.4
    assert 0.7 < here.nmgy_per_dn / nmgy < 1.4
    assert 0.7 < here.sky / sky < 1.4


def test_gains_follow_the_camera_and_the_run():
    old = Plan(runs=(756, 1345), fields=(1, 1), camcols=(2, 4))
    assert detector.chip(old, 756, 2, "u").gain == 1.595
    assert detector.chip(old, 1345, 2, "u").gain == 1.825
    assert detector.chip(old, 1345, 4, "z").dark_variance == 9.61
    assert detector.chip(PLAN, 4207, 4, "z").dark_variance == 12.6025


def test_light_of_a_galaxy_is_its_flux(sky):
    """A stamp holds the flux of the truth table, centred on the galaxy."""
    places = sky.places("galaxies", 4207, 3, "r")
    inside = np.all((places > 300) & (places < (1100, 1700)), axis=1)
    chosen = np.flatnonzero(inside)[:4]
    ids = sky.galaxies["id"].to_numpy()[chosen]
    drawn = {stamp.id: stamp for stamp in render.stamps(sky, FIRST, "r") if stamp.id in ids}
    for which, source in zip(chosen, ids, strict=True):
        stamp = drawn[source]
        flux = sky.galaxies["flux_r"].iat[which]
        assert stamp.light.sum() == pytest.approx(flux, rel=0.01)
        rows = np.arange(stamp.light.shape[0]) + stamp.row
        center = (stamp.light.sum(axis=1) * rows).sum() / stamp.light.sum()
        assert center == pytest.approx(places[which, 0], abs=0.05)
        rim = np.concatenate([stamp.light[0], stamp.light[-1], stamp.light[:, 0]])
        assert np.abs(rim).max() < 0.05 * detector.chip(PLAN, 4207, 3, "r").noise


def test_charge_above_full_well_spills_along_the_column():
    light = np.ones((21, 5))
    light[10, 2] = 100.0
    spilt, mask, extra = render.bled(light, 10.0)
    assert spilt.sum() == pytest.approx(light.sum())
    assert spilt.max() <= 10.0
    assert mask[:, 2].sum() >= 10
    assert not mask[:, [0, 1, 3, 4]].any()
    assert spilt.shape == (21 + 2 * extra, 5)


def test_artefacts_are_in_one_band_only():
    pixels = {
        band: {tuple(p) for a in artefacts.artefacts(PLAN, FIRST, band) for p in a.pixels.tolist()}
        for band in "gr"
    }
    assert pixels["g"] and pixels["r"]
    assert len(pixels["g"] & pixels["r"]) < 0.1 * min(map(len, pixels.values()))
    none = replace(PLAN, artefact_rate=0.0)
    assert artefacts.artefacts(none, FIRST, "r") == []


def test_masks_read_as_real_ones(real_data, tmp_path):
    mask = np.zeros(FRAME_SHAPE, bool)
    mask[100:104, 50:60] = True
    mask[101, 54] = False
    mask[1488, 2047] = True
    path = tmp_path / "fpM.fit.gz"
    path.write_bytes(masks.make_mask_bytes(FIRST, {"CR": mask}))
    other = real_data / "sas/dr9" / mask_path(Field(2583, 2, 136), "r")
    with fits.open(path) as ours, fits.open(other) as his:
        assert len(ours) == len(his) == 12
        assert ours[11].data.tolist() == his[11].data.tolist()
        for mine, real in zip(ours[1:11], his[1:11], strict=True):
            assert mine.columns.names == real.columns.names
            assert mine.header["NAXIS1"] == real.header["NAXIS1"]
        back = np.zeros(FRAME_SHAPE, bool)
        for spans in ours[10].data["s"]:
            for row, first, last in _spans(spans):
                back[row, first : last + 1] = True
        assert len(ours[1].data) == 0
        region = ours[10].data[0]
        assert (region["rmin"], region["rmax"], region["cmin"], region["cmax"]) == (
            100,
            103,
            50,
            59,
        )
        assert region["npix"] == 39
        real_region = his[1].data[0]
        assert len(_spans(real_region["s"])) == real_region["nspan"]
    np.testing.assert_array_equal(back, mask)


def _spans(heap: np.ndarray) -> np.ndarray:
    """(row, first, last) of each span of a region."""
    return np.asarray(heap, dtype=np.uint8).tobytes() and np.frombuffer(
        np.asarray(heap, dtype=np.uint8).tobytes(), dtype=">i2"
    ).reshape(-1, 3)


def test_plan_without_sources_still_draws():
    bare = population.make_sky(replace(PLAN, galaxies_per_field=0.0, stars_per_field=0.0))
    assert render.noiseless_frame(bare, FIRST, "r").max() == 0
    assert scan.first_row(PLAN, SECOND) == FIELD_STEP
