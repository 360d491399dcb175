"""Frames as SDSS writes them, against real ones."""

from __future__ import annotations

import bz2
import io

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.simulation import scan
from pipeline.simulation.frame import frame_content, make_frame_bytes, round_floats
from pipeline.simulation.plan import Plan
from pipeline.survey.names import FRAME_SHAPE, Field, frame_path

REAL = Field(2820, 3, 122)
PLAN = Plan()
FIELD = Field(4207, 3, 12)


def content(image: np.ndarray, band: str = "r") -> bytes:
    return frame_content(
        image, scan.frame_wcs(PLAN, FIELD, band), FIELD, band,
        astrans=scan.frame_astrans(PLAN, FIELD, band), inclination=PLAN.inclination,
    )  # fmt: skip


@pytest.fixture(scope="module")
def marked() -> bytes:
    image = np.zeros(FRAME_SHAPE)
    image[10, 20], image[1488, 2047], image[5, 5] = 1.0, -2.5, np.nan
    return content(image)


@pytest.fixture(scope="module")
def real(real_data) -> bytes:
    return bz2.decompress((real_data / "sas/dr9" / frame_path(REAL, "r")).read_bytes())


def headers(raw: bytes) -> list[list[str]]:
    """All cards of all HDUs, as written, up to and with END."""
    found, offset = [], 0
    for hdu in fits.open(io.BytesIO(raw)):
        info = hdu.fileinfo()
        block = raw[info["hdrLoc"] : info["datLoc"]].decode("ascii")
        cards = [block[k : k + 80] for k in range(0, len(block), 80)]
        found.append(cards[: cards.index("END".ljust(80)) + 1])
        offset = info["datLoc"]
    assert offset > 0
    return found


def test_cards_are_those_of_a_real_frame(marked, real):
    """Same names in the same order; same literal text but for the values of this frame."""
    own = {
        "TAI", "RA", "DEC", "DATE-OBS", "TAIHMS", "RUN", "FRAME", "STRIPE", "INCL", "OBJECT",
        "CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2", "NMGY",
    }  # fmt: skip
    ours, theirs = headers(marked), headers(real)
    assert len(ours) == len(theirs) == 4
    for mine, reals in zip(ours, theirs, strict=True):
        assert [card[:8] for card in mine] == [card[:8] for card in reals]
        for card, other in zip(mine, reals, strict=True):
            if card[:8].strip() in own:
                assert card[30:] == other[30:]
            else:
                assert card == other


def test_values_have_the_types_of_a_real_frame(marked, real):
    with fits.open(io.BytesIO(marked)) as ours, fits.open(io.BytesIO(real)) as his:
        for name in his[0].header:
            if name not in ("COMMENT", "HISTORY", ""):
                assert type(ours[0].header[name]) is type(his[0].header[name]), name
        for k in (0, 1):
            assert ours[k].data.dtype == his[k].data.dtype
            assert ours[k].data.shape == his[k].data.shape
        for k in (2, 3):
            assert ours[k].data.dtype == his[k].data.dtype
        for name in ("XINTERP", "YINTERP"):
            np.testing.assert_array_equal(ours[2].data[name], his[2].data[name])
    assert len(marked) == len(real)


@pytest.mark.parametrize("band", "ugriz")
def test_frame_number_and_place_of_each_band(band, real_data):
    path = real_data / "sas/dr9" / frame_path(REAL, band)
    with bz2.open(path) as handle:
        header = fits.Header.fromstring(handle.read(8640))
    assert header["FRAME"] - REAL.field == scan.FRAME_OFFSET[band]
    cards = fits.Header.fromstring(content(np.zeros(FRAME_SHAPE), band)[:8640])
    assert cards["FRAME"] - FIELD.field == scan.FRAME_OFFSET[band]
    assert cards["CAMROW"] == header["CAMROW"]
    assert cards["CCDLOC"] == header["CCDLOC"]


def test_pixels_keep_their_places(marked):
    with fits.open(io.BytesIO(marked)) as hdus:
        image = hdus[0].data
        assert (image[10, 20], image[1488, 2047], image[0, 0]) == (1.0, -2.5, 0.0)
        assert np.isnan(image[5, 5])
        assert hdus[3].data["FIELD"][0] == 12


def test_one_stream(marked):
    wcs = scan.frame_wcs(PLAN, FIELD, "r")
    image = np.zeros(FRAME_SHAPE)
    reader = bz2.BZ2Decompressor()
    raw = reader.decompress(make_frame_bytes(image, wcs, FIELD, "r"))
    assert raw == frame_content(image, wcs, FIELD, "r")
    assert reader.eof
    assert reader.unused_data == b""


def test_header_wcs_reads_back(marked):
    with fits.open(io.BytesIO(marked)) as hdus:
        read = WCS(hdus[0].header)
        header = hdus[0].header
    wcs = scan.frame_wcs(PLAN, FIELD, "r")
    x, y = read.all_world2pix(*wcs.all_pix2world([0.0, 2047.0], [0.0, 1488.0], 0), 0)
    np.testing.assert_allclose(x, [0, 2047], atol=1e-4)
    np.testing.assert_allclose(y, [0, 1488], atol=1e-4)
    assert (header["EXPTIME"], header["RERUN"]) == ("53.907456", "301")
    assert (header["SYSTEM"], header["RADECSYS"]) == ("FK5", "ICRS")


@given(arrays(np.float32, 50, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)))
def test_floats_keep_ten_bits(values):
    rounded = round_floats(values)
    assert not np.any(rounded.view(np.uint32) & 0x3FFF)
    normal = np.abs(values) > 1e-30
    assert np.all(np.abs(rounded - values)[normal] <= 2.0**-10 * np.abs(values)[normal])
    np.testing.assert_array_equal(round_floats(rounded), rounded)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="1489"):
        content(np.zeros((100, 100)))
