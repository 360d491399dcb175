"""What CasJobs does with a statement before SQL Server sees it, and SQL Server's words for errors.

INTO is taken out of a SELECT, DROP TABLE is recognised, and the names of databases (MyDB.dbo.t,
DR12.PhotoObj, INFORMATION_SCHEMA.TABLES) become those of the DuckDB databases behind them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokens import Token, TokenType

from pipeline.run import UserError
from pipeline.survey import tsql

MYDB = "mydb"


class SqlError(Exception):
    """A statement that fails, in SQL Server's words."""


class Statement(NamedTuple):
    """A SELECT without its INTO, where INTO went, or the table that DROP TABLE names."""

    select: str = ""
    into: str | None = None
    drop: str | None = None


def read(text: str, context: str) -> Statement:
    """Take a T-SQL statement apart; `context` is `mydb` or `survey`. Raises SqlError."""
    try:
        tokens = tsql.CasJobs().tokenize(text)
    except SqlglotError:
        raise SqlError("Unclosed quotation mark after the character string ''.") from None
    if tokens and tokens[-1].token_type == TokenType.SEMICOLON:
        tokens = tokens[:-1]
    if not tokens:
        raise SqlError("The query is empty.")
    if tokens[0].token_type == TokenType.DROP:
        return Statement(drop=_dropped(tokens, context))
    if tokens[0].text.lower() not in ("select", "with", "("):
        raise SqlError(f"Incorrect syntax near '{tokens[0].text}'.")
    edits, into = [], None
    place = _top_level_into(tokens)
    if place is not None:
        parts, after = _name(tokens, place + 1)
        into = _in_mydb(parts, context, "CREATE TABLE")
        edits.append((tokens[place].start, tokens[after - 1].end + 1, " "))
    edits += _renamings(tokens, context)
    for start, end, instead in sorted(edits, reverse=True):
        text = text[:start] + instead + text[end:]
    return Statement(text, into)


def translate(select: str, schema: tsql.Schema) -> tuple[str, list[str | None]]:
    """A SELECT for DuckDB, and the names of its columns in T-SQL (None: as DuckDB has them)."""
    try:
        names = _column_names(tsql.parse(select, ""))
        sql = tsql.translate(select, schema, "")
        return re.sub(r"\bAS BIT\)", "AS BOOLEAN)", sql), names  # BIT is a string of bits there
    except UserError as error:
        raise in_words(str(error)) from None


def in_words(message: str) -> SqlError:
    """SQL Server's words for an error of DuckDB's or of the translation's."""
    first = message.strip().splitlines()[0]
    for pattern, words in _WORDS:
        if found := re.search(pattern, first, re.IGNORECASE):
            return SqlError(found.expand(words))
    return SqlError(first.removeprefix(": "))


_WORDS = (
    (r"SQL syntax at '(.+?)':", r"Incorrect syntax near '\1'."),
    (r"is not one SELECT", r"Incorrect syntax near ';'."),
    (r"SQL syntax", r"Incorrect syntax near the end of the query."),
    (r'does not have a column named "(.+?)"', r"Invalid column name '\1'."),
    (r'Referenced column "(.+?)" not found', r"Invalid column name '\1'."),
    (r"Column '\"?(?:\w+\"?\.\"?)?(\w+)\"?'? could not be resolved", r"Invalid column name '\1'."),
    (r'Referenced table "(.+?)" not found', r'The multi-part identifier "\1" could not be bound.'),
    (r'Table with name "?([\w.]+)"? does not exist', r"Invalid object name '\1'."),
    (r"Table Function with name (\S+) does not", r"Invalid object name 'dbo.\1'."),
    (r"Function with name (\S+) does not", r"'\1' is not a recognized built-in function name."),
    (r'Ambiguous reference to column name "(.+?)"', r"Ambiguous column name '\1'."),
    (r"Could not convert string", r"Error converting data type varchar to numeric."),
    (r"Division by zero", r"Divide by zero error encountered."),
    (r"already exists", r"There is already an object named '' in the database."),
)


def _top_level_into(tokens: list[Token]) -> int | None:
    depth = 0
    for number, token in enumerate(tokens):
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        if token.token_type == TokenType.INTO and depth == 0:
            return number
    return None


def _name(tokens: list[Token], start: int) -> tuple[list[str], int]:
    """The parts of a dotted name and the number of the token after it."""
    if start >= len(tokens):
        raise SqlError(f"Incorrect syntax near '{tokens[-1].text}'.")
    parts, after = [tokens[start].text], start + 1
    while after + 1 < len(tokens) and tokens[after].token_type == TokenType.DOT:
        parts.append(tokens[after + 1].text)
        after += 2
    return parts, after


def _in_mydb(parts: list[str], context: str, act: str) -> str:
    *before, table = parts
    lowered = [part.lower() for part in before]
    where = lowered in ([MYDB], [MYDB, "dbo"]) or (context == MYDB and lowered in ([], ["dbo"]))
    if not where:
        raise SqlError(f"{act} permission denied in database 'BestDR12'.")
    return table


def _dropped(tokens: list[Token], context: str) -> str:
    if len(tokens) < 3 or tokens[1].token_type != TokenType.TABLE:
        raise SqlError(f"Incorrect syntax near '{tokens[-1].text}'.")
    parts, after = _name(tokens, 2)
    if after < len(tokens):
        raise SqlError(f"Incorrect syntax near '{tokens[after].text}'.")
    return _in_mydb(parts, context, "DROP TABLE")


def _renamings(tokens: list[Token], context: str) -> Iterator[tuple[int, int, str]]:
    before = ""
    for token, dot, third in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if dot.token_type != TokenType.DOT:
            continue
        name, after = token.text.lower(), third.text.lower()
        if name == MYDB and after == "dbo":
            yield third.start, third.end + 2, ""
        elif name == MYDB and after == "information_schema":
            yield token.start, third.end + 1, f"memory.information_{MYDB}"
        elif re.fullmatch(r"(best)?dr\d+", name):
            yield token.start, dot.end + 1, ""
        elif name == "information_schema" and before != MYDB:
            yield token.start, token.end + 1, f"memory.information_{context}"
        before = name


def _column_names(query: exp.Query) -> list[str | None]:
    """Names as they are written in the query; None is whatever a star stands for."""
    names: list[str | None] = []
    for number, column in enumerate(query.selects):
        if column.is_star:
            names.append(None)
        else:
            own = column.name if isinstance(column, exp.Column) else ""
            names.append(column.alias or own or f"Column{number + 1}")
    return names
