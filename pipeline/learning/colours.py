"""Colours measured on the stamps themselves: what a net can be asked about unlabelled images."""

from __future__ import annotations

from math import log

import torch
from torch import nn
from torch.nn import functional

from pipeline.learning.encoder import seeded

SOFTENING = (0.14, 0.09, 0.12, 0.18, 0.74)
"""b of SDSS's asinh magnitudes [nanomaggies], u g r i z (Stoughton et al. 2002, table 21)."""
RADIUS = 6.0
"""Of the aperture, in pixels: 2.4 arcsec in stamps of 0.404 arcsec a pixel."""
NAMES = ("u-g", "g-r", "r-i", "i-z", "r")


def measure(images: torch.Tensor, radius: float = RADIUS) -> torch.Tensor:
    """Aperture colours and r magnitude, (n, 5) in the order of `NAMES`, asinh magnitudes.

    `images` (n, 5, crop, crop) are dereddened [nanomaggies], the galaxy on index crop // 2. Asinh
    magnitudes (Lupton, Gunn & Szalay 1999) stay finite where a band has no light.
    """
    side = images.shape[-1]
    place = torch.arange(side, device=images.device) - side // 2
    inside = place[:, None] ** 2 + place[None] ** 2 <= radius**2
    flux = images[..., inside].sum(dim=-1)
    soft = flux.new_tensor(SOFTENING)
    magnitude = 22.5 - 2.5 / log(10) * (torch.asinh(flux / (2 * soft)) + soft.log())
    return torch.cat([magnitude[:, :-1] - magnitude[:, 1:], magnitude[:, 2:3]], dim=1)


class ColourTask(nn.Module):
    """An auxiliary loss: a linear layer on the features tells the stamp's own colours.

    What is asked (`measure`) needs no label, so that unlabelled images can train the encoder.
    """

    def __init__(self, feature_dim: int, sample: torch.Tensor, seed: int = 0):
        """`sample` (n, 5): colours of some of the images, whose median and MAD scale them."""
        super().__init__()
        centre = sample.median(dim=0).values
        spread = 1.4826 * (sample - centre).abs().median(dim=0).values
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread.clamp(min=1e-3))
        with seeded(seed):
            self.head = nn.Linear(feature_dim, len(NAMES))

    def forward(self, features: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Mean Huber loss of the colours of `clean` (dereddened, centred) told by `features`."""
        asked = (measure(clean) - self.centre) / self.spread
        return functional.smooth_l1_loss(self.head(features).float(), asked.float())
