"""CasJobs' REST interface and SciServer's login."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from . import rows
from .engine import Engine
from .exchange import Answer, Ask, as_json, text
from .faults import Fault
from .jobs import Jobs
from .state import State, web_services_id
from .statements import MYDB, SqlError

CONTEXTS = {MYDB: MYDB} | {f"dr{number}": "survey" for number in range(7, 20)}
"""What stands behind a context, whose names are case-insensitive."""
QUICK_SECONDS = 60.0


class Refusal(Exception):
    """A request that is answered with a status and CasJobs' JSON."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status

    def answer(self) -> Answer:
        """The answer."""
        return as_json({"Error Code": self.status, "Error Message": str(self)}, self.status)


class CasJobs:
    """Handlers of the REST interface; each takes a request and the parts of its path."""

    def __init__(
        self, state: State, jobs: Jobs, engine: Callable[[str | None], Engine], accounts: dict
    ):
        self._state, self._jobs, self._engine, self._accounts = state, jobs, engine, accounts

    def query(self, ask: Ask, context: str) -> Answer:
        """Run a quick query; the format follows from Accept."""
        where = _context(context)
        user = self.user(ask, needed=where == MYDB)
        found = self._engine(user).query(_asked(ask)["Query"], where, QUICK_SECONDS)
        accept = ask.headers.get("Accept", "")
        if "text/plain" in accept or "text/csv" in accept:
            return text(rows.as_csv(found))
        if "fits" in accept:
            return Answer(rows.as_fits(found), 200, {"Content-Type": "application/fits"})
        return as_json(rows.as_array(found))

    def submit(self, ask: Ask, context: str, fault: Fault | None) -> Answer:
        """Put a job into the queue; the answer is its bare id."""
        user, asked = self.user(ask), _asked(ask)
        task = asked.get("TaskName") or ask.field("TaskName")
        return text(str(self._jobs.submit(user, _context(context), asked["Query"], task, fault)))

    def status(self, ask: Ask, number: str) -> Answer:
        """One job."""
        user = self.user(ask)
        return as_json(job_as_json(self._job(user, number)))

    def all(self, ask: Ask) -> Answer:
        """All jobs of the user."""
        return as_json([job_as_json(job) for job in self._state.jobs(self.user(ask))])

    def cancel(self, ask: Ask, number: str) -> Answer:
        """Cancel a job."""
        user = self.user(ask)
        self._jobs.cancel(user, self._job(user, number)["id"])
        return text("")

    def tables(self, ask: Ask, context: str) -> Answer:
        """The tables of a context."""
        user, where = self.user(ask), _context(context)
        found = self._engine(user).tables(where)
        made = {job["created"].lower(): job["ended"] for job in self._state.jobs(user)}
        return as_json(
            [
                {"Date": _ticks(made.get(key)), "Name": name, "Rows": count, "Size": kilobytes}
                for key, (name, count, kilobytes) in found.items()
            ]
        )

    def upload(self, ask: Ask, name: str) -> Answer:
        """Make a table of MyDB from CSV."""
        user = self.user(ask)
        with tempfile.NamedTemporaryFile(suffix=".csv") as file:
            file.write(ask.body)
            file.flush()
            self._engine(user).upload(name, Path(file.name))
        return text("")

    def identity(self, ask: Ask, keystone: str) -> Answer:
        """The number of a user's web services."""
        user = self.user(ask)
        if keystone != keystone_id(user):
            raise Refusal(404, f"No user {keystone}")
        return as_json({"WebServicesId": web_services_id(user), "UserID": keystone})

    def user(self, ask: Ask, needed: bool = True) -> str | None:
        """Whose token the request carries; Refusal if it carries none that holds."""
        token = ask.headers.get("X-Auth-Token", "")
        user = self._state.holder(token)
        if user not in self._accounts and (token or needed):
            raise Refusal(401, "Invalid token: it is unknown or has expired")
        return user

    def _job(self, user: str, number: str) -> dict:
        job = self._state.job(int(number), user)
        if job is None:
            raise Refusal(404, f"Job {number} does not exist")
        return job


class Login:
    """SciServer's login portal, which speaks as OpenStack's keystone does."""

    def __init__(self, state: State, accounts: dict[str, str], seconds: float):
        self._state, self._accounts, self._seconds = state, accounts, seconds

    def enter(self, ask: Ask) -> Answer:
        """Name and password for a token."""
        try:
            user = json.loads(ask.body)["auth"]["identity"]["password"]["user"]
            name, password = user["name"], user["password"]
        except (ValueError, KeyError, TypeError):
            return _keystone_error(400, "Bad Request", "Expecting to find auth in request body")
        if self._accounts.get(name) != password:
            return _keystone_error(401, "Unauthorized", "Invalid username or password")
        token = self._state.new_token(name, self._seconds)
        return as_json(_identity(name), X_Subject_Token=token)

    def whose(self, ask: Ask, token: str) -> Answer:
        """The holder of a token."""
        name = self._state.holder(token)
        if name is None:
            return _keystone_error(404, "Not Found", "Could not find token")
        return as_json(_identity(name))


def keystone_id(user: str) -> str:
    """A user's id at the login portal."""
    return f"{zlib.crc32(user.encode()):032x}"


def job_as_json(job: dict) -> dict:
    """A job with the fields of CasJobs' class Job."""
    return {
        "JobID": job["id"], "Rows": job["rows"], "WebServicesID": web_services_id(job["user"]),
        "TimeSubmit": _date(job["submitted"]), "TimeStart": _date(job["started"]),
        "TimeEnd": _date(job["ended"]), "SendEmail": 0, "Status": job["status"],
        "AutoComplete": 0, "Estimate": 500, "TaskName": job["task"], "OutputLoc": "",
        "HostIP": "127.0.0.1", "Message": job["message"], "Query": job["query"],
        "ModifiedQuery": job["query"], "Target": job["target"], "OutputType": "QUERY",
        "Params": "", "Created_Table": job["created"],
    }  # fmt: skip


def _identity(user: str) -> dict:
    return {"token": {"user": {"name": user, "id": keystone_id(user)}, "methods": ["password"]}}


def _keystone_error(status: int, title: str, message: str) -> Answer:
    return as_json({"error": {"code": status, "title": title, "message": message}}, status)


def _context(name: str) -> str:
    if name.lower() not in CONTEXTS:
        raise Refusal(400, f"Context {name} does not exist")
    return CONTEXTS[name.lower()]


def _asked(ask: Ask) -> dict:
    try:
        asked = json.loads(ask.body)
    except ValueError:
        raise Refusal(400, "The body is not JSON") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("Query"), str):
        raise Refusal(400, "Query is missing")
    return asked


def _date(seconds: float | None) -> str:
    if seconds is None:
        return "0001-01-01T00:00:00"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]


def _ticks(seconds: float | None) -> int:
    moment = datetime.fromtimestamp(seconds or 0, UTC)
    return (moment - datetime(1, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 10


def in_words(error: Exception) -> Answer:
    """The answer to a request that failed."""
    if isinstance(error, Refusal):
        return error.answer()
    if isinstance(error, SqlError):
        return Refusal(500, str(error)).answer()
    raise error
