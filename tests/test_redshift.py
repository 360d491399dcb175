"""Bins, quantiles and the point estimate of a redshift PDF; models in files."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.learning.encoder import Encoder, EncoderSpec
from pipeline.learning.redshift import Bins, PhotozNet, load_model, quantiles, save_model, summary
from pipeline.run import UserError

BINS = Bins()


def test_bins_are_the_papers():
    assert BINS.width == pytest.approx(0.4 / 180)
    assert BINS.centres[[0, -1]] == pytest.approx([0.4 / 360, 0.4 - 0.4 / 360])
    z = torch.tensor([0.0, 0.0022, 0.00223, 0.3999, 0.4, 0.7, -0.001])
    assert BINS.index(z).tolist() == [0, 0, 1, 179, 179, 179, 0]


@given(st.integers(0, 179), st.floats(0.01, 0.99))
@settings(max_examples=50, deadline=None)
def test_index_is_the_bin_whose_edges_hold_z(k, share):
    z = BINS.edges[k] + share * BINS.width
    assert BINS.index(torch.tensor([z], dtype=torch.float64)).tolist() == [k]


@given(st.integers(0, 10**6), st.floats(0.01, 0.99))
@settings(max_examples=50, deadline=None)
def test_the_cdf_at_a_quantile_is_its_level(seed, level):
    pdf = np.random.default_rng(seed).gamma(0.2, size=(3, 180))
    pdf /= pdf.sum(axis=1, keepdims=True)
    z = quantiles(pdf, BINS, [level])[:, 0]
    for row in range(3):
        cdf = np.interp(z[row], BINS.edges, np.concatenate([[0], np.cumsum(pdf[row])]))
        assert cdf == pytest.approx(level, abs=1e-9)


def test_summary_of_one_bin_and_of_a_gaussian():
    pdf = np.zeros((2, 180))
    pdf[0, 7] = 1
    pdf[1] = np.exp(-0.5 * ((BINS.centres - 0.15) / 0.02) ** 2)
    found = summary(pdf, BINS)
    assert found["z_phot"] == pytest.approx([BINS.centres[7], 0.15], abs=1e-6)
    assert found["z_median"] == pytest.approx([BINS.centres[7], 0.15], abs=1e-6)
    assert found["z_width"][0] == pytest.approx(0.34 * BINS.width)
    assert found["z_width"][1] == pytest.approx(0.9945 * 0.02, rel=2e-3)
    assert np.all(found["z_high"] - found["z_low"] == pytest.approx(2 * found["z_width"]))


@pytest.mark.parametrize(
    ("count", "upper", "text"),
    [
        (1, 0.4, "bins: 1"),
        (180, 0, "z_max: 0 in 180 bins"),
        (180, 1e-4, "z_max: 0.0001 in 180 bins; give a finite redshift above 0.00018"),
        (10**6, 0.4, "z_max: 0.4 in 1000000 bins; .* above 1, or fewer bins"),
        (180, float("inf"), "z_max: inf"),
        (180, float("nan"), "z_max: nan"),
    ],
)
def test_bins_that_cannot_be_are_refused(count, upper, text):
    with pytest.raises(UserError, match=text):
        Bins(count, upper)


def test_the_narrowest_bins_hold_every_redshift():
    assert Bins(2, 2.1e-6).index(torch.tensor([0.0, 2e-6, 0.3])).tolist() == [0, 1, 1]


def test_a_model_survives_its_file_bit_by_bit(tmp_path):
    spec = EncoderSpec("resnet10", 0.125, 32, 2, "asinh", (0.02, 0.01, 0.01, 0.02, 0.1))
    net = PhotozNet(Encoder(spec), Bins(30, 0.6), seed=4)
    save_model(tmp_path / "one.pt", net, deredden=False, note="a")
    read, extra = load_model(tmp_path / "one.pt")
    assert extra == {"deredden": False, "note": "a"}
    assert read.bins == net.bins and read.encoder.spec == spec and not read.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, read.state_dict()[name])
    save_model(tmp_path / "two.pt", read, deredden=False, note="a")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_the_head_starts_from_its_seed_alone():
    spec = EncoderSpec("resnet10", 0.125, 32, 2)
    one, two, other = (PhotozNet(Encoder(spec), BINS, seed).fc.weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
