"""Principal components of images, against NumPy."""

import numpy as np
import pytest
import torch
from small_photoz import galaxies

from pipeline.images.reader import members
from pipeline.learning import components
from pipeline.learning.augment import centre
from pipeline.learning.encoder import Encoder, EncoderSpec
from pipeline.run import UserError

SPEC = EncoderSpec("sarmiento", 0.05, crop=32, bin=2, scale="unit", bands="gri")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return galaxies(tmp_path_factory.mktemp("set"), count=90)


def test_a_row_of_pixels_is_what_the_net_is_given(images):
    encoder = Encoder(SPEC)
    rows = components.pixels(images.take(np.arange(7)), encoder)
    assert rows.shape == (7, SPEC.values) == (7, 3 * 16 * 16)
    stamps = torch.from_numpy(images.read(np.arange(7)))
    seen = encoder.prepared(centre(stamps, torch.from_numpy(images.extinction[:7]), 32, True))
    assert np.array_equal(rows, seen.reshape(7, -1).numpy())
    assert rows.min() == 0 and rows.max() == 1
    assert not np.array_equal(rows, components.pixels(images.take(np.arange(7)), encoder, False))


def test_components_are_those_of_a_singular_value_decomposition(images):
    encoder = Encoder(SPEC)
    mean, axes = components.components(images, encoder, 5)
    x = components.pixels(images, encoder).astype(np.float64)
    assert mean == pytest.approx(x.mean(0), abs=1e-6)
    assert axes.dtype == np.float32 and axes @ axes.T == pytest.approx(np.eye(5), abs=1e-5)
    right = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:5]
    assert np.abs(np.sum(axes * right, axis=1)) == pytest.approx(np.ones(5), abs=1e-4)
    along = components.project(images, encoder, mean, axes)
    assert along == pytest.approx((x - mean) @ axes.T, abs=1e-4) and along.dtype == np.float32


def test_of_many_images_a_sample_is_taken_that_follows_from_their_ids(images, monkeypatch):
    monkeypatch.setattr(components, "MOST", 30)
    encoder = Encoder(SPEC)
    one = components.components(images, encoder, 3)[1]
    two = components.components(images.take(np.arange(len(images))[::-1]), encoder, 3)[1]
    assert np.abs(np.sum(one * two, axis=1)) == pytest.approx(np.ones(3), abs=1e-4)


@pytest.mark.parametrize("count", [0, 31, 769])
def test_more_components_than_images_or_pixels_are_refused(images, count):
    few = images.take(np.arange(30)) if count < 700 else images
    text = r"components: \d+, but \d+ images of 768 pixels have \d+ at most; give fewer"
    with pytest.raises(UserError, match=text):
        components.components(few, Encoder(SPEC), count)
    assert len(members(images, "train+unlabelled")) > 30
