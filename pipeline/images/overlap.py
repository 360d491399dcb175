"""The exact-area kernel: each stamp pixel is the mean of the frame over its own area.

A stamp pixel is a quadrilateral on the frame. The area that it shares with each frame pixel is
found by walking its four edges (Green's theorem: an edge that goes up by dy adds dy to every
frame pixel on its left and the part of dy on its left to those that it crosses). This is what
Montage's mProject and reproject_exact compute on the sphere; over 0.012 deg the plane agrees to
1e-5 of the sky noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

LEAST_SHARE = 1e-6
"""A stamp pixel of which frames cover less than this is not covered."""


class Cut(NamedTuple):
    """What a frame gives to a stamp; each (size, size).

    `value` mean of the frame over the covered part of the pixel (surface brightness is kept),
    0 where nothing is covered; `share` the part of the pixel that the frame covers (finite
    pixels only), 0 to 1; `area` of the pixel in frame pixels; `variance` of `value`; `mask` the
    flags of all frame pixels touched, or-ed. `variance` and `mask` are empty unless asked for.
    """

    value: np.ndarray
    share: np.ndarray
    area: np.ndarray
    variance: np.ndarray
    mask: np.ndarray


NO_VARIANCE = np.empty((0, 0))
NO_MASK = np.empty((0, 0), dtype=np.uint16)


def cut(
    image: np.ndarray,
    corners: np.ndarray,
    variance: np.ndarray = NO_VARIANCE,
    mask: np.ndarray = NO_MASK,
) -> Cut:
    """Cut a stamp out of `image` (rows, columns), with exact area weights.

    `corners` (size + 1, size + 1, 2) are the stamp's pixel corners (x, y) on the image, pixel k
    covering k - 0.5 to k + 0.5. Weights w: value = sum w v / sum w, variance = sum w^2 var /
    (sum w)^2. Pixels that are not finite have no weight.
    """
    return Cut(*_cut(image, corners + 0.5, variance, mask))


@njit(nogil=True, cache=True)
def _cut(image, corners, variance, mask):
    size = corners.shape[0] - 1
    with_variance, with_mask = variance.size > 0, mask.size > 0
    value = np.zeros((size, size))
    share = np.zeros((size, size))
    full = np.zeros((size, size))
    var = np.zeros((size, size) if with_variance else (0, 0))
    flags = np.zeros((size, size) if with_mask else (0, 0), dtype=np.uint16)
    areas = np.zeros((8, 8))
    xs, ys = np.empty(5), np.empty(5)
    for i in range(size):
        for j in range(size):
            left, bottom, columns, rows = _outline(corners, i, j, xs, ys)
            if rows > areas.shape[0] or columns > areas.shape[1]:
                areas = np.zeros((2 * rows, 2 * columns))
            areas[:rows, :columns] = 0.0
            for k in range(4):
                _walk(areas, xs[k], ys[k], xs[k + 1], ys[k + 1])
            total, weight, flux, spread, seen = 0.0, 0.0, 0.0, 0.0, 0
            for r in range(rows):
                for c in range(columns):
                    total += areas[r, c]
            for r in range(rows):
                y = bottom + r
                if y < 0 or y >= image.shape[0]:
                    continue
                for c in range(columns):
                    x = left + c
                    if x < 0 or x >= image.shape[1] or not math.isfinite(image[y, x]):
                        continue
                    w = areas[r, c] / total
                    weight += w
                    flux += w * image[y, x]
                    if with_variance:
                        spread += w * w * variance[y, x]
                    if with_mask and w > LEAST_SHARE:
                        seen |= mask[y, x]
            full[i, j] = abs(total)
            if weight > LEAST_SHARE:
                value[i, j] = flux / weight
                share[i, j] = min(weight, 1.0)
                if with_variance:
                    var[i, j] = spread / (weight * weight)
                if with_mask:
                    flags[i, j] = seen
    return value, share, full, var, flags


@njit(nogil=True, cache=True)
def _outline(corners, i, j, xs, ys):
    """Fill in the closed outline of stamp pixel i, j; return its box on the image."""
    for k in range(5):
        row, column = i + (k % 4) // 2, j + ((k + 1) % 4) // 2
        xs[k], ys[k] = corners[row, column, 0], corners[row, column, 1]
    left, bottom = int(math.floor(xs.min())), int(math.floor(ys.min()))
    columns = int(math.floor(xs.max())) - left + 1
    rows = int(math.floor(ys.max())) - bottom + 1
    xs -= left
    ys -= bottom
    return left, bottom, columns, rows


@njit(nogil=True, cache=True)
def _walk(areas, x0, y0, x1, y1):
    """Add to `areas` what lies left of the edge from x0, y0 to x1, y1."""
    if y0 == y1:
        return
    sign = 1.0
    if y0 > y1:
        x0, y0, x1, y1, sign = x1, y1, x0, y0, -1.0
    slope = (x1 - x0) / (y1 - y0)
    for row in range(int(y0), int(math.ceil(y1))):
        low, high = max(y0, row), min(y1, row + 1.0)
        if high <= low:
            continue
        xa, xb = x0 + slope * (low - y0), x0 + slope * (high - y0)
        _walk_row(areas[row], min(xa, xb), max(xa, xb), sign * (high - low))


@njit(nogil=True, cache=True)
def _walk_row(areas, xa, xb, dy):
    """As `_walk`, for the part of an edge in one row of pixels, from xa to xb >= xa."""
    first = min(max(int(xa), 0), areas.size - 1)
    last = min(int(xb), areas.size - 1)
    for column in range(first):
        areas[column] += dy
    if first == last:
        areas[first] += dy * (0.5 * (xa + xb) - first)
        return
    per_x = dy / (xb - xa)
    for column in range(first, last + 1):
        begin, end = max(xa, float(column)), min(xb, column + 1.0)
        mean = 0.5 * (begin + end) - column
        areas[column] += per_x * ((end - begin) * mean + (xb - end))
