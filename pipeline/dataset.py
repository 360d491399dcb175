"""All shards of a survey, checked, counted and summed up in one dataset.json.

python -m pipeline.dataset --shards ... --catalog C --output dataset.json    makes it;
python -m pipeline.dataset verify dataset.json    checks a set that was copied elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dask
import h5py
import numpy as np
import pandas as pd

from pipeline import run
from pipeline.images import manifest, shard
from pipeline.images.statistics import PixelCounts
from pipeline.survey.names import BANDS

MAD_SETS = ("train", "unlabelled", "train+unlabelled")
_OWN_ATTRIBUTES = {"format", "format_version", "bands", "shard"}
"""Attributes of a shard that say nothing about how its stamps were made."""
_FILE_NAME = re.compile(r"^(frame|fpM)-\S+: ")
"""What is cut off a reason, so that failures are counted by kind; the shards keep the file."""


@dataclass
class Checked:
    """What one pass over a shard has found."""

    path: Path
    problem: str = ""
    bytes: int = 0
    sha256: str = ""
    stamp: dict[str, object] = field(default_factory=dict)
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    splits: np.ndarray = field(default_factory=lambda: np.empty(0, "S10"))
    failed: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    reasons: Counter = field(default_factory=Counter)
    coverage: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))


def summarise(
    shards: Sequence[str | Path],
    catalog: pd.DataFrame,
    folder: str | Path,
    funnel: dict | None = None,
    survey: str = "",
    mad_set: str | None = None,
    workers: int = 1,
) -> dict:
    """Verify every shard and sum the set up: the content of dataset.json.

    `catalog` has objID and split (and sky_split, where the split is by sky); every galaxy of it
    must be a stamp or a failure, once. Files are named relative to `folder`, where dataset.json
    will lie. `mad_set` names the images whose median and MAD are taken; without it they are
    those of train, or those of unlabelled where train has none.

    Raises:
        UserError: a shard is wrong, shards do not belong together or to the catalogue, no galaxy
            has a stamp, or `mad_set` has no images.
    """
    paths = sorted((Path(path) for path in shards), key=lambda path: path.as_posix())
    checked, counts = _check_all(paths, training_ids(catalog), workers)
    _refuse_bad(checked)
    _refuse_mixed(checked)
    _refuse_incomplete(checked, catalog)
    stamps, failed = (sum(len(getattr(one, name)) for one in checked) for name in ("ids", "failed"))
    reasons = sum((one.reasons for one in checked), Counter())
    if not stamps:
        _refuse_empty(failed, reasons)
    splits = Counter(np.concatenate([one.splits for one in checked]).tolist())
    coverage = np.concatenate([one.coverage for one in checked])
    return {
        "format": manifest.FORMAT,
        "format_version": manifest.VERSION,
        "survey": survey,
        "galaxies": {"catalogue": len(catalog), "stamps": stamps, "failed": failed},
        "splits": {name: splits[name.encode()] for name in shard.SPLITS},
        "failures": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "coverage": {
            "below_1": int(np.sum(coverage < 1)),
            "below_0.5": int(np.sum(coverage < 0.5)),
        },
        "stamp": checked[0].stamp,
        "pixels": pixel_statistics(counts, mad_set),
        "shards": [
            {"file": Path(os.path.relpath(one.path, folder)).as_posix(), "rows": len(one.ids),
             "failed": len(one.failed), "bytes": one.bytes, "sha256": one.sha256}
            for one in checked
        ],
        "funnel": funnel,
    }  # fmt: skip


def training_ids(catalog: pd.DataFrame) -> dict[str, np.ndarray]:
    """Sorted objIDs of the galaxies that training may see, labelled (train) and unlabelled.

    Where the split is by sky those beyond the training sky, or on its border, are left out.
    """
    split = catalog["split"].astype(str).to_numpy(dtype=object)
    seen = np.ones(len(catalog), dtype=bool)
    if "sky_split" in catalog:
        seen = catalog["sky_split"].fillna("train").to_numpy(dtype=object) == "train"
    ids = catalog["objID"].to_numpy(dtype=np.int64)
    return {name: np.sort(ids[(split == name) & seen]) for name in ("train", "unlabelled")}


def pixel_statistics(counts: dict[str, PixelCounts], mad_set: str | None) -> dict:
    """Median and MAD per band of the images of `mad_set`, which is said, and how many they are.

    Raises:
        UserError: `mad_set` was asked for and has no images.
    """
    name = mad_set or ("train" if counts["train"].images else "unlabelled")
    chosen = PixelCounts()
    for part in name.split("+"):
        chosen.merge(counts[part])
    if mad_set and not chosen.images:
        raise run.UserError(
            f"dataset: mad_set: {mad_set} has no images; choose another or leave it out"
        )
    result = {"set": name if chosen.images else None, "images": chosen.images}
    if not chosen.images:
        return result | {"median": None, "mad": None}
    median, mad = (
        {band: float(f"{value:.7g}") for band, value in zip(BANDS, values, strict=True)}
        for values in chosen.median_and_mad()
    )
    return result | {"median": median, "mad": mad}


def _check_all(paths, training, workers) -> tuple[list[Checked], dict[str, PixelCounts]]:
    """Check all shards, each worker its own share; threads, as the counting lets go of the GIL."""
    workers = max(1, min(workers, len(paths)))
    progress = run.Progress("dataset", len(paths), "shards")
    parts = [
        dask.delayed(_check_some)(paths[first::workers], training, progress, pure=False)
        for first in range(workers)
    ]
    results = dask.compute(*parts, scheduler="threads", num_workers=workers)
    progress.close()
    totals = {name: PixelCounts() for name in training}
    for _, counts in results:
        for name, total in totals.items():
            total.merge(counts[name])
    checked = [one for part, _ in results for one in part]
    return sorted(checked, key=lambda one: one.path.as_posix()), totals


def _check_some(paths, training, progress) -> tuple[list[Checked], dict[str, PixelCounts]]:
    counts = {name: PixelCounts() for name in training}
    checked = []
    for path in paths:
        checked.append(_check(path, training, counts))
        progress.add()
    return checked, counts


def _check(path: Path, training: dict, counts: dict[str, PixelCounts]) -> Checked:
    """Read a shard once: its schema, columns and images, counting those of the training sets."""
    found = Checked(path)
    try:
        with shard.open_shard(path) as file:
            wrong = shard.schema_problems(file)
            if not wrong:
                _read_columns(file, found)
                members = {name: _among(found.ids, ids) for name, ids in training.items()}

                def count(rows: slice, images: np.ndarray) -> None:
                    for name, member in members.items():
                        if member[rows].any():
                            counts[name].add(images[member[rows]])

                wrong = shard.image_problems(file, count)
            found.problem = "; ".join(wrong)
        found.bytes, found.sha256 = path.stat().st_size, run.sha256(path)
    except run.UserError as error:
        found.problem = str(error).removeprefix(f"{path}: ")
    except (OSError, RuntimeError, KeyError) as error:
        # HDF5 says of damaged contents whatever it stumbled over
        found.problem = f"cannot be read ({' '.join(str(error).split())})"
    return found


def _among(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of `ids` are in `known`, which is sorted: np.isin would sort it for every shard."""
    inside = np.zeros(len(ids), dtype=bool)
    if len(known):
        inside = known[np.searchsorted(known[:-1], ids)] == ids
    return inside


