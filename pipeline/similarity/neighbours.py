"""Exact nearest neighbours by dot product, without the galaxy itself and its own pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import faiss
import numpy as np
from scipy.spatial import cKDTree

from pipeline import run
from pipeline.survey.positions import chord, unit_vectors

APART = 25.0
"""Arcsec within which two entries may be one object, or share most of a stamp."""
_BLOCK = 4096
"""Queries at a time."""
_SPARE = 8
"""Candidates beyond those needed, so that the last place is seldom within rounding."""
_MOST = 1024
"""Candidates at most; a longer row of equals is cut where faiss has cut it."""
_ROUNDING = 4e-6
"""What faiss' float32 dot product of unit vectors may be off by."""


class Neighbours(NamedTuple):
    """The k nearest of each query, nearest first: both of shape (queries, k)."""

    rows: np.ndarray
    """int64, rows of the vectors that were searched."""
    similarity: np.ndarray
    """float64, the dot product of the two unit vectors."""


def nearest(
    vectors: np.ndarray,
    positions: np.ndarray,
    k: int,
    queries: np.ndarray | None = None,
    base: np.ndarray | None = None,
    objid: np.ndarray | None = None,
    apart: float = APART,
) -> Neighbours:
    """The `k` nearest neighbours of the rows `queries` among the rows `base`; all without them.

    `vectors` (n, d) are float32 of unit length, `positions` (n, 2) RA and Dec [deg]. A galaxy
    is no neighbour of itself, nor is one closer to it on the sky than `apart` [arcsec]. Equal
    similarities go in the order of `objid` (of the rows, without it). The search itself is
    faiss's, in float32; what it finds is measured again in float64 and ordered by that, so that
    blocks and threads leave no trace.

    Raises:
        UserError: a query has fewer than `k` galaxies to choose from.
    """
    queries = np.arange(len(vectors)) if queries is None else np.asarray(queries)
    held = vectors if base is None else vectors[base]
    base = np.arange(len(vectors)) if base is None else np.asarray(base)
    objid = np.arange(len(vectors)) if objid is None else np.asarray(objid)
    points = unit_vectors(*np.asarray(positions, np.float64).reshape(-1, 2).T)
    crowd = _crowd(points, queries, base, apart)
    _refuse_too_few(k, len(base) - crowd, objid[queries])
    search = _Search(vectors, held, base, points, objid, k, chord(apart / 3600))
    result = Neighbours(
        np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float64)
    )
    progress = run.Progress("neighbours", len(queries), "galaxies")
    for first in range(0, len(queries), _BLOCK):
        part = slice(first, first + _BLOCK)
        result.rows[part], result.similarity[part] = search.block(queries[part], crowd[part])
        progress.add(len(queries[part]))
    if search.cut:
        run.log.warning(
            "neighbours: %d galaxies have more than %d others as near as their last neighbour; "
            "which of these are kept is chance (has the encoder collapsed?)", search.cut, _MOST,
        )  # fmt: skip
    return result


def _crowd(points, queries, base, apart: float) -> np.ndarray:
    """How many of `base` are no neighbours for each query, itself included; int64."""
    tree = cKDTree(points[base])
    # wider by more than rounding: one counted too many costs nothing, one too few a neighbour
    reach = chord(apart / 3600) * (1 + 1e-6) + 1e-12
    return tree.query_ball_point(points[queries], reach, return_length=True).astype(np.int64)


def _refuse_too_few(k: int, left: np.ndarray, objid: np.ndarray) -> None:
    if k < 1:
        raise run.UserError(f"k = {k}: give the number of neighbours wanted, 1 or more")
    if len(left) and left.min() < k:
        worst = int(left.argmin())
        raise run.UserError(
            f"k = {k} is more than there are: galaxy {objid[worst]} has {left[worst]} others "
            f"to choose from; give a k of at most {left[worst]}"
        )


class _Search:
    """The base, and how a block of queries is put to it."""

    def __init__(self, vectors, held, base, points, objid, k: int, reach: float):
        self.vectors, self.held, self.base = vectors, held, base
        self.points, self.objid, self.k, self.reach = points, objid, k, reach
        self.cut = 0

    def block(self, queries: np.ndarray, crowd: np.ndarray) -> Neighbours:
        """The neighbours of a block: more candidates are asked for until the last is certain."""
        rows = np.empty((len(queries), self.k), np.int64)
        similarity = np.empty((len(queries), self.k))
        open_ = np.arange(len(queries))
        needed = self.k + int(crowd.max(initial=0))
        ask, most = needed + _SPARE, min(max(_MOST, needed), len(self.base))
        while len(open_):
            ask = min(ask, most)
            asked = np.ascontiguousarray(self.vectors[queries[open_]], np.float32)
            close, found = faiss.knn(asked, self.held, ask, faiss.METRIC_INNER_PRODUCT)
            for part in _parts(len(open_), ask * self.held.shape[1]):
                to = open_[part]
                rows[to], similarity[to] = self._best(queries[to], self.base[found[part]])
            certain = similarity[open_, -1] > close[:, -1] + _ROUNDING
            if ask == most:
                self.cut += int(np.sum(~certain)) if most < len(self.base) else 0
                break
            open_, ask = open_[~certain], 4 * ask
        return Neighbours(rows, similarity)

    def _best(self, queries: np.ndarray, candidates: np.ndarray) -> Neighbours:
        """Of `candidates` (n, ask) the k nearest that are other objects, measured in float64."""
        pairs = self.vectors[candidates] * self.vectors[queries][:, None].astype(np.float64)
        similarity = pairs.sum(axis=2)
        apart = np.linalg.norm(self.points[candidates] - self.points[queries][:, None], axis=2)
        same = (candidates == queries[:, None]) | (apart < self.reach)
        key = np.where(same, np.inf, -similarity)
        order = np.lexsort((self.objid[candidates], key), axis=1)[:, : self.k]
        return Neighbours(
            np.take_along_axis(candidates, order, 1), np.take_along_axis(similarity, order, 1)
        )


def _parts(count: int, values: int, room: int = 1 << 22) -> Iterator[slice]:
    """Slices of `count` rows of so many values, `room` values at most in each."""
    step = max(1, room // max(values, 1))
    for first in range(0, count, step):
        yield slice(first, first + step)
