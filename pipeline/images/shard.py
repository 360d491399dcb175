"""The shard: one HDF5 file of stamps, with the names of the paper's released file and ours.

    images (N, 5, size, size)   nanomaggies per native pixel (or per stamp pixel), u g r i z
    e_bv (N, 5)                 DR12's extinction_* [mag] (the paper's name for it)
    specz_redshift, specz_redshift_err (N,)      NaN where there is no spectrum
    ObjID, specObjID (N,)       int64; specObjID 0 where there is none
    ra, dec (N,)                deg
    run, rerun, camcol, field (N,)
    photoz (N,)                 the catalogue's, NaN where missing
    petroMag_r (N,)             mag, NaN where missing
    split (N,)                  b"train", b"valid", b"test", b"unlabelled"
    sky_split (N,)              of a split by sky: whose sky the stamp lies on, b"border" of two;
                                else b""
    coverage (N, 5)             the share of the stamp that frames cover
    sky_noise (N, 5)            nanomaggies per native pixel, 1.4826 MAD of the own frame
    psf_fwhm (N, 5)             arcsec, NaN where unknown
    variance, mask (N, 5, size, size)            where asked for
    failed/ObjID, failed/ra, failed/dec, failed/reason      galaxies without a stamp

Rows are in the catalogue's order. One chunk is one galaxy, chunks are written in row order and
nothing is dated, so that the same stamps are the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from pipeline.images.disk import Disk
from pipeline.images.stamp import Stamp
from pipeline.run import UserError
from pipeline.survey.names import BANDS

FORMAT = "ugriz-shard"
VERSION = 1
SPLITS = ("train", "valid", "test", "unlabelled")

_COLUMNS = {
    "ObjID": ("objID", "i8", 0),
    "specObjID": ("specObjID", "i8", 0),
    "ra": ("ra", "f8", np.nan),
    "dec": ("dec", "f8", np.nan),
    "run": ("run", "i4", 0),
    "rerun": ("rerun", "i4", 0),
    "camcol": ("camcol", "i4", 0),
    "field": ("field", "i4", 0),
    "specz_redshift": ("z", "f4", np.nan),
    "specz_redshift_err": ("zErr", "f4", np.nan),
    "photoz": ("photoz", "f4", np.nan),
    "petroMag_r": ("petroMag_r", "f4", np.nan),
}
"""Data set -> (column of the catalogue, dtype, value where missing)."""
_PER_BAND = {"e_bv": "extinction", "psf_fwhm": "psfWidth"}
"""Data set (N, 5) -> stem of the catalogue's five columns."""
_MEASURED = ("coverage", "sky_noise")
_PLANES = {"variance": "f4", "mask": "u2"}
_ATTRIBUTES = ("bands", "size", "fov_deg")


class ShardWriter:
    """Writes a shard row by row, as a context: `append` in row order, `fail` at any time.

    Leaving the context without an exception writes the columns. A disk that is full raises
    OSError, at the next `append` or on leaving.
    """

    def __init__(
        self,
        path: str | Path,
        galaxies: pd.DataFrame,
        stamp: Stamp,
        dtype: str = "float32",
        planes: tuple[str, ...] = (),
        attrs: Mapping[str, object] | None = None,
    ):
        """Create `path` for `galaxies` (the shard's rows of the catalogue, in order).

        `dtype` is that of the images (float32 or float16), `planes` of "variance" and "mask".
        """
        self.galaxies, self.kept, self.failures = galaxies, [], []
        self.measured = {name: [] for name in _MEASURED}
        self.disk = Disk(path, "w+")
        self.file = h5py.File(self.disk, "w")
        self.file.attrs.update(
            {"format": FORMAT, "format_version": VERSION, "bands": BANDS,
             "size": stamp.size, "fov_deg": stamp.fov, **(attrs or {})}
        )  # fmt: skip
        shape = (len(galaxies), len(BANDS), stamp.size, stamp.size)
        chunks = (1, *shape[1:])
        for name, kind in {"images": dtype, **{plane: _PLANES[plane] for plane in planes}}.items():
            self.file.create_dataset(name, (0, *shape[1:]), kind, maxshape=shape, chunks=chunks)

    def append(
        self,
        row: int,
        planes: Mapping[str, np.ndarray],
        coverage: np.ndarray,
        sky_noise: np.ndarray,
    ) -> None:
        """Add galaxy `row`: its "images" and optional planes, each (5, size, size)."""
        at = len(self.kept)
        for name, values in planes.items():
            data = self.file[name]
            if data.dtype == np.float16:
                check_float16(values, self.galaxies.objID.iloc[row])
            data.resize(at + 1, axis=0)
            data[at] = values
        self.disk.check()
        self.kept.append(row)
        self.measured["coverage"].append(coverage)
        self.measured["sky_noise"].append(sky_noise)

    def fail(self, row: int, reason: str) -> None:
        """Record that galaxy `row` has no stamp, and why."""
        self.failures.append((row, reason))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self._write_columns()
        self.file.close()
        self.disk.close()
        if kind is None:
            self.disk.check()

    def _write_columns(self) -> None:
        kept = self.galaxies.iloc[self.kept]
        for name, (column, dtype, missing) in _COLUMNS.items():
            self.file[name] = _column(kept, column, dtype, missing)
        for name, stem in _PER_BAND.items():
            columns = [_column(kept, f"{stem}_{band}", "f4", np.nan) for band in BANDS]
            self.file[name] = np.stack(columns, axis=1)
        for name, values in self.measured.items():
            self.file[name] = np.array(values, dtype="f4").reshape(-1, len(BANDS))
        self.file["split"] = _splits(kept)
        sky = kept["sky_split"].fillna("") if "sky_split" in kept else np.full(len(kept), "")
        self.file["sky_split"] = np.asarray(sky, dtype="S10")
        self._write_failures()

    def _write_failures(self) -> None:
        rows = [row for row, _ in sorted(self.failures)]
        lost = self.galaxies.iloc[rows]
        group = self.file.create_group("failed")
        for name in ("ObjID", "ra", "dec"):
            column, dtype, missing = _COLUMNS[name]
            group[name] = _column(lost, column, dtype, missing)
        reasons = [reason.encode("ascii", "replace") for _, reason in sorted(self.failures)]
        width = max((len(reason) for reason in reasons), default=1)
        group["reason"] = np.array(reasons, dtype=f"S{width}")


