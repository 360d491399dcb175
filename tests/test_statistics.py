import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.images import statistics
from pipeline.images.statistics import PixelCounts


def images_like_stamps(count=40, size=31, seed=3, dtype=np.float32):
    """Sky noise of a different depth in each band, galaxies, and stamps that frames half cover."""
    random = np.random.default_rng(seed)
    noise = np.array([0.06, 0.02, 0.03, 0.05, 0.2])[:, None, None]
    sky = random.normal(0.003, 1, (count, 5, size, size)) * noise
    radius = np.hypot(*(np.indices((size, size)) - size // 2))
    flux = random.lognormal(0, 1, (count, 5, 1, 1))
    images = sky + flux * np.exp(-radius / 3)
    images[::7, :, : size // 2] = 0
    return images.astype(dtype)


def exact(images):
    pixels = np.asarray(images, dtype=np.float64).transpose(1, 0, 2, 3).reshape(5, -1)
    median = np.median(pixels, axis=1)
    return median, np.median(np.abs(pixels - median[:, None]), axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_median_and_mad_are_numpys_to_1e_4_of_the_noise(dtype):
    images = images_like_stamps(dtype=dtype)
    counts = PixelCounts()
    counts.add(images)
    median, mad = counts.median_and_mad()
    true_median, true_mad = exact(images)
    assert counts.images == len(images)
    assert np.all(np.abs(median - true_median) < 1e-4 * (true_mad + np.abs(true_median)))
    assert np.all(np.abs(mad - true_mad) < 1e-4 * (true_mad + np.abs(true_median)))


def test_a_skewed_distribution_far_from_zero():
    random = np.random.default_rng(0)
    images = random.gamma(2, 100, (20, 5, 15, 15)).astype(np.float32) + 1000
    counts = PixelCounts()
    counts.add(images)
    for found, true in zip(counts.median_and_mad(), exact(images), strict=True):
        np.testing.assert_allclose(found, true, atol=1e-4 * 1200)


def test_parts_in_any_order_give_the_whole():
    images = images_like_stamps(count=24)
    whole = PixelCounts()
    whole.add(images)
    order = np.random.default_rng(1).permutation(24)
    merged = PixelCounts()
    for part in np.array_split(order, 5):
        one = PixelCounts()
        one.add(images[part])
        merged.merge(one)
    assert merged.images == whole.images
    np.testing.assert_array_equal(merged.counts, whole.counts)


def test_values_beyond_the_bins_are_still_counted():
    images = np.zeros((1, 5, 3, 3), dtype=np.float32)
    images[0, 0] = [[1e-30, -1e-30, 0], [3e38, -3e38, 1], [-0.0, 1e-9, 2]]
    counts = PixelCounts()
    counts.add(images)
    assert counts.counts.sum() == 45
    assert counts.median_and_mad()[0][0] == pytest.approx(0, abs=1e-8)


@given(st.lists(st.floats(-(2.0**16), 2.0**16, width=32), min_size=5, max_size=5))
@settings(max_examples=25, deadline=None)
def test_bins_keep_values_to_6e_5_and_in_order(values):
    values = np.sort(np.array(values, dtype=np.float32))
    counts = PixelCounts()
    counts.add(values.reshape(1, 5, 1, 1))
    found = counts.median_and_mad()[0]
    assert np.all(np.abs(found - values) <= 6.2e-5 * np.abs(values) + 2.0**-30)
    assert np.all(np.diff(found) >= 0)


@given(st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 6)), min_size=1, max_size=12))
@settings(deadline=None)
def test_weighted_median_is_the_median_of_repeated_values(pairs):
    values, counts = (np.array(column) for column in zip(*pairs, strict=True))
    if counts.sum() == 0:
        counts[0] = 1
    found = statistics.weighted_median(values.astype(float), counts)
    assert found == np.median(np.repeat(values, counts))


def test_nothing_counted_has_no_median():
    with pytest.raises(ValueError, match="no image"):
        PixelCounts().median_and_mad()
