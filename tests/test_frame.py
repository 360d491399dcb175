"""The frame's format: real frames are read, every kind of bad one is refused with its reason."""

import bz2
import re
from io import BytesIO

import numpy as np
import pytest
import real_sky
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_sky import Sky

from pipeline.simulation.frame import make_frame_bytes
from pipeline.survey import frame
from pipeline.survey.frame import BadFrame
from pipeline.survey.names import FRAME_SHAPE, Field

FIELD = Field(1000, 1, 100)
pytestmark = pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")


@pytest.fixture(scope="module")
def good() -> bytes:
    """An uncompressed frame."""
    sky = Sky()
    image = sky.image(sky.galaxies([(1000, 700)]))
    return bz2.decompress(make_frame_bytes(image, sky.wcs(), FIELD, "r"))


@pytest.fixture(scope="module")
def packed(good) -> bytes:
    return bz2.compress(good)


@pytest.fixture(scope="module")
def headers(good) -> list[tuple[int, int]]:
    """Where the four headers begin and end."""
    starts = [m.start() for m in re.finditer(rb"SIMPLE  =|XTENSION=", good)]
    return [(start, start + frame._header_length(good, start)) for start in starts]


def with_card(raw: bytes, keyword: str, value: str, occurrence: int = 0) -> bytes:
    """The file with the value of a header card put in place of its own."""
    at = [m.start() for m in re.finditer(rb"%-8s= " % keyword.encode(), raw)][occurrence]
    card = f"{keyword:<8}= {value:>20}".ljust(80).encode()
    return raw[:at] + card + raw[at + 80 :]


def test_a_simulated_frame_is_read(good, packed):
    read = frame.read(packed, FIELD, "r")
    assert read.image.shape == FRAME_SHAPE and read.calibration.shape == (2048,)
    assert read.sky.shape == (192, 256)
    assert_equals_astropy(read, good)


def assert_equals_astropy(read: frame.Frame, raw: bytes) -> None:
    with fits.open(BytesIO(raw)) as hdus:
        assert read.header == hdus[0].header
        assert np.array_equal(hdus[0].data, read.image)
        assert np.array_equal(hdus[1].data, read.calibration)
        table = hdus[2].data[0]
        assert np.array_equal(table["ALLSKY"], read.sky)
        assert np.array_equal(table["YINTERP"], read.sky_rows)
        assert np.array_equal(table["XINTERP"], read.sky_columns)


@pytest.mark.parametrize(
    ("field", "band", "rows"),
    [(real_sky.STRIPE82, "r", 192), (real_sky.NEIGHBOURS[0], "g", 191)],
)  # fmt: skip
def test_real_frames_are_read_as_astropy_reads_them(real_data, field, band, rows):
    read = real_sky.read(real_data, field, band)
    assert read.sky.shape == (rows, 256) and np.isfinite(read.image).all()
    assert_equals_astropy(read, real_sky.raw(real_data, field, band))
    places = np.array([[0.0, 0.0], [2047.0, 1488.0], [-500.0, 3000.0]])
    ours, theirs = (wcs.wcs_pix2world(places, 0) for wcs in (read.wcs(), WCS(read.header)))
    assert np.abs(ours - theirs).max() < 1e-10


@pytest.mark.parametrize("field", [real_sky.STRIPE82, real_sky.NEIGHBOURS[0]])
def test_counts_before_calibration_are_integers(real_data, field):
    """The variance at gain 1 and without dark variance is counts times calibration squared."""
    read = real_sky.read(real_data, field, "g")
    part = slice(200, 700), slice(300, 800)
    counts = read.variance(*part, gain=1.0, dark=0.0) / read.calibration[part[1]].astype(float) ** 2
    faint = np.abs(read.image[part]) < 0.2
    off = np.abs(counts - np.rint(counts))[faint]
    assert faint.mean() > 0.5 and np.median(off) < 0.01 and np.quantile(off, 0.99) < 0.06


