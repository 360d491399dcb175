"""Rows of a compressed frame, by decompressing only the blocks of bzip2 that hold them.

A frame is one stream of some 14 blocks; a stamp lies on two or three of them. The first is always
decompressed, for the header; so is the last, for what follows the image; and the blocks that hold
the rows.

**Where a block's bytes belong.** It is known only from what lies before it, and blocks between are
not looked into. Let the stream have level L, and P = 100,000 L - 19. Then

1. The reference encoder ends a block with P bytes or a few more, in its own counting, in which a
   run of 4 to 255 equal bytes is 5. A block between others so holds P + d raw bytes, where d is 0
   or more unless it has runs of exactly four equal bytes (each of which takes 1).
2. In a frame it has none: the pixels' mantissas end in 14 zero bits, so that every fourth byte is
   zero. Four equal bytes contain such a byte and are zeros; and they go on for a fifth, unless a
   pixel is less than 1e-37 but not zero, or a longer run is cut by a block's end. So every d >= 0.
3. The file's length follows from the header and the last HDUs. So the sum S of all d is known: it
   is what is left of the file when the decoded blocks' bytes and P for each of the undecoded are
   taken away. The d before the k-th stretch of decoded blocks add up to A_k, with
   0 <= A_1 <= A_2 <= ... <= S.
4. The bytes of a stretch tell where in it pixels begin: the 14 zero bits fit at one phase of the
   four, or nothing is concluded. So A_k is known modulo 4.

The least A_k that 3 and 4 allow is found going up, the greatest going down. Where they are the same
for every stretch, no other place fits, and it is the place. Otherwise, or where a decoded block is
not full or ends in a run, or where there is no phase or two, the blocks on one side are decoded as
well, up to the file's beginning or end, and nothing has to be concluded. Where S is not of 0 to 7
all blocks are decoded. What is not one stream and nothing else is read as a whole.

**What is assumed** is 2 of blocks that are not decoded, where nothing can be seen of it: that
frames are SDSS's. Stretches are therefore held against what else they must be: image / calibration
+ sky is a whole number of counts in every pixel. Calibration and sky change from column to column,
and most from a row's last to its first, so that a place that is off by less than a row, or by a
block, does not pass. A frame made up so that thousands of runs of exactly four before the rows,
and as many bytes of longer runs behind them, shift the rows by whole rows would not be seen; nor,
in a frame that has no changes from column to column, would smaller shifts be.

Every block's CRC is checked as it is decoded, and the stream's own CRC against those of all blocks,
which says that none was missed and none made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from astropy.io import fits

from pipeline.survey import bzip2, frame
from pipeline.survey.bzip2 import BadBlock, Bits, Block
from pipeline.survey.frame import IMAGE_FILLED, BadFrame, Frame, Stretch
from pipeline.survey.names import FRAME_SHAPE, Field

Rows = Sequence[slice]
"""Ranges of a frame's rows, half open."""
ROW = 4 * FRAME_SHAPE[1]
"""Bytes of a row of the image."""
LOW_BITS = np.array([0, 0, 0x3F, 0xFF], np.uint8)
"""Of a pixel's four bytes, the bits that are zero in SDSS's frames."""
OFF_WHOLE = 0.06
"""Counts by which pixels of real frames were seen to miss whole numbers: up to 0.045."""
LOOKED_AT = 32
"""Rows of a stretch that are held against whole numbers."""
MOST_LEFT = 7
"""Bytes of S (see above) with which a place may be concluded; real frames have up to 4."""


class Unclear(Exception):
    """Not all can be concluded without decoding every block."""


def read(
    data: bytes,
    field: Field,
    band: str,
    rows: Rows | Callable[[fits.Header], Rows],
    threads: int = 1,
) -> Frame:
    """The rows `rows` (or what it says of the header) of a compressed frame, and what is beside it.

    They are those of `frame.read`, to the byte, with the same header, calibration and sky; which
    blocks were decoded for it is in `decoded` and `blocks`. `threads` blocks are decoded at a time.

    Raises:
        BadFrame: as `frame.read`, as far as it is seen in the blocks that are decoded.
    """
    bits, places = bzip2.blocks(data)
    found = {number: Where(bits, *place) for number, place in enumerate(places)}
    try:
        if not found:
            raise Unclear
        with Stream(data[3] - ord("0"), found, threads) as stream:
            return read_rows(stream, field, band, rows)
    except (Unclear, BadBlock):  # several streams, another encoder's, or damage: to be told
        whole = frame.read(data, field, band)
        ranges = _joined(_within(rows(whole.header) if callable(rows) else rows))
        stretches = tuple(Stretch(part.start, whole.pixels(part)) for part in ranges)
        count = max(len(found), 1)
        return replace(whole, stretches=stretches, decoded=count, blocks=count)


class Where(NamedTuple):
    """Where a block is: `at` its first bit, `end` the first of what follows it."""

    bits: Bits
    at: int
    end: int


