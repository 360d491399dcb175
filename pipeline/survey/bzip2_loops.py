"""The loops of undoing a bzip2 block, compiled: `bzip2` says what they are of."""

from __future__ import annotations

import numpy as np
from numba import njit

BLOCK_MAGIC = 0x314159265359
END_MAGIC = 0x177245385090
_QUICK = 11
"""Bits of a code that are looked up at once; longer codes (of rare symbols) are searched."""
_U64 = np.uint64
_U32 = np.uint32


@njit(nogil=True, cache=True, inline="always")
def _peek(words, at):
    """The 64 bits at `at`."""
    word, shift = at >> 6, _U64(at & 63)
    return (words[word] << shift) | ((words[word + 1] >> _U64(1)) >> (_U64(63) - shift))


@njit(nogil=True, cache=True, inline="always")
def get(words, at, count):
    return np.int64(_peek(words, at) >> _U64(64 - count))


@njit(nogil=True, cache=True)
def find(words, size, pairs):
    """Every bit at which one of the two magics is.

    Of four neighbouring pairs of bytes that lie wholly in a magic one begins at a multiple of four,
    so every fourth pair is enough.
    """
    found = []
    for first in range(0, size // 8 - 1, 4):
        if not pairs[get(words, 8 * first, 16)]:
            continue
        for at in range(max(8 * first - 32, 0), min(8 * first, size - 47)):
            magic = get(words, at, 48)
            if magic in (BLOCK_MAGIC, END_MAGIC):
                found.append(at)
    return found


@njit(nogil=True, cache=True)
def symbols(words, at, size, column, counts):
    """Undo the Huffman codes, the runs and the moving to front of a block, from behind its CRC.

    Fills in `column`, the transform's last column, and `counts` of each byte in it. Returns how
    many bytes there are (negative: why it cannot be), where the text begins, and the bit after.
    """
    bad = (-3, 0, 0)
    if at + 41 > size:
        return -1, 0, 0
    if get(words, at, 1):  # the randomised blocks of bzip2 0.9.0, which nobody writes any more
        return bad
    origin = get(words, at + 1, 24)
    order, kinds, at = _bytes_used(words, at + 25, size)
    tables, many, at = get(words, at, 3), get(words, at + 3, 15), at + 18
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
    sixteens, at = get(words, at, 16), at + 16
    for high in range(16):
        if sixteens >> (15 - high) & 1 and at + 34 <= size:
            ones, at = get(words, at, 16), at + 16
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
        while get(words, at, 1):
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
    length, at = get(words, at, 5), at + 5
    for symbol in range(symbols):
        while True:
            if length < 1 or length > 20:
                return -3
            if at + 2 > size:
                return -1
            if not get(words, at, 1):
                at += 1
                break
            length += 1 - 2 * get(words, at + 1, 1)
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
def invert(column, counts, origin, follow, four, text):
    """Undo the Burrows-Wheeler transform: from its last column to the text.

    `follow` (byte, place of the next) makes a chain through all of the block, which is slow to go
    along since each step waits for memory. So four steps at a time are looked up beforehand, which
    memory serves in nearly rising order, and then gone along in `four`.
    """
    place, total = np.zeros(256, np.int64), 0
    for byte in range(256):
        place[byte] = total
        total += counts[byte]
    size = column.size
    for k in range(size):
        follow[k] = column[k]
    for k in range(size):
        byte = column[k]
        follow[place[byte]] |= _U32(k << 8)
        place[byte] += 1
    at = np.int64(follow[origin] >> _U32(8))
    for k in range(size):
        a = follow[k]
        b = follow[a >> _U32(8)]
        c = follow[b >> _U32(8)]
        d = follow[c >> _U32(8)]
        bytes_ = (a & _U32(255)) | (b & _U32(255)) << _U32(8) | (c & _U32(255)) << _U32(16)
        four[k] = _U64(d >> _U32(8)) << _U64(32) | _U64(bytes_ | d << _U32(24))
    for k in range(0, size - 3, 4):
        entry = four[at]
        text[k] = np.uint8(entry)
        text[k + 1] = np.uint8(entry >> _U64(8))
        text[k + 2] = np.uint8(entry >> _U64(16))
        text[k + 3] = np.uint8(entry >> _U64(24))
        at = np.int64(entry >> _U64(32))
    for k in range(size // 4 * 4, size):
        entry = follow[at]
        text[k] = np.uint8(entry)
        at = np.int64(entry >> _U32(8))


@njit(nogil=True, cache=True)
def unrun(text, raw):
    """Undo the outermost runs (four equal bytes, then how many more); how many bytes that makes.

    `raw` is filled in as far as it goes.
    """
    count, run, last, k = 0, 0, -1, 0
    while k < text.size:
        byte = text[k]
        run = run + 1 if byte == last else 1
        last = np.int64(byte)
        if count < raw.size:
            raw[count] = byte
        count, k = count + 1, k + 1
        if run == 4:
            if k < text.size:
                more = np.int64(text[k])
                raw[count : min(count + more, raw.size)] = byte
                count, k = count + more, k + 1
            run, last = 0, -1
    return count
