"""A map of representations in two dimensions, as in Fig. 2 of Sarmiento et al. 2020: UMAP.

McInnes, Healy & Melville 2018 (arXiv:1802.03426). What lies side by side on the map is alike;
distances across it, and the axes themselves, mean nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from pipeline import run
from pipeline.similarity.neighbours import nearest
from pipeline.survey.hashing import mix64

_SAMPLE_ORDER = 0xA71A5
"""What the order of a sample is hashed with, so that it has nothing to do with the splits'."""


@dataclass(frozen=True)
class Projection:
    """How vectors become a map."""

    neighbours: int = 15
    """Of each galaxy, itself counted; few show detail, many the whole."""
    min_dist: float = 0.1
    """How close points may lie on the map, 0 to 1 (of its own unit)."""
    seed: int = 0

    def __post_init__(self):
        if self.neighbours < 2:
            raise run.UserError(f"neighbours: {self.neighbours}; give 2 or more")
        if not 0 <= self.min_dist <= 1:
            raise run.UserError(f"min_dist: {self.min_dist:g}; give a number from 0 to 1")
        if not 0 <= self.seed < 1 << 32:
            raise run.UserError(f"seed: {self.seed}; give 0 or more, below 2**32")


def sample(objid: np.ndarray, count: int) -> np.ndarray:
    """Rows of `count` galaxies (0: all), in their own order, chosen by a hash of objID (n,) alone.

    A smaller sample is part of any larger one.
    """
    if not 0 < count < len(objid):
        return np.arange(len(objid))
    order = np.argsort(mix64(objid, _SAMPLE_ORDER), kind="stable")
    return np.sort(order[:count])


def project(unit: np.ndarray, positions: np.ndarray, how: Projection) -> np.ndarray:
    """The place on the map (n, 2), float32, of vectors (n, d) of unit length, by their cosine.

    `positions` (n, 2) are RA and Dec [deg]. Neighbours are exact, and all that adds up numbers
    has one thread: the map is the same on any number of cores.

    Raises:
        UserError: there are no more galaxies than neighbours.
    """
    if len(unit) <= how.neighbours:
        raise run.UserError(
            f"neighbours: {how.neighbours}, but the map has {len(unit)} galaxies; give fewer "
            "neighbours or more galaxies"
        )
    found = nearest(unit, positions, how.neighbours - 1, apart=0)
    rows = np.column_stack([np.arange(len(unit)), found.rows])  # UMAP counts a galaxy itself
    apart = np.column_stack([np.zeros(len(unit)), 1 - found.similarity]).clip(0)
    return _umap(unit, rows, apart.astype(np.float32), how)


def _umap(unit: np.ndarray, rows: np.ndarray, apart: np.ndarray, how: Projection) -> np.ndarray:
    """The map of vectors whose neighbours (n, k) are known."""
    # seconds of compiling, which what is refused need not wait for
    import numba
    import umap
    from threadpoolctl import threadpool_limits

    init = "spectral" if len(unit) > 3 else "random"  # fewer have too few eigenvectors
    model = umap.UMAP(
        n_neighbors=how.neighbours, min_dist=how.min_dist, metric="cosine",
        init=init, random_state=how.seed, n_jobs=1, precomputed_knn=(rows, apart),
    )  # fmt: skip
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with threadpool_limits(1), warnings.catch_warnings():
            # that new galaxies cannot be put on this map; none are
            warnings.filterwarnings("ignore", module="umap")
            return model.fit_transform(unit).astype(np.float32)
    finally:
        numba.set_num_threads(threads)
