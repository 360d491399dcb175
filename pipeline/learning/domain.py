"""What a model was trained on, and how far from it a galaxy lies.

A model keeps, of the galaxies it learnt from, the range of their colours and redshifts and the
features of up to `KEPT` of them. So a catalogue can say of a galaxy anywhere that the model knows
nothing like it, with no need of the training set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from pipeline.learning import colours
from pipeline.survey.hashing import mix64

NEIGHBOURS = 10
KEPT = 4096
"""Training galaxies whose features a model keeps at most."""
PERCENTILES = (0.5, 99.5)
"""Of the training galaxies' colours; and, the upper one, of the scores of galaxies like them."""
MARGIN = 0.1
"""How far [mag] beyond those percentiles a colour or magnitude must lie to be flagged."""


@dataclass(frozen=True)
class Domain:
    """The galaxies that a model was trained on."""

    colours: np.ndarray
    """(2, 5) percentiles of `colours.NAMES` [mag]."""
    redshifts: np.ndarray
    """(2,) least and greatest."""
    objid: np.ndarray
    """(m,) int64, of the galaxies whose features are kept."""
    features: np.ndarray
    """(m, D) float16, of unit length."""
    limit: float = np.inf
    """Outlier score that all but 0.5 % of the galaxies like those trained on stay below."""

    @cached_property
    def _known(self) -> np.ndarray:
        return np.ascontiguousarray(self.features.astype(np.float32).T)

    def score(self, features: np.ndarray, objid: np.ndarray) -> np.ndarray:
        """Outlier score (n,) of features (n, D): mean of 1 - cosine to the nearest 10 kept ones.

        A galaxy is not its own neighbour. NaN where no other galaxy is kept.
        """
        alike = _unit(features).astype(np.float32) @ self._known
        alike[objid[:, None] == self.objid[None]] = -np.inf
        last = max(alike.shape[1] - NEIGHBOURS, 0)
        nearest = np.partition(alike, last, axis=1)[:, last:].astype(np.float64)
        nearest.sort(axis=1)  # so that the sum does not depend on how they were partitioned
        there = np.isfinite(nearest)
        total = np.where(there, 1 - nearest, 0).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return total / there.sum(axis=1)

    def beyond(self, measured: np.ndarray, z_phot: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Whether (n,) galaxies lie beyond what the model was trained on.

        True where a colour or the magnitude of `measured` (n, 5) lies more than `MARGIN` outside
        the percentiles, where `z_phot` lies outside the redshifts, or where `score` is above the
        limit.
        """
        low, high = self.colours
        outside = ((measured < low - MARGIN) | (measured > high + MARGIN)).any(axis=1)
        outside |= (z_phot < self.redshifts[0]) | (z_phot > self.redshifts[1])
        return outside | (score > self.limit)


def describe(objid: np.ndarray, features: np.ndarray, measured: np.ndarray, z: np.ndarray):
    """The `Domain` of training galaxies: ids (n,), features (n, D), colours (n, 5), z (n,).

    Which galaxies' features are kept follows from a hash of their ids. The limit is that of the
    training galaxies among themselves; `with_limit` takes better ones.
    """
    kept = np.sort(np.argsort(mix64(objid), kind="stable")[:KEPT])
    found = Domain(
        np.percentile(measured, PERCENTILES, axis=0).astype(np.float64),
        np.array([z.min(), z.max()], dtype=np.float64),
        objid[kept],
        _unit(features[kept]).astype(np.float16),
    )
    return with_limit(found, features, objid)


def with_limit(domain: Domain, features: np.ndarray, objid: np.ndarray) -> Domain:
    """`domain` with the limit that 0.5 % of these galaxies (best: of valid) lie above."""
    scores = np.concatenate(
        [domain.score(features[at : at + 1024], objid[at : at + 1024])
         for at in range(0, len(objid), 1024)]
    )  # fmt: skip
    scores = scores[np.isfinite(scores)]
    limit = float(np.percentile(scores, PERCENTILES[1])) if len(scores) else np.inf
    return Domain(domain.colours, domain.redshifts, domain.objid, domain.features, limit)


def _unit(features: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return features / np.maximum(length, np.finfo(np.float32).tiny)


def to_state(domain: Domain | None) -> dict | None:
    """Tensors and numbers that hold `domain` in a file."""
    if domain is None:
        return None
    names = ("colours", "redshifts", "objid", "features")
    arrays = {name: torch.from_numpy(np.ascontiguousarray(getattr(domain, name))) for name in names}
    return arrays | {"limit": domain.limit, "names": list(colours.NAMES)}


def from_state(state: dict | None) -> Domain | None:
    """The inverse of `to_state`."""
    if state is None:
        return None
    names = ("colours", "redshifts", "objid", "features")
    return Domain(*(state[name].numpy() for name in names), state["limit"])
