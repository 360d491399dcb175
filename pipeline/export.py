"""Release files: one HDF5 file a split, shuffled, laid out as the paper's own are."""

from __future__ import annotations

import argparse
import shutil
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from pipeline import run
from pipeline.images import card, manifest, shard
from pipeline.survey.names import BANDS

COLUMNS = {
    "ObjID": "i8", "dec": "f8", "e_bv": "f4", "ra": "f8", "specObjID": "i8",
    "specz_redshift": "f4", "specz_redshift_err": "f4", "sky_split": "S10",
}  # fmt: skip
"""The paper's data sets beside `images`, all of them in each file; and sky_split where the survey
was split by sky, since an unlabelled image on the test sky is none to train on."""
FILES = (*(f"{name}.h5" for name in shard.SPLITS), "README.md", "SHA256SUMS")


def export(
    dataset: str | Path, folder: str | Path, seed: int = 0, block: int = 64
) -> dict[str, int]:
    """Write train.h5, valid.h5, test.h5, unlabelled.h5, README.md and SHA256SUMS into `folder`.

    `dataset` is the path of a dataset.json whose shards lie beside it. The order of galaxies
    depends on `seed` and on which galaxies a split holds, not on how shards were cut. `block`
    images are held at a time. `folder` appears when everything is in it. Returns rows by split.

    Raises:
        UserError: a shard is missing or is not the one that was counted, the disk is too small,
            or `folder` holds something else.
    """
    content, folder = manifest.read(dataset), Path(folder)
    places = shuffled_places(read_members(dataset, content), seed)
    rows = {name: content["splits"][name] for name in shard.SPLITS}
    _refuse_foreign(folder)
    _refuse_full(folder, content)
    with run.whole_folder(folder) as part:
        _write_splits(part, dataset, content, places, rows, block)
        (part / "README.md").write_text(card.text(content, seed))
        _write_sums(part)
    return rows


def read_members(dataset: str | Path, content: dict) -> list[tuple[np.ndarray, np.ndarray]]:
    """objIDs (int64) and splits (bytes) of each shard's rows, shard by shard.

    Raises:
        UserError: a shard is missing or is not the one that dataset.json describes.
    """
    members = []
    entries = content["shards"]
    for entry, path in zip(entries, manifest.shard_paths(dataset, content), strict=True):
        with shard.open_shard(path) as file:
            ids, splits = file["ObjID"][:], file["split"][:]
        if path.stat().st_size != entry["bytes"] or len(ids) != entry["rows"]:
            raise run.UserError(f"{path}: changed since {dataset} was made; rerun the rule dataset")
        members.append((ids, splits))
    return members


def shuffled_places(
    members: list[tuple[np.ndarray, np.ndarray]], seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Where each row of each shard goes: (index of its split in SPLITS, row in that file).

    A split's objIDs are put in ascending order and then permuted, so that the same galaxies
    always end in the same order.
    """
    ids = np.concatenate([ids for ids, _ in members])
    splits = np.concatenate([splits for _, splits in members])
    codes, places = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64)
    for code, name in enumerate(shard.SPLITS):
        rows = np.flatnonzero(splits == name.encode())
        order = rows[np.argsort(ids[rows], kind="stable")]
        codes[rows] = code
        places[order] = np.random.default_rng([seed, code]).permutation(len(rows))
    ends = np.cumsum([len(ids) for ids, _ in members])[:-1]
    return list(zip(np.split(codes, ends), np.split(places, ends), strict=True))


def _write_splits(part, dataset, content, places, rows, block) -> None:
    """Go through the shards once, in order, and put each row where it belongs."""
    size = content["stamp"]["size"]
    columns = {name: _empty_columns(count) for name, count in rows.items()}
    progress = run.Progress("export", sum(rows.values()), "galaxies")
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(h5py.File(part / f"{name}.h5", "w")) for name in shard.SPLITS
        }
        images = {name: _create_images(files[name], rows[name], size) for name in shard.SPLITS}
        for path, place in zip(manifest.shard_paths(dataset, content), places, strict=True):
            with shard.open_shard(path) as file:
                _copy_columns(file, place, columns)
                _copy_images(file, place, images, block, progress)
        for name, file in files.items():
            for key, values in columns[name].items():
                if key != "sky_split" or (values != b"").any():
                    file[key] = values
    progress.close()


def _empty_columns(rows: int) -> dict[str, np.ndarray]:
    return {
        name: np.zeros((rows, len(BANDS)) if name == "e_bv" else rows, dtype)
        for name, dtype in COLUMNS.items()
    }


def _create_images(file: h5py.File, rows: int, size: int) -> h5py.Dataset:
    """A contiguous data set that has its place in the file before any row is written."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)
    space = h5py.h5s.create_simple((rows, len(BANDS), size, size))
    kind = h5py.h5t.IEEE_F32LE
    return h5py.Dataset(h5py.h5d.create(file.id, b"images", kind, space, layout))


def _copy_columns(file: h5py.File, place, columns) -> None:
    codes, targets = place
    for name in COLUMNS:
        values = file[name][:]
        for code, split in enumerate(shard.SPLITS):
            chosen = codes == code
            columns[split][name][targets[chosen]] = values[chosen]


def _copy_images(file: h5py.File, place, images, block: int, progress: run.Progress) -> None:
    codes, targets = place
    for rows, values in shard.blocks(file, block):
        values = values.astype(np.float32, copy=False)
        for image, code, target in zip(values, codes[rows], targets[rows], strict=True):
            images[shard.SPLITS[code]][target] = image
        progress.add(len(values))


def _write_sums(part: Path) -> None:
    names = [name for name in FILES if name != "SHA256SUMS"]
    lines = [f"{run.sha256(part / name)}  {name}\n" for name in names]
    (part / "SHA256SUMS").write_text("".join(lines))


def _refuse_foreign(folder: Path) -> None:
    """The folder is replaced as a whole, so it must be an export's, or new."""
    if folder.exists() and not folder.is_dir():
        raise run.UserError(f"{folder}: is a file; give a folder for the release files")
    known = {*FILES, ".snakemake_timestamp"}
    foreign = sorted({path.name for path in folder.glob("*")} - known)
    if foreign:
        raise run.UserError(f"{folder}: holds {foreign[0]}, no export; give a folder of its own")


def _refuse_full(folder: Path, content: dict) -> None:
    size = content["stamp"]["size"]
    needed = content["galaxies"]["stamps"] * (len(BANDS) * size * size * 4 + 64)
    home = next(path for path in folder.absolute().parents if path.is_dir())
    free = shutil.disk_usage(home).free
    if needed > free:
        raise run.UserError(
            f"{home}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; "
            "free some or choose another folder"
        )


def main(argv: list[str] | None = None) -> None:
    """Command line: see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.export",
        description="Write the release files (one HDF5 file a split, shuffled, in the layout of "
        "the paper's own) with a data card and checksums.",
    )
    parser.add_argument("--dataset", required=True, help="dataset.json, its shards beside it")
    parser.add_argument("--output", required=True, help="folder to write; replaced as a whole")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffle (0)")
    parser.add_argument("--block", type=int, default=64, help="images held at a time (64)")
    args = parser.parse_args(argv)
    if args.seed < 0 or args.block < 1:
        raise run.UserError("export: seed must be 0 or more and block 1 or more")
    rows = export(args.dataset, args.output, args.seed, args.block)
    run.write_provenance(args.output, dataset=args.dataset)
    run.log.info("export: %s", ", ".join(f"{count} {name}" for name, count in rows.items()))


if __name__ == "__main__":
    run.start(main)
