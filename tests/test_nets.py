"""The nets by their names: each is built and makes what it says of its smallest input."""

import pytest
import torch

from pipeline.learning import resnet
from pipeline.learning.encoder import EncoderSpec, seeded
from pipeline.learning.nets import NETS, check_pretrainable
from pipeline.learning.resnet import ResNet, norms
from pipeline.run import UserError


@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize("name", NETS)
def test_every_net_takes_its_smallest_image_of_so_many_bands(name, bands):
    least = NETS[name].least
    net = NETS[name].build(0.125, 1, bands, least).eval()
    dust = [torch.zeros(2)] if NETS[name].dust else []
    out = net(torch.zeros(2, bands, least, least), *dust)
    assert out.shape == (2, net.feature_dim) and torch.isfinite(out).all()
    assert bool(norms(net)) == NETS[name].normalises
    with pytest.raises(UserError, match=f"leaves {least - 1} px; {name} needs {least} at least"):
        EncoderSpec(name, 0.125, least - 1)


def test_a_resnet_of_five_bands_is_the_one_it_always_was():
    assert set(resnet.NETS) < set(NETS)
    with seeded(4):
        one = NETS["resnet10"].build(0.125, 2, 5, 32)
    with seeded(4):
        other = ResNet("resnet10", 0.125, 2)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_a_resnet_of_three_bands_starts_as_he_et_al():
    with seeded(0):
        weight = NETS["resnet10"].build(1.0, 1, 3, 32).conv1.weight
    assert weight.shape == (64, 3, 7, 7)
    assert weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.03)


def test_only_a_net_that_reads_dust_is_refused_for_pretraining():
    assert [name for name in NETS if NETS[name].dust] == ["pasquet"]
    with pytest.raises(UserError, match=r"net: pasquet reads E\(B-V\).*sarmiento$") as error:
        check_pretrainable("pasquet")
    assert "\n" not in str(error.value)
    for name in set(NETS) - {"pasquet"}:
        check_pretrainable(name)
