"""The paper's claims about likeness, put to the test where the truth is known.

`python benchmarks/claims.py RUN` takes the folder of a finished run of a simulated survey
(`surveys/benchmark.yaml`) and asks of its representations

- neighbours: are the five galaxies most alike a test galaxy closer to it in true redshift and
  type than the five nearest in magnitude, colours and size? Median of |dz| / (1 + z) and mean of
  |d type| over test galaxies, paired bootstrap;
- outliers: how many of the 20 and 50 galaxies most alone hold a trail, a cosmic ray or a bleed on
  their stamp, against rankings by flux and by a sigma clip of the stamp.

Its last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from pipeline.images import reader
from pipeline.survey.names import BANDS

NEIGHBOURS = 5
RESAMPLES = 2000
OWN_RADIUS = 25
"""Stamp pixels (10 arcsec) around the centre that belong to the galaxy, for the sigma clip."""
ARTEFACTS = ("trail", "cosmic_ray", "bleed")


def measure(images: reader.ImageSet, block: int = 256) -> pd.DataFrame:
    """What catalogues measure, from the stamps: flux, size and pixels beyond the sky's noise.

    Columns: objID, flux (r, sum over the stamp), r50 (r, radius [pixels] of half of the light
    within 10 arcsec), clipped (pixels outside of 10 arcsec that are more than 5 sigma off the
    sky in any band).
    """
    side = np.arange(images.size) - images.size // 2
    radius = np.hypot(side[:, None], side[None, :])
    own = radius <= OWN_RADIUS
    order = np.argsort(radius[own], kind="stable")
    parts = []
    for first in range(0, len(images), block):
        rows = np.arange(first, min(first + block, len(images)))
        stamps = images.read(rows).astype(np.float32)
        grown = np.cumsum(stamps[:, 2][:, own][:, order], axis=1)
        half = np.argmax(grown >= grown[:, -1:] / 2, axis=1)
        sky = stamps[..., ~own]
        # resampling averages noise: 0.64 of the native pixel's (docs/performance.md)
        limit = 5 * 0.64 * images.sky_noise[rows][:, :, None]
        parts.append(
            pd.DataFrame(
                {
                    "objID": images.objid[rows],
                    "flux": stamps[:, 2].sum(axis=(1, 2)),
                    "r50": radius[own][order][half],
                    "clipped": (np.abs(sky) > limit).any(axis=1).sum(axis=1),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def likeness(table: pd.DataFrame, neighbours: pd.DataFrame, seed: int) -> dict:
    """Neighbours by likeness against neighbours by photometry, for each test galaxy.

    `table` has objID, split, z_true, type and the photometry's columns; `neighbours` is
    neighbours.parquet. Neighbours by photometry come from the same galaxies (the whole set), by
    distance in units of each column's scatter.
    """
    table = table.reset_index(drop=True)
    place = pd.Series(table.index, index=table.objID)
    known = table[["z_true", "type"]].notna().all(axis=1)
    neighbours = neighbours[neighbours["rank"] <= NEIGHBOURS]
    queries = table.index[(table.split == "test") & known].to_numpy()
    photometry = [f"colour_{k}" for k in range(len(BANDS) - 1)] + ["dered_r", "log_r50"]
    columns = table[photometry].fillna(table[photometry].median())
    centre = columns.median()
    scaled = (columns - centre) / (1.4826 * (columns - centre).abs().median())
    scaled = scaled.clip(-8, 8).to_numpy()
    _, near = cKDTree(scaled).query(scaled[queries], k=NEIGHBOURS + 1)
    near = np.array([[k for k in row if k != query][:NEIGHBOURS]
                     for query, row in zip(queries, near, strict=True)])  # fmt: skip
    by_query = neighbours.sort_values(["objID", "rank"]).groupby("objID")["neighbour"]
    alike = np.stack([place[by_query.get_group(table.objID[q]).to_numpy()].to_numpy()
                      for q in queries])  # fmt: skip
    chance = np.random.default_rng(seed).integers(len(table), size=alike.shape)
    result = {"queries": len(queries), "neighbours": NEIGHBOURS}
    for name, column in (("redshift", "z_true"), ("type", "type")):
        value = table[column].to_numpy(float)
        distance = {
            label: np.nanmean(np.abs(value[rows] - value[queries][:, None]), axis=1)
            for label, rows in (("alike", alike), ("photometry", near), ("chance", chance))
        }
        if name == "redshift":
            distance = {key: each / (1 + value[queries]) for key, each in distance.items()}
        result[name] = compare(distance, seed)
    return result


def compare(distance: dict[str, np.ndarray], seed: int) -> dict:
    """Mean distance by each kind of neighbour, and the paired difference alike - photometry."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(distance["alike"]), size=(RESAMPLES, len(distance["alike"])))
    result = {}
    for label, values in distance.items():
        low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
        result[label] = [round(float(each), 5) for each in (values.mean(), low, high)]
    paired = distance["alike"] - distance["photometry"]
    low, high = np.percentile(paired[draws].mean(axis=1), [2.5, 97.5])
    result["alike - photometry"] = [round(float(each), 5) for each in (paired.mean(), low, high)]
    return result


