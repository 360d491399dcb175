"""Losses of a redshift PDF: cross-entropy of hard bins, CRPS, and the ordinal log score.

All take logits (n, bins.count) and redshifts (n,) and give the mean over the n galaxies.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from pipeline.learning.redshift import Bins


def cross_entropy(logits: torch.Tensor, z: torch.Tensor, bins: Bins) -> torch.Tensor:
    """- ln p of the bin that z lies in (Hayat et al. 2020; Pasquet et al. 2019)."""
    return functional.cross_entropy(logits, bins.index(z))


def crps(logits: torch.Tensor, z: torch.Tensor, bins: Bins) -> torch.Tensor:
    """Continuous ranked probability score, in units of redshift.

    The integral of (F(x) - [x >= z])^2 over the bins, F the CDF, which is linear in each bin
    (Gneiting & Raftery 2007, equation 20). A bin in which it goes from a to b, both on one side
    of z, gives width (a^2 + a b + b^2) / 3, with 1 - F for F above z; the bin of z is cut there.
    """
    z, index = bins.clip(z).to(logits.dtype), bins.index(z)[:, None]
    p = logits.softmax(dim=1)
    upper = p.cumsum(dim=1)
    lower = upper - p
    below = _square(lower, upper)
    above = _square(1 - lower, 1 - upper)
    place = torch.arange(bins.count, device=logits.device)[None]
    whole = torch.where(place < index, below, torch.where(place > index, above, 0.0)).sum(dim=1)
    share = (z / bins.width - index[:, 0]).clamp(0, 1)
    first, last = lower.gather(1, index)[:, 0], upper.gather(1, index)[:, 0]
    middle = first + share * (last - first)
    cut = share * _square(first, middle) + (1 - share) * _square(1 - middle, 1 - last)
    return ((whole + cut) * bins.width).mean()


def _square(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean of the square of what goes linearly from a to b."""
    return (a * a + a * b + b * b) / 3


def ordinal(logits: torch.Tensor, z: torch.Tensor, bins: Bins) -> torch.Tensor:
    """Log score of the questions "is z above this edge?", averaged over the inner edges.

    The probability of "no" is the CDF at the edge, so that a PDF is punished the more, the
    farther its mass lies from z: the cumulative-link view of ordinal classes (McCullagh 1980).
    """
    log_p = logits.log_softmax(dim=1)
    no = log_p.logcumsumexp(dim=1)[:, :-1]
    yes = log_p.flip(1).logcumsumexp(dim=1).flip(1)[:, 1:]
    edges = torch.arange(bins.count - 1, device=logits.device)[None]
    return -torch.where(bins.index(z)[:, None] > edges, yes, no).mean()


LOSSES = {"cross_entropy": cross_entropy, "crps": crps, "ordinal": ordinal}
