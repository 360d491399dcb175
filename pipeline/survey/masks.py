"""The fpM pixel masks: which pixels of a frame are saturated, interpolated, hit by cosmic rays."""

from __future__ import annotations

import gzip
from io import BytesIO

import numpy as np
from astropy.io import fits

from pipeline.survey.frame import BadFrame

PLANES = (
    "INTERP", "SATUR", "NOTCHECKED", "OBJECT", "BRIGHTOBJECT",
    "BINOBJECT", "CATOBJECT", "SUBTRACTED", "GHOST", "CR",
)  # fmt: skip
"""Plane k of an fpM file is bit k of a mask."""


def read(data: bytes) -> np.ndarray:
    """The bits of every pixel, uint16 (rows, columns), from the bytes of an fpM file (gzip or not).

    Each plane's HDU is a table of objects, each with its spans: row, first and last column, as
    big-endian 16-bit integers in a column that FITS has as bytes.

    Raises:
        BadFrame: empty, damaged or not an fpM file.
    """
    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        with fits.open(BytesIO(raw), memmap=False) as hdus:
            header = hdus[0].header
            mask = np.zeros((header["MASKROWS"], header["MASKCOLS"]), dtype=np.uint16)
            for bit in range(len(PLANES)):
                for spans in hdus[bit + 1].data["s"] if hdus[bit + 1].data is not None else ():
                    triples = np.frombuffer(spans.tobytes(), ">i2").reshape(-1, 3)
                    for row, first, last in triples.astype(int):
                        mask[row, first : last + 1] |= np.uint16(1 << bit)
    except (OSError, EOFError, KeyError, IndexError, ValueError) as error:
        raise BadFrame(f"the mask file cannot be read ({' '.join(str(error).split())})") from None
    return mask