def artefacts(table: pd.DataFrame, outliers: pd.DataFrame) -> dict:
    """Precision at 20 and 50 of rankings that should put spoilt stamps first."""
    table = table.merge(outliers[["objID", "outlier_score"]], on="objID")
    spoilt = table.spoilt.to_numpy(bool)
    result = {"galaxies": len(table), "spoilt": int(spoilt.sum())}
    rankings = {"alone": table.outlier_score, "flux": table.flux, "sigma clip": table.clipped}
    for label, score in rankings.items():
        order = np.argsort(-score.to_numpy(float), kind="stable")
        result[label] = {f"precision at {n}": float(spoilt[order[:n]].mean()) for n in (20, 50)}
    result["chance"] = round(float(spoilt.mean()), 4)
    return result


def collect(run: Path) -> pd.DataFrame:
    """One row a galaxy with a stamp: catalogue, truth and what is measured on the stamp."""
    results = run / "results"
    catalog = pd.read_parquet(results / "catalog.parquet", dtype_backend="numpy_nullable")
    truth = pd.read_parquet(results / "simulate" / "truth.parquet", dtype_backend="numpy_nullable")
    truth = truth.dropna(subset="objID").drop_duplicates("objID")
    images = reader.open_set(results / "dataset.json")
    table = measure(images).merge(catalog, on="objID")
    kept = truth[["objID", "type", *ARTEFACTS]].assign(z_true=truth.z)
    table = table.drop(columns=[*ARTEFACTS, "type"], errors="ignore").merge(
        kept, on="objID", how="left"
    )
    spoilt = (table[list(ARTEFACTS)].fillna("") != "").any(axis=1)
    mags = {
        band: table[f"modelMag_{band}"].astype(float) - table[f"extinction_{band}"].astype(float)
        for band in BANDS
    }
    colours = {
        f"colour_{k}": mags[first] - mags[second]
        for k, (first, second) in enumerate(zip(BANDS, BANDS[1:], strict=False))
    }
    extra = {"spoilt": spoilt, "dered_r": table.dered_petro_r.astype(float),
             "log_r50": np.log10(table.r50.clip(lower=0.5)), **colours}  # fmt: skip
    return table.assign(**extra)


def main() -> None:
    """Command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run of a simulated survey")
    parser.add_argument("--method", default="moco", help="whose representations (moco)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    args = parser.parse_args()
    table = collect(args.run)
    folder = args.run / "results" / "search" / args.method
    result = {
        "neighbours": likeness(table, pd.read_parquet(folder / "neighbours.parquet"), args.seed),
        "outliers": artefacts(table, pd.read_parquet(folder / "outliers.parquet")),
    }
    for name in ("redshift", "type"):
        for label, (mean, low, high) in result["neighbours"][name].items():
            print(f"{name:9s} {label:20s} {mean:9.5f}  [{low:.5f}, {high:.5f}]")
    for label, values in result["outliers"].items():
        print(f"outliers  {label:12s} {values}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
