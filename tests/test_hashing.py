"""The hash behind splits and made ids."""

from __future__ import annotations

import numpy as np

from pipeline.survey.hashing import draw, mix64


def test_mix64_is_splitmix64():
    """The first outputs of the published generator, seeded with 0: state = k * increment."""
    state = np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64)
    assert mix64(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_draws_are_uniform_and_follow_the_seed():
    ids = np.arange(20000)
    for seed in (0, 1):
        counts = np.histogram(draw(ids, seed), bins=20, range=(0, 1))[0]
        assert counts.sum() == 20000 and abs(counts - 1000).max() < 5 * np.sqrt(950)
    assert (draw(ids, 0) != draw(ids, 1)).all()
    assert abs(np.corrcoef(draw(ids, 0), draw(ids, 1))[0, 1]) < 0.03
