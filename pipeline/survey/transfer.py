"""Files of an HTTP archive, fetched until they are whole: mirrors, resumed parts, many threads.

A file is verified before it gets its name. A part that broke off is kept with what the server said
of it (ETag, length), and only the rest is asked for. What is damaged as it comes is fetched anew;
what comes damaged in the same way again and again is the archive's own damage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx

from pipeline.run import UserError
from pipeline.survey import network
from pipeline.survey.cache import Store
from pipeline.survey.network import GaveUp, Manners, NoWay, Pace, Streams, Trouble, Unreachable

ABSENT = "not in the archive"
SAME_DAMAGE = 4
"""So often the same damaged bytes must come before they count as the archive's own."""
SURE_ABSENT = 2
"""So often a root must say that it has no such file: a server in trouble may say so once."""
AWAY = 60.0
"""Seconds for which a root in trouble is passed over, where there are others."""


class Loss(NamedTuple):
    """Why a file did not come. `absent`: the archive does not have it (as beyond a run's end)."""

    absent: bool
    reason: str


class Damaged(Exception):
    """A file that came but must not be used; the text is the reason."""


class Absent(Exception):
    """The root that was asked does not have the file."""


class Forbidden(UserError):
    """The archive refuses this machine."""


class Spoilt(Trouble):
    """What came is not the file."""


class More(Exception):
    """What came is right, and more of the file is to be asked for."""


Check = Callable[[str, bytes], None]
"""Called with a file's path below the root and its bytes; raises `Damaged`."""


@dataclass
class Tally:
    """What the fetching took: files and bytes that came, requests, and troubles by their reason.

    `partial`: those of the files of which only parts were needed.
    """

    files: int = 0
    partial: int = 0
    bytes: int = 0
    requests: int = 0
    troubles: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, files: int = 0, bytes: int = 0, requests: int = 0, trouble: str = "", partial: int = 0
    ) -> None:
        """Count; from any thread."""
        with self.lock:
            self.files += files
            self.partial += partial
            self.bytes += bytes
            self.requests += requests
            if trouble:
                self.troubles[trouble] += 1

    def facts(self) -> dict:
        """The counts, for a provenance record."""
        troubles = dict(sorted(self.troubles.items()))
        return {"files": self.files, "partial": self.partial, "bytes": self.bytes,
                "requests": self.requests, "attempts": self.files + sum(troubles.values()),
                "troubles": troubles}  # fmt: skip


