"""What each option of training does to the photo-z: one row an option, against the same base.

`python benchmarks/options.py DATASET.json` trains the supervised net with all labels, once a seed,
as the base says and once more with each option changed, and prints sigma_mad and CRPS on the test
galaxies with the paired difference from the base (bootstrap over galaxies, PDFs of the seeds
scored apart and averaged over). Its last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import metrics

OPTIONS = {
    "base": "",
    "no flips": "--no-flips",
    "turns 8": "--turns 8",
    "EMA 0.99": "--ema 0.99",
    "cosine": "--schedule cosine",
    "cosine, weight decay 0.001": "--schedule cosine --weight-decay 0.001",
    "loss CRPS": "--loss crps",
    "loss ordinal": "--loss ordinal",
    "raw nanomaggies": "--scale none",
    "colour loss 0.3": "--colour-weight 0.3",
}
RESAMPLES = 2000


def main() -> None:
    """Command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="dataset.json of a survey with labels")
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--base", default="", help="flags of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (2)")
    args = parser.parse_args()
    began = time.monotonic()
    jobs = [(name, seed) for name in OPTIONS for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: train(args, *job), jobs))
    rows = score(args.work, args.seeds)
    print(pd.DataFrame(rows).to_string(index=False))
    print(json.dumps({"minutes": round((time.monotonic() - began) / 60, 1), "rows": rows}))


def train(args: argparse.Namespace, name: str, seed: int) -> None:
    """One training by the stage itself, as a user would start it."""
    words = [sys.executable, "-m", "pipeline.train", "--task", "photoz", "--dataset", args.dataset,
             "--output", args.work / folder(name), "--seed", seed, "--fractions", 1,
             *args.base.split(), *OPTIONS[name].split()]  # fmt: skip
    if (args.work / folder(name) / f"1-{seed}" / "predictions.parquet").is_file():
        return
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    print(f"{name}, seed {seed}: done", flush=True)


def folder(name: str) -> str:
    """An option's name as a folder's."""
    return name.replace(" ", "-").replace(",", "")


def score(work: Path, seeds: list[int]) -> list[dict]:
    """A row an option: sigma_mad and CRPS, means over seeds, and paired differences."""
    tables = {name: [read(work, name, seed) for seed in seeds] for name in OPTIONS}
    count = len(tables["base"][0])
    rng = np.random.default_rng(0)
    draws = [np.arange(count), *rng.integers(count, size=(RESAMPLES, count))]
    values = {name: np.array([summary(each, rows) for rows in draws])
              for name, each in tables.items()}  # fmt: skip
    result = []
    for name, each in values.items():
        row = {"option": name}
        for k, metric in enumerate(("sigma_mad", "crps")):
            difference = (each - values["base"])[:, k]
            low, high = np.percentile(difference[1:], [2.5, 97.5])
            row |= {metric: round(each[0, k], 5), f"{metric} - base": round(difference[0], 5),
                    f"{metric} 95 %": [round(low, 5), round(high, 5)]}  # fmt: skip
        result.append(row)
    return result


def read(work: Path, name: str, seed: int) -> pd.DataFrame:
    """The test galaxies of one training."""
    table = pd.read_parquet(work / folder(name) / f"1-{seed}" / "predictions.parquet")
    return table[table.split == "test"].sort_values("objID").reset_index(drop=True)


def summary(tables: list[pd.DataFrame], rows: np.ndarray) -> tuple[float, float]:
    """sigma_mad and CRPS of galaxies `rows`, means over seeds."""
    residuals = [metrics.residuals(t.z_phot.to_numpy(), t.z.to_numpy())[rows] for t in tables]
    return (
        float(np.mean([metrics.sigma_mad(each) for each in residuals])),
        float(np.mean([t.crps.to_numpy()[rows].mean() for t in tables])),
    )


if __name__ == "__main__":
    main()
