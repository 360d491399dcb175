"""Small catalogues and shards of random stamps, as the stages under test are given them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.images.shard import ShardWriter, image_problems, schema_problems
from pipeline.images.stamp import Stamp
from pipeline.survey.names import BANDS, pack_objid

STAMP = Stamp(size=11)


def make_catalog(count: int, shards: int = 2, labelled: float = 0.7, seed: int = 0) -> pd.DataFrame:
    """`count` galaxies in frame order, `labelled` of them with a redshift, in `shards` shards."""
    random = np.random.default_rng(seed)
    field = np.sort(random.integers(100, 110, count))
    spec = random.random(count) < labelled
    z = np.where(spec, random.uniform(0.02, 0.3, count), np.nan)
    table = pd.DataFrame(
        {
            "objID": pack_objid(3900, 3, field, np.arange(count) + 1),
            "specObjID": pd.array(np.where(spec, 10**18 + np.arange(count), 0), "Int64"),
            "ra": (359.8 + (field - 100) * 0.05 + random.uniform(0, 0.05, count)) % 360,
            "dec": random.uniform(-0.1, 0.1, count),
            "run": 3900, "rerun": 301, "camcol": 3, "field": field,
            "z": pd.array(z, "Float64"), "zErr": pd.array(z * 1e-3, "Float64"),
            "photoz": np.where(spec, z, 0.1) + random.normal(0, 0.01, count),
            "shard": np.arange(count) * shards // max(count, 1),
        }
    )  # fmt: skip
    for at, band in enumerate(BANDS):
        table[f"extinction_{band}"] = random.uniform(0.02, 0.3, count)
        table[f"psfWidth_{band}"] = 1.2 + 0.05 * at
        for kind in ("petroMag", "modelMag"):
            table[f"{kind}_{band}"] = 19 - 0.5 * at + random.normal(0, 0.7, count)
    table["dered_petro_r"] = table["petroMag_r"] - table["extinction_r"]
    split = random.choice(["train", "train", "train", "valid", "test"], count)
    table["split"] = np.where(spec, split, "unlabelled")
    return table


def write_shard(path, galaxies, failed=(), seed=0, dtype="float32", stamp=STAMP, attrs=None):
    """Write one shard of random stamps; rows in `failed` get no stamp but a reason."""
    with ShardWriter(path, galaxies, stamp, dtype, attrs=attrs) as writer:
        for row in range(len(galaxies)):
            if row in failed:
                writer.fail(row, "frame is missing" if row % 3 else "frame is truncated")
                continue
            random = np.random.default_rng([seed, int(galaxies.objID.iloc[row]) & 0xFFFFFFFF])
            image = random.normal(0.01, [[[0.05]], [[0.02]], [[0.03]], [[0.04]], [[0.15]]],
                                  (5, stamp.size, stamp.size))  # fmt: skip
            coverage = np.ones(5)
            if row % 10 == 9:
                image[0, :2], coverage[0] = 0, 1 - 2 / stamp.size
            writer.append(row, {"images": image}, coverage, np.full(5, 0.05))
    return Path(path)


def write_set(folder: Path, catalog: pd.DataFrame, failed=(), **options) -> list[Path]:
    """Write catalog.parquet, catalog.json and a shard for each number in the column `shard`."""
    (folder / "cutouts").mkdir(parents=True, exist_ok=True)
    catalog.to_parquet(folder / "catalog.parquet", index=False)
    (folder / "catalog.json").write_text(json.dumps(FUNNEL))
    failed = set(failed)
    paths = []
    for number in sorted(catalog["shard"].unique()):
        rows = np.flatnonzero(catalog["shard"] == number)
        lost = [at for at, row in enumerate(rows) if row in failed]
        path = folder / "cutouts" / f"{number:04d}.h5"
        paths.append(write_shard(path, catalog.iloc[rows], lost, **options))
    return paths


FUNNEL = {
    "survey": "test",
    "samples": {
        "labelled": [
            {"step": "query", "count": 60, "removed": 0, "paper": 547224},
            {"step": "repeat spectra", "count": 42, "removed": 18, "paper": 502977},
        ],
        "unlabelled": [
            {"step": "query", "count": 30, "removed": 0, "paper": None},
            {"step": "|b| >= 15 deg", "count": 18, "removed": 12, "paper": None},
        ],
    },
}


def problems(file):
    """All that is wrong with an open shard, in words; what the stage dataset asks of it."""
    return schema_problems(file) or image_problems(file)
