"""The cuts between a query and a catalogue, each one counted, each removed row with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from pipeline.run import UserError
from pipeline.survey import positions

ARCSEC = 1 / 3600
CUT_BY = (
    "objID", "specObjID", "ra", "dec", "b", "run", "camcol", "field", "z", "zErr", "mode",
    "sciencePrimary", "photoz",
)  # fmt: skip
"""What cuts, order and splits look at."""

PAPER = {
    ("labelled", "queried"): 547_224,
    ("labelled", "no other nearby"): 502_977,
    ("unlabelled", "photo-z"): 1_194_779,
}
"""Hayat et al. 2020, section 2: its counts after the steps that it gives counts for."""


@dataclass
class Sample:
    """Galaxies on their way through the cuts; `name` is `labelled` or `unlabelled`.

    `steps` counts what is left after each cut, `removed` holds what went, with the reason.
    """

    name: str
    rows: pd.DataFrame
    steps: list[dict] = field(default_factory=list)
    removed: list[pd.DataFrame] = field(default_factory=list)

    def __post_init__(self):
        self._count("queried", "queried", 0)

    def cut(self, key: str, step: str, remove, reason: str) -> None:
        """Remove the rows where `remove` (n,) is true; `step` says in words what is left."""
        remove = np.asarray(remove, dtype=bool)
        if remove.any():
            columns = [name for name in ("objID", "specObjID", "ra", "dec") if name in self.rows]
            gone = self.rows.loc[remove, columns]
            self.removed.append(gone.assign(sample=self.name, reason=reason))
            self.rows = self.rows[~remove].reset_index(drop=True)
        self._count(key, step, int(remove.sum()))

    def _count(self, key: str, step: str, removed: int) -> None:
        paper = PAPER.get((self.name, key))
        count = len(self.rows)
        self.steps.append({"step": step, "count": count, "removed": removed, "paper": paper})


def narrow(samples: Iterable[Sample]) -> None:
    """Leave the columns of `CUT_BY`, and `row`: a row's place in the samples one after the other.

    So that cuts and sorting do not copy all columns again and again.
    """
    first = 0
    for sample in samples:
        row = np.arange(first, first + len(sample.rows))
        first += len(row)
        sample.rows = sample.rows.filter(CUT_BY).assign(row=row)


def cut_nearby(sample: Sample, radius: float) -> None:
    """Of galaxies within `radius` [arcsec] of each other leave one; see `nearby`."""
    if radius < 0:
        raise UserError(f"duplicate-radius: {radius}; give arcseconds from 0 up (the paper: 1)")
    close = nearby(sample.rows, radius)
    text = f"within {radius:g} arcsec of another galaxy"
    sample.cut("no other nearby", f"no other within {radius:g} arcsec", close, text)


def cut_latitude(sample: Sample, limit: float | None) -> None:
    """Leave |b| >= `limit` [deg]; None: all."""
    if limit is not None:
        low = np.abs(sample.rows["b"].to_numpy()) < limit
        sample.cut("latitude", f"|b| >= {limit:g} deg", low, f"|b| below {limit:g} deg")


def cut_photoz(sample: Sample, limit: float | None, drop: bool) -> None:
    """Leave photo-z <= `limit` (None: all), and those without photo-z unless `drop`; count them."""
    rows = sample.rows
    if "photoz" not in rows and limit is None and not drop:
        return
    photoz = rows["photoz"].to_numpy() if "photoz" in rows else np.full(len(rows), np.nan)
    missing = np.isnan(photoz)
    step = "photo-z missing, dropped" if drop else "photo-z missing, kept"
    sample.cut("photo-z missing", step, missing & drop, "photo-z missing")
    sample.steps[-1]["missing"] = int(missing.sum())
    if limit is not None:
        high = photoz[~(missing & drop)] > limit
        sample.cut("photo-z", f"photo-z <= {limit:g}", high, f"photo-z above {limit:g}")


def repeats(rows: pd.DataFrame) -> np.ndarray:
    """All rows of an object but one: sciencePrimary stays, then the smallest zErr; bool, (n,)."""
    keys = [_column(rows, name) for name in ("z", "specObjID", "zErr")]
    order = np.lexsort([*keys, _column(rows, "sciencePrimary", -1), rows["objID"].to_numpy()])
    objid = rows["objID"].to_numpy()[order]
    again = np.zeros(len(rows), dtype=bool)
    again[order[1:]] = objid[1:] == objid[:-1]
    return again


def nearby(rows: pd.DataFrame, radius: float) -> np.ndarray:
    """Rows to remove so that no two are within `radius` [arcsec]; bool, (n,).

    Of two that are, the one stays that is a sciencePrimary, then the primary detection (mode 1),
    then that of the smaller zErr, then of the smaller objID. The objIDs must be unique.
    """
    order = np.lexsort((
        rows["objID"].to_numpy(), _column(rows, "zErr"), _column(rows, "mode"),
        _column(rows, "sciencePrimary", -1),
    ))  # fmt: skip
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    return positions.duplicates(rows["ra"], rows["dec"], rank, radius * ARCSEC)


def also_labelled(rows: pd.DataFrame, labelled: pd.DataFrame, radius: float) -> np.ndarray:
    """Rows that are in `labelled`, by objID or by a position within `radius` [arcsec]."""
    same = np.isin(rows["objID"].to_numpy(), labelled["objID"].to_numpy())
    place = (rows["ra"], rows["dec"], labelled["ra"], labelled["dec"])
    return same | positions.near(*place, radius * ARCSEC)


def _column(rows: pd.DataFrame, name: str, sign: int = 1) -> np.ndarray:
    """`sign` times a column, to sort by: ids stay integers, what is missing sorts last.

    A column that the table has not ties everywhere.
    """
    if name not in rows:
        return np.zeros(len(rows), dtype=np.int64)
    if pd.api.types.is_integer_dtype(rows[name]):
        return sign * rows[name].to_numpy(np.int64, na_value=sign * np.iinfo(np.int64).max)
    return np.nan_to_num(sign * rows[name].to_numpy(np.float64, na_value=np.nan), nan=np.inf)
