"""Positions on the sky: unit vectors, pairs of neighbours, duplicates, Galactic latitude."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree


def unit_vectors(ra, dec) -> np.ndarray:
    """Unit vectors, shape (n, 3), of `ra`, `dec` [deg]: no seam at RA 0, no pole."""
    ra, dec = np.radians(np.asarray(ra, np.float64)), np.radians(np.asarray(dec, np.float64))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def chord(angle: float) -> float:
    """Length of the chord between unit vectors that are `angle` [deg] apart."""
    return 2 * np.sin(np.radians(angle) / 2)


def galactic_latitude(ra, dec) -> np.ndarray:
    """Galactic b [deg] of `ra`, `dec` [deg, J2000], by the pole that IAU 1958 fixed.

    North Galactic pole at 192.85948, +27.12825 deg (Hipparcos catalogue, ESA 1997, vol. 1, 1.5.3).
    """
    return np.degrees(
        np.arcsin(np.clip(unit_vectors(ra, dec) @ unit_vectors(192.85948, 27.12825), -1, 1))
    )


def near(ra, dec, other_ra, other_dec, radius: float) -> np.ndarray:
    """Which of the positions have one of the others within `radius` [deg]; bool, shape (n,)."""
    if not len(ra) or not len(other_ra):
        return np.zeros(len(ra), dtype=bool)
    tree = cKDTree(unit_vectors(other_ra, other_dec))
    limit = chord(radius)
    beyond = max(np.nextafter(limit, 3), 1e-150)  # the bound itself is not found, nor its square 0
    distance, _ = tree.query(unit_vectors(ra, dec), distance_upper_bound=beyond)
    return distance <= limit


def duplicates(ra, dec, order, radius: float) -> np.ndarray:
    """Which rows to remove so that no two of the rest lie within `radius` [deg]; bool, shape (n,).

    `order` (n,) ranks the rows, all different: the row of the lowest rank stays, whatever is
    near it goes, and so on with the next that is left. So the result does not depend on the
    order of the rows.
    """
    removed = np.zeros(len(ra), dtype=bool)
    tree = cKDTree(unit_vectors(ra, dec))
    pairs = tree.query_pairs(chord(radius), output_type="ndarray")
    rank = np.asarray(order)
    swap = rank[pairs[:, 0]] > rank[pairs[:, 1]]
    pairs[swap] = pairs[swap][:, ::-1]
    pairs = pairs[np.lexsort((rank[pairs[:, 1]], rank[pairs[:, 0]]))]
    for keep, drop in pairs.tolist():
        if not removed[keep]:
            removed[drop] = True
    return removed
