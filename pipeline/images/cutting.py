"""One frame and the galaxies on it -> each galaxy's part of its stamp, in a scratch file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.wcs import WCS

from pipeline.images import overlap
from pipeline.images.engines import ENGINES, MARGIN
from pipeline.images.geometry import corners, window
from pipeline.images.stamp import Stamp
from pipeline.survey import frame, masks
from pipeline.survey.archive import Loss
from pipeline.survey.frame import BadFrame, Frame
from pipeline.survey.names import Field, frame_path, mask_path


@dataclass(frozen=True)
class Recipe:
    """How stamps are made: geometry, engine, and which planes go with the image."""

    stamp: Stamp = field(default_factory=Stamp)
    engine: str = "overlap"
    conserve_flux: bool = False
    variance: bool = False
    mask: bool = False

    @property
    def planes(self) -> tuple[str, ...]:
        """The optional planes asked for."""
        return tuple(name for name in ("variance", "mask") if getattr(self, name))

    @property
    def record(self) -> np.dtype:
        """What one frame gives to one stamp, as it lies in a scratch file."""
        side = (self.stamp.size, self.stamp.size)
        kinds = {"images": "f4", "share": "f4", "variance": "f4", "mask": "u2"}
        names = ("images", "share", *self.planes)
        return np.dtype([(name, kinds[name], side) for name in names])


class Work(NamedTuple):
    """One frame and the galaxies to cut from it."""

    field: Field
    band: str
    sky: np.ndarray
    """(n, 2) ra, dec [deg]"""
    gain: float
    dark: float


class Report(NamedTuple):
    """What came of a frame: its sky noise, or why it could not be used."""

    sky_noise: float
    problem: str | None = None
    absent: bool = False


def cut_frame(work: Work, root: Path, recipe: Recipe, losses: dict, scratch: Path) -> Report:
    """Cut every galaxy of `work` from its frame below `root` into the file `scratch`.

    `losses` tells why files are not there (path -> Loss); what a frame lacks is reported, never
    raised, so that a bad frame costs its own galaxies only.
    """
    path = frame_path(work.field, work.band)
    try:
        data = _read_file(root, path, losses)
        image = frame.read(data, work.field, work.band)
        del data
        flags = None
        if recipe.mask:
            path = mask_path(work.field, work.band)
            flags = masks.read(_read_file(root, path, losses), work.field)
    except _NotThere as absent:
        return Report(np.nan, str(absent), absent.absent)
    except BadFrame as bad:
        return Report(np.nan, f"{Path(path).name}: {bad}")
    wcs = image.wcs()
    with open(scratch, "wb") as file:
        for ra, dec in work.sky:
            file.write(_cut_stamp(image, wcs, flags, ra, dec, work, recipe).tobytes())
    return Report(image.sky_noise())


class _NotThere(Exception):
    def __init__(self, name: str, loss: Loss):
        super().__init__(f"{name}: {loss.reason}")
        self.absent = loss.absent


def _read_file(root: Path, path: str, losses: dict[str, Loss]) -> bytes:
    try:
        return (root / path).read_bytes()
    except FileNotFoundError:
        default = Loss(True, f"not in the archive {root}")
        raise _NotThere(Path(path).name, losses.get(path, default)) from None
    except OSError as error:
        loss = Loss(False, f"cannot be read ({error.strerror})")
        raise _NotThere(Path(path).name, loss) from None


def _cut_stamp(
    image: Frame,
    wcs: WCS,
    flags: np.ndarray | None,
    ra: float,
    dec: float,
    work: Work,
    recipe: Recipe,
) -> np.ndarray:
    """One frame's part of one stamp, as a record of `recipe.record`."""
    record = np.zeros((), dtype=recipe.record)
    points = corners(recipe.stamp, ra, dec, wcs)
    if not np.isfinite(points).all():
        return record
    part = window(points, image.image.shape, MARGIN)
    if not part:
        return record
    patch = image.image[part.rows, part.columns].astype(np.float32)
    variance, mask = overlap.NO_VARIANCE, overlap.NO_MASK
    if recipe.variance:
        variance = image.variance(part.rows, part.columns, work.gain, work.dark)
    if flags is not None:
        mask = np.ascontiguousarray(flags[part.rows, part.columns])
    cut = overlap.cut(patch, points - part.origin, variance, mask)
    engine = ENGINES[recipe.engine]
    if engine is not None and cut.share.any():
        moved = wcs.deepcopy()
        moved.wcs.crpix -= part.origin
        value, share = engine(patch, moved, ra, dec, recipe.stamp)
        cut = cut._replace(value=value, share=share)
    area = cut.area if recipe.conserve_flux else 1.0
    record["images"], record["share"] = cut.value * area, cut.share
    if recipe.variance:
        record["variance"] = cut.variance * area**2
    if recipe.mask:
        record["mask"] = cut.mask
    return record
