"""Redshift as a PDF over equal bins: the bins, what is read off a PDF, and the net that gives one.

Hayat et al. 2020 (after Pasquet et al. 2019): 180 bins over 0 <= z < 0.4, a softmax over them,
and the mean of the bins' centres under it as the point estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from pipeline.learning import checkpoint
from pipeline.learning.encoder import Encoder
from pipeline.learning.labelnet import LabelNet
from pipeline.run import UserError

LEVELS = {"z_low": 0.16, "z_median": 0.5, "z_high": 0.84}
"""Quantiles of the PDF that a catalogue gives."""
_BELOW = 1e-6
"""How far below the upper edge of the bins a redshift beyond it counts; bins are wider."""


@dataclass(frozen=True)
class Bins:
    """`count` equal bins over 0 <= z < `upper`."""

    count: int = 180
    upper: float = 0.4

    def __post_init__(self):
        if self.count < 2:
            raise UserError(f"bins: {self.count}; give at least 2")
        if not _BELOW < self.width < math.inf:
            raise UserError(f"z_max: {self.upper:g} in {self.count} bins; give a finite "
                            f"redshift above {self.count * _BELOW:g}, or fewer bins")  # fmt: skip

    @property
    def width(self) -> float:
        """Width of a bin."""
        return self.upper / self.count

    @cached_property
    def edges(self) -> np.ndarray:
        """Edges of the bins, (count + 1,)."""
        return np.linspace(0.0, self.upper, self.count + 1)

    @cached_property
    def centres(self) -> np.ndarray:
        """Centres of the bins, (k + 1/2) width, (count,)."""
        return (np.arange(self.count) + 0.5) * self.width

    def clip(self, z: torch.Tensor) -> torch.Tensor:
        """`z` in float64, brought into the bins: z >= upper counts as upper - 1e-6."""
        return z.double().clamp(0.0, self.upper - _BELOW)

    def index(self, z: torch.Tensor) -> torch.Tensor:
        """The bin, int64 (n,), that each redshift (n,) lies in, after `clip`."""
        return (self.clip(z) / self.width).long().clamp(max=self.count - 1)


def quantiles(pdf: np.ndarray, bins: Bins, levels) -> np.ndarray:
    """Redshifts (n, len(levels)) where the piecewise linear CDF of `pdf` (n, count) has `levels`.

    A PDF is the probability in each bin, spread evenly over the bin; rows sum to 1.
    """
    pdf = np.asarray(pdf, dtype=np.float64)
    cdf = np.concatenate([np.zeros((len(pdf), 1)), np.cumsum(pdf, axis=1)], axis=1)
    cdf /= cdf[:, -1:]
    found = np.empty((len(pdf), len(levels)))
    for column, level in enumerate(levels):
        # the last edge at or below the level: over empty bins the CDF is level, so that p > 0
        low = np.clip((cdf <= level).sum(axis=1) - 1, 0, bins.count - 1)[:, None]
        below, above = (np.take_along_axis(cdf, low + step, axis=1)[:, 0] for step in (0, 1))
        share = (level - below) / np.maximum(above - below, np.finfo(np.float64).tiny)
        found[:, column] = bins.edges[low[:, 0]] + np.clip(share, 0, 1) * bins.width
    return found


def summary(pdf: np.ndarray, bins: Bins) -> dict[str, np.ndarray]:
    """What a catalogue gives of PDFs (n, count), float64 (n,) each.

    z_phot is the mean, sum_k p_k (k + 1/2) w (Hayat et al. 2020, section 3); z_low, z_median and
    z_high are the quantiles at 16, 50 and 84 %; z_width is half of z_high - z_low.
    """
    pdf = np.asarray(pdf, dtype=np.float64)
    found = {"z_phot": (pdf * bins.centres).sum(axis=1) / pdf.sum(axis=1)}
    found |= dict(zip(LEVELS, quantiles(pdf, bins, LEVELS.values()).T, strict=True))
    found["z_width"] = (found["z_high"] - found["z_low"]) / 2
    return found


class PhotozNet(LabelNet):
    """A net whose logits are those of the redshift bins."""

    def __init__(self, encoder: Encoder, bins: Bins, seed: int = 0):
        """`seed` as of `LabelNet`."""
        super().__init__(encoder, bins.count, seed)
        self.bins = bins


def save_model(path: str | Path, net: PhotozNet, **extra: object) -> None:
    """Write `net` and `extra` ("deredden", "domain", ...): an encoder's file with `fc` beside it.

    So whatever takes an encoder takes a photo-z model as well.
    """
    bins = {"count": net.bins.count, "upper": net.bins.upper}
    checkpoint.save_encoder(path, net.encoder, fc=net.fc.state_dict(), bins=bins, **extra)


def load_model(path: str | Path) -> tuple[PhotozNet, dict]:
    """The net in a model's file, in eval mode, and what was saved beside it.

    Reads ours, and the paper's (`module.*` with a layer `fc`), whose bins end at 0.4.

    Raises:
        UserError: as `checkpoint.load_encoder`, or its net tells no redshift.
    """
    encoder, extra = checkpoint.load_encoder(path)
    if "classes" in extra:
        raise UserError(f"{path}: a model of morphology, that tells no redshift; give one of the "
                        "task photoz")  # fmt: skip
    if "fc" not in extra:
        raise UserError(f"{path}: an encoder without a layer for redshifts; train one on it "
                        "(python -m pipeline.train --encoder)")  # fmt: skip
    fc = extra.pop("fc")
    bins = Bins(**extra.pop("bins", {"count": len(fc["weight"]), "upper": Bins.upper}))
    net = PhotozNet(encoder, bins)
    checkpoint.load_state(path, net.fc, fc)
    return net.eval(), extra
