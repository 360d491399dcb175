"""One SQL file, or one table of your own, -> one Parquet table.

The same SQL runs on a database on disk (engine duckdb), on CasJobs (casjobs: a SciServer account)
or on SkyServer (skyserver: no account, slower). The network's engines go on where a killed run
stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import shutil
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import run
from pipeline.run import UserError
from pipeline.survey import credentials, network, pages, tables, tsql
from pipeline.survey.batch import Batch
from pipeline.survey.casjobs import CasJobs
from pipeline.survey.names import pack_objid
from pipeline.survey.network import Pace
from pipeline.survey.skyserver import PER_MINUTE, SkyServer, Slices

log = logging.getLogger("ugriz")


def run_duckdb(source: str | Path, text: str, name: str, page: Path) -> None:
    """Run T-SQL on a DuckDB database with DR12's tables, opened read-only; the rows go to `page`.

    `name` is the query's, for messages. Raises UserError for a file that is no database, and for
    SQL that does not parse or does not fit the tables: with file, line and reason.
    """
    source = Path(source)
    if not source.is_file():
        raise UserError(f"{source}: no such file; check the name")
    try:
        database = duckdb.connect(str(source), read_only=True)
    except duckdb.Error as error:
        raise UserError(f"{source}: not a DuckDB database: {_first_line(error)}") from None
    with database, run.whole_file(page) as part:
        query = tsql.translate(text, _schema(database), name)
        database.execute(tsql.COLLATION)
        database.execute("SET temp_directory = ?", [str(page.with_suffix(".tmp"))])
        try:
            reader = database.sql(query).to_arrow_reader(pages.BATCH)
            _refuse_repeated_names(reader.schema.names, name)
            names = _as_written(text, reader.schema.names)
            columns = zip(names, reader.schema.types, strict=True)
            with pq.ParquetWriter(part, pa.schema(list(columns))) as writer:
                for batch in reader:
                    writer.write_batch(batch.rename_columns(names))
        except duckdb.Error as error:
            raise UserError(f"{name}: {_first_line(error)} (on {source})") from None


def read_own(source: str | Path) -> pa.Table:
    """A user's table in the house's columns; see `tables.read_table` and `tables.galaxies`."""
    rows = tables.galaxies(tables.read_table(source), str(source))
    return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)


def read_sql(file: str | Path) -> str:
    """The text of an SQL file; UserError where it is missing or no text."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; check the name") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text; save it as such") from None


ENGINES = ("duckdb", "casjobs", "skyserver", "table")


def stretch_ids(stretch: list[int]) -> tuple[int, int]:
    """The least and greatest objID of a stretch: run, camcol, first field, last field.

    A run's very first field is not in any stretch: its objIDs have a bit that puts them elsewhere.
    """
    survey_run, camcol, first, last = stretch
    try:
        ends = [
            int(pack_objid(survey_run, camcol, number, obj))
            for number, obj in ((first, 0), (last, 2**16 - 1))
        ]
    except ValueError as error:
        raise UserError(f"--stretch {' '.join(map(str, stretch))}: {error}") from None
    if first > last or not 1 <= camcol <= 6:
        words = " ".join(map(str, stretch))
        raise UserError(f"--stretch {words}: give run, camcol (1 to 6), first and last field")
    return ends[0], ends[1]


def _in_stretch(text: str, name: str, stretch: tuple[int, int] | None) -> str:
    if stretch is None:
        return text
    query = tsql.parse(text, name)
    tsql.refuse_parts(query, name)
    return tsql.between(text, tsql.key_column(query, name), *stretch)


def _schema(database: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    columns: dict[str, dict[str, str]] = {}
    rows = database.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "ORDER BY table_name, ordinal_position"
    )
    for table, column, kind in rows.fetchall():
        columns.setdefault(table, {})[column] = kind
    return columns


def _as_written(text: str, names: list[str]) -> list[str]:
    """The names of the columns as the query spells them, which is SQL Server's way."""
    spelt = {written.lower(): written for written in tsql.parse(text, "").named_selects}
    return [spelt.get(name.lower(), name) for name in names]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _refuse_repeated_names(columns: list[str], name: str) -> None:
    names = [column.lower() for column in columns]
    repeated = [column for column in names if names.count(column) > 1]
    if repeated:
        raise UserError(f"{name}: two columns are named {repeated[0]}; rename one with AS")