def _read_columns(file: h5py.File, found: Checked) -> None:
    found.ids, found.splits = file["ObjID"][:], file["split"][:].astype("S10")
    found.failed = file["failed/ObjID"][:]
    reasons = (text.decode() for text in file["failed/reason"][:].tolist())
    found.reasons = Counter(_FILE_NAME.sub("", reason) for reason in reasons)
    found.coverage = file["coverage"][:].min(axis=1) if len(found.ids) else found.coverage
    attributes = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in sorted(file.attrs.items())
        if name not in _OWN_ATTRIBUTES
    }
    planes = [name for name in ("variance", "mask") if name in file]
    found.stamp = {**attributes, "bands": BANDS, "dtype": str(file["images"].dtype),
                   "planes": planes}  # fmt: skip


def _refuse_bad(checked: list[Checked]) -> None:
    bad = [one for one in checked if one.problem]
    if bad:
        more = f" (and {len(bad) - 1} more bad shards)" if len(bad) > 1 else ""
        raise run.UserError(f"{bad[0].path}: {bad[0].problem}{more}")


def _refuse_mixed(checked: list[Checked]) -> None:
    first = checked[0]
    for one in checked[1:]:
        for name in sorted(first.stamp.keys() | one.stamp.keys()):
            ours, theirs = first.stamp.get(name), one.stamp.get(name)
            if ours != theirs:
                raise run.UserError(
                    f"{one.path}: {name} is {theirs}, that of {first.path.name} is {ours}; "
                    "make all shards with one configuration"
                )


def _refuse_incomplete(checked: list[Checked], catalog: pd.DataFrame) -> None:
    """Hold the shards to the catalogue: each of its galaxies once, in its split."""
    ids = np.concatenate([part for one in checked for part in (one.ids, one.failed)])
    source = np.repeat(np.arange(len(checked)), [len(one.ids) + len(one.failed) for one in checked])
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(again):
        first, second = (checked[source[order[again[0] + step]]].path for step in (0, 1))
        raise run.UserError(
            f"{second}: galaxy {ids[order[again[0]]]} is there again after {first.name} "
            f"({len(again)} such); remove shards of an earlier run"
        )
    wanted = catalog["objID"].to_numpy(dtype=np.int64)
    for found, text in (
        (np.setdiff1d(wanted, ids), "galaxies of the catalogue are in no shard"),
        (np.setdiff1d(ids, wanted), "galaxies of the shards are not in the catalogue"),
    ):
        if len(found):
            raise run.UserError(
                f"{len(found)} {text}, the first {found[0]}; rerun cutouts on this catalogue"
            )
    _refuse_other_split(checked, catalog)


