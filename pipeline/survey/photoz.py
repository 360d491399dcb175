"""Redshifts from magnitudes as DR12's table Photoz has them: a fit to the galaxies most alike."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

NEIGHBOURS = 100


def local_linear(mags: np.ndarray, reference: np.ndarray, z: np.ndarray) -> pd.DataFrame:
    """Redshifts from magnitudes (n, 5), by Beck et al. (2016), section 3.

    `mags` (n, 5) and `reference` (m, 5) are dereddened u g r i z [mag], `z` (m,) the redshifts of
    the latter. A plane is fitted to the redshifts of the 100 nearest references in r and the four
    colours, each scaled by its scatter; those beyond three times the rms are dropped and the plane
    is fitted again. Columns z, zErr (rms about the plane), nnCount (references used),
    photoErrorClass (1 within the box of its neighbours, -1 outside), nnAvgZ. Where a magnitude is
    missing: -9999, nnCount 0.
    """
    seen, known = features(mags), features(reference)
    scale = known.std(axis=0)
    scale[scale == 0] = 1  # a colour that all have tells nothing
    tree = cKDTree(known / scale)
    rows = []
    for magnitudes, at in zip(mags, seen, strict=True):
        if not np.all(magnitudes > -1000):
            rows.append((-9999.0, -9999.0, 0, -9999, -9999.0))
            continue
        near = tree.query(at / scale, min(NEIGHBOURS, len(known)))[1]
        rows.append(_local_fit(at, known[near], z[near]))
    return pd.DataFrame(rows, columns=["z", "zErr", "nnCount", "photoErrorClass", "nnAvgZ"])


def features(mags: np.ndarray) -> np.ndarray:
    """r and the colours u-g, g-r, r-i, i-z of magnitudes (n, 5); (n, 5)."""
    return np.column_stack([mags[:, 2], -np.diff(mags, axis=1)])


def _local_fit(at: np.ndarray, known: np.ndarray, z: np.ndarray) -> tuple:
    keep = np.ones(len(z), bool)
    for _ in range(2):
        design = np.column_stack([np.ones(keep.sum()), known[keep] - at])
        plane = np.linalg.lstsq(design, z[keep], rcond=None)[0]
        left = z - plane[0] - (known - at) @ plane[1:]
        error = np.sqrt(np.mean(left[keep] ** 2))
        again = np.abs(left) <= 3 * error
        if again.sum() < 20 or np.array_equal(again, keep):
            break
        keep = again
    inside = np.all((at >= known.min(axis=0)) & (at <= known.max(axis=0)))
    return float(plane[0]), float(error), int(keep.sum()), 1 if inside else -1, float(z.mean())
