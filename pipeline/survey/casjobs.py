"""CasJobs by SciServer's REST interface: login, quick queries, batch jobs, MyDB's tables.

Addresses and messages: SciScript-Python, whose `CasJobs` and `Authentication` modules speak the
same interface. A token that runs out is renewed; what may pass is tried again.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable
from html import unescape
from typing import Any, NamedTuple, TypeVar

import httpx

from pipeline.run import UserError
from pipeline.survey import network
from pipeline.survey.credentials import Account
from pipeline.survey.network import Manners, Pace, Trouble

log = logging.getLogger("ugriz")

T = TypeVar("T")

READY, STARTED, CANCELING, CANCELLED, FAILED, FINISHED = range(6)
"""A job's status."""
QUICK_SECONDS = 90.0
"""Seconds to wait for a quick query: CasJobs ends it after 60."""
_TRACE = re.compile(r"System\.Exception: *(?P<said>.*?) *--->", re.DOTALL)


class Job(NamedTuple):
    """A batch job as CasJobs tells of it; `rows` is None where it does not say."""

    id: int
    task: str
    status: int
    rows: int | None
    message: str


class Refused(UserError):
    """CasJobs understood, and said no; `words` are its own."""

    def __init__(self, words: str):
        super().__init__(words)
        self.words = words


class CasJobs:
    """One user's session. `base` and `login` are the addresses of the two services."""

    def __init__(self, base: str, login: str, account: Account, manners: Manners, pace: Pace):
        self.base, self.login_url = base.rstrip("/"), login.rstrip("/")
        self.account, self.manners, self.pace = account, manners, pace
        self.client, self.stop = manners.client(), threading.Event()
        self.quick_wait = min(manners.query_seconds, QUICK_SECONDS)
        self._token: str | None = None

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def quick(self, context: str, sql: str, task: str) -> bytes:
        """The result of a query that takes less than a minute, as CSV."""
        return self._patiently("POST", f"contexts/{context}/query", task, _body(sql, task)).content

    def put(self, context: str, sql: str, task: str) -> int:
        """Put a batch job; its id. Tried once: whoever calls looks first whether it arrived.

        Raises:
            Trouble: no answer came, and the job may be there or not.
        """
        answer = self._ask("PUT", f"contexts/{context}/jobs", task, _body(sql, task))
        try:
            return int(answer.text.strip().strip('"'))
        except ValueError:
            raise Trouble(f"sent no job's number but {_first_words(answer)}") from None

    def jobs(self) -> list[Job]:
        """All jobs of this user, oldest first."""
        return self._json("jobs/", "jobs", lambda found: sorted(_job(each) for each in found))

    def job(self, number: int) -> Job:
        """One job."""
        return self._json(f"jobs/{number}", "jobs", _job)

    def cancel(self, number: int) -> None:
        """Cancel a job."""
        self._patiently("DELETE", f"jobs/{number}", "jobs", None)

    def tables(self) -> dict[str, int]:
        """Name -> rows of the tables in MyDB."""

        def names(found) -> dict[str, int]:
            return {str(each["Name"]): int(each.get("Rows") or 0) for each in found}

        return self._json("contexts/MyDB/Tables", "tables", names)

    def _json(self, path: str, task: str, read: Callable[[Any], T]) -> T:
        def act() -> T:
            answer = self._ask("GET", path, task, None)
            try:
                return read(answer.json())
            except (ValueError, TypeError, KeyError, AttributeError):
                raise Trouble(f"sent not CasJobs' JSON but {_first_words(answer)}") from None

        return network.patiently(act, f"{self.base}/{path}", self.base, self.manners, self.stop)

    def _patiently(self, method: str, path: str, task: str, body: dict | None) -> httpx.Response:
        def act():
            return self._ask(method, path, task, body)

        return network.patiently(act, f"{self.base}/{path}", self.base, self.manners, self.stop)

    def _ask(self, method: str, path: str, task: str, body: dict | None) -> httpx.Response:
        """One request, with a new token where the old one has run out."""
        for renewed in (False, True):
            token = self._token or self._log_in()
            accept = "text/plain" if path.endswith("query") else "application/json"
            headers = {"X-Auth-Token": token, "Accept": accept}
            url = f"{self.base}/{path}"
            wait = self.quick_wait if path.endswith("query") else httpx.USE_CLIENT_DEFAULT
            answer = self._send(
                method, url, params={"TaskName": task}, json=body, headers=headers, timeout=wait
            )
            if answer.status_code != 401 or renewed:
                break
            self._token = None
        if answer.status_code == 401:
            raise Trouble("does not take the token that the login service gave")
        if answer.status_code == 404 and not _said(answer):
            raise UserError(
                f"{url}: there is no such address; query: source is to be CasJobs' REST interface, "
                "as https://skyserver.sdss.org/CasJobs/RestApi"
            )
        page = network.web_page(answer.content[:20000], answer.headers.get("Content-Type", ""))
        if page:  # maintenance, a firewall, a proxy: with 200 or 403
            raise Trouble(f"sent {page} in place of an answer")
        if answer.status_code >= 300:
            raise Refused(_said(answer) or f"answered {answer.status_code} {_first_words(answer)}")
        return answer

    def _log_in(self) -> str:
        def act():
            user = {"name": self.account.user, "password": self.account.password.reveal()}
            body = {"auth": {"identity": {"password": {"user": user}}}}
            answer = self._send("POST", self.login_url, params={"TaskName": "ugriz"}, json=body)
            page = network.web_page(answer.content, answer.headers.get("Content-Type", ""))
            if page and answer.status_code in (200, 403):
                raise Trouble(f"sent {page} in place of a token")
            if answer.status_code in (400, 401, 403):
                raise UserError(
                    f"{self.login_url}: does not let {self.account.user} in; check the user name "
                    "and the password"
                )
            token = answer.headers.get("X-Subject-Token")
            if answer.status_code in (404, 405) or (answer.status_code == 200 and not token):
                raise UserError(f"{self.login_url}: gives no token; check query: login")
            if not token:
                raise Trouble(f"answered {answer.status_code}")
            return token

        self._token = network.patiently(
            act, self.login_url, self.login_url, self.manners, self.stop
        )
        return self._token

    def _send(self, method: str, url: str, **more) -> httpx.Response:
        """One answer, whole. Redirects are not followed: password and token stay with the host."""
        self.pace.take(self.stop)
        try:
            with self.client.stream(method, url, follow_redirects=False, **more) as answer:
                body = b"".join(network.unless_slow(answer.iter_raw(), self.manners.timeout))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise network.in_words(error, url) from None
        network.note_answer(url)
        answer = httpx.Response(answer.status_code, headers=answer.headers, content=body)
        if answer.has_redirect_location:
            place = answer.headers["Location"].partition("?")[0]
            raise UserError(f"{url}: sends on to {place}; if that is right, give its address")
        said = _said(answer) if answer.status_code >= 300 else ""
        if not _is_final(said):
            network.check_passing(answer, said)
        return answer


