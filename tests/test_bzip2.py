"""Single blocks of bzip2: found wherever they are, decoded as bz2 does, or refused."""

import bz2
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba.core.registry import CPUDispatcher

from pipeline.survey import bzip2, bzip2_loops
from pipeline.survey.bzip2 import BLOCK_MAGIC, END_MAGIC, BadBlock, Bits

BLOCK = 32
"""The bit at which the first block of a stream begins."""
TEXT = b"".join(b"%d galaxies of %d fields, " % (k * k, k) for k in range(400))
"""Blocks of it have bytes of many values, in runs and not."""
SEEDED = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.fixture
def pure():
    """Run as Python what is compiled otherwise: an index that is out of bounds raises."""
    compiled = {k: v for k, v in vars(bzip2_loops).items() if isinstance(v, CPUDispatcher)}
    assert len(compiled) > 5
    written = {name: each.py_func for name, each in compiled.items()}
    with mock.patch.multiple(bzip2_loops, **written):
        yield


def blocks_of(data: bytes) -> list[bzip2.Block]:
    """The blocks of one stream; that they follow each other, and its CRC, is checked."""
    bits = Bits(data)
    starts, ends = bits.find()
    blocks = [bits.decode(at, data[3] - ord("0")) for at in starts]
    assert [BLOCK, *(block.end for block in blocks)] == [*starts, *ends]
    assert (ends[0] + 80 + 7) // 8 == len(data)
    assert bzip2.combined([bits.crc(at) for at in starts]) == bits.crc(ends[0])
    assert [bits.crc(at) for at in starts] == [bzip2.crc(block.raw) for block in blocks]
    return blocks


def assert_decoded(raw: bytes, level: int) -> list[bzip2.Block]:
    blocks = blocks_of(bz2.compress(raw, level))
    assert b"".join(block.raw.tobytes() for block in blocks) == raw
    full = 100_000 * level - bzip2.UNFILLED
    assert all(full <= block.filled <= full + 4 for block in blocks[:-1])
    return blocks


@pytest.mark.parametrize("level", range(1, 10))
def test_blocks_of_every_level_are_decoded(level):
    raw = np.random.default_rng(level).bytes(130_000 * level)
    assert len(assert_decoded(raw, level)) == 2


def skewed(kinds: int, size: int) -> bytes:
    """Bytes of `kinds` values, each 1.618 times as frequent as the next."""
    share = 1.618 ** -np.arange(kinds)
    return (
        np.random.default_rng(0).choice(kinds, size, p=share / share.sum()).astype("u1").tobytes()
    )


def runs(*lengths: int) -> bytes:
    return b"".join(bytes([65 + k % 7]) * length for k, length in enumerate(lengths))


CONTENTS = {
    "one byte": b"x",
    "two bytes": b"xy",
    "zeros": bytes(3_000_000),
    "all equal": b"\xff" * 50_000,
    "every byte once": bytes(range(256)),
    "every byte, backwards": bytes(range(255, -1, -1)) * 300,
    "runs": runs(3, 4, 5, 254, 255, 256, 259, 1, 4, 4, 510, 511, 514, 2, 3),
    "runs of all lengths": runs(*range(1, 600)),
    "a run of four at the end": b"abc" + b"z" * 4,
    "a run of 255 at the end": b"abc" + b"z" * 255,
    "a run of 259 at the end": b"abc" + b"z" * 259,
    "fours, many": b"aaaab" * 50_000,
    "two values": bytes(np.random.default_rng(1).integers(0, 2, 250_000, np.uint8)),
    "text": TEXT * 20,
    "period 1000": np.random.default_rng(2).bytes(1000) * 150,
    "period 2": b"ab" * 60_000,
    "skewed": skewed(24, 250_000),
    "noise of a few counts": np.random.default_rng(3).normal(0, 3, 60_000).astype(">i4").tobytes(),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("level", [1, 2])
def test_contents_of_every_kind_are_decoded(name, level):
    assert_decoded(CONTENTS[name], level)


def test_a_run_of_any_length_is_decoded_at_the_end_of_a_block():
    """The encoder keeps a run that is not over for the next block."""
    noise = (np.arange(100_300) % 251).astype(np.uint8).tobytes()
    for before in range(99_960, 99_982, 3):
        for length in (3, 4, 5, 255, 259, 600):
            assert_decoded(noise[:before] + b"\xff" * length + noise[:100], 1)


@SEEDED
@given(raw=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300)), min_size=1, max_size=60))
def test_runs_are_undone_and_counted(raw):
    text = b"".join(bytes([byte]) * length for byte, length in raw)
    (block,) = assert_decoded(text, 1)
    lengths, last = [], None
    for byte in text:
        if byte == last and lengths[-1] < 255:
            lengths[-1] += 1
        else:
            lengths.append(1)
        last = byte
    assert block.filled == sum(min(length, 5) if length > 3 else length for length in lengths) + (
        lengths.count(4)
    )


