"""The nets by their names: what an encoder can be made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from pipeline.learning import resnet, sarmiento
from pipeline.learning.resnet import ResNet
from pipeline.survey.names import BANDS


@dataclass(frozen=True)
class Net:
    """`build(width, groups, bands)` makes the net: images (n, bands, h, w) -> (n, feature_dim).

    It has an attribute `feature_dim`. `least` is the side of its smallest input [pixels];
    `normalises` tells whether what it makes of an image depends on the batch while it is trained.
    """

    build: Callable[[float, int, int], nn.Module]
    least: int
    normalises: bool


def _resnet(name: str, width: float, groups: int, bands: int) -> ResNet:
    """A ResNet; for other than five bands with a first convolution of their number."""
    net = ResNet(name, width, groups)
    if bands != len(BANDS):
        old = net.conv1
        net.conv1 = nn.Conv2d(bands, old.out_channels, old.kernel_size, old.stride, old.padding,
                              bias=False)  # fmt: skip
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net


NETS = {
    **{name: Net(partial(_resnet, name), 8, True) for name in resnet.NETS},
    "sarmiento": Net(sarmiento.Sarmiento, sarmiento.LEAST, False),
}
