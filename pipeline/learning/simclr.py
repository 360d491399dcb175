"""SimCLR: two views of a galaxy against all other views of the batch, by NT-Xent.

Chen et al. 2020 (arXiv:2002.05709), on galaxies as in Sarmiento et al. 2020. The loss compares all
views of a batch, so its parts cannot be computed one after the other as they are. Where a batch is
shared by micro-batches or ranks, gradients are cached (Gao et al. 2021, arXiv:2101.06983): all
vectors are made without a graph; the loss of the whole batch and its gradient by each vector
follow; then each micro-batch is made again with a graph and is given its vectors' gradient. That
is the whole batch's loss and gradient, to rounding, for one forward pass more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline.learning.encoder import Encoder, EncoderSpec, seeded
from pipeline.learning.method import Loss, Method, Projector, micro_batches
from pipeline.learning.moco import check_groups, shared_groups
from pipeline.learning.nets import NETS
from pipeline.learning.ranks import Ranks
from pipeline.learning.resnet import share_momentum
from pipeline.learning.sarmiento import DIM, Head
from pipeline.run import UserError
from pipeline.survey.hashing import mix64

_WEIGHTS = 1
"""What the draws of a seed are hashed with."""


class Cached(NamedTuple):
    """The whole batch's loss and top1, and the loss's gradient by this rank's vectors (n, 2, d)."""

    loss: torch.Tensor
    top1: torch.Tensor
    gradient: torch.Tensor


class SimCLR(Method):
    """NT-Xent of the vectors that `network` makes of both views: `Head`'s 64 numbers.

    These 64 are the representation of Sarmiento et al. 2020 (64 parameters, where the encoder has
    1024 features), and what the loss is of. It knows their direction alone, so that they are kept
    at unit length.
    """

    name = "simclr"
    remedy = "a larger batch"

    def __init__(
        self,
        spec: EncoderSpec,
        temperature: float = 0.5,
        groups: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        ranks: Ranks | None = None,
    ):
        """`groups` are those of the whole batch, for nets that normalise; others have none.

        Raises:
            UserError: groups that ranks and micro-batches do not share evenly, or a temperature
            out of its range.
        """
        super().__init__()
        self.ranks = ranks or Ranks()
        own = 1
        if NETS[spec.net].normalises:
            own = shared_groups(groups, self.ranks.ranks, accumulate)
        if not temperature > 0:
            raise UserError(f"temperature: {temperature}; give a number above 0")
        self.temperature, self.accumulate = temperature, accumulate
        with seeded(int(mix64(np.asarray([_WEIGHTS]), seed)[0] >> np.uint64(2))):
            encoder = Encoder(spec, own)
            self.network = Projector(encoder, Head(encoder.feature_dim))

    def prepare(self, views: list[torch.Tensor], step: int) -> Cached | None:
        """The cached gradient, where the batch is in parts; None where `loss` sees all of it."""
        if self.accumulate == 1 and self.ranks.ranks == 1:
            return None
        rows = len(views[0])
        own = torch.empty(rows, 2, DIM, dtype=views[0].dtype, device=views[0].device)
        with torch.no_grad():
            for part, at in enumerate(micro_batches(self.accumulate)):
                # running statistics move in the pass with a graph, and not in this one
                share_momentum(self.network, part, self.accumulate, momentum=0.0)
                own[at] = _vectors(self.network, views, at)
        everyone = self.ranks.gather(own).requires_grad_()
        logits = similarities(everyone, self.temperature)
        loss = nt_xent(logits)
        gradient = torch.autograd.grad(loss, everyone)[0]
        mine = gradient[self.ranks.rank :: self.ranks.ranks]
        return Cached(loss.detach(), first_places(logits), mine)

    def loss(
        self, network: nn.Module, views: list[torch.Tensor], prepared: Cached | None, rows: slice
    ) -> Loss:
        """The whole batch's loss, with the gradient that `rows` of this rank have in it.

        It is that gradient times ranks and micro-batches, over which the loop takes the mean.
        """
        vectors = _vectors(network, views, rows)
        if prepared is None:
            logits = similarities(vectors, self.temperature)
            return Loss(nt_xent(logits), vectors[:, 0].detach(), first_places(logits))
        share = (vectors * prepared.gradient[rows]).sum() * (self.accumulate * self.ranks.ranks)
        loss = prepared.loss + (share - share.detach())
        return Loss(loss, vectors[:, 0].detach(), prepared.top1)


def _vectors(network: nn.Module, views: list[torch.Tensor], rows: slice) -> torch.Tensor:
    """Unit vectors (n, 2, d) of both views of `rows`, made in one pass."""
    both = network(torch.cat([view[rows] for view in views]))
    return torch.stack(both.chunk(2), dim=1)


def similarities(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    """z_i.z_j / tau (2n, 2n) of unit vectors (n, 2, d): first all first views, then all second.

    -inf on the diagonal: a view is not compared with itself.
    """
    flat = vectors.transpose(0, 1).flatten(0, 1)
    same = torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    return (flat @ flat.T / temperature).masked_fill(same, -torch.inf)


def nt_xent(logits: torch.Tensor) -> torch.Tensor:
    """Mean over all 2n views of -log(exp l_ij / sum_{k != i} exp l_ik), j the other view of i's.

    Chen et al. 2020, equation 1 and algorithm 1, of `similarities`.
    """
    return functional.cross_entropy(logits, _others(logits))


def first_places(logits: torch.Tensor) -> torch.Tensor:
    """The share of views to which none is nearer than the other one of the same galaxy."""
    return (logits.detach().argmax(dim=1) == _others(logits)).float().mean()


def _others(logits: torch.Tensor) -> torch.Tensor:
    """The column of each row's other view."""
    return torch.arange(len(logits), device=logits.device).roll(len(logits) // 2)


def check_batch(spec: EncoderSpec, groups: int, batch: int, ranks: int, accumulate: int) -> None:
    """Refuse a batch that ranks and micro-batches, or a normalising net's groups, do not share.

    Raises:
        UserError: with what fits.
    """
    parts = ranks * accumulate
    if batch % parts:
        raise UserError(f"batch: {batch} cannot be shared by {ranks} ranks with {accumulate} "
                        f"micro-batches each; give a multiple of {parts}")  # fmt: skip
    if NETS[spec.net].normalises:
        check_groups(groups, batch)
