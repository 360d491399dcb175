"""Predicted types of made-up galaxies, as evaluation is given them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

FIRST_ID = 1237648720693755918
STARTS = {"supervised": 1.0, "simclr": 2.2, "moco": 2.0, "pca": 1.4}
"""How far apart a start's classes are with 100 labels, in standard deviations of each."""


def truth(count: int, seed: int = 0, share: float = 0.35) -> pd.DataFrame:
    """`count` test galaxies: objID and early."""
    early = np.random.default_rng(seed).random(count) < share
    return pd.DataFrame({"objID": FIRST_ID + 7 * np.arange(count), "early": early})


def chances(early: np.ndarray, apart: float, random: np.random.Generator) -> np.ndarray:
    """p_early (n,) of classes whose logits are Gaussians `apart` standard deviations apart."""
    logit = random.normal(size=len(early)) + apart * (early - 0.5)
    return 1 / (1 + np.exp(-apart * logit))


def write_types(
    folder, galaxies: pd.DataFrame, start: str, seed: int = 0, labels=(100, 300, 1000), apart=None
) -> Path:
    """predictions-{seed}.parquet of a start: better with more labels, seeds alike in part."""
    early = galaxies["early"].to_numpy()
    common = np.random.default_rng(0).normal(size=len(early))
    parts = []
    for count in labels:
        alone = np.random.default_rng([seed, count, *start.encode()]).normal(size=len(early))
        far = (apart or STARTS[start]) * (count / 100) ** 0.2
        logit = 0.8 * common + 0.6 * alone + far * (early - 0.5)
        valid = pd.DataFrame({
            "objID": galaxies["objID"].max() + 1 + np.arange(5), "split": "valid",
            "labels": count, "early": True, "p_early": 0.01,
        })  # fmt: skip
        test = galaxies.assign(split="test", labels=count, p_early=1 / (1 + np.exp(-far * logit)))
        parts += [valid, test[valid.columns]]
    path = Path(folder) / start / f"predictions-{seed}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(parts).to_parquet(path, index=False)
    return path
