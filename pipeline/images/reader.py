"""Many files of stamps as one row of images: shards, export files, the paper's own layout."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from pipeline import run
from pipeline.images import manifest, shard
from pipeline.run import UserError
from pipeline.survey.hashing import mix64
from pipeline.survey.names import BANDS

_REQUIRED = {"ObjID": "objID", "ra": "ra", "dec": "dec", "specz_redshift": "z"}
"""Data set -> column of the table, for what every file has beside `images` and `e_bv`."""
_OPTIONAL = {"specz_redshift_err": "zErr", "photoz": "photoz", "petroMag_r": "petroMag_r"}
_PER_BAND = {"extinction": "e_bv", "sky_noise": "sky_noise"}
"""Attribute of the ImageSet -> data set (N, 5)."""
_LABEL_ORDER = 0x1ABE1
"""What the order of labels is hashed with, so that it has nothing to do with the split's."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Stamps of one or many files, a row each; pixels stay on disk until `read` is called.

    `table` has objID (int64), file (index into `files`), row (within its file), split and
    sky_split (text, "" where unknown), z, zErr, photoz, petroMag_r [mag], ra, dec [deg] (NaN
    where missing) and coverage (that of the worst band; 1 where unknown). `extinction` (DR12's
    A_u..A_z [mag], data set `e_bv`) and `sky_noise` [nanomaggies per native pixel] are (n, 5)
    float32, NaN where unknown. Images are (5, `size`, `size`) of `dtype`. `origin` tells the
    files' content from another's, and `mad` (5,) is the median |x - median| of the set's pixels,
    None where it is opened without its dataset.json. `pixels` holds all images of a set in
    memory, `place` where a row is in it.
    """

    files: tuple[Path, ...]
    table: pd.DataFrame
    extinction: np.ndarray
    sky_noise: np.ndarray
    size: int
    dtype: np.dtype
    origin: str
    mad: np.ndarray | None = None
    pixels: np.ndarray | None = None
    place: np.ndarray | None = None
    _open: dict[tuple[int, int], tuple[h5py.File, h5py.Dataset]] = field(
        default_factory=dict, repr=False
    )

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    @property
    def objid(self) -> np.ndarray:
        """objID of each row, (n,) int64."""
        return self.table["objID"].to_numpy()

    @property
    def nbytes(self) -> int:
        """Bytes that all images take in memory."""
        return len(self) * len(BANDS) * self.size**2 * self.dtype.itemsize

    @property
    def digest(self) -> str:
        """SHA-256 of which images these are, in which order, of which files and labels."""
        columns = self.table[["objID", "split", "sky_split", "z"]]
        rows = pd.util.hash_pandas_object(columns, index=False).to_numpy()
        digest = hashlib.sha256(f"{self.origin} {self.size}".encode())
        digest.update(rows.astype("<u8").tobytes())
        digest.update(self.extinction.astype("<f4").tobytes())
        return digest.hexdigest()

    def take(self, index: np.ndarray) -> ImageSet:
        """The rows of `index` (integers, in the order given, or a mask); pixels are shared."""
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        return replace(
            self,
            table=self.table.iloc[index].reset_index(drop=True),
            place=None if self.place is None else self.place[index],
            **{name: getattr(self, name)[index] for name in _PER_BAND},
        )

    def read(self, index: np.ndarray) -> np.ndarray:
        """Images of the rows `index`, (len(index), 5, size, size), in the order asked.

        Files are opened when they are first needed, by each process for itself.

        Raises:
            UserError: a file has gone, changed or cannot be read, or an image holds values that
                are not finite.
        """
        index = np.asarray(index, dtype=np.int64)
        if self.pixels is not None:
            return self.pixels[self.place[index]]
        images = np.empty((len(index), len(BANDS), self.size, self.size), self.dtype)
        file = self.table["file"].to_numpy()[index]
        row = self.table["row"].to_numpy()[index]
        for at in np.lexsort((row, file)):
            try:
                images[at] = self._source(file[at])[row[at]]
            except (OSError, KeyError, IndexError, ValueError, TypeError) as error:
                raise UserError(
                    f"{self.files[file[at]]}: the image of row {row[at]} cannot be read "
                    f"({_one_line(error)}); make the file anew"
                ) from None
        self._refuse_not_finite(images, index)
        return images

    def in_memory(self) -> ImageSet:
        """The same set with all its images read once and kept, in their stored dtype."""
        if self.pixels is not None:
            return self
        pixels = np.empty((len(self), len(BANDS), self.size, self.size), self.dtype)
        progress = run.Progress("reading", len(self), "images")
        order = np.lexsort((self.table["row"], self.table["file"]))
        for first in range(0, len(self), 64):
            rows = order[first : first + 64]
            pixels[rows] = self.read(rows)
            progress.add(len(rows))
        return replace(self, pixels=pixels, place=np.arange(len(self)))

    def _source(self, number: int) -> h5py.Dataset:
        """The images of an open file; those that a forking process had opened are not used.

        One row at a time by its number: h5py reads that twice as fast as by `read_direct`, and a
        hundred times as fast as by a list of rows.
        """
        key = (os.getpid(), int(number))
        if key not in self._open:
            self._open[key] = _source(self.files[number])
        return self._open[key][1]

    def _refuse_not_finite(self, images: np.ndarray, index: np.ndarray) -> None:
        bad = [at for at, image in enumerate(images) if not np.isfinite(image).all()]
        if bad:
            spoilt = self.table.iloc[index[bad[0]]]
            raise UserError(
                f"{self.files[spoilt['file']]}: the image of galaxy {spoilt['objID']} "
                f"(row {spoilt['row']}) holds values that are not finite; make the file anew"
            )


def open_set(path: str | Path | Sequence[str | Path]) -> ImageSet:
    """Open a dataset.json with its shards, or shards, export files or the paper's own files.

    Files may have any number of rows. The split is the file's own; that of an export file is its
    name's (train.h5, valid.h5, test.h5, unlabelled.h5), that of any other file is "".

    Raises:
        UserError: a file is missing, is none of these, or does not fit the others, or a galaxy
            is there twice.
    """
    paths = [Path(each) for each in ([path] if isinstance(path, str | Path) else path)]
    mad = None
    if len(paths) == 1 and paths[0].suffix == ".json":
        content = manifest.read(paths[0])
        files = list(manifest.shard_paths(paths[0], content))
        rows = [entry["rows"] for entry in content["shards"]]
        mad, origin = _mad(content), run.sha256(paths[0])  # which has the shards' own
    else:
        files, rows = paths, [None] * len(paths)
        origin = ""
    if not files:
        raise UserError("no file of images is named; give a dataset.json, shards or export files")
    parts = []
    progress = run.Progress("opening", len(files), "files")
    for number, (file, count) in enumerate(zip(files, rows, strict=True)):
        parts.append(_columns(file, count))
        parts[-1]["table"].insert(1, "file", np.int32(number))
        progress.add()
    size = _same_size(files, parts)
    table = pd.concat([part["table"] for part in parts], ignore_index=True)
    _refuse_twice(table, files)
    return ImageSet(
        files=tuple(files),
        table=table,
        size=size,
        dtype=np.result_type(*(part["dtype"] for part in parts)),
        origin=origin or " ".join(_stamp_of(file) for file in files),
        mad=mad,
        **{name: np.concatenate([part[name] for part in parts]) for name in _PER_BAND},
    )


def warn_of_dust(images: ImageSet) -> None:
    """Say it where galaxies that are to be dereddened have no extinction."""
    unknown = int(np.isnan(images.extinction).any(axis=1).sum())
    if unknown:
        run.log.warning(
            "%d of %d galaxies have no extinction, so their dust is left on (E(B-V) is 0 for a net "
            "that reads it); add extinction_u to extinction_z to their table", unknown, len(images),
        )  # fmt: skip


def members(images: ImageSet, which: str) -> np.ndarray:
    """Rows of the split `which`: train, valid, test, unlabelled or train+unlabelled; (k,) int64.

    Where the survey is split by sky, those of train and unlabelled lie on the training sky, those
    of valid on that of valid, none on a border.

    Raises:
        UserError: there are none.
    """
    wanted = which.split("+")
    unknown = [name for name in wanted if name not in shard.SPLITS]
    if unknown:
        raise UserError(f"split {unknown[0]!r} is unknown; give one of {', '.join(shard.SPLITS)}")
    chosen = np.logical_or.reduce([in_split(images, name) for name in wanted])
    if not chosen.any():
        there = images.table["split"].replace("", "no split").value_counts(sort=False)
        counts = ", ".join(f"{count} {name}" for name, count in there.items()) or "no images"
        raise UserError(f"{images.files[0]}: no images of {which} in the set ({counts}); "
                        "look at the catalogue's funnel, or set goals: []")  # fmt: skip
    return np.flatnonzero(chosen)


def in_split(images: ImageSet, name: str) -> np.ndarray:
    """As `members`, a mask (n,) for one split; there may be none."""
    sky = {"unlabelled": "train"}.get(name, name)
    own = np.isin(images.table["sky_split"].to_numpy(dtype=object), ("", sky))
    return (images.table["split"].to_numpy(dtype=object) == name) & own


def label_fraction(objid: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A mask of the first round(`fraction` n) galaxies in the order of a hash of objID and seed.

    So the labels of a smaller fraction are among those of any larger one.

    Raises:
        UserError: `fraction` is not above 0 and up to 1, or leaves no galaxy.
    """
    count = round(fraction * len(objid)) if 0 < fraction <= 1 else 0
    if not count:
        raise UserError(
            f"fraction {fraction:g} of {len(objid)} labels leaves none; "
            "give a number above 0 and up to 1"
        )
    return first_labels(objid, count, seed)


