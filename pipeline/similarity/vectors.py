"""The file of representations that `embed` writes and `search` reads (HDF5).

    ObjID (N,)                  int64
    contrastive (N, 128)        unit length, where the encoder has its projection head
    pooled (N, D)               the encoder's output, as it is
    ra, dec (N,)                deg
    z, photoz, petroMag_r (N,)  NaN where missing; photoz is the catalogue's
    split (N,)                  b"train", b"valid", b"test", b"unlabelled"
Attributes: format, format_version, crop (pixels that the encoder sees), and what else the stage
says of the encoder and the input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from pipeline.images.disk import new_file
from pipeline.images.reader import ImageSet
from pipeline.run import UserError, log
from pipeline.similarity.whitening import Whitening, whitening

FORMAT = "ugriz-vectors"
VERSION = 1
KINDS = ("contrastive", "pooled")
WHITENED = "whitened"
"""Made of the pooled vectors when they are read (`whitening`)."""
_NUMBERS = ("ra", "dec", "z", "photoz", "petroMag_r")
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Vectors:
    """One kind of vector of every galaxy of a set."""

    path: Path
    table: pd.DataFrame
    """objID int64, ra, dec [deg], z, photoz, petroMag_r (NaN missing), split; a row a galaxy."""
    unit: np.ndarray
    """(N, D) float32 of unit length (0 where the net gave nothing but zeros)."""
    kind: str
    """"contrastive", "pooled" or "whitened"."""
    attrs: dict
    """What the file says of the encoder and the input."""

    @property
    def crop(self) -> int:
        """Pixels on a side of what the encoder sees."""
        return int(self.attrs["crop"])

    def positions(self) -> np.ndarray:
        """RA and Dec [deg] of every galaxy, (N, 2)."""
        return self.table[["ra", "dec"]].to_numpy()


def of_other_pixels(vectors: Vectors, images: ImageSet) -> bool:
    """Were the vectors made from other images than `images`, of the same galaxies perhaps?

    Known only where both are of a dataset.json: loose files have no name that lasts.
    """
    vouched = images.mad is not None
    return vouched and vectors.attrs.get("data", images.digest) != images.digest


class VectorWriter:
    """Writes a file of vectors, block by block in row order."""

    def __init__(
        self,
        path: str | Path,
        table: pd.DataFrame,
        sizes: Mapping[str, int],
        dtype: str = "float32",
        attrs: Mapping[str, object] | None = None,
    ):
        """Create `path` for the galaxies of `table`; `sizes` gives the length of each kind."""
        self.context = contextlib.ExitStack()
        self.file, self.disk = self.context.enter_context(new_file(path))
        self.file.attrs.update({"format": FORMAT, "format_version": VERSION, **(attrs or {})})
        self.file["ObjID"] = table["objID"].to_numpy(np.int64)
        for name in _NUMBERS:
            self.file[name] = table[name].to_numpy(np.float64)
        self.file["split"] = table["split"].to_numpy("S10")
        for kind, size in sizes.items():
            self.file.create_dataset(kind, (len(table), size), dtype)

    def write(self, first: int, vectors: Mapping[str, np.ndarray]) -> None:
        """Put a block of each kind at the rows from `first` on."""
        for kind, block in vectors.items():
            self.file[kind][first : first + len(block)] = block
        self.disk.check()

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(self, *error) -> None:
        self.context.__exit__(*error)


def read_vectors(path: str | Path, kind: str | None = None) -> Vectors:
    """The vectors of `kind` of every galaxy, at unit length; without it contrastive, or pooled.

    Where the file has no contrastive vectors (the encoder came without a projection head) the
    pooled ones are taken, and a line says so. "whitened" are the pooled ones, whitened over the
    galaxies of the file.

    Raises:
        UserError: no such file, no file of vectors, none of that kind, or spoilt ones.
    """
    with _open(path) as file:
        if kind is None:
            kind = "contrastive" if "contrastive" in file else "pooled"
            if kind == "pooled":
                log.info("%s: no contrastive vectors; the pooled ones are compared", path)
        source = "pooled" if kind == WHITENED else kind
        if source not in file:
            there = " and ".join(name for name in KINDS if name in file)
            raise UserError(f"{path}: no {kind} vectors; it has {there}")
        table = pd.DataFrame({"objID": file["ObjID"][:]})
        for name in _NUMBERS:
            table[name] = file[name][:]
        table["split"] = file["split"].asstr()[:].astype(object)
        unplaced = table["objID"][~np.isfinite(table[["ra", "dec"]]).all(axis=1)]
        if len(unplaced):
            raise UserError(f"{path}: galaxy {unplaced.iloc[0]} has no ra or dec; mend its images' "
                            "file and run embed anew")  # fmt: skip
        objid = table["objID"].to_numpy()
        turn = None
        if kind == WHITENED and len(table):
            turn = whitening(lambda: (block for _, block in _blocks(path, file[source], objid)))
            if not turn.turn.size:
                raise UserError(f"{path}: the pooled vectors of all galaxies are the same, and "
                                "cannot be whitened; has the encoder collapsed?")  # fmt: skip
        unit = _unit(path, file[source], objid, turn)
        attrs = {name: value for name, value in file.attrs.items()}
    return Vectors(Path(path), table, unit, kind, attrs)


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[h5py.File]:
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the rule embed for it") from None
    except OSError:
        raise UserError(f"{path}: cannot be read as HDF5; give a file that embed wrote") from None
    with file:
        if file.attrs.get("format") != FORMAT:
            raise UserError(f"{path}: not a file of vectors (no format = {FORMAT}); run embed")
        version = file.attrs.get("format_version")
        if version != VERSION:
            raise UserError(
                f"{path}: vectors of format {version}, this ugriz reads {VERSION}; run embed anew"
            )
        missing = [name for name in ("ObjID", *_NUMBERS, "split", "pooled") if name not in file]
        missing += [name for name in ("crop",) if name not in file.attrs]
        if missing:
            raise UserError(f"{path}: {missing[0]} is missing; run embed anew")
        yield file


def _blocks(
    path: str | Path, data: h5py.Dataset, objid: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float64 rows) of a data set, a block at a time, all of them finite."""
    for first in range(0, len(data), _BLOCK):
        block = data[first : first + _BLOCK].astype(np.float64)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            bad = objid[first + int(np.argmin(finite))]
            raise UserError(f"{path}: the vector of galaxy {bad} is not finite; run embed anew")
        yield first, block


def _unit(
    path: str | Path, data: h5py.Dataset, objid: np.ndarray, turn: Whitening | None
) -> np.ndarray:
    """Vectors, whitened by `turn` if there is one, at unit length: one array in memory, float32."""
    size = data.shape[1] if turn is None else turn.turn.shape[1]
    unit = np.empty((len(data), size), np.float32)
    for first, block in _blocks(path, data, objid):
        block = block if turn is None else turn(block)
        length = np.linalg.norm(block, axis=1, keepdims=True)
        unit[first : first + len(block)] = block / np.where(length > 0, length, 1)
    return unit
