"""One frame and the galaxies on it -> each galaxy's part of its stamp, in a scratch file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from pipeline.images import overlap
from pipeline.images.engines import ENGINES, MARGIN
from pipeline.images.geometry import Place, places
from pipeline.images.stamp import Stamp
from pipeline.run import PASSING, UserError
from pipeline.survey import blocks, frame, masks, pieces
from pipeline.survey.excerpt import SUFFIX, Excerpt
from pipeline.survey.frame import BadFrame, Frame
from pipeline.survey.names import Field, frame_path, mask_path
from pipeline.survey.transfer import ABSENT, Loss

DECODE = ("blocks", "whole")
"""How much of a frame is decompressed: the bzip2 blocks that stamps need, or all."""


@dataclass(frozen=True)
class Recipe:
    """How stamps are made: geometry, engine, and which planes go with the image."""

    stamp: Stamp = field(default_factory=Stamp)
    engine: str = "overlap"
    conserve_flux: bool = False
    variance: bool = False
    mask: bool = False
    decode: str = "blocks"
    """One of `DECODE`; the stamps are the same."""

    def __post_init__(self):
        if self.variance and self.engine in ("reproject-interp", "reproject-adaptive"):
            raise UserError(
                f"variance: engine {self.engine} weighs pixels otherwise than by area, so that its "
                "variance is not known; take overlap, montage or reproject-exact"
            )

    @property
    def planes(self) -> tuple[str, ...]:
        """The optional planes asked for."""
        return tuple(name for name in ("variance", "mask") if getattr(self, name))

    @property
    def record(self) -> np.dtype:
        """What one frame gives to one stamp, as it lies in a scratch file."""
        side = (self.stamp.size, self.stamp.size)
        kinds = {"images": "f4", "share": "f4", "variance": "f4", "mask": "u2"}
        planes = [(name, kinds[name], side) for name in ("images", "share", *self.planes)]
        return np.dtype([*planes, ("sky_noise", "f8")])


class Work(NamedTuple):
    """One frame and the galaxies to cut from it."""

    field: Field
    band: str
    sky: np.ndarray
    """(n, 2) ra, dec [deg]"""
    gain: float
    dark: float

    def paths(self, mask: bool) -> list[str]:
        """The files that it needs, below the root."""
        paths = [frame_path(self.field, self.band)]
        return [*paths, mask_path(self.field, self.band)] if mask else paths


class Report(NamedTuple):
    """What came of a frame: why it could not be used, if so, and how many of its bzip2 blocks were
    decoded.

    `unknown`: a file is not there, and no loss tells why.
    """

    problem: str | None = None
    absent: bool = False
    unknown: bool = False
    decoded: int = 0
    blocks: int = 0


def cut_frame(
    work: Work, root: Path, recipe: Recipe, losses: dict, scratch: Path, threads: int = 1
) -> Report:
    """Cut every galaxy of `work` from its frame below `root` into the file `scratch`.

    `losses` tells why files are not there (path -> Loss); what a frame lacks is reported, never
    raised, so that a bad frame costs its own galaxies only. `threads` decompress.
    """
    found: list[Place | None] = []

    def rows(header: fits.Header) -> list[slice]:
        found[:] = places(recipe.stamp, work.sky, frame.projection(header), MARGIN)
        return [place.part.rows for place in found if place]

    try:
        image, flags = _read_frame(work, root, losses, recipe.decode, rows, threads), None
        if recipe.mask:
            flags = _read_mask(work, root, losses)
    except _Lost as lost:
        return Report(str(lost), lost.absent, lost.unknown)
    wcs = image.wcs()
    with _scratch_file(scratch) as file:
        for (ra, dec), place in zip(work.sky, found, strict=True):
            stamp = np.zeros((), dtype=recipe.record)
            if place:
                _cut_stamp(stamp, image, wcs, flags, ra, dec, place, work, recipe)
            file.write(stamp.tobytes())
    return Report(decoded=image.decoded, blocks=image.blocks)


@contextlib.contextmanager
def _scratch_file(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name when it is whole: a worker that was given up may still be writing
    it while another's is being read.

    Raises:
        OSError: of a full disk, say; with the folder's name, which a failed write does not tell.
    """
    part = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if error.filename in (None, str(part)):
            error.filename = str(path.parent)
        raise


