"""The nets by their names: what an encoder can be made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from pipeline.learning import pasquet, resnet, sarmiento
from pipeline.learning.resnet import ResNet
from pipeline.run import UserError
from pipeline.survey.names import BANDS


@dataclass(frozen=True)
class Net:
    """`build(width, groups, bands, side)` makes the net that takes images (n, bands, side, side).

    It gives (n, feature_dim), and has an attribute `feature_dim`. `least` is the side of its
    smallest input [pixels]; `normalises` tells whether what it makes of an image depends on the
    batch while it is trained; `dust` whether its forward takes E(B-V) (n,) [mag] after the images.
    """

    build: Callable[[float, int, int, int], nn.Module]
    least: int
    normalises: bool
    dust: bool = False


def check_pretrainable(net: str) -> None:
    """Refuse the name of a net that pretraining gives not all that it reads.

    Raises:
        UserError: it reads E(B-V), and two views of an image have none.
    """
    if NETS[net].dust:
        others = ", ".join(name for name in NETS if not NETS[name].dust)
        raise UserError(f"net: {net} reads E(B-V), which pretraining does not give; "
                        f"give one of {others}")  # fmt: skip


def _resnet(name: str, width: float, groups: int, bands: int, side: int) -> ResNet:
    """A ResNet, for any side; for other than five bands with a first layer of their number."""
    net = ResNet(name, width, groups)
    if bands != len(BANDS):
        old = net.conv1
        net.conv1 = nn.Conv2d(bands, old.out_channels, old.kernel_size, old.stride, old.padding,
                              bias=False)  # fmt: skip
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net


def _sarmiento(width: float, groups: int, bands: int, side: int) -> nn.Module:
    """Sarmiento's net, for any side."""
    return sarmiento.Sarmiento(width, groups, bands)


NETS = {
    **{name: Net(partial(_resnet, name), 8, True) for name in resnet.NETS},
    "sarmiento": Net(_sarmiento, sarmiento.LEAST, False),
    "pasquet": Net(pasquet.Pasquet, pasquet.LEAST, False, dust=True),
}