def _splits(kept: pd.DataFrame) -> np.ndarray:
    """The catalogue's splits; a bare table's galaxies with a redshift are for training."""
    if "split" in kept:
        return kept["split"].to_numpy(dtype="S10")
    labelled = np.isfinite(_column(kept, "z", "f8", np.nan))
    return np.where(labelled, b"train", b"unlabelled").astype("S10")


def _column(table: pd.DataFrame, name: str, dtype: str, missing: object) -> np.ndarray:
    if name not in table:
        return np.full(len(table), missing, dtype=dtype)
    return table[name].to_numpy(dtype=dtype, na_value=missing)


def check_float16(values: np.ndarray, objid: int) -> None:
    """Refuse values that float16 cannot hold.

    Raises:
        UserError: a finite value above 65,504, which would become infinite.
    """
    worst = np.nanmax(np.abs(values), initial=0)
    if worst > np.finfo(np.float16).max:
        raise UserError(
            f"galaxy {objid}: {worst:.0f} nanomaggies do not fit in float16; "
            "set cutouts: dtype to float32"
        )


@contextlib.contextmanager
def open_shard(path: str | Path) -> Iterator[h5py.File]:
    """Open a shard for reading.

    Raises:
        UserError: no such file, not HDF5 (truncated, say), no shard, or of another version.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such shard; run the rule cutouts for it") from None
    except OSError as error:
        reason = str(error).split("(")[-1].rstrip(")")
        raise UserError(f"{path}: cannot be read as HDF5 ({reason}); remove it and rerun") from None
    with file:
        if file.attrs.get("format") != FORMAT:
            raise UserError(f"{path}: not a shard of ugriz (no attribute format = {FORMAT})")
        version = file.attrs.get("format_version")
        if version != VERSION:
            raise UserError(
                f"{path}: shard format {version}, this ugriz reads {VERSION}; "
                "remove it and rerun, or use the ugriz that wrote it"
            )
        yield file


def image_problems(
    file: h5py.File, visit: Callable[[slice, np.ndarray], None] | None = None
) -> list[str]:
    """What is wrong with the images of a shard whose schema is right, in words; empty if nothing.

    Reads every image, a block at a time, and hands each block of finite ones on to `visit`
    (rows, images), so that one pass over the file serves both.
    """
    bad = 0
    for rows, block in blocks(file):
        spoilt = int(np.sum(~np.isfinite(block).all(axis=(1, 2, 3))))
        if visit and not spoilt:
            visit(rows, block)
        bad += spoilt
    return [f"{bad} images hold values that are not finite"] if bad else []


def schema_problems(file: h5py.File) -> list[str]:
    """What is wrong with a shard's names, shapes, types and columns' values; reads no image."""
    names = [*_COLUMNS, *_PER_BAND, *_MEASURED, "split", "sky_split", "images"]
    lost = [f"failed/{name}" for name in ("ObjID", "ra", "dec", "reason")]
    missing = [f"data set {name} is missing" for name in (*names, *lost) if name not in file]
    missing += [f"attribute {name} is missing" for name in _ATTRIBUTES if name not in file.attrs]
    if missing:
        return missing
    rows, size = file["images"].shape[0], int(file.attrs["size"])
    expected = {name: rows for name in names} | dict.fromkeys(lost, file["failed/ObjID"].shape[0])
    found = [
        f"{name} has {file[name].shape[0]} rows, not {count}"
        for name, count in expected.items()
        if file[name].shape[0] != count
    ]
    for name in ("images", *_PLANES):
        if name in file and file[name].shape != (rows, len(BANDS), size, size):
            found.append(f"{name} has shape {file[name].shape}")
    if file["images"].dtype not in (np.float32, np.float16):
        found.append(f"images are {file['images'].dtype}")
    found += [
        f"{name} is {file[name].dtype}, not int64"
        for name in ("ObjID", "specObjID", "failed/ObjID")
        if file[name].dtype != np.int64
    ]
    return found or _column_problems(file)


def _column_problems(file: h5py.File) -> list[str]:
    unknown = set(np.unique(file["split"][:])) - {name.encode() for name in SPLITS}
    found = [f"split {name.decode(errors='replace')!r} is unknown" for name in sorted(unknown)]
    if len(np.unique(file["ObjID"][:])) != file["ObjID"].shape[0]:
        found.append("ObjID is not unique")
    if not (np.isfinite(file["ra"][:]).all() and np.isfinite(file["dec"][:]).all()):
        found.append("ra or dec is not finite")
    coverage = file["coverage"][:]
    if not ((coverage > 0) & (coverage <= 1)).all():
        found.append("coverage lies outside (0, 1]")
    return found


def blocks(file: h5py.File, rows: int = 64) -> Iterator[tuple[slice, np.ndarray]]:
    """Go through the images `rows` at a time: (slice of rows, (n, 5, size, size) array)."""
    images = file["images"]
    for first in range(0, images.shape[0], rows):
        part = slice(first, min(first + rows, images.shape[0]))
        yield part, images[part]
