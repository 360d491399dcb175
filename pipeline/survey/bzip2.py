"""One block of a bzip2 file: found and decoded alone, which no library offers from Python.

A stream is `BZh` and a level (1 to 9), blocks of up to level x 100,000 bytes, and an end that has
a CRC combined of all blocks' own. Blocks begin at any bit, with a magic of 48 bits; each is a
Burrows-Wheeler transform, moved to front, in runs, in up to six Huffman codes that change every 50
symbols, and needs nothing of the others. Positions are bits from the start of the data.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from numba import njit

BLOCK_MAGIC = 0x314159265359
END_MAGIC = 0x177245385090
UNFILLED = 19
"""The reference encoder ends a block when no more than so many bytes are free in it."""
_QUICK = 11
"""Bits of a code that are looked up at once; longer codes (of rare symbols) are searched."""
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_U64 = np.uint64
_U32 = np.uint32


class BadBlock(Exception):
    """A block that is not whole, or damaged; the text is the reason, in a few words."""


class Block(NamedTuple):
    """`raw` bytes (uint8), `end` the bit after the block, `filled` the bytes of it as the encoder
    counts them: runs of 4 to 255 equal bytes count 5.
    """

    raw: np.ndarray
    end: int
    filled: int


class Bits:
    """Bytes to read bits from."""

    def __init__(self, data: bytes):
        self.size = 8 * len(data)
        padded = data + bytes(24 - len(data) % 8)
        self.words = np.frombuffer(padded, ">u8").astype(np.uint64)

    def get(self, at: int, count: int) -> int:
        """`count` (1 to 64) bits at `at`.

        Raises:
            BadBlock: the data end before.
        """
        if not 0 <= at <= self.size - count:
            raise BadBlock("the bzip2 file is truncated")
        return int(_get(self.words, at, count))

    def find(self) -> tuple[list[int], list[int]]:
        """Where blocks and where ends of streams seem to begin: their magics, in order."""
        found = _find(self.words, self.size, _PAIRS)
        kinds = [self.get(at, 48) for at in found]
        return tuple(
            [int(at) for at, kind in zip(found, kinds, strict=True) if kind == magic]
            for magic in (BLOCK_MAGIC, END_MAGIC)
        )

    def crc(self, at: int) -> int:
        """The CRC that follows the magic at `at`: of a block, or combined of a stream's."""
        return self.get(at + 48, 32)

    def decode(self, at: int, level: int) -> Block:
        """The block whose magic is at `at`, of a stream of `level`; its CRC is checked.

        Raises:
            BadBlock: it is not whole or damaged.
        """
        room = 100_000 * level
        column = np.empty(room, np.uint8)
        counts = np.empty(256, np.int64)
        filled, origin, end = _symbols(self.words, at + 80, self.size, column, counts)
        if filled < 0:
            raise BadBlock(_REASONS[filled])
        text = np.empty(filled, np.uint8)
        _invert(column[:filled], counts, origin, text)
        raw = np.empty(_unrun(text, np.empty(0, np.uint8)), np.uint8)
        _unrun(text, raw)
        if crc(raw) != self.crc(at):
            raise BadBlock(_REASONS[-2])
        return Block(raw, int(end), int(filled))


def crc(raw: np.ndarray) -> int:
    """bzip2's CRC of bytes: that of zlib with the bits of every byte, and its own, mirrored."""
    mirrored = zlib.crc32(raw.tobytes().translate(_MIRRORED))
    return int(f"{mirrored:032b}"[::-1], 2)


def combined(crcs: list[int]) -> int:
    """The CRC at a stream's end, of its blocks' own."""
    total = 0
    for each in crcs:
        total = ((total << 1 | total >> 31) & 0xFFFFFFFF) ^ each
    return total


def _pairs() -> np.ndarray:
    """Whether two bytes may be 2 of the 5 whole ones of a magic, at any of the 8 shifts."""
    flags = np.zeros(1 << 16, np.uint8)
    for magic in (BLOCK_MAGIC, END_MAGIC):
        for shift in range(8):
            spread = (magic << 8 - shift).to_bytes(7, "big")
            for k in range(1, 5):
                flags[spread[k] << 8 | spread[k + 1]] = 1
    return flags


_PAIRS = _pairs()
_REASONS = {
    -1: "the bzip2 file is truncated",
    -2: "the bzip2 data are damaged (CRC)",
    -3: "the bzip2 data are damaged",
}


