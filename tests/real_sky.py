"""The real frames and galaxies, each frame decompressed once in a test run."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.images.geometry import corners, window
from pipeline.survey import frame
from pipeline.survey.names import Field, frame_path

STRIPE82 = Field(2820, 3, 122)
CLUSTER = Field(2583, 2, 136)
NEIGHBOURS = (Field(3565, 1, 58), Field(3565, 1, 59))


def root(real_data: Path) -> Path:
    return real_data / "sas" / "dr9"


@cache
def raw(real_data: Path, field: Field, band: str) -> bytes:
    return frame.decompress((root(real_data) / frame_path(field, band)).read_bytes())


@cache
def read(real_data: Path, field: Field, band: str) -> frame.Frame:
    return frame.parse(raw(real_data, field, band), field, band)


@cache
def galaxies(real_data: Path) -> pd.DataFrame:
    columns = ["objID", "name", "run", "rerun", "camcol", "field", "ra", "dec"]
    return pd.read_csv(real_data / "galaxies.csv", dtype={"objID": "int64"})[columns]


def galaxy(real_data: Path, name: str) -> tuple[float, float]:
    table = galaxies(real_data).set_index("name")
    return float(table.ra[name]), float(table.dec[name])


def patch_of(image: frame.Frame, ra: float, dec: float, stamp, margin=12):
    """A part of a frame around a stamp, its WCS, and the stamp's corners on it."""
    wcs = image.wcs()
    points = corners(stamp, ra, dec, wcs)
    part = window(points, image.image.shape, margin)
    wcs.wcs.crpix -= part.origin
    patch = image.image[part.rows, part.columns].astype(np.float32)
    return patch, wcs, points - part.origin
