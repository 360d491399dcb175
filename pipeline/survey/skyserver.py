"""A query by SkyServer's SQL search, for those without an account: slices of objID, one by one.

SkyServer takes a query of at most 8,000 characters, gives at most 500,000 rows in 600 seconds and
lets an address ask 60 times a minute; errors come as HTTP 200. So the query is asked for stretches
of fields, each of which is cut in two where it is too much.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import requests
import urllib3
from astroquery.sdss import SDSS, conf

from pipeline import run
from pipeline.run import UserError
from pipeline.survey import dr12, network, pages, tsql
from pipeline.survey.names import pack_objid
from pipeline.survey.network import Manners, Pace, Trouble, patiently

log = logging.getLogger("ugriz")

PER_MINUTE = 55.0
"""Queries a minute: SkyServer refuses the 61st of an address."""
FIELDS = 5000
"""Fields of a slice, if nothing else is known: 100,000 galaxies at twenty a field."""
LONGEST, LONGEST_ADDRESS = 8000, 1900
"""Characters of a query, and of one that still fits into an address (IIS takes 2,048)."""
FIRST, LAST = (
    int(pack_objid(0, 0, 0, 0)),
    int(pack_objid(2**16 - 1, 7, 4095, 2**16 - 1, first_field=1)),
)
"""The least and the greatest objID of SDSS."""
_SHORT = re.compile(r"(?P<text>'(?:[^']|'')*')|(?:\s+|--[^\n]*|/\*.*?\*/)+", re.DOTALL)
"""What a query does not need: comments, and more than one blank; texts stay as they are."""
_TOO_MUCH = ("timeout", "timed out", "time limit", "limit is top", "out of memory")


class TooMuch(Exception):
    """A slice that has too many rows or takes too long: cut it in two."""


class Refused(Exception):
    """SkyServer understood, and said no; the text is its own."""


@dataclass(frozen=True)
class SkyServer:
    """SkyServer at `base`; `release` is the number of the data release."""

    base: str
    release: int
    manners: Manners
    pace: Pace
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, sql: str) -> bytes:
        """The CSV of one query.

        Raises:
            Trouble: it may pass. TooMuch: cut the query. Refused: it is no query for SkyServer.
            UserError: there is no SkyServer.
        """
        self.pace.take(self.stop)
        conf.skyserver_baseurl = self.base.rstrip("/")
        sql = _SHORT.sub(lambda found: found["text"] or " ", sql).strip()
        if len(sql) > LONGEST:
            raise Refused(f"the query has {len(sql)} characters, of {LONGEST} at most")
        try:
            with self._send(sql) as answer:
                chunks = iter(lambda: answer.raw.read1(1 << 16, decode_content=True), b"")
                body = b"".join(network.unless_slow(chunks, self.manners.timeout))
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _in_words(error, self.base) from None
        network.note_answer(self.base)
        self._check(answer, body)
        return body

    def _send(self, sql: str) -> requests.Response:
        """Send the query as astroquery does, or, where that is too long, to the web service."""
        form = SDSS.query_sql_async(sql, data_release=self.release, get_query_payload=True)
        url = SDSS._get_query_url(self.release)
        more = {"timeout": (self.manners.timeout, self.manners.query_seconds), "cache": False,
                "stream": True}  # fmt: skip
        if len(requests.compat.urlencode(form)) <= LONGEST_ADDRESS:
            return SDSS._request("GET", url, params=form, **more)
        url = f"{conf.skyserver_baseurl}/dr{self.release}/SkyServerWS/SearchTools/SqlSearch"
        return SDSS._request("POST", url, data={"cmd": form["cmd"], "format": "csv"}, **more)

    def _check(self, answer: requests.Response, body: bytes) -> None:
        status = answer.status_code
        page = network.web_page(body, answer.headers.get("Content-Type", ""))
        said = _said(body)
        if any(words in said.lower() for words in _TOO_MUCH):
            raise TooMuch(said)
        if "queries allowed per minute" in said:
            raise Trouble(f"says: {said}", 60.0)
        if status == 404:
            raise UserError(f"{self.base}: has no SQL search of DR{self.release}; check source "
                            "and context of query")  # fmt: skip
        if status in (429, 500, 502, 503, 504) or page:
            raise Trouble(f"answered {status} with {page or said or answer.reason}",
                          network.retry_after(answer.headers))  # fmt: skip
        if said or status != 200:
            raise Refused(said or f"answered {status} {answer.reason}")


def _said(body: bytes) -> str:
    """SkyServer's words for an error, "" for rows: a column error_message, or JSON."""
    start = body[:4000]
    if start.lstrip().startswith(b"{"):
        try:
            return " ".join(str(json.loads(body).get("ErrorMessage", "")).split())
        except ValueError:
            return ""
    head, _, rest = start.removeprefix(b"#Table1\r\n").removeprefix(b"#Table1\n").partition(b"\n")
    if b"error_message" in head:
        return " ".join(rest.decode(errors="replace").strip().strip('"').split())
    return ""


def _in_words(error: Exception, base: str) -> Exception:
    if isinstance(error, requests.exceptions.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return Trouble("nothing came for too long (time-out)")
    cause = getattr(error.args[0], "reason", None) if error.args else None
    no_way = (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError,
              requests.exceptions.SSLError)  # fmt: skip
    if isinstance(error, no_way) or isinstance(cause, urllib3.exceptions.NewConnectionError):
        return network.Unreachable(f"cannot be reached ({_cause(error)})")
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema
                  | requests.exceptions.MissingSchema):  # fmt: skip
        return UserError(f"{base}: is no address; query: source is SkyServer's, as "
                         "https://skyserver.sdss.org")  # fmt: skip
    return Trouble(f"the connection broke off ({type(error).__name__})")


