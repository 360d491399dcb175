"""Rows as CasJobs and SkyServer write them: CSV, JSON, FITS."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.types as kinds
from astropy.table import Table


def as_csv(rows: pa.Table) -> bytes:
    """A header line, then the rows: NULL is empty, numbers are short and read back exactly."""
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(rows.column_names)
    if not rows.num_rows:
        return header.getvalue().encode()
    plain = rows.rename_columns([f"c{number}" for number in range(rows.num_columns)])
    listed = ", ".join(_as_text(column.name, column.type) for column in plain.schema)
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as database:
        file = Path(folder) / "rows.csv"
        database.register("plain", plain)
        database.execute(
            f"COPY (SELECT {listed} FROM plain) TO '{file}' "
            "(FORMAT csv, HEADER false, NULLSTR '\1')"
        )
        return header.getvalue().encode() + file.read_bytes()


def _as_text(name: str, kind: pa.DataType) -> str:
    number = f"CAST({name} AS TINYINT)" if kinds.is_boolean(kind) else name
    words = f"CAST({number} AS VARCHAR)"
    if kinds.is_floating(kind):
        words = f"regexp_replace({words}, '\\.0$', '')"
    return f"COALESCE({words}, '')"


def columns(rows: pa.Table) -> list[list]:
    """The columns as lists of what JSON can hold."""
    return [_plain(column) for column in rows.columns]


def _plain(column: pa.ChunkedArray) -> list:
    values = column.to_pylist()
    if kinds.is_float32(column.type):  # as short as the 32 bits allow
        values = [None if v is None else float(str(np.float32(v))) for v in values]
    if kinds.is_floating(column.type):
        return [None if v is None or not math.isfinite(v) else v for v in values]
    if kinds.is_decimal(column.type):
        return [None if v is None else _number(v) for v in values]
    return values


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def as_array(rows: pa.Table) -> dict:
    """The value behind CasJobs' `application/json+array`."""
    data = [list(row) for row in zip(*columns(rows), strict=True)]
    return {"Result": [{"Columns": rows.column_names, "Data": data}]}


def as_tables(rows: pa.Table) -> list[dict]:
    """The value behind SkyServer's format=json."""
    names = rows.column_names
    found = [dict(zip(names, row, strict=True)) for row in zip(*columns(rows), strict=True)]
    return [{"TableName": "Table1", "Rows": found}]


def as_fits(rows: pa.Table) -> bytes:
    """A binary table."""
    file = io.BytesIO()
    Table.from_pandas(rows.to_pandas()).write(file, format="fits")
    return file.getvalue()
