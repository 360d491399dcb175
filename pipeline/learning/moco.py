"""MoCo v2: a momentum encoder, a queue of its keys, and InfoNCE.

He et al. 2020 (arXiv:1911.05722) and Chen et al. 2020 (arXiv:2003.04297), on galaxies as in
Hayat et al. 2020 (arXiv:2012.13083). Batch statistics could tell which key belongs to which query.
So they are taken over groups of the batch, and keys are encoded in another order than queries: a
key is normalised in other company than its query is. Over many ranks that is MoCo's shuffled batch
normalisation; here it is the same thing on one device, whose groups stand for ranks.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline import run
from pipeline.learning.encoder import Encoder, EncoderSpec, Projection, seeded
from pipeline.learning.method import Loss, Method, Projector, micro_batches
from pipeline.learning.ranks import Ranks
from pipeline.learning.resnet import share_momentum
from pipeline.run import UserError
from pipeline.survey.hashing import mix64

DIM = 128
_WEIGHTS, _QUEUE, _ORDER = 1, 2, 3
"""What the draws of a seed are hashed with."""


class MoCo(Method):
    """Queries from `network`, keys from its slow copy `key`, old keys in `queue` (K, 128)."""

    name = "moco"

    def __init__(
        self,
        spec: EncoderSpec,
        queue: int,
        momentum: float = 0.999,
        temperature: float = 0.1,
        groups: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        ranks: Ranks | None = None,
    ):
        """`groups` are those of the whole batch, over all ranks and micro-batches.

        Raises:
            UserError: groups that ranks and micro-batches do not share evenly, or numbers out of
            their range.
        """
        super().__init__()
        self.ranks = ranks or Ranks()
        own = shared_groups(groups, self.ranks.ranks, accumulate)
        if not 0 <= momentum < 1:
            raise UserError(f"momentum: {momentum}; give a number from 0 up to, not including, 1")
        if not temperature > 0:
            raise UserError(f"temperature: {temperature}; give a number above 0")
        self.momentum, self.temperature = momentum, temperature
        self.accumulate, self.seed, self.pointer = accumulate, seed, 0
        with seeded(_seed(seed, _WEIGHTS)):
            encoder = Encoder(spec, own)
            self.network = Projector(encoder, Projection(encoder.feature_dim, DIM))
        self.key = copy.deepcopy(self.network).requires_grad_(False)
        with seeded(_seed(seed, _QUEUE)):
            start = torch.randn(queue, DIM, dtype=torch.float64)
        self.register_buffer("queue", functional.normalize(start, dim=1).float())

    @torch.no_grad()
    def prepare(self, views: list[torch.Tensor], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Move the key encoder, and encode the second views with it.

        Gives this rank's keys (n, 128) and those of the whole batch (n ranks, 128), both in the
        batch's order.
        """
        update_momentum(self.key, self.network, self.momentum)
        views = self.ranks.gather(views[1])
        order = torch.as_tensor(shuffle(self.seed, step, len(views)), device=views.device)
        mine = views[order[self.ranks.rank :: self.ranks.ranks]]
        encoded = torch.empty(len(mine), DIM, dtype=mine.dtype, device=mine.device)
        for part, rows in enumerate(micro_batches(self.accumulate)):
            share_momentum(self.key, part, self.accumulate)
            encoded[rows] = self.key(mine[rows])
        shuffled = self.ranks.gather(encoded)
        keys = torch.empty_like(shuffled)
        keys[order] = shuffled
        return keys[self.ranks.rank :: self.ranks.ranks], keys

    def loss(
        self, network: nn.Module, views: list[torch.Tensor],
        prepared: tuple[torch.Tensor, torch.Tensor], rows: slice,
    ) -> Loss:  # fmt: skip
        """InfoNCE of `rows` of this rank's batch; `network` may be a wrap of `self.network`."""
        queries = network(views[0][rows])
        logits = similarities(queries, prepared[0][rows], self.queue, self.temperature)
        return Loss(info_nce(logits), queries.detach(), (logits.argmax(1) == 0).float().mean())

    @torch.no_grad()
    def after_step(self, prepared: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Put the whole batch's keys in the place of the oldest ones."""
        keys = prepared[1]
        self.queue[self.pointer : self.pointer + len(keys)] = keys
        self.pointer = (self.pointer + len(keys)) % len(self.queue)

    def get_extra_state(self) -> int:
        """The pointer goes into the state beside the queue."""
        return self.pointer

    def set_extra_state(self, state: int) -> None:
        """Take the pointer back."""
        self.pointer = state


def similarities(
    queries: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor, temperature: float
) -> torch.Tensor:
    """q.k / tau of unit vectors: (n, 1 + K), the query's own key first, then the queue's."""
    own = (queries * keys).sum(dim=1, keepdim=True)
    return torch.cat([own, queries @ queue.T], dim=1) / temperature


def info_nce(logits: torch.Tensor) -> torch.Tensor:
    """Mean over rows of -log(exp l_0 / sum_j exp l_j): Hayat et al. 2020, equation 1."""
    return (torch.logsumexp(logits, dim=1) - logits[:, 0]).mean()


@torch.no_grad()
def update_momentum(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q, of parameters: Hayat et al. 2020, equation 2."""
    slow, fast = list(key.parameters()), list(query.parameters())
    torch._foreach_mul_(slow, momentum)
    torch._foreach_add_(slow, fast, alpha=1 - momentum)


def shuffle(seed: int, step: int, count: int) -> np.ndarray:
    """The order in which keys of step `step` are encoded: a permutation of `count` rows, int64."""
    return np.argsort(mix64(np.arange(count), _seed(_seed(seed, _ORDER), step)), kind="stable")


def check_queue(queue: int, batch: int, images: int) -> None:
    """Refuse a queue in which an image's own old keys would be among its negatives.

    Raises:
        UserError: longer than half the set, or not a multiple of the batch; a number that fits is
        in the line.
    """
    longest = images // 2 // batch * batch
    if not longest:
        raise UserError(
            f"batch: {batch}, but half of the set is {images // 2} images and a queue holds one "
            f"batch at least; give a batch of {max(1, images // 2)} or fewer"
        )
    fits = max(batch, min(longest, queue // batch * batch))
    if queue > images // 2:
        raise UserError(f"queue: {queue} keys are more than half of the set's {images} images; "
                        f"give {fits}")  # fmt: skip
    if queue < batch or queue % batch:
        raise UserError(f"queue: {queue} keys are no multiple of the batch of {batch}; give {fits}")


def check_groups(groups: int, batch: int) -> None:
    """Refuse groups that do not share a batch evenly, two images or more in each.

    Raises:
        UserError: with a number that fits.
    """
    if groups < 1 or batch % groups or batch // groups < 2:
        fits = next((g for g in range(min(groups, batch // 2), 1, -1) if batch % g == 0), 1)
        raise UserError(f"groups: {groups} do not share a batch of {batch} evenly with two images "
                        f"or more in each; give {fits}")  # fmt: skip
    if groups == 1:
        run.log.warning(
            "groups: with 1, batch statistics can tell which key belongs to a query; give more"
        )


def shared_groups(groups: int, ranks: int, accumulate: int) -> int:
    """Groups in a micro-batch of a rank.

    Raises:
        UserError: ranks times micro-batches do not divide the groups.
    """
    parts = ranks * accumulate
    if accumulate < 1 or groups % parts:
        raise UserError(
            f"groups: {groups} cannot be shared by {ranks} ranks with {accumulate} micro-batches "
            f"each; give a multiple of {max(parts, 1)}"
        )
    return groups // parts


def _seed(seed: int, label: int) -> int:
    return int(mix64(np.asarray([label]), seed)[0] >> np.uint64(2))
