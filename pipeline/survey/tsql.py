"""T-SQL, as CasJobs runs it, translated for DuckDB.

sqlglot does the translation. Five things that it leaves with another meaning are put right here:

- a hex literal is a number (sqlglot: a blob);
- FLOAT is 64-bit and REAL is 32-bit (sqlglot: both 32-bit);
- `/` of two integers is an integer, cut off towards zero (DuckDB: a float);
- strings compare case-insensitively (`COLLATION` sets DuckDB so; LIKE becomes ILIKE);
- CONVERT fails where the value does not convert (sqlglot: NULL).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sqlglot import exp
from sqlglot.dialects.tsql import TSQL
from sqlglot.errors import ParseError, SqlglotError
from sqlglot.optimizer.annotate_types import annotate_types
from sqlglot.optimizer.qualify import qualify
from sqlglot.tokens import TokenType

from pipeline.run import UserError

COLLATION = "SET default_collation = 'NOCASE'"
"""The DuckDB statement that goes before a translated query."""

ROW, ROWS, SUM = "ugriz_row", "ugriz_rows", "ugriz_sum"
"""Columns that are added to a query on its way, and do not get into its table."""

Schema = Mapping[str, Mapping[str, str]]
"""Table name -> column name -> DuckDB type."""


class CasJobs(TSQL):
    """T-SQL with its own FLOAT: sqlglot's cannot be told from REAL once it is parsed."""

    class Tokenizer(TSQL.Tokenizer):
        KEYWORDS = {**TSQL.Tokenizer.KEYWORDS, "FLOAT": TokenType.DOUBLE}


def translate(text: str, schema: Schema, name: str) -> str:
    """One T-SQL SELECT statement as DuckDB SQL.

    `schema` gives the types of the columns (they decide what a division is); `name` is the file,
    for messages. Raises UserError with file, line, column and reason.
    """
    query = parse(text, name)
    for table in query.find_all(exp.Table):
        if table.db.lower() == "dbo":
            table.set("db", None)
    for node in reversed(list(query.walk())):
        node.replace(_put_right(node))
    for division in reversed(_integer_divisions(query, schema, name)):
        division.replace(exp.IntDiv(this=division.this, expression=division.expression))
    return query.sql(dialect="duckdb", comments=False)


def parse(text: str, name: str) -> exp.Query:
    """The syntax tree of one T-SQL SELECT; UserError with line and column if it is none."""
    try:
        _refuse_stray_comma(text, name)
        trees = CasJobs().parse(text)
        statements = [tree for tree in trees if not isinstance(tree, exp.Semicolon | None)]
    except ParseError as error:
        first = error.errors[0]
        column = first["col"] - len(first["highlight"]) + 1
        reason = first["description"]
        if "<" in reason:
            reason = "something is missing or out of place"
        raise _syntax_error(name, first["line"], column, reason, first["highlight"]) from None
    except SqlglotError:
        line, column = _last_good_place(text)
        raise _syntax_error(name, line, column, "a quote or comment is not closed") from None
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise UserError(f"{name}: is not one SELECT statement; give one, and nothing else")
    if statements[0].args.get("into"):
        raise UserError(f"{name}: has INTO; leave it out, the engine says where the rows go")
    return statements[0]


def _syntax_error(name: str, line: int, column: int, reason: str, near: str = "") -> UserError:
    at = f" at {near!r}" if near else ""
    return UserError(f"{name}: line {line}, column {column}: SQL syntax{at}: {reason}; mend it")


def _refuse_stray_comma(text: str, name: str) -> None:
    """sqlglot passes over an empty column in a list; CasJobs would not."""
    tokens = CasJobs().tokenize(text)
    closing = {TokenType.COMMA, TokenType.FROM, TokenType.WHERE, TokenType.R_PAREN}
    for token, following in zip(tokens, tokens[1:], strict=False):
        if token.token_type == TokenType.COMMA and following.token_type in closing:
            raise _syntax_error(name, token.line, token.col, "nothing follows the comma", ",")


def _last_good_place(text: str) -> tuple[int, int]:
    """Line and column behind which `text` can no longer be cut into tokens."""

    def good(part: str) -> bool:
        try:
            CasJobs().tokenize(part)
        except SqlglotError:
            return False
        return True

    lines = text.splitlines(keepends=True)
    whole = next(n for n in range(len(lines), -1, -1) if good("".join(lines[:n])))
    before, line = "".join(lines[:whole]), lines[whole]
    column = next(n for n in range(len(line), -1, -1) if good(before + line[:n]))
    return whole + 1, column + 1


def _integer_divisions(query: exp.Query, schema: Schema, name: str) -> list[exp.Div]:
    """The divisions of two integers.

    Types are inferred on a qualified copy, since qualifying changes names; a number carried in
    `meta`, which copies keep, leads back from the copy's divisions to the query's.
    """
    divisions = list(query.find_all(exp.Div))
    if not divisions:
        return []
    for number, division in enumerate(divisions):
        division.meta["number"] = number
    try:
        tree = qualify(query.copy(), schema=dict(schema), dialect=CasJobs())
        tree = annotate_types(tree, schema=dict(schema), dialect=CasJobs())
    except SqlglotError as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}; check the column names") from None
    found = set()
    for division in tree.find_all(exp.Div):
        kinds = [_kind(division.left), _kind(division.right)]
        number = division.meta["number"]
        if kinds == ["integer", "integer"]:
            found.add(number)
        elif "unknown" in kinds and "real" not in kinds:
            part = divisions[number].sql(dialect="tsql")
            raise UserError(f"{name}: {part}: integers or not? CAST an operand to FLOAT or BIGINT")
    return [divisions[number] for number in sorted(found)]


