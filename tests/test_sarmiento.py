"""Sarmiento's net: layers and parameters as published, and what it knows of a batch."""

import pytest
import torch
from torch.nn import functional

from pipeline.learning.encoder import seeded
from pipeline.learning.sarmiento import DIM, Head, Sarmiento


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def count(module):
    return sum(each.numel() for each in module.parameters())


def test_parameters_and_shapes_are_those_of_the_published_layers():
    # weights and biases: 128 of 5x5, then 256, 512 and 1024 of 3x3; dense 512, 128, 64
    dense = [(1024, 512), (512, 128), (128, 64)]
    for bands in (3, 5):  # SDSS's g, r, i; MaNGA's five images
        planes = [(bands * 25, 128), (128 * 9, 256), (256 * 9, 512), (512 * 9, 1024)]
        net = Sarmiento(bands=bands)
        assert count(net) == sum((before + 1) * after for before, after in planes)
        assert count(net) == {3: 6_204_672, 5: 6_211_072}[bands]
        assert net(draw(2, bands, 32, 32)).shape == (2, 1024) and net.feature_dim == 1024
    head = Head(1024)
    assert count(head) == sum((before + 1) * after for before, after in dense) == 598_720
    assert head(draw(2, 1024)).shape == (2, DIM) == (2, 64)


def test_layers_are_in_their_order():
    net, head = Sarmiento(0.125).double(), Head(128).double()
    x = images = draw(3, 3, 32, 32, dtype=torch.float64)
    for layer in (net.conv1, net.conv2, net.conv3, net.conv4):
        same = functional.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)
        x = torch.where(same > 0, same, torch.expm1(same))
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    assert x.shape == (3, 128, 2, 2)
    torch.testing.assert_close(net(images), x.mean(dim=(2, 3)))
    y = x = net(images)
    for layer in (head.dense1, head.dense2, head.dense3):
        y = y @ layer.weight.T + layer.bias
        y = y if layer is head.dense3 else torch.where(y > 0, y, torch.expm1(y))
    torch.testing.assert_close(head(x), y)


@pytest.mark.parametrize(("width", "dim"), [(0.25, 256), (0.001, 8), (2, 2048)])
def test_width_multiplies_the_channels(width, dim):
    net = Sarmiento(width)
    assert net.feature_dim == dim and net.conv1.out_channels == max(8, dim // 8)
    assert net(draw(1, 3, 16, 16)).shape == (1, dim)


def test_an_image_knows_nothing_of_its_batch():
    net, x = Sarmiento(0.125).double().train(), draw(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-12, atol=1e-14)


def test_weights_start_as_keras_and_follow_from_the_seed():
    with seeded(1):
        net = Sarmiento()
    with seeded(1):
        again = Sarmiento()
    assert torch.equal(net.conv4.weight, again.conv4.weight)
    limit = (6 / (9 * (512 + 1024))) ** 0.5
    assert 0.99 * limit < net.conv4.weight.abs().max() <= limit
    assert not any(layer.bias.any() for layer in (net.conv1, net.conv4, Head(8).dense3))


def test_head_comes_back_from_its_state():
    head = Head(48)
    again, x = Head.from_state(head.state_dict()), draw(2, 48)
    assert torch.equal(head(x), again(x))
