"""Which frames a stamp needs: against a brute-force look at where its corners fall."""

import numpy as np
import pandas as pd
import pytest
from small_sky import Sky

from pipeline.images.geometry import corners
from pipeline.images.stamp import Stamp
from pipeline.survey.footprint import beyond, frames_needed, rows_of_rowc
from pipeline.survey.names import BANDS, FRAME_SHAPE

STAMP = Stamp()


def header_of(sky):
    """The headers of a sky's frames, without the frames."""

    def header(field, band):
        header = sky.wcs(band, field.field - sky.first).to_header()
        for i, j in np.ndindex(2, 2):
            header[f"CD{i + 1}_{j + 1}"] = sky.wcs(band).wcs.cd[i, j]
        return header

    return header


def touched(sky, galaxies, row, band, step):
    """Whether a stamp's corners fall on a frame."""
    x, y = np.moveaxis(
        corners(STAMP, galaxies.ra[row], galaxies.dec[row], sky.wcs(band, step)), -1, 0
    )
    inside = (x > -0.5) & (x < FRAME_SHAPE[1] - 0.5) & (y > -0.5) & (y < FRAME_SHAPE[0] - 0.5)
    return bool(inside.any())


@pytest.mark.parametrize("pointing", [(150.0, 10.0, 37.0), (0.0, 0.0, 90.0), (201.0, 85.0, 10.0)])
def test_every_frame_that_a_stamp_touches_is_needed(pointing):
    sky = Sky(*pointing)
    rows = np.concatenate([np.arange(0, 120, 7.0), np.arange(1370, 1489, 7.0), [700.0]])
    galaxies = sky.galaxies(np.stack([np.full(len(rows), 1000.0), rows], axis=1))
    needs = frames_needed(galaxies, STAMP.reach, header_of(sky))
    asked = {
        (need.row, band, field.field - sky.first)
        for (field, band), members in needs.items()
        for need in members
    }
    for row in range(len(galaxies)):
        for band in BANDS:
            assert (row, band, 0) in asked
            for step in (-1, 1):
                # the own frame covers 128 rows of its neighbour: only what lies beyond counts
                x, y = np.moveaxis(
                    corners(STAMP, galaxies.ra[row], galaxies.dec[row], sky.wcs(band)), -1, 0
                )
                beyond = (y < -0.5).any() if step < 0 else (y > FRAME_SHAPE[0] - 0.5).any()
                if beyond and touched(sky, galaxies, row, band, step):
                    assert (row, band, step) in asked
    middle = [key for key in asked if key[0] == len(rows) - 1]
    assert len(middle) == 5, "a galaxy in the middle needs its own five frames only"
    assert len(asked) < 5 * len(galaxies) + 4 * len(rows)


def test_bands_are_decided_one_by_one():
    sky = Sky()
    galaxies = sky.galaxies([(1000, 75.0)])  # leaves r (75 px), not g (85 px)
    needs = frames_needed(galaxies, STAMP.reach, header_of(sky))
    below = {band for field, band in needs if field.field == sky.first - 1}
    assert "r" in below and "g" not in below


def test_rowc_of_the_catalogue_is_used_and_needs_no_header():
    sky = Sky()
    galaxies = sky.galaxies([(1000, 10.0), (1000, 1480.0), (1000, 700.0)])
    for band in BANDS:
        xy = sky.wcs(band).wcs_world2pix(galaxies[["ra", "dec"]].to_numpy(), 0)
        galaxies[f"rowc_{band}"] = xy[:, 1] + 0.5

    def never(field, band):
        raise AssertionError("the header was asked for")

    with_rowc = frames_needed(galaxies, STAMP.reach, never)
    without = frames_needed(
        galaxies[["ra", "dec", "run", "camcol", "field"]], STAMP.reach, header_of(sky)
    )
    assert with_rowc == without


def test_missing_rowc_comes_from_the_header_row_by_row():
    sky = Sky()
    galaxies = sky.galaxies([(1000, 10.0), (1000, 1480.0), (1000, 700.0)])
    full = frames_needed(galaxies, STAMP.reach, header_of(sky))
    for band in BANDS:
        xy = sky.wcs(band).wcs_world2pix(galaxies[["ra", "dec"]].to_numpy(), 0)
        galaxies[f"rowc_{band}"] = pd.array(xy[:, 1] + 0.5, dtype="Float64")
        galaxies.loc[0, f"rowc_{band}"] = pd.NA
        galaxies.loc[1, f"rowc_{band}"] = -9999.0
    assert frames_needed(galaxies, STAMP.reach, header_of(sky)) == full


def test_order_is_that_of_the_fields_and_bands():
    sky = Sky()
    parts = [sky.galaxies([(1000, 700), (500, 5)], step) for step in (3, 0, 1)]
    galaxies = pd.concat(parts, ignore_index=True)
    keys = list(frames_needed(galaxies, STAMP.reach, header_of(sky)))
    assert keys == sorted(keys, key=lambda key: (key[0], BANDS.index(key[1])))
    for members in frames_needed(galaxies, STAMP.reach, header_of(sky)).values():
        assert [need.row for need in members] == sorted(need.row for need in members)


def test_without_a_header_the_own_frames_are_needed_still():
    sky = Sky()
    needs = frames_needed(sky.galaxies([(1000, 5)]), STAMP.reach, lambda field, band: None)
    assert list(needs) == [(sky.field(), band) for band in BANDS]


def test_a_header_without_projection_counts_as_none():
    sky = Sky()
    from astropy.io import fits

    needs = frames_needed(sky.galaxies([(1000, 5)]), STAMP.reach, lambda *_: fits.Header())
    assert list(needs) == [(sky.field(), band) for band in BANDS]


def test_there_is_no_field_before_field_0():
    sky = Sky(first=0)
    needs = frames_needed(sky.galaxies([(1000, 5)]), STAMP.reach, header_of(sky))
    assert {field.field for field, _ in needs} == {0}


def test_rowc_that_is_missing_or_far_off_is_no_row():
    rows = rows_of_rowc(np.array([0.5, 1489.0, -9999.0, 9999.0, np.nan], dtype="float32"))
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(rows, [0.0, 1488.5, np.nan, np.nan, np.nan])


def test_a_stamp_may_leave_its_frame_at_both_ends_or_at_an_unknown_row_at_none():
    below, above = beyond(np.array([0.0, 744.0, 1488.0, np.nan]), STAMP.reach)
    assert below.tolist() == [True, False, False, False]
    assert above.tolist() == [False, False, True, False]
    assert all(side.all() for side in beyond(np.array([744.0]), 0.1))
