"""The linear probe: its regression, and what it reads of an encoder."""

import numpy as np
import pytest
import torch
from small_sets import make_catalog, write_set
from torch import nn

from pipeline.images.reader import open_set
from pipeline.images.stamp import Stamp
from pipeline.learning import probe
from pipeline.learning.encoder import EncoderSpec
from pipeline.learning.probe import RidgeProbe, left_out


def test_each_is_told_from_all_others_as_scikit_learn_does():
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    x = random.normal(3, 2, (40, 20)) * np.linspace(0.1, 5, 20)
    z = x[:, :3].sum(1) + random.normal(0, 3, 40)
    x = (x - x.mean(0)) / x.std(0)
    penalty = linear_model.RidgeCV(probe.PENALTIES).fit(x, z).alpha_
    expected = []
    for one in range(len(z)):
        others = np.arange(len(z)) != one
        fit = linear_model.Ridge(penalty).fit(x[others], z[others])
        expected.append(fit.predict(x[one : one + 1])[0])
    np.testing.assert_allclose(left_out(x, z), expected, rtol=1e-8)


def test_features_that_do_not_vary_are_no_harm():
    x = np.column_stack([np.ones(12), np.arange(12.0), np.zeros(12)])
    np.testing.assert_allclose(left_out(x, 2 * x[:, 1]), 2 * x[:, 1], atol=0.03)


def test_features_that_are_no_numbers_tell_nothing():
    x = np.arange(24.0).reshape(12, 2)
    x[3, 1] = np.inf
    assert np.isnan(left_out(x, np.arange(12.0))).all()


class Oracle(nn.Module):
    """Features that are the stamp's central pixel."""

    spec = EncoderSpec("resnet10", 0.125, 8, 1)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return self.weight * images[:, :, 4, 4]


def bright_by_redshift(folder, count=100):
    """A set whose central pixels are 1 + z, and say nothing of it in test."""
    catalog = make_catalog(count, shards=1, labelled=0.8)
    path = write_set(folder, catalog, stamp=Stamp(size=11))[0]
    images = open_set(path).in_memory()
    z = images.table["z"].to_numpy(np.float64)
    images.pixels[:, :, 5, 5] = np.nan_to_num(1 + z)[:, None]
    images.pixels[images.table["split"].to_numpy() == "test", :, 5, 5] = 99
    return images


def test_probe_finds_what_features_hold(tmp_path, monkeypatch):
    images = bright_by_redshift(tmp_path)
    encoder = Oracle().train()
    found = RidgeProbe(images, deredden=False, device=torch.device("cpu"), batch=7)
    assert found(encoder) < 2e-4 and encoder.training
    with torch.no_grad():
        encoder.weight.zero_()
    assert found(encoder) > 0.03
    with torch.no_grad():
        encoder.weight.fill_(np.nan)
    assert np.isnan(found(encoder))
    monkeypatch.setattr(probe, "MOST", 12)
    some = RidgeProbe(images, deredden=False, device=torch.device("cpu"))
    assert len(some.images) == 12 and set(some.images.table["split"]) == {"train"}


def test_too_few_labels_make_no_probe_and_are_said(tmp_path, caplog):
    catalog = make_catalog(30, shards=1, labelled=1)
    catalog["split"] = np.where(np.arange(30) < 9, "train", "valid")
    images = open_set(write_set(tmp_path, catalog)[0])
    assert not RidgeProbe(images, False, torch.device("cpu")).possible
    assert "9 galaxies of train" in caplog.text
