"""The encoder: what it does to pixels before the net, and what it refuses."""

import pytest
import torch

from pipeline.learning import sarmiento
from pipeline.learning.encoder import Encoder, EncoderSpec, Projection, seeded, unit
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


def test_a_spec_of_all_bands_is_written_as_it_was_before_there_were_others():
    old = {"net": "resnet10", "width": 0.125, "crop": 32, "bin": 2, "scale": "none",
           "softening": None}  # fmt: skip
    assert SPEC.to_dict() == old and EncoderSpec.from_dict(old).bands == "ugriz"
    spec = EncoderSpec("sarmiento", 0.25, 64, 2, "unit", bands="gri")
    assert spec.to_dict()["bands"] == "gri" and EncoderSpec.from_dict(spec.to_dict()) == spec


def test_the_net_sees_its_bands_binned_and_in_the_unit_interval():
    spec = EncoderSpec("sarmiento", 0.125, 32, 2, "unit", bands="gri")
    encoder, x = Encoder(spec).eval(), images()
    seen = []
    encoder.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        pooled = encoder(x)
    binned = x[:, 1:4].reshape(3, 3, 16, 2, 16, 2).mean(dim=(3, 5))
    for one, found in zip(binned, seen[0], strict=True):
        expected = (one - one.min()) / (one.max() - one.min())
        torch.testing.assert_close(found, expected)
        assert found.min() == 0 and found.max() == 1
    assert pooled.shape == (3, 128)
    others = x.clone()
    others[:, [0, 4]] = 7
    with torch.no_grad():
        assert torch.equal(encoder(others), pooled)


def test_unit_keeps_colours_and_loses_flux():
    x = images().double()
    torch.testing.assert_close(unit(1e-3 * x + 0.5), unit(x), rtol=1e-9, atol=1e-12)
    made = unit(x)
    contrast = x.amax(dim=(2, 3)) - x.amin(dim=(2, 3))
    found = made.amax(dim=(2, 3)) - made.amin(dim=(2, 3))
    torch.testing.assert_close(found[:, 1] / found[:, 3], contrast[:, 1] / contrast[:, 3])
    assert not unit(torch.full((1, 3, 4, 4), 0.3)).any()


def test_asinh_of_some_bands_is_in_units_of_their_own_softening():
    spec = EncoderSpec("resnet10", 0.125, 16, 2, "asinh", (0.1, 0.2, 0.3, 0.4, 0.5), "ri")
    assert Encoder(spec).softening.flatten().tolist() == pytest.approx([0.3, 0.4])


def test_a_net_is_told_of_dust_where_it_reads_it_and_unknown_is_none():
    x, dust = images(3, 16), torch.tensor([0.1, torch.nan, 0.3], dtype=torch.float64)
    encoder = Encoder(EncoderSpec("pasquet", 0.125, 16)).eval()
    seen = []
    encoder.net.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    with torch.no_grad():
        told = encoder(x, dust)
        untold = encoder(x)
    assert seen[0].dtype == torch.float32 and seen[0].tolist() == pytest.approx([0.1, 0, 0.3])
    assert not seen[1].any() and seen[1].shape == (3,)
    different = (told != untold).any(dim=1)
    assert different[[0, 2]].all() and torch.isfinite(told).all()
    torch.testing.assert_close(told[1], untold[1])
    deaf = Encoder(EncoderSpec("resnet10", 0.125, 16)).eval()
    with torch.no_grad():
        assert torch.equal(deaf(x, dust), deaf(x))


def test_a_net_of_pixels_is_built_for_the_side_it_is_given():
    encoder = Encoder(EncoderSpec("pasquet", 0.125, 32, 2, bands="gri"))
    assert encoder.spec.side == 16 and encoder.net.conv0.conv.in_channels == 3
    assert encoder(images(2)).shape == (2, encoder.feature_dim)


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


def test_the_head_of_sarmiento_is_told_by_its_names():
    head = sarmiento.Head(24)
    again = Projection.from_state(head.state_dict())
    assert isinstance(again, sarmiento.Head) and torch.equal(again.dense2.bias, head.dense2.bias)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"net": "resnet34"}, "net: resnet34"),
        ({"width": 0}, "width: 0"),
        ({"crop": 63, "bin": 2}, "bin: 2 does not divide crop 63"),
        ({"crop": 32, "bin": 8}, "leaves 4 px"),
        ({"bin": 0}, "bin: 0"),
        ({"net": "sarmiento", "crop": 32, "bin": 4}, "leaves 8 px; sarmiento needs 16"),
        ({"net": "pasquet", "crop": 14, "bin": 2}, "leaves 7 px; pasquet needs 8"),
        ({"bands": ""}, "bands: none; give letters of ugriz"),
        ({"bands": "grz!"}, "bands: grz!"),
        ({"bands": "grg"}, "bands: grg; .*each once"),
        ({"scale": "log"}, "scale: log"),
        ({"scale": "asinh"}, "dataset.json"),
        ({"scale": "asinh", "softening": (1, 1, 1, 1, 0)}, "softening"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong, said):
    with pytest.raises(UserError, match=said) as error:
        EncoderSpec(**wrong)
    assert "\n" not in str(error.value)
