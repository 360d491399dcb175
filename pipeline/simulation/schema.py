"""The DR12 tables that are simulated: columns and types as in CAS, written to DuckDB."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from pipeline.survey.dr12 import DUCKDB_TYPES, columns

KEYS = {
    "PhotoObjAll": "objID", "SpecObjAll": "specObjID", "Photoz": "objID",
    "galSpecInfo": "specObjID", "zooSpec": "specobjid", "Field": "fieldID",
}  # fmt: skip
_NUMPY_TYPES = {
    "bigint": np.int64, "int": np.int32, "smallint": np.int16, "tinyint": np.uint8,
    "real": np.float32, "float": np.float64, "varchar": object,
}  # fmt: skip


def conform(rows: pd.DataFrame, table: str) -> pd.DataFrame:
    """Rows with exactly the table's columns, in its order and types, sorted by its key."""
    kinds = columns(table)
    missing = set(kinds) - set(rows.columns)
    if missing:
        raise ValueError(f"{table} lacks {sorted(missing)}")
    typed = {name: rows[name].to_numpy().astype(_NUMPY_TYPES[kind]) for name, kind in kinds.items()}
    return pd.DataFrame(typed).sort_values(KEYS[table], kind="stable", ignore_index=True)


def write_database(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Write the tables to a DuckDB file, in order of name and key.

    Equal tables give files with equal contents, not with equal bytes: DuckDB puts a random
    identifier into its header and leaves unused bytes of its blocks as they come.
    """
    with duckdb.connect(path, config={"threads": 1}) as database:
        for name in sorted(tables):
            kinds = columns(name)
            listed = ", ".join(f'"{c}" {DUCKDB_TYPES[k]} NOT NULL' for c, k in kinds.items())
            database.execute(f'CREATE TABLE "{name}" ({listed})')
            database.register("incoming", tables[name])
            database.execute(f'INSERT INTO "{name}" SELECT * FROM incoming ORDER BY "{KEYS[name]}"')
            database.unregister("incoming")
        database.execute("CHECKPOINT")
