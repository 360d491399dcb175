"""The imaging survey's fields: which field a position lies on, and where on it.

Geometry is that of the drift scan: great-circle coordinates mu (along the scan) and nu (across)
of a run's node and inclination; a to f turn a band's row and column into them (sdss.org, asTrans).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from pipeline import run
from pipeline.run import UserError
from pipeline.survey import positions, tables
from pipeline.survey.names import BANDS, FRAME_SHAPE, RERUN, unpack_objid

TERMS = "abcdef"
MARGIN = 64
"""Rows and columns at each edge that a field shares with its neighbours: SDSS trims them."""
PLACE = ("run", "camcol", "field")
GEOMETRY = ("muStart", "muEnd", "nuStart", "nuEnd", "node", "incl")
OPTIONAL = ("ra", "dec", "score", "primaryArea", "resolveStatus")
PER_BAND = ("psfWidth", "gain", "darkVariance")
REACH = 0.145
"""No pixel of a field is farther [deg] from its centre (half the diagonal is 0.1393)."""
PRIMARY_BIT = 0x100
BLOCK = 100_000


def read_fields(path: str | Path, geometry: bool = True) -> pd.DataFrame:
    """A field table: that of queries/fields.sql, a photoField file or window_flist.fits.

    Of any kind that `tables.read_table` takes. What it has decides how well a galaxy that comes
    with its position alone gets rowc and colc:

    - a to f with node and incl (photoField, in its header): to below a pixel;
    - a to f with ra and dec (queries/fields.sql), which give node and incl (`with_circles`): to
      two or three pixels;
    - muStart to nuEnd with node and incl (window_flist.fits): the field is found, but rowc and
      colc are left out, for the frame's own header to tell.

    Returns run, rerun, camcol, field (integers) and what the table has of `PER_BAND` (float32 where
    it is that in the table), of the geometry and of the columns that choose among fields (float64),
    named as in DR12's Field. Without `geometry` these last two are left out: galaxies whose fields
    are known need neither. Names match whatever their case and underscores. Rows of another rerun
    than 301 are left out, where the table says. Raises UserError for an unreadable table, missing
    columns or no rows.
    """
    frame = tables.read_table(path)
    present = {_key(name): name for name in frame.columns}
    for band in BANDS:  # photoField calls the term f FF
        if f"ff_{band}" in present:
            present.setdefault(f"f_{band}", present[f"ff_{band}"])
    lacking = [name for name in PLACE if name not in present]
    if lacking:
        raise UserError(
            f"{path}: has no column {', '.join(lacking)}; give a table of fields, this has "
            f"{tables.listed(frame.columns)}"
        )
    narrow = _by_band(PER_BAND)
    wanted = (*PLACE, "rerun", *narrow)
    if geometry:
        wanted += (*GEOMETRY, *OPTIONAL, *_by_band(TERMS))
    columns = {
        name: _numbers(frame[present[_key(name)]], name in narrow)
        for name in wanted
        if _key(name) in present
    }
    for name in ("node", "incl") if geometry else ():
        if name not in columns and name.upper() in frame.attrs.get("header", {}):
            columns[name] = np.full(len(frame), float(frame.attrs["header"][name.upper()]))
    del frame
    return with_circles(_checked(pd.DataFrame(columns, copy=False), path))


def _by_band(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}_{band}" for name in names for band in BANDS)


def _numbers(values: pd.Series, narrow: bool) -> np.ndarray:
    """Float64, or float32 where `values` are that and `narrow`; nan for what is no number."""
    if narrow and values.dtype == np.float32:
        return tables.without_missing(values.to_numpy())
    numbers = pd.to_numeric(values, errors="coerce")
    return tables.without_missing(numbers.to_numpy(np.float64, na_value=np.nan))


def _key(name: str) -> str:
    """PSF_WIDTH_r and psfWidth_r are one name; c_z (a term) and cz (a unit vector) are not."""
    name = name.strip().lower()
    stem, _, band = name.rpartition("_")
    return f"{stem.replace('_', '')}_{band}" if stem and band in BANDS else name.replace("_", "")


def _checked(fields: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    if "rerun" in fields:
        other = fields["rerun"] != RERUN
        fields = fields[~other] if other.any() else fields
    if fields.empty:
        raise UserError(f"{path}: has no field of rerun {RERUN}; give at least one")
    if fields[list(PLACE)].isna().any(axis=None):
        raise UserError(f"{path}: run, camcol or field is empty on some row; fill it in")
    fields = fields.astype(dict.fromkeys(PLACE, np.int32)).assign(rerun=np.int32(RERUN))
    fields = fields.sort_values(list(PLACE), ignore_index=True)
    again = fields.duplicated(list(PLACE))
    if again.any():
        run_, camcol, field = fields.loc[again, list(PLACE)].iloc[0]
        raise UserError(f"{path}: run {run_} camcol {camcol} field {field} is there twice")
    return fields


def great_circle(ra, dec, node, incl) -> tuple[np.ndarray, np.ndarray]:
    """mu, nu [deg] of `ra`, `dec` on the great circle of `node`, `incl` [deg]; mu near ra's turn.

    The inverse of `equatorial`.
    """
    ra, dec, node, incl = (np.radians(value) for value in (ra, dec, node, incl))
    x, y, z = np.cos(ra - node) * np.cos(dec), np.sin(ra - node) * np.cos(dec), np.sin(dec)
    along, across = y * np.cos(incl) + z * np.sin(incl), z * np.cos(incl) - y * np.sin(incl)
    mu = np.degrees(np.arctan2(along, x) + node)
    return mu % 360, np.degrees(np.arcsin(np.clip(across, -1, 1)))


def equatorial(mu, nu, node, incl) -> tuple[np.ndarray, np.ndarray]:
    """ra, dec [deg] of `mu`, `nu` on the great circle of `node`, `incl` [deg] (asTrans)."""
    mu, nu, node, incl = (np.radians(value) for value in (mu, nu, node, incl))
    x, y, z = np.cos(mu - node) * np.cos(nu), np.sin(mu - node) * np.cos(nu), np.sin(nu)
    ra = np.degrees(np.arctan2(y * np.cos(incl) - z * np.sin(incl), x) + node)
    return ra % 360, np.degrees(np.arcsin(np.clip(y * np.sin(incl) + z * np.cos(incl), -1, 1)))


def with_circles(fields: pd.DataFrame) -> pd.DataFrame:
    """Add node and incl [deg] to fields that have not got them but ra, dec and a_r to f_r.

    ra, dec is the place of the central pixel, of which a to f give mu and nu: the rotation of
    the run's great circle takes the one to the other. Its axis lies in the equator, so that two
    numbers describe it, and a run's fields together fix them: positions come out within two
    pixels even where a run is one field, its centre is a pixel off and its terms are float32.
    """
    if {"node", "incl"} <= set(fields) or not ({"ra", "dec"} <= set(fields)):
        return fields
    if not _has_terms(fields, "r"):
        return fields
    node, incl = np.full(len(fields), np.nan), np.full(len(fields), np.nan)
    on_circle = positions.unit_vectors(*_central_mu_nu(fields))
    on_sky = positions.unit_vectors(fields["ra"], fields["dec"])
    known = np.isfinite(on_circle).all(axis=1) & np.isfinite(on_sky).all(axis=1)
    for rows in fields[known].groupby("run").indices.values():
        rows = np.flatnonzero(known)[rows]
        node[rows], incl[rows] = _circle(on_circle[rows], on_sky[rows])
    return fields.assign(node=node, incl=incl)


def _circle(on_circle: np.ndarray, on_sky: np.ndarray) -> tuple[float, float]:
    """Node and inclination [deg] of the rotation from `on_circle` to `on_sky`, (n, 3) each."""

    def misses(axis):
        return (Rotation.from_rotvec([*axis, 0.0]).apply(on_circle) - on_sky).ravel()

    along = on_sky - on_circle
    first = np.argmax(np.hypot(along[:, 0], along[:, 1]))  # the field that fixes the axis best
    axis = np.array([-along[first, 1], along[first, 0], 0.0])
    axis /= max(np.hypot(*axis[:2]), 1e-12)
    start, end = on_circle[first], on_sky[first]
    angle = np.arctan2(axis @ np.cross(start, end), start @ end - (axis @ start) * (axis @ end))
    rotation = least_squares(misses, axis[:2] * angle, method="lm", xtol=1e-14, ftol=1e-14).x
    return np.degrees(np.arctan2(rotation[1], rotation[0])) % 360, np.degrees(np.hypot(*rotation))


def has_geometry(fields: pd.DataFrame) -> bool:
    """Whether positions can be found on these fields."""
    return {"node", "incl"} <= set(fields) and (
        _has_terms(fields, "r") or set(GEOMETRY) <= set(fields)
    )


def _has_terms(fields: pd.DataFrame, band: str) -> bool:
    return all(f"{term}_{band}" in fields for term in TERMS)


def pixel(fields: pd.DataFrame, rows: np.ndarray, ra, dec, band: str) -> tuple:
    """rowc, colc (SDSS's: integers at pixel edges) of `ra`, `dec` [deg] on `fields.iloc[rows]`.

    By a to f of the band, without the distortion terms and the colour's refraction (below a
    pixel, together). Without a to f: by the trimmed field's muStart to nuEnd, to about 20 rows.
    """
    column = {name: fields[name].to_numpy() for name in fields}
    mu, nu = great_circle(ra, dec, column["node"][rows], column["incl"][rows])
    if _has_terms(fields, band):
        a, b, c, d, e, f = (column[f"{term}_{band}"][rows] for term in TERMS)
        mu, nu = (mu - a + 180) % 360 - 180, nu - d
        determinant = b * f - c * e
        return (f * mu - c * nu) / determinant, (b * nu - e * mu) / determinant
    start, end = column["muStart"][rows], column["muEnd"][rows]
    along = ((mu - start + 180) % 360 - 180) / ((end - start) % 360)
    start, end = column["nuStart"][rows], column["nuEnd"][rows]
    across = (nu - start) / (end - start)
    height, width = FRAME_SHAPE
    return MARGIN + along * (height - 2 * MARGIN), MARGIN + across * (width - 2 * MARGIN)


def centres(fields: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """ra, dec [deg] of the fields' central pixels in r."""
    if _has_terms(fields, "r"):
        mu, nu = _central_mu_nu(fields)
    else:
        start, end = fields["muStart"].to_numpy(), fields["muEnd"].to_numpy()
        mu = start + ((end - start) % 360) / 2
        nu = (fields["nuStart"].to_numpy() + fields["nuEnd"].to_numpy()) / 2
    return equatorial(mu, nu, fields["node"].to_numpy(), fields["incl"].to_numpy())