def test_sky_noise_is_that_of_the_pixels(real_data):
    read = real_sky.read(real_data, real_sky.STRIPE82, "r")
    pixels = read.image.astype(np.float64)
    every = 1.4826 * np.median(np.abs(pixels - np.median(pixels)))
    assert read.sky_noise() == pytest.approx(every, rel=0.02)


def test_two_bzip2_streams_are_one_file(good):
    half = len(good) // 2
    data = bz2.compress(good[:half]) + bz2.compress(good[half:])
    assert np.array_equal(frame.read(data, FIELD, "r").image, frame.parse(good, FIELD, "r").image)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: b"", "empty"),
        (lambda d: b"SIMPLE  = T, not compressed at all", "not bzip2"),
        (lambda d: b"<html>404</html>", "not bzip2"),
        (lambda d: bz2.compress(b"a table of galaxies\n" * 1000), "not FITS"),
        (lambda d: bz2.compress(b""), "not FITS"),
        (lambda d: d[: len(d) // 2], "truncated"),
        (lambda d: d[:-1], "truncated"),
        (lambda d: d[:3], "truncated"),
        (lambda d: d[:2000] + bytes([d[2000] ^ 64]) + d[2001:], "damaged|truncated"),
        (lambda d: d[: len(d) // 2] + b"\0" * (len(d) // 2), "damaged|truncated"),
    ],
)
def test_bad_compression_is_told(packed, spoil, reason):
    with pytest.raises(BadFrame, match=reason):
        frame.read(spoil(packed), FIELD, "r")


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.99999])
def test_a_truncated_frame_is_told_wherever_it_ends(packed, good, share):
    with pytest.raises(BadFrame):
        frame.read(packed[: int(share * len(packed))], FIELD, "r")
    with pytest.raises(BadFrame):
        frame.parse(good[: int(share * len(good))], FIELD, "r")


@pytest.mark.parametrize("blocks", [1, 4000, -1, -2])
def test_a_frame_that_ends_at_a_block_is_told(good, blocks):
    with pytest.raises(BadFrame, match="HDUs|bytes|END"):
        frame.parse(good[: blocks * frame.BLOCK], FIELD, "r")


def test_more_than_a_frame_is_told(good):
    with pytest.raises(BadFrame):
        frame.parse(good + good, FIELD, "r")
    with pytest.raises(BadFrame):
        frame.parse(good + b"\0" * frame.BLOCK, FIELD, "r")


@pytest.mark.parametrize(
    ("field", "band", "reason"),
    [
        (FIELD._replace(run=1001), "r", "run 1000: another frame"),
        (FIELD._replace(camcol=2), "r", "camcol 1: another"),
        (FIELD._replace(field=101), "r", "field 100: another"),
        (FIELD, "g", "band r: another"),
    ],
)
def test_another_frame_than_its_name_tells(packed, field, band, reason):
    with pytest.raises(BadFrame, match=reason):
        frame.read(packed, field, band)


def with_pixels(raw: bytes, image: np.ndarray) -> bytes:
    """The file with other pixels."""
    start = frame._header_length(raw)
    return raw[:start] + image.astype(">f4").tobytes() + raw[start + 4 * image.size :]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_frame_without_a_finite_pixel_has_no_noise(good, value):
    read = frame.parse(with_pixels(good, np.full(FRAME_SHAPE, value)), FIELD, "r")
    assert np.isnan(read.sky_noise())


def test_a_frame_with_one_finite_pixel_is_read(good):
    image = np.full(FRAME_SHAPE, np.nan)
    image[1001, 77] = 1
    assert np.isfinite(frame.parse(with_pixels(good, image), FIELD, "r").image).sum() == 1