def _refuse_other_split(checked: list[Checked], catalog: pd.DataFrame) -> None:
    split = pd.Series(
        catalog["split"].astype(str).to_numpy(dtype="S10"),
        index=catalog["objID"].to_numpy(dtype=np.int64),
    )
    for one in checked:
        other = np.flatnonzero(split.loc[one.ids].to_numpy(dtype="S10") != one.splits)
        if len(other):
            galaxy = one.ids[other[0]]
            raise run.UserError(
                f"{one.path}: galaxy {galaxy} is {one.splits[other[0]].decode()} here and "
                f"{split[galaxy].decode()} in the catalogue; rerun cutouts on this catalogue"
            )


def _refuse_empty(failed: int, reasons: Counter) -> None:
    if not failed:
        raise run.UserError("the shards hold no galaxies at all; look at the catalogue's funnel")
    reason, count = min(reasons.items(), key=lambda item: (-item[1], item[0]))
    raise run.UserError(
        f"no galaxy has a stamp: all {failed} failed, {count} of them because: {reason}"
    )


def verify(path: str | Path) -> list[str]:
    """Check the files of the set that `path` (a dataset.json) describes; a line per bad file.

    Raises:
        UserError: `path` is no dataset.json.
    """
    content = manifest.read(path)
    progress = run.Progress("verify", len(content["shards"]), "shards")
    lines = []
    for entry in content["shards"]:
        problem = _problem_of_copy(Path(path).parent / entry["file"], entry)
        if problem:
            lines.append(f"{entry['file']}: {problem}")
        progress.add()
    return lines


def _problem_of_copy(path: Path, entry: dict) -> str:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"has {path.stat().st_size} bytes, not {entry['bytes']}"
    try:
        if run.sha256(path) != entry["sha256"]:
            return "has another sha256: its content was changed or spoilt"
        with shard.open_shard(path) as file:
            return "; ".join(shard.schema_problems(file))
    except run.UserError as error:
        return str(error).removeprefix(f"{path}: ")
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def read_funnel(path: str | None) -> dict | None:
    """The funnel (catalog.json) as it is."""
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise run.UserError(f"{path}: no such file; run the rule catalog") from None
    except ValueError as error:
        raise run.UserError(f"{path}: not JSON ({error}); remove it and rerun") from None


def main(argv: list[str] | None = None) -> None:
    """Command line: see `--help`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["verify"]:
        return _main_verify(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.dataset",
        description="Verify all shards against the catalogue and sum them up in dataset.json.",
        epilog="A set that was copied elsewhere is checked by: "
        "python -m pipeline.dataset verify PATH/dataset.json",
    )
    parser.add_argument("--shards", nargs="+", required=True, metavar="F.h5", help="all shards")
    parser.add_argument("--catalog", required=True, help="the catalogue they were made from")
    parser.add_argument("--funnel", help="catalog.json, the counts after each cut")
    parser.add_argument("--output", required=True, help="dataset.json to write")
    parser.add_argument("--survey", default="", help="name of the survey, for the record")
    parser.add_argument("--mad-set", choices=MAD_SETS,
                        help="images whose median and MAD are taken "
                        "(without it: train, or unlabelled where train is empty)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="shards read at a time (1)")
    args = parser.parse_args(argv)
    output = Path(args.output)
    catalog = manifest.read_catalog(args.catalog, ("objID", "split"), ("sky_split",))
    result = summarise(
        args.shards, catalog, output.parent, read_funnel(args.funnel), args.survey, args.mad_set,
        args.workers,
    )  # fmt: skip
    run.write_json(result, output)
    run.write_provenance(output, workers=args.workers)
    galaxies, pixels = result["galaxies"], result["pixels"]
    run.log.info("dataset: %d stamps, %d failed, in %d shards; MAD over %d images of %s",
                 galaxies["stamps"], galaxies["failed"], len(result["shards"]),
                 pixels["images"], pixels["set"])  # fmt: skip
    return None


def _main_verify(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.dataset verify",
        description="Check the shards of a set: length, sha256 and schema of each file. "
        "Prints a line for each bad one and ends with 1 if there is any.",
    )
    parser.add_argument("dataset", help="dataset.json; its shards lie where it says, beside it")
    args = parser.parse_args(argv)
    lines = verify(args.dataset)
    for line in lines:
        print(line)
    total = len(manifest.read(args.dataset)["shards"])
    if lines:
        raise run.UserError(f"{args.dataset}: {len(lines)} of {total} shards are bad; copy again")
    print(f"{args.dataset}: all {total} shards are right")


if __name__ == "__main__":
    run.start(main)