def query(args: argparse.Namespace) -> int:
    """Run the SQL file on the engine that the flags name; returns the number of rows.

    The rows come sorted by all columns, from the first to the last: a query's rows are a set,
    and this gives them one order, whatever the engine.
    """
    text = read_sql(args.sql)
    name, output = args.sql, args.output
    stretch = stretch_ids(args.stretch) if args.stretch else None
    folder = output.with_name(f".{output.stem}.{args.engine}")
    if args.engine == "duckdb":
        try:
            run_duckdb(args.source, _in_stretch(text, name, stretch), name, folder / "page.parquet")
            return pages.join([folder / "page.parquet"], output)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    manners = network.manners(args)
    if args.engine == "skyserver":
        service = SkyServer(args.source, _release(args.context), manners,
                            Pace(output.parent / ".skyserver-pace", PER_MINUTE / 60))  # fmt: skip
        rows = pages.join(Slices(service, text, name, folder, stretch).run(), output)
        shutil.rmtree(folder)
        return rows
    account = credentials.read(args.credentials)
    pace = Pace(output.parent / ".casjobs-pace", (manners.requests_per_minute or 6e4) / 60)
    with contextlib.closing(CasJobs(args.source, args.login, account, manners, pace)) as service:
        batch = Batch(service, text, name, args.context, folder, args.page_rows, args.poll,
                      stretch)  # fmt: skip
        rows = pages.join(batch.run(), output, leave_out=[tsql.ROW])
        if args.drop_tables:
            batch.drop()
        batch.forget(dropped=bool(args.drop_tables))
    return rows


def _release(context: str) -> int:
    found = re.fullmatch(r"(?i)dr(\d+)", context)
    if not found:
        raise UserError(f"--context {context}: give a data release, as DR12")
    return int(found[1])


def main(argv: list[str] | None = None) -> None:
    """Command line: see --help."""
    args = _parser().parse_args(argv)
    if (args.engine == "table") == (args.sql is not None):
        raise UserError("--sql goes with the engines that run SQL, and those need it")
    if args.engine == "casjobs" and not args.login:
        raise UserError("--login: the engine casjobs needs the address of the login service")
    began = time.monotonic()
    if args.engine == "table":
        rows = read_own(args.source)
        tables.write_table(rows, args.output)
        count = rows.num_rows
    else:
        count = query(args)
    seconds = round(time.monotonic() - began, 3)
    run.write_provenance(args.output, engine=args.engine, source=args.source, seconds=seconds)
    log.info("%s: %d rows", args.output, count)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.query", description=__doc__)
    add = parser.add_argument
    add("--engine", required=True, choices=ENGINES,
        help="duckdb: a database with DR12's tables; casjobs, skyserver: the survey's own "
        "services; table: a list of your own")  # fmt: skip
    add("--source", required=True, metavar="FILE|URL",
        help=f"database; service's address; or a {tables.KINDS} with ra, dec [deg]")  # fmt: skip
    add("--sql", metavar="FILE", help="the query, in T-SQL (all engines but table)")
    add("--output", required=True, metavar="PARQUET", type=Path, help="the table to write")
    add("--stretch", type=int, nargs=4, metavar=("RUN", "CAMCOL", "FIRST", "LAST"),
        help="only the fields FIRST to LAST of one camera column")  # fmt: skip
    add("--context", default="DR12", help="data release (default %(default)s)")
    add("--login", metavar="URL", help="casjobs: SciServer's login service")
    add("--credentials", metavar="FILE",
        help=f"casjobs: user and password, readable by you alone (default {credentials.DEFAULT}; "
        f"{credentials.USER} and {credentials.PASSWORD} come first)")  # fmt: skip
    add("--drop-tables", action=argparse.BooleanOptionalAction,
        help="casjobs: drop the table in MyDB when its rows are here")  # fmt: skip
    add("--page-rows", type=int, default=50_000, help="casjobs: rows brought at a time")
    add("--poll", type=float, default=5.0, help="casjobs: seconds between looks at the job")
    network.add_flags(parser)
    return parser


if __name__ == "__main__":
    run.start(main)
