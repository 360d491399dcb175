"""The fpM pixel masks: real ones, simulated ones, bad ones."""

import gzip

import numpy as np
import pytest
import real_sky
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.simulation.masks import make_mask_bytes
from pipeline.survey import masks
from pipeline.survey.frame import BadFrame
from pipeline.survey.names import FRAME_SHAPE, Field, mask_path

FIELD = Field(1000, 1, 100)


@pytest.fixture(scope="module")
def planes():
    random = np.random.default_rng(0)
    found = {}
    for name in ("INTERP", "CR"):
        found[name] = np.zeros(FRAME_SHAPE, dtype=bool)
        for row, column in random.integers(0, 1400, (12, 2)):
            found[name][row : row + 9, column : column + 14] = True
    found["SATUR"] = np.zeros(FRAME_SHAPE, dtype=bool)
    found["SATUR"][[0, 1488, 0, 1488], [0, 2047, 2047, 0]] = True
    return found


@pytest.fixture(scope="module")
def packed(planes):
    return make_mask_bytes(FIELD, planes)


def test_planes_are_bits(packed, planes):
    mask = masks.read(packed, FIELD)
    assert mask.dtype == np.uint16 and mask.shape == FRAME_SHAPE
    for bit, name in enumerate(masks.PLANES):
        expected = planes.get(name, np.zeros(FRAME_SHAPE, dtype=bool))
        assert np.array_equal((mask >> bit) & 1 == 1, expected), name


@pytest.mark.parametrize("band", ["u", "r"])
def test_a_real_mask_marks_what_photo_marked(real_data, band):
    path = real_sky.root(real_data) / mask_path(real_sky.CLUSTER, band)
    mask = masks.read(path.read_bytes(), real_sky.CLUSTER)
    with fits.open(path) as hdus:
        names = [row["attributeName"].strip() for row in hdus[11].data]
        for bit, name in enumerate(masks.PLANES):
            assert names[bit] == f"S_MASK_{name}"
            plane, table = (mask >> bit) & 1, hdus[bit + 1].data
            objects = [] if table is None else table
            assert plane.sum() <= sum(int(row["npix"]) for row in objects)
            for row in objects:
                box = plane[row["rmin"] : row["rmax"] + 1, row["cmin"] : row["cmax"] + 1]
                assert box.sum() >= row["npix"]


def test_saturated_pixels_of_a_real_frame_are_bright(real_data):
    path = real_sky.root(real_data) / mask_path(real_sky.CLUSTER, "r")
    mask = masks.read(path.read_bytes())
    image = real_sky.read(real_data, real_sky.CLUSTER, "r").image
    saturated = (mask >> masks.PLANES.index("SATUR")) & 1 == 1
    assert np.median(image[saturated]) > 50 * np.median(np.abs(image))


def test_unpacked_files_are_read_as_well(packed):
    assert np.array_equal(masks.read(gzip.decompress(packed)), masks.read(packed))


def test_another_fields_mask_is_told(packed):
    with pytest.raises(BadFrame, match="another than its name"):
        masks.read(packed, FIELD._replace(field=101))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: b"",
        lambda d: d[: len(d) // 2],
        lambda d: d[:-4],
        lambda d: b"<html>404</html>",
        lambda d: gzip.compress(b"no FITS at all"),
        lambda d: d[:300] + bytes([d[300] ^ 255]) + d[301:],
        lambda d: gzip.compress(gzip.decompress(d)[: 5 * 2880]),
        lambda d: gzip.compress(gzip.decompress(d).replace(b"MASKROWS", b"MASKRAWS")),
        lambda d: gzip.compress(gzip.decompress(d).replace(b"1489 /", b"1490 /")),
    ],
)
def test_bad_masks_are_told(packed, spoil):
    with pytest.raises(BadFrame, match="mask"):
        masks.read(spoil(packed))


@pytest.mark.parametrize(
    "span", [(1488, 2047, 2048), (1488, 2071, 23), (1488, 9, 8), (1489, 0, 1), (-1, 0, 1)]
)
def test_spans_that_lie_on_no_frame_are_told(packed, span):
    """Of the second a column was flipped: it begins beyond the frame and ends on it."""
    raw = bytearray(gzip.decompress(packed))
    at = raw.find(np.array([1488, 2047, 2047], dtype=">i2").tobytes())
    raw[at : at + 6] = np.array(span, dtype=">i2").tobytes()
    with pytest.raises(BadFrame, match="plane SATUR has spans that lie on no frame"):
        masks.read(gzip.compress(raw))


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1), value=st.integers(0, 255))
def test_no_flipped_byte_escapes_as_another_error(packed, place, value):
    raw = bytearray(gzip.decompress(packed))
    raw[int(place * (len(raw) - 1))] = value
    try:
        assert masks.read(bytes(raw)).shape == FRAME_SHAPE
    except BadFrame as bad:
        assert "\n" not in str(bad)
