"""Predicted types, early or late, of the same test galaxies by many runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline import run
from pipeline.evaluation.predictions import in_common, prediction_files, read_test_rows

COLUMNS = ("objID", "split", "labels", "early", "p_early")
FILES = "predictions-*.parquet"
_NAME = re.compile(r"predictions-(?P<seed>\d+)\.parquet")
_AGAIN = "run the rule train_morphology again"


class TypeRun(NamedTuple):
    """One classifier: what it started from, how many labelled galaxies it learnt from, its seed."""

    start: str
    labels: int
    seed: int

    def __str__(self) -> str:
        return f"{self.start}/predictions-{self.seed} with {self.labels} labels"


@dataclass(frozen=True)
class TypeSample:
    """The test galaxies that all classifiers have predicted, n of them, by objID.

    The positive class is early type.
    """

    objid: np.ndarray
    """(n,) int64, rising."""
    early: np.ndarray
    """(n,) bool, the truth; both classes have members."""
    runs: dict[TypeRun, np.ndarray]
    """p_early (n,) float64 of each classifier, sorted by their names."""
    counts: dict[str, int] = field(default_factory=dict)
    """compared: by all, and of these early and late; predicted: by any."""


def read_types(predictions: Sequence[str | Path]) -> TypeSample:
    """Read what classifiers predict for their test galaxies.

    Args:
        predictions: files named {start}/predictions-{seed}.parquet, or folders that have such
            files below them. A file holds the rows of each galaxy once per number of labels.

    Raises:
        UserError: a file cannot be read or names no run, or is given twice; no prediction, no
            test galaxy, none in common; no probability; two types for one galaxy; a class
            without a member.
    """
    files: dict[tuple[str, int], Path] = {}
    for path in prediction_files(predictions, FILES, "run the rule train_morphology"):
        key = run_of(path)
        if key in files:
            raise run.UserError(
                f"{path}: {key[0]} with seed {key[1]} is given twice; leave one out"
            )
        files[key] = path
    tables = {
        TypeRun(start, int(labels), seed): table.set_index("objID")
        for (start, seed), path in sorted(files.items())
        for labels, table in _read(path).groupby("labels")
    }
    common, predicted = in_common([table.index for table in tables.values()])
    tables = {key: table.loc[common] for key, table in sorted(tables.items())}
    early = _one_type(tables)
    return TypeSample(
        common.to_numpy(),
        early,
        {key: table["p_early"].to_numpy() for key, table in tables.items()},
        {
            "compared": len(early),
            "early": int(early.sum()),
            "late": int(np.sum(~early)),
            "predicted": predicted,
        },
    )


def run_of(path: Path) -> tuple[str, int]:
    """(start, seed) of a file, from its path .../{start}/predictions-{seed}.parquet."""
    parts = path.absolute().parts
    match = _NAME.fullmatch(parts[-1])
    if match is None or len(parts) < 3:
        raise run.UserError(
            f"{path}: its path names no run; it should be START/predictions-SEED.parquet"
        )
    return parts[-2], int(match["seed"])


def _read(path: Path) -> pd.DataFrame:
    """The test rows of a file: all columns but split, in plain types, none empty."""
    table = read_test_rows(path, COLUMNS)
    if table.empty:
        raise run.UserError(f"{path}: no test galaxy is in it; look at the catalogue's split")
    found = pd.DataFrame({
        "objID": _column(path, table, "objID", pd.api.types.is_integer_dtype, np.int64),
        "labels": _column(path, table, "labels", pd.api.types.is_integer_dtype, np.int64),
        "early": _column(path, table, "early", pd.api.types.is_bool_dtype, bool),
        "p_early": _chances(path, table),
    })  # fmt: skip
    if found["labels"].min() < 1:
        raise run.UserError(f"{path}: labels are {found['labels'].min()} somewhere; {_AGAIN}")
    if found.duplicated(["objID", "labels"]).any():
        raise run.UserError(f"{path}: a galaxy is in it twice for a number of labels; {_AGAIN}")
    return found


def _column(path: Path, table: pd.DataFrame, name: str, is_right, kind: type) -> np.ndarray:
    column = table[name]
    if not is_right(column.dtype):
        raise run.UserError(
            f"{path}: column {name} is {column.dtype}, not {kind.__name__}; {_AGAIN}"
        )
    if column.isna().any():
        raise run.UserError(f"{path}: {name} is empty in {column.isna().sum()} rows; {_AGAIN}")
    return column.to_numpy(dtype=kind)


def _chances(path: Path, table: pd.DataFrame) -> np.ndarray:
    column = table["p_early"]
    if not pd.api.types.is_numeric_dtype(column.dtype):
        raise run.UserError(f"{path}: column p_early is {column.dtype}, not float64; {_AGAIN}")
    chances = column.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.flatnonzero(~((chances >= 0) & (chances <= 1)))  # NaN too
    if len(bad):
        raise run.UserError(
            f"{path}: p_early of galaxy {table['objID'].iloc[bad[0]]} is {chances[bad[0]]:g}, no "
            f"probability ({len(bad)} such); {_AGAIN}"
        )
    return chances


def _one_type(tables: dict[TypeRun, pd.DataFrame]) -> np.ndarray:
    """The types, which all runs must agree on, of both classes."""
    (first, table), *others = tables.items()
    early = table["early"].to_numpy()
    names = {True: "early", False: "late"}
    for key, other in others:
        differs = np.flatnonzero(other["early"].to_numpy() != early)
        if len(differs):
            at = differs[0]
            raise run.UserError(
                f"galaxy {table.index[at]} is of {names[bool(early[at])]} type in {first} and not "
                f"in {key}; train all on one dataset"
            )
    for kind in (True, False):
        if not np.any(early == kind):
            raise run.UserError(
                f"none of the {len(early)} test galaxies that are compared is of {names[kind]} "
                "type, which roc_auc needs; take more test galaxies"
            )
    return early
