"""Median and MAD of pixels, band by band, in one pass and in memory that does not grow.

Pixels are counted in bins that are even in float32's own bits: 8,192 to the factor of two, from
2**-30 to 2**17 in absolute value, for either sign. A bin's centre is within 6.1e-5 of the value
itself, relatively, and counts are integers, so that counts from many files add up to the same
numbers in any order.
"""

from __future__ import annotations

import numba
import numpy as np

from pipeline.survey.names import BANDS

_DROPPED_BITS = 10
"""Mantissa bits of float32 that a bin does not tell apart: 13 of its 23 are kept."""
_SMALLEST = int(np.float32(2.0**-30).view(np.int32)) >> _DROPPED_BITS
_LARGEST = int(np.float32(2.0**17).view(np.int32)) >> _DROPPED_BITS
_HALF = _LARGEST - _SMALLEST + 1
"""Bins of one sign; the innermost holds all that is smaller, the outermost all that is larger."""


class PixelCounts:
    """Counts of pixel values of each band, from which median and MAD follow."""

    def __init__(self):
        self.images = 0
        self.counts = np.zeros((len(BANDS), 2 * _HALF), dtype=np.int64)

    def add(self, images: np.ndarray) -> None:
        """Count the pixels of `images` (n, 5, height, width), which must be finite."""
        pixels = np.ascontiguousarray(images, dtype=np.float32).view(np.int32)
        _count(pixels.reshape(*pixels.shape[:2], -1), self.counts)
        self.images += len(images)

    def merge(self, other: PixelCounts) -> None:
        """Add the counts of `other` to these."""
        self.images += other.images
        self.counts += other.counts

    def median_and_mad(self) -> tuple[np.ndarray, np.ndarray]:
        """Median and median absolute deviation of each band (5,), in the pixels' own unit.

        The MAD is the plain one, median |x - median|, without the factor 1.4826 that would make
        it a Gaussian's sigma. Either is within 1e-4 (|median| + MAD) of the exact one.

        Raises:
            ValueError: nothing was counted.
        """
        if not self.images:
            raise ValueError("no image was counted")
        centres = bin_centres()
        medians = np.array([weighted_median(centres, counts) for counts in self.counts])
        mads = [
            weighted_median(np.abs(centres - median), counts)
            for median, counts in zip(medians, self.counts, strict=True)
        ]
        return medians, np.array(mads)


def bin_centres() -> np.ndarray:
    """The value (float64) that stands for each bin; 0 for the innermost of either sign."""
    bits = np.arange(_SMALLEST, _LARGEST + 2, dtype=np.int32) << _DROPPED_BITS
    edges = bits.view(np.float32).astype(np.float64)
    positive = (edges[:-1] + edges[1:]) / 2
    positive[0] = 0.0
    return np.concatenate([-positive[::-1], positive])


def weighted_median(values: np.ndarray, counts: np.ndarray) -> float:
    """Median of `values`, each taken as often as `counts` says; as numpy's for even numbers."""
    held = np.flatnonzero(counts)
    order = held[np.argsort(values[held], kind="stable")]
    upto = np.cumsum(counts[order])
    ranks = [(upto[-1] - 1) // 2, upto[-1] // 2]
    return float(values[order[np.searchsorted(upto, ranks, side="right")]].mean())


@numba.njit(nogil=True, cache=True)
def _count(bits, counts):
    for image in range(bits.shape[0]):
        for band in range(bits.shape[1]):
            row = counts[band]
            for value in bits[image, band]:
                place = ((value & 0x7FFFFFFF) >> _DROPPED_BITS) - _SMALLEST
                place = min(max(place, 0), _HALF - 1)
                row[_HALF + place if value >= 0 else _HALF - 1 - place] += 1
