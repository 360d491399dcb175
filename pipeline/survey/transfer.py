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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx

from pipeline.run import UserError
from pipeline.survey import network
from pipeline.survey.cache import Store
from pipeline.survey.network import GaveUp, Manners, Pace, Streams, Trouble, Unreachable

ABSENT = "not in the archive"
SAME_DAMAGE = 4
"""So often the same damaged bytes must come before they count as the archive's own."""
SURE_ABSENT = 2
"""So often a root must say that it has no such file: a server in trouble may say so once."""
AWAY = 60.0
"""Seconds for which a root that cannot be reached is passed over, where there are others."""


class Loss(NamedTuple):
    """Why a file did not come. `absent`: the archive does not have it (as beyond a run's end)."""

    absent: bool
    reason: str


class Damaged(Exception):
    """A file that came but must not be used; the text is the reason."""


class Absent(Exception):
    """The root that was asked does not have the file."""


Check = Callable[[str, bytes], None]
"""Called with a file's path below the root and its bytes; raises `Damaged`."""


@dataclass
class Tally:
    """What the fetching took: files and bytes that came, requests, and troubles by their reason."""

    files: int = 0
    bytes: int = 0
    requests: int = 0
    troubles: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, files: int = 0, bytes: int = 0, requests: int = 0, trouble: str = "") -> None:
        """Count; from any thread."""
        with self.lock:
            self.files += files
            self.bytes += bytes
            self.requests += requests
            if trouble:
                self.troubles[trouble] += 1

    def facts(self) -> dict:
        """The counts, for a provenance record."""
        troubles = dict(sorted(self.troubles.items()))
        return {"files": self.files, "bytes": self.bytes, "requests": self.requests,
                "attempts": self.files + sum(troubles.values()), "troubles": troubles}  # fmt: skip


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

    def __call__(self, path: str) -> Loss | None:
        """Bring `path` into the folder, from the store or from the archive.

        Raises:
            GaveUp: it did not come for reasons that may pass.
            UserError: the archive forbids it, or its address is none.
        """
        target = self.folder / path
        if self.store.link(path, target):
            return None
        with self.store.claim(path) as part:
            if self.store.link(path, target):  # another process made it meanwhile
                part.unlink(missing_ok=True)
                return None
            if self.store.known_absent(path, self.roots):
                return Loss(True, ABSENT)
            loss = self._bring(path, part)
            if loss is None:
                self.store.keep(path, part)
                self.store.link(path, target)
                self.tally.add(files=1)
            return loss

    def _bring(self, path: str, part: Path) -> Loss | None:
        """Make `part` whole and verified, or say why it cannot be."""
        said_absent: Counter = Counter()
        same: Counter = Counter()
        attempt = 0
        while True:
            root = self._root(attempt, said_absent)
            try:
                self._download(root, path, part)
                return self._verify(path, part, same)
            except Absent:
                said_absent[root] += 1
                if all(said_absent[each] >= SURE_ABSENT for each in self.roots):
                    self.store.note_absent(path, self.roots)
                    return Loss(True, ABSENT)
                continue
            except Trouble as trouble:
                reason, wait = self._learn(trouble, root, attempt)
                where = root if isinstance(trouble, Unreachable) else f"{root}/{path}"
                tries = network.tries_for(trouble, root, self.manners)
            self.tally.add(trouble=_kind(reason))
            attempt += 1
            if attempt >= tries * len(self.roots) or self.stop.is_set():
                break
            network.tell(Path(path).name, reason, attempt + 1, wait, tries)
            self.stop.wait(wait)
        again = network.advice(reason)
        raise GaveUp(f"{where}: {reason}; tried {attempt} times; {again}")

    def _root(self, attempt: int, said_absent: Counter) -> str:
        """The mirror to ask: in order, without those that do not have it or are away."""
        left = [each for each in self.roots if said_absent[each] < SURE_ABSENT]
        now = time.monotonic()
        here = [each for each in left if self.away.get(each, 0.0) <= now] or left
        return here[attempt % len(here)]

    def _learn(self, trouble: Trouble, root: str, attempt: int) -> tuple[str, float]:
        """The reason in words, and the seconds to wait; what others should know is noted."""
        if trouble.wait:
            self.pace.rest(min(trouble.wait, self.manners.longest_wait))
        wait = network.pause(attempt // len(self.roots), trouble.wait, self.manners)
        if isinstance(trouble, Unreachable):
            self.away[root] = time.monotonic() + AWAY
        others = [each for each in self.roots if self.away.get(each, 0.0) <= time.monotonic()]
        if len(self.roots) > 1 and set(others) - {root}:
            wait = 0.0  # another mirror can be asked at once
        return str(trouble), wait

    def _verify(self, path: str, part: Path, same: Counter) -> Loss | None:
        data = part.read_bytes()
        try:
            self.check(path, data)
            return None
        except Damaged as damaged:
            reason = str(damaged)
        _discard(part)
        page = network.web_page(data)
        if page:
            raise Trouble(f"sent {page} in place of a file")
        digest = hashlib.sha256(data).digest()
        same[digest] += 1
        if same[digest] == SAME_DAMAGE:
            return Loss(False, reason)
        raise Trouble(reason)

    def _download(self, root: str, path: str, part: Path) -> None:
        """Bring what `part` still lacks."""
        known = _read_note(part)
        have = part.stat().st_size if part.exists() else 0
        if have and have == known.get("length"):
            return  # whole, but not yet verified when it was left
        if have and not known.get("tag"):
            have = 0
        headers = {"Range": f"bytes={have}-", "If-Range": known["tag"]} if have else {}
        with self.streams.one():
            self.pace.take(self.stop)
            if self.stop.is_set():
                raise Trouble("stopped")
            self.tally.add(requests=1)
            try:
                with self.client.stream("GET", f"{root}/{path}", headers=headers) as answer:
                    network.note_answer(answer.url)
                    have = _begin(answer, root, part, have)
                    self._receive(answer, part, have)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise network.in_words(error, root) from None

    def _receive(self, answer: httpx.Response, part: Path, have: int) -> None:
        length = _write_note(part, answer)
        with open(part, "r+b" if have else "wb") as file:
            file.truncate(have)
            file.seek(have)
            for chunk in network.unless_slow(answer.iter_raw(), self.manners.timeout):
                file.write(chunk)
                self.tally.add(bytes=len(chunk))
                if self.manners.mb_per_second:
                    self.bandwidth.take(self.stop, len(chunk) / 1e6)
                if self.stop.is_set():
                    raise Trouble("stopped")
            came = file.tell()
        if length is not None and came < length:
            raise Trouble(f"{came} bytes came where {length} were announced")


def _begin(answer: httpx.Response, root: str, part: Path, have: int) -> int:
    """Bytes of `part` that the answer goes on from; raises for an answer that is no file."""
    _check_status(answer, root)
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
        raise UserError(
            f"{root}: answered {status} {answer.reason_phrase}; the archive (or a proxy) refuses "
            f"this machine: stop, see whether {answer.url} opens in a browser, lower frames: "
            "streams, and write to the archive's helpdesk"
        )
    if status not in (200, 206, 416):
        raise Trouble(f"answered {status} {answer.reason_phrase}".strip())


def _write_note(part: Path, answer: httpx.Response) -> int | None:
    """Note what the server said of a file, so that its rest can be asked for; its whole length."""
    tag = answer.headers.get("ETag", "")
    if not tag or tag.startswith("W/"):
        tag = answer.headers.get("Last-Modified", "")
    text = answer.headers.get("Content-Length", "")
    if answer.status_code == 206:
        text = answer.headers["Content-Range"].rpartition("/")[2]
    length = int(text) if text.isdigit() else None
    Path(f"{part}.json").write_text(json.dumps({"tag": tag, "length": length}))
    return length


def _read_note(part: Path) -> dict:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads(Path(f"{part}.json").read_text())
    return {}


def _discard(part: Path) -> None:
    Path(f"{part}.json").unlink(missing_ok=True)
    with open(part, "r+b") as file:  # the file itself stays: it carries the claim's lock
        file.truncate(0)


def _kind(reason: str) -> str:
    """A reason without its numbers, to count by."""
    return re.sub(r"\d+", "N", reason) if not reason.startswith("answered") else reason
