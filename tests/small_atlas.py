"""A small atlas of made-up galaxies, without the map having been computed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.similarity.atlas_page import thumbnail

FIRST_ID = 1237648720693755918


def make_atlas(count: int = 30, types: bool = True) -> pd.DataFrame:
    """Galaxies on a grid of the map; every third is early, late, unknown, every fifth has no z."""
    at = np.arange(count)
    names = np.array(["early", "late", None], dtype=object)[at % 3]
    return pd.DataFrame(
        {
            "objID": FIRST_ID + 11 * at, "x": (at % 6).astype(np.float32),
            "y": (at // 6).astype(np.float32), "split": np.where(at % 2, "train", "test"),
            "z": np.where(at % 5, 0.01 * at, np.nan), "photoz": 0.2, "petroMag_r": 15 + 0.1 * at,
            "type": pd.array(names if types else [None] * count, dtype="str"),
            "ra": 150 + 0.1 * at, "dec": -0.5 + 0.1 * at,
        }
    )  # fmt: skip


def make_stamps(table: pd.DataFrame, size: int = 21) -> pd.Series:
    """A thumbnail of noise for each galaxy of a table, each another, by objID."""
    random = np.random.default_rng(0)
    images = random.normal(0.2, 0.2, (len(table), 5, size, size)).astype(np.float32)
    made = [thumbnail(image) for image in images]
    return pd.Series(made, table["objID"].to_numpy(), dtype=object)
