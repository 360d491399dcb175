"""Bands, object ids and the archive's paths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.survey.names import (
    BANDS,
    Field,
    frame_path,
    mask_path,
    pack_objid,
    unpack_objid,
)

KNOWN = 1237653651835781245
PARTS = {
    "skyVersion": 2, "rerun": 301, "run": 1904, "camcol": 3,
    "firstField": 0, "field": 163, "obj": 125,
}  # fmt: skip


def test_known_objid_has_known_parts():
    assert {name: int(value) for name, value in unpack_objid(KNOWN).items()} == PARTS
    packed = pack_objid(1904, 3, 163, 125)
    assert packed.dtype == np.int64 and int(packed) == KNOWN


def test_known_objid_does_not_survive_a_float():
    assert int(float(KNOWN)) != KNOWN
    assert int(unpack_objid(np.int64(KNOWN))["obj"]) == 125


@given(
    run=st.integers(0, 65535), camcol=st.integers(0, 7), field=st.integers(0, 4095),
    obj=st.integers(0, 65535), rerun=st.integers(0, 2047), sky=st.integers(0, 15),
    first=st.integers(0, 1),
)  # fmt: skip
def test_objid_is_packed_and_unpacked_exactly(run, camcol, field, obj, rerun, sky, first):
    objid = pack_objid(run, camcol, field, obj, rerun, sky, first)
    parts = unpack_objid(objid)
    found = [int(parts[name]) for name in PARTS]
    assert found == [sky, rerun, run, camcol, first, field, obj]


def test_arrays_broadcast_and_stay_int64():
    objid = pack_objid(1904, 3, 163, np.arange(5))
    assert objid.dtype == np.int64
    assert np.array_equal(unpack_objid(objid)["obj"], np.arange(5))


@pytest.mark.parametrize("bad", [dict(camcol=8), dict(field=4096), dict(obj=-1), dict(run=65536)])
def test_a_part_that_does_not_fit_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        pack_objid(**{"run": 1, "camcol": 1, "field": 1, "obj": 1, **bad})


def test_paths_are_those_of_the_archive(real_data):
    root = real_data / "sas" / "dr9"
    for field in (Field(2820, 3, 122), Field(2583, 2, 136)):
        for band in BANDS:
            assert (root / frame_path(field, band)).is_file()
    assert all((root / mask_path(Field(2583, 2, 136), band)).is_file() for band in BANDS)


def test_path_pads_run_and_field():
    path = frame_path(Field(94, 1, 11), "u")
    assert path == "boss/photoObj/frames/301/94/1/frame-u-000094-1-0011.fits.bz2"
    path = mask_path(Field(94, 1, 11), "z")
    assert path == "boss/photo/redux/301/94/objcs/1/fpM-000094-z1-0011.fit.gz"


def test_fields_sort_as_frames_lie_on_disk():
    fields = [Field(94, 2, 11), Field(94, 1, 300), Field(1000, 1, 1), Field(94, 1, 12)]
    assert sorted(fields) == [
        Field(94, 1, 12), Field(94, 1, 300), Field(94, 2, 11), Field(1000, 1, 1),
    ]  # fmt: skip