def _cause(error: Exception) -> str:
    """The last words of a chain of exceptions, as urllib3 nests them."""
    said = re.findall(r"\[Errno [^\])]*\] [^)'\"]+", str(error))
    if said:
        return said[-1]
    return str(error).rpartition(": ")[2].strip("'\")>") or type(error).__name__


@dataclass(frozen=True)
class Slices:
    """One query to be brought home in slices; `folder` keeps them between runs."""

    service: SkyServer
    text: str
    name: str
    folder: Path
    stretch: tuple[int, int] | None = None
    fields: int = FIELDS

    def run(self) -> list[Path]:
        """Bring all rows; the files of the slices.

        Raises:
            UserError: the query is none for SkyServer, or it refuses it, in its own words.
        """
        query = tsql.parse(self.text, self.name)
        tsql.refuse_parts(query, self.name)
        if query.args.get("limit"):
            raise UserError(f"{self.name}: has TOP; leave it out, the rows come slice by slice")
        key = tsql.key_column(query, self.name)
        names = query.named_selects
        kinds = tsql.output_types(query, dr12.tables())
        kinds |= {name: "bigint" for name in names if _is_id(name)}
        unknown = [name for name in names if name not in kinds]
        if unknown:
            raise UserError(
                f"{self.name}: the type of {unknown[0]} cannot be told; check the names of its "
                f"table and column, or give the type: CAST(... AS real) AS {unknown[0]}"
            )
        self._forget_another(key)
        todo = [self.stretch] if self.stretch else list(self._stretches())
        progress = run.Progress(self.name, len(todo), "slices")
        files = []
        for low, high in todo:
            files += self._bring(low, high, key, names, kinds)
            progress.add()
        progress.close()
        return files

    def _bring(self, low, high, key: str, names: list[str], kinds: Mapping) -> list[Path]:
        """The files of the rows from key `low` to `high`; cut in two where it is too much."""
        file = self.folder / f"slice-{low}-{high}.parquet"
        if file.exists():
            return [file]
        rows = tsql.between(self.text, key, low, high)
        sql = tsql.with_sums(rows, key)
        short: set[str] = set()

        def act() -> pa.Table:
            try:
                page = pages.parse(self.service.ask(sql), names, kinds, key)
                if not page.num_rows:  # rows carry their count, but where there are none?
                    self._check_empty(rows)
                return page
            except pages.Truncated as truncated:
                if str(truncated) in short:  # the same again: SkyServer's limit, not the line's
                    raise TooMuch(str(truncated)) from None
                short.add(str(truncated))
                raise

        try:
            table = patiently(
                act, self.name, self.service.base, self.service.manners, self.service.stop
            )
        except TooMuch as much:
            if low == high:
                raise UserError(f"{self.name}: one object is too much: {much}") from None
            log.info("%s: %s; cutting the slice in two", self.name, much)
            middle = (max(low, FIRST) + min(high, LAST)) // 2
            middle = middle if low <= middle < high else (low + high) // 2
            return [*self._bring(low, middle, key, names, kinds),
                    *self._bring(middle + 1, high, key, names, kinds)]  # fmt: skip
        except Refused as refused:
            line = tsql.line_of(self.text, str(refused))
            raise UserError(f"{self.name}: {line}SkyServer: {refused}; mend it") from None
        pages.write(table, file)
        return [file]

    def _check_empty(self, rows: str) -> None:
        words = self.service.ask(f"SELECT COUNT_BIG(*) AS n FROM ( {rows} ) AS s").split()
        if words[-2:] != [b"n", b"0"]:
            raise Trouble("sent no rows, and does not say that there are none")

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """Ranges of objID that hold about `fields` fields each, and all of them together."""
        sql = (
            "SELECT f.run AS run, COUNT_BIG(*) AS n, COUNT(*) OVER () AS runs "
            "FROM Field f GROUP BY f.run"
        )

        def act() -> np.ndarray:
            lines = self.service.ask(sql).decode(errors="replace").split()
            rows = [line.split(",") for line in lines if re.fullmatch(r"\d+,\d+,\d+", line)]
            if not rows or int(rows[0][2]) != len(rows):
                raise Trouble("does not tell the runs")
            return np.array(sorted((int(run_), int(count)) for run_, count, _ in rows))

        runs = patiently(act, self.name, self.service.base, self.service.manners, self.service.stop)
        low, held = -(2**63) + 1, 0
        for number, (_, count) in enumerate(runs):
            held += count
            last = number + 1 == len(runs)
            if last or held + runs[number + 1][1] > self.fields:
                high = 2**63 - 1 if last else int(pack_objid(runs[number + 1][0], 0, 0, 0)) - 1
                yield low, high
                low, held = high + 1, 0

    def _forget_another(self, key: str) -> None:
        """Remove slices of another query, release or address."""
        mark = json.dumps([self.service.base, self.service.release, self.text, key])
        file = self.folder / "query.json"
        if not file.exists() or file.read_text() != mark:
            for stale in self.folder.glob("slice-*.parquet"):
                stale.unlink()
            with run.whole_file(file) as part:
                part.write_text(mark)


def _is_id(name: str) -> bool:
    return name.lower().endswith(("objid", "fieldid"))
