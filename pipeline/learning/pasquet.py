"""The net of Pasquet et al.: inception blocks on stamps as they are, and E(B-V) beside them.

Pasquet et al. 2019 (A&A 621, A26; arXiv:1806.06607); layers as in the authors' public code
(jpasquet/Photoz): a 5x5 convolution of 64 channels, five inception blocks, an average pool over
2x2 after the convolution and after the second and the fourth block, and dense layers of 1096 and
1096 with ReLU; the last, linear one to 180 bins is `PhotozNet.fc`. A block with S1 and S2 channels
joins the outputs of up to four branches, each with a 1x1 convolution of its own on the block's
input: 1x1 S2; 1x1 S1 and 5x5 S2 (not in the last block); 1x1 S1 and 3x3 S2; 1x1 S1 and an average
over 2x2 with stride 1. All convolutions have stride 1, zeros at the sides and a PReLU with one
slope for each channel, 0 at the start. Weights start uniform after Glorot & Bengio 2010, biases
with 0.1. Nothing is normalised and nothing dropped.

The net is told how much dust lies before a galaxy, so its images are not dereddened: train it and
apply it with `deredden` off. E(B-V) is SFD98's, from DR12's extinctions
(`augment.e_bv_of`).

Pools are TensorFlow's "SAME": where a window reaches beyond an image (the last row and column of
a branch's pool, and of odd sides), what lies beyond is not counted in the average. The code says
how each block is laid out, and that gives the parameters expected, 27,596,372 in all. Not
confirmed: that the paper gave its net E(B-V) in magnitudes, unscaled.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from pipeline.learning.resnet import scaled

_STEM = 64
_BLOCKS = ((48, 64), (64, 92), (92, 128), (92, 128), (92, 128))
"""S1 and S2 of each block; the last is without the 5x5 branch."""
_POOLED = (1, 3)
"""Blocks before a pool."""
_DENSE = 1096
LEAST = 8
"""Side of the smallest input [pixels]: each of the three pools halves it."""


class Pasquet(nn.Module):
    """Images (n, bands, side, side) [nanomaggies] and E(B-V) (n,) [mag] -> (n, feature_dim).

    `feature_dim` is 1096 at `width` 1, which multiplies the channels and the dense layers' sizes
    (at least 8, and even). The first dense layer takes all pixels, so `side` [pixels] is that of
    every image. `groups` is taken as other nets take it, and means nothing: nothing is normalised.
    """

    def __init__(self, width: float = 1.0, groups: int = 1, bands: int = 5, side: int = 64):
        super().__init__()
        before = scaled(_STEM, width)
        self.conv0 = Convolution(bands, before, 5)
        for at, (narrow, wide) in enumerate(_BLOCKS):
            block = Inception(before, scaled(narrow, width), scaled(wide, width),
                              at < len(_BLOCKS) - 1)  # fmt: skip
            setattr(self, f"inception{at}", block)
            before = block.channels
        for _ in range(1 + len(_POOLED)):
            side = (side + 1) // 2
        self.feature_dim = scaled(_DENSE, width)
        self.dense0 = nn.Linear(before * side**2 + 1, self.feature_dim)
        self.dense1 = nn.Linear(self.feature_dim, self.feature_dim)
        _start(self)

    def forward(self, x: torch.Tensor, e_bv: torch.Tensor) -> torch.Tensor:
        """What the second dense layer says of images `x` behind dust of `e_bv`, all finite."""
        x = _halved(self.conv0(x))
        for at in range(len(_BLOCKS)):
            x = getattr(self, f"inception{at}")(x)
            if at in _POOLED:
                x = _halved(x)
        x = torch.cat([x.flatten(1), e_bv.to(x.dtype)[:, None]], dim=1)
        return functional.relu(self.dense1(functional.relu(self.dense0(x))))


class Inception(nn.Module):
    """(n, before, h, w) -> (n, channels, h, w): `wide` of each convolution, `narrow` of the pool.

    A branch's reduction to `narrow` channels bears its name.
    """

    def __init__(self, before: int, narrow: int, wide: int, five: bool):
        """`five` tells whether there is a branch of 5x5."""
        super().__init__()
        self.one = Convolution(before, wide, 1)
        self.five_reduced = Convolution(before, narrow, 1) if five else None
        self.five = Convolution(narrow, wide, 5) if five else None
        self.three_reduced = Convolution(before, narrow, 1)
        self.three = Convolution(narrow, wide, 3)
        self.pool_reduced = Convolution(before, narrow, 1)
        self.channels = (3 if five else 2) * wide + narrow

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The branches' outputs side by side: 1x1, 5x5, 3x3, pool."""
        branches = [self.one(x)]
        if self.five is not None:
            branches.append(self.five(self.five_reduced(x)))
        branches += [self.three(self.three_reduced(x)), smoothed(self.pool_reduced(x))]
        return torch.cat(branches, dim=1)


class Convolution(nn.Module):
    """A convolution of stride 1 that keeps the sides, and a PReLU of each channel."""

    def __init__(self, before: int, after: int, size: int):
        super().__init__()
        self.conv = nn.Conv2d(before, after, size, padding=size // 2)
        self.prelu = nn.PReLU(after, init=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, before, h, w) -> (n, after, h, w)."""
        return self.prelu(self.conv(x))


def smoothed(x: torch.Tensor) -> torch.Tensor:
    """Each pixel of `x` (n, c, h, w) averaged with the next one down, right, and both.

    In the last row and column with those of them that there are.
    """
    # torch pads both sides alike: of the averages with the pixels before, the first are left out
    return functional.avg_pool2d(x, 2, 1, padding=1, count_include_pad=False)[:, :, 1:, 1:]


def _halved(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(x, 2, ceil_mode=True)


def _start(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.constant_(part.bias, 0.1)
