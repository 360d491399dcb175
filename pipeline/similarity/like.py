"""Which galaxy of a set a person means, and its likes as a table to read."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from pipeline.run import UserError
from pipeline.survey.positions import unit_vectors

_WHOLE = re.compile(r"[+-]?\d{1,19}")


def find(text: str, table: pd.DataFrame, radius: float, where: object) -> int:
    """The row of `table` (objID, ra, dec) that "OBJID" or "RA,DEC" [deg] names.

    A position names the nearest galaxy within `radius` [arcsec]. `where` is the file, for errors.

    Raises:
        UserError: neither an objID nor a position, an objID that the set has not, no galaxy
            within the radius, or none at all.
    """
    if _WHOLE.fullmatch(text.strip()):
        wanted = int(text)
        rows = np.flatnonzero(table["objID"].to_numpy() == wanted)
        if not len(rows):
            raise UserError(
                f"like: objID {wanted} is none of the {len(table)} galaxies of {where}; "
                "give another, or RA,DEC in degrees"
            )
        return int(rows[0])
    ra, dec = parse_position(text)
    if not len(table):
        raise UserError(f"like: {where} holds no galaxies; give another file of vectors")
    apart = separation(ra, dec, table["ra"].to_numpy(), table["dec"].to_numpy())
    row = int(np.argmin(apart))
    if apart[row] > radius:
        raise UserError(
            f"like: no galaxy of {where} within {radius:g} arcsec of {ra:g},{dec:g}; the nearest "
            f"of {len(table)} is {table['objID'].iloc[row]}, {angle(apart[row])} away"
        )
    return row


def parse_position(text: str) -> tuple[float, float]:
    """RA and Dec [deg] of "RA,DEC".

    Raises:
        UserError: it is not two numbers, or they are no position.
    """
    try:
        ra, dec = (float(part) for part in text.split(","))
    except ValueError:
        ra = dec = np.nan
    if not (0 <= ra <= 360 and -90 <= dec <= 90):
        raise UserError(
            f"like: {text!r} is no objID and no RA,DEC; give two numbers in degrees, such as "
            "185.7288,15.8223"
        )
    return ra, dec


def separation(ra: float, dec: float, other_ra, other_dec) -> np.ndarray:
    """Arcsec from one position to others, all [deg]; exact for small and large angles."""
    one, other = unit_vectors(ra, dec), unit_vectors(other_ra, other_dec)
    chords = np.linalg.norm(other - one, axis=-1)
    return 3600 * np.degrees(2 * np.arcsin(np.clip(chords / 2, 0, 1)))


def likes(table: pd.DataFrame, query: int, rows: np.ndarray, similarity) -> pd.DataFrame:
    """The neighbours `rows` of the galaxy in row `query`, nearest first.

    Columns objID, ra, dec [deg], similarity, z, petroMag_r and separation [arcsec].
    """
    found = table.iloc[rows].reset_index(drop=True)
    ra, dec = table["ra"].iloc[query], table["dec"].iloc[query]
    found["similarity"] = similarity
    found["separation"] = separation(ra, dec, found["ra"], found["dec"])
    return found[["objID", "ra", "dec", "similarity", "z", "petroMag_r", "separation"]]


def in_words(table: pd.DataFrame, query: int, found: pd.DataFrame, kind: str) -> str:
    """A line for the galaxy asked for, then the table `found` of `likes`; - is unknown."""
    one = next(table.iloc[[query]].itertuples())  # a row as a Series may turn its id into a float
    head = (
        f"{one.objID} at {one.ra:.6f},{one.dec:.6f}, z {_number(one.z, 4)}, "
        f"r {_number(one.petroMag_r, 2)}; its nearest of {len(table)} by {kind} vectors:"
    )
    lines = [("objID", "ra", "dec", "similarity", "z", "r", "separation")]
    for row in found.itertuples():
        lines.append(
            (str(row.objID), f"{row.ra:.6f}", f"{row.dec:.6f}", f"{row.similarity:.4f}",
             _number(row.z, 4), _number(row.petroMag_r, 2), angle(row.separation))
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join([head, *rows])


def angle(arcsec: float) -> str:
    """An angle in the unit that reads best: arcsec, arcmin or deg."""
    if arcsec < 100:
        return f"{arcsec:.1f} arcsec"
    return f"{arcsec / 60:.1f} arcmin" if arcsec < 6000 else f"{arcsec / 3600:.1f} deg"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"
