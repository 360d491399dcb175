"""The exact-area kernel: areas, means, coverage, variance, flags; against independent ways."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sky import SCALE, add_gaussian, make_wcs

from pipeline.images import overlap
from pipeline.images.geometry import corners, window
from pipeline.images.stamp import Stamp

STAMP = Stamp()
SETTINGS = settings(max_examples=50, deadline=None)


def lattice(size, angle=0.0, scale=1.0, shift=(0.0, 0.0), shear=0.0, flip=1):
    """Corners of size x size pixels, `scale` frame pixels wide, turned, sheared and shifted."""
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = scale * matrix @ np.array([[flip, shear], [0, 1]])
    y, x = np.mgrid[: size + 1, : size + 1] - size / 2
    return np.stack([x, y], -1) @ matrix.T + np.asarray(shift)


def outlines(points):
    """The four corners of every pixel, in order around it: (size, size, 4, 2)."""
    return np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], axis=2)


def shoelace(points):
    """Areas and centroids of the pixels, by the polygon formulas."""
    x, y = np.moveaxis(outlines(points), -1, 0)
    x0, y0 = x.mean(axis=-1, keepdims=True), y.mean(axis=-1, keepdims=True)
    x, y = x - x0, y - y0
    xn, yn = np.roll(x, -1, axis=-1), np.roll(y, -1, axis=-1)
    cross = x * yn - xn * y
    area = cross.sum(axis=-1) / 2
    cx = ((x + xn) * cross).sum(axis=-1) / (6 * area) + x0[..., 0]
    cy = ((y + yn) * cross).sum(axis=-1) / (6 * area) + y0[..., 0]
    return np.abs(area), cx, cy


def clipped(outline, box):
    """Area of a convex polygon inside a box (x0, x1, y0, y1), cutting it side by side."""
    points = [tuple(point) for point in outline]
    for axis, limit, keep in ((0, box[0], 1), (0, box[1], -1), (1, box[2], 1), (1, box[3], -1)):
        cut = []
        for p, q in zip(points, points[1:] + points[:1], strict=True):
            dp, dq = keep * (p[axis] - limit), keep * (q[axis] - limit)
            if dp >= 0:
                cut.append(p)
            if dp * dq < 0:
                t = dp / (dp - dq)
                cut.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        points = cut
        if not points:
            return 0.0
    x, y = np.array(points).T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


maps = st.fixed_dictionaries(
    {
        "angle": st.floats(-180, 180), "scale": st.floats(0.3, 4.0),
        "shift": st.tuples(st.floats(30, 34), st.floats(30, 34)),
        "shear": st.floats(-0.5, 0.5), "flip": st.sampled_from([-1, 1]),
    }
)  # fmt: skip
aligned = st.fixed_dictionaries(  # edges on pixel edges: where walks go wrong
    {
        "angle": st.sampled_from([0.0, 90.0, 180.0, 45.0]),
        "scale": st.sampled_from([0.5, 1.0, 2.0]),
        "shift": st.tuples(*[st.sampled_from([31.0, 31.5, 32.0, 32.25])] * 2),
        "shear": st.sampled_from([0.0, 0.5, -0.5]), "flip": st.sampled_from([-1, 1]),
    }
)  # fmt: skip


@SETTINGS
@given(st.one_of(maps, aligned))
def test_areas_are_the_polygons_and_a_flat_frame_stays_flat(how):
    points = lattice(5, **how)
    cut = overlap.cut(np.ones((64, 64), dtype=np.float32), points)
    assert np.allclose(cut.area, shoelace(points)[0], rtol=1e-9)
    assert np.abs(cut.value - 1).max() < 1e-12 and np.abs(cut.share - 1).max() < 1e-12


@SETTINGS
@given(st.one_of(maps, aligned), st.integers(0, 2**32 - 1))
def test_every_weight_is_the_area_shared_with_that_pixel(how, seed):
    """Frames with a single lit pixel give back the weight; clipping polygons gives it as well."""
    points = lattice(3, **how)
    outline = outlines(points)[1, 1]
    random = np.random.default_rng(seed)
    area = shoelace(points)[0][1, 1]
    low, high = np.floor(outline.min(axis=0) + 0.5), np.floor(outline.max(axis=0) + 0.5)
    for _ in range(3):
        x, y = (int(random.integers(low[k], high[k] + 1)) for k in (0, 1))
        image = np.zeros((64, 64), dtype=np.float32)
        image[y, x] = 1
        expected = clipped(outline, (x - 0.5, x + 0.5, y - 0.5, y + 0.5)) / area
        assert overlap.cut(image, points).value[1, 1] == pytest.approx(expected, abs=1e-11)


@SETTINGS
@given(st.floats(-180, 180), st.floats(-0.5, 0.5), st.sampled_from([-1, 1]))
def test_a_linear_frame_is_its_value_at_the_centroid(angle, shear, flip):
    """Over pixels of many frame pixels, where the frame's own steps do not count."""
    points = lattice(3, angle, 60.0, (200.3, 199.1), shear, flip)
    y, x = np.mgrid[:400, :400]
    _, cx, cy = shoelace(points)
    value = overlap.cut((0.25 * x - 0.5 * y + 3).astype(np.float64), points).value
    assert np.abs(value - (0.25 * cx - 0.5 * cy + 3)).max() < 2e-3


