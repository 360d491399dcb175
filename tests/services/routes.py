"""Which handler answers which request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from . import casjobs, sas
from .casjobs import CasJobs, Login
from .exchange import Answer, Ask
from .jobs import Jobs
from .sas import Sas
from .skyserver import SkyServer
from .state import State

_SEARCH = (
    r"/dr\d+/\w+/tools/(search|crossid)/x_(results\.aspx|sql\.aspx?|crossid\.aspx?)",
    r"/(dr\d+/skyserverws|skyserverws/dr\d+)/searchtools/(sqlsearch|crossid)",
)


class Route(NamedTuple):
    """`name`: the service, as kinds of faults know it. `handler` gets ask, fault, path's parts."""

    name: str
    methods: str
    pattern: str
    handler: Callable[..., Answer]
    in_words: Callable[[Exception], Answer]

    def service(self, parts: tuple[str, ...]) -> str:
        """The service; frames are one of their own."""
        return "frames" if self.name == "sas" and sas.is_frame(parts[0]) else self.name


def make_routes(services, state: State, jobs: Jobs) -> list[Route]:
    """The routes of all services."""
    rest = CasJobs(state, jobs, services.engine, services.accounts)
    login = Login(state, services.accounts, services.token_seconds)
    sky = SkyServer(services.engine(None), services.row_limit, services.queries_a_minute)
    files = Sas(services.archive, services.gone, services.faults.seed)
    api, keystone = "/casjobs/restapi", "/login-portal/keystone/v[23][.0]*/tokens"
    listed = [
        ("login", "POST", keystone, lambda ask, _: login.enter(ask)),
        ("login", "GET", f"{keystone}/(\\w+)", lambda ask, _, token: login.whose(ask, token)),
        ("query", "POST", f"{api}/contexts/(\\w+)/query", lambda ask, _, c: rest.query(ask, c)),
        ("submit", "PUT", f"{api}/contexts/(\\w+)/jobs", lambda ask, f, c: rest.submit(ask, c, f)),
        ("jobs", "GET", f"{api}/jobs", lambda ask, _: rest.all(ask)),
        ("jobs", "GET", f"{api}/jobs/(\\d+)", lambda ask, _, n: rest.status(ask, n)),
        ("casjobs", "DELETE", f"{api}/jobs/(\\d+)", lambda ask, _, n: rest.cancel(ask, n)),
        ("casjobs", "GET", f"{api}/contexts/(\\w+)/tables", lambda ask, _, c: rest.tables(ask, c)),
        ("casjobs", "POST", f"{api}/contexts/mydb/tables/(\\w+)",
         lambda ask, _, name: rest.upload(ask, name)),
        ("casjobs", "GET", f"{api}/users/(\\w+)", lambda ask, _, who: rest.identity(ask, who)),
        *(("skyserver", "GET POST", path, lambda ask, *_: sky.search(ask)) for path in _SEARCH),
        ("sas", "GET", r"/sas/dr\d+/(.+)", lambda ask, f, path: files.get(ask, path, f)),
    ]  # fmt: skip
    return [Route(*route, casjobs.in_words) for route in listed]


def find(routes: list[Route], ask: Ask) -> tuple[Route | None, tuple[str, ...]]:
    """The route of a request and the parts of its path. Only files have names with a case."""
    method = "GET" if ask.method == "HEAD" else ask.method
    for route in routes:
        found = re.fullmatch(route.pattern + "/?", ask.path, re.IGNORECASE)
        if found and method in route.methods.split():
            return route, found.groups()
    return None, ()