class Stream:
    """The stream of a file: where its blocks are, by number, and those decoded so far."""

    def __init__(self, level: int, found: dict[int, Where], threads: int = 1):
        self.level, self.found = level, found
        self.count = len(found)
        self.known: dict[int, Block] = {}
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_) -> None:
        if self.pool:
            self.pool.shutdown()

    def settle(self, middle: int) -> None:
        """Be told how many blocks are between the first and those that hold the end."""

    @property
    def full(self) -> int:
        """Bytes at which the encoder ends a block, as it counts them."""
        return 100_000 * self.level - bzip2.UNFILLED

    def decode(self, numbers: Iterable[int]) -> None:
        """Decode blocks that are not yet.

        Raises:
            BadBlock: one is damaged, or does not end where the next begins.
        """
        new = [number for number in numbers if number not in self.known]
        self.need(new)
        each = self.pool.map if self.pool and len(new) > 1 else map
        self.known.update(zip(new, each(self._decode, new), strict=True))

    def need(self, numbers: list[int]) -> None:
        """See whether blocks are here; a stream that is not whole raises what it lacks."""

    def _decode(self, number: int) -> Block:
        bits, at, end = self.found[number]
        block = bits.decode(at, self.level)
        if block.end != end:
            raise BadBlock("the bzip2 data are damaged")
        return block

    def joined(self, first: int, last: int) -> np.ndarray:
        """The bytes of decoded blocks, half open."""
        parts = [self.known[number].raw for number in range(first, last)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def runs(self) -> list[_Run]:
        """The decoded blocks, in order."""
        known = sorted(self.known)
        edges = [k for k in range(1, len(known)) if known[k] != known[k - 1] + 1]
        spans = [(known[a], known[b - 1] + 1) for a, b in pairwise([0, *edges, len(known)])]
        return [_Run(first, last, self.joined(first, last)) for first, last in spans]


class _Run(NamedTuple):
    """Decoded blocks that follow each other, `first` to before `last`; `raw` their bytes."""

    first: int
    last: int
    raw: np.ndarray


class _Placed(NamedTuple):
    """Bytes of the file from `start` on."""

    start: int
    raw: np.ndarray


def read_rows(
    stream: Stream, field: Field, band: str, rows: Rows | Callable[[fits.Header], Rows]
) -> Frame:
    """As `read`, of a stream.

    Raises:
        Unclear: it cannot be told where bytes belong.
        BadBlock, BadFrame: it is damaged, or no frame, or another.
    """
    stream.decode([0])
    try:
        header, start = frame.image_header(stream.known[0].raw.tobytes())
    except BadFrame:  # or it is longer than a block
        raise Unclear from None
    ranges = _within(rows(header) if callable(rows) else rows)
    tail, tables = _tail(stream)
    length = start + IMAGE_FILLED + len(tables)
    between = length - len(stream.known[0].raw) - len(tail.raw)
    stream.settle(between // stream.full)
    try:
        _decode_wanted(stream, start, between, ranges)
        places = _places(stream, start, length)
        found = _frame(stream, header, places, start, ranges, tables, field, band)
        _hold_against_counts(found, places[1:], start)
        return found
    except Unclear:
        stream.decode(range(stream.count))
        places = _places(stream, start, length)
        return _frame(stream, header, places, start, ranges, tables, field, band)


def _within(rows: Rows) -> list[slice]:
    """Ranges with none empty, in order.

    Raises:
        ValueError: they are not within a frame.
    """
    for part in rows:
        if not 0 <= part.start <= part.stop <= FRAME_SHAPE[0]:
            raise ValueError(f"rows {part.start} to {part.stop}: a frame has {FRAME_SHAPE[0]}")
    return sorted((part for part in rows if part.start < part.stop), key=lambda part: part.start)


def _joined(ranges: list[slice]) -> list[slice]:
    """Ranges in order, those that touch as one."""
    joined: list[slice] = []
    for part in ranges:
        if joined and part.start <= joined[-1].stop:
            part = slice(joined[-1].start, max(joined.pop().stop, part.stop))
        joined.append(part)
    return joined


def _tail(stream: Stream) -> tuple[_Run, bytes]:
    """The last blocks, as many as hold all that follows the image; and that."""
    for first in range(stream.count - 1, -1, -1):
        stream.decode([first])
        raw = stream.joined(first, stream.count)
        tables = raw.tobytes()
        begin = frame.tables_begin(tables)
        if begin is not None and begin > frame.IMAGE_FILLED - frame.IMAGE_BYTES:
            if any(tables[begin - (frame.IMAGE_FILLED - frame.IMAGE_BYTES) : begin]):
                raise BadFrame("the image and the next HDU do not meet")
            return _Run(first, stream.count, raw), tables[begin:]
    raise BadFrame("the FITS file has not the 4 HDUs of a frame")


def _decode_wanted(stream: Stream, start: int, between: int, ranges: list[slice]) -> None:
    """Decode the blocks that may hold the rows, wherever between them the undecoded ones end.

    `between`: bytes from the first block to those that hold the end.

    Raises:
        Unclear: there are too few blocks for so many bytes, or too many.
    """
    head = len(stream.known[0].raw)
    middle = stream.runs()[-1].first - 1
    left = between - middle * stream.full
    if middle > 0 and not 0 <= left <= MOST_LEFT:
        raise Unclear
    wanted = set()
    for number in range(1, middle + 1):
        earliest = head + (number - 1) * stream.full - start
        latest = earliest + stream.full + left
        if any(earliest < part.stop * ROW and part.start * ROW < latest for part in ranges):
            wanted.add(number)
    stream.decode(sorted(wanted))


def _places(stream: Stream, start: int, length: int) -> list[_Placed]:
    """Where in a file of `length` the runs of decoded blocks lie; what it takes is decoded.

    Raises:
        BadFrame: the blocks are all here, and are not as long as the file.
    """
    while True:
        runs = stream.runs()
        if len(runs) == 1 and len(runs[0].raw) != length:
            raise BadFrame("the FITS file is not as long as its headers tell")
        try:
            places = _concluded(stream, runs, start, length)
            return [_Placed(place, run.raw) for place, run in zip(places, runs, strict=True)]
        except Unclear:  # where nothing is undecoded on one side, nothing is to be concluded
            gaps = [(before.last, after.first) for before, after in pairwise(runs)]
            stream.decode(range(*min(gaps, key=lambda gap: gap[1] - gap[0])))


def _concluded(stream: Stream, runs: list[_Run], start: int, length: int) -> list[int]:
    """Where in a file of `length` each run begins (see the module).

    Raises:
        Unclear: it cannot be concluded.
    """
    if len(runs) == 1:
        return [0]
    if any(_ends_in_run(run.raw) for run in runs[:-1]):
        raise Unclear
    bases, residues, end = [], [], len(runs[0].raw)
    for before, run in pairwise(runs[:-1]):
        bases.append(end + (run.first - before.last) * stream.full)
        residues.append((start - _phase(stream, run) - bases[-1]) % 4)
        end = bases[-1] + len(run.raw)
    last = length - len(runs[-1].raw)
    left = last - end - (runs[-1].first - runs[-2].last) * stream.full
    if left < 0:
        raise Unclear
    least, most, low, high = [], [], 0, left
    for residue in residues:
        low += (residue - low) % 4
        least.append(low)
    for residue in reversed(residues):
        high -= (high - residue) % 4
        most.append(high)
    if least != most[::-1]:
        raise Unclear
    return [0, *(base + more for base, more in zip(bases, least, strict=True)), last]


def _ends_in_run(raw: np.ndarray) -> bool:
    """Whether the encoder may have counted the rest of a run to the next block."""
    return bool((raw[-4:] == raw[-1]).all())


def _phase(stream: Stream, run: _Run) -> int:
    """The byte (0 to 3) of a run within the image at which a pixel begins.

    Raises:
        Unclear: its blocks are not full, or 14 low bits of zero fit at no byte, or at several.
    """
    blocks = [stream.known[number] for number in range(run.first, run.last)]
    if any(min(block.filled, len(block.raw)) < stream.full for block in blocks):
        raise Unclear
    seen = np.bitwise_or.reduce(run.raw[: len(run.raw) // 4 * 4].reshape(-1, 4), axis=0)
    fitting = [byte for byte in range(4) if not (np.roll(seen, -byte) & LOW_BITS).any()]
    if len(fitting) != 1:
        raise Unclear
    return fitting[0]


def _frame(
    stream: Stream,
    header: fits.Header,
    places: list[_Placed],
    start: int,
    ranges: list[slice],
    tables: bytes,
    field: Field,
    band: str,
) -> Frame:
    """The frame of the rows asked for, cut out of bytes whose places are known.

    Raises:
        Unclear: the rows are not all in one place.
    """
    stretches = []
    for part in _joined(ranges):
        first, last = start + part.start * ROW, start + part.stop * ROW
        for place, raw in places:
            if place <= first and last <= place + len(raw):
                pixels = raw[first - place : last - place].view(">f4")
                stretches.append(Stretch(part.start, pixels.reshape(-1, FRAME_SHAPE[1])))
                break
        else:
            raise Unclear
    counts = len(stream.known), stream.count
    return frame.assemble(header, tuple(stretches), tables, field, band, *counts)


def _hold_against_counts(found: Frame, concluded: list[_Placed], start: int) -> None:
    """Let pixels of bytes whose place was concluded be whole numbers of counts.

    Raises:
        Unclear: some are not.
    """
    for place, raw in concluded:
        for stretch in found.stretches:
            first = max(stretch.start, -((start - place) // ROW))
            last = min(stretch.stop, (place + len(raw) - start) // ROW, first + LOOKED_AT)
            if first < last and not _whole_counts(found, slice(first, last)):
                raise Unclear


def _whole_counts(found: Frame, rows: slice) -> bool:
    with np.errstate(all="ignore"):
        counts = found.counts(rows, slice(None))
        bright = np.abs(found.pixels(rows)) / np.abs(found.calibration)
        off = np.abs(counts - np.rint(counts)) - bright * 2.0**-11
    return not (off[bright < 100] > OFF_WHOLE).any()
