"""The paper's claims about likeness, put to the test where the truth is known.

`python benchmarks/claims.py RUN` takes the folder of a finished run of a simulated survey
(`surveys/benchmark.yaml`) and asks of each kind of its vectors (contrastive, pooled, whitened)

- neighbours: are the five galaxies most alike a test galaxy closer to it in true redshift and
  type than the five nearest in magnitude, colours and size? Mean of |dz| / (1 + z) and of
  |d type| over test galaxies, paired bootstrap. Type is the simulation's, from 0 (early) to 1
  (late), which sets the colours; the share of the bulge and the axis ratio of the disc are what
  an eye would call the galaxy's type;
- outliers: how many of the 20 and 50 galaxies most alone hold an artefact on their stamp, against
  rankings by flux, by a sigma clip of each band, and by a sigma clip of what one band has and no
  other. Once of all artefacts (trail, cosmic ray, bleed) and once without the stamps that have a
  bleed: bleeds lie at saturated stars, which a ranking by flux finds as such.

Its last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from pipeline import metrics
from pipeline.images import reader
from pipeline.search import search
from pipeline.similarity.vectors import KINDS, WHITENED, read_vectors
from pipeline.survey.names import BANDS

NEIGHBOURS = 5
OWN_RADIUS = 25
"""Stamp pixels (10 arcsec) around the centre that belong to the galaxy, for the sigma clip."""
TRUTHS = {"redshift": "z_true", "type": "type", "bulge fraction": "bulge_fraction",
          "axis ratio": "disc_q"}  # fmt: skip
"""In what neighbours are to be close, and the columns that have it."""
ARTEFACTS = ("trail", "cosmic_ray", "bleed")
AMONG = 10
"""Neighbours that tell how alone a galaxy is, as in the stage search."""


def measure(images: reader.ImageSet, block: int = 256) -> pd.DataFrame:
    """What catalogues measure, from the stamps: flux, size and pixels beyond the sky's noise.

    Columns: objID, flux (r, sum over the stamp), r50 (r, radius [pixels] of half of the light
    within 10 arcsec), clipped (pixels outside of 10 arcsec that are more than 5 sigma off the
    sky in any band), one_band (pixels that are so in one band and within 2 sigma in all others).
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
        # resampling averages noise: 0.64 of the native pixel's (docs/performance.md)
        signal = stamps / (0.64 * images.sky_noise[rows][:, :, None, None])
        bright, dark = np.abs(signal) > 5, np.abs(signal) < 2
        alone = (bright.sum(axis=1) == 1) & (dark.sum(axis=1) == len(BANDS) - 1)
        parts.append(
            pd.DataFrame(
                {
                    "objID": images.objid[rows],
                    "flux": stamps[:, 2].sum(axis=(1, 2)),
                    "r50": radius[own][order][half],
                    "clipped": bright.any(axis=1)[:, ~own].sum(axis=1),
                    "one_band": alone.sum(axis=(1, 2)),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def likeness(table: pd.DataFrame, found: dict[str, pd.DataFrame], seed: int) -> dict:
    """Neighbours by likeness against neighbours by photometry, for each test galaxy.

    `table` has objID, split, z_true, type and the photometry's columns; `found` the neighbours by
    each kind of vector, as `search` gives them. Neighbours by photometry come from the same
    galaxies (the whole set), by distance in units of each column's scatter.
    """
    table = table.reset_index(drop=True)
    known = table[["z_true", "type"]].notna().all(axis=1)
    queries = table.index[(table.split == "test") & known].to_numpy()
    chance = np.random.default_rng(seed).integers(len(table), size=(len(queries), NEIGHBOURS))
    rows = {kind: alike(table, each, queries) for kind, each in found.items()}
    rows |= {"photometry": by_photometry(table, queries), "chance": chance}
    result = {"queries": len(queries), "neighbours": NEIGHBOURS}
    for name, column in TRUTHS.items():
        value = table[column].to_numpy(float)
        scale = 1 + value[queries] if name == "redshift" else 1
        distance = {
            label: np.nanmean(np.abs(value[each] - value[queries][:, None]), axis=1) / scale
            for label, each in rows.items()
        }
        result[name] = compare(distance, list(found), seed)
    return result


def alike(table: pd.DataFrame, neighbours: pd.DataFrame, queries: np.ndarray) -> np.ndarray:
    """Rows of the galaxies that are most alike each query, (queries, NEIGHBOURS)."""
    place = pd.Series(table.index, index=table.objID)
    near = neighbours[neighbours["rank"] <= NEIGHBOURS].sort_values(["objID", "rank"])
    near = near.groupby("objID")["neighbour"].apply(np.array)
    return place[np.concatenate(near[table.objID[queries]].tolist())].to_numpy().reshape(
        len(queries), NEIGHBOURS)  # fmt: skip


def by_photometry(table: pd.DataFrame, queries: np.ndarray) -> np.ndarray:
    """Rows of the galaxies nearest to each query in colours, magnitude and size."""
    photometry = [f"colour_{k}" for k in range(len(BANDS) - 1)] + ["dered_r", "log_r50"]
    columns = table[photometry].fillna(table[photometry].median())
    centre = columns.median()
    scaled = (columns - centre) / (1.4826 * (columns - centre).abs().median())
    scaled = scaled.clip(-8, 8).to_numpy()
    _, near = cKDTree(scaled).query(scaled[queries], k=NEIGHBOURS + 1)
    return np.array([[k for k in row if k != query][:NEIGHBOURS]
                     for query, row in zip(queries, near, strict=True)])  # fmt: skip


def compare(distance: dict[str, np.ndarray], kinds: list[str], seed: int) -> dict:
    """Mean distance by each kind of neighbour, and paired differences of `kinds` - photometry."""
    values = distance | {
        f"{kind} - photometry": distance[kind] - distance["photometry"] for kind in kinds
    }
    draws = metrics.bootstrap(np.mean, *values.values(), seed=seed)
    return {
        label: [round(float(each), 5) for each in (one.mean(), *metrics.interval(drawn))]
        for (label, one), drawn in zip(values.items(), draws, strict=True)
    }


def artefacts(table: pd.DataFrame, found: dict[str, pd.DataFrame]) -> dict:
    """Precision at 20 and 50 of rankings that should put spoilt stamps first.

    `found` has the outliers by each kind of vector, as `search` gives them.
    """
    scores = {
        f"alone ({kind})": each.set_index("objID").outlier_score.loc[table.objID].to_numpy()
        for kind, each in found.items()
    }
    names = {"flux": "flux", "sigma clip": "clipped", "sigma clip, one band": "one_band"}
    scores |= {label: table[column].to_numpy(float) for label, column in names.items()}
    spoilt = {name: (table[name].fillna("") != "").to_numpy() for name in ARTEFACTS}
    any_, bleed = np.any(list(spoilt.values()), axis=0), spoilt["bleed"]
    result = {}
    for group, rows in (("all artefacts", np.ones(len(table), bool)),
                        ("without bleeds", ~bleed)):  # fmt: skip
        result[group] = {
            "galaxies": int(rows.sum()),
            "spoilt": int(any_[rows].sum()),
            "chance": round(float(any_[rows].mean()), 4),
        }
        for label, score in scores.items():
            order = np.argsort(-score[rows], kind="stable")
            result[group][label] = [round(float(any_[rows][order[:n]].mean()), 2)
                                    for n in (20, 50)]  # fmt: skip
    return result


def collect(run: Path) -> pd.DataFrame:
    """One row a galaxy with a stamp: catalogue, truth and what is measured on the stamp."""
    results = run / "results"
    catalog = pd.read_parquet(results / "catalog.parquet", dtype_backend="numpy_nullable")
    truth = pd.read_parquet(results / "simulate" / "truth.parquet", dtype_backend="numpy_nullable")
    truth = truth.dropna(subset="objID").drop_duplicates("objID")
    images = reader.open_set(results / "dataset.json")
    table = measure(images).merge(catalog, on="objID")
    kept = [column for column in TRUTHS.values() if column != "z_true"] + list(ARTEFACTS)
    table = table.drop(columns=kept, errors="ignore").merge(
        truth[["objID", *kept]].assign(z_true=truth.z), on="objID", how="left"
    )
    mags = {
        band: table[f"modelMag_{band}"].astype(float) - table[f"extinction_{band}"].astype(float)
        for band in BANDS
    }
    colours = {
        f"colour_{k}": mags[first] - mags[second]
        for k, (first, second) in enumerate(zip(BANDS, BANDS[1:], strict=False))
    }
    extra = {"dered_r": table.dered_petro_r.astype(float),
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
    found = {}
    for kind in (*KINDS, WHITENED):
        vectors = read_vectors(args.run / "results" / "embed" / f"{args.method}.h5", kind)
        found[kind] = search(vectors, AMONG)
    result = {
        "neighbours": likeness(table, {kind: near for kind, (near, _) in found.items()}, args.seed),
        "outliers": artefacts(table, {kind: alone for kind, (_, alone) in found.items()}),
    }
    for name in TRUTHS:
        for label, (mean, low, high) in result["neighbours"][name].items():
            print(f"{name:14s} {label:24s} {mean:9.5f}  [{low:.5f}, {high:.5f}]")
    for group, values in result["outliers"].items():
        for label, value in values.items():
            print(f"{group:15s} {label:24s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
