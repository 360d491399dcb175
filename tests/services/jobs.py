"""The queue: every user's jobs run one after another, in the order in which they came."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from . import statements
from .engine import Engine
from .faults import Fault
from .state import CANCELING, CANCELLED, FAILED, FINISHED, READY, STARTED, State, web_services_id
from .statements import SqlError


class Jobs:
    """Runs the jobs of the state, each after `seconds`, for as long as the loop runs."""

    def __init__(self, state: State, engine: Callable[[str], Engine], seconds: float):
        self._state, self._engine, self._seconds = state, engine, seconds
        self._workers: dict[str, asyncio.Task] = {}
        self._stop = threading.Event()

    def resume(self) -> None:
        """Go on with what a server before this one has left; call it from the loop."""
        self._loop = asyncio.get_running_loop()
        for job in self._state.interrupted():
            if job["making"]:
                self._engine(job["user"]).discard(job["target"])
            after = CANCELLED if job["status"] == CANCELING else READY
            self._state.change(job["id"], status=after, making=0, created="")
        for user in {job["user"] for job in self._state.jobs()}:
            self._start(user)

    async def stop(self) -> None:
        """End the workers; a job under way is finished by the next server."""
        self._stop.set()
        for worker in self._workers.values():
            worker.cancel()
        await asyncio.gather(*self._workers.values(), return_exceptions=True)

    def submit(self, user: str, context: str, query: str, task: str, fault: Fault | None) -> int:
        """Put a job into the queue; its id."""
        named = {"finished-early", "cancelled", "mydb-full"}
        happens = fault.kind if fault and fault.kind in named else None
        share = fault.draw.choice((1.0, 0.5)) if fault else 1.0
        job = self._state.put(
            user=user, context=context, query=query, task=task, fault=happens, share=share
        )
        self._loop.call_soon_threadsafe(self._start, user)
        return job

    def cancel(self, user: str, job: int) -> None:
        """Cancel a job that has not ended yet."""
        if self._state.move(job, READY, CANCELLED):
            self._state.change(job, ended=time.time())
        else:
            self._state.move(job, STARTED, CANCELING)

    def _start(self, user: str) -> None:
        if user not in self._workers or self._workers[user].done():
            self._workers[user] = self._loop.create_task(self._queue(user))

    async def _queue(self, user: str) -> None:
        while job := self._state.next(user):
            await asyncio.sleep(self._seconds / 2)
            if not self._state.move(job["id"], READY, STARTED):
                continue
            self._state.change(job["id"], started=time.time())
            await asyncio.sleep(self._seconds / 2)
            await asyncio.to_thread(self._run, job)

    def _run(self, job: dict) -> None:
        number, end = job["id"], {}
        if job["fault"] == "cancelled":
            self._state.change(number, status=CANCELLED, ended=time.time())
            return
        try:
            end = self._carry_out(job)
        except SqlError as error:
            end = {"status": FAILED, "message": str(error)}
        if self._stop.is_set():
            return
        if self._state.move(number, CANCELING, CANCELLED):
            if end.get("created"):
                self._engine(job["user"]).discard(end["created"])
            end = {}
        self._state.change(number, making=0, ended=time.time(), **end)

    def _carry_out(self, job: dict) -> dict:
        """Run a job's statement; the columns of the job that follow from it."""
        engine, context = self._engine(job["user"]), job["context"]
        statement = statements.read(job["query"], context)
        if not statement.drop and not statement.into:
            statement = statement._replace(into=f"MyTable_{job['id']}")
        table = statement.into or ""
        if job["fault"] == "mydb-full" and table:
            raise SqlError(
                f"Could not allocate space for object 'dbo.{table}' in database "
                f"'mydb_{web_services_id(job['user'])}' because the 'PRIMARY' filegroup is full."
            )
        early = job["fault"] == "finished-early" and bool(table)
        share = job["share"] if early else 1.0
        shown = {"target": f"MyDB.{table}" if table else "", "created": table}

        def show_early(count: int) -> None:
            self._state.change(job["id"], status=FINISHED, rows=count, **shown)
            self._stop.wait(max(0.6, 3 * self._seconds))

        def before_commit(count: int) -> None:
            self._state.change(job["id"], making=1, target=table)
            if early and share == 1:
                show_early(count)

        with engine.session(context) as session:
            count, rest = engine.change(session, statement, before_commit, share)
        if rest is not None:
            show_early(count)
            engine.append(table, rest)
        return {"status": FINISHED, "rows": count, **shown}