@SETTINGS
@given(st.sampled_from([0.0, 90.0, 180.0, -90.0]), st.sampled_from([1.0, 2.0, 3.0]))
def test_a_linear_frame_is_exact_on_whole_pixels(angle, scale):
    points = lattice(4, angle, scale, (31.5, 31.5))
    y, x = np.mgrid[:64, :64]
    _, cx, cy = shoelace(points)
    value = overlap.cut((0.25 * x - 0.5 * y + 3).astype(np.float64), points).value
    assert np.abs(value - (0.25 * cx - 0.5 * cy + 3)).max() < 1e-11


@SETTINGS
@given(maps, st.integers(0, 2**32 - 1))
def test_pixels_are_the_mean_of_their_quarters(how, seed):
    image = np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)
    how = {**how, "scale": how["scale"] / 2}
    fine = overlap.cut(image, lattice(8, **how))
    coarse = overlap.cut(image, lattice(8, **how)[::2, ::2])
    quarters = (fine.value * fine.area).reshape(4, 2, 4, 2).sum(axis=(1, 3))
    assert np.allclose(coarse.value * coarse.area, quarters, atol=1e-10)


@SETTINGS
@given(maps, st.integers(0, 2**32 - 1))
def test_the_patchs_margin_changes_nothing(how, seed):
    image = np.random.default_rng(seed).normal(size=(80, 80)).astype(np.float32)
    points = lattice(5, **how) + 8
    whole = overlap.cut(image, points)
    for margin in (0, 1, 5):
        part = window(points, image.shape, margin)
        patch = overlap.cut(image[part.rows, part.columns], points - part.origin)
        assert np.abs(patch.value - whole.value).max() < 1e-12
        assert np.abs(patch.share - whole.share).max() < 1e-12


@SETTINGS
@given(maps, st.integers(0, 2**32 - 1))
def test_pixels_that_are_not_finite_are_left_out(how, seed):
    random = np.random.default_rng(seed)
    image = random.normal(size=(64, 64))
    hole = random.random((64, 64)) < 0.2
    points = lattice(5, **how)
    image[hole] = np.nan
    cut = overlap.cut(image, points)
    light = overlap.cut(np.where(hole, 0, image), points).value
    share = overlap.cut((~hole).astype(float), points).value
    seen = share > overlap.LEAST_SHARE
    assert np.abs(cut.share - np.where(seen, share, 0)).max() < 1e-12
    assert np.allclose(cut.value, np.where(seen, light / np.where(seen, share, 1), 0), atol=1e-9)


def test_infinite_pixels_are_left_out_as_well():
    image = np.ones((20, 20))
    image[10, 10] = np.inf
    cut = overlap.cut(image, lattice(5, 20.0, 1.3, (10, 10)))
    assert np.isfinite(cut.value).all() and cut.share.min() < 0.5


@pytest.mark.parametrize("angle", [0.0, 31.0, 90.0, -163.0])
@pytest.mark.parametrize("edge", ["left", "right", "bottom", "top"])
def test_coverage_at_a_frames_edge_is_exact(angle, edge):
    image = np.ones((60, 80), dtype=np.float32)
    shift = {"left": (0, 30), "right": (79.2, 30), "bottom": (40, -0.5), "top": (40, 59.5)}[edge]
    points = lattice(21, angle, 1.02, shift)
    cut = overlap.cut(image, points)
    frame = (-0.5, 79.5, -0.5, 59.5)
    areas = shoelace(points)[0]
    expected = np.array(
        [[clipped(o, frame) / a for o, a in zip(*row, strict=True)]
         for row in zip(outlines(points), areas, strict=True)]
    )  # fmt: skip
    assert 0.2 < expected.mean() < 0.8
    assert np.abs(cut.share - expected).max() < 1e-9
    assert np.array_equal(cut.value > 0, expected > overlap.LEAST_SHARE)
    assert np.allclose(cut.value[cut.share > 0], 1)


