"""A small set of stamps with a dataset.json, small encoders, and files of vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import small_sets

from pipeline.dataset import summarise
from pipeline.images.stamp import Stamp
from pipeline.run import write_json

STAMP = Stamp(size=13)
CROP = 8


def make_set(folder: Path, count: int = 40, labelled: float = 0.7) -> Path:
    """Write `count` stamps of 13 pixels in two shards; the path of their dataset.json."""
    catalog = small_sets.make_catalog(count, labelled=labelled)
    shards = small_sets.write_set(folder, catalog, stamp=STAMP)
    write_json(summarise(shards, catalog, folder, survey="test"), folder / "dataset.json")
    return folder / "dataset.json"


def unit(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Random vectors of unit length, float32."""
    values = random.standard_normal((count, size))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
