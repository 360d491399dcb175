"""Augmentations against a slow reference, image by image, and the statistics of what they draw."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from pipeline.learning.augment import Augmentation, centre, normal, turned, view_keys
from pipeline.run import UserError

torch.set_num_threads(1)
MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
MAD = (0.02, 0.01, 0.015, 0.025, 0.09)
R_SF11 = (4.239, 3.303, 2.285, 1.698, 1.263)
R_DR12 = (5.155, 3.793, 2.751, 2.086, 1.479)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def stamps(count=4, size=107, seed=0, dtype=torch.float64):
    """Noise with a bright, lopsided galaxy on the central pixel; and DR12's extinctions."""
    random = np.random.default_rng(seed)
    images = random.normal(0, 0.02, (count, 5, size, size))
    middle = size // 2
    images[:, :, middle, middle] += 10
    images[:, :, middle, middle + 3] += 5
    images[:, :, middle + 1, middle] += 2
    extinction = np.outer(random.uniform(0, 0.2, count), R_DR12)
    return torch.tensor(images, dtype=dtype), torch.tensor(extinction)


def ids(count=4):
    return 1237663542061760513 + np.arange(count) * 65537


# the reference: whole numbers of Python, floats of math, one pixel or one image at a time


def splitmix(state):
    """The output of SplitMix64 at a state, by the published algorithm."""
    mixed = (state + GAMMA) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def hashed(value, label):
    return splitmix(value ^ splitmix(label)) if label else splitmix(value)


def uniform(key, label):
    return (hashed(key, label) >> 11) * 2.0**-53


def slow_key(seed, epoch, objid, view):
    return hashed(hashed(hashed(int(objid), seed), epoch + 1), view + 1)


