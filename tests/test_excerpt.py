"""Excerpts of files: pieces in any order, what they lack, and the file that holds them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.survey.excerpt import Excerpt

SIZE = 60
FILE = random.Random(1).randbytes(SIZE)
spans = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted).map(tuple)
asked = st.one_of(
    spans,
    st.tuples(st.integers(0, SIZE), st.none()),
    st.tuples(st.integers(-SIZE - 5, -1), st.none()),
    st.tuples(st.integers(0, SIZE), st.integers(SIZE, SIZE + 9)),
)


def made(some, length=SIZE):
    excerpt = Excerpt(length, '"tag"')
    for start, stop in some:
        excerpt = excerpt.with_piece(start, FILE[start:stop])
    return excerpt


def numbers(ranges):
    """The bytes that ranges are of."""
    each = (
        range(max(SIZE + a, 0), SIZE) if a < 0 else range(a, SIZE if b is None else min(b, SIZE))
        for a, b in ranges
    )
    return {number for one in each for number in one}


def here(excerpt):
    return {start + k for start, data in excerpt.pieces for k in range(len(data))}


@given(st.lists(spans), st.sampled_from([SIZE, SIZE + 1, None]))
def test_pieces_are_sorted_apart_and_hold_what_was_put_in(some, length):
    excerpt = made(some, length)
    assert here(excerpt) == numbers(some)
    for start, data in excerpt.pieces:
        assert data and data == FILE[start : start + len(data)]
    stops = [start + len(data) for start, data in excerpt.pieces]
    starts = [start for start, _ in excerpt.pieces]
    assert all(stop < start for stop, start in zip(stops, starts[1:], strict=False))
    assert excerpt.is_whole == (length == SIZE and len(here(excerpt)) == SIZE)


@given(st.lists(spans), spans)
def test_bytes_are_given_where_all_are_here(some, span):
    excerpt = made(some)
    expected = FILE[slice(*span)] if numbers([span]) <= here(excerpt) else None
    assert excerpt.piece_at(*span) == expected


@given(st.lists(spans), st.lists(asked))
def test_what_is_lacking_is_what_is_asked_for_and_not_here(some, ranges):
    excerpt = made(some)
    lacks = excerpt.lacks(ranges)
    assert numbers(lacks) == numbers(ranges) - here(excerpt)
    assert sum(stop - start for start, stop in lacks) == len(numbers(lacks)), "disjoint"
    assert lacks == sorted(lacks)
    for start, stop in lacks:
        excerpt = excerpt.with_piece(start, FILE[start:stop])
    assert excerpt.lacks(ranges) == []


def test_what_counts_from_an_unknown_end_is_asked_for_as_it_is():
    ranges = [(-5, None), (50, None), (8, 12), (0, 10), (-5, None)]
    assert Excerpt().lacks(ranges) == [(0, 12), (-5, None), (50, None)]


@given(spans, st.binary(max_size=SIZE))
def test_bytes_that_come_again_count(span, data):
    excerpt = made([span], None).with_piece(20, data)
    assert excerpt.piece_at(20, 20 + len(data)) == data
    assert here(excerpt) == numbers([span]) | set(range(20, 20 + len(data)))


@pytest.mark.parametrize(("start", "size"), [(-1, 5), (SIZE - 2, 3), (SIZE + 1, 0)])
def test_bytes_outside_the_file_are_not_taken(start, size):
    with pytest.raises(ValueError, match=f"bytes {start} to"):
        Excerpt(SIZE).with_piece(start, bytes(size))


@given(st.lists(spans), st.sampled_from([SIZE, None]))
def test_the_file_of_it_gives_it_back(some, length):
    excerpt = made(some, length)
    assert Excerpt.from_bytes(excerpt.to_bytes()) == excerpt


@given(st.lists(spans), st.data())
def test_a_file_with_one_wrong_bit_or_a_missing_or_added_byte_is_damaged(some, data):
    raw = made(some).to_bytes()
    place = data.draw(st.integers(0, len(raw) - 1))
    flipped = bytes([raw[place] ^ 1 << data.draw(st.integers(0, 7))])
    for wrong in (raw[:place] + flipped + raw[place + 1 :], raw[:place], raw + b"x"):
        with pytest.raises(ValueError, match="damaged excerpt"):
            Excerpt.from_bytes(wrong)


@given(st.binary())
def test_another_file_is_none(raw):
    for wrong in (raw, b"ugriz excerpt 1\n" + raw):
        with pytest.raises(ValueError, match="damaged excerpt"):
            Excerpt.from_bytes(wrong)
