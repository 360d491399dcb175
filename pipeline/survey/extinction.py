"""Galactic extinction in the SDSS bands: the coefficients of DR12 and of Schlafly & Finkbeiner."""

from __future__ import annotations

import numpy as np

R_DR12 = np.array([5.155, 3.793, 2.751, 2.086, 1.479])
"""A_b / E(B-V) behind DR12's extinction_* columns (SFD98), u g r i z."""

R_SF11 = np.array([4.239, 3.303, 2.285, 1.698, 1.263])
"""A_b / E(B-V)_SFD for R_V = 3.1 (Schlafly & Finkbeiner 2011, table 6), u g r i z."""


def e_bv(extinction) -> np.ndarray:
    """E(B-V) [mag], shape (...), from DR12's extinctions, shape (..., 5), as their mean ratio."""
    return np.mean(np.asarray(extinction, dtype=np.float64) / R_DR12, axis=-1)
