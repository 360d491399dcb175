"""SAS: a folder in the archive's layout, served as nginx does."""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

from .exchange import Answer, Ask, text
from .faults import Fault, share

_MISSING = text("<h1>404 Not Found</h1>", "text/html", 404)
FRAME = re.compile(r"boss/photoObj/frames/.+/frame-[ugriz]-[\d-]+\.fits\.bz2")


class Sas:
    """Files below `archive`, the folder that has boss/ in it; `gone`: the share of lost frames.

    `ranges`: how many of the ranges of one request are answered; 0: the whole file is sent.
    """

    ranges: int | None = None

    def __init__(self, archive: Path, gone: float, seed: int):
        self._archive, self._gone, self._seed = Path(archive).resolve(), gone, seed

    def get(self, ask: Ask, path: str, fault: Fault | None = None) -> Answer:
        """A file or a part of it; or another frame in its place."""
        if is_frame(path) and share(self._seed, path) < self._gone:
            return replace(_MISSING, fault="gone")
        file = (self._archive / path).resolve()
        if not file.is_relative_to(self._archive) or not file.is_file():
            return _MISSING
        if fault and fault.kind == "wrong-file":
            file = self._other(file, fault)
        with open(file, "rb") as handle:
            status = os.fstat(handle.fileno())
            raw = handle.read()
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{int(status.st_mtime):x}-{status.st_size:x}"',
            "Last-Modified": formatdate(status.st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        return _part(ask, raw, headers, self.ranges)

    @staticmethod
    def _other(file: Path, fault: Fault) -> Path:
        others = [other for other in sorted(file.parent.glob("frame-*")) if other != file]
        return fault.draw.choice(others) if others else file


def is_frame(path: str) -> bool:
    """Whether a path below the archive is that of a corrected frame."""
    return FRAME.fullmatch(path) is not None


def _part(ask: Ask, raw: bytes, headers: dict[str, str], most: int | None) -> Answer:
    same = ask.headers.get("If-Range") in (None, headers["ETag"], headers["Last-Modified"])
    asked = _ranges(ask.headers.get("Range", ""), len(raw)) if same and most != 0 else None
    if asked is None:
        return Answer(raw, 200, headers)
    spans = [(start, stop) for start, stop in asked if start < stop][:most]
    if not spans:
        return Answer(b"", 416, headers | {"Content-Range": f"bytes */{len(raw)}"})
    if len(spans) == 1:
        return Answer(raw[slice(*spans[0])], 206, headers | _span(*spans[0], len(raw)))
    if sum(stop - start for start, stop in spans) > len(raw):
        return Answer(raw, 200, headers)
    return _parts(raw, spans, headers)


def _ranges(text: str, size: int) -> list[tuple[int, int]] | None:
    """The ranges asked for, half open, empty ones too; None: the whole file is."""
    unit, _, rest = text.partition("=")
    asked = [re.fullmatch(r"\s*(\d*)\s*-\s*(\d*)\s*", each) for each in rest.split(",")]
    if unit.strip() != "bytes" or not all(each and any(each.groups()) for each in asked):
        return None
    spans = []
    for first, last in (each.groups() for each in asked):
        if not first:
            spans.append((max(size - int(last), 0), size))
        else:
            spans.append((int(first), min(int(last or size) + 1, size)))
    return spans


def _parts(raw: bytes, spans: list[tuple[int, int]], headers: dict[str, str]) -> Answer:
    """Several ranges in one answer, in the order in which they were asked for."""
    boundary = f"{zlib.crc32(str(spans).encode()):020d}"
    kind, body = headers["Content-Type"], b""
    for start, stop in spans:
        named = {"Content-Type": kind} | _span(start, stop, len(raw))
        head = "".join(f"\r\n{name}: {value}" for name, value in named.items())
        body += f"\r\n--{boundary}{head}\r\n\r\n".encode() + raw[start:stop]
    several = {"Content-Type": f"multipart/byteranges; boundary={boundary}"}
    return Answer(body + f"\r\n--{boundary}--\r\n".encode(), 206, headers | several)


def _span(start: int, stop: int, size: int) -> dict[str, str]:
    return {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