def _central_mu_nu(fields: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    height, width = FRAME_SHAPE
    a, b, c, d, e, f = (fields[f"{term}_r"].to_numpy() for term in TERMS)
    return a + b * height / 2 + c * width / 2, d + e * height / 2 + f * width / 2


def locate(ra, dec, fields: pd.DataFrame) -> np.ndarray:
    """For each position [deg] the row of the field it lies on, -1 where it lies on none; int64.

    Of several fields the choice is, in this order: one that is primary somewhere (primaryArea
    above 0, or the primary bit of resolveStatus); one where it lies inside the 64-pixel margin
    that fields share; the best score; the centre that is nearest; the first in run, camcol, field.
    Raises UserError where the table has no geometry.
    """
    if not has_geometry(fields):
        raise UserError(
            "the field table cannot place positions; it needs a_r to f_r with ra and dec, or node, "
            "incl, muStart, muEnd, nuStart and nuEnd (queries/fields.sql gives them)"
        )
    ra, dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    centre = positions.unit_vectors(*centres(fields))
    usable = np.flatnonzero(np.isfinite(centre).all(axis=1))
    tree = cKDTree(centre[usable])
    found = np.full(len(ra), -1, dtype=np.int64)
    if not len(ra):
        return found
    progress = run.Progress("fields of positions", len(ra), "positions")
    for start in range(0, len(ra), BLOCK):
        block = slice(start, start + BLOCK)
        vectors = positions.unit_vectors(ra[block], dec[block])
        lists = tree.query_ball_point(vectors, positions.chord(REACH), return_sorted=False)
        point = np.repeat(np.arange(len(lists)), [len(near) for near in lists])
        rows = usable[np.concatenate(lists).astype(np.int64)] if len(point) else point
        best = _best(point, rows, ra[block][point], dec[block][point], fields)
        found[start + best[0]] = best[1]
        progress.add(len(lists))
    progress.close()
    return found


def of_ids(objid) -> dict[str, np.ndarray] | None:
    """run, rerun, camcol, field (int32) that SDSS objIDs (int64) hold; None where one is no such.

    An id counts as SDSS's where it is positive, of sky version 2 and rerun 301, and of a run and
    a camcol that can be.
    """
    objid = np.asarray(objid, np.int64)
    part = unpack_objid(objid)
    known = (objid > 0) & (part["skyVersion"] == 2) & (part["rerun"] == RERUN)
    known &= (part["run"] > 0) & (part["camcol"] >= 1) & (part["camcol"] <= 6)
    names = ("run", "rerun", "camcol", "field")
    return {name: part[name].astype(np.int32) for name in names} if known.all() else None


def rows_of(fields: pd.DataFrame, place: dict[str, np.ndarray]) -> np.ndarray:
    """For each run, camcol, field of `place` the row of that field, -1 where it is not there."""
    known, wanted = (
        pd.MultiIndex.from_arrays([table[name] for name in PLACE]) for table in (fields, place)
    )
    return known.get_indexer(wanted)


def _best(point, rows, ra, dec, fields: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Of the pairs (point, field row), those that hold, one a point: the best."""
    row, column = pixel(fields, rows, ra, dec, "r")
    height, width = FRAME_SHAPE
    edge = np.minimum(np.minimum(row, height - row), np.minimum(column, width - column))
    inner = edge >= MARGIN
    holds = edge >= 0 if _has_terms(fields, "r") else inner
    centre = np.hypot(row - height / 2, column - width / 2)
    score = np.nan_to_num(fields["score"].to_numpy()[rows]) if "score" in fields else 0 * row
    primary = _primary(fields)[rows]
    order = np.lexsort((rows, centre, -score, ~inner, ~primary, point))
    order = order[holds[order]]
    first = np.unique(point[order], return_index=True)[1]
    return point[order][first], rows[order][first]


def _primary(fields: pd.DataFrame) -> np.ndarray:
    if "primaryArea" in fields:
        return fields["primaryArea"].to_numpy() > 0
    if "resolveStatus" in fields:
        return (fields["resolveStatus"].fillna(0).astype(np.int64) & PRIMARY_BIT).to_numpy() > 0
    return np.ones(len(fields), dtype=bool)


def pixels_of_bands(fields: pd.DataFrame, rows: np.ndarray, ra, dec) -> dict[str, np.ndarray]:
    """rowc_b and colc_b of the positions on their fields, for the bands that have a to f.

    NaN where the field's row is -1; nothing from fields without geometry.
    """
    columns = {}
    for band in BANDS:
        if has_geometry(fields) and _has_terms(fields, band):
            place = pixel(fields, rows, ra, dec, band)
            for name, values in zip(("rowc", "colc"), place, strict=True):
                columns[f"{name}_{band}"] = np.where(rows >= 0, values, np.nan)
    return columns
