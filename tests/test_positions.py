"""Duplicates and neighbours on a sphere: no seam at RA 0, no pole."""

from __future__ import annotations

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.coordinates import angular_separation as separation
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.survey import positions

ARCSEC = 1 / 3600


@st.composite
def crowds(draw):
    """Positions a few arcsec apart around a random place, RA 0 and the poles among them."""
    ra0 = draw(st.sampled_from([0.0, 359.9999, 123.4]))
    dec0 = draw(st.sampled_from([0.0, 85.0, -89.9999, 90.0]))
    offsets = draw(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=12))
    dec = np.clip([dec0 + y * ARCSEC for _, y in offsets], -90, 90)
    wide = np.maximum(np.cos(np.radians(dec)), 1e-6)
    ra = (ra0 + np.array([x for x, _ in offsets]) * ARCSEC / wide) % 360
    return ra, dec


def apart(ra, dec) -> np.ndarray:
    """Separations [arcsec] of all pairs, by astropy."""
    ra, dec = np.radians(ra), np.radians(dec)
    return np.degrees(separation(ra[:, None], dec[:, None], ra, dec)) * 3600


@settings(max_examples=150, deadline=None)
@given(crowds(), st.randoms(use_true_random=False))
def test_no_two_survivors_are_close_and_row_order_does_not_matter(crowd, random):
    ra, dec = crowd
    rank = np.arange(len(ra))
    removed = positions.duplicates(ra, dec, rank, ARCSEC)
    distance = apart(ra, dec)
    left = np.flatnonzero(~removed)
    between = distance[np.ix_(left, left)][np.triu_indices(len(left), 1)]
    assert (between > 1 - 1e-5).all()
    for row in np.flatnonzero(removed):  # each one went for a better one that stayed
        assert (distance[row, left[left < row]] < 1 + 1e-5).any()
    order = list(range(len(ra)))
    random.shuffle(order)
    shuffled = positions.duplicates(ra[order], dec[order], rank[order], ARCSEC)
    assert (shuffled == removed[order]).all()


def test_pairs_across_the_seam_and_over_the_pole():
    ra, dec = np.array([359.99995, 0.00005, 10.0, 190.0]), np.array([0, 0, 89.9999, 89.9999])
    removed = positions.duplicates(ra, dec, np.arange(4), ARCSEC)
    assert removed.tolist() == [False, True, False, True]


def test_near_counts_the_radius_itself_and_bears_emptiness():
    ra = np.array([0.0, 359.99999, 5.0])
    assert positions.near(ra, 0 * ra, [0.00001], [0.0], 0.1 * ARCSEC).tolist() == [
        True,
        True,
        False,
    ]
    assert not positions.near(ra, 0 * ra, [], [], 1).any()
    assert positions.near([], [], ra, ra, 1).shape == (0,)


def test_galactic_latitude_is_astropys():
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 500), np.degrees(np.arcsin(rng.uniform(-1, 1, 500)))
    expected = SkyCoord(ra, dec, unit="deg").galactic.b.deg
    assert abs(positions.galactic_latitude(ra, dec) - expected).max() < 0.05 * ARCSEC


def test_a_radius_of_zero_finds_equal_positions_only():
    ra, dec = np.array([10.1, 10.1, 10.1 + 1e-9]), np.array([5.0, 5.0, 5.0])
    assert positions.duplicates(ra, dec, np.arange(3), 0.0).tolist() == [False, True, False]
    assert positions.near(ra[1:], dec[1:], ra[:1], dec[:1], 0.0).tolist() == [True, False]