def slow_normal(key, count):
    first, second = [], []
    for number in range((count + 1) // 2):
        bits = splitmix((key + number * GAMMA) & MASK)
        radius = math.sqrt(-2 * math.log(((bits >> 32) + 0.5) * 2.0**-32))
        angle = 2 * math.pi * (bits & 0xFFFFFFFF) * 2.0**-32
        first.append(radius * math.cos(angle))
        second.append(radius * math.sin(angle))
    return np.array(first + second)[:count]


def slow_rotation(plane, angle):
    """Rotate light from +column to +row about the central pixel, as the paper: bilinear, zeros."""
    middle = len(plane) // 2
    row, column = np.indices(plane.shape) - middle
    place = [math.cos(angle) * row - math.sin(angle) * column,
             math.sin(angle) * row + math.cos(angle) * column]  # fmt: skip
    return ndimage.map_coordinates(
        plane, np.array(place) + middle, order=1, mode="grid-constant", cval=0.0
    )


def slow_view(image, extinction, key, spec):
    """The paper's order, a step at a time on the whole stamp: the crop is the last but one."""
    middle = image.shape[-1] // 2
    e_sfd = np.mean([a / r for a, r in zip(extinction, R_DR12, strict=True)])
    e_sfd = 0.0 if not spec.deredden or np.isnan(e_sfd) else e_sfd
    e_bv = spec.max_e_bv * uniform(key, 1)
    shift = [math.floor(uniform(key, label) * (2 * spec.jitter + 1)) - spec.jitter
             for label in (3, 4)]  # fmt: skip
    planes = []
    for band, plane in enumerate(image):
        plane = plane * 10 ** (0.4 * R_SF11[band] * e_sfd) * 10 ** (-0.4 * R_SF11[band] * e_bv)
        if spec.flips and uniform(key, 5) < 0.5:
            plane = plane[:, ::-1]
        plane = np.pad(plane, 20)
        if spec.rotate:
            plane = slow_rotation(plane, 2 * math.pi * uniform(key, 2))
        row, column = (20 + middle + shift[axis] - spec.crop // 2 for axis in (0, 1))
        planes.append(plane[row : row + spec.crop, column : column + spec.crop])
    view = np.array(planes)
    if spec.noise:
        low, high = spec.noise
        scale = low + (high - low) * uniform(key, 6)
        noise = slow_normal(hashed(key, 7), view.size).reshape(view.shape)
        view = view + scale * np.array(spec.mad)[:, None, None] * noise
    return view


SPECS = {
    "evaluation-like": Augmentation(rotate=False, jitter=0),
    "supervised": Augmentation(),
    "flipped": Augmentation(flips=True),
    "moco": Augmentation(max_e_bv=0.5, noise=(1, 3), mad=MAD, flips=True),
    "unrotated": Augmentation(rotate=False, flips=True, deredden=False, max_e_bv=0.5),
    "odd-crop": Augmentation(crop=33, noise=(1, 3), mad=MAD, jitter=2),
    "beyond-the-stamp": Augmentation(crop=107, jitter=9),
    "beyond-unrotated": Augmentation(crop=107, jitter=9, rotate=False, flips=True),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_views_are_those_of_the_slow_reference(spec):
    images, extinction = stamps(3)
    keys = view_keys(5, 2, ids(3), 1)
    views = spec(images, extinction, keys)
    assert views.dtype == torch.float64
    assert views.shape == (3, 5, spec.crop, spec.crop)
    for at in range(3):
        wanted = slow_view(images[at].numpy(), extinction[at].numpy(), int(keys[at]), spec)
        np.testing.assert_allclose(views[at], wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views_in_single_precision_are_near_those_in_double(dtype, device):
    images, extinction = stamps(6, dtype=dtype)
    keys = view_keys(0, 0, ids(6), 0)
    wanted = SPECS["moco"](images.double(), extinction, keys)
    views = SPECS["moco"](images.to(device), extinction.float().to(device), keys)
    assert views.dtype == torch.float32
    assert views.device.type == device
    np.testing.assert_allclose(views.cpu(), wanted, atol=2e-4)


def test_keys_are_those_of_the_slow_reference_and_all_differ():
    objid = np.array([1, 1237663542061760513, -5, 2**62])
    wanted = [slow_key(3, 7, each & MASK, 1) for each in objid.tolist()]
    assert view_keys(3, 7, objid, 1).tolist() == wanted
    every = [
        view_keys(seed, epoch, ids(50), view)
        for seed in range(4) for epoch in range(6) for view in range(2)
    ]  # fmt: skip
    assert len(np.unique(every)) == 4 * 6 * 2 * 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_view_knows_nothing_of_its_batch(dtype):
    images, extinction = stamps(9, dtype=dtype)
    keys = view_keys(0, 3, ids(9), 0)
    spec = SPECS["moco"]
    views = spec(images, extinction, keys)
    order = np.random.default_rng(0).permutation(9)
    again = spec(images[order], extinction[order], keys[order])
    assert torch.equal(again, views[order])
    for at in (0, 4, 8):
        alone = spec(images[at : at + 1], extinction[at : at + 1], keys[at : at + 1])
        assert torch.equal(alone[0], views[at])


def test_what_is_given_is_left_as_it_was():
    for spec in SPECS.values():
        images, extinction = stamps(2)
        before = images.clone(), extinction.clone()
        spec(images, extinction, view_keys(0, 0, ids(2), 0))
        centre(images, extinction, turn=6)
        assert torch.equal(images, before[0])
        assert torch.equal(extinction, before[1])


def test_nothing_is_done_to_an_empty_batch():
    images, extinction = stamps(0)
    for spec in SPECS.values():
        views = spec(images, extinction, view_keys(0, 0, ids(0), 0))
        assert views.shape == (0, 5, spec.crop, spec.crop)


@pytest.mark.parametrize("turn", range(8))
def test_evaluation_turns_are_rotations_about_the_galaxy(turn):
    images, extinction = stamps(2)
    upright = Augmentation(rotate=False, jitter=0)(images, extinction, view_keys(0, 0, ids(2), 0))
    view = centre(images, extinction, turn=turn)
    if turn == 0:
        assert torch.equal(view, upright)
    factor = upright[:, :, 32, 32] / images[:, :, 53, 53]
    assert torch.equal(view[:, :, 32, 32], upright[:, :, 32, 32])
    angle, mirror = np.full(2, (turn % 4) * np.pi / 2), np.full(2, turn >= 4)
    by_rotation = turned(images, angle, np.zeros((2, 2)), mirror, 64) * factor[:, :, None, None]
    np.testing.assert_allclose(view, by_rotation, atol=1e-11)


def test_the_eight_turns_differ():
    images, extinction = stamps(1)
    views = [centre(images, extinction, turn=turn) for turn in range(8)]
    assert all(not torch.equal(views[a], views[b]) for a in range(8) for b in range(a))


def test_a_positive_angle_takes_light_from_columns_to_rows():
    image = torch.zeros(1, 5, 107, 107)
    image[:, :, 53, 63] = 1
    view = turned(image, np.array([np.pi / 2]), np.zeros((1, 2)), np.array([False]), 64)
    assert abs(float(view[0, 2, 32 + 10, 32]) - 1) < 1e-4
    assert abs(float(centre(image, torch.zeros(1, 5), turn=1)[0, 2, 42, 32]) - 1) < 1e-6


def test_a_crop_of_any_parity_has_its_galaxy_in_the_same_place():
    images, extinction = stamps(1, size=31)
    for crop in (1, 2, 15, 16, 30, 31):
        view = centre(images, extinction, crop=crop, deredden=False)
        assert view.shape == (1, 5, crop, crop)
        assert torch.equal(view[:, :, crop // 2, crop // 2], images[:, :, 15, 15])


def test_unknown_extinction_is_none():
    images, extinction = stamps(2)
    extinction[0, 3] = torch.nan
    view = centre(images, extinction)
    assert torch.equal(view[0], images[0, :, 21:85, 21:85])
    assert not torch.equal(view[1], images[1, :, 21:85, 21:85])
    with_none = SPECS["supervised"](images, torch.zeros(2, 5), view_keys(0, 0, ids(2), 0))
    views = SPECS["supervised"](images, extinction, view_keys(0, 0, ids(2), 0))
    assert torch.equal(views[0], with_none[0])


def test_dereddening_takes_the_dust_of_dr12_away():
    e_bv = 0.1
    images = torch.ones(1, 5, 9, 9, dtype=torch.float64)
    view = centre(images, torch.tensor([[e_bv * r for r in R_DR12]]), crop=8)
    np.testing.assert_allclose(view[0, :, 0, 0], [10 ** (0.4 * r * e_bv) for r in R_SF11], 1e-6)


def test_what_lies_beyond_the_stamp_is_zero():
    images = torch.ones(200, 5, 31, 31)
    spec = Augmentation(crop=31, jitter=5, deredden=False)
    views = spec(images, torch.zeros(200, 5), view_keys(0, 0, ids(200), 0))
    assert float(views.min()) == 0
    assert float(views.max()) <= 1 + 1e-6
    assert (views[:, :, 15, 15] > 0.99).all()


def draws(spec, size, count=4000):
    """Views of stamps that show what was drawn: a pixel at the centre and one to its right."""
    images = torch.zeros(count, 5, size, size, dtype=torch.float64)
    images[:, :, size // 2, size // 2] = 1
    return spec(images, torch.zeros(count, 5), view_keys(0, 0, ids(count), 0))


def test_jitter_is_even_over_whole_pixels_in_both_axes():
    views = draws(Augmentation(crop=17, rotate=False, jitter=3), 25)
    assert torch.equal(views[:, 0].sum((1, 2)), torch.ones(4000, dtype=torch.float64))
    place = views[:, 0].reshape(4000, -1).argmax(1)
    row, column = 8 - place // 17, 8 - place % 17
    assert set(row.tolist()) == set(column.tolist()) == set(range(-3, 4))
    cells = np.bincount((row + 3) * 7 + column + 3, minlength=49)
    assert stats.chisquare(cells).pvalue > 1e-3


def test_reddening_is_uniform_one_draw_for_all_bands():
    views = draws(Augmentation(crop=1, rotate=False, jitter=0, max_e_bv=0.5), 3)
    e_bv = -2.5 * torch.log10(views[:, :, 0, 0]) / torch.tensor(R_SF11)
    np.testing.assert_allclose(e_bv, e_bv[:, :1].expand(-1, 5), atol=1e-6)
    assert stats.kstest(e_bv[:, 2], stats.uniform(0, 0.5).cdf).pvalue > 1e-3


def test_angles_are_uniform_and_half_of_the_views_are_mirrored():
    images = torch.zeros(2000, 5, 41, 41, dtype=torch.float64)
    images[:, :, 20, 28], images[:, :, 28, 20] = 1, 3
    spec = Augmentation(crop=31, jitter=0, flips=True, deredden=False)
    views = spec(images, torch.zeros(2000, 5), view_keys(0, 0, ids(2000), 0))[:, 0]
    steps = torch.arange(31) - 15.0
    row, column = ((views * axis).sum((1, 2)) / 8 for axis in (steps[:, None], steps[None]))
    # the weighted places are (1, 3) and, mirrored, (-1, 3), turned by the angle
    angle = {}
    for mirrored, x in ((False, 1), (True, -1)):
        angle[mirrored] = torch.atan2(row, column) - math.atan2(3, x)
    spread = {k: torch.remainder(v, 2 * math.pi) / (2 * math.pi) for k, v in angle.items()}
    drawn = np.array([uniform(int(key), 2) for key in view_keys(0, 0, ids(2000), 0)])
    near = [np.abs((spread[k].numpy() - drawn + 0.5) % 1 - 0.5) < 0.01 for k in (False, True)]
    assert (near[0] ^ near[1]).mean() > 0.99
    assert abs(near[1].mean() - 0.5) < 0.03
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3


def test_noise_is_normal_scaled_by_the_bands_and_independent():
    spec = Augmentation(crop=16, rotate=False, jitter=0, noise=(1, 3), mad=MAD)
    images = torch.zeros(2000, 5, 17, 17, dtype=torch.float64)
    views = spec(images, torch.zeros(2000, 5), view_keys(0, 0, ids(2000), 0)).numpy()
    scale = views.std(axis=(2, 3)) / MAD
    assert stats.kstest(scale.mean(1), stats.uniform(1, 2).cdf).pvalue > 1e-3
    np.testing.assert_allclose(scale / scale.mean(1, keepdims=True), 1, atol=0.25)
    plain = normal(view_keys(0, 0, ids(2000), 0), 1280, torch.float64, "cpu").numpy()
    assert stats.kstest(plain.ravel()[::7], "norm").pvalue > 1e-3
    assert abs(plain.var() - 1) < 0.005
    assert abs((plain**4).mean() - 3) < 0.03
    for other in (np.roll(plain, 1, 0), np.roll(plain, 1, 1), np.roll(plain, 640, 1)):
        assert abs((plain * other).mean()) < 0.003
        assert abs((plain**2 * other**2).mean() - 1) < 0.01


def test_draws_of_one_view_do_not_follow_from_one_another():
    keys = view_keys(0, 0, ids(5000), 0)
    drawn = np.array([[uniform(int(key), label) for label in range(1, 7)] for key in keys[:2000]])
    correlation = np.corrcoef(drawn.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.08


def test_views_differ_by_epoch_and_view():
    images, extinction = stamps(2)
    made = [
        SPECS["moco"](images, extinction, view_keys(seed, epoch, ids(2), view))
        for seed, epoch, view in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert all(not torch.equal(made[a], made[b]) for a in range(4) for b in range(a))


def test_a_crop_that_does_not_fit_is_refused():
    images, extinction = stamps(1, size=31)
    with pytest.raises(UserError, match="crop: 64 px do not fit in stamps of 31 px"):
        Augmentation()(images, extinction, view_keys(0, 0, ids(1), 0))
    with pytest.raises(UserError, match="crop: 64 px do not fit"):
        centre(images, extinction)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": (1, 3)}, "noise: is scaled by the bands' MAD"),
        ({"noise": (3, 1), "mad": MAD}, "the smaller first"),
        ({"crop": 0}, "crop: 0; give 1 or more"),
        ({"jitter": -1}, "jitter: -1"),
        ({"jitter": math.inf}, "jitter: inf"),
        ({"max_e_bv": -0.1}, "max-e-bv: -0.1"),
        ({"max_e_bv": math.inf}, "max-e-bv: inf; give 0 or more magnitudes, a finite number"),
        ({"noise": (1, math.inf), "mad": MAD}, r"noise: \(1, inf\); give two finite factors"),
        ({"noise": (math.nan, 1), "mad": MAD}, "noise: .*; give two finite factors"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**values)
