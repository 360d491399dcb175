"""Pieces of a frame's file: what is asked for, and rows read from them."""

import numpy as np
import pytest
import real_sky
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.survey import pieces
from pipeline.survey.excerpt import Excerpt
from pipeline.survey.frame import BadFrame
from pipeline.survey.names import BANDS, FRAME_SHAPE, frame_path

FIELD = real_sky.STRIPE82


def compressed(real_data, field, band) -> bytes:
    return (real_sky.root(real_data) / frame_path(field, band)).read_bytes()


def answer(excerpt: Excerpt, data: bytes, ranges) -> Excerpt:
    """What a server gives for ranges of bytes."""
    excerpt = Excerpt(len(data), "tag", excerpt.pieces)
    for start, stop in ranges:
        start = max(len(data) + start, 0) if start < 0 else start
        excerpt = excerpt.with_piece(start, data[start:stop])
    return excerpt


def fetch(data: bytes, field, band, rows) -> tuple[Excerpt | None, int]:
    """What comes in how many requests; None: the whole file is to be asked for."""
    excerpt, requests = Excerpt(), 0
    while ranges := pieces.lacking(excerpt, field, band, lambda header: rows):
        excerpt, requests = answer(excerpt, data, ranges), requests + 1
        assert requests < 9
    return (None if ranges is None else excerpt), requests


def size(excerpt: Excerpt) -> int:
    return sum(len(data) for _, data in excerpt.pieces)


@settings(max_examples=12, deadline=None)
@given(
    band=st.sampled_from(BANDS),
    starts=st.lists(st.integers(0, FRAME_SHAPE[0] - 134), min_size=1, max_size=4),
    lengths=st.integers(0, 134),
)
def test_rows_of_pieces_are_those_of_the_whole(real_data, band, starts, lengths):
    rows = [slice(start, start + lengths) for start in starts]
    data, whole = compressed(real_data, FIELD, band), real_sky.read(real_data, FIELD, band)
    excerpt, _ = fetch(data, FIELD, band, rows)
    if excerpt is None:
        return
    part = pieces.read(excerpt, FIELD, band, lambda header: rows)
    for each in rows:
        if each.start < each.stop:
            assert part.pixels(each).tobytes() == whole.pixels(each).tobytes()
    assert part.sky.tobytes() == whole.sky.tobytes() and part.header == whole.header


def test_two_stamps_take_less_than_half_of_the_bytes(real_data):
    """The mean over bands and places of two stamps a field; and few requests."""
    random, shares, requests = np.random.default_rng(1), [], []
    for field in (real_sky.STRIPE82, real_sky.CLUSTER):
        for band in BANDS:
            rows = [slice(int(k), int(k) + 134) for k in random.integers(0, 1355, 2)]
            data = compressed(real_data, field, band)
            excerpt, count = fetch(data, field, band, rows)
            shares.append(size(excerpt) / len(data) if excerpt else 1)
            requests.append(count)
    assert np.mean(shares) < 0.5 and np.mean(requests) < 3


def test_most_of_a_frame_is_asked_for_as_a_whole(real_data):
    data = compressed(real_data, FIELD, "r")
    assert fetch(data, FIELD, "r", [slice(0, FRAME_SHAPE[0])])[0] is None


def test_pieces_without_the_rows_are_no_frame_of_them(real_data):
    data = compressed(real_data, FIELD, "r")
    excerpt, _ = fetch(data, FIELD, "r", [slice(1300, 1400)])
    with pytest.raises(BadFrame, match="does not hold the stamps' rows"):
        pieces.read(excerpt, FIELD, "r", lambda header: [slice(500, 600)])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.97])
def test_a_flipped_byte_in_what_came_is_told_or_asked_for_anew(real_data, share):
    rows = [slice(700, 834)]
    data = compressed(real_data, FIELD, "r")
    excerpt, _ = fetch(data, FIELD, "r", rows)
    spoilt = bytearray(data)
    start, piece = excerpt.pieces[min(int(share * len(excerpt.pieces)), len(excerpt.pieces) - 1)]
    spoilt[start + len(piece) // 2] ^= 4
    whole = real_sky.read(real_data, FIELD, "r")
    try:
        excerpt, _ = fetch(bytes(spoilt), FIELD, "r", rows)
    except BadFrame:
        return
    if excerpt is not None:
        part = pieces.read(excerpt, FIELD, "r", lambda header: rows)
        assert part.pixels(rows[0]).tobytes() == whole.pixels(rows[0]).tobytes()


def test_another_frames_pieces_are_told(real_data):
    data = compressed(real_data, FIELD, "r")
    with pytest.raises(BadFrame, match="another frame"):
        fetch(data, FIELD, "i", [slice(700, 834)])
