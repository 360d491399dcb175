"""A query as a batch job of CasJobs: put once, waited for, brought home in pages.

What is needed to go on after a kill is in a folder beside the output: `job.json`, written before
the job is put, and the pages that have come. The job's name and its MyDB table carry a hash of the
query, the context, the service and the run, so that a job which was put without an answer is found
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from pipeline import run
from pipeline.run import UserError
from pipeline.survey import casjobs, pages, tsql
from pipeline.survey.casjobs import CasJobs, Job, Refused
from pipeline.survey.network import GaveUp, Trouble, advice, patiently, pause, tell

log = logging.getLogger("ugriz")

AGAIN = 5
"""Times that a job which CasJobs cancelled, or whose table is not whole, is put again."""
SETTLE = 120.0
"""Seconds after `finished` in which a job's table must show up in MyDB, whole."""
_FULL = ("filegroup is full", "quota", "could not allocate space", "mydb is full")


@dataclass(frozen=True)
class Batch:
    """One query to be brought home; `folder` keeps what is known of it between runs.

    `stretch`: only the rows whose key is from its first to its last number.
    """

    service: CasJobs
    text: str
    name: str
    context: str
    folder: Path
    page_rows: int = 50_000
    poll: float = 5.0
    stretch: tuple[int, int] | None = None

    def __post_init__(self):
        if self.page_rows < 1:
            raise UserError(f"--page-rows {self.page_rows}: give a number above 0")
        if not 0 < self.poll < float("inf"):
            raise UserError(f"--poll {self.poll}: give seconds, above 0")
        if not re.fullmatch(r"\w+", self.context):
            raise UserError(f"--context {self.context}: give a name, as DR12")

    def run(self) -> list[Path]:
        """Bring all rows; the files of the pages, which have the column `tsql.ROW` besides.

        Raises:
            UserError: the query is none for CasJobs, or CasJobs refuses it, in its own words.
        """
        query = tsql.parse(self.text, self.name)
        tsql.refuse_parts(query, self.name)
        key = tsql.key_column(query, self.name)
        name = self._name()
        try:
            rows = self._rows_of_job(name, key)
            kinds = self._columns(name, query.named_selects)
            return self._bring(name, key, kinds, rows)
        except Refused as refused:
            if name in refused.words and "invalid object" in refused.words.lower():
                raise UserError(f"{self.name}: the table {name} is gone from MyDB; run again to "
                                "put its job again") from None  # fmt: skip
            raise self._told(refused.words) from None

    def drop(self) -> None:
        """Drop the table in MyDB."""
        name = self._name()
        try:
            self.service.quick("MyDB", f"DROP TABLE {name}", "ugriz-drop")
        except Refused as refused:  # the answer to a try before this one may have been lost
            if name in self.service.tables():
                raise self._told(refused.words) from None

    def forget(self, dropped: bool) -> None:
        """Remove the pages, and with a dropped table all that is known of the job."""
        if dropped:
            shutil.rmtree(self.folder, ignore_errors=True)
        for page in self.folder.glob("page-*.parquet"):
            page.unlink()

    def _name(self) -> str:
        """The name of the job and of its table: as it was written down, or a new one."""
        file = self.folder / "job.json"
        where = (self.service.base, self.service.account.user, self.context.lower())
        parts = json.dumps([*where, self.stretch, self.text])
        digest = hashlib.sha256(parts.encode()).hexdigest()
        known = json.loads(file.read_text()) if file.exists() else {}
        if known.get("query") != digest:
            shutil.rmtree(self.folder, ignore_errors=True)
            salt = uuid.uuid4().hex
            mark = hashlib.sha256(f"{digest}{salt}".encode()).hexdigest()[:16]
            stem = re.sub(r"[^a-z0-9]", "", Path(self.name).stem.lower())[:20]
            known = {"query": digest, "run": salt, "name": f"ugriz_{mark}_{stem}"}
            run.write_json(known, file)
        return known["name"]

    def _rows_of_job(self, name: str, key: str) -> int:
        """Rows of the table, which is whole in MyDB; its job is put, if there is none yet."""
        job = self._find(name)
        if job is not None:
            log.info("%s: job %d was put before; going on with it", self.name, job.id)
        for _ in range(AGAIN + 1):
            if job is None:
                self.forget(dropped=False)  # another table may number its rows another way
                if name in self.service.tables():  # of a job that is no longer listed
                    self.drop()
                text = tsql.between(self.text, key, *self.stretch) if self.stretch else self.text
                job = self._put(name, tsql.into(text, name, key))
            job = self._wait(job)
            if job.status == casjobs.FAILED:
                raise self._told(job.message or "the job failed, and CasJobs does not say why")
            found = "CasJobs cancelled it"
            if job.status == casjobs.FINISHED:
                rows = self._settle(job, name)
                if isinstance(rows, int):
                    return rows
                found = rows
            log.info("%s: job %d: %s; putting it again", self.name, job.id, found)
            job = None
        raise UserError(f"{self.name}: the job was put {AGAIN + 1} times, and at last {found}; ask "
                        "CasJobs' helpdesk why, then run again")  # fmt: skip

    def _find(self, name: str) -> Job | None:
        """The latest job of that name, which may be cut off, that is not cancelled or failed."""
        ended = (casjobs.CANCELING, casjobs.CANCELLED, casjobs.FAILED)
        alive = [
            job
            for job in self.service.jobs()
            if name.startswith(job.task) and len(job.task) >= 22 and job.status not in ended
        ]
        return alive[-1] if alive else None

    def _put(self, name: str, sql: str) -> Job:
        """Put the job, once: after every try that had no answer it is looked for."""
        manners = self.service.manners
        for attempt in range(manners.tries):
            try:
                number = self.service.put(self.context, sql, name)
                log.info("%s: job %d is put", self.name, number)
                return self.service.job(number)
            except Trouble as trouble:
                reason, wait = str(trouble), pause(attempt, trouble.wait, manners)
            tell(self.name, reason, attempt + 2, wait, manners.tries)
            time.sleep(wait)
            job = self._find(name)
            if job is not None:
                log.info("%s: job %d had been put after all", self.name, job.id)
                return job
        raise GaveUp(f"{self.name}: the job cannot be put: {reason}; {advice(reason)}")

    def _wait(self, job: Job) -> Job:
        """Poll until the job has ended; tells of it once in a while."""
        began = told = time.monotonic()
        wait = self.poll
        while job.status not in (casjobs.CANCELLED, casjobs.FAILED, casjobs.FINISHED):
            time.sleep(wait)
            wait = min(wait * 1.2, max(60.0, self.poll))
            job = self.service.job(job.id)
            now = time.monotonic()
            if now - told > 30:
                told = now
                state = "waits in the queue" if job.status == casjobs.READY else "runs"
                log.info("%s: job %d %s, %s", self.name, job.id, state, run.duration(now - began))
        return job

    def _settle(self, job: Job, name: str) -> int | str:
        """Rows of the table once it has all the job's; else, after a while, what it has.

        It may come some time after `finished`. Of a job that does not tell its rows (or says 0),
        the count must be the same twice in a row.
        """
        ends, before = time.monotonic() + SETTLE, None
        while True:
            rows = self._count(name) if name in self.service.tables() else None
            if rows is not None and rows == (job.rows or before):
                return rows
            if time.monotonic() > ends:
                table = "is not in MyDB" if rows is None else f"has {rows} rows of {job.rows}"
                return f"its table {table}"
            before = rows
            time.sleep(self.poll)
            job = self.service.job(job.id)

    def _count(self, table: str) -> int | None:
        try:
            body = self.service.quick("MyDB", f"SELECT COUNT_BIG(*) AS n FROM {table}", "ugriz")
        except Refused:  # listed, but not yet there
            return None
        number = body.split()[-1:]
        return int(number[0]) if number and number[0].isdigit() else None

    def _columns(self, table: str, names: list[str]) -> dict[str, str]:
        """Column, spelt as in `names`, -> SQL Server type of the table, in its order."""
        spelt = {name.lower(): name for name in names}
        sql = (
            "SELECT COLUMN_NAME, DATA_TYPE, COUNT(*) OVER () AS n FROM INFORMATION_SCHEMA.COLUMNS "
            f"WHERE TABLE_NAME = '{table}' ORDER BY ORDINAL_POSITION"
        )

        def act() -> dict[str, str]:
            text = self.service.quick("MyDB", sql, "ugriz").decode(errors="replace")
            rows = [line.replace('"', "").split(",") for line in text.split()[1:]]
            if not rows or any(len(row) != 3 or row[2] != str(len(rows)) for row in rows):
                raise Trouble("does not tell the columns of the table")
            return {spelt.get(row[0].lower(), row[0]): row[1] for row in rows}

        return patiently(act, self.name, self.service.base, self.service.manners, self.service.stop)

    def _bring(self, table: str, key: str, kinds: dict[str, str], rows: int) -> list[Path]:
        """The pages' files; those that are there are not asked for again."""
        starts = range(1, rows + 1, self.page_rows) or [1]
        progress = run.Progress(self.name, len(starts), "pages")
        files = []
        for first in starts:
            last = min(first + self.page_rows - 1, rows)
            file = self.folder / f"page-{first:010d}-{last:010d}.parquet"
            if not file.exists():
                pages.write(self._page(table, key, kinds, first, last), file)
            files.append(file)
            progress.add()
        progress.close()
        return files

    def _page(self, table: str, key: str, kinds: dict[str, str], first: int, last: int):
        part = f"SELECT * FROM {table} AS t WHERE t.{tsql.ROW} BETWEEN {first} AND {last}"

        def act():
            body = self.service.quick("MyDB", tsql.with_sums(part, key), "ugriz")
            page = pages.parse(body, list(kinds), kinds, key)
            if page.num_rows != last - first + 1:
                raise Trouble(f"{page.num_rows} rows came of {last - first + 1}")
            return page

        return patiently(act, self.name, self.service.base, self.service.manners, self.service.stop)

    def _told(self, words: str) -> UserError:
        """CasJobs' words with the query's name, its line where that can be told, and advice."""
        line = tsql.line_of(self.text, words)
        text = f"{self.name}: {line}CasJobs: {words}"
        if any(part in words.lower() for part in _FULL):
            return UserError(f"{text}; drop tables of your MyDB, then run again to go on")
        return UserError(f"{text}; mend it and run again")