class Fetch:
    """Brings one file after another from mirrors into a store; callable from many threads."""

    def __init__(
        self, client: httpx.Client, roots: tuple[str, ...], store: Store, folder: Path,
        check: Check, manners: Manners, streams: int, tally: Tally,
    ):  # fmt: skip
        self.client, self.roots, self.store, self.folder = client, roots, store, folder
        self.check, self.manners, self.tally = check, manners, tally
        self.stop = threading.Event()
        self.streams = Streams(store.folder, streams)
        per_second = manners.requests_per_minute and manners.requests_per_minute / 60
        self.pace = Pace(store.folder / ".pace", per_second, manners.longest_wait)
        self.bandwidth = Pace(store.folder / ".bandwidth", manners.mb_per_second)
        self.away: dict[str, float] = {}
        """Until when a root is passed over, where there are others."""
        self.quiet: dict[bytes, float] = {}
        """Until when a host wants not to be asked at all."""
        client.event_hooks["request"] = [self._take_turn]  # called for redirects as well

    def __call__(self, path: str) -> Loss | None:
        """Bring `path` into the folder, from the store or from the archive.

        Raises:
            GaveUp: it did not come for reasons that may pass; `NoWay` if no root can be reached.
            UserError: the archive forbids it, or its address is none.
        """
        if self.store.link(path, self.folder / path):
            return None
        with self.store.claim(path) as part:
            file = self.file(path, part)
            if file.linked():  # another process made it meanwhile
                return None
            if self.store.known_absent(path, self.roots):
                return Loss(True, ABSENT)
            try:
                loss = self._bring(file)
            except OSError as error:  # a full disk does not say which
                error.filename = error.filename or str(part)
                raise
            if loss is None:
                file.keep()
            return loss

    def file(self, path: str, part: Path) -> Whole:
        """The way in which a file is to come; `part`: where to write it until it is whole."""
        return Whole(self, path, part)

    @contextlib.contextmanager
    def asking(self, root: str, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The answer to one request for a file, its body still to come.

        Raises:
            Absent: the root does not have it; `Trouble`, UserError: it does not come.
        """
        try:
            with self.client.stream("GET", f"{root}/{path}", headers=headers) as answer:
                network.note_answer(root)
                _check_status(answer, root)
                yield answer
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise network.in_words(error, root) from None

    def chunks(self, answer: httpx.Response) -> Iterator[bytes]:
        """The body of an answer as it comes, counted and no faster than it may.

        Raises:
            Trouble: it comes too slowly, or `stop` was set.
        """
        for chunk in network.unless_slow(answer.iter_raw(), self.manners.timeout):
            self.tally.add(bytes=len(chunk))
            yield chunk
            if self.manners.mb_per_second:
                self.bandwidth.take(self.stop, len(chunk) / 1e6)
            if self.stop.is_set():
                raise Trouble("stopped")

    def _take_turn(self, request: httpx.Request) -> None:
        """Wait until a request may go."""
        self.pace.take(self.stop)
        while (left := self.quiet.get(request.url.netloc, 0.0) - time.monotonic()) > 0:
            if self.stop.wait(left):
                break
        if self.stop.is_set():
            raise Trouble("stopped")
        self.tally.add(requests=1)

    def _bring(self, file: Whole) -> Loss | None:
        """Ask for a file until it is here and verified, or say why it cannot be."""
        path = file.path
        left = list(self.roots)
        absent: Counter = Counter()
        tried: Counter = Counter()
        troubles: dict[str, Trouble] = {}
        while left:
            try:
                with self.streams.one(self.stop):
                    root = self._choose(left, tried)
                    file.ask(root)
                self.away.pop(root, None)
                return file.verify()
            except More:
                continue
            except Absent:
                absent[root] += 1
                if absent[root] == SURE_ABSENT:
                    left.remove(root)
                    troubles.pop(root, None)
                continue
            except Trouble as trouble:
                if self.stop.is_set():
                    raise GaveUp("stopped") from None
                troubles[root] = last = trouble
            tried[root] += 1
            self.tally.add(trouble=_kind(str(last)))
            wait = self._after(last, root, left, tried)
            tries = network.tries_for(last, root, self.manners)
            if tried[root] >= tries:
                left.remove(root)
            if left:
                network.tell(Path(path).name, str(last), tried[root] + 1, wait, tries)
                self.stop.wait(wait)
        if troubles:
            raise _gave_up(path, troubles, tried.total())
        self.store.note_absent(path, self.roots)
        return Loss(True, ABSENT)

    def _choose(self, left: list[str], tried: Counter) -> str:
        """The mirror to ask: in their order, those in trouble last."""
        now = time.monotonic()
        root = min(left, key=lambda each: (self.away.get(each, 0.0) > now, tried[each]))
        if root in self.away:  # one file tries whether it is back; the others pass it over
            self.away[root] = now + AWAY
        return root

    def _after(self, trouble: Trouble, root: str, left: list[str], tried: Counter) -> float:
        """Seconds to wait after a trouble; what other threads should know is noted."""
        now, host = time.monotonic(), httpx.URL(root).netloc
        if not isinstance(trouble, Spoilt):
            self.away[root] = now + AWAY
        if trouble.wait:
            wait = min(trouble.wait, self.manners.longest_wait)
            self.quiet[host] = max(self.quiet.get(host, 0.0), now + wait)
            if len(self.roots) == 1:
                self.pace.rest(wait)  # other processes too
        if any(self.away.get(each, 0.0) <= now and tried[each] < tried[root] for each in left):
            return 0.0  # another mirror can be asked at once
        return network.pause(tried[root] - 1, trouble.wait or None, self.manners)


class Whole:
    """A file on its way, which is to come whole; for one thread, under the store's claim."""

    def __init__(self, fetch: Fetch, path: str, part: Path):
        self.fetch, self.path, self.part = fetch, path, part
        self.same: Counter = Counter()
        """How often the same damaged bytes came."""

    def linked(self) -> bool:
        """Link what is needed of it from the store into the folder; False if it is not there."""
        if not self.fetch.store.link(self.path, self.fetch.folder / self.path):
            return False
        self.part.unlink(missing_ok=True)
        return True

    def ask(self, root: str) -> None:
        """Bring what is still lacking."""
        known = _read_note(self.part)
        have = self.part.stat().st_size if self.part.exists() else 0
        if have and have == known.get("length"):
            return  # whole, but not yet verified when it was left
        if have and not known.get("tag"):
            have = 0
        headers = {"Range": f"bytes={have}-", "If-Range": known["tag"]} if have else {}
        with self.fetch.asking(root, self.path, headers) as answer:
            self.receive(answer, _begin(answer, self.part, have))

    def receive(self, answer: httpx.Response, have: int = 0) -> None:
        """Write the body of an answer after the `have` bytes that it goes on from."""
        tag, length = told(answer)
        write_note(self.part, tag, length)
        with open(self.part, "r+b" if have else "wb") as file:
            file.truncate(have)
            file.seek(have)
            for chunk in self.fetch.chunks(answer):
                file.write(chunk)
            came = file.tell()
        if length is not None and came < length:
            raise Trouble(f"{came} bytes came where {length} were announced")

    def verify(self) -> Loss | None:
        """See whether what came is right; what is not is dropped.

        Raises:
            Trouble: it is not; More: it is, and is not all.
        """
        data = self.part.read_bytes()
        try:
            self.fetch.check(self.path, data)
            return None
        except Damaged as damaged:
            reason = str(damaged)
        _discard(self.part)
        return self.spoilt(data, reason)

    def spoilt(self, data: bytes, reason: str) -> Loss:
        """What damaged `data` comes to, if they came so very often.

        Raises:
            Trouble: they did not.
        """
        page = network.web_page(data)
        if page:
            raise Trouble(f"sent {page} in place of a file")
        digest = hashlib.sha256(data).digest()
        self.same[digest] += 1
        if self.same[digest] == SAME_DAMAGE:
            return Loss(False, reason)
        raise Spoilt(reason)

    def keep(self) -> None:
        """Give what came its name in the store, and link it from there."""
        store = self.fetch.store
        store.keep(self.path, self.part)
        store.link(self.path, self.fetch.folder / self.path)
        self.fetch.tally.add(files=1)


def _begin(answer: httpx.Response, part: Path, have: int) -> int:
    """Bytes of `part` that the answer goes on from; raises for an answer that is no file."""
    if answer.status_code == 200:
        return 0
    span = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")[0]
    if answer.status_code != 206 or span.partition("-")[0] != str(have):
        _discard(part)
        raise Trouble("does not go on where the part that is here ends")
    return have


def _check_status(answer: httpx.Response, root: str) -> None:
    status = answer.status_code
    if status in (404, 410):
        raise Absent
    network.check_passing(answer)
    if status in (401, 403, 407, 451):
        raise Forbidden(
            f"{root}: answered {status} {answer.reason_phrase}; the archive (or a proxy) refuses "
            f"this machine: stop, see whether {answer.url} opens in a browser, lower frames: "
            "streams, and write to the archive's helpdesk"
        )
    if status not in (200, 206, 416):
        raise Trouble(f"answered {status} {answer.reason_phrase}".strip())


def told(answer: httpx.Response) -> tuple[str, int | None]:
    """What the server says of a file: by what to know it again, "" if by nothing; its length."""
    tag = answer.headers.get("ETag", "")
    if not tag or tag.startswith("W/"):
        tag = answer.headers.get("Last-Modified", "")
    text = answer.headers.get("Content-Length", "")
    if answer.status_code == 206:
        text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return tag, int(text) if text.isdigit() else None


def write_note(part: Path, tag: str, length: int | None) -> None:
    """Note what the server said of a file, so that its rest can be asked for."""
    Path(f"{part}.json").write_text(json.dumps({"tag": tag, "length": length}))


def _read_note(part: Path) -> dict:
    with contextlib.suppress(FileNotFoundError, ValueError):
        known = json.loads(Path(f"{part}.json").read_text())
        return known if isinstance(known, dict) else {}
    return {}


def _discard(part: Path) -> None:
    Path(f"{part}.json").unlink(missing_ok=True)
    with open(part, "r+b") as file:  # the file itself stays: it carries the claim's lock
        file.truncate(0)


def _gave_up(path: str, troubles: dict[str, Trouble], tries: int) -> GaveUp:
    """What to raise for a file that no root gave: each root's last trouble in one line."""
    none = all(isinstance(trouble, Unreachable) for trouble in troubles.values())
    words = "; ".join(
        f"{root if isinstance(trouble, Unreachable) else f'{root}/{path}'}: {trouble}"
        for root, trouble in troubles.items()
    )
    kind = NoWay if none else GaveUp
    return kind(f"{words}; tried {tries} times; {network.advice(words)}")


def _kind(reason: str) -> str:
    """A reason without its numbers, to count by."""
    return re.sub(r"\b\d+\b", "N", reason) if not reason.startswith("answered") else reason
