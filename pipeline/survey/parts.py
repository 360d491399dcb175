"""Files of an HTTP archive of which only parts are needed: a few requests for some of the bytes.

Who needs them says which, given what has come so far, until nothing is lacking. All parts that are
lacking are asked for in one request, and go into an excerpt of the file. It is kept between two
requests, and is added to when another needs other parts. Where a server cannot give parts, or gives
them in a way that is not understood, the file comes whole.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from itertools import starmap
from pathlib import Path

import httpx

from pipeline.survey.excerpt import SUFFIX, Excerpt, Ranges
from pipeline.survey.network import Trouble
from pipeline.survey.transfer import Damaged, Fetch, Loss, More, Whole, told, write_note

MOST = 100
"""Ranges of one request; servers have bounds of their own (Apache: 200)."""
ODD = 3
"""So many answers that are not what was asked for, and the file is to come whole."""
_LARGEST = 1 << 28
"""Bytes of an answer where it is not known how many were asked for."""
_SEVERAL = ("multipart/byteranges", "multipart/x-byteranges")
_HEAD = 8000
"""Bytes of what comes before a part of an answer."""

Wants = Callable[[str, Excerpt], Ranges | None]
"""Called with a file's path below the root and what has come of it, at first an empty excerpt.

Gives what is still to be asked for, [] if all that is needed is here and right, None if the file
is to come whole; raises `Damaged` where what is here is not right.
"""


class FetchParts(Fetch):
    """Brings files, or what is wanted of them; callable from many threads."""

    def __init__(self, wants: Wants, *others, **named):
        super().__init__(*others, **named)
        self.wants = wants

    def file(self, path: str, part: Path) -> Whole:
        """The way in which a file is to come; `part`: where to write it if it is to come whole."""
        return Parts(self, path, part)


class Parts(Whole):
    """A file on its way of which only parts are to come."""

    fetch: FetchParts

    def __init__(self, fetch: FetchParts, path: str, part: Path):
        super().__init__(fetch, path, part)
        self.begun = fetch.store.folder / f"{path}{SUFFIX}.part"
        self.excerpt = Excerpt()
        self.ranges: Ranges | None = []
        """What is to be asked for; None: the whole file."""
        self.as_whole = False
        """Whether what was asked for last is the whole file."""
        self.odd = 0

    def linked(self) -> bool:
        """Link the file or an excerpt that will do from the store; False if neither is there."""
        if super().linked():
            return True
        begun = _read(self.begun)
        stored = _read(self.fetch.store.folder / f"{self.path}{SUFFIX}")
        self.excerpt = begun or stored or Excerpt()
        try:
            self._plan()
        except Damaged:
            self._restart()
        return self.excerpt is stored and self.ranges == [] and self._link()

    def ask(self, root: str) -> None:
        """Bring what is lacking, as far as it is known."""
        self.as_whole = self.ranges is None or self.part.stat().st_size > 0
        if self.as_whole:
            return super().ask(root)
        lacks = self.excerpt.lacks(self.ranges)[:MOST]
        if not lacks:
            return None
        headers = {"Range": f"bytes={','.join(starmap(_in_words, lacks))}"}
        if self.excerpt.pieces:
            headers["If-Range"] = self.excerpt.tag
        with self.fetch.asking(root, self.path, headers) as answer:
            if answer.status_code == 206:
                return self._receive_parts(answer, sum(starmap(_count, lacks)))
            if answer.status_code == 416:
                self._restart()
                raise self._oddly("has none of the bytes that were asked for")
            self.as_whole = True
            return self.receive(answer)

    def verify(self) -> Loss | None:
        """See whether what came is right; what is not is dropped.

        Raises:
            Trouble: it is not; More: it is, and is not all.
        """
        if self.as_whole:
            return super().verify()
        try:
            if self.ranges is not None:
                self._plan()
        except Damaged as damaged:
            data = b"".join(data for _, data in self.excerpt.pieces)
            self._restart()
            return self.spoilt(data, str(damaged))
        if self.ranges == []:
            return None
        raise More

    def keep(self) -> None:
        """Give what came its name in the store, and link it from there."""
        if self.as_whole:
            return super().keep()
        self._save()
        self.fetch.store.keep(f"{self.path}{SUFFIX}", self.begun)
        self._link()
        return self.fetch.tally.add(files=1, partial=1)

    def _plan(self) -> None:
        """See what is to be asked for."""
        ranges = self.fetch.wants(self.path, self.excerpt)
        if ranges is None or (ranges and not self.excerpt.lacks(ranges)):
            self._go_whole()
        else:
            self.ranges = ranges

    def _restart(self) -> None:
        """Drop what is here."""
        self.excerpt = Excerpt()
        self.begun.unlink(missing_ok=True)
        self._plan()

    def _go_whole(self) -> None:
        """Let the file come whole, from where its first piece ends."""
        self.ranges = None
        if self.excerpt.piece_at(0, 1) and not self.part.stat().st_size:
            write_note(self.part, self.excerpt.tag, self.excerpt.length)
            self.part.write_bytes(self.excerpt.pieces[0][1])
        self.excerpt = Excerpt()
        self.begun.unlink(missing_ok=True)

    def _oddly(self, reason: str) -> Trouble:
        """The trouble of an answer that is not what was asked for."""
        self.odd += 1
        if self.odd == ODD:
            self._go_whole()
        return Trouble(reason)

    def _receive_parts(self, answer: httpx.Response, asked: int) -> None:
        """Add what comes to what is here, also where it breaks off."""
        before, body = self.excerpt, bytearray()
        try:
            for chunk in self.fetch.chunks(answer):
                body += chunk
                if len(body) > 2 * asked + MOST * _HEAD:
                    raise self._oddly("sent more than was asked for")
        finally:
            self._add(answer, bytes(body))
        new = not _alike(before, self.excerpt) or _size(self.excerpt) > _size(before)
        if self.ranges is not None and not new:
            raise self._oddly("sent none of the bytes that were asked for")

    def _add(self, answer: httpx.Response, body: bytes) -> None:
        tag, excerpt = told(answer)[0], self.excerpt
        try:
            for start, length, data in _came(answer.headers, body):
                if not _alike(excerpt, Excerpt(length, tag)):
                    excerpt = Excerpt(length, tag)
                excerpt = excerpt.with_piece(start, data)
        except ValueError:
            raise self._oddly("sent parts that are not understood") from None
        changed = bool(self.excerpt.pieces) and not _alike(self.excerpt, excerpt)
        self.excerpt = excerpt
        self.odd += changed
        if not tag or (changed and self.odd >= ODD):  # what has no tag may change unseen
            self._go_whole()
        else:
            self._save()

    def _save(self) -> None:
        fresh = self.begun.with_name(f".{self.begun.name}")
        fresh.write_bytes(self.excerpt.to_bytes())
        os.replace(fresh, self.begun)

    def _link(self) -> bool:
        """Link the stored excerpt in place of a former one; False if it is not there."""
        target = self.fetch.folder / f"{self.path}{SUFFIX}"
        fresh = target.with_name(f".{target.name}")
        fresh.unlink(missing_ok=True)
        if not self.fetch.store.link(f"{self.path}{SUFFIX}", fresh):
            return False
        os.replace(fresh, target)
        fresh.unlink(missing_ok=True)  # still there where both are the same file
        return True


def _read(file: Path) -> Excerpt | None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return Excerpt.from_bytes(file.read_bytes())
    return None


def _alike(one: Excerpt, other: Excerpt) -> bool:
    """Whether they are of the same file, as far as the server tells."""
    return (one.length, one.tag) == (other.length, other.tag)


def _size(excerpt: Excerpt) -> int:
    return sum(len(data) for _, data in excerpt.pieces)


def _in_words(start: int, stop: int | None) -> str:
    """A range as HTTP has it."""
    if start < 0:
        return str(start)
    return f"{start}-" if stop is None else f"{start}-{stop - 1}"


def _count(start: int, stop: int | None) -> int:
    """Bytes of a range, at most."""
    if start < 0:
        return -start
    return _LARGEST if stop is None else stop - start


def _came(headers: Mapping[str, str], body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(first byte, the file's length, bytes) of each part of an answer, the last maybe broken off.

    Raises:
        ValueError: it is no such answer.
    """
    kind = Message()
    kind["Content-Type"] = headers.get("Content-Type", "")
    if kind.get_content_type() not in _SEVERAL:
        start, stop, length = _span(headers.get("Content-Range", ""))
        if len(body) > stop - start:
            raise ValueError("more than announced")
        yield start, length, body
        return
    mark = f"--{kind.get_boundary('')}".encode()
    if len(mark) < 3:
        raise ValueError("no mark between the parts")
    at = body.find(mark)
    while at >= 0 and not body.startswith(b"--", at + len(mark)):
        end = body.find(b"\r\n\r\n", at, at + _HEAD)
        if end < 0:
            return
        said = re.search(rb"(?im)^content-range:([^\r\n]*)", body[at:end])
        start, stop, length = _span(said[1].decode("latin-1") if said else "")
        at = end + 4 + stop - start
        yield start, length, body[end + 4 : at]
        if not (b"\r\n" + mark).startswith(body[at : at + 2 + len(mark)]):
            raise ValueError("a part does not end where it should")
        at = body.find(mark, at)


def _span(text: str) -> tuple[int, int, int]:
    """(start, stop, length of the file) of a Content-Range.

    Raises:
        ValueError: it is none, or does not tell.
    """
    found = re.fullmatch(r"\s*bytes\s+(\d{1,15})-(\d{1,15})/(\d{1,15})\s*", text)
    start, last, length = map(int, found.groups()) if found else (0, 0, 0)
    if not start <= last < length:
        raise ValueError("no Content-Range")
    return start, last + 1, length
