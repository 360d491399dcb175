"""Rows that come in pages of CSV: checked, kept as Parquet until all are there, then put together.

A CSV has no checksum. Each page is asked for together with its row count and the sum of its keys
(`tsql.with_sums`), and counts only if both are right; whoever is killed finds the pages that were.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.run import UserError, whole_file
from pipeline.survey import network, tsql
from pipeline.survey.network import Trouble


class Truncated(Trouble):
    """Fewer rows came than there are."""


_HEAD = re.compile(rb"(\xef\xbb\xbf)?(#Table1\r?\n)?(?P<names>[^\n]*)\n?")
ARROW_TYPES = {
    "bigint": pa.int64(), "int": pa.int32(), "smallint": pa.int16(), "tinyint": pa.uint8(),
    "utinyint": pa.uint8(), "integer": pa.int32(), "real": pa.float32(), "float": pa.float64(),
    "double": pa.float64(),
}  # fmt: skip
"""SQL Server's and DuckDB's names of number types; all else stays text."""
MISSING = ["", "null", "NULL"]
"""What stands for a value that is not there. A CSV cannot tell an empty text from none."""
GROUP = 1 << 20
"""Rows of a row group, as pyarrow writes them by itself."""
BATCH = 100_000
"""Rows that go from DuckDB to a file at a time."""
MEMORY = "400MB"
"""What DuckDB may take to sort; the rest goes through a file beside the output."""


def parse(body: bytes, names: list[str], kinds: Mapping[str, str], key: str) -> pa.Table:
    """One page: its rows in the columns `names`, of the types `kinds`, the sums taken off.

    The service may spell the names in another case, and `key` may be spelt in any.

    Raises:
        Trouble: it is no CSV of these columns, or not all of it came.
    """
    page = network.web_page(body)
    if page:
        raise Trouble(f"sent {page} in place of rows")
    head = _HEAD.match(body)
    found = head["names"].decode(errors="replace").replace('"', "").strip().split(",")
    expected = [*names, tsql.ROWS, tsql.SUM]
    if [name.lower() for name in found] != [name.lower() for name in expected]:
        raise Trouble(f"sent other columns than were asked for: {', '.join(found)[:200]}")
    types = {name: ARROW_TYPES.get(kinds.get(name, "").lower(), pa.string()) for name in names} | {
        tsql.ROWS: pa.int64(),
        tsql.SUM: pa.string(),
    }
    if not body[head.end() : head.end() + 100].strip():
        return pa.schema(types).empty_table().select(names)
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(pa.py_buffer(body).slice(head.end())),
            pyarrow.csv.ReadOptions(column_names=expected, use_threads=False),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types=types, null_values=MISSING, strings_can_be_null=True
            ),
        )
    except pa.ArrowException as error:
        raise Trouble(f"sent rows that cannot be read ({str(error).splitlines()[0]})") from None
    _check_sums(table, names[[name.lower() for name in names].index(key.lower())])
    return table.drop_columns([tsql.ROWS, tsql.SUM])


def _check_sums(table: pa.Table, key: str) -> None:
    came = table.num_rows
    rows, total = table[tsql.ROWS][0].as_py(), table[tsql.SUM][0].as_py()
    if rows != came:
        raise Truncated(f"{came} rows came where {rows} were announced")
    keys = [value for value in table[key].to_pylist() if value is not None]
    if (str(sum(keys)) if keys else "") != (total or "").partition(".")[0]:
        raise Trouble("the sum of the ids that came is not the one announced")


def write(table: pa.Table, path: Path) -> None:
    """Keep a page, whole."""
    with whole_file(path) as part:
        pq.write_table(table, part)


def join(pages: Iterable[Path], output: Path, leave_out: Iterable[str] = ()) -> int:
    """Put pages together into one Parquet file; returns the number of rows.

    The rows are sorted by all columns, from the first to the last, nulls last, so that the file
    does not depend on how they were cut into pages; an empty text is a null, as in a CSV. Memory
    is bounded (`MEMORY`). Raises UserError where the sorting fails, as on a full disk.
    """
    pages = [str(page) for page in pages]
    spill = output.with_name(f".{output.name}.sort")
    output.parent.mkdir(parents=True, exist_ok=True)
    bounds = {"memory_limit": MEMORY, "threads": 4, "temp_directory": str(spill)}
    with _one_line(output), duckdb.connect(config=bounds) as database:
        rows = database.from_parquet(pages)
        columns = ", ".join(
            f'nullif("{name}", \'\') AS "{name}"' if kind == "VARCHAR" else f'"{name}"'
            for name, kind in zip(rows.columns, rows.types, strict=True)
            if name not in leave_out
        )
        rows = rows.query("pages", f"SELECT {columns} FROM pages ORDER BY ALL NULLS LAST")
        reader = rows.to_arrow_reader(BATCH)
        with (
            whole_file(output) as part,
            pq.ParquetWriter(part, reader.schema, compression="zstd", store_schema=False) as writer,
        ):
            return _write_groups(reader, writer)


@contextlib.contextmanager
def _one_line(output: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{output}: rows cannot be sorted: {reason}; is the disk full?") from None


def _write_groups(reader: pa.RecordBatchReader, writer: pq.ParquetWriter) -> int:
    """Write in row groups of `GROUP` rows, whatever the sizes of the batches.

    Each group is one chunk, since Parquet's pages end where chunks do.
    """
    waiting: list[pa.RecordBatch] = []
    total = held = 0
    for batch in reader:
        waiting.append(batch)
        held, total = held + batch.num_rows, total + batch.num_rows
        while held >= GROUP:
            table = pa.Table.from_batches(waiting, reader.schema)
            writer.write_table(table.slice(0, GROUP).combine_chunks(), row_group_size=GROUP)
            rest = table.slice(GROUP)
            waiting, held = rest.to_batches(), rest.num_rows
    if waiting or not total:
        table = pa.Table.from_batches(waiting, reader.schema)
        writer.write_table(table.combine_chunks(), row_group_size=GROUP)
    return total
