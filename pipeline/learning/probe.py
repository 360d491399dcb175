"""What frozen features hold of redshift: a linear probe, watched while an encoder is pretrained."""

from __future__ import annotations

import numpy as np
import torch

from pipeline import metrics, run
from pipeline.images.reader import ImageSet, label_fraction, members
from pipeline.learning.augment import centre
from pipeline.learning.batches import in_order
from pipeline.learning.encoder import Encoder

LEAST, MOST = 10, 4000
"""Galaxies that a probe needs, and takes at most, chosen by a hash: enough to watch."""
PENALTIES = np.logspace(-2, 5, 15)


class RidgeProbe:
    """Ridge regression of z on pooled features of train galaxies, each predicted from the others.

    So it looks at neither valid nor test, and is as steady as so many galaxies make it.
    """

    def __init__(self, images: ImageSet, deredden: bool, device: torch.device, batch: int = 256):
        """`images` is the whole set."""
        self.deredden, self.device, self.batch = deredden, device, batch
        self.images = _labelled(images)

    @property
    def possible(self) -> bool:
        """Are there galaxies enough?"""
        return len(self.images) >= LEAST

    def __call__(self, encoder: Encoder) -> float:
        """sigma_mad of the encoder as it is, NaN where a feature is no number.

        The encoder's mode is left as it was.
        """
        was = encoder.training
        encoder.eval()
        features, z = self._features(encoder), self.images.table["z"].to_numpy(np.float64)
        encoder.train(was)
        return float(metrics.sigma_mad(metrics.residuals(left_out(features, z), z)))

    @torch.no_grad()
    def _features(self, encoder: Encoder) -> np.ndarray:
        rows = []
        for batch in in_order(self.images, self.batch):
            stamps = centre(batch.images.to(self.device), batch.extinction.to(self.device),
                            encoder.spec.crop, self.deredden)  # fmt: skip
            dtype = next(encoder.parameters()).dtype
            rows.append(encoder(stamps.to(dtype)).double().cpu().numpy())
        return np.concatenate(rows)


def left_out(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Each of `z` (n,) as ridge regression on standardised `x` (n, d) of all others tells it.

    The residual of the one left out is r_i / (1 - h_ii) with the hat matrix H (Golub, Heath &
    Wahba 1979); the penalty is the one of `PENALTIES` that makes their mean square least. All are
    NaN where any of `x` is not finite.
    """
    if not np.isfinite(x).all():
        return np.full(len(z), np.nan)
    scale = x.std(0)
    scale[scale == 0] = 1
    left, singular, _ = np.linalg.svd((x - x.mean(0)) / scale, full_matrices=False)
    projected = left.T @ (z - z.mean())
    found = []
    for penalty in PENALTIES:
        shrink = singular**2 / (singular**2 + penalty)
        residual = z - z.mean() - left @ (shrink * projected)
        found.append(residual / (1 - 1 / len(z) - left**2 @ shrink))
    return z - min(found, key=lambda residual: np.mean(residual**2))


def _labelled(images: ImageSet) -> ImageSet:
    part = images.take(members(images, "train+unlabelled"))
    part = part.take(np.isfinite(part.table["z"].to_numpy(np.float64)))
    if len(part) < LEAST:
        run.log.warning("probe: %d galaxies of train have a redshift, it needs %d; none is made",
                        len(part), LEAST)  # fmt: skip
    if len(part) > MOST:
        part = part.take(label_fraction(part.objid, MOST / len(part), 0))
    return part.in_memory()