@njit(nogil=True, cache=True, inline="always")
def _peek(words, at):
    """The 64 bits at `at`."""
    word, shift = at >> 6, _U64(at & 63)
    return (words[word] << shift) | ((words[word + 1] >> _U64(1)) >> (_U64(63) - shift))


@njit(nogil=True, cache=True, inline="always")
def _get(words, at, count):
    return np.int64(_peek(words, at) >> _U64(64 - count))


@njit(nogil=True, cache=True)
def _find(words, size, pairs):
    """Every bit at which one of the two magics is.

    Of four neighbouring pairs of bytes that lie wholly in a magic one begins at a multiple of four,
    so every fourth pair is enough.
    """
    found = []
    for first in range(0, size // 8 - 1, 4):
        if not pairs[_get(words, 8 * first, 16)]:
            continue
        for at in range(max(8 * first - 32, 0), min(8 * first, size - 47)):
            magic = _get(words, at, 48)
            if magic in (BLOCK_MAGIC, END_MAGIC):
                found.append(at)
    return found


@njit(nogil=True, cache=True)
def _symbols(words, at, size, column, counts):
    """Undo the Huffman codes, the runs and the moving to front of a block, from behind its CRC.

    Fills in `column`, the transform's last column, and `counts` of each byte in it. Returns how
    many bytes there are (negative: why it cannot be), where the text begins, and the bit after.
    """
    bad = (-3, 0, 0)
    if at + 41 > size:
        return -1, 0, 0
    if _get(words, at, 1):  # the randomised blocks of bzip2 0.9.0, which nobody writes any more
        return bad
    origin = _get(words, at + 1, 24)
    order, kinds, at = _bytes_used(words, at + 25, size)
    tables, many, at = _get(words, at, 3), _get(words, at + 3, 15), at + 18
    if kinds == 0 or tables < 2 or tables > 6 or many < 1:
        return bad
    chosen = np.empty(many, np.uint8)
    at = _choices(words, at, size, tables, chosen)
    if at < 0:
        return at, 0, 0
    quick = np.zeros((6, 1 << _QUICK), np.uint16)
    beyond, base = np.zeros((6, 22), np.int64), np.zeros((6, 22), np.int64)
    ranked = np.zeros((6, 258), np.int64)
    for table in range(tables):
        at = _code(words, at, size, kinds + 2, quick[table], beyond[table], base[table],
                   ranked[table])  # fmt: skip
        if at < 0:
            return at, 0, 0
    front = np.zeros(33, np.uint64)  # eight bytes of the list in each
    for place in range(256):
        front[place >> 3] |= _U64(order[place]) << _U64(8 * (place & 7))
    counts[:] = 0
    filled, group, left, table, run, weight = 0, -1, 0, 0, 0, 1
    while True:
        if left == 0:
            group += 1
            if at > size:
                return -1, 0, 0
            if group == many:
                return bad
            left, table = 50, np.int64(chosen[group])
        left -= 1
        bits = _peek(words, at)
        entry = quick[table, np.int64(bits >> _U64(64 - _QUICK))]
        if entry:
            at += np.int64(entry & 31)
            symbol = np.int64(entry >> 5)
        else:
            length = _QUICK + 1
            while length <= 20 and np.int64(bits >> _U64(64 - length)) >= beyond[table, length]:
                length += 1
            rank = np.int64(bits >> _U64(64 - length)) + base[table, min(length, 21)]
            if length > 20 or rank < 0 or rank >= kinds + 2:
                return bad
            symbol = ranked[table, rank]
            at += length
        if symbol <= 1:
            run += weight << symbol
            weight <<= 1
            if run > column.size:
                return bad
            continue
        if run:
            if filled + run > column.size:
                return bad
            byte = np.uint8(front[0] & _U64(255))
            column[filled : filled + run] = byte
            filled += run
            counts[byte] += run
            run, weight = 0, 1
        if symbol == kinds + 1:
            break
        if filled == column.size:
            return bad
        byte = _to_front(front, symbol - 1)
        column[filled] = byte
        filled += 1
        counts[np.int64(byte)] += 1
    if at > size:
        return -1, 0, 0
    if origin >= filled:
        return bad
    return filled, origin, at


@njit(nogil=True, cache=True)
def _bytes_used(words, at, size):
    """The bytes that a block has, in order, how many, and the bit after."""
    order, kinds = np.zeros(256, np.uint8), 0
    sixteens, at = _get(words, at, 16), at + 16
    for high in range(16):
        if sixteens >> (15 - high) & 1 and at + 34 <= size:
            ones, at = _get(words, at, 16), at + 16
            for low in range(16):
                if ones >> (15 - low) & 1:
                    order[kinds] = 16 * high + low
                    kinds += 1
    return order, kinds, at


@njit(nogil=True, cache=True)
def _choices(words, at, size, tables, chosen):
    """Fill in the table of each group of symbols; the bit after, or why not (negative)."""
    order = np.arange(6)
    for group in range(chosen.size):
        place = 0
        while _get(words, at, 1):
            place, at = place + 1, at + 1
            if place == tables:
                return -3
        at += 1
        if at > size:
            return -1
        table = order[place]
        for k in range(place, 0, -1):
            order[k] = order[k - 1]
        order[0] = chosen[group] = table
    return at


@njit(nogil=True, cache=True)
def _code(words, at, size, symbols, quick, beyond, base, ranked):
    """Read a Huffman code's lengths and fill in its tables; the bit after, or why not (negative).

    `quick`: by the next bits, the symbol and its length (0: longer). `beyond`: by length, the first
    code that is longer; `base`: what makes a code the rank of its symbol in `ranked`.
    """
    lengths = np.zeros(258, np.int64)
    length, at = _get(words, at, 5), at + 5
    for symbol in range(symbols):
        while True:
            if length < 1 or length > 20:
                return -3
            if at + 2 > size:
                return -1
            if not _get(words, at, 1):
                at += 1
                break
            length += 1 - 2 * _get(words, at + 1, 1)
            at += 2
        lengths[symbol] = length
    code, rank = 0, 0
    for length in range(1, 21):
        base[length] = rank - code
        for symbol in range(symbols):
            if lengths[symbol] != length:
                continue
            if length <= _QUICK:
                first, last = code << (_QUICK - length), (code + 1) << (_QUICK - length)
                if last > quick.size:
                    return -3
                quick[first:last] = symbol << 5 | length
            ranked[rank] = symbol
            rank, code = rank + 1, code + 1
        beyond[length] = code
        code <<= 1
    return at


@njit(nogil=True, cache=True, inline="always")
def _to_front(front, place):
    """Move the byte at `place` to the front of the list, and return it."""
    last, shift = place >> 3, _U64(8 * (place & 7))
    byte = (front[last] >> shift) & _U64(255)
    carry = byte
    for k in range(last):
        word = front[k]
        front[k] = (word << _U64(8)) | carry
        carry = word >> _U64(56)
    word = front[last]
    moved = _U64(255) << shift
    moved |= moved - _U64(1)
    front[last] = (word & ~moved) | (((word << _U64(8)) | carry) & moved)
    return byte


@njit(nogil=True, cache=True)
def _invert(column, counts, origin, text):
    """Undo the Burrows-Wheeler transform: from its last column to the text."""
    place, total = np.zeros(256, np.int64), 0
    for byte in range(256):
        place[byte] = total
        total += counts[byte]
    follow = np.empty(column.size, np.uint32)  # the place of the next byte, and this one's value
    for k in range(column.size):
        follow[k] = column[k]
    for k in range(column.size):
        byte = column[k]
        follow[place[byte]] |= _U32(k << 8)
        place[byte] += 1
    at = np.int64(follow[origin] >> _U32(8))
    for k in range(column.size):
        entry = follow[at]
        text[k] = np.uint8(entry)
        at = np.int64(entry >> _U32(8))


@njit(nogil=True, cache=True)
def _unrun(text, raw):
    """Undo the outermost runs (four equal bytes, then how many more); how many bytes that makes.

    An empty `raw` is not filled in.
    """
    count, run, last, k = 0, 0, -1, 0
    while k < text.size:
        byte = text[k]
        run = run + 1 if byte == last else 1
        last = np.int64(byte)
        if raw.size:
            raw[count] = byte
        count, k = count + 1, k + 1
        if run == 4:
            if k < text.size:
                more = np.int64(text[k])
                if raw.size:
                    raw[count : count + more] = byte
                count, k = count + more, k + 1
            run, last = 0, -1
    return count