class _Lost(Exception):
    """A file that cannot be used: its name and why."""

    def __init__(self, path: str, loss: Loss, kind: str = "", unknown: bool = False):
        super().__init__(f"{Path(path).name}: {kind}{loss.reason}")
        self.absent, self.unknown = loss.absent, unknown


def _read_frame(
    work: Work, root: Path, losses: dict[str, Loss], decode: str, rows, threads: int
) -> Frame:
    path = frame_path(work.field, work.band)
    try:
        part = root / f"{path}{SUFFIX}"
        if part.exists() and not (root / path).exists():
            return pieces.read(_excerpt(part), work.field, work.band, rows, threads)
        data = _read_file(root, path, losses)
        if decode == "blocks":
            return blocks.read(data, work.field, work.band, rows, threads)
        image = frame.read(data, work.field, work.band)
        rows(image.header)
        return image
    except BadFrame as bad:
        raise _Lost(path, Loss(False, str(bad))) from None


def _excerpt(path: Path) -> Excerpt:
    try:
        return Excerpt.from_bytes(path.read_bytes())
    except ValueError as error:
        raise BadFrame(str(error)) from None


def _read_mask(work: Work, root: Path, losses: dict[str, Loss]) -> np.ndarray:
    """The mask; without it the frame is of no use to who asked for masks, absent or not."""
    path = mask_path(work.field, work.band)
    try:
        return masks.read(_read_file(root, path, losses), work.field)
    except _Lost as lost:
        loss = Loss(False, str(lost).partition(": ")[2])
        raise _Lost(path, loss, "the mask is ", lost.unknown) from None
    except BadFrame as bad:
        raise _Lost(path, Loss(False, str(bad)), "the mask: ") from None


def _read_file(root: Path, path: str, losses: dict[str, Loss]) -> bytes:
    try:
        return (root / path).read_bytes()
    except FileNotFoundError:
        default = Loss(True, ABSENT)
        raise _Lost(path, losses.get(path, default), unknown=path not in losses) from None
    except OSError as error:
        if error.errno in PASSING:
            raise
        loss = Loss(False, f"cannot be read ({error.strerror})")
        raise _Lost(path, loss) from None


def _cut_stamp(
    record: np.ndarray,
    image: Frame,
    wcs: WCS,
    flags: np.ndarray | None,
    ra: float,
    dec: float,
    place: Place,
    work: Work,
    recipe: Recipe,
) -> None:
    """Fill in one frame's part of one stamp, a record of `recipe.record`."""
    part = place.part
    patch = image.pixels(part.rows)[:, part.columns].astype(np.float32)
    variance, mask = overlap.NO_VARIANCE, overlap.NO_MASK
    if recipe.variance:
        variance = image.variance(part.rows, part.columns, work.gain, work.dark)
    if flags is not None:
        mask = np.ascontiguousarray(flags[part.rows, part.columns])
    cut = overlap.cut(patch, place.corners - part.origin, variance, mask)
    engine = ENGINES[recipe.engine]
    if engine is not None and cut.share.any():
        moved = wcs.deepcopy()
        moved.wcs.crpix -= part.origin
        value, share = engine(patch, moved, ra, dec, recipe.stamp)
        cut = cut._replace(value=value, share=share)
    area = cut.area if recipe.conserve_flux else 1.0
    record["images"], record["share"] = cut.value * area, cut.share
    record["sky_noise"] = image.sky_noise(part.rows)
    if recipe.variance:
        record["variance"] = cut.variance * area**2
    if recipe.mask:
        record["mask"] = cut.mask
