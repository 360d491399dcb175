"""Asking services over HTTP: with patience, within bounds, and one line for what is wrong.

What may pass (a time-out, a reset, 429, 5xx, a web page where data was due) is `Trouble` and is
tried again after pauses that grow; what will not pass without the user ends in a `UserError`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import unescape
from pathlib import Path
from typing import TypeVar

import httpx

from pipeline.run import UserError, duration

log = logging.getLogger("ugriz")

T = TypeVar("T")
FEW = 3
"""Tries of a host that cannot be reached and has never answered: more likely a wrong address."""
TOO_LONG = 600.0
"""Seconds of a Retry-After that are not waited for, unless `longest_wait` says so."""
FIRST_WAIT = 1.0
"""Seconds before the second try; each further pause is twice as long."""
_PASSING = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
_BATCH = {"SLURM_JOB_ID", "PBS_JOBID", "_CONDOR_SLOT", "LSB_JOBID", "SGE_TASK_ID"}
"""One of these is set in a job of a cluster."""
_CLOCK = ("not yet valid", "certificate has expired")


@dataclass(frozen=True)
class Manners:
    """How services are asked; nothing of it changes what comes out. Names are those of the flags.

    `timeout`: seconds without a byte (and, for a file, below 1 kB/s) after which a request is
    given up; `query_seconds`: the same for a query, whose answer begins when it is done. `tries`
    of one request, with pauses of up to `longest_wait` seconds between them.
    `requests_per_minute` and `mb_per_second` bound all jobs that share a cache, together.

    Raises UserError for a number that cannot be.
    """

    timeout: float = 30.0
    query_seconds: float = 660.0
    tries: int = 8
    longest_wait: float = 600.0
    requests_per_minute: float | None = 600.0
    mb_per_second: float | None = None

    def __post_init__(self):
        for name, value in vars(self).items():
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} {value}: give a number above 0")

    def client(self) -> httpx.Client:
        """A client with these time-outs that follows redirects and asks for bytes as they are.

        Raises:
            UserError: the environment's proxy or certificate settings cannot be used.
        """
        try:
            return self._client()
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            raise UserError(f"the proxy or certificate settings of this machine's environment: "
                            f"{error}; mend or unset them") from None  # fmt: skip

    def _client(self) -> httpx.Client:
        return httpx.Client(
            timeout=httpx.Timeout(self.timeout, connect=min(self.timeout, 15.0)),
            follow_redirects=True,
            max_redirects=5,
            headers={"Accept-Encoding": "identity", "User-Agent": "ugriz"},
        )


class Trouble(Exception):
    """What may pass: worth another try. `wait`: seconds that the service asked for, if it did."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class Unreachable(Trouble):
    """No connection to the host at all."""


class GaveUp(UserError):
    """The last try failed as well."""


class NoWay(GaveUp):
    """The service cannot be reached, or wants not to be asked: others will fare no better."""


_answered: set[str] = set()


def note_answer(url: str | httpx.URL) -> None:
    """Remember that a host has answered this process: should it go away, it is waited for."""
    _answered.add(httpx.URL(url).netloc.decode())


def tries_for(trouble: Trouble, url: str, manners: Manners) -> int:
    """Tries that a request is worth."""
    strange = isinstance(trouble, Unreachable) and httpx.URL(url).netloc.decode() not in _answered
    return min(FEW, manners.tries) if strange else manners.tries


def patiently(
    act: Callable[[], T], what: str, url: str, manners: Manners, stop: threading.Event
) -> T:
    """`act()`, tried again while it raises `Trouble`; `what` begins the lines that tell of it.

    `url` is whom `act` asks.

    Raises:
        GaveUp: the last try failed too, or `stop` was set; with the last reason.
    """
    for attempt in range(manners.tries):
        try:
            return act()
        except Trouble as trouble:
            reason, wait = str(trouble), pause(attempt, trouble.wait, manners)
            tries = tries_for(trouble, url, manners)
        if attempt + 1 >= tries:
            break
        tell(what, reason, attempt + 2, wait, tries)
        if stop.wait(wait):
            break
    where = what if what.startswith(url) else f"{what}: {url}"
    raise GaveUp(f"{where}: {reason}; tried {attempt + 1} times; {advice(reason)}")


