"""Batches of stamps: in an order that can be taken up at any step, or once through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.images.reader import ImageSet
from pipeline.run import UserError
from pipeline.survey.hashing import mix64

SEEDS = 1 << 32
"""Seeds are from 0 up to, not including, this."""
_ORDER = 0x0DE4
"""What the order of an epoch is hashed with."""


@dataclass
class Batch:
    """Stamps of one step, in the order of `index` (rows of the set).

    images (n, 5, S, S) [nanomaggies] in the stored dtype, extinction (n, 5) float32 [mag, DR12's;
    NaN unknown], z (n,) float32 (NaN where unlabelled), objid (n,) int64.
    """

    step: int
    epoch: int
    index: np.ndarray
    objid: np.ndarray
    images: torch.Tensor
    extinction: torch.Tensor
    z: torch.Tensor


class Batches:
    """The stamps of a set in random order, epoch after epoch, in batches of one size.

    Which rows make step k follows from `seed`, k and the galaxies of the set, not from workers or
    ranks or where a run began: rank r of `ranks` gets every `ranks`-th row of a batch, from r. An
    epoch leaves out the rest that does not fill a batch, another one each time.
    """

    def __init__(
        self,
        images: ImageSet,
        batch: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        memory_gb: float = 4.0,
    ):
        """`batch` is that of all ranks together; sets below `memory_gb` are kept in memory.

        Raises:
            UserError: the set is smaller than a batch, or ranks do not share a batch evenly.
        """
        if not 1 <= batch <= len(images):
            raise UserError(
                f"batch: {batch}, but the set has {len(images)} images; give 1 to {len(images)}"
            )
        _refuse_negative(workers)
        if batch % ranks:
            raise UserError(f"batch: {batch} cannot be shared by {ranks} ranks; give a multiple")
        self.images = images.in_memory() if images.nbytes <= memory_gb * 1e9 else images
        self.batch, self.seed, self.workers = batch, seed, workers
        self.rank, self.ranks = rank, ranks

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.images) // self.batch

    def order(self, epoch: int) -> np.ndarray:
        """The rows of the set in the order of `epoch`, (n,) int64."""
        key = mix64(np.asarray([epoch]), self.seed)[0].astype(np.int64)
        return np.argsort(mix64(mix64(self.images.objid, int(key)), _ORDER), kind="stable")

    def steps(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of the global steps `first` up to, not including, `last`.

        Raises:
            UserError: a file cannot be read, an image is not finite, a worker dies.
        """
        numbers = range(first, last)
        read = _read(self.images, self._rows(numbers), self.workers)
        for step, (index, images) in zip(numbers, read, strict=True):
            yield _batch(self.images, step, step // self.steps_per_epoch, index, images)

    def _rows(self, steps: Iterable[int]) -> Iterator[np.ndarray]:
        """The rows of each step that fall to this rank."""
        epoch, order = -1, np.empty(0, np.int64)
        for step in steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            at = (step % self.steps_per_epoch) * self.batch
            yield order[at : at + self.batch][self.rank :: self.ranks]


def in_order(images: ImageSet, batch: int, workers: int = 0) -> Iterator[Batch]:
    """Every row once, in the set's order, none left out; the last batch may be smaller.

    Raises:
        UserError: as `Batches.steps`.
    """
    _refuse_negative(workers)
    rows = (
        np.arange(first, min(first + batch, len(images))) for first in range(0, len(images), batch)
    )
    for step, (index, pixels) in enumerate(_read(images, rows, workers)):
        yield _batch(images, step, 0, index, pixels)


def _batch(images: ImageSet, step: int, epoch: int, index: np.ndarray, pixels) -> Batch:
    z = images.table["z"].to_numpy()[index].astype(np.float32)
    return Batch(
        step=step,
        epoch=epoch,
        index=index,
        objid=images.objid[index],
        images=pixels,
        extinction=torch.from_numpy(images.extinction[index]),
        z=torch.from_numpy(z),
    )


class _Rows(Dataset):
    """The set as DataLoader's workers see it: an item is a batch, asked for by its rows."""

    def __init__(self, images: ImageSet):
        self.images = images

    def __getitem__(self, rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor | str]:
        try:
            return rows, torch.from_numpy(self.images.read(rows))
        except UserError as error:
            return rows, str(error)  # raised by the parent: a worker's errors become tracebacks


def _read(
    images: ImageSet, rows: Iterable[np.ndarray], workers: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """(rows, their images) in the order of `rows`, read ahead by `workers` processes."""
    if images.pixels is not None:
        workers = 0  # a copy out of memory is quicker than its way between processes
    loader = DataLoader(
        _Rows(images),
        batch_size=None,
        sampler=rows,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else it draws from the one that all share
    )
    batches = iter(loader)
    try:
        for index, pixels in batches:
            if isinstance(pixels, str):
                raise UserError(pixels)
            yield index, pixels
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that reads images ended ({' '.join(str(error).split())}); "
            "give fewer workers or smaller batches, or look for a lack of memory"
        ) from None


def _refuse_negative(workers: int) -> None:
    if workers < 0:
        raise UserError(f"workers: {workers}; give 0 or more")


def _as_it_is(item: object) -> object:
    return item
