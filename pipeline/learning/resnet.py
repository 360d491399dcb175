"""ResNets for five-band stamps, with torchvision's names of parameters.

He et al. 2016 (arXiv:1512.03385), in torchvision's variant 1.5 (the stride of a bottleneck lies in
its 3x3 convolution). As in Hayat et al. 2020 the first convolution takes five bands with stride 1,
and there is no max-pooling: the stamps are small.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from pipeline.survey.names import BANDS

_PLANES = (64, 128, 256, 512)


class GroupedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of groups of the batch.

    Row n is of group n % groups. So one device with G groups does what R ranks with G / R groups
    each do, where rank r holds rows r::R. The running statistics move by the mean over groups.
    Parameters and buffers are named and shaped as in `nn.BatchNorm2d`.
    """

    def __init__(self, planes: int, groups: int = 1):
        super().__init__(planes)
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `x` (n, planes, h, w); n is a multiple of `groups` while training."""
        if not self.training or self.groups == 1:
            return super().forward(x)
        rows, planes, *area = x.shape
        grouped = x.reshape(rows // self.groups, self.groups * planes, *area)
        means, variances = (
            buffer.repeat(self.groups) for buffer in (self.running_mean, self.running_var)
        )
        out = functional.batch_norm(
            grouped, means, variances, self.weight.repeat(self.groups),
            self.bias.repeat(self.groups), True, self.momentum, self.eps,
        )  # fmt: skip
        with torch.no_grad():
            self.running_mean.copy_(means.view(self.groups, planes).mean(0))
            self.running_var.copy_(variances.view(self.groups, planes).mean(0))
            self.num_batches_tracked.add_(1)
        return out.reshape(x.shape)


def norms(module: nn.Module) -> list[GroupedBatchNorm]:
    """All batch normalisations in `module`."""
    return [part for part in module.modules() if isinstance(part, GroupedBatchNorm)]


def share_momentum(module: nn.Module, part: int, parts: int, momentum: float = 0.1) -> None:
    """Set the running statistics' momentum for the forward pass of micro-batch `part` of `parts`.

    After all parts the running statistics have moved once, by `momentum` towards the mean of the
    parts' statistics, as one batch would have moved them.
    """
    share = momentum / parts
    for norm in norms(module):
        norm.momentum = share / (1 - (parts - 1 - part) * share)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int, groups: int):
        super().__init__()
        self.conv1 = _convolution(inplanes, planes, 3, stride)
        self.bn1 = GroupedBatchNorm(planes, groups)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(planes, planes, 3)
        self.bn2 = GroupedBatchNorm(planes, groups)
        self.downsample = _downsample(inplanes, planes, stride, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inplanes, h, w) -> (n, planes, h / stride, w / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution beside an identity."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, groups: int):
        super().__init__()
        out = planes * self.expansion
        self.conv1 = _convolution(inplanes, planes, 1)
        self.bn1 = GroupedBatchNorm(planes, groups)
        self.conv2 = _convolution(planes, planes, 3, stride)
        self.bn2 = GroupedBatchNorm(planes, groups)
        self.conv3 = _convolution(planes, out, 1)
        self.bn3 = GroupedBatchNorm(out, groups)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inplanes, out, stride, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inplanes, h, w) -> (n, 4 planes, h / stride, w / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


NETS = {
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
}
"""Name -> (kind of block, number of blocks in each of the four layers)."""


def planes(width: float) -> tuple[int, ...]:
    """Channels of the four layers: `width` times 64, 128, 256, 512; at least 8, and even."""
    return tuple(scaled(count, width) for count in _PLANES)


def scaled(count: int, width: float) -> int:
    """`width` times `count` channels; at least 8, and even."""
    return max(8, 2 * round(count * width / 2))


class ResNet(nn.Module):
    """A ResNet up to and with its average pool: (n, 5, h, w) -> (n, feature_dim)."""

    def __init__(self, net: str, width: float = 1.0, groups: int = 1):
        super().__init__()
        block, counts = NETS[net]
        channels = planes(width)
        self.conv1 = nn.Conv2d(len(BANDS), channels[0], 7, stride=1, padding=3, bias=False)
        self.bn1 = GroupedBatchNorm(channels[0], groups)
        self.relu = nn.ReLU(inplace=True)
        before = channels[0]
        for at, (count, after) in enumerate(zip(counts, channels, strict=True)):
            blocks = []
            for number in range(count):
                stride = 2 if at > 0 and number == 0 else 1
                blocks.append(block(before, after, stride, groups))
                before = after * block.expansion
            setattr(self, f"layer{at + 1}", nn.Sequential(*blocks))
        self.feature_dim = before
        self._initialise()

    def _initialise(self) -> None:
        """As torchvision does: He et al. 2015, fan out; batch normalisations start as they are."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pooled features of `x` (n, 5, h, w): (n, feature_dim)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x.mean(dim=(2, 3))


def _convolution(inplanes: int, planes: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inplanes, planes, size, stride, padding=size // 2, bias=False)


def _downsample(inplanes: int, planes: int, stride: int, groups: int) -> nn.Sequential | None:
    if stride == 1 and inplanes == planes:
        return None
    return nn.Sequential(
        _convolution(inplanes, planes, 1, stride), GroupedBatchNorm(planes, groups)
    )
