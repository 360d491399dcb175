"""The nets: sizes, names, and batch normalisation in groups."""

import pytest
import torch
from torch import nn

from pipeline.learning.resnet import NETS, GroupedBatchNorm, ResNet, planes, share_momentum


def test_resnet50_has_torchvisions_parameters_but_for_bands_and_classifier():
    net = ResNet("resnet50")
    count = sum(each.numel() for each in net.parameters())
    assert count == 25_557_032 - (2048 * 1000 + 1000) + 2 * 64 * 7 * 7
    assert net.feature_dim == 2048


def test_resnet50_has_torchvisions_names():
    wanted = {"conv1.weight", "bn1.running_mean", "bn1.num_batches_tracked"}
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            for number in (1, 2, 3):
                wanted |= {f"{at}.conv{number}.weight", f"{at}.bn{number}.bias"}
        wanted |= {f"layer{layer}.0.downsample.0.weight", f"layer{layer}.0.downsample.1.weight"}
    names = set(ResNet("resnet50").state_dict())
    assert wanted <= names
    norms = sum(name.endswith("running_var") for name in names)
    convolutions = sum(name.endswith("weight") for name in names) - norms
    assert (norms, convolutions) == (53, 53)


def test_resnet50_strides_in_the_middle_convolution():
    strides = {
        name: part.stride
        for name, part in ResNet("resnet50").named_modules()
        if isinstance(part, nn.Conv2d) and part.stride != (1, 1)
    }
    assert set(strides) == {
        f"layer{layer}.0.{part}" for layer in (2, 3, 4) for part in ("conv2", "downsample.0")
    }


@pytest.mark.parametrize("net", NETS)
def test_feature_maps_of_a_64_pixel_stamp(net):
    model = ResNet(net, 0.125).eval()
    sizes = []
    for part in (model.relu, model.layer1, model.layer2, model.layer3, model.layer4):
        part.register_forward_hook(lambda *given: sizes.append(given[2].shape[-1]))
    with torch.no_grad():
        assert model(torch.zeros(1, 5, 64, 64)).shape == (1, model.feature_dim)
    assert sizes == [64, 64, 32, 16, 8]


def test_resnet18_and_10_by_closed_form():
    def basic(inplanes, planes):
        down = inplanes * planes + 2 * planes if inplanes != planes else 0
        return 9 * planes * (inplanes + planes) + 4 * planes + down

    for net, blocks in (("resnet10", 1), ("resnet18", 2)):
        before, expected = 64, 5 * 64 * 49 + 2 * 64
        for width in (64, 128, 256, 512):
            expected += basic(before, width) + (blocks - 1) * basic(width, width)
            before = width
        assert sum(each.numel() for each in ResNet(net).parameters()) == expected


def test_width_scales_channels_to_even_numbers_of_eight_or_more():
    assert planes(1) == (64, 128, 256, 512)
    assert planes(0.25) == (16, 32, 64, 128)
    assert planes(0.01) == (8, 8, 8, 8)
    assert all(count % 2 == 0 for count in planes(0.33))


def separate(x, groups, momentum=0.1):
    """What plain batch normalisations of the parts n % groups give."""
    out, means, variances = torch.empty_like(x), [], []
    for group in range(groups):
        norm = nn.BatchNorm2d(x.shape[1], momentum=momentum).double()
        out[group::groups] = norm(x[group::groups])
        means.append(norm.running_mean)
        variances.append(norm.running_var)
    return out, torch.stack(means).mean(0), torch.stack(variances).mean(0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_are_normalised_apart(groups):
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double() * 3 + 1
    norm = GroupedBatchNorm(3, groups).double()
    out, mean, variance = separate(x, groups)
    torch.testing.assert_close(norm(x), out, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.running_mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.running_var, variance, rtol=0, atol=1e-12)
    assert norm.num_batches_tracked == 1


def test_groups_do_not_matter_in_evaluation():
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    one, four = GroupedBatchNorm(3, 1).eval(), GroupedBatchNorm(3, 4).eval()
    assert torch.equal(one(x), four(x)) and torch.equal(one(x[:1]), one(x)[:1])


@pytest.mark.parametrize("parts", [2, 4])
def test_running_statistics_move_once_over_micro_batches(parts):
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double() + 2
    whole, shared = GroupedBatchNorm(3, 4).double(), GroupedBatchNorm(3, 4 // parts).double()
    whole(x)
    for part in range(parts):
        share_momentum(shared, part, parts)
        shared(x[part::parts])
    torch.testing.assert_close(shared.running_mean, whole.running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(shared.running_var, whole.running_var, rtol=0, atol=1e-12)
