"""Outliers: galaxies ranked by how alone they are among the representations."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.similarity.neighbours import APART, nearest


def outlier_score(
    vectors: np.ndarray, positions: np.ndarray, k: int = 10, apart: float = APART
) -> np.ndarray:
    """How alone each galaxy is: 1 - its mean similarity to its `k` nearest; float64, (n,).

    `vectors` (n, d) are of unit length, `positions` (n, 2) RA and Dec [deg]; whatever lies
    within `apart` [arcsec] of a galaxy does not count. 0 is a galaxy with `k` doubles.

    Raises:
        UserError: a galaxy has fewer than `k` others to choose from.
    """
    return loneliness(nearest(vectors, positions, k, apart=apart).similarity)


def loneliness(similarity: np.ndarray) -> np.ndarray:
    """The score of `outlier_score` from the similarities (n, k) of the nearest neighbours."""
    return 1 - similarity.mean(axis=1)


def rank(galaxies: pd.DataFrame, score: np.ndarray) -> pd.DataFrame:
    """`galaxies` with the column `outlier_score`, most alone first; equals by objID.

    `outlier_rank` counts from 1.
    """
    table = galaxies.assign(outlier_score=score)
    table = table.sort_values(["outlier_score", "objID"], ascending=[False, True])
    table.insert(1, "outlier_rank", np.arange(1, len(table) + 1))
    return table.reset_index(drop=True)