class Seen(Exception):
    """Enough was seen."""


def test_codes_are_longer_than_what_is_looked_up_at_once(pure):
    """Else "skewed" would not be what it is for."""
    data, code = Bits(bz2.compress(CONTENTS["skewed"], 2)), bzip2_loops._code

    def spy(words, at, size, symbols, quick, *tables):
        end = code(words, at, size, symbols, quick, *tables)
        if (quick == 0).any():
            raise Seen
        return end

    with mock.patch.object(bzip2_loops, "_code", spy), pytest.raises(Seen):
        data.decode(BLOCK, 2)


def test_what_is_compiled_is_what_is_written(pure):
    for raw in (b"x", bytes(range(256)), runs(3, 4, 5, 255, 259), TEXT[:2000], skewed(20, 3000)):
        assert_decoded(raw, 1)


def test_an_empty_stream_has_an_end_only():
    bits = Bits(bz2.compress(b""))
    assert bits.find() == ([], [32]) and bits.crc(32) == bzip2.combined([]) == 0


def test_blocks_of_several_streams_are_found():
    data = bz2.compress(TEXT) + bz2.compress(b"more", 1) + bz2.compress(b"")
    starts, ends = Bits(data).find()
    assert len(starts) == 2 and len(ends) == 3
    assert Bits(data).decode(starts[1], 1).raw.tobytes() == b"more"


@pytest.mark.parametrize("shift", range(8))
def test_a_block_is_decoded_at_every_alignment(shift):
    data = bz2.compress(TEXT)
    moved = (int.from_bytes(data) << 8 - shift).to_bytes(len(data) + 1)
    starts, ends = Bits(moved).find()
    assert starts == [BLOCK + shift] and len(ends) == 1
    assert Bits(moved).decode(starts[0], 9).raw.tobytes() == TEXT


def with_magics(size: int, places: list[tuple[int, int]], seed: int) -> bytes:
    """Random bytes with 48 bits put at each of `places`, a later one over a former."""
    whole = int.from_bytes(np.random.default_rng(seed).bytes(size))
    for at, magic in places:
        up = 8 * size - 48 - at
        whole = whole & ~((1 << 48) - 1 << up) | magic << up
    return whole.to_bytes(size)


def every(data: bytes, magic: int) -> list[int]:
    text, wanted = f"{int.from_bytes(data):0{8 * len(data)}b}", f"{magic:048b}"
    return [at for at in range(len(text) - 47) if text.startswith(wanted, at)]


MAGICS = st.sampled_from([BLOCK_MAGIC, END_MAGIC, BLOCK_MAGIC ^ 1, END_MAGIC ^ 1 << 47])


