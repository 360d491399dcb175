"""One block of a bzip2 file: found and decoded alone, which no library offers from Python.

A stream is `BZh` and a level (1 to 9), blocks of up to level x 100,000 bytes, and an end that has
a CRC combined of all blocks' own. Blocks begin at any bit, with a magic of 48 bits; each is a
Burrows-Wheeler transform, moved to front, in runs, in up to six Huffman codes that change every 50
symbols, and needs nothing of the others. Positions are bits from the start of the data.
"""

from __future__ import annotations

import threading
import zlib
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.survey import bzip2_loops as loops
from pipeline.survey.bzip2_loops import BLOCK_MAGIC, END_MAGIC

MOST = 900_000
"""Bytes of the largest block, as the encoder counts them."""
UNFILLED = 19
"""The reference encoder ends a block when no more than so many bytes are free in it."""
_ROOM = threading.local()
"""Each thread's arrays, made once: new memory costs as much as what is done in it."""
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


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
        padded = data + bytes(160 - len(data) % 8)  # a group of symbols may be read past the end
        self.words = np.frombuffer(padded, ">u8").astype(np.uint64)

    def get(self, at: int, count: int) -> int:
        """`count` (1 to 63) bits at `at`.

        Raises:
            BadBlock: the data end before.
        """
        if not 0 <= at <= self.size - count:
            raise BadBlock("the bzip2 file is truncated")
        return int(loops.get(self.words, at, count))

    def find(self) -> tuple[list[int], list[int]]:
        """Where blocks and where ends of streams seem to begin: their magics, in order."""
        found = loops.find(self.words, self.size, _PAIRS)
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
        room = _ROOM
        if not hasattr(room, "column"):
            room.column, room.text = np.empty((2, MOST), np.uint8)
            room.links = np.empty(3 * MOST, np.uint32)  # as one, since large arrays get large pages
        column, counts = room.column[: 100_000 * level], np.empty(256, np.int64)
        filled, origin, end = loops.symbols(self.words, at + 80, self.size, column, counts)
        if filled < 0:
            raise BadBlock(_REASONS[filled])
        text, links = room.text[:filled], room.links
        loops.invert(
            column[:filled], counts, origin, links[:MOST], links[MOST:].view(np.uint64), text
        )
        raw = np.empty(filled + filled // 64, np.uint8)
        count = loops.unrun(text, raw)
        if count > raw.size:
            raw = np.empty(count, np.uint8)
            loops.unrun(text, raw)
        raw = raw[:count]
        if crc(raw) != self.crc(at):
            raise BadBlock(_REASONS[-2])
        return Block(raw, int(end), int(filled))


def blocks(data: bytes) -> tuple[Bits, list[tuple[int, int]]]:
    """The blocks (first bit, first bit behind) of a file that is one stream and nothing else.

    None are found where it is not; where they are, the stream's own CRC fits theirs.
    """
    bits = Bits(data)
    if len(data) < 14 or data[:3] != b"BZh" or data[3:4] not in b"123456789":
        return bits, []
    starts, ends = bits.find()
    if not starts or starts[0] != 32 or len(ends) != 1 or ends[0] < starts[-1]:
        return bits, []
    if (ends[0] + 80 + 7) // 8 != len(data):
        return bits, []
    if combined([bits.crc(at) for at in starts]) != bits.crc(ends[0]):
        return bits, []
    return bits, list(pairwise([*starts, *ends]))


def decompress(data: bytes) -> bytes:
    """The content of a file that is one stream and nothing else.

    Raises:
        BadBlock: it is not, or is damaged.
    """
    bits, places = blocks(data)
    if not places:
        raise BadBlock("not one whole stream")
    found = [bits.decode(at, data[3] - ord("0")) for at, _ in places]
    if [block.end for block in found] != [end for _, end in places]:
        raise BadBlock(_REASONS[-3])
    return b"".join(block.raw for block in found)


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