def pause(attempt: int, asked: float | None, manners: Manners) -> float:
    """Seconds to wait after try number `attempt` (from 0): what was asked for, else doubling.

    The doubling pause is drawn from its upper half, so that many clients do not come back at
    once; nothing is above `longest_wait`.

    Raises:
        NoWay: the service asks for more than that, and than `TOO_LONG`.
    """
    if asked and asked > max(manners.longest_wait, TOO_LONG):
        raise NoWay(f"the service asks not to be asked again for {duration(asked)} (Retry-After); "
                    "run again then, or raise network: longest_wait")  # fmt: skip
    if asked:
        return min(asked, manners.longest_wait)
    doubled = FIRST_WAIT * 2.0 ** min(attempt, 60)
    return min(doubled, manners.longest_wait) * random.uniform(0.5, 1.0)


def tell(what: str, reason: str, number: int, wait: float, tries: int) -> None:
    """Log that try `number` comes after `wait` seconds, and why."""
    log.info("%s: %s; try %d of %d in %s", what, reason, number, tries, duration(wait))


def advice(reason: str) -> str:
    """What a user can do about a reason that did not pass."""
    if any(words in reason for words in _CLOCK):
        return "is this machine's clock right? Set it, then run again to go on"
    if "web page" in reason:
        return "is it maintenance, or a proxy or login page of your network? Run again to go on"
    if "cannot be reached" in reason and not _BATCH.isdisjoint(os.environ):
        return ("compute nodes often have no internet: choose a partition that has, or network: "
                "submit_host: true in the config; run again to go on")  # fmt: skip
    if "cannot be reached" in reason:
        return "check the address and this machine's network, VPN and proxy; run again to go on"
    return "wait a while, then run again to go on; what has come is kept"


def in_words(error: httpx.HTTPError | httpx.InvalidURL, where: str) -> Exception:
    """The `Trouble` or UserError that a failed request is."""
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return UserError(f"{where}: cannot be reached ({error}); give an http(s):// address")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
        return Unreachable(f"cannot be reached ({str(error) or type(error).__name__})")
    if isinstance(error, httpx.TimeoutException):
        return Trouble("nothing came for too long (time-out)")
    if isinstance(error, httpx.TooManyRedirects):
        return Trouble("the redirects go round in circles")
    return Trouble(f"the connection broke off ({str(error) or type(error).__name__})")


