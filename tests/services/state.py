"""What outlives the server: jobs and tokens, in an SQLite file."""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
import zlib
from pathlib import Path

READY, STARTED, CANCELING, CANCELLED, FAILED, FINISHED = range(6)
"""A job's status, as CasJobs counts."""
FIRST_JOB = 40_000_001

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY, user TEXT, context TEXT, query TEXT, task TEXT, status INTEGER,
    submitted REAL, started REAL, ended REAL, rows INTEGER DEFAULT 0, message TEXT DEFAULT '',
    target TEXT DEFAULT '', created TEXT DEFAULT '', making INTEGER DEFAULT 0,
    fault TEXT, share REAL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS tokens (token TEXT PRIMARY KEY, user TEXT, until REAL);
"""


class State:
    """The jobs of all users, and who holds which token. Every change is on disk at once."""

    def __init__(self, file: Path):
        self._lock = threading.RLock()
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA synchronous = OFF")  # survives a killed server
        self._database.executescript(_TABLES)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _run(self, sql: str, *values) -> sqlite3.Cursor:
        with self._lock:
            return self._database.execute(sql, values)

    def put(self, **job) -> int:
        """A new job, ready to run; its id."""
        with self._lock:
            (last,) = self._run("SELECT max(id) FROM jobs").fetchone()
            job |= {"id": (last or FIRST_JOB - 1) + 1, "status": READY, "submitted": time.time()}
            marks = ", ".join("?" * len(job))
            self._run(f"INSERT INTO jobs ({', '.join(job)}) VALUES ({marks})", *job.values())
            return job["id"]

    def change(self, job: int, **values) -> None:
        """Set columns of a job."""
        listed = ", ".join(f"{name} = ?" for name in values)
        self._run(f"UPDATE jobs SET {listed} WHERE id = ?", *values.values(), job)

    def move(self, job: int, before: int, after: int) -> bool:
        """Change a job's status from `before` to `after`; False if it had another one."""
        sql = "UPDATE jobs SET status = ? WHERE id = ? AND status = ?"
        return self._run(sql, after, job, before).rowcount == 1

    def job(self, job: int, user: str) -> dict | None:
        """A user's job, None if there is no such job."""
        row = self._run("SELECT * FROM jobs WHERE id = ? AND user = ?", job, user).fetchone()
        return dict(row) if row else None

    def jobs(self, user: str | None = None) -> list[dict]:
        """The jobs of one user or all, oldest first."""
        rows = self._run("SELECT * FROM jobs WHERE ?1 IS NULL OR user = ?1 ORDER BY id", user)
        return [dict(row) for row in rows.fetchall()]

    def next(self, user: str) -> dict | None:
        """The user's oldest job that is ready."""
        sql = "SELECT * FROM jobs WHERE user = ? AND status = ? ORDER BY id LIMIT 1"
        row = self._run(sql, user, READY).fetchone()
        return dict(row) if row else None

    def interrupted(self) -> list[dict]:
        """The jobs that were under way when the server went down."""
        sql = "SELECT * FROM jobs WHERE status IN (?, ?) OR making ORDER BY id"
        return [dict(row) for row in self._run(sql, STARTED, CANCELING).fetchall()]

    def new_token(self, user: str, seconds: float) -> str:
        """A token of the user's that holds for so many seconds."""
        token = secrets.token_hex(16)
        self._run("INSERT INTO tokens VALUES (?, ?, ?)", token, user, time.time() + seconds)
        return token

    def holder(self, token: str) -> str | None:
        """Whose token it is; None if it is unknown or has expired."""
        sql = "SELECT user FROM tokens WHERE token = ? AND until > ?"
        row = self._run(sql, token, time.time()).fetchone()
        return row["user"] if row else None

    def expire(self, token: str) -> None:
        """End a token."""
        self._run("DELETE FROM tokens WHERE token = ?", token)


def web_services_id(user: str) -> int:
    """A user's number in CasJobs."""
    return zlib.crc32(user.encode()) % 1_000_000_000