def _kind(node: exp.Expression) -> str:
    """`integer`, `real` or `unknown`: all that a division needs to know of a type."""
    if node.is_type(*exp.DataType.INTEGER_TYPES):
        return "integer"
    return "real" if node.is_type(*exp.DataType.NUMERIC_TYPES) else "unknown"


def _put_right(node: exp.Expression) -> exp.Expression:
    if isinstance(node, exp.HexString):
        return exp.Literal.number(_hex_value(node.this))
    if isinstance(node, exp.Convert):
        if node.args.get("style"):
            return node
        return exp.Cast(this=node.expression, to=node.this)
    if isinstance(node, exp.DataType) and node.this == exp.DType.DOUBLE and node.expressions:
        bits = int(node.expressions[0].name)
        return exp.DataType.build("float" if bits <= 24 else "double")
    if isinstance(node, exp.Like):
        return exp.ILike(**node.args)
    return node


def _hex_value(digits: str) -> int:
    """T-SQL reads a hex literal as bytes: eight of them are a signed bigint."""
    value = int(digits or "0", 16)
    return value - (1 << 64) if value >= 1 << 63 else value


def refuse_parts(query: exp.Query, name: str) -> None:
    """UserError for what a query cannot have that is put inside another: WITH and ORDER BY.

    And for a column without a name or with another's, which SELECT INTO does not take.
    """
    if query.args.get("with_") or query.args.get("with"):
        raise UserError(f"{name}: has WITH before its SELECT; put that part in the FROM instead")
    if query.args.get("order"):
        raise UserError(
            f"{name}: has ORDER BY; leave it out, the rows are sorted when they are all there"
        )
    names = set()
    for number, column in enumerate(query.selects, 1):
        if not isinstance(column, exp.Alias | exp.Column | exp.Star):
            raise UserError(f"{name}: column {number} has no name; give it one with AS")
        own = column.alias_or_name.lower()
        if own in names and own != "*":
            raise UserError(f"{name}: two columns are named {own}; rename one with AS")
        names.add(own)


def key_column(query: exp.Query, name: str) -> str:
    """The output column by which a query's rows are cut into ranges: objID, else fieldID.

    Raises UserError for a query that has neither.
    """
    outputs = {output.lower(): output for output in query.named_selects}
    for key in ("objid", "fieldid"):
        if key in outputs:
            return outputs[key]
    raise UserError(f"{name}: has no column objID or fieldID; add one, rows are fetched by it")


def output_types(query: exp.Query, schema: Schema) -> dict[str, str]:
    """DuckDB types of a query's output columns, as far as `schema` (SQL Server types) tells."""
    query = query.copy()
    names = [column.alias_or_name for column in query.selects]
    for node in list(query.walk()):
        node.replace(_put_right(node))
    for table in query.find_all(exp.Table):
        table.set("db", None)
        table.set("catalog", None)
    try:
        tree = qualify(
            query, schema=dict(schema), dialect=CasJobs(),
            validate_qualify_columns=False, allow_partial_qualification=True,
        )  # fmt: skip
        tree = annotate_types(tree, schema=dict(schema), dialect=CasJobs())
    except SqlglotError:
        return {}
    kinds = {}
    if len(names) != len(tree.selects):  # a star, which is now many columns
        return {}
    for name, column in zip(names, tree.selects, strict=True):
        if column.type and not column.is_type(exp.DType.UNKNOWN, exp.DType.NULL):
            kinds[name] = column.type.sql(dialect="duckdb")
    return kinds


def between(text: str, key: str, low: int, high: int) -> str:
    """The rows of a query of which `key` is from `low` to `high`; keeps the text's lines."""
    return f"SELECT * FROM ( {_bare(text)}\n) AS part WHERE part.{key} BETWEEN {low} AND {high}"


def into(text: str, table: str, key: str) -> str:
    """The statement that puts a query's rows, numbered from 1 by `key`, into a MyDB table."""
    return (
        f"SELECT ROW_NUMBER() OVER (ORDER BY q.{key}) AS {ROW}, q.* INTO MyDB.{table} "
        f"FROM ( {_bare(text)}\n) AS q"
    )


def with_sums(text: str, key: str) -> str:
    """The query with two columns more, the same on every row: how many rows, and their keys' sum.

    They tell whether all rows of a CSV arrived, which has no checksum of its own.
    """
    return (
        f"SELECT s.*, COUNT_BIG(*) OVER () AS {ROWS}, "
        f"SUM(CAST(s.{key} AS decimal(38, 0))) OVER () AS {SUM} FROM ( {_bare(text)}\n) AS s"
    )


def _bare(text: str) -> str:
    """The text without the semicolon at its end; a comment after that goes as well."""
    tokens = CasJobs().tokenize(text)
    while tokens and tokens[-1].token_type == TokenType.SEMICOLON:
        text = text[: tokens.pop().start]
    return text.strip()


def line_of(text: str, message: str) -> str:
    """`line N: ` for what a message of SQL Server names in quotes, if the query has it; else ``."""
    for word in re.findall(r"'([^']{1,120})'", message):
        bare = word.rpartition(".")[2]
        if not re.fullmatch(r"\w+", bare):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(rf"\b{re.escape(bare)}\b", line.partition("--")[0], re.IGNORECASE):
                return f"line {number}: "
    return ""
