"""What the stages after the cutouts read beside shards: dataset.json and the catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.run import UserError

FORMAT = "ugriz-dataset"
VERSION = 1
_KEYS = ("survey", "galaxies", "splits", "failures", "coverage", "stamp", "pixels", "shards")


def read(path: str | Path) -> dict:
    """The content of a dataset.json (docs/data-format.md describes its keys).

    Raises:
        UserError: no such file, no dataset.json, or one of another version.
    """
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the rule dataset") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); make it anew") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not a dataset.json of ugriz (no format = {FORMAT})")
    if content.get("format_version") != VERSION:
        raise UserError(
            f"{path}: dataset format {content.get('format_version')}, this ugriz reads {VERSION}; "
            "make it anew, or use the ugriz that wrote it"
        )
    missing = [key for key in _KEYS if key not in content]
    if missing:
        raise UserError(f"{path}: key {missing[0]} is missing; make it anew")
    return content


def shard_paths(path: str | Path, content: dict) -> Iterator[Path]:
    """Where the shards of the dataset.json at `path` lie, in its order."""
    for entry in content["shards"]:
        yield Path(path).parent / entry["file"]


def read_catalog(
    path: str | Path, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> pd.DataFrame:
    """The columns `required`, and those of `optional` that are there, of a catalog.parquet.

    Numbers come as pandas' nullable types, so that an id is never a float.

    Raises:
        UserError: no such file, not Parquet, or a required column is missing.
    """
    try:
        names = pq.read_schema(path).names
        missing = [name for name in required if name not in names]
        if missing:
            raise UserError(f"{path}: column {missing[0]} is missing; rerun the rule catalog")
        wanted = [name for name in names if name in {*required, *optional}]
        return pd.read_parquet(path, columns=wanted, dtype_backend="numpy_nullable")
    except FileNotFoundError:
        raise UserError(f"{path}: no such catalogue; run the rule catalog") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as Parquet ({reason}); make it anew") from None


def catalogued(path: str | Path, objid: np.ndarray, columns: tuple[str, ...]) -> pd.DataFrame:
    """Those of `columns` that a catalog.parquet has, of the galaxies `objid` (n,), in their order.

    Raises:
        UserError: as `read_catalog`, or a galaxy is not in it.
    """
    table = read_catalog(path, ("objID",), columns)
    table.index = table.pop("objID").to_numpy(dtype=np.int64)
    unknown = np.setdiff1d(objid, table.index)
    if len(unknown):
        raise UserError(f"{path}: galaxy {unknown[0]} is not in it ({len(unknown)} such); give the "
                        "catalogue that the dataset was made from")  # fmt: skip
    return table.loc[objid]
