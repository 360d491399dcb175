"""Small sets of stamps whose light tells the redshift, and small nets to learn it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from small_sets import make_catalog

from pipeline.images.reader import ImageSet, open_set
from pipeline.images.shard import ShardWriter
from pipeline.images.stamp import Stamp
from pipeline.learning.encoder import Encoder, EncoderSpec, seeded
from pipeline.learning.redshift import Bins, PhotozNet

STAMP = Stamp(size=47)
SPEC = EncoderSpec("resnet10", 0.125, crop=32, bin=2)
NET_FLAGS = ["--net", "resnet10", "--width", "0.125", "--crop", "32", "--bin", "2"]


def galaxy_catalog(count: int = 160, labelled: float = 0.8, seed: int = 0) -> pd.DataFrame:
    """As `make_catalog`; the extinctions are those of one E(B-V)."""
    table = make_catalog(count, shards=1, labelled=labelled, seed=seed)
    e_bv = np.random.default_rng(seed).uniform(0, 0.1, count)
    for band, ratio in zip("ugriz", (5.155, 3.793, 2.751, 2.086, 1.479), strict=True):
        table[f"extinction_{band}"] = ratio * e_bv
    return table


def write_galaxies(path: Path, table: pd.DataFrame, seed: int = 0) -> Path:
    """A shard of round blobs: redder and fainter with z (0.1 where there is none)."""
    place = np.arange(STAMP.size) - STAMP.size // 2
    blob = np.exp(-0.5 * (place[:, None] ** 2 + place[None] ** 2) / 3.0**2)[None]
    random = np.random.default_rng(seed)
    with ShardWriter(path, table, STAMP) as writer:
        for row, z in enumerate(table["z"].to_numpy(dtype=float, na_value=0.1)):
            flux = np.array([1.0, 2.0, 3.0, 3.5, 4.0]) * np.exp(-np.array([9, 6, 3, 2, 1]) * z)
            noise = random.normal(0, 0.02, (5, STAMP.size, STAMP.size))
            image = flux[:, None, None] * blob + noise
            writer.append(row, {"images": image}, np.ones(5), np.full(5, 0.02))
    return path


def galaxies(folder: Path, **options) -> ImageSet:
    """Such a set, opened."""
    folder.mkdir(parents=True, exist_ok=True)
    return open_set(write_galaxies(folder / "galaxies.h5", galaxy_catalog(**options)))


def small_net(seed: int = 0, bins: Bins | None = None) -> PhotozNet:
    """A ResNet10 of eight channels for 32 px, binned."""
    with seeded(seed):
        return PhotozNet(Encoder(SPEC), bins or Bins(), seed)
