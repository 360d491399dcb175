"""Bands, object ids and the places of files in SDSS's Science Archive Server (SAS)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BANDS = "ugriz"
RERUN = 301
FRAME_SHAPE = (1489, 2048)
"""Rows and columns of a corrected frame."""
FIELD_STEP = 1361
"""Rows from one field of a run and camcol to the next: they overlap by 128 rows."""

_BITS = {
    "skyVersion": (59, 4), "rerun": (48, 11), "run": (32, 16), "camcol": (29, 3),
    "firstField": (28, 1), "field": (16, 12), "obj": (0, 16),
}  # fmt: skip


class Field(NamedTuple):
    """One field of the imaging survey; sorts in the order in which frames lie on disk."""

    run: int
    camcol: int
    field: int
    rerun: int = RERUN

    def __str__(self) -> str:
        return f"{self.run:06d}-{self.camcol}-{self.field:04d}"


def frame_path(field: Field, band: str) -> str:
    """Path of a corrected frame below the archive's root (SAS's `dr9`)."""
    return (
        f"boss/photoObj/frames/{field.rerun}/{field.run}/{field.camcol}/"
        f"frame-{band}-{field}.fits.bz2"
    )


def mask_path(field: Field, band: str) -> str:
    """Path of a frame's fpM pixel masks below the archive's root."""
    return (
        f"boss/photo/redux/{field.rerun}/{field.run}/objcs/{field.camcol}/"
        f"fpM-{field.run:06d}-{band}{field.camcol}-{field.field:04d}.fit.gz"
    )


def pack_objid(run, camcol, field, obj, rerun=RERUN, sky_version=2, first_field=0) -> np.ndarray:
    """SDSS objID (int64) from its parts; arrays broadcast.

    Bits (schema of PhotoObjAll): skyVersion 59-62, rerun 48-58, run 32-47, camcol 29-31,
    firstField 28, field 16-27, obj 0-15.
    """
    parts = dict(
        skyVersion=sky_version, rerun=rerun, run=run, camcol=camcol,
        firstField=first_field, field=field, obj=obj,
    )  # fmt: skip
    objid = np.int64(0)
    for name, value in parts.items():
        shift, width = _BITS[name]
        value = np.asarray(value, dtype=np.int64)
        if np.any((value < 0) | (value >= 1 << width)):
            raise ValueError(f"{name} does not fit in {width} bits: {value}")
        objid = objid | (value << shift)
    return objid


def unpack_objid(objid) -> dict[str, np.ndarray]:
    """The parts of SDSS objIDs (int64), by name; the inverse of `pack_objid`."""
    objid = np.asarray(objid, dtype=np.int64)
    return {name: (objid >> shift) & ((1 << width) - 1) for name, (shift, width) in _BITS.items()}
