"""Which frames a stamp needs: its own field's and, band by band, the neighbours it reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from astropy.io import fits

from pipeline.survey.frame import BadFrame, projection
from pipeline.survey.names import BANDS, FRAME_SHAPE, Field

SMALLEST_SCALE = 0.3955 / 3600
"""Degrees per pixel: no SDSS frame has smaller pixels (0.39579 to 0.39616 arcsec measured)."""
SLACK = 3.0
"""Pixels by which a catalogue's rowc may differ from the place that the WCS tells."""


class Need(NamedTuple):
    """A galaxy (row of its table) that a frame is read for; `own` if the frame is its field's."""

    row: int
    own: bool


Needs = dict[tuple[Field, str], list[Need]]
HeaderOf = Callable[[Field, str], fits.Header | None]


def frames_needed(galaxies: pd.DataFrame, reach: float, header_of: HeaderOf) -> Needs:
    """The frames for stamps that reach `reach` degrees from their galaxies.

    `galaxies` has run, camcol, field, ra, dec and, where known, rerun and rowc_u .. rowc_z (SDSS
    pixels: integer at the pixel's edge). Where rowc is missing the row comes from the own frame's
    header, through `header_of(field, band)` (None if it cannot be had). Frames are in the order
    of the fields, bands u g r i z within; rows in the table's order.
    """
    own = [Field(*key) for key in _keys(galaxies)]
    needs: dict[tuple[Field, str], list[Need]] = {}
    for number, band in enumerate(BANDS):
        rows = _rows_on_frame(galaxies, own, band, header_of)
        below, above = beyond(rows, reach)
        for row, field in enumerate(own):
            needs.setdefault((field, number), []).append(Need(row, True))
            if below[row] and field.field > 0:
                neighbour = field._replace(field=field.field - 1)
                needs.setdefault((neighbour, number), []).append(Need(row, False))
            if above[row]:
                neighbour = field._replace(field=field.field + 1)
                needs.setdefault((neighbour, number), []).append(Need(row, False))
    return {(field, BANDS[number]): needs[field, number] for field, number in sorted(needs)}


def beyond(rows: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether stamps that reach `reach` degrees leave their frames: before row 0, past the last.

    `rows` are 0-based rows on the own frame; NaN, an unknown row, leaves it nowhere.
    """
    pixels = reach / SMALLEST_SCALE + SLACK
    return rows - pixels < -0.5, rows + pixels > FRAME_SHAPE[0] - 0.5


def rows_of_rowc(rowc: np.ndarray) -> np.ndarray:
    """0-based rows (float64) of a catalogue's rowc; NaN where it is missing or far off a frame."""
    rows = rowc.astype("float64") - 0.5
    rows[(rows < -FRAME_SHAPE[0]) | (rows > 2 * FRAME_SHAPE[0])] = np.nan
    return rows


def _keys(galaxies: pd.DataFrame) -> np.ndarray:
    rerun = galaxies["rerun"] if "rerun" in galaxies else pd.Series(301, index=galaxies.index)
    columns = [galaxies["run"], galaxies["camcol"], galaxies["field"], rerun]
    return np.stack([column.to_numpy(dtype="int64") for column in columns], axis=1).tolist()


def _rows_on_frame(
    galaxies: pd.DataFrame, own: list[Field], band: str, header_of: HeaderOf
) -> np.ndarray:
    """0-based row of each galaxy on its own frame; NaN where it cannot be told."""
    column = f"rowc_{band}"
    rows = np.full(len(galaxies), np.nan)
    if column in galaxies:
        rows = rows_of_rowc(galaxies[column].to_numpy(dtype="float64", na_value=np.nan))
    sky = galaxies[["ra", "dec"]].to_numpy(dtype="float64")
    unknown: dict[Field, list[int]] = {}
    for row in np.flatnonzero(np.isnan(rows)):
        unknown.setdefault(own[row], []).append(row)
    for field, members in unknown.items():
        header = header_of(field, band)
        if header is not None:
            rows[members] = _world_to_row(header, sky[members])
    return rows


def _world_to_row(header: fits.Header, sky: np.ndarray) -> np.ndarray:
    try:
        return projection(header).wcs_world2pix(sky, 0)[:, 1]
    except BadFrame:
        return np.full(len(sky), np.nan)
