"""Pieces of a frame file: which of them to ask an archive for, and rows read from them.

A frame's header is in its first block, what tells its length in its last, and its blocks are of
nearly the same size: where those between lie is told from these two to some 10 kB (rms, on real
frames). What was asked for in vain is asked for again with a wider margin. Which blocks of the
stream came is concluded from where they were found; that it is so, `blocks` sees from the phase of
the pixels and from the counts, which a block that is taken for its neighbour does not fit. Each
block that is used is checked by its CRC; the stream's own cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby, pairwise

from astropy.io import fits

from pipeline.survey.blocks import Rows, Stream, Unclear, Where, read_rows
from pipeline.survey.bzip2 import BadBlock, Bits
from pipeline.survey.excerpt import Excerpt, Ranges
from pipeline.survey.frame import BadFrame, Frame
from pipeline.survey.names import Field

HEAD, TAIL = 270_000, 260_000
"""Bytes asked for first: most frames' first and last blocks are in them."""
MORE = 60_000
"""Bytes asked for next, where they are not."""
MARGINS = (20_000, 60_000, 180_000)
"""Bytes by which blocks may lie beside where they are expected; the next if they are not there."""
LITTLE = 0.8
"""Of a file, what is worth asking for in pieces."""
_UNTOLD = 1_000_000
"""Blocks of a stream, as long as it is not known how many there are."""

RowsOf = Callable[[fits.Header], Rows]


class _Lacks(Exception):
    """Some bytes are needed as well."""

    def __init__(self, ranges: Ranges):
        self.ranges = ranges


def lacking(excerpt: Excerpt, field: Field, band: str, rows: RowsOf) -> Ranges | None:
    """What is still to be asked for until `read` can give those rows; None: the whole file.

    Raises:
        BadFrame: what is here is damaged, or another frame.
    """
    if excerpt.length is None:
        return [(0, HEAD), (-TAIL, None)]
    try:
        _read(excerpt, field, band, rows, 1)
        return []
    except _Lacks as lacks:
        sizes = [stop - start for start, stop in lacks.ranges]
        here = sum(len(data) for _, data in excerpt.pieces)
        return lacks.ranges if here + sum(sizes) < LITTLE * excerpt.length else None
    except Unclear:
        return None


def read(excerpt: Excerpt, field: Field, band: str, rows: RowsOf, threads: int = 1) -> Frame:
    """As `blocks.read`, from pieces of the file.

    Raises:
        BadFrame: as there, or what is here does not do for those rows.
    """
    try:
        return _read(excerpt, field, band, rows, threads)
    except (_Lacks, Unclear):
        raise BadFrame("what was fetched of the frame does not hold the stamps' rows") from None


def _read(excerpt: Excerpt, field: Field, band: str, rows: RowsOf, threads: int) -> Frame:
    try:
        with _Pieces(excerpt, threads) as stream:
            return read_rows(stream, field, band, rows)
    except BadBlock as bad:
        raise BadFrame(str(bad)) from None


class _Pieces(Stream):
    """The stream of a file of which pieces are here."""

    def __init__(self, excerpt: Excerpt, threads: int):
        self.excerpt, self.inner = excerpt, list(excerpt.pieces)
        if not self.inner or self.inner[0][0] != 0:
            raise _Lacks(excerpt.lacks([(0, HEAD)]))
        start, data = self.inner[-1]
        if start + len(data) != excerpt.length:
            raise _Lacks(excerpt.lacks([(max(excerpt.length - TAIL, 0), excerpt.length)]))
        if start == 0:
            raise Unclear  # all of it: nothing is gained
        self.head, self.tail = self.inner.pop(0)[1], self.inner.pop()
        if self.head[:3] != b"BZh" or self.head[3:4] not in b"123456789":
            raise BadFrame("the file is not bzip2")
        first = _blocks(self.head)
        last = _blocks(self.tail[1], ends=True)
        found = dict(enumerate(first))
        found |= {_UNTOLD - len(last) + k: where for k, where in enumerate(last)}
        super().__init__(self.head[3] - ord("0"), found, threads)
        self.count = _UNTOLD
        self.wide = 0.0

    def settle(self, middle: int) -> None:
        """Number the blocks by where they lie, now that it is known how many there are."""
        behind = sum(number >= _UNTOLD // 2 for number in self.known)
        shift = 1 + middle + behind - _UNTOLD
        for blocks in (self.known, self.found):
            late = [number for number in blocks if number >= _UNTOLD // 2]
            blocks.update({number + shift: blocks.pop(number) for number in late})
        self.count = 1 + middle + behind
        self.first = self.found[0].end
        self.wide = (8 * self.tail[0] + self.found[1 + middle].at - self.first) / max(middle, 1)
        for start, data in self.inner:
            for k, where in enumerate(found := _blocks(data)):
                if k == 0:
                    number = 1 + round((8 * start + found[0].at - self.first) / self.wide)
                self.found.setdefault(number + k, where)

    def need(self, numbers: list[int]) -> None:
        """See whether blocks are here.

        Raises:
            _Lacks: what is to be asked for, where they are not.
        """
        lost = [number for number in numbers if number not in self.found]
        if not lost:
            return
        if 0 in lost:
            raise _Lacks([(len(self.head), len(self.head) + MORE)])
        if not self.wide:
            raise _Lacks([(self.tail[0] - MORE, self.tail[0])])
        for margin in MARGINS:
            ranges = [self._where(span, margin) for span in _spans(lost)]
            if lacks := self.excerpt.lacks(ranges):
                raise _Lacks(lacks)
        raise Unclear

    def _where(self, span: tuple[int, int], margin: int) -> tuple[int, int]:
        """The bytes that blocks, half open, are expected in."""
        first, last = (int(self.first + (number - 1) * self.wide) // 8 for number in span)
        return max(first - margin, 0), min(last + margin, self.excerpt.length)


def _blocks(data: bytes, ends: bool = False) -> list[Where]:
    """The blocks that are in a piece as a whole; `ends`: the stream's end is in it.

    Raises:
        Unclear: it should end, and does not, or not there.
    """
    bits = Bits(data)
    starts, stops = bits.find()
    if len(stops) != ends or (ends and (stops[0] + 80 + 7) // 8 != len(data)):
        raise Unclear
    return [Where(bits, at, end) for at, end in pairwise([*starts, *stops])]


def _spans(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers that follow each other, as half-open spans."""
    spans = []
    for _, group in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in group]
        spans.append((members[0], members[-1] + 1))
    return spans
