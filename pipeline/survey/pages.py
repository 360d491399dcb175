"""Rows that come in pages of CSV: checked, kept as Parquet until all are there, then put together.

A CSV has no checksum. Each page is asked for together with its row count and the sum of its keys
(`tsql.with_sums`), and counts only if both are right; whoever is killed finds the pages that were.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.run import whole_file
from pipeline.survey import network, tsql
from pipeline.survey.network import Trouble


class Truncated(Trouble):
    """Fewer rows came than there are."""


ARROW_TYPES = {
    "bigint": pa.int64(), "int": pa.int32(), "smallint": pa.int16(), "tinyint": pa.uint8(),
    "utinyint": pa.uint8(), "integer": pa.int32(), "real": pa.float32(), "float": pa.float64(),
    "double": pa.float64(),
}  # fmt: skip
"""SQL Server's and DuckDB's names of number types; all else stays text."""
MISSING = ["", "null", "NULL"]
GROUP = 1 << 20
"""Rows of a row group, as pyarrow writes them by itself."""
BATCH = 100_000
"""Rows that go from DuckDB to a file at a time."""
MEMORY = "400MB"
"""What DuckDB may take to sort; the rest goes through a file beside the output."""


def parse(body: bytes, names: list[str], kinds: Mapping[str, str], key: str) -> pa.Table:
    """One page: its rows in the columns `names`, of the types `kinds`, the sums taken off.

    Raises:
        Trouble: it is no CSV of these columns, or not all of it came.
    """
    page = network.web_page(body)
    if page:
        raise Trouble(f"sent {page} in place of rows")
    body = (
        body.removeprefix(b"\xef\xbb\xbf").removeprefix(b"#Table1\r\n").removeprefix(b"#Table1\n")
    )
    found = body.split(b"\n", 1)[0].decode(errors="replace").strip().replace('"', "").split(",")
    expected = [*names, tsql.ROWS, tsql.SUM]
    if [name.lower() for name in found] != [name.lower() for name in expected]:
        raise Trouble(f"sent other columns than were asked for: {', '.join(found)[:200]}")
    types = {name: ARROW_TYPES.get(kinds.get(name, "").lower(), pa.string()) for name in names} | {
        tsql.ROWS: pa.int64(),
        tsql.SUM: pa.string(),
    }
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(body),
            pyarrow.csv.ReadOptions(column_names=expected, skip_rows=1, use_threads=False),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(column_types=types, null_values=MISSING),
        )
    except pa.ArrowException as error:
        raise Trouble(f"sent rows that cannot be read ({str(error).splitlines()[0]})") from None
    _check_sums(table, key)
    return table.drop_columns([tsql.ROWS, tsql.SUM])


def _check_sums(table: pa.Table, key: str) -> None:
    came = table.num_rows
    if not came:
        return
    rows, total = table[tsql.ROWS][0].as_py(), table[tsql.SUM][0].as_py()
    if rows != came:
        raise Truncated(f"{came} rows came where {rows} were announced")
    if str(sum(table[key].to_pylist())) != total.partition(".")[0]:
        raise Trouble("the sum of the ids that came is not the one announced")


def write(table: pa.Table, path: Path) -> None:
    """Keep a page, whole."""
    with whole_file(path) as part:
        pq.write_table(table, part)


def join(pages: Iterable[Path], output: Path, leave_out: Iterable[str] = ()) -> int:
    """Put pages together into one Parquet file; returns the number of rows.

    The rows are sorted by all columns, from the first to the last, nulls last, so that the file
    does not depend on how they were cut into pages. Memory is bounded (`MEMORY`).
    """
    pages = [str(page) for page in pages]
    dropped = ", ".join(leave_out)
    columns = f"* EXCLUDE ({dropped})" if dropped else "*"
    spill = output.with_name(f".{output.name}.sort")
    output.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(spill)}) as database:
        rows = database.from_parquet(pages).query(
            "pages", f"SELECT {columns} FROM pages ORDER BY ALL NULLS LAST"
        )
        reader = rows.to_arrow_reader(BATCH)
        with (
            whole_file(output) as part,
            pq.ParquetWriter(part, reader.schema, compression="zstd", store_schema=False) as writer,
        ):
            return _write_groups(reader, writer)


def _write_groups(reader: pa.RecordBatchReader, writer: pq.ParquetWriter) -> int:
    """Write in row groups of `GROUP` rows, whatever the sizes of the batches."""
    waiting: list[pa.RecordBatch] = []
    total = held = 0
    for batch in reader:
        waiting.append(batch)
        held, total = held + batch.num_rows, total + batch.num_rows
        while held >= GROUP:
            table = pa.Table.from_batches(waiting, reader.schema)
            writer.write_table(table.slice(0, GROUP), row_group_size=GROUP)
            rest = table.slice(GROUP)
            waiting, held = rest.to_batches(), rest.num_rows
    if waiting or not total:
        writer.write_table(pa.Table.from_batches(waiting, reader.schema), row_group_size=GROUP)
    return total
