"""What each option of training does to the photo-z: the benchmark survey's training, one change.

`python benchmarks/options.py RUN --work DIR` trains nets on the stamps of a finished run of
`surveys/benchmark.yaml`, once as that survey says and once more for each option changed, at two
fractions of the labels and by several seeds. A net is judged on unlabelled galaxies of the run
(`--shards` of its shards), whose redshifts the simulation knows, so that choices made by this
table leave the test galaxies alone. It prints sigma_mad and CRPS, means over the seeds, with the
paired differences from the base (bootstrap over galaxies, 95 %); below zero the option is better.
`--encoder` starts from an encoder in place of from scratch.
Its last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from snakemake.utils import update_config

from pipeline import metrics
from pipeline.settings import ROOT, checked, flags, training_flags

OPTIONS = {
    "base": "",
    "no flips": "--no-flips",
    "turns 1": "--turns 1",
    "EMA 0.99": "--ema 0.99",
    "weight decay 0": "--weight-decay 0",
    "steps of the rate": "--schedule step",
    "cross-entropy": "--loss cross_entropy",
    "CRPS": "--loss crps",
    "raw nanomaggies": "--scale none",
    "colour loss 0.3": "--colour-weight 0.3",
    "SGD": "--optimiser sgd --lr 0.03 --weight-decay 0.0001",
    "the paper's": "--optimiser sgd --lr 0.004 --weight-decay 0 --schedule step "
    "--loss cross_entropy --scale none --no-flips --turns 1",
    "encoder rate 1": "--encoder-rate 1",
    "encoder frozen": "--freeze",
}
"""Flags of `pipeline.train` that are put after those of the base."""
FROM_SCRATCH = ("raw nanomaggies", "the paper's")
"""An encoder brings its own scale of the input."""
FINE_TUNED = ("encoder rate 1", "encoder frozen")
"""Of those only that start from an encoder."""
TOGETHER = "seeds together"
"""The base's models as an ensemble."""
METRICS = ("sigma_mad", "crps")


def main() -> None:
    """Command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run of a simulated survey")
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--survey", type=Path, default=ROOT / "surveys" / "benchmark.yaml",
                        help="the run's config (surveys/benchmark.yaml)")  # fmt: skip
    parser.add_argument("--encoder", type=Path, help="start from it (from scratch)")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS),
                        metavar="NAME", help="some of them (all), beside the base")  # fmt: skip
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.125, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--shards", type=int, default=3, help="shards that are judged on (3)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (2)")
    args = parser.parse_args()
    args.run, args.work = args.run.resolve(), args.work.resolve()
    began = time.monotonic()
    base = base_flags(args.survey, args.encoder, args.fractions)
    unfit = FROM_SCRATCH if args.encoder else FINE_TUNED
    names = ["base", *(name for name in args.options if name not in ("base", *unfit))]
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [(args, base, name, seed) for name in names for seed in args.seeds]
        list(pool.map(lambda job: train(*job), jobs))
        jobs = [(args, name, fraction, seeds) for name, seeds in judged(names, args.seeds)
                for fraction in args.fractions]  # fmt: skip
        list(pool.map(lambda job: predict(*job), jobs))
    truth = unlabelled(args.run)
    rows = [row for fraction in args.fractions for row in score(args, names, fraction, truth)]
    print(pd.DataFrame(rows).to_string(index=False))
    minutes = round((time.monotonic() - began) / 60, 1)
    print(json.dumps({"minutes": minutes, "encoder": args.encoder is not None, "rows": rows}))


def base_flags(survey: Path, encoder: Path | None, fractions: list[float]) -> list[str]:
    """The flags of `pipeline.train` that the survey's config stands for."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    update_config(config, yaml.safe_load(survey.read_text()))
    config = checked(config)
    start = (
        f"--encoder {shlex.quote(str(encoder.resolve()))}" if encoder else flags(config["encoder"])
    )
    name = config["pretrain"]["method"] if encoder else "supervised"
    training = training_flags(config["train"], name, leave_out=["fractions"])
    return shlex.split(f"{start} {training}") + ["--fractions", *map(str, fractions)]


def train(args: argparse.Namespace, base: list[str], name: str, seed: int) -> None:
    """The trainings of one option and seed by the stage itself, as a user would start them."""
    if all(model(args.work, name, fraction, seed).is_file() for fraction in args.fractions):
        return
    start(name, "pipeline.train", *base, *OPTIONS[name].split(), "--seed", seed,
          "--dataset", args.run / "results" / "dataset.json",
          "--output", folder(args.work, name))  # fmt: skip
    print(f"{name}, seed {seed}: trained", flush=True)


