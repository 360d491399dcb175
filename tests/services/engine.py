"""SQL Server as a user of CasJobs sees it: the survey's database, and a MyDB of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline.survey import tsql

from . import statements
from .statements import MYDB, SqlError

_VIEWS = {
    "PhotoObj": "SELECT * FROM PhotoObjAll WHERE mode IN (1, 2)",
    "PhotoPrimary": "SELECT * FROM PhotoObjAll WHERE mode = 1",
    "Galaxy": "SELECT * FROM PhotoObjAll WHERE mode = 1 AND type = 3",
    "Star": "SELECT * FROM PhotoObjAll WHERE mode = 1 AND type = 6",
    "SpecObj": "SELECT * FROM SpecObjAll WHERE sciencePrimary = 1",
}
APART = (
    "2 * degrees(asin(least(1, sqrt(pow(sin(radians({dec1} - {dec2}) / 2), 2) + "
    "cos(radians({dec1})) * cos(radians({dec2})) * pow(sin(radians({ra1} - {ra2}) / 2), 2)))))"
)
"""Degrees between two positions in degrees, in DuckDB's SQL."""
_NEAR = APART.format(ra1="ra", dec1="dec", ra2="ra_", dec2="dec_")
_TYPES = """CASE split_part(data_type, '(', 1)
    WHEN 'BIGINT' THEN 'bigint' WHEN 'INTEGER' THEN 'int' WHEN 'SMALLINT' THEN 'smallint'
    WHEN 'UTINYINT' THEN 'tinyint' WHEN 'TINYINT' THEN 'smallint' WHEN 'FLOAT' THEN 'real'
    WHEN 'DOUBLE' THEN 'float' WHEN 'BOOLEAN' THEN 'bit' WHEN 'DECIMAL' THEN 'decimal'
    WHEN 'HUGEINT' THEN 'bigint' WHEN 'UBIGINT' THEN 'decimal' ELSE 'varchar' END"""
_SET_UP = (
    "CREATE SCHEMA dbo",
    "CREATE MACRO dbo.fPhotoTypeN(t) AS CASE t WHEN 3 THEN 'GALAXY' WHEN 6 THEN 'STAR' "
    "WHEN 0 THEN 'UNKNOWN' ELSE '' END",
    f"CREATE MACRO fDocColumns(t) AS TABLE SELECT '' AS enum, column_name AS name, {_TYPES} "
    "AS type, '' AS unit, '' AS ucd, '' AS description FROM duckdb_columns() "
    "WHERE database_name = 'memory' AND lower(table_name) = lower(t) ORDER BY column_index",
)
_NEARBY = (
    "CREATE MACRO fGetNearbyObjAllEq(ra_, dec_, r) AS TABLE SELECT objID, run, camcol, field, "
    f"rerun, type, mode, 60 * {_NEAR} AS distance FROM PhotoObjAll WHERE 60 * {_NEAR} <= r",
    "CREATE MACRO fGetNearbyObjEq(ra_, dec_, r) AS TABLE "
    "SELECT * FROM fGetNearbyObjAllEq(ra_, dec_, r) WHERE mode = 1",
    "CREATE MACRO fGetNearestObjEq(ra_, dec_, r) AS TABLE "
    "SELECT * FROM fGetNearbyObjEq(ra_, dec_, r) ORDER BY distance LIMIT 1",
)
_INFORMATION = (
    "CREATE SCHEMA information_{context}",
    "CREATE VIEW information_{context}.TABLES AS SELECT '{context}' AS TABLE_CATALOG, "
    "'dbo' AS TABLE_SCHEMA, table_name AS TABLE_NAME, 'BASE TABLE' AS TABLE_TYPE "
    "FROM duckdb_tables() WHERE database_name = '{database}'",
    "CREATE VIEW information_{context}.COLUMNS AS SELECT '{context}' AS TABLE_CATALOG, "
    "'dbo' AS TABLE_SCHEMA, table_name AS TABLE_NAME, column_name AS COLUMN_NAME, "
    "column_index AS ORDINAL_POSITION, CASE WHEN is_nullable THEN 'YES' ELSE 'NO' END AS "
    "IS_NULLABLE, {types} AS DATA_TYPE, numeric_precision AS NUMERIC_PRECISION, "
    "numeric_scale AS NUMERIC_SCALE FROM duckdb_columns() WHERE database_name = '{database}'",
)


