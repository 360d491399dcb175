"""Whitening: vectors turned so that no direction varies more than another (PCA whitening).

Most of the variance of an encoder's features lies in a few directions, and a dot product sees
little else. Divided by its scatter, every direction counts alike, what galaxies seldom differ in
too (Jegou & Chum 2012, ECCV, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

DIM = 128
"""Directions that are kept at most, as many as contrastive vectors have."""
FLAT = 1e-6
"""Directions with less than this share of the largest variance are rounding, and left out."""


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ turn: no correlation, and a variance of 1 in each direction."""

    mean: np.ndarray
    """(D,) float64"""
    turn: np.ndarray
    """(D, d) float64, d <= `DIM`, most variance first; d is 0 where all vectors are the same."""

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(n, D) -> (n, d), float64."""
        return (vectors.astype(np.float64) - self.mean) @ self.turn


def whitening(blocks: Callable[[], Iterator[np.ndarray]]) -> Whitening:
    """The whitening of all rows (n, D) of the arrays that `blocks` gives, twice the same.

    What is in memory does not grow with the number of rows.
    """
    count, total = 0, 0.0
    for block in blocks():
        count += len(block)
        total = total + block.astype(np.float64).sum(axis=0)
    mean = total / max(count, 1)
    covariance = 0.0
    for block in blocks():
        apart = block.astype(np.float64) - mean
        covariance = covariance + apart.T @ apart / count
    variance, directions = np.linalg.eigh(covariance)
    variance, directions = variance[::-1][:DIM], directions[:, ::-1][:, :DIM]
    kept = variance > max(FLAT * variance[0], 0)
    return Whitening(mean, directions[:, kept] / np.sqrt(variance[kept]))
