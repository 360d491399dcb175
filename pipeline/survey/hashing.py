"""A hash of 64-bit integers: what is drawn for a galaxy depends on its id and on nothing else."""

from __future__ import annotations

import numpy as np


def mix64(values, seed: int = 0) -> np.ndarray:
    """SplitMix64's output function of `values` (any 64-bit integers) under `seed`; uint64.

    Steele, Lea & Flood 2014 (OOPSLA), section 5; the seed enters as the hash of itself.
    """
    values = np.asarray(values)
    if values.dtype != np.uint64:
        values = values.astype(np.int64).view(np.uint64)
    if seed:
        values = values ^ mix64(np.asarray([seed]))[0]
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def draw(ids, seed: int = 0) -> np.ndarray:
    """A number in [0, 1) for each id, the same wherever and whenever it is drawn."""
    return (mix64(ids, seed) >> np.uint64(11)) * 2.0**-53
