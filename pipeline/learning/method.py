"""What a method of learning from images alone is: the part that the training loop need not know."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from pipeline.learning.encoder import Encoder


class Projector(nn.Module):
    """Encoder and projection: images -> unit vectors (n, dim); `amp` is autocast's dtype, if any.

    The vectors have the dtype of the images.
    """

    def __init__(self, encoder: Encoder, projection: nn.Module):
        super().__init__()
        self.encoder, self.projection = encoder, projection
        self.amp: torch.dtype | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors of `images` (n, 5, crop, crop) [nanomaggies]."""
        with torch.autocast(images.device.type, self.amp, enabled=self.amp is not None):
            vectors = self.projection(self.encoder(images))
        return functional.normalize(vectors.to(images.dtype), dim=1)


class Loss(NamedTuple):
    """Of a micro-batch: its loss, unit vectors (n, dim), and the share of them in first place.

    That is the share of rows that are more like their own other view than like any negative.
    """

    loss: torch.Tensor
    vectors: torch.Tensor
    top1: torch.Tensor


class Method(nn.Module):
    """A way of learning from views. All that has to be kept is in `state_dict`.

    `network` is what is trained; the loop may wrap it and hands the wrap to `loss`. In a step the
    loop calls `prepare` once, `loss` for each micro-batch (rows of the batch: a slice), and after
    the optimiser's step `after_step`. `remedy` is what may help against a collapse, beside what
    helps every method.
    """

    name: str
    remedy: str = "a longer queue"
    network: Projector

    def prepare(self, views: list[torch.Tensor], step: int) -> object:
        """What the losses of all micro-batches need; `views` are this rank's, (n, 5, c, c) each."""
        raise NotImplementedError

    def loss(
        self, network: nn.Module, views: list[torch.Tensor], prepared: object, rows: slice
    ) -> Loss:
        """The mean loss of `rows` of the batch."""
        raise NotImplementedError

    def after_step(self, prepared: object) -> None:
        """What follows a step of the optimiser."""


def micro_batches(count: int) -> list[slice]:
    """The rows of each of `count` micro-batches of a batch: j::count."""
    return [slice(part, None, count) for part in range(count)]


def spread(vectors: torch.Tensor) -> float:
    """Standard deviation of unit vectors (n, dim) about their mean, times the root of dim.

    1 where they lie all over the sphere, 0 where all are the same: the net has collapsed.
    """
    variance = vectors.double().var(dim=0, correction=0)
    return float(variance.mean().sqrt() * vectors.shape[1] ** 0.5)
