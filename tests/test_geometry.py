"""Where a stamp's pixels lie: tangent planes, the map to a frame, centroids to 0.01 px."""

import numpy as np
import pytest
from astropy.wcs import WCS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_sky import add_gaussian, make_wcs

from pipeline.images import overlap
from pipeline.images.geometry import corners, from_tangent_plane, window
from pipeline.images.stamp import Stamp
from pipeline.run import UserError

STAMP = Stamp()
POINTINGS = [
    (150.0, 10.0, 37.0, -1),
    (150.0, 10.0, 37.0, 1),
    (0.0005, -0.1, 90.0, -1),  # RA just across 0
    (359.9995, 0.3, -176.0, -1),
    (201.0, 85.0, 56.0, -1),
    (77.0, 89.99, 12.0, 1),  # the pole is on the stamp
    (310.0, -89.0, 103.0, -1),
]


def cut_at(image, wcs, ra, dec, stamp=STAMP):
    points = corners(stamp, ra, dec, wcs)
    part = window(points, image.shape)
    return overlap.cut(image[part.rows, part.columns], points - part.origin)


def centroid(value):
    """FITS pixel (x, y), 1-based, of the light."""
    y, x = np.mgrid[1 : value.shape[0] + 1, 1 : value.shape[1] + 1]
    return np.array([(value * x).sum(), (value * y).sum()]) / value.sum()


@example(ra=0.0, dec=90.0, xi=0.0625, eta=0.0)
@settings(max_examples=60, deadline=None)
@given(
    ra=st.floats(0, 359.999), dec=st.floats(-90, 90),
    xi=st.floats(-0.1, 0.1), eta=st.floats(-0.1, 0.1),
)  # fmt: skip
def test_tangent_plane_is_that_of_the_fits_standard(ra, dec, xi, eta):
    wcs = make_wcs(ra, dec, 0.0, parity=1, crpix=(0.0, 0.0), scale=1.0)
    wcs.wcs.lonpole = 180.0  # as a stamp's header says: the default turns it round at the pole
    theirs = wcs.wcs_pix2world([[xi, eta]], 1)[0]
    ours = np.array(from_tangent_plane(ra, dec, xi, eta))
    assert separation(ours, theirs) < 1e-9


def separation(one, two):
    """Degrees between two positions, without trouble at the pole or across 0."""
    vectors = [
        np.array([np.cos(d) * np.cos(r), np.cos(d) * np.sin(r), np.sin(d)])
        for r, d in (np.deg2rad(one), np.deg2rad(two))
    ]
    return np.rad2deg(np.linalg.norm(vectors[0] - vectors[1]))


@pytest.mark.parametrize("pointing", POINTINGS)
def test_corners_are_those_of_the_two_projections(pointing):
    wcs = make_wcs(*pointing)
    ra, dec = wcs.wcs_pix2world([[700.3, 1200.8]], 0)[0]
    edges = np.arange(STAMP.size + 1) - 0.5
    x, y = np.meshgrid(edges, edges)
    sky = STAMP.wcs(ra, dec).wcs_pix2world(np.stack([x.ravel(), y.ravel()], 1), 0)
    expected = wcs.wcs_world2pix(sky, 0).reshape(*x.shape, 2)
    assert np.abs(corners(STAMP, ra, dec, wcs) - expected).max() < 2e-6


def test_a_frame_that_is_not_tan_is_followed_point_by_point():
    wcs = make_wcs(150.0, 60.0, 20.0)
    wcs.wcs.ctype = ["RA---ZEA", "DEC--ZEA"]
    stamp = Stamp(21, 0.15)  # wide, so that no projective map fits
    ra, dec = wcs.wcs_pix2world([[1900.0, 1400.0]], 0)[0]
    edges = np.arange(stamp.size + 1) - 0.5
    x, y = np.meshgrid(edges, edges)
    sky = stamp.wcs(ra, dec).wcs_pix2world(np.stack([x.ravel(), y.ravel()], 1), 0)
    expected = wcs.wcs_world2pix(sky, 0).reshape(*x.shape, 2)
    assert np.abs(corners(stamp, ra, dec, wcs) - expected).max() < 2e-6


