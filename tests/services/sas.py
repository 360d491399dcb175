"""SAS: a folder in the archive's layout, served as nginx does."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

from .exchange import Answer, Ask, text
from .faults import Fault, share

_MISSING = text("<h1>404 Not Found</h1>", "text/html", 404)
FRAME = re.compile(r"boss/photoObj/frames/.+/frame-[ugriz]-[\d-]+\.fits\.bz2")


class Sas:
    """Files below `archive`, the folder that has boss/ in it; `gone`: the share of lost frames."""

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
        return _part(ask, raw, headers)

    @staticmethod
    def _other(file: Path, fault: Fault) -> Path:
        others = [other for other in sorted(file.parent.glob("frame-*")) if other != file]
        return fault.draw.choice(others) if others else file


def is_frame(path: str) -> bool:
    """Whether a path below the archive is that of a corrected frame."""
    return FRAME.fullmatch(path) is not None


def _part(ask: Ask, raw: bytes, headers: dict[str, str]) -> Answer:
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", ask.headers.get("Range", "").strip())
    same = ask.headers.get("If-Range") in (None, headers["ETag"], headers["Last-Modified"])
    if not asked or asked.group() == "bytes=-" or not same:
        return Answer(raw, 200, headers)
    first, last = asked.groups()
    if not first:
        start, stop = max(len(raw) - int(last), 0), len(raw)
    else:
        start, stop = int(first), min(int(last or len(raw)) + 1, len(raw))
    if start >= stop:
        return Answer(b"", 416, headers | {"Content-Range": f"bytes */{len(raw)}"})
    span = f"bytes {start}-{stop - 1}/{len(raw)}"
    return Answer(raw[start:stop], 206, headers | {"Content-Range": span})
