"""Which frames a stamp needs: its own field's and, band by band, the neighbours it reaches.

`frames_needed` names them, galaxy by galaxy; `count_frames` counts those of a whole survey.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from astropy.io import fits

from pipeline.survey.frame import BadFrame, projection
from pipeline.survey.names import BANDS, FIELD_STEP, FRAME_SHAPE, Field

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
    rows = _rows_of_catalogue(galaxies, band)
    sky = galaxies[["ra", "dec"]].to_numpy(dtype="float64")
    unknown: dict[Field, list[int]] = {}
    for row in np.flatnonzero(np.isnan(rows)):
        unknown.setdefault(own[row], []).append(row)
    for field, members in unknown.items():
        header = header_of(field, band)
        if header is not None:
            rows[members] = _world_to_row(header, sky[members])
    return rows


def _rows_of_catalogue(galaxies: pd.DataFrame, band: str) -> np.ndarray:
    column = f"rowc_{band}"
    if column not in galaxies:
        return np.full(len(galaxies), np.nan)
    return rows_of_rowc(galaxies[column].to_numpy(dtype="float64", na_value=np.nan))


def _world_to_row(header: fits.Header, sky: np.ndarray) -> np.ndarray:
    try:
        return projection(header).wcs_world2pix(sky, 0)[:, 1]
    except BadFrame:
        return np.full(len(sky), np.nan)


class Counted(NamedTuple):
    """How many frames the stamps of a catalogue need.

    Where a galaxy's rowc is missing its neighbours count in `most`, not in `least`, and with their
    chance in `expected`. `in_shard[i]` are those expected of shard i, `most_in_shard[i]` its most;
    a frame that stamps of two shards need is in both.
    """

    fields: int
    without_rowc: int
    least: int
    expected: float
    most: int
    in_shard: np.ndarray
    most_in_shard: np.ndarray


class _Frames(NamedTuple):
    """Different frames of a band (as integers), each one's chance to be needed; first the sure."""

    keys: np.ndarray
    chance: np.ndarray
    sure: int


def count_frames(galaxies: pd.DataFrame, reach: float) -> Counted:
    """Count what `frames_needed` names, for millions of galaxies in seconds.

    `galaxies` is as there, without nulls in run, rerun, camcol and field, and with the column shard
    (from 0).
    """
    own, span = _numbered(galaxies)
    shard = galaxies["shard"].to_numpy(dtype="int64")
    pairs = own + shard * span
    own_fields, own_pairs = np.unique(own), np.unique(pairs)
    has_before = galaxies["field"].to_numpy() > 0
    chance = chance_of_neighbour(reach)
    least, expected, most, in_shard = 0, 0.0, 0, np.zeros(shard.max() + 1)
    most_in_shard = np.zeros(len(in_shard), dtype="int64")
    without_rowc = np.zeros(len(own), bool)
    for band in BANDS:
        rows = _rows_of_catalogue(galaxies, band)
        unknown = np.isnan(rows)
        without_rowc |= unknown
        below, above = beyond(rows, reach)
        sides = ((-1, below & has_before, unknown & has_before), (1, above, unknown))
        frames = _frames(own, own_fields, sides, chance)
        least, most = least + frames.sure, most + len(frames.keys)
        expected += float(frames.chance.sum())
        each = _frames(pairs, own_pairs, sides, chance)
        in_shard += np.bincount(each.keys // span, each.chance, len(in_shard))
        most_in_shard += np.bincount(each.keys // span, minlength=len(in_shard))
    lost = int(without_rowc.sum())
    return Counted(len(own_fields), lost, least, expected, most, in_shard, most_in_shard)


def chance_of_neighbour(reach: float) -> float:
    """The share of galaxies whose stamps leave their frame at one given end.

    As if galaxies lay evenly on the 1361 rows that a field does not give to its neighbours.
    """
    margin = (FRAME_SHAPE[0] - FIELD_STEP) / 2
    rows = margin - 0.5 + np.arange(0, FIELD_STEP, 0.1)
    return float(np.mean(beyond(rows, reach)[0]))


def _numbered(galaxies: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Each galaxy's field as an integer (the next field of its run and camcol is the next integer),
    and a bound of these integers and their neighbours.
    """
    field = galaxies["field"].to_numpy(dtype="int64")
    numbers, span = field + 1, int(field.max()) + 3
    for name in ("run", "camcol", "rerun"):
        if name in galaxies:
            codes, values = pd.factorize(galaxies[name])
            numbers, span = numbers + codes * span, span * len(values)
    return numbers, span


def _frames(numbers: np.ndarray, own: np.ndarray, sides, chance: float) -> _Frames:
    """Frames of one band for galaxies on the fields `numbers` (`own`: each field once).

    `sides` are (step to the neighbour, whether each galaxy needs it, whether that is unknown).
    """
    sure = np.union1d(own, np.concatenate([numbers[needs] + step for step, needs, _ in sides]))
    perhaps = np.concatenate([numbers[unknown] + step for step, _, unknown in sides])
    perhaps, times = np.unique(perhaps, return_counts=True)
    new = ~np.isin(perhaps, sure, assume_unique=True)
    chances = np.concatenate([np.ones(len(sure)), 1 - (1 - chance) ** times[new]])
    return _Frames(np.concatenate([sure, perhaps[new]]), chances, len(sure))