def _body(sql: str, task: str) -> dict:
    return {"Query": sql, "TaskName": task}


def _job(facts: dict) -> Job:
    rows = str(facts.get("Rows"))
    message = str(facts.get("Message") or facts.get("Error") or "")
    found = _TRACE.search(message)
    message = " ".join(unescape(found["said"] if found else message).split())
    return Job(int(facts["JobID"]), str(facts.get("TaskName") or ""), int(facts["Status"]),
               int(rows) if rows.isdecimal() else None, message)  # fmt: skip


_FINAL = (
    "Invalid object name", "Invalid column name", "Incorrect syntax", "There is already an object",
    "could not be bound", "context", "permission", "denied", "quota", "PRIMARY",
)  # fmt: skip
"""Parts of errors that another try does not mend; other answers of 5xx may be CasJobs' own
trouble, as `Could not find prepared statement with handle -1` while polling is."""


def _is_final(said: str) -> bool:
    return any(words.lower() in said.lower() for words in _FINAL)


def _said(answer: httpx.Response) -> str:
    """The service's own words for an error, "" where there are none."""
    text = answer.text
    try:
        content = json.loads(text)
        text = str(content.get("Error Message", "")) if isinstance(content, dict) else ""
    except ValueError:
        text = text if _TRACE.search(text) else ""
    found = _TRACE.search(text)
    return " ".join(unescape(found["said"] if found else text).split())


def _first_words(answer: httpx.Response) -> str:
    page = network.web_page(answer.content, answer.headers.get("Content-Type", ""))
    return page or repr(" ".join(answer.text.split())[:80])
