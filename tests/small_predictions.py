"""Predictions of made-up runs for made-up test galaxies, as evaluation is given them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import metrics

EDGES = np.linspace(0, 0.4, 181)
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
FIRST_ID = 1237648720693755918


def make_catalog(path: Path, count: int = 60, training: int = 240, seed: int = 0) -> pd.DataFrame:
    """`count` test galaxies, then `training` of train; every tenth has no photo-z."""
    random = np.random.default_rng(seed)
    total = count + training
    z = np.clip(random.gamma(4, 0.028, total), 0.01, 0.35)
    e_bv = random.gamma(2, 0.03, total)
    table = pd.DataFrame({
        "objID": FIRST_ID + 7 * np.arange(total),
        "split": np.where(np.arange(total) < count, "test", "train"),
        "z": pd.array(z, "Float64"),
        "photoz": z + 0.014 * (1 + z) * random.standard_t(5, total),
        "photozErr": np.full(total, 0.016),
        "petroMag_r": 16.2 + 1.6 * random.random(total) ** 0.5,
        "psfWidth_r": random.choice([1.1, 1.2, 1.3], total),
    })  # fmt: skip
    table.loc[::10, "photoz"] = -9999.0
    for band, per_e_bv in zip("ugriz", (5.155, 3.793, 2.751, 2.086, 1.479), strict=True):
        table[f"extinction_{band}"] = per_e_bv * e_bv
    table["dered_petro_r"] = table["petroMag_r"] - table["extinction_r"]
    table.to_parquet(path, index=False)
    return table


def make_pdf(z_phot: np.ndarray, width: float) -> np.ndarray:
    """Gaussians in 180 bins over 0..0.4, (n, 180)."""
    pdf = np.exp(-0.5 * ((CENTRES - z_phot[:, None]) / width) ** 2) + 1e-12
    return pdf / pdf.sum(axis=1, keepdims=True)


def write_run(folder, catalog, start, fraction, seed, sigma, own=0.3) -> Path:
    """predictions.parquet of a run of scatter `sigma`, most of it common to all runs."""
    test = catalog[catalog["split"] == "test"]
    z = test["z"].to_numpy(dtype=float)
    common = np.random.default_rng(0).normal(size=len(z)) * np.sqrt(1 - own**2)
    alone = np.random.default_rng([seed, round(1e4 * fraction), *start.encode()])
    pdf = make_pdf(z + sigma * (1 + z) * (common + own * alone.normal(size=len(z))), 1.1 * sigma)
    rows = pd.DataFrame({
        "objID": test["objID"], "split": "test", "z": z, "z_phot": pdf @ CENTRES,
        "z_width": 1.1 * sigma, "crps": metrics.crps(pdf, EDGES, z),
        "pit": metrics.pit(pdf, EDGES, z),
    })  # fmt: skip
    valid = rows.head(3)
    valid = valid.assign(objID=rows["objID"].max() + 1 + np.arange(len(valid)), split="valid")
    path = Path(folder) / start / f"{fraction:g}-{seed}" / "predictions.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([valid, rows]).sort_values("objID").to_parquet(path, index=False)
    return path


def write_runs(folder, catalog, fractions=(0.05, 0.25, 1.0), seeds=(0,), better=0.6) -> list[Path]:
    """Runs of supervised and, `better` times its sigma at the fewest labels, of moco."""
    paths = []
    for fraction in fractions:
        supervised = 0.01 * fraction**-0.25
        for seed in seeds:
            gain = better ** (1 - np.log(fraction / fractions[0]) / np.log(1 / fractions[0]))
            paths.append(write_run(folder, catalog, "supervised", fraction, seed, supervised))
            paths.append(write_run(folder, catalog, "moco", fraction, seed, gain * supervised))
    return paths