def judged(names: list[str], seeds: list[int]) -> list[tuple[str, list[int]]]:
    """What is applied: each option's models one by one, and the base's together."""
    return [(name, [seed]) for name in names for seed in seeds] + [("base", seeds)]


def predict(args: argparse.Namespace, name: str, fraction: float, seeds: list[int]) -> None:
    """The photo-z catalogue of an option's models of `seeds`, by the stage."""
    path = catalogue(args.work, name, fraction, seeds)
    if path.is_file():
        return
    shards = sorted((args.run / "results" / "cutouts").glob("*.h5"))[: args.shards]
    models = [model(args.work, name, fraction, seed) for seed in seeds]
    start(name, "pipeline.photoz", "--model", *models, "--images", *shards, "--output", path,
          "--threads", 1)  # fmt: skip


def start(name: str, stage: str, *words: object) -> None:
    """Run a stage; a failure ends all with the stage's own last line."""
    done = subprocess.run(
        [sys.executable, "-m", stage, *map(str, words)], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")


def folder(work: Path, name: str) -> Path:
    """Where an option's models lie."""
    return work / name.replace(" ", "-").replace("'", "")


def model(work: Path, name: str, fraction: float, seed: int) -> Path:
    """One training's model."""
    return folder(work, name) / f"{fraction:g}-{seed}" / "model.pt"


def catalogue(work: Path, name: str, fraction: float, seeds: list[int]) -> Path:
    """What the models of `seeds` say."""
    return folder(work, name) / f"photoz-{fraction:g}-{'-'.join(map(str, seeds))}.parquet"


def unlabelled(run: Path) -> pd.Series:
    """True redshifts of galaxies that no training has labels of and no test judges, by objID."""
    results = run / "results"
    catalog = pd.read_parquet(results / "catalog.parquet", columns=["objID", "split"],
                              dtype_backend="numpy_nullable")  # fmt: skip
    truth = pd.read_parquet(results / "simulate" / "truth.parquet",
                            dtype_backend="numpy_nullable")  # fmt: skip
    truth = truth.dropna(subset="objID").drop_duplicates("objID").set_index("objID")["z"]
    return truth.loc[truth.index.isin(catalog.objID[catalog.split == "unlabelled"])].astype(float)


def score(args, names: list[str], fraction: float, truth: pd.Series) -> list[dict]:
    """A row an option: each metric, mean over the seeds, and its paired difference from base."""
    base = None
    rows = []
    for name, sets in [*((name, [[s] for s in args.seeds]) for name in names),
                       (TOGETHER, [args.seeds])]:  # fmt: skip
        which = "base" if name == TOGETHER else name
        paths = [catalogue(args.work, which, fraction, seeds) for seeds in sets]
        found = {metric: np.mean(each, axis=0) for metric, each in
                 zip(METRICS, zip(*(draws(path, truth) for path in paths), strict=True),
                     strict=True)}  # fmt: skip
        base = base or found
        row = {"fraction": fraction, "option": name}
        for metric, each in found.items():
            difference = each - base[metric]
            low, high = metrics.interval(difference[1:])
            row |= {metric: round(each[0], 5), f"{metric} - base": round(difference[0], 5),
                    f"{metric} 95 %": [round(low, 5), round(high, 5)]}  # fmt: skip
        rows.append(row)
    return rows


def draws(path: Path, truth: pd.Series) -> list[np.ndarray]:
    """sigma_mad and mean CRPS of a catalogue's unlabelled galaxies; then those of resamples."""
    table = pq.read_table(path, columns=["objID", "z_phot", "pdf"])
    edges = np.asarray(json.loads(table.schema.metadata[b"edges"]))
    objid = table["objID"].to_numpy()
    rows = np.flatnonzero(np.isin(objid, truth.index.to_numpy(np.int64)))
    z = truth.loc[objid[rows]].to_numpy(float)
    pdf = np.stack(table["pdf"].to_numpy()[rows])
    dz = metrics.residuals(table["z_phot"].to_numpy()[rows], z)
    crps = metrics.crps(pdf, edges, z)
    return [
        np.append(metrics.sigma_mad(dz), metrics.bootstrap(metrics.sigma_mad, dz)[0]),
        np.append(crps.mean(), metrics.bootstrap(np.mean, crps)[0]),
    ]


if __name__ == "__main__":
    main()