def first_labels(objid: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A mask of the first `count` galaxies in the order of a hash of objID and seed."""
    order = np.argsort(mix64(mix64(objid, seed), _LABEL_ORDER), kind="stable")
    chosen = np.zeros(len(objid), dtype=bool)
    chosen[order[:count]] = True
    return chosen


def _stamp_of(file: Path) -> str:
    """Size and time of a file whose content no dataset.json vouches for."""
    status = file.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """A file of images, whatever its kind; what HDF5 says of a damaged one in one line."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format", shard.FORMAT) != shard.FORMAT:
                raise UserError(f"{path}: is {file.attrs['format']}, not a file of images")
            version = file.attrs.get("format_version", shard.VERSION)
            if version != shard.VERSION:
                raise UserError(
                    f"{path}: shard format {version}, this ugriz reads {shard.VERSION}; make it "
                    "anew, or use the ugriz that wrote it"
                )
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of images; make it, or name another") from None
    except OSError as error:
        if path.is_dir():
            raise UserError(f"{path}: a folder; name a dataset.json or the files in it") from None
        raise UserError(f"{path}: cannot be read ({_one_line(error)}); make it anew") from None


def _source(path: Path) -> tuple[h5py.File, h5py.Dataset]:
    """A file and its images, with HDF5's cache of 8 MiB only where a chunk has many images.

    A chunk of one image is read once; over hundreds of shards its cache would fill gigabytes.
    """
    file = h5py.File(path, "r", rdcc_nbytes=0)
    chunks = file["images"].chunks
    if chunks and chunks[0] > 1:
        file.close()
        file = h5py.File(path, "r")
    return file, file["images"]


