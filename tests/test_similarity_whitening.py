"""Whitening: what it makes of vectors, and what it does not depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.similarity import whitening
from pipeline.similarity.whitening import DIM


def whiten(values, step=7):
    def blocks():
        return (values[first : first + step] for first in range(0, len(values), step))

    return whitening.whitening(blocks)


def mixed(seed=0, count=200, size=5):
    """Correlated vectors far from zero, of scatters from 1 to 10,000."""
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.standard_normal((size, size)))
    return 50 + random.standard_normal((count, size)) * 10 ** np.linspace(0, 2, size) @ turn


def test_whitened_vectors_have_no_mean_and_a_covariance_of_one():
    values = mixed()
    white = whiten(values)(values)
    assert white.shape == (200, 5)
    assert np.allclose(white.mean(axis=0), 0, atol=1e-9)
    assert np.allclose(np.cov(white.T, bias=True), np.eye(5), atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(arrays(np.float64, (3, 3), elements=st.floats(-2, 2)), st.integers(1, 300))
def test_likeness_does_not_depend_on_how_the_features_are_mixed(mixing, step):
    """Dot products of whitened vectors are those of Mahalanobis: no linear map changes them."""
    mixing = mixing + 4 * np.sign(mixing.diagonal() + 0.1) * np.eye(3)
    if np.linalg.cond(mixing) > 50:
        return
    values = np.random.default_rng(1).standard_normal((120, 3)) * [1, 3, 5]
    other = values @ mixing + 7
    one, two = whiten(values)(values), whiten(other, step)(other)
    assert np.allclose(one @ one.T, two @ two.T, atol=1e-6)


def test_directions_that_are_only_rounding_are_left_out():
    values = mixed(size=3)
    values = np.column_stack([values, values[:, 0] * (1 + 1e-9), np.full(len(values), 3.0)])
    assert whiten(values).turn.shape == (5, 3)
    assert whiten(np.ones((20, 4))).turn.shape == (4, 0)


def test_no_more_directions_are_kept_than_contrastive_vectors_have():
    values = np.random.default_rng(2).standard_normal((400, DIM + 30)) * np.arange(1, DIM + 31)
    found = whiten(values)
    assert found.turn.shape == (DIM + 30, DIM)
    # those of least variance go
    assert np.abs(found.turn[0]).max() < 0.05 * np.abs(found.turn[-1]).max() * (DIM + 30)


@pytest.mark.parametrize("step", [1, 13, 200])
def test_blocks_leave_no_trace(step):
    values = mixed()
    whole, parts = whiten(values, 1000)(values), whiten(values, step)(values)
    assert np.allclose(whole @ whole.T, parts @ parts.T, atol=1e-8)
