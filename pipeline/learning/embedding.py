"""Representations: the vectors that an encoder makes of every image, in order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline import run
from pipeline.images.reader import ImageSet
from pipeline.learning.augment import centre, e_bv_of
from pipeline.learning.batches import Batch, in_order
from pipeline.learning.encoder import Encoder


def embed(
    images: ImageSet,
    encoder: Encoder,
    projection: nn.Module | None = None,
    deredden: bool = True,
    turns: int = 1,
    batch: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Blocks of vectors in the order of the images: (first row, {"pooled", "contrastive"}).

    `pooled` (n, feature_dim) float32 is the encoder's output for the central crop, `contrastive`
    (n, dim) float32 what `projection` makes of it, at unit length (dim is 128 of MoCo, 64 of
    SimCLR); left out without a projection.
    With `turns` 8 both are the means over the eight turns and reflections of the stamp (the
    contrastive ones brought back to unit length).

    Raises:
        UserError: the encoder's crop does not fit the images, an image that is not finite, or
            an encoder that makes no finite vector of one.
    """
    device = torch.device(device)
    nets = [net.to(device).eval() for net in (encoder, projection) if net is not None]
    progress = run.Progress("embed", len(images), "images")
    for one in in_order(images, batch, workers):
        total = None
        for turn in range(turns):
            vectors = _vectors(one, nets, deredden, turn, device)
            total = vectors if total is None else list(map(torch.add, total, vectors))
        pooled, *contrastive = (part / turns for part in total)
        _refuse_not_finite(one, pooled)
        block = {"pooled": pooled.cpu().numpy()}
        if contrastive:
            block["contrastive"] = functional.normalize(contrastive[0]).cpu().numpy()
        yield int(one.index[0]), block
        progress.add(len(one.index))
    progress.close()


@torch.inference_mode()
def _vectors(one: Batch, nets, deredden: bool, turn: int, device) -> list[torch.Tensor]:
    """Pooled, and contrastive where there is a projection, of one turn of a batch."""
    encoder, *projection = nets
    images, extinction = one.images.to(device), one.extinction.to(device)
    stamps = centre(images, extinction, encoder.spec.crop, deredden, turn)
    pooled = encoder(stamps.to(next(encoder.parameters()).dtype), e_bv_of(extinction))
    return [pooled, *(functional.normalize(head(pooled)) for head in projection)]


def _refuse_not_finite(one: Batch, vectors: torch.Tensor) -> None:
    good = torch.isfinite(vectors).all(dim=1).cpu().numpy()
    if not good.all():
        bad = one.objid[int(good.argmin())]
        raise run.UserError(
            f"galaxy {bad}: the encoder's output is not finite; make the encoder anew"
        )