@pytest.mark.parametrize(
    ("keyword", "value", "occurrence", "reason"),
    [
        ("NAXIS1", "2047", 0, "bytes|HDUs|pixels|damaged"),
        ("NAXIS1", "1489", 0, "bytes|HDUs|pixels|damaged"),
        ("NAXIS2", "99999999999", 0, "bytes|HDUs|pixels"),
        ("NAXIS2", "-3", 0, "bytes|HDUs|pixels|damaged"),
        ("NAXIS", "'two'", 0, "damaged"),
        ("BITPIX", "-64", 0, "float32"),
        ("BITPIX", "32", 0, "float32"),
        ("RUN", "'none'", 0, "damaged"),
        ("CD1_1", "'x'", 0, "no projection"),
        ("CTYPE1", "'GLON-TAN'", 0, "RA---TAN"),
        ("CRVAL1", "1E400", 0, "no projection"),
        ("TFORM1", "'7E'", 0, "damaged"),
        ("TTYPE2", "'NOTHING'", 0, "damaged"),
    ],
)
def test_cards_that_cannot_be_right(good, keyword, value, occurrence, reason):
    with pytest.raises(BadFrame, match=reason):
        frame.parse(with_card(good, keyword, value, occurrence), FIELD, "r")


def test_a_header_without_a_projection(good):
    for keyword in ("CTYPE1", "CD2_1", "CRPIX2", "CRVAL1"):
        with pytest.raises(BadFrame, match="no projection"):
            frame.parse(good.replace(keyword.encode() + b" ", b"XX" + keyword.encode()[2:] + b" "),
                        FIELD, "r")  # fmt: skip
    singular = with_card(with_card(good, "CD1_1", "0.0"), "CD2_1", "0.0")
    with pytest.raises(BadFrame, match="no projection"):
        frame.parse(singular, FIELD, "r")


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1), hdu=st.integers(0, 3), value=st.integers(0, 255))
def test_no_flipped_byte_of_a_header_escapes_as_another_error(good, headers, place, hdu, value):
    """Either the frame is read as it was, or it is a BadFrame: never another exception."""
    start, end = headers[hdu]
    at = start + int(place * (end - start - 1))
    spoilt = good[:at] + bytes([value]) + good[at + 1 :]
    try:
        read = frame.parse(spoilt, FIELD, "r")
    except BadFrame as bad:
        assert str(bad) and "\n" not in str(bad)
    else:
        assert read.image.shape == FRAME_SHAPE and read.sky.shape[1] == 256


def test_the_header_alone_costs_a_block_and_equals_the_whole(packed, good):
    header = frame.read_header(packed)
    assert header == frame.parse(good, FIELD, "r").header
    assert header["RUN"] == 1000


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"<html>", "not bzip2"), (b"BZh9", "header"),
     (b"BZh9" + b"x" * 500, "header"), (bz2.compress(b"text" * 5000), "header")],
)  # fmt: skip
def test_a_header_that_cannot_be_read_is_told(data, reason):
    with pytest.raises(BadFrame, match=reason):
        frame.read_header(data)


def test_variance_is_the_data_models(good):
    read = frame.parse(good, FIELD, "r")
    rows, columns = slice(690, 700), slice(995, 1005)
    variance = read.variance(rows, columns, gain=4.71, dark=1.8225)
    counts = read.image[rows, columns].astype(float) / 0.005 + 100.0
    assert np.allclose(variance, (counts / 4.71 + 1.8225) * 0.005**2, rtol=1e-5)


def test_variance_of_negative_counts_is_the_dark_variance(good):
    raw = with_pixels(good, np.full(FRAME_SHAPE, -50.0))
    part = slice(0, 3), slice(0, 3)
    variance = frame.parse(raw, FIELD, "r").variance(*part, gain=4.71, dark=1.8225)
    assert np.allclose(variance, 1.8225 * 0.005**2, rtol=1e-5)


def test_decompression_is_that_of_the_standard_library():
    raw = np.random.default_rng(0).bytes(1_000_000)
    whole = bz2.compress(raw)
    assert frame.decompress(whole) == raw
    assert frame.decompress(whole + bz2.compress(b"more")) == raw + b"more"
    flipped = bytearray(whole)
    flipped[500_000] ^= 4
    for bad, reason in ((whole[:-9], "truncated"), (bytes(flipped), "damaged"), (b"", "empty")):
        with pytest.raises(BadFrame, match=reason):
            frame.decompress(bad)
