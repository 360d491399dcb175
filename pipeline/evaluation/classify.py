"""How well probabilities tell two classes apart, in many resamples of the galaxies at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline import metrics, run
from pipeline.evaluation.intervals import Bootstrap

MEASURES = ("accuracy", "precision", "recall", "roc_auc")
"""Precision and recall are those of early types, the positive class."""
THRESHOLD = 0.5
"""A galaxy is called early where p_early is this or more."""


class _Order(NamedTuple):
    """What the area under a ROC curve needs of one prediction: who stands before whom."""

    late: np.ndarray
    """(l,) the late galaxies in the order of p_early."""
    below: np.ndarray
    """(e,) how many of them have less than each early galaxy has."""
    up_to: np.ndarray
    """(e,) and how many have less or as much."""


class Classified:
    """Predictions of the same n galaxies, made ready to be measured under any weights of these.

    Args:
        early: (n,) bool, the truth.
        predictions: p_early (n,) of each of r runs.
    """

    def __init__(self, early: np.ndarray, predictions: Sequence[np.ndarray]):
        self._early, self._late = np.flatnonzero(early), np.flatnonzero(~early)
        called = np.stack(predictions, axis=1) >= THRESHOLD
        self._called = called.astype(np.float64)
        self._right = (called & early[:, None]).astype(np.float64)
        self._orders = [self._order(chances) for chances in predictions]

    def _order(self, chances: np.ndarray) -> _Order:
        late = self._late[np.argsort(chances[self._late], kind="stable")]
        sides = (np.searchsorted(chances[late], chances[self._early], side)
                 for side in ("left", "right"))  # fmt: skip
        return _Order(*(one.astype(np.int32) for one in (late, *sides)))

    def measure(self, weights: np.ndarray | None = None) -> np.ndarray:
        """`MEASURES` of each run, (r, 4, b), under b weightings of the galaxies, (b, n) int32.

        Weights are how often a galaxy was drawn; without them each counts once, (r, 4, 1). NaN is
        what is undefined: precision where none is called early, recall and roc_auc where a class
        has no member.
        """
        if weights is None:
            weights = np.ones((1, len(self._called)), np.int32)
        early = np.ascontiguousarray(weights[:, self._early])
        total, positive = weights.sum(axis=1), early.sum(axis=1)
        exact = weights.astype(np.float64)
        called, right = (exact @ self._called).T, (exact @ self._right).T
        wrong = called - right + positive - right
        with np.errstate(invalid="ignore"):
            area = np.stack([self._area(weights, early, order) for order in self._orders])
            found = [
                (total - wrong) / total,
                right / called,
                right / positive,
                area / (positive * (total - positive).astype(np.float64)),
            ]
        return np.stack(found, axis=1)

    def _area(self, weights: np.ndarray, early: np.ndarray, order: _Order) -> np.ndarray:
        """Mann & Whitney's U, (b,): pairs in which the early galaxy has more, ties half."""
        before = np.zeros((len(weights), len(order.late) + 1), np.int32)
        np.cumsum(np.take(weights, order.late, axis=1), axis=1, out=before[:, 1:])
        twice = np.take(before, order.below, axis=1)
        twice += np.take(before, order.up_to, axis=1)
        return np.einsum("bn,bn->b", early, twice, dtype=np.float64) / 2


def draw(
    classified: Classified, galaxies: int, how: Bootstrap, progress: run.Progress | None = None
) -> np.ndarray:
    """`MEASURES` of each run under bootstrap resamples of the galaxies, (r, 4, number).

    All runs see the same resamples, so that differences of draws are paired.
    """
    found = []
    for block in metrics.resamples(galaxies, how.number, how.seed):
        found.append(classified.measure(_counts(block, galaxies)))
        if progress is not None:
            progress.add(len(block))
    return np.concatenate(found, axis=-1)


def _counts(block: np.ndarray, galaxies: int) -> np.ndarray:
    """How often each galaxy was drawn, (b, galaxies) int32, of row numbers (b, galaxies)."""
    counts = np.empty((len(block), galaxies), np.int32)
    for row, drawn in zip(counts, block, strict=True):
        row[:] = np.bincount(drawn, minlength=galaxies)
    return counts


def roc(early: np.ndarray, chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC curve: share of the late galaxies called early, and of the early ones, both rising.

    A point for each threshold that differs, from (0, 0) to (1, 1).
    """
    order = np.argsort(-chances, kind="stable")
    last = np.append(np.flatnonzero(np.diff(chances[order])), len(order) - 1)
    right = np.cumsum(early[order])[last]
    wrong = last + 1 - right
    return np.append(0, wrong / wrong[-1]), np.append(0, right / right[-1])