class Engine:
    """The survey's database and one MyDB (`mydb`: its file; None for those without an account)."""

    def __init__(self, database: Path, mydb: Path | None = None):
        self._database = duckdb.connect(config={"threads": 2})
        run = self._database.execute
        run(f"ATTACH '{database}' AS survey (READ_ONLY)")
        run(f"ATTACH '{mydb or ':memory:'}' AS MyDB")
        tables = "SELECT table_name FROM duckdb_tables() WHERE database_name = 'survey'"
        for (name,) in run(tables).fetchall():
            run(f'CREATE VIEW "{name}" AS SELECT * FROM survey."{name}"')
        for name, view in _VIEWS.items():
            run(f"CREATE VIEW {name} AS {view}")
        for statement in (*_SET_UP, *_NEARBY):
            run(statement)
        for context, database_name in (("survey", "survey"), (MYDB, "MyDB")):
            for statement in _INFORMATION:
                run(statement.format(context=context, database=database_name, types=_TYPES))

    def close(self) -> None:
        """Close the databases; what runs is interrupted."""
        self._database.close()

    @contextmanager
    def session(self, context: str, seconds: float | None = None) -> Iterator:
        """A connection in a context (`mydb` or `survey`), cut off after so many seconds."""
        session = self._database.cursor()
        session.execute(tsql.COLLATION)
        if context == MYDB:
            session.execute("USE MyDB")
        timer = threading.Timer(seconds, session.interrupt) if seconds else None
        if timer:
            timer.start()
        try:
            yield session
        except duckdb.InterruptException:
            raise SqlError("Timeout expired. The query took too long for this queue.") from None
        except duckdb.Error as error:
            raise statements.in_words(str(error)) from None
        finally:
            if timer:
                timer.cancel()
            session.close()

    def query(self, text: str, context: str, seconds: float | None = None) -> pa.Table:
        """The rows of a quick query; none for SELECT INTO and DROP TABLE. Raises SqlError."""
        statement = statements.read(text, context)
        with self.session(context, seconds) as session:
            if statement.drop or statement.into:
                self.change(session, statement)
                return pa.table({})
            return self.select(session, statement.select)

    def select(self, session: duckdb.DuckDBPyConnection, text: str) -> pa.Table:
        """The rows of a SELECT, with the names that its columns have in T-SQL."""
        sql, names = statements.translate(text, self._schema(session))
        rows = session.sql(sql).to_arrow_table()
        return rows.rename_columns(_fill_in(names, rows.column_names))

    def change(
        self,
        session: duckdb.DuckDBPyConnection,
        statement: statements.Statement,
        before_commit: Callable[[int], None] = lambda rows: None,
        share: float = 1.0,
    ) -> tuple[int, pa.Table | None]:
        """SELECT INTO or DROP TABLE: number of rows, and the rows that were held back.

        `share` of the rows go into the table, the rest are for `append`.
        """
        if statement.drop:
            self._drop(session, statement.drop)
            return 0, None
        table = statement.into or ""
        if table.lower() in self.tables():
            raise SqlError(f"There is already an object named '{table}' in the database.")
        sql, names = statements.translate(statement.select, self._schema(session))
        described = [row[0] for row in session.execute(f"DESCRIBE {sql}").fetchall()]
        listed = ", ".join(f'"{name}"' for name in _unique(_fill_in(names, described), table))
        session.execute("BEGIN")
        session.execute(f'CREATE TABLE MyDB."{table}" AS SELECT * FROM ({sql}) AS x({listed})')
        ((count,),) = session.execute(f'SELECT count(*) FROM MyDB."{table}"').fetchall()
        rest = None
        if share < 1:
            first = f'(SELECT min(rowid) FROM MyDB."{table}")'
            held = f'FROM MyDB."{table}" WHERE rowid >= {first} + {int(count * share)}'
            rest = session.sql(f"SELECT * {held}").to_arrow_table()
            session.execute(f"DELETE {held}")
        before_commit(count)
        session.execute("COMMIT")
        return count, rest

    def append(self, table: str, rows: pa.Table) -> None:
        """Put rows into a table of MyDB."""
        with self.session(MYDB) as session:
            session.register("incoming", rows)
            session.execute(f'INSERT INTO MyDB."{table}" SELECT * FROM incoming')

    def upload(self, table: str, file: Path) -> None:
        """Make a table of MyDB from a CSV file."""
        if table.lower() in self.tables():
            raise SqlError(f"There is already an object named '{table}' in the database.")
        with self.session(MYDB) as session:
            session.execute(f"CREATE TABLE MyDB.\"{table}\" AS SELECT * FROM read_csv('{file}')")

    def discard(self, table: str) -> None:
        """Remove a table of MyDB if it is there."""
        with self.session(MYDB) as session:
            session.execute(f'DROP TABLE IF EXISTS MyDB."{table}"')

    def tables(self, context: str = MYDB) -> dict[str, tuple[str, int, int]]:
        """The tables of a context by name in lower case: name, rows, kilobytes."""
        database = "MyDB" if context == MYDB else "survey"
        with self.session(context) as session:
            found = session.execute(
                "SELECT table_name, estimated_size, column_count FROM duckdb_tables() "
                f"WHERE database_name = '{database}' ORDER BY table_name"
            ).fetchall()
            rows = {
                name: session.execute(f'SELECT count(*) FROM {database}."{name}"').fetchall()[0][0]
                for name, _, _ in found
            }
        return {
            name.lower(): (name, rows[name], rows[name] * width * 8 // 1024 + 1)
            for name, _, width in found
        }

    def _drop(self, session: duckdb.DuckDBPyConnection, table: str) -> None:
        if table.lower() not in self.tables():
            raise SqlError(
                f"Cannot drop the table '{table}', because it does not exist or you do not have "
                "permission."
            )
        session.execute(f'DROP TABLE MyDB."{table}"')

    @staticmethod
    def _schema(session: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        rows = session.execute(
            "SELECT table_name, column_name, data_type FROM duckdb_columns() "
            "WHERE schema_name = 'main' AND NOT internal ORDER BY table_name, column_index"
        )
        for table, column, kind in rows.fetchall():
            found.setdefault(table, {})[column] = kind
        return found


def _fill_in(names: list[str | None], described: list[str]) -> list[str]:
    """The names of all columns, where one None stands for all columns of a star."""
    if names.count(None) == 0:
        return [name or "" for name in names]
    if names.count(None) > 1:
        return described
    star = names.index(None)
    after = len(names) - star - 1
    whole = names[:star] + described[star : len(described) - after] + names[star + 1 :]
    return [name or "" for name in whole]


def _unique(names: list[str], table: str) -> list[str]:
    seen = set()
    for name in names:
        if name.lower() in seen:
            raise SqlError(
                "Column names in each table must be unique. Column name "
                f"'{name}' in table '{table}' is specified more than once."
            )
        seen.add(name.lower())
    return names
