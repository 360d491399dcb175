"""A small fully connected net on vectors: early or late, from a frozen encoder's features."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline.images.morphology import CLASSES
from pipeline.learning.augment import refuse_wrong
from pipeline.learning.batches import SEEDS
from pipeline.learning.encoder import seeded
from pipeline.learning.tasks import log_loss
from pipeline.learning.training import SELECT
from pipeline.run import UserError


@dataclass(frozen=True)
class SmallSettings:
    """How a small net is trained: AdamW, `epochs` times through the labels at a constant rate.

    With `select` best the weights of the epoch that valid galaxies judge best are taken.
    """

    hidden: int = 64
    epochs: int = 200
    batch: int = 32
    lr: float = 0.001
    weight_decay: float = 0.01
    dropout: float = 0.2
    select: str = "best"
    seed: int = 0

    def __post_init__(self):
        refuse_wrong((
            ("hidden", self.hidden, self.hidden >= 1, "1 or more"),
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("batch", self.batch, self.batch >= 1, "1 or more"),
            ("lr", self.lr, 0 < self.lr < math.inf, "a number above 0"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "0 or more, and less than 1"),
            ("select", self.select, self.select in SELECT, f"one of {', '.join(SELECT)}"),
            ("seed", self.seed, 0 <= self.seed < SEEDS, f"0 or more, and less than {SEEDS}"),
        ))  # fmt: skip


class SmallNet(nn.Module):
    """Vectors (n, dim) -> logits (n, 2) of `CLASSES`: one hidden layer, ReLU, dropout before it.

    What goes in is centred and scaled by `mean` and `scale` (dim,), those of the labelled vectors.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, seed: int = 0):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        with seeded(seed):
            self.layers = nn.Sequential(
                nn.Dropout(dropout), nn.Linear(dim, hidden), nn.ReLU(),
                nn.Linear(hidden, len(CLASSES)),
            )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of vectors (n, dim)."""
        return self.layers((x - self.mean) / self.scale)

    @torch.no_grad()
    def early_chances(self, x: np.ndarray) -> np.ndarray:
        """The probability of each of `x` (n, dim) that its galaxy is early, (n,) float64."""
        logits = self.eval()(torch.from_numpy(x))
        return logits.double().softmax(dim=1)[:, CLASSES.index("early")].numpy()


@dataclass(frozen=True)
class Labelled:
    """Vectors (n, dim) float32 and whether their galaxies are early (n,) bool."""

    x: np.ndarray
    early: np.ndarray


def fit_small(
    train: Labelled, valid: Labelled, settings: SmallSettings
) -> tuple[SmallNet, dict, list[dict]]:
    """(the net with the chosen weights, facts, a row of the history for each epoch).

    Facts: labels, epoch of the chosen weights, valid_log_loss (None without valid galaxies).

    Raises:
        UserError: a loss that is not finite.
    """
    net = SmallNet(train.x.shape[1], settings.hidden, settings.dropout, settings.seed)
    net.mean.copy_(torch.from_numpy(train.x.mean(0)))
    spread = train.x.std(0)
    net.scale.copy_(torch.from_numpy(np.where(spread > 0, spread, 1)))
    x, classes = torch.from_numpy(train.x), torch.from_numpy(train.early.astype(np.int64))
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    best: dict = {"epoch": 0, "valid_log_loss": None}
    history, weights = [], {}
    with seeded(settings.seed + 1):  # the order of the labels, and what drops out
        for epoch in range(1, settings.epochs + 1):
            loss = _epoch(net, optimiser, x, classes, settings.batch)
            if not np.isfinite(loss):
                raise UserError(f"epoch {epoch}: the loss is {loss}; give a smaller lr")
            found = log_loss(net.early_chances(valid.x), valid.early) if len(valid.x) else None
            history.append({"epoch": epoch, "loss": loss, "valid_log_loss": found})
            last = settings.select == "last" or found is None
            if last or best["valid_log_loss"] is None or found < best["valid_log_loss"]:
                best = {"epoch": epoch, "valid_log_loss": found}
                weights = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(weights)
    return net.eval(), {"labels": len(train.x), **best, **asdict(settings)}, history


def _epoch(net: SmallNet, optimiser, x: torch.Tensor, classes: torch.Tensor, batch: int) -> float:
    """Once through the labels in random order; the mean loss."""
    net.train()
    total = 0.0
    for rows in torch.randperm(len(x)).split(batch):
        loss = functional.cross_entropy(net(x[rows]), classes[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * len(rows)
    return total / len(x)
