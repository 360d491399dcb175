"""The net of Sarmiento et al.: four convolutions for small images, and the head that is trained.

Sarmiento et al. 2020 (a poster; its code is not public as far as found); layers as in the authors'
later code for MaNGA (Sarmiento et al. 2021, arXiv:2104.08292), of the same lineage: convolutions
of 128 (5x5), 256, 512 and 1024 (3x3) channels, zero-padded, each followed by ELU and a max-pool
over 2x2, and an average pool; then, for the loss, dense layers of 512, 128 and 64 with ELU between
them, the last one linear. Weights start as Keras' do: uniform after Glorot & Bengio 2010, no bias.
There is no batch normalisation, so an image's features know nothing of its batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from pipeline.learning.resnet import scaled

_CHANNELS = (128, 256, 512, 1024)
LEAST = 1 << len(_CHANNELS)
"""Side of the smallest input [pixels]: each layer halves it."""
DIM = 64
_HIDDEN = (512, 128)


class Sarmiento(nn.Module):
    """Images (n, bands, h, w) -> pooled features (n, feature_dim); 1024 at `width` 1.

    `width` multiplies the channels (at least 8, and even). `groups` is taken as other nets take
    it, and means nothing: nothing is normalised here.
    """

    def __init__(self, width: float = 1.0, groups: int = 1, bands: int = 3):
        super().__init__()
        before = bands
        for at, count in enumerate(_CHANNELS, start=1):
            after = scaled(count, width)
            size = 5 if at == 1 else 3
            setattr(self, f"conv{at}", nn.Conv2d(before, after, size, padding=size // 2))
            before = after
        self.feature_dim = before
        _start_as_keras(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pooled features of `x`, whose sides are LEAST or more."""
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = functional.max_pool2d(functional.elu(convolution(x)), 2)
        return x.mean(dim=(2, 3))


class Head(nn.Sequential):
    """Features (n, feature_dim) -> (n, 64): dense layers of 512, 128 and 64, ELU between them."""

    def __init__(self, feature_dim: int, dim: int = DIM):
        first, second = _HIDDEN
        layers = {
            "dense1": nn.Linear(feature_dim, first), "elu1": nn.ELU(),
            "dense2": nn.Linear(first, second), "elu2": nn.ELU(),
            "dense3": nn.Linear(second, dim),
        }  # fmt: skip
        super().__init__(OrderedDict(layers))
        _start_as_keras(self)

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> Head:
        """The head whose `state_dict` is `state`."""
        head = cls(state["dense1.weight"].shape[1], state["dense3.weight"].shape[0])
        head.load_state_dict(state)
        return head


def _start_as_keras(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
