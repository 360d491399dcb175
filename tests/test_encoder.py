"""The encoder: what it does to pixels before the net, and what it refuses."""

import pytest
import torch

from pipeline.learning.encoder import Encoder, EncoderSpec, Projection, seeded
from pipeline.run import UserError

SPEC = EncoderSpec("resnet10", 0.125, 32, 2)


def images(count=3, size=32, seed=0):
    return torch.randn(count, 5, size, size, generator=torch.Generator().manual_seed(seed))


def test_initialisation_follows_from_the_seed_and_leaves_the_global_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with seeded(1):
        one = Encoder(SPEC)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    with seeded(1):
        again = Encoder(SPEC)
    with seeded(2):
        other = Encoder(SPEC)
    weights = [dict(each.named_parameters())["net.conv1.weight"] for each in (one, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_bin_takes_means_and_asinh_is_in_units_of_the_softening():
    softening = (0.1, 0.2, 0.3, 0.4, 0.5)
    spec = EncoderSpec("resnet10", 0.125, 32, 2, "asinh", softening)
    encoder, x = Encoder(spec).eval(), images()
    seen = []
    encoder.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        assert encoder(x).shape == (3, encoder.feature_dim)
    mean = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    expected = torch.asinh(mean / torch.tensor(softening)[:, None, None])
    torch.testing.assert_close(seen[0], expected)


def test_spec_survives_its_dict():
    spec = EncoderSpec("resnet18", 0.5, 64, 2, "asinh", (1.0, 2.0, 3.0, 4.0, 5.0))
    assert EncoderSpec.from_dict(spec.to_dict()) == spec


def test_groups_can_be_set_later():
    encoder = Encoder(SPEC)
    encoder.set_groups(3)
    assert encoder.net.layer3[0].bn2.groups == 3
    assert encoder(images(6)).shape == (6, 64)


def test_projection_from_its_state_has_its_sizes():
    head = Projection(64, 128, hidden=48)
    again = Projection.from_state(head.state_dict())
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head(x), again(x)) and again[0].out_features == 48


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"net": "resnet34"}, "net: resnet34"),
        ({"width": 0}, "width: 0"),
        ({"crop": 63, "bin": 2}, "bin: 2 does not divide crop 63"),
        ({"crop": 32, "bin": 8}, "leaves 4 px"),
        ({"bin": 0}, "bin: 0"),
        ({"scale": "log"}, "scale: log"),
        ({"scale": "asinh"}, "dataset.json"),
        ({"scale": "asinh", "softening": (1, 1, 1, 1, 0)}, "softening"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong, said):
    with pytest.raises(UserError, match=said) as error:
        EncoderSpec(**wrong)
    assert "\n" not in str(error.value)