@settings(SEEDED, max_examples=200)
@given(
    size=st.integers(6, 90),
    places=st.lists(st.tuples(st.floats(0, 1), MAGICS), max_size=6),
    seed=st.integers(0, 99),
)
@example(6, [(0, BLOCK_MAGIC)], 0)
@example(90, [(0, END_MAGIC), (1, BLOCK_MAGIC)], 0)
def test_magics_are_found_and_nothing_else(size, places, seed):
    bits = 8 * size - 48
    data = with_magics(size, [(round(share * bits), magic) for share, magic in places], seed)
    assert Bits(data).find() == tuple(every(data, magic) for magic in (BLOCK_MAGIC, END_MAGIC))


@pytest.mark.parametrize("size", [*range(6, 16), 61, 62, 63, 64])
def test_magics_are_found_at_every_bit(size):
    for at in range(8 * size - 47):
        for magic in (BLOCK_MAGIC, END_MAGIC):
            data = with_magics(size, [(at, magic)], 7)
            assert at in Bits(data).find()[magic == END_MAGIC], (at, magic)


@pytest.mark.parametrize("size", range(6))
def test_too_few_bytes_have_no_magic(size):
    data = BLOCK_MAGIC.to_bytes(6)[:size]
    assert Bits(data).find() == ([], [])
    with pytest.raises(BadBlock):
        Bits(data).decode(0, 9)


def test_magics_are_found_without_reading_beyond_the_data(pure):
    for size in range(40):
        Bits((BLOCK_MAGIC.to_bytes(6) * 7)[:size]).find()


@SEEDED
@given(raw=st.binary(min_size=8, max_size=60), at=st.floats(0, 1), count=st.integers(1, 63))
def test_bits_are_read(raw, at, count):
    at = round(at * (8 * len(raw) - count))
    text = f"{int.from_bytes(raw):0{8 * len(raw)}b}"
    assert Bits(raw).get(at, count) == int(text[at : at + count], 2)


def test_bits_that_are_not_there_are_told():
    bits = Bits(b"\xff" * 9)
    assert bits.get(71, 1) == 1 and bits.get(24, 48) == (1 << 48) - 1
    for at, count in ((72, 1), (71, 2), (25, 48), (-1, 4), (10_000, 1)):
        with pytest.raises(BadBlock):
            bits.get(at, count)


@pytest.mark.parametrize("raw", [b"", b"1", b"123456789", bytes(1000), b"\xff" * 7])
def test_the_crc_is_that_of_bzip2(raw):
    """Bit by bit, the polynomial 0x04C11DB7 from the highest bit down."""
    value = 0xFFFFFFFF
    for byte in raw:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    assert bzip2.crc(np.frombuffer(raw, np.uint8)) == value ^ 0xFFFFFFFF


def assert_refused_or_right(data: bytes, raw: bytes, at: int = BLOCK, level: int = 1) -> None:
    try:
        block = Bits(data).decode(at, level)
    except BadBlock as bad:
        assert str(bad)
    else:
        assert block.raw.tobytes() == raw


TINY = {
    "one byte": b"x",
    "words": b"galaxies, galaxies, and galaxies" + b"!" * 9,
    "many values": bytes(range(0, 256, 3)),
    "text": TEXT[:400],
}
tiny = pytest.mark.parametrize("raw", TINY.values(), ids=TINY)


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data) ^ 1 << 8 * len(data) - 1 - bit).to_bytes(len(data))


@tiny
def test_a_flipped_bit_is_told_wherever_it_is(raw):
    data = bz2.compress(raw, 1)
    for bit in range(BLOCK + 48, 8 * len(data)):
        assert_refused_or_right(flipped(data, bit), raw)


@tiny
def test_a_flipped_bit_lets_nothing_be_read_out_of_bounds(raw, pure):
    data = bz2.compress(raw, 1)
    for bit in range(BLOCK + 48, 8 * len(data), 1 + len(data) // 20):
        assert_refused_or_right(flipped(data, bit), raw)


LARGE = np.random.default_rng(5).integers(0, 40, 60_000, np.uint8).tobytes() + TEXT
PACKED = bz2.compress(LARGE, 1)


@SEEDED
@given(places=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=3))
def test_damaged_bytes_are_told_wherever_they_are(places):
    data = bytearray(PACKED)
    for share, change in places:
        data[10 + round(share * (len(data) - 11))] ^= change
    assert_refused_or_right(bytes(data), LARGE)