@pytest.mark.parametrize("pointing", POINTINGS)
@pytest.mark.parametrize("place", [(1024.0, 744.0), (300.37, 1100.81), (1888.49, 130.5)])
def test_a_source_lies_on_the_centre_of_pixel_54(pointing, place):
    wcs = make_wcs(*pointing)
    image = np.zeros((1489, 2048), dtype=np.float32)
    add_gaussian(image, *place, flux=1000.0)
    ra, dec = wcs.wcs_pix2world([place], 0)[0]
    offset = centroid(cut_at(image, wcs, ra, dec).value) - 54.0
    assert np.abs(offset).max() < 0.01


@pytest.mark.parametrize("pointing", POINTINGS)
def test_north_is_up_and_east_is_left(pointing):
    """Two sources: one 12 px north, a fainter one 20 px east. Any flip or turn moves them."""
    wcs = make_wcs(*pointing)
    ra, dec = wcs.wcs_pix2world([[900.2, 600.7]], 0)[0]
    step = STAMP.scale
    image = np.zeros((1489, 2048), dtype=np.float32)
    for east, north, flux in ((0, 12, 700.0), (20, 0, 300.0)):
        sky = from_tangent_plane(ra, dec, east * step, north * step)
        add_gaussian(image, *wcs.wcs_world2pix([sky], 0)[0], flux)
    value = cut_at(image, wcs, ra, dec).value
    expected = {(54, 66): 700, (34, 54): 300}

    def fits(stamp):
        found = []
        for (x, y), flux in expected.items():
            box = stamp[y - 9 : y + 8, x - 9 : x + 8]
            close = box.sum() > 0 and np.abs(centroid(box) - 9).max() < 0.01
            found.append(close and abs(box.sum() * step**2 / (0.396 / 3600) ** 2 / flux - 1) < 1e-3)
        return all(found)

    assert fits(value)
    half = (value + np.roll(value, 1, axis=1)) / 2
    spoilt = (value[::-1], value[:, ::-1], value.T, value[::-1, ::-1], np.rot90(value), half)
    assert not any(fits(stamp) for stamp in spoilt), "this test would not catch a turned stamp"


def test_stamp_header_is_the_papers():
    header = STAMP.header(150.0, 2.0)
    assert header["NAXIS1"] == header["NAXIS2"] == 107
    assert header["CRPIX1"] == header["CRPIX2"] == 54.0
    assert np.isclose(header["CDELT2"] * 3600, 0.4037383) and header["CDELT1"] < 0
    assert WCS(header).wcs.radesys == "ICRS"
    corner = WCS(header).wcs_pix2world([[-0.5, -0.5]], 0)[0]
    assert separation(corner, (150.0, 2.0)) == pytest.approx(STAMP.reach, rel=1e-6)


@pytest.mark.parametrize(
    ("size", "fov", "word"),
    [(0, 0.012, "size"), (106, 0.012, "size"), (-5, 0.012, "size"), (1, 0.012, "size"),
     (107, -0.012, "fov"), (107, 0.0, "fov"), (107, float("nan"), "fov"), (107, 90.0, "fov")],
)  # fmt: skip
def test_impossible_stamps_are_refused(size, fov, word):
    with pytest.raises(UserError, match=word):
        Stamp(size, fov)


@pytest.mark.parametrize("place", [(-500.0, 700.0), (1000.0, 5000.0), (2200.0, -300.0)])
def test_a_stamp_off_the_frame_has_no_window(place):
    wcs = make_wcs(150.0, 10.0, 37.0)
    ra, dec = wcs.wcs_pix2world([place], 0)[0]
    assert not window(corners(STAMP, ra, dec, wcs), (1489, 2048))


def test_a_place_on_the_other_side_of_the_sky_is_told_by_nan():
    wcs = make_wcs(150.0, 10.0, 37.0)
    for ra, dec in ((330.0, -10.0), (240.0, 0.0), (330.0, 10.0)):
        points = corners(STAMP, ra, dec, wcs)
        assert not np.isfinite(points).all() or not window(points, (1489, 2048))


def test_window_is_clipped_to_the_frame():
    wcs = make_wcs(150.0, 10.0, 0.0)
    ra, dec = wcs.wcs_pix2world([[3.0, 1480.0]], 0)[0]
    part = window(corners(STAMP, ra, dec, wcs), (1489, 2048))
    assert part.columns.start == 0 and part.rows.stop == 1489
    assert np.array_equal(part.origin, [0, part.rows.start])
