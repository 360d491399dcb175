"""SimCLR's distortions: against a slow reference, how often each is made, and how strong."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from pipeline.learning import distort
from pipeline.learning.augment import centre, turned, view_keys
from pipeline.learning.distort import Distortion, blurred, warped
from pipeline.run import UserError
from pipeline.survey.extinction import R_DR12, R_SF11
from pipeline.survey.hashing import draw, mix64

torch.set_num_threads(1)
MAD = (0.02, 0.01, 0.015, 0.025, 0.09)
FULL = Distortion(crop=32, jitter=4, noise=(1, 3), mad=MAD)
NONE = Distortion(crop=32, jitter=0, zoom=(1, 1), blur=None, colour=0, cutout=None)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def stamps(count=4, size=51, dtype=torch.float64):
    random = np.random.default_rng(0)
    images = random.normal(0, 0.02, (count, 5, size, size))
    middle = size // 2
    images[:, :, middle, middle] += 10
    images[:, :, middle - 3 : middle + 2, middle + 3] += 5
    extinction = np.outer(random.uniform(0, 0.2, count), R_DR12)
    return torch.tensor(images, dtype=dtype), torch.tensor(extinction)


def keys(count=4, epoch=0, view=0):
    return view_keys(3, epoch, 10**18 + 7 * np.arange(count), view)


def slow_place(crop, key, spec, image):
    """One band at a time, by map_coordinates on the stamp with zeros around it."""
    angle, mirror = 2 * math.pi * one(key, 101), one(key, 102) < 0.5
    low, high = spec.zoom
    side = low * (high / low) ** one(key, 104) if one(key, 103) < 0.5 else 1.0
    moves = one(key, 105) < 0.5
    shift = [(math.floor(one(key, label) * (2 * spec.jitter + 1)) - spec.jitter) * moves
             for label in (106, 107)]  # fmt: skip
    row, column = np.indices((crop, crop)) - crop // 2
    row, column = side * row + shift[0], side * column + shift[1]
    place = np.array([math.cos(angle) * row - math.sin(angle) * column,
                      math.sin(angle) * row + math.cos(angle) * column])  # fmt: skip
    if mirror:
        image = image[:, :, ::-1]
    middle = image.shape[-1] // 2
    return np.array([
        ndimage.map_coordinates(plane, place + middle, order=1, mode="grid-constant", cval=0.0)
        for plane in image
    ])  # fmt: skip


def one(key, label):
    return float(draw(np.asarray([key]), label)[0])


def slow_view(image, extinction, key, spec):
    view = slow_place(spec.crop, key, spec, image)
    if spec.blur and one(key, 108) < 0.5:
        low, high = spec.blur
        sigma = spec.bin * (low + (high - low) * one(key, 109))
        reach = math.ceil(3 * spec.bin * high)
        view = np.array([ndimage.gaussian_filter(plane, sigma, mode="nearest", radius=reach)
                         for plane in view])  # fmt: skip
    e_bv = np.mean(extinction / np.asarray(R_DR12)) if spec.deredden else 0.0
    view = view * (10 ** (0.4 * e_bv * np.asarray(R_SF11)))[:, None, None]
    if one(key, 110) < 0.5:
        inner = mix64(np.asarray([key]), 111)[0]
        factor = [1 + spec.colour * (2 * one(inner, band) - 1) for band in range(1, 6)]
        view = view * np.array(factor)[:, None, None]
    if spec.noise and one(key, 112) < 0.5:
        low, high = spec.noise
        scale = (low + (high - low) * one(key, 113)) * np.asarray(spec.mad)
        noise = distort.normal(mix64(np.asarray([key]), 114), view.size, torch.float64, "cpu")
        view = view + scale[:, None, None] * noise.numpy().reshape(view.shape)
    if spec.cutout and one(key, 115) < 0.5:
        low, high = spec.cutout
        side = spec.bin * (low + math.floor(one(key, 116) * (high - low + 1)))
        top, left = (math.floor(one(key, label) * (spec.crop - side + 1)) for label in (117, 118))
        view[:, top : top + side, left : left + side] = 0
    return view


@pytest.mark.parametrize(
    "spec",
    [FULL, NONE, replace(FULL, deredden=False, zoom=(2, 2.5)), replace(FULL, crop=31, bin=1)],
    ids=["full", "none", "beyond-the-stamp", "odd-crop"],
)
def test_views_are_those_of_the_slow_reference(spec):
    images, extinction = stamps(24)
    made = spec(images, extinction, keys(24))
    assert made.dtype == torch.float64 and made.shape == (24, 5, spec.crop, spec.crop)
    for at, key in enumerate(keys(24)):
        wanted = slow_view(images[at].numpy(), extinction[at].numpy(), key, spec)
        np.testing.assert_allclose(made[at], wanted, rtol=1e-9, atol=1e-10)


def test_without_a_zoom_stamps_are_turned_as_augment_turns_them():
    images, random = stamps(6)[0], np.random.default_rng(1)
    given = random.uniform(0, 6, 6), random.integers(-3, 4, (6, 2)), random.random(6) < 0.5
    found = warped(images, given[0], np.ones(6), given[1], given[2], 32)
    torch.testing.assert_close(found, turned(images, *given, 32), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_view_knows_nothing_of_its_batch(dtype):
    images, extinction = stamps(12, dtype=dtype)
    made = FULL(images, extinction, keys(12))
    order = np.random.default_rng(0).permutation(12)
    assert torch.equal(FULL(images[order], extinction[order], keys(12)[order]), made[order])
    for at in range(12):
        part = slice(at, at + 1)
        assert torch.equal(FULL(images[part], extinction[part], keys(12)[part])[0], made[at])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views_in_single_precision_are_near_those_in_double(dtype, device):
    images, extinction = stamps(16, dtype=dtype)
    wanted = FULL(images.double(), extinction, keys(16))
    made = FULL(images.to(device), extinction.float().to(device), keys(16))
    assert made.dtype == torch.float32 and made.device.type == device
    np.testing.assert_allclose(made.cpu(), wanted, atol=2e-4)


def test_views_differ_by_epoch_and_view_and_leave_what_is_given():
    images, extinction = stamps(3)
    before = images.clone()
    made = [FULL(images, extinction, keys(3, *at)) for at in ((0, 0), (1, 0), (0, 1))]
    assert all(not torch.equal(made[a][n], made[b][n])
               for n in range(3) for a in range(3) for b in range(a))  # fmt: skip
    assert torch.equal(images, before)
    assert FULL(images[:0], extinction[:0], keys(0)).shape == (0, 5, 32, 32)


def test_each_distortion_is_made_for_half_of_the_views_independently():
    labels = (103, 105, 108, 110, 112, 115)
    flags = np.array([distort.chosen(keys(8000), label) for label in labels])
    assert np.abs(flags.mean(axis=1) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(flags) - np.eye(6)).max() < 0.04
    drawn = np.array([draw(keys(8000), label) for label in range(101, 119)])
    assert np.abs(np.corrcoef(drawn) - np.eye(18)).max() < 0.05


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"zoom": (0.75, 1.5)}, 103), ({"jitter": 3}, 105), ({"blur": (0.5, 2)}, 108),
        ({"colour": 0.2}, 110), ({"noise": (1, 3), "mad": MAD}, 112), ({"cutout": (2, 10)}, 115),
    ],
)  # fmt: skip
def test_one_distortion_changes_the_views_that_have_it_and_no_other(change, label):
    images, extinction = stamps(1)
    images, extinction = images.expand(200, -1, -1, -1), extinction.expand(200, -1)
    plain = NONE(images, extinction, keys(200))
    made = replace(NONE, **change)(images, extinction, keys(200))
    differs = (made != plain).flatten(1).any(dim=1).numpy()
    expected = distort.chosen(keys(200), label)
    # a shift by nothing, or a square beyond all light, is rare
    assert not differs[~expected].any() and differs[expected].mean() > 0.9


def test_rotation_and_flip_are_always_made():
    images = torch.zeros(2000, 5, 41, 41, dtype=torch.float64)
    images[:, :, 20, 28], images[:, :, 28, 20] = 1, 3
    views = NONE(images, torch.zeros(2000, 5), keys(2000))[:, 0]
    steps = torch.arange(32) - 16.0
    row, column = ((views * axis).sum((1, 2)) / 8 for axis in (steps[:, None], steps[None]))
    found = {}
    for mirror, x in ((False, 1), (True, -1)):
        angle = torch.atan2(row, column) - math.atan2(3, x)
        drawn = torch.as_tensor(2 * math.pi * draw(keys(2000), 101))
        found[mirror] = torch.cos(angle - drawn).numpy() > 0.99
    assert (found[True] | found[False]).all()
    assert abs((found[True] & ~found[False]).mean() - 0.5) < 0.03
    assert stats.kstest(draw(keys(2000), 101), "uniform").pvalue > 1e-3


def test_zooms_go_in_and_out_between_their_limits():
    spec = replace(NONE, zoom=(0.75, 1.5))
    steps = torch.arange(101, dtype=torch.float64) - 50
    images = torch.hypot(steps[:, None], steps).expand(400, 5, -1, -1)
    views = spec(images, torch.zeros(400, 5), keys(400))[:, 0]
    side = views[:, 16, 0] / 16  # the radius at the crop's edge, whatever the angle
    zoomed = side[distort.chosen(keys(400), 103)]
    assert (side[~distort.chosen(keys(400), 103)] - 1).abs().max() < 0.01
    assert zoomed.min() > 0.74 and zoomed.max() < 1.51
    assert 0.25 < (zoomed < 1).double().mean() < 0.6


def test_a_blur_keeps_light_and_has_its_width():
    point = torch.zeros(3, 5, 65, 65, dtype=torch.float64)
    point[:, :, 32, 32] = 1
    sigma = np.array([0.7, 2.0, 4.0])
    found = blurred(point, sigma, 12)
    torch.testing.assert_close(found.sum((2, 3)), torch.ones(3, 5, dtype=torch.float64))
    variance = (found * ((torch.arange(65) - 32.0) ** 2)).sum((2, 3))[:, 0]
    np.testing.assert_allclose(variance[:2], sigma[:2] ** 2, rtol=5e-3)
    level = blurred(torch.full((1, 5, 20, 20), 0.3).double(), np.array([3.0]), 9)
    torch.testing.assert_close(level, torch.full((1, 5, 20, 20), 0.3).double())


def test_colours_of_bands_are_drawn_apart_and_dust_is_taken_off():
    images, extinction = stamps(500)
    images[:] = 1
    spec = replace(NONE, colour=0.3)
    extinction[:] = extinction[0]
    clean = centre(images, extinction, 1)[:, :, 0, 0]
    factor = (spec(images, extinction, keys(500))[:, :, 16, 16] / clean).numpy()
    changed = factor[distort.chosen(keys(500), 110)]
    assert np.allclose(factor[~distort.chosen(keys(500), 110)], 1)
    assert stats.kstest(changed.ravel(), stats.uniform(0.7, 0.6).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(changed.T) - np.eye(5)).max() < 0.25


def test_cut_outs_are_squares_of_whole_input_pixels_within_the_crop():
    images = torch.ones(600, 5, 101, 101)
    views = replace(NONE, cutout=(2, 10))(images, torch.zeros(600, 5), keys(600))
    gone = (views == 0).numpy()
    assert (gone == gone[:, :1]).all()
    counts = gone[:, 0].sum(axis=(1, 2))
    sides = np.sqrt(counts[counts > 0])
    assert set(sides) == set(range(4, 21, 2))
    assert ((gone[:, 0].any(axis=1).sum(axis=1) ** 2) == counts).all()
    assert gone[:, 0, 0].any() and gone[:, 0, -1].any()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"zoom": (1.5, 0.75)}, "zoom: .*; give two factors"),
        ({"zoom": (0, 1)}, "zoom: "),
        ({"blur": (0, 2)}, "blur: .*; give two widths above 0"),
        ({"blur": (1, 100)}, "blur: "),
        ({"cutout": (2, 17)}, "cutout: .*pixels of the net's input, 16 or less"),
        ({"cutout": (5, 2)}, "cutout: "),
        ({"colour": 1}, "colour: 1; give 0 or more"),
        ({"colour": math.nan}, "colour: nan"),
        ({"jitter": -1}, "jitter: -1"),
        ({"crop": 0}, "crop: 0"),
        ({"bin": 0}, "bin: 0"),
        ({"noise": (3, 1)}, "noise: .*the smaller first"),
        ({"mad": None}, "noise: is scaled by the bands' MAD"),
    ],
)
def test_values_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(UserError, match=said) as error:
        replace(FULL, **wrong)
    assert "\n" not in str(error.value)


def test_a_crop_that_does_not_fit_is_refused():
    images, extinction = stamps(1, size=31)
    with pytest.raises(UserError, match="crop: 32 px do not fit in stamps of 31 px"):
        FULL(images, extinction, keys(1))
