"""What a net is trained for: the loss of its logits, and what tells how good it is on valid."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from pipeline.images.morphology import CLASSES
from pipeline.images.reader import ImageSet
from pipeline.learning import predict
from pipeline.learning.batches import Batch
from pipeline.learning.losses import LOSSES
from pipeline.learning.redshift import Bins


class Task(NamedTuple):
    """`judged` names, in histories, what `judge` gives: the less, the better."""

    judged: str
    loss: Callable[[torch.Tensor, Batch], torch.Tensor]
    """Of logits (n, outputs) of a batch: their mean loss."""
    judge: Callable[..., float]
    """Of a net, valid galaxies, and the options of `predict.outputs`."""


def redshifts(bins: Bins, loss: str) -> Task:
    """Redshifts of the batch in `bins`, by one of `LOSSES`; judged by CRPS."""

    def of_logits(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return LOSSES[loss](logits, batch.z.to(logits.device), bins)

    def judge(net, valid: ImageSet, **options) -> float:
        # pandas would leave NaN out
        return float(predict.predictions(net, valid, **options)["crps"].to_numpy().mean())

    return Task("valid_crps", of_logits, judge)


def types(objid: np.ndarray, early: np.ndarray) -> Task:
    """Early or late, as `early` (n,) bool says of galaxies `objid` (n,); judged by cross-entropy.

    Logits are those of `CLASSES`.
    """
    order = np.argsort(objid)
    objid, number = objid[order], early[order].astype(np.int64)

    def classes(of: np.ndarray) -> np.ndarray:
        return number[np.searchsorted(objid, of)]

    def of_logits(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return functional.cross_entropy(
            logits, torch.from_numpy(classes(batch.objid)).to(logits.device)
        )

    def judge(net, valid: ImageSet, **options) -> float:
        return log_loss(early_chances(net, valid, **options), classes(valid.objid))

    return Task("valid_log_loss", of_logits, judge)


def early_chances(net, images: ImageSet, **options) -> np.ndarray:
    """What `net` says of each of `images` (n,): the probability that it is early, float64.

    `options` are those of `predict.outputs`.
    """
    parts = [part.pdf[:, CLASSES.index("early")] for part in
             predict.outputs(net, images, **options)]  # fmt: skip
    return np.concatenate([np.empty(0), *parts])


def log_loss(p: np.ndarray, early: np.ndarray) -> float:
    """Mean of -ln of the probability that (n,) `p` of early gave to what is true."""
    given = np.where(early, p, 1 - p)
    return float(-np.log(np.maximum(given, np.finfo(np.float64).tiny)).mean())
