"""A query as a batch job of CasJobs: put once, waited for, brought home in pages.

What is needed to go on after a kill is in a folder beside the output: `job.json`, written before
the job is put, and the pages that have come. The job's name and its MyDB table carry a hash of the
query, the context and the run, so that a job which was put without an answer is found again.
"""

from __future__ import annotations

import hashlib
import json
import logging
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
"""Jobs that CasJobs may cancel by itself before it is given up."""
SETTLE = 120.0
"""Seconds after `finished` in which a job's table must show up in MyDB, whole."""
_FULL = ("filegroup is full", "quota", "could not allocate space", "mydb is full")


@dataclass(frozen=True)
class Batch:
    """One query to be brought home; `folder` keeps what is known of it between runs."""

    service: CasJobs
    text: str
    name: str
    context: str
    folder: Path
    page_rows: int = 50_000
    poll: float = 5.0

    def run(self) -> list[Path]:
        """Bring all rows; the files of the pages, which have the column `tsql.ROW` besides.

        Raises:
            UserError: the query is none for CasJobs, or CasJobs refuses it, in its own words.
        """
        query = tsql.parse(self.text, self.name)
        tsql.refuse_parts(query, self.name)
        key = tsql.key_column(query, self.name)
        task, table = self._names()
        try:
            job = self._finished_job(task, table, key)
            kinds = self._columns(table)
            return self._bring(table, key, kinds, job.rows)
        except Refused as refused:
            raise self._told(refused.words) from None

    def drop(self) -> None:
        """Drop the table in MyDB."""
        _, table = self._names()
        self.service.quick("MyDB", f"DROP TABLE {table}", "ugriz-drop")

    def forget(self, dropped: bool) -> None:
        """Remove the pages, and with a dropped table all that is known of the job."""
        if dropped:
            shutil.rmtree(self.folder, ignore_errors=True)
        for page in self.folder.glob("page-*.parquet"):
            page.unlink()

    def _names(self) -> tuple[str, str]:
        """The names of the job and of its table: as they were written down, or new ones."""
        file = self.folder / "job.json"
        digest = hashlib.sha256(f"{self.context.lower()}\n{self.text}".encode()).hexdigest()
        known = json.loads(file.read_text()) if file.exists() else {}
        if known.get("query") != digest:
            shutil.rmtree(self.folder, ignore_errors=True)
            known = {"query": digest, "run": uuid.uuid4().hex}
            mark = hashlib.sha256(f"{digest}{known['run']}".encode()).hexdigest()[:16]
            stem = "".join(c for c in Path(self.name).stem.lower() if c.isalnum())[:20]
            known["task"] = known["table"] = f"ugriz_{stem}_{mark}"
            run.write_json(known, file)
        return known["task"], known["table"]

    def _finished_job(self, task: str, table: str, key: str) -> Job:
        """The job whose table is whole in MyDB; put, if there is none yet."""
        job = self._find(task)
        if job is not None:
            log.info("%s: job %d was put before; going on with it", self.name, job.id)
        for _ in range(AGAIN + 1):
            if job is None:
                if table in self.service.tables():  # of a job that is no longer listed
                    self.service.quick("MyDB", f"DROP TABLE {table}", task)
                job = self._put(task, tsql.into(self.text, table, key))
            job = self._wait(job)
            if job.status == casjobs.FAILED:
                raise self._told(job.message or "the job failed, and CasJobs does not say why")
            if job.status == casjobs.FINISHED and self._settled(job, table):
                return job
            log.info("%s: job %d was cancelled, or its table is gone; putting it again",
                     self.name, job.id)  # fmt: skip
            job = None
        raise UserError(f"{self.name}: CasJobs cancelled the job {AGAIN + 1} times; ask its "
                        "helpdesk why, then run again")  # fmt: skip

    def _find(self, task: str) -> Job | None:
        """The latest job of that name that is not cancelled or failed."""
        ended = (casjobs.CANCELING, casjobs.CANCELLED, casjobs.FAILED)
        alive = [job for job in self.service.jobs() if job.task == task and job.status not in ended]
        return alive[-1] if alive else None

    def _put(self, task: str, sql: str) -> Job:
        """Put the job, once: after every try that had no answer it is looked for."""
        manners = self.service.manners
        for attempt in range(manners.tries):
            try:
                number = self.service.put(self.context, sql, task)
                log.info("%s: job %d is put", self.name, number)
                return self.service.job(number)
            except Trouble as trouble:
                reason, wait = str(trouble), pause(attempt, trouble.wait, manners)
            tell(self.name, reason, attempt + 2, wait, manners.tries)
            time.sleep(wait)
            job = self._find(task)
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

    def _settled(self, job: Job, table: str) -> bool:
        """Whether the table has all the job's rows; it may come a while after `finished`."""
        ends = time.monotonic() + SETTLE
        while True:
            if table in self.service.tables():
                rows = self._count(table)
                if rows is not None and (job.rows is None or rows == job.rows):
                    return True
            if time.monotonic() > ends:
                return False
            time.sleep(self.poll)
            job = self.service.job(job.id)

    def _count(self, table: str) -> int | None:
        try:
            body = self.service.quick("MyDB", f"SELECT COUNT_BIG(*) AS n FROM {table}", "ugriz")
        except Refused:  # listed, but not yet there
            return None
        number = body.split()[-1:]
        return int(number[0]) if number and number[0].isdigit() else None

    def _columns(self, table: str) -> dict[str, str]:
        """Column -> SQL Server type of the table, in its order."""
        sql = (
            "SELECT COLUMN_NAME, DATA_TYPE, COUNT(*) OVER () AS n FROM INFORMATION_SCHEMA.COLUMNS "
            f"WHERE TABLE_NAME = '{table}' ORDER BY ORDINAL_POSITION"
        )

        def act() -> dict[str, str]:
            text = self.service.quick("MyDB", sql, "ugriz").decode(errors="replace")
            rows = [line.replace('"', "").split(",") for line in text.split()[1:]]
            if not rows or any(len(row) != 3 or row[2] != str(len(rows)) for row in rows):
                raise Trouble("does not tell the columns of the table")
            kinds = {row[0]: row[1] for row in rows}
            return kinds

        return patiently(act, self.name, self.service.base, self.service.manners, self.service.stop)

    def _bring(self, table: str, key: str, kinds: dict[str, str], rows: int | None) -> list[Path]:
        """The pages' files; those that are there are not asked for again."""
        rows = self._count(table) if rows is None else rows
        starts = range(1, (rows or 0) + 1, self.page_rows) or [1]
        progress = run.Progress(self.name, len(starts), "pages")
        files = []
        for first in starts:
            last = min(first + self.page_rows - 1, rows or 0)
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
