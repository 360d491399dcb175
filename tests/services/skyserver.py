"""SkyServer's SQL search and its crossid."""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from urllib.parse import urlencode

import pyarrow as pa

from . import rows
from .engine import APART, Engine
from .exchange import Answer, Ask, as_json, text
from .statements import SqlError

LONGEST = 8000
"""Characters in a query."""
LONGEST_ADDRESS = 2048
"""Characters after the `?` of an address; IIS answers a longer one with 404.15."""
_TOO_LONG = (
    "<!DOCTYPE html>\n<html><head><title>IIS Detailed Error - 404.15 - Not Found</title></head>"
    "<body><h1>HTTP Error 404.15 - Not Found</h1><p>The request filtering module is configured to "
    "deny a request where the query string is too long.</p></body></html>\n"
)
_APART = APART.format(ra1="p.ra", dec1="p.dec", ra2="u.up_ra", dec2="u.up_dec")


class SkyServer:
    """Handlers of the search pages; `queries_a_minute` is for each client."""

    def __init__(self, engine: Engine, row_limit: int, queries_a_minute: int):
        self._engine, self._limit, self._pace = engine, row_limit, queries_a_minute
        self._asked: dict[str, deque[float]] = defaultdict(deque)

    def search(self, ask: Ask) -> Answer:
        """The rows of an SQL query, or of a cross-identification."""
        if len(urlencode(ask.query)) > LONGEST_ADDRESS:
            return text(_TOO_LONG, "text/html", 404)
        crossid = bool(ask.field("uquery"))
        query = _without_comments(ask.field("uquery") if crossid else ask.field("cmd"))
        refused = self._refuse(ask.client, query)
        if refused:
            return _write(ask, pa.table({"error_message": [refused]}))
        query = re.sub(r"(?i)\.(xp|sp|fn|ms|dt)_", "", query.replace(";", "#"))
        try:
            return _write(ask, self._crossid(ask, query) if crossid else self._select(query))
        except SqlError as error:
            return _failure(ask, str(error))

    def _refuse(self, client: str, query: str) -> str | None:
        now, asked = time.monotonic(), self._asked[client]
        while asked and asked[0] < now - 60:
            asked.popleft()
        if len(asked) >= self._pace:
            return (
                f"ERROR: Maximum {self._pace} queries allowed per minute. Rejected query: {query}"
            )
        asked.append(now)
        if len(query) > LONGEST:
            return f"ERROR: Query is longer than {LONGEST} characters."
        if not re.match(r"(?i)select\b", query):
            return "ERROR: Only SELECT statements are allowed."
        top = re.match(r"(?i)select\s+(?:distinct\s+|all\s+)?top\s*\(?\s*(\d+)", query)
        if top and int(top[1]) > self._limit:
            return f"error: limit is top {self._limit}"
        return None

    def _select(self, query: str) -> pa.Table:
        with self._engine.session("survey", 600.0) as session:
            return self._engine.select(session, query)[: self._limit]

    def _crossid(self, ask: Ask, query: str) -> pa.Table:
        """Join the positions that were sent with the objects near them, as #upload and #x."""
        query = re.sub(r"(?i)#upload\b", "up_load", query)
        query = re.sub(r"(?i)#x\b", "up_x", query)
        radius = float(ask.field("radius", "0.5")) / 60
        nearest = "prim" in ask.field("photoScope", "nearPrim").lower()
        one = "QUALIFY row_number() OVER (PARTITION BY up_id ORDER BY apart) = 1"
        with self._engine.session("survey", 1800.0) as session:
            session.register("sent", _positions(ask))
            session.execute("CREATE TEMP TABLE up_load AS SELECT * FROM sent")
            session.execute(
                f"CREATE TEMP TABLE up_x AS SELECT up_id, objID, {_APART} AS apart "
                f"FROM up_load u JOIN PhotoObjAll p ON {_APART} <= {radius} "
                + (f"WHERE p.mode = 1 {one}" if nearest else "")
            )
            return self._engine.select(session, query)[: self._limit]


def _positions(ask: Ask) -> pa.Table:
    first = int(ask.field("firstcol", "0"))
    lines = [line.split() for line in ask.field("upload").splitlines() if line.strip()][1:]
    return pa.table(
        {
            "up_id": pa.array(range(1, len(lines) + 1), pa.int64()),
            "up_name": [line[0] if first else str(n) for n, line in enumerate(lines, 1)],
            "up_ra": [float(line[first]) for line in lines],
            "up_dec": [float(line[first + 1]) for line in lines],
        }
    )


def _without_comments(query: str) -> str:
    query = re.sub(r"/\*.*?\*/", " ", query, flags=re.DOTALL)
    return re.sub(r"--[^\n]*", " ", query).strip()


def _write(ask: Ask, found: pa.Table) -> Answer:
    kind = ask.field("format", "json").lower()
    if kind in ("csv", "txt"):
        return text(b"#Table1\n" + rows.as_csv(found))
    if kind == "json":
        return as_json(rows.as_tables(found))
    if kind == "fits":
        return Answer(rows.as_fits(found), 200, {"Content-Type": "application/fits"})
    return _failure(ask, f"Format {kind} is not implemented.", 501)


def _failure(ask: Ask, message: str, status: int = 400) -> Answer:
    if ask.field("format").lower() == "html":
        page = f"<h2>An error occured</h2><p>{message}</p>"
        title = "<title>Skyserver Error</title>"
        return text(f"<html><head>{title}</head><body>{page}</body></html>", "text/html")
    wrong = {"ErrorCode": status, "ErrorType": "BadRequest", "ErrorMessage": message}
    return as_json(wrong | {"LogMessageID": "", "LogTime": ""}, status)
