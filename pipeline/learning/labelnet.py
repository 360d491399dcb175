"""An encoder and one linear layer: what is trained on labels, of whatever they are."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.learning.encoder import Encoder, seeded


class LabelNet(nn.Module):
    """An encoder and one linear layer, `fc`, that gives `outputs` logits."""

    def __init__(self, encoder: Encoder, outputs: int, seed: int = 0):
        """The layer starts as torch's own linear layers do, from draws that follow from `seed`."""
        super().__init__()
        self.encoder = encoder
        with seeded(seed):
            self.fc = nn.Linear(encoder.feature_dim, outputs)

    def forward(self, images: torch.Tensor, e_bv: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (n, outputs) of images and E(B-V), as `Encoder` takes them."""
        return self.fc(self.encoder(images, e_bv))
