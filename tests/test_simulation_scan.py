"""Great circles, strips, and the frames' WCS."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run import UserError
from pipeline.simulation import scan
from pipeline.simulation.plan import Plan, stream
from pipeline.survey.names import FIELD_STEP, Field

PLAN = Plan(camcols=(1, 3, 4, 6), fields=(3, 2))


@given(mu=st.floats(-80, 270), nu=st.floats(-5, 5), inclination=st.floats(-60, 89, allow_nan=False))
def test_great_circle_there_and_back(mu, nu, inclination):
    ra, dec = scan.circle_to_sky(mu, nu, inclination)
    back = scan.sky_to_circle(ra, dec, inclination)
    turn = (back[0] - mu + 180) % 360 - 180
    assert abs(turn) < 1e-9
    assert back[1] == pytest.approx(nu, abs=1e-9)


def test_equatorial_scan_is_the_equator():
    ra, dec = scan.circle_to_sky(np.array([30.0, 200.0]), np.array([0.5, -1.0]), 0.0)
    np.testing.assert_allclose(ra, [30, 200])
    np.testing.assert_allclose(dec, [0.5, -1])


@pytest.mark.parametrize(("camcol", "limit"), [(1, 0.03), (3, 0.01), (4, 0.01), (6, 0.03)])
@pytest.mark.parametrize("band", "ugriz")
def test_header_wcs_follows_the_scan(camcol, limit, band):
    field = Field(4207, camcol, 12)
    row, col = np.mgrid[0:1488:12j, 0:2047:12j]
    on_sky = scan.strip(PLAN, 4207, camcol, band)
    ra, dec = on_sky.to_sky(FIELD_STEP + row, col)
    x, y = scan.frame_wcs(PLAN, field, band).all_world2pix(ra, dec, 0)
    assert np.hypot(x - col, y - row).max() < limit


@pytest.mark.parametrize("band", "ugriz")
def test_astrans_gives_the_header_wcs(band):
    """HDU 3's own formula, written out, against the TAN header."""
    field = Field(4263, 4, 12)
    t = scan.frame_astrans(PLAN, field, band)
    row, col = np.mgrid[0.5:1488.5:7j, 0.5:2047.5:7j]
    mu = np.radians(t["A"] + t["B"] * row + t["C"] * col - t["NODE"])
    nu = np.radians(t["D"] + t["E"] * row + t["F"] * col)
    i = np.radians(t["INCL"])
    y = np.sin(mu) * np.cos(nu) * np.cos(i) - np.sin(nu) * np.sin(i)
    ra = t["NODE"] + np.degrees(np.arctan2(y, np.cos(mu) * np.cos(nu)))
    dec = np.degrees(np.arcsin(np.sin(mu) * np.cos(nu) * np.sin(i) + np.sin(nu) * np.cos(i)))
    x, y = scan.frame_wcs(PLAN, field, band).all_world2pix(ra, dec, 0)
    assert np.hypot(x + 0.5 - col, y + 0.5 - row).max() < 0.05


def test_frames_are_turned_mirrored_and_of_sdss_scale():
    wcs = scan.frame_wcs(PLAN, Field(4207, 3, 11), "r")
    cd = wcs.wcs.cd
    assert np.linalg.det(cd) < 0
    assert 0.3957 < 3600 * np.sqrt(-np.linalg.det(cd)) < 0.3962
    angle = np.degrees(np.arctan2(cd[0, 1], cd[1, 1]))
    assert min(angle % 90, -angle % 90) > 10
    assert wcs.wcs.crpix.tolist() == [1025, 745]


def test_bands_are_shifted_as_in_the_real_camera():
    ra, dec = scan.strip(PLAN, 4207, 3, "r").to_sky(700.0, 1000.0)
    for band, (rows, cols) in scan.BAND_SHIFT.items():
        row, col = scan.strip(PLAN, 4207, 3, band).to_pixel(ra, dec)
        assert row - 700 == pytest.approx(rows, abs=0.05)
        assert col - 1000 == pytest.approx(cols, abs=0.05)


def test_camera_columns_leave_a_gap():
    edge3 = scan.strip(PLAN, 4207, 3, "r").to_sky(700.0, 2047.0)
    _, col = scan.strip(PLAN, 4207, 4, "r").to_pixel(*edge3)
    assert -2000 < col < -1500


def test_angle_is_measured_from_the_column_axis():
    on_sky = scan.strip(PLAN, 4207, 3, "r")
    ra, dec = on_sky.to_sky(500.0, 800.0)
    beta = on_sky.angle(ra, dec, np.radians(30.0))
    step = 2e-3
    row, col = on_sky.to_pixel(
        ra + step * np.sin(np.radians(30)) / np.cos(np.radians(dec)),
        dec + step * np.cos(np.radians(30)),
    )
    assert np.arctan2(row - 500, col - 800) == pytest.approx(beta, abs=1e-3)


def test_bands_cross_a_field_one_after_the_other():
    times = [scan.field_time(PLAN, Field(4207, 3, 11), band) for band in "riuzg"]
    np.testing.assert_allclose(np.diff(times), 71.65, atol=0.1)


def test_streams_depend_on_every_key():
    draws = {
        stream(1, "a", 1, "r").random(), stream(2, "a", 1, "r").random(),
        stream(1, "b", 1, "r").random(), stream(1, "a", 2, "r").random(),
        stream(1, "a", 1, "g").random(),
    }  # fmt: skip
    assert len(draws) == 5
    assert stream(1, "a", 1, "r").random() in draws


@pytest.mark.parametrize(
    "wrong",
    [
        {"runs": (4207, 4207)}, {"runs": (50, 4207)}, {"fields": (2,)}, {"fields": (0, 1)},
        {"camcols": (0,)}, {"camcols": ()}, {"labelled_share": 1.5}, {"galaxies_per_field": -1.0},
        {"reference_size": 10}, {"first_field": 0}, {"seed": -1}, {"runs": (1100, 4207)},
    ],
)  # fmt: skip
def test_impossible_plans_are_refused_in_one_line(wrong):
    with pytest.raises(UserError) as caught:
        Plan(**wrong)
    assert "\n" not in str(caught.value)