def _columns(path: Path, rows: int | None) -> dict[str, object]:
    """A file's table and (n, 5) columns, the size and dtype of its images; reads no image."""
    with _opened(path) as file:
        _check_layout(path, file, rows)
        images = file["images"]
        count = len(images)
        table = pd.DataFrame({"objID": file["ObjID"][:].astype(np.int64)})
        table["row"] = np.arange(count)
        table["split"] = _text(file, "split", path.stem if path.stem in shard.SPLITS else "")
        table["sky_split"] = _text(file, "sky_split", "")
        for name, column in {**_REQUIRED, **_OPTIONAL}.items():
            if column != "objID":
                known = name in file
                table[column] = file[name][:].astype(float) if known else np.full(count, np.nan)
        table["coverage"] = 1.0
        if "coverage" in file:
            table["coverage"] = file["coverage"][:].astype(float).min(axis=1)
        unknown = np.full((count, len(BANDS)), np.nan, np.float32)
        per_band = {
            name: file[source][:].astype(np.float32) if source in file else unknown
            for name, source in _PER_BAND.items()
        }
        dtype = images.dtype.newbyteorder("=")
        return {"table": table, "size": images.shape[-1], "dtype": dtype, **per_band}


def _check_layout(path: Path, file: h5py.File, rows: int | None) -> None:
    """Refuse a file that lacks a data set, or has one of another shape or type."""
    missing = [name for name in ("images", "e_bv", *_REQUIRED) if name not in file]
    if missing:
        raise UserError(f"{path}: not a file of images (data set {missing[0]} is missing)")
    shape, kind = file["images"].shape, file["images"].dtype.kind
    if len(shape) != 4 or shape[1] != len(BANDS) or shape[2] != shape[3] or shape[2] % 2 == 0:
        raise UserError(
            f"{path}: images have the shape {shape}, not (N, 5, size, size) with an odd size"
        )
    if kind != "f":
        raise UserError(f"{path}: images are {file['images'].dtype}, not floating-point numbers")
    if file["ObjID"].dtype.kind not in "iu":
        raise UserError(f"{path}: ObjID is {file['ObjID'].dtype}, which cannot hold an objID")
    if rows is not None and shape[0] != rows:
        raise UserError(
            f"{path}: has {shape[0]} images, dataset.json has {rows}; rerun the rule dataset"
        )
    for name in (*_REQUIRED, *_OPTIONAL, *_PER_BAND.values(), "split", "sky_split", "coverage"):
        per_band = name in (*_PER_BAND.values(), "coverage")
        expected = (shape[0], len(BANDS)) if per_band else (shape[0],)
        if name in file and file[name].shape != expected:
            raise UserError(f"{path}: {name} has the shape {file[name].shape}, not {expected}")


def _text(file: h5py.File, name: str, missing: str) -> np.ndarray:
    if name not in file:
        return np.full(len(file["images"]), missing, dtype=object)
    return file[name][:].astype("S").astype(str).astype(object)


def _mad(content: dict) -> np.ndarray | None:
    mad = content["pixels"]["mad"]
    return None if mad is None else np.array([mad[band] for band in BANDS])


def _same_size(files: list[Path], parts: list[dict]) -> int:
    for file, part in zip(files, parts, strict=True):
        if part["size"] != parts[0]["size"]:
            raise UserError(
                f"{file}: stamps of {part['size']} px, those of {files[0]} have "
                f"{parts[0]['size']}; open sets of one size"
            )
    return parts[0]["size"]


def _refuse_twice(table: pd.DataFrame, files: list[Path]) -> None:
    again = table.index[table["objID"].duplicated()]
    if len(again):
        second = table.loc[again[0]]
        first = table.loc[table["objID"] == second["objID"]].iloc[0]
        raise UserError(
            f"{files[second['file']]}: galaxy {second['objID']} is there again after "
            f"{files[first['file']]} ({len(again)} such); name each galaxy's file once"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