def check_passing(answer: httpx.Response, said: str = "") -> None:
    """Raise `Trouble` for a status that may pass, with the pause that the service asks for.

    `said`: the service's own words.
    """
    if answer.status_code in _PASSING:
        status = f"answered {answer.status_code} {said or answer.reason_phrase}".strip()
        raise Trouble(status, retry_after(answer.headers))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for, None without one.

    A date is taken against the answer's own Date, so that a wrong clock here does not matter.
    """
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked)
    until, now = _date(asked), _date(headers.get("Date", ""))
    if until is None:
        return None
    now = now or datetime.now(UTC)
    return max((until - now).total_seconds(), 0.0)


def _date(text: str) -> datetime | None:
    with contextlib.suppress(ValueError, TypeError):
        date = parsedate_to_datetime(text)
        return date if date.tzinfo else date.replace(tzinfo=UTC)
    return None


SLOWEST = 1000.0
"""Bytes a second below which an answer is broken off: a time-out does not see a trickle."""


def unless_slow(chunks: Iterator[bytes], timeout: float) -> Iterator[bytes]:
    """`chunks` as they come; `Trouble` where fewer than `SLOWEST` bytes a second do, for long."""
    mark, received = time.monotonic(), 0
    for chunk in chunks:
        yield chunk
        received += len(chunk)
        elapsed = time.monotonic() - mark
        if elapsed > timeout:
            if received < SLOWEST * elapsed:
                raise Trouble(f"came at {received / elapsed:.0f} bytes a second")
            mark, received = time.monotonic(), 0


_HTML = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(!doctype html|html|head|body|h1)\b",
    re.IGNORECASE | re.DOTALL,
)


def web_page(body: bytes, content_type: str = "") -> str | None:
    """`a web page ("title")` if that is what `body` is, else None."""
    if not (_HTML.match(body[:2000]) or "text/html" in content_type):
        return None
    title = re.search(rb"<(title|h1)[^>]*>(.*?)</\1>", body[:20000], re.IGNORECASE | re.DOTALL)
    words = " ".join(unescape(title[2].decode(errors="replace")).split()) if title else ""
    return f'a web page ("{words[:80]}")' if words else "a web page"


class Pace:
    """At most so many units a second, of all processes that share a file.

    The file holds the time at which the next unit may go. `rest` keeps everyone away for a while,
    as a service that says Retry-After wants it.
    """

    def __init__(self, file: Path, per_second: float | None, longest: float = 600.0):
        self.file, self.per_second, self.longest = Path(file), per_second, longest
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def take(self, stop: threading.Event, amount: float = 1.0) -> None:
        """Wait until `amount` units may go, or `stop` is set."""
        with self._next() as (now, start, put):
            start = max(start, now)
            if self.per_second:
                put(start + amount / self.per_second)
        while start > now and not stop.wait(start - now):
            now = time.time()
            start = max(start, self._resting())  # another process may have been told to rest

    def rest(self, seconds: float) -> None:
        """Let nothing go for so many seconds, not even what has its turn already."""
        with self._next() as (now, start, put):
            put(max(start, now + seconds))
        until = self.file.with_name(f"{self.file.name}-rest")
        until.write_text(f"{time.time() + seconds:.3f}")

    def _resting(self) -> float:
        """Until when nothing may go, as `rest` was told last; 0 if never, or if it is nonsense."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            until = float(self.file.with_name(f"{self.file.name}-rest").read_text())
            return until if until < time.time() + self.longest + 60 else 0.0
        return 0.0

    @contextlib.contextmanager
    def _next(self) -> Iterator[tuple[float, float, Callable[[float], None]]]:
        with open(self.file, "a+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.seek(0)
            now = time.time()
            try:
                start = float(handle.read())
            except ValueError:
                start = now
            if start > now + self.longest + 60:  # the clock was set back
                start = now

            def put(value: float) -> None:
                handle.seek(0)
                handle.truncate()
                handle.write(f"{value:.6f}")
                handle.flush()

            yield now, start, put


class Streams:
    """So many places for requests under way, shared by all processes that share a folder."""

    def __init__(self, folder: Path, count: int):
        self.files = [Path(folder) / f".stream-{number}" for number in range(count)]
        self.here = threading.Semaphore(count)  # threads queue here, and do not poll the files
        Path(folder).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def one(self, stop: threading.Event) -> Iterator[None]:
        """Hold one of the places; or none, once `stop` is set."""
        with self.here, contextlib.ExitStack() as stack:
            while not any(self._hold(file, stack) for file in self.files):
                if stop.wait(random.uniform(0.02, 0.1)):
                    break
            yield

    @staticmethod
    def _hold(file: Path, stack: contextlib.ExitStack) -> bool:
        handle = open(file, "a")  # noqa: SIM115 (closed by the stack, which frees the lock)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            return False
        stack.enter_context(handle)
        return True


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `Manners`, as all stages that ask services have them."""
    add, default = parser.add_argument, Manners()
    add("--timeout", type=float, default=default.timeout, metavar="SECONDS",
        help="without a byte, after which a request is given up (default %(default)g)")  # fmt: skip
    add("--query-seconds", type=float, default=default.query_seconds, metavar="SECONDS",
        help="that a query may take before its answer begins (default %(default)g)")  # fmt: skip
    add("--tries", type=int, default=default.tries, help="of one request (default %(default)s)")
    add("--longest-wait", type=float, default=default.longest_wait, metavar="SECONDS",
        help="between two tries (default %(default)g)")  # fmt: skip
    add("--requests-per-minute", type=float, default=default.requests_per_minute,
        help="of all jobs that share a cache (default %(default)g)")  # fmt: skip
    add("--mb-per-second", type=float, help="of all jobs that share a cache (default: no bound)")


def manners(args: argparse.Namespace) -> Manners:
    """The `Manners` that the flags of `add_flags` say."""
    return Manners(**{each.name: getattr(args, each.name) for each in fields(Manners)})
