"""The fpM pixel masks: which pixels of a frame are saturated, interpolated, hit by cosmic rays."""

from __future__ import annotations

import gzip
from io import BytesIO

import numpy as np
from astropy.io import fits

from pipeline.survey.frame import BadFrame
from pipeline.survey.names import FRAME_SHAPE, Field

PLANES = (
    "INTERP", "SATUR", "NOTCHECKED", "OBJECT", "BRIGHTOBJECT",
    "BINOBJECT", "CATOBJECT", "SUBTRACTED", "GHOST", "CR",
)  # fmt: skip
"""Plane k of an fpM file is bit k of a mask."""


def read(data: bytes, field: Field | None = None) -> np.ndarray:
    """The bits of every pixel, uint16 (rows, columns), from the bytes of an fpM file (gzip or not).

    Each plane's HDU is a table of objects, each with its spans: row, first and last column, as
    big-endian 16-bit integers in a column that FITS has as bytes.

    Raises:
        BadFrame: empty, damaged, not an fpM file, or (where `field` is given) another field's.
    """
    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        with fits.open(BytesIO(raw), memmap=False) as hdus:
            header = hdus[0].header
            shape = (header["MASKROWS"], header["MASKCOLS"])
            has = tuple(int(header[key]) for key in ("RUN", "CAMCOL", "FIELD"))
            spans = [_spans(hdus[bit + 1].data) for bit in range(len(PLANES))]
    except Exception as error:  # astropy and zlib raise almost anything on garbage
        raise BadFrame(f"the mask file cannot be read ({' '.join(str(error).split())})") from None
    if shape != FRAME_SHAPE:
        raise BadFrame(f"the mask has {shape[1]} x {shape[0]} pixels where a frame has 2048 x 1489")
    if field is not None and has != field[:3]:
        raise BadFrame(f"the mask is of run, camcol, field {has}: another than its name tells")
    return _paint(spans)


def _spans(table: np.ndarray | None) -> np.ndarray:
    """All spans of a plane, (n, 3): row, first and last column."""
    parts = [] if table is None else [part.tobytes() for part in table["s"]]
    return np.frombuffer(b"".join(parts), ">i2").reshape(-1, 3).astype(int)


def _paint(planes: list[np.ndarray]) -> np.ndarray:
    mask = np.zeros(FRAME_SHAPE, dtype=np.uint16)
    for bit, spans in enumerate(planes):
        row, first, last = spans.T
        off = (spans < 0).any() or (row >= mask.shape[0]).any() or (last >= mask.shape[1]).any()
        if off or (first > last).any():
            raise BadFrame(f"the mask's plane {PLANES[bit]} has spans that lie on no frame")
        if len(spans):
            edges = np.zeros((mask.shape[0], mask.shape[1] + 1), dtype=np.int16)
            np.add.at(edges, (row, first), 1)
            np.subtract.at(edges, (row, last + 1), 1)
            inside = np.cumsum(edges[:, :-1], axis=1, dtype=np.int16) > 0
            mask |= inside.astype(np.uint16) << np.uint16(bit)
    return mask