def test_coverage_by_counting_points():
    """The same without any geometry: throw a grid of points into each pixel and count."""
    points = lattice(9, 27.0, 1.7, (1.3, 10.0), 0.2)
    cut = overlap.cut(np.ones((30, 30), dtype=np.float32), points)
    steps = (np.arange(100) + 0.5) / 100
    u, v = np.meshgrid(steps, steps)
    origin, right, up = points[:-1, :-1], points[:-1, 1:], points[1:, :-1]
    where = origin[:, :, None, None] + u[..., None] * (right - origin)[:, :, None, None]
    where = where + v[..., None] * (up - origin)[:, :, None, None]
    inside = ((where > -0.5) & (where < 29.5)).all(axis=-1).mean(axis=(2, 3))
    assert 0 < inside.mean() < 1 and np.abs(cut.share - inside).max() < 5e-3


def test_nothing_covered_is_zero():
    image = np.ones((30, 30), dtype=np.float32)
    variance, mask = np.ones((30, 30)), np.ones((30, 30), dtype=np.uint16)
    cut = overlap.cut(image, lattice(5, 10, 1, (500, 500)), variance, mask)
    assert not cut.share.any() and not cut.value.any()
    assert not cut.variance.any() and not cut.mask.any() and (cut.area > 0.99).all()


@pytest.mark.parametrize("ratio", [0.9, 1.02, 2.5])
def test_surface_brightness_is_kept(ratio):
    """Flat 1 -> 1; a source of 1000 sums to 1000 / area of a stamp pixel in frame pixels."""
    image = np.zeros((300, 300), dtype=np.float32)
    add_gaussian(image, 149.3, 150.8, 1000.0)
    points = lattice(61, 33.0, ratio, (150, 150))
    cut = overlap.cut(image, points)
    assert np.allclose(cut.area, ratio**2)
    assert cut.value.sum() == pytest.approx(1000 / ratio**2, rel=1e-6)
    assert (cut.value * cut.area).sum() == pytest.approx(1000, rel=1e-6)


def test_area_ratio_of_a_nominal_frame():
    wcs = make_wcs(150.0, 10.0, 37.0)
    ra, dec = wcs.wcs_pix2world([[1024.0, 744.0]], 0)[0]
    points = corners(STAMP, ra, dec, wcs)
    cut = overlap.cut(np.ones((1489, 2048), dtype=np.float32), points)
    assert cut.area.mean() == pytest.approx((STAMP.scale / SCALE) ** 2, rel=1e-7)
    assert cut.area.mean() == pytest.approx(1.0395, abs=2e-4)


def test_variance_is_the_closed_form_and_what_noise_does():
    random = np.random.default_rng(1)
    variance = random.uniform(0.5, 4.0, (40, 40))
    points = lattice(9, 37.0, 1.02, (20, 20))
    cut = overlap.cut(np.zeros((40, 40)), points, variance)
    weights = np.empty((40, 40, 9, 9))
    for y, x in np.ndindex(40, 40):
        lit = np.zeros((40, 40))
        lit[y, x] = 1
        weights[y, x] = overlap.cut(lit, points).value
    assert np.allclose(weights.sum(axis=(0, 1)), 1)
    closed = np.einsum("yxij,yx->ij", weights**2, variance)
    assert np.allclose(cut.variance, closed, rtol=1e-10)
    draws = [overlap.cut(random.normal(0, np.sqrt(variance)), points).value for _ in range(3000)]
    ratio = np.var(draws, axis=0) / cut.variance
    assert abs(ratio.mean() - 1) < 0.02 and np.abs(ratio - 1).max() < 0.15


def test_variance_at_an_edge_grows_as_the_covered_part_shrinks():
    points = lattice(5, 0.0, 2.0, (0.0, 15.0))
    cut = overlap.cut(np.ones((30, 30)), points, np.ones((30, 30)))
    half = (cut.share > 0.4) & (cut.share < 0.9)
    assert half.any() and (cut.variance[half] > cut.variance[cut.share == 1].max()).all()


def test_flags_of_all_pixels_touched_are_joined():
    mask = np.zeros((40, 40), dtype=np.uint16)
    mask[20, 20], mask[20, 21], mask[5, 5] = 1, 2, 512
    image = np.ones((40, 40), dtype=np.float32)
    points = lattice(9, 0.0, 1.0, (20.5, 20.0))  # pixels straddle two columns, rows are whole
    flags = overlap.cut(image, points, mask=mask).mask
    expected = np.zeros((9, 9), dtype=np.uint16)
    expected[4, 3:6] = 1, 1 | 2, 2
    assert flags.dtype == np.uint16 and np.array_equal(flags, expected)
