"""One SQL file, or one table of your own, -> one Parquet table."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline import run
from pipeline.run import UserError
from pipeline.survey import tables, tsql

log = logging.getLogger("ugriz")


def run_duckdb(source: str | Path, sql: str | Path) -> pa.Table:
    """Run a T-SQL file on a DuckDB database with DR12's tables, opened read-only.

    The rows come sorted by all columns, from the first to the last: a query's rows are a set,
    and this gives them one order. Raises UserError for a file that is missing or no database,
    and for SQL that does not parse or does not fit the tables: with file, line and reason.
    """
    source, sql = Path(source), Path(sql)
    for path in (source, sql):
        if not path.is_file():
            raise UserError(f"{path}: no such file; check the name")
    try:
        text = sql.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{sql}: is not UTF-8 text; save it as such") from None
    try:
        database = duckdb.connect(str(source), read_only=True)
    except duckdb.Error as error:
        raise UserError(f"{source}: not a DuckDB database: {_first_line(error)}") from None
    with database:
        query = tsql.translate(text, _schema(database), str(sql))
        database.execute(tsql.COLLATION)
        try:
            rows = database.sql(query).to_arrow_table()
        except duckdb.Error as error:
            raise UserError(f"{sql}: {_first_line(error)} (on {source})") from None
    _refuse_repeated_names(rows, sql)
    return rows.sort_by([(name, "ascending") for name in rows.column_names])


def read_own(source: str | Path) -> pa.Table:
    """A user's table in the house's columns; see `tables.read_table` and `tables.galaxies`."""
    rows = tables.galaxies(tables.read_table(source), str(source))
    return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)


ENGINES = ("duckdb", "table")


def _schema(database: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    columns: dict[str, dict[str, str]] = {}
    rows = database.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "ORDER BY table_name, ordinal_position"
    )
    for table, column, kind in rows.fetchall():
        columns.setdefault(table, {})[column] = kind
    return columns


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _refuse_repeated_names(rows: pa.Table, sql: Path) -> None:
    names = [name.lower() for name in rows.column_names]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f"{sql}: two columns are named {repeated[0]}; rename one with AS")


def main(argv: list[str] | None = None) -> None:
    """Command line: see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.query",
        description="One SQL file, or one table of your own, to one Parquet table.",
    )
    add = parser.add_argument
    add("--engine", required=True, choices=ENGINES,
        help="duckdb: a database with DR12's tables; table: a list of your own")  # fmt: skip
    add("--source", required=True, metavar="FILE",
        help=f"the database; or a {tables.KINDS} with ra, dec [deg]")  # fmt: skip
    add("--sql", metavar="FILE", help="the query, in T-SQL (engine duckdb)")
    add("--output", required=True, metavar="PARQUET", help="the table to write")
    flags = parser.parse_args(argv)
    if (flags.engine == "duckdb") != (flags.sql is not None):
        raise UserError("--sql goes with the engine duckdb, and that engine needs it")
    rows = run_duckdb(flags.source, flags.sql) if flags.sql else read_own(flags.source)
    tables.write_table(rows, flags.output)
    log.info("%s: %d rows", flags.output, rows.num_rows)


if __name__ == "__main__":
    run.start(main)