@tiny
def test_a_truncated_block_is_told_wherever_it_ends(raw):
    data = bz2.compress(raw, 1)
    end = Bits(data).decode(BLOCK, 1).end
    for size in range(len(data)):
        if 8 * size < end:
            with pytest.raises(BadBlock):
                Bits(data[:size]).decode(BLOCK, 1)
        else:
            assert Bits(data[:size]).decode(BLOCK, 1).raw.tobytes() == raw


def test_only_one_stream_and_nothing_else_is_decompressed():
    data = bz2.compress(TEXT * 12, 1)
    assert bzip2.decompress(data) == TEXT * 12
    starts, ends = Bits(data).find()
    assert bzip2.blocks(data)[1] == list(zip(starts, [*starts[1:], *ends], strict=True))
    bad = [b"", b"BZh1", data[:-1], data + b"\0", data + data, b"\0" + data, bz2.compress(b""),
           b"BZh0" + data[4:], flipped(data, starts[1] + 50), flipped(data, ends[0] + 50),
           flipped(data, starts[1] + 2000), b"BZ\0" + data[3:]]  # fmt: skip
    for each in bad:
        with pytest.raises(BadBlock):
            bzip2.decompress(each)


def test_decompressing_tells_every_flipped_bit_that_matters():
    """The bits that fill the last byte do not, nor does a level that is higher."""
    raw = TINY["words"]
    data = bz2.compress(raw, 1)
    for bit in range(8 * len(data)):
        try:
            assert bzip2.decompress(flipped(data, bit)) == raw
        except BadBlock:
            continue


@SEEDED
@given(share=st.floats(0, 1))
def test_a_large_block_that_is_truncated_is_told(share):
    with pytest.raises(BadBlock):
        Bits(PACKED[: round(share * (len(PACKED) - 11))]).decode(BLOCK, 1)


def test_nothing_is_read_beyond_a_truncated_block(pure):
    for raw in TINY.values():
        data = bz2.compress(raw, 1)
        for size in range(len(data) - 10):
            assert_refused_or_right(data[:size], raw)


@pytest.mark.parametrize("step", [0, 1])
def test_random_bytes_after_a_magic_are_told(step):
    random = np.random.default_rng(step)
    for size in range(200):
        with pytest.raises(BadBlock):
            Bits(b"BZh1" + BLOCK_MAGIC.to_bytes(6) + random.bytes(size)).decode(BLOCK, 1)


def test_random_bytes_let_nothing_be_read_out_of_bounds(pure):
    """After a header that is right: else hardly one of them comes as far as its codes."""
    random = np.random.default_rng(0)
    for raw in TINY.values():
        data = bz2.compress(raw, 1)
        for size in range(14, len(data), 1 + len(data) // 50):
            spoilt = data[:size] + random.bytes(int(random.integers(0, 40)))
            assert_refused_or_right(spoilt, raw)
            assert_refused_or_right(data[:size] + b"\xff" * 30, raw)
            assert_refused_or_right(data[:size] + bytes(30), raw)


@pytest.mark.parametrize("level", [1, 8])
def test_a_block_of_a_higher_level_than_the_streams_is_told(level):
    data = bz2.compress(np.random.default_rng(0).bytes(850_000), 9)
    with pytest.raises(BadBlock, match="damaged"):
        Bits(data).decode(BLOCK, level)


def test_a_block_of_the_randomised_kind_is_told():
    with pytest.raises(BadBlock, match="damaged"):
        Bits(flipped(bz2.compress(b"text"), BLOCK + 80)).decode(BLOCK, 9)


@pytest.mark.parametrize("at", [0, 31, 33, 10_000_000, -1])
def test_a_place_without_a_block_is_told(at):
    with pytest.raises(BadBlock):
        Bits(bz2.compress(TEXT)).decode(at, 9)
