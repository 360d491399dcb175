"""What has come of a file of which only parts are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

SUFFIX = ".excerpt"
"""After a file's name: that of the file which holds its excerpt."""
_MAGIC = b"ugriz excerpt 1\n"

Ranges = list[tuple[int, int | None]]
"""Bytes of a file, half open: (start, stop), None: to the end; (-n, None): the last n."""


@dataclass(frozen=True)
class Excerpt:
    """Pieces of a file: (first byte, bytes) in their order, none touching the next.

    `length`: bytes of the whole file, None if not known; `tag`: by which the server tells that it
    is still the same file.
    """

    length: int | None = None
    tag: str = ""
    pieces: tuple[tuple[int, bytes], ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether all bytes of the file are here."""
        return self.length is not None and not self.lacks([(0, self.length)])

    def with_piece(self, start: int, data: bytes) -> Excerpt:
        """The same with some bytes more; where some of them are here already, `data` counts.

        Raises:
            ValueError: they are not in the file.
        """
        stop = start + len(data)
        if start < 0 or (self.length is not None and stop > self.length):
            raise ValueError(f"bytes {start} to {stop} of a file of {self.length}")
        if not data:
            return self
        before = [piece for piece in self.pieces if _stop(piece) < start]
        after = [piece for piece in self.pieces if piece[0] > stop]
        touched = self.pieces[len(before) : len(self.pieces) - len(after)]
        if touched:
            (first, head), (last, tail) = touched[0], touched[-1]
            data = head[: max(start - first, 0)] + data + tail[max(stop - last, 0) :]
            start = min(first, start)
        return replace(self, pieces=(*before, (start, data), *after))

    def piece_at(self, start: int, stop: int) -> bytes | None:
        """The bytes `start` up to `stop`; None where not all of them are here."""
        for first, data in self.pieces:
            if first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        return b"" if start == stop else None

    def lacks(self, ranges: Iterable[tuple[int, int | None]]) -> Ranges:
        """What of `ranges` is not here, in order, disjoint; within the file if its length is known.

        As long as it is not, ranges that count from the end come last, as they are.
        """
        asked, from_end = [], []
        for start, stop in ranges:
            if self.length is None and (start < 0 or stop is None):
                from_end.append((start, None))
                continue
            if start < 0:
                start, stop = max(self.length + start, 0), None
            if self.length is not None:
                stop = self.length if stop is None else min(stop, self.length)
            asked.append((start, stop))
        return [*self._gaps(sorted(asked)), *dict.fromkeys(from_end)]

    def _gaps(self, asked: list[tuple[int, int]]) -> Ranges:
        """What of sorted ranges is not here."""
        lacks: Ranges = []
        for start, stop in asked:
            for first, data in self.pieces:
                if first > start:
                    _append(lacks, start, min(first, stop))
                start = max(start, first + len(data)) if first <= start else first + len(data)
                if start >= stop:
                    break
            _append(lacks, start, stop)
        return lacks

    def to_bytes(self) -> bytes:
        """A file that holds it; `from_bytes` gives it back."""
        spans = [[start, len(data)] for start, data in self.pieces]
        about = {"length": self.length, "tag": self.tag, "spans": spans}
        digest = hashlib.sha256(json.dumps(about).encode())
        for _, data in self.pieces:
            digest.update(data)
        line = json.dumps(about | {"sha256": digest.hexdigest()}).encode()
        return b"".join([_MAGIC, line, b"\n", *(data for _, data in self.pieces)])

    @staticmethod
    def from_bytes(data: bytes) -> Excerpt:
        """What `to_bytes` made a file of.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            line, _, rest = data.removeprefix(_MAGIC).partition(b"\n")
            about = json.loads(line)
            excerpt, at = Excerpt(about["length"], about["tag"]), 0
            for start, size in about["spans"]:
                excerpt = excerpt.with_piece(start, rest[at : at + size])
                at += size
            good = excerpt.to_bytes() == data
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            good = False
        if not good:
            raise ValueError("damaged excerpt of a file")
        return excerpt


def _stop(piece: tuple[int, bytes]) -> int:
    return piece[0] + len(piece[1])


def _append(ranges: Ranges, start: int, stop: int) -> None:
    """Add to sorted ranges one that begins no earlier than the last."""
    if ranges and start <= ranges[-1][1]:
        ranges[-1] = (ranges[-1][0], max(ranges[-1][1], stop))
    elif start < stop:
        ranges.append((start, stop))
