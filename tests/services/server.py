"""The server: one port for all services, in a thread."""

from __future__ import annotations

import asyncio
import ssl as ssl_
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

from aiohttp import web

from .engine import Engine
from .exchange import Answer, Ask, text
from .faults import Dice, Fault, Faults
from .jobs import Jobs
from .log import Log, Request, without_tokens
from .routes import Route, find, make_routes
from .sending import Sending
from .state import State, web_services_id

ACCOUNTS = {"astronomer": "secret"}


class Services:
    """CasJobs, login, SkyServer and SAS over a simulated survey, in a `with` statement.

    `database`: a DuckDB file with DR12's tables. `archive`: the folder that has boss/ in it.
    `work`: MyDBs, jobs and the log; a server with the same one goes on where the last one ended.
    `gone`: share of frames that are lost for good. `delay`: seconds before each answer.
    `ssl`: a context makes it https. `row_limit`, `queries_a_minute`: SkyServer's limits.
    """

    def __init__(
        self, *, database: Path, archive: Path, work: Path, faults: Faults | None = None,
        gone: float = 0.0, delay: float = 0.0, accounts: Mapping[str, str] = ACCOUNTS,
        token_seconds: float = 3600, job_seconds: float = 0.2, port: int = 0,
        ssl: ssl_.SSLContext | None = None, row_limit: int = 500_000, queries_a_minute: int = 60,
    ):  # fmt: skip
        self.database, self.archive, self.work = Path(database), Path(archive), Path(work)
        self.faults, self.gone, self.delay = faults or Faults(), gone, delay
        self.accounts, self.token_seconds = dict(accounts), token_seconds
        self.job_seconds, self.port, self.ssl = job_seconds, port, ssl
        self.row_limit, self.queries_a_minute = row_limit, queries_a_minute
        self.most_at_once = 0
        self._engines: dict[str | None, Engine] = {}
        self._lock = threading.Lock()
        self._under_way: set[Sending] = set()

    @property
    def url(self) -> str:
        """The root of all services."""
        return f"http{'s' if self.ssl else ''}://127.0.0.1:{self.port}"

    @property
    def casjobs(self) -> str:
        """CasJobs' REST interface."""
        return f"{self.url}/CasJobs/RestApi"

    @property
    def login(self) -> str:
        """SciServer's login portal."""
        return f"{self.url}/login-portal/keystone/v3/tokens"

    @property
    def skyserver(self) -> str:
        """SkyServer's root, below which are /dr12/en/tools/search/x_results.aspx and others."""
        return self.url

    @property
    def sas(self) -> str:
        """SAS's root of DR9, below which is boss/."""
        return f"{self.url}/sas/dr9"

    @property
    def log(self) -> list[Request]:
        """The requests that have ended, oldest first."""
        patience = time.monotonic() + 1
        while any(one.ending for one in list(self._under_way)) and time.monotonic() < patience:
            time.sleep(0.001)
        return self._log.requests()

    def jobs(self) -> list[dict]:
        """Every job that was ever put, by all users."""
        return self._state.jobs()

    def engine(self, user: str | None) -> Engine:
        """The databases as a user sees them; None: someone without a token."""
        with self._lock:
            if user not in self._engines:
                name = f"mydb_{web_services_id(user)}.duckdb" if user else ""
                file = self.work / name if user else None
                self._engines[user] = Engine(self.database, file)
            return self._engines[user]

    def __enter__(self) -> Services:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, in a thread."""
        self.work.mkdir(parents=True, exist_ok=True)
        self._log, self._state = Log(self.work / "requests.jsonl"), State(self.work / "state.db")
        listening: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening)))
        self._thread.start()
        listening.result()

    def stop(self) -> None:
        """Close all connections and files."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._state.close()
        self._log.close()

    async def _serve(self, listening: Future[None]) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._dice = Dice(self.faults)
        try:
            jobs = Jobs(self._state, self.engine, self.job_seconds)
            self._routes = make_routes(self, self._state, jobs)
            server = _Counting(self)
            runner = web.ServerRunner(server, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=self.ssl)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]
            jobs.resume()
        except BaseException as error:
            listening.set_exception(error)
            return
        listening.set_result(None)
        await self._end.wait()
        await jobs.stop()
        await runner.cleanup()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, well or badly, and log it."""
        began = time.time()
        ask = await _read(request)
        route, parts = find(self._routes, ask)
        service = route.service(parts) if route else None
        fault = self._dice.throw(service, *_key(ask)) if service else None
        if fault and fault.kind == "expired":
            self._state.expire(ask.headers.get("X-Auth-Token", ""))
        if self.delay:
            await asyncio.sleep(self.delay)
        sending = Sending(request, fault, self._end)
        self._under_way.add(sending)
        try:
            return await sending.run(lambda: self._answer(ask, route, parts, fault))
        finally:
            self._log.add(
                Request(
                    began, ask.method, without_tokens(ask.path),
                    without_tokens(request.query_string), sending.status,
                    sending.fault, sending.sent, sending.length, sending.whole,
                    ask.headers.get("Range"), ask.headers.get("User-Agent"),
                )
            )  # fmt: skip
            self._under_way.discard(sending)

    async def _answer(self, ask: Ask, route: Route | None, parts: tuple, fault: Fault | None):
        if route is None:
            return text("<h1>404 Not Found</h1>", "text/html", 404)
        return await asyncio.to_thread(_carry_out, route, ask, parts, fault)


class _Counting(web.Server):
    """Keeps count of the connections that are open at one time."""

    def __init__(self, services: Services):
        super().__init__(
            services.handle, request_factory=self._large, max_line_size=1 << 16, access_log=None
        )
        self._services = services
        self._open: set = set()

    def _large(self, message, payload, protocol, writer, task) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=1 << 28
        )

    def connection_made(self, handler, transport) -> None:
        super().connection_made(handler, transport)
        self._open.add(handler)
        # the end of a connection may be read after the beginning of the next one
        asyncio.get_running_loop().call_later(0.01, self._count)

    def connection_lost(self, handler, exc=None) -> None:
        super().connection_lost(handler, exc)
        self._open.discard(handler)

    def _count(self) -> None:
        self._services.most_at_once = max(self._services.most_at_once, len(self._open))


async def _read(request: web.BaseRequest) -> Ask:
    form: dict[str, str] = {}
    body = b""
    if "form" in request.content_type:
        for name, value in (await request.post()).items():
            form[name] = value if isinstance(value, str) else value.file.read().decode()
    else:
        body = await request.read()
    return Ask(
        request.method, request.path, request.query, request.headers, body, form,
        request.remote or "",
    )  # fmt: skip


def _key(ask: Ask) -> tuple[str | bytes, ...]:
    fields = sorted((*ask.query.items(), *ask.form.items()))
    return ask.method, without_tokens(ask.path), str(fields), ask.body


def _carry_out(route: Route, ask: Ask, parts: tuple, fault: Fault | None) -> Answer:
    try:
        return route.handler(ask, fault, *parts)
    except Exception as error:
        return route.in_words(error)
