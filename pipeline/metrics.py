"""How good redshifts are: sigma_mad, eta, bias, CRPS, PIT, and how sure each number is.

Definitions as in Hayat et al. (2020) and Pasquet et al. (2019) where they have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline import run

MAD_TO_SIGMA = 1.4826
"""A Gaussian's standard deviation over its median absolute deviation, 1 / Phi^-1(3/4)."""
OUTLIER = 0.05
"""|dz| beyond which a redshift is an outlier (Pasquet et al. 2019)."""
LEVEL = 0.95
"""Share of the resamples that an interval holds."""
PIT_BINS = 20
_BLOCK = 2_000_000
"""Resampled values held in memory at a time."""

Statistic = Callable[..., np.ndarray]


def residuals(z_phot: np.ndarray, z_spec: np.ndarray) -> np.ndarray:
    """dz = (z_phot - z_spec) / (1 + z_spec), float64."""
    z_phot, z_spec = np.asarray(z_phot, np.float64), np.asarray(z_spec, np.float64)
    return (z_phot - z_spec) / (1 + z_spec)


def _median(values: np.ndarray) -> np.ndarray:
    """np.median along the last axis; several times as fast on many values, as it selects once."""
    half = values.shape[-1] // 2
    split = np.partition(values, half, axis=-1)
    upper, above = split[..., half], np.max(split[..., half:], axis=-1)
    if values.shape[-1] % 2 == 0:
        upper = (upper + np.max(split[..., :half], axis=-1)) / 2
    return np.where(np.isnan(above), np.nan, upper)


def sigma_mad(dz: np.ndarray, axis: int = -1) -> np.ndarray:
    """1.4826 median |dz - median dz| along `axis`: a Gaussian's sigma, deaf to outliers."""
    dz = np.moveaxis(np.asarray(dz, np.float64), axis, -1)
    return MAD_TO_SIGMA * _median(np.abs(dz - _median(dz)[..., None]))


def outlier_fraction(dz: np.ndarray, limit: float = OUTLIER, axis: int = -1) -> np.ndarray:
    """eta, the share with |dz| > `limit` along `axis`."""
    return np.mean(np.abs(dz) > limit, axis=axis)


def bias(dz: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of dz along `axis`."""
    return np.mean(np.asarray(dz, np.float64), axis=axis)


def _cumulative(pdf: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CDF at the edges, (n, K + 1), and the edges, float64; each PDF is brought to the sum 1."""
    pdf, edges = np.atleast_2d(np.asarray(pdf, np.float64)), np.asarray(edges, np.float64)
    if edges.shape != (pdf.shape[1] + 1,) or np.any(np.diff(edges) <= 0):
        raise ValueError(f"{pdf.shape[1]} bins need {pdf.shape[1] + 1} rising edges")
    cdf = np.zeros((len(pdf), len(edges)))
    np.cumsum(pdf, axis=1, out=cdf[:, 1:])
    return cdf / cdf[:, -1:], edges


def _place(cdf: np.ndarray, edges: np.ndarray, z: np.ndarray):
    """(bin of each z, z brought within the edges, CDF at z), the CDF linear within a bin."""
    within = np.clip(z, edges[0], edges[-1])
    at = np.clip(np.searchsorted(edges, within, side="right") - 1, 0, len(edges) - 2)
    row = np.arange(len(cdf))
    share = (within - edges[at]) / np.diff(edges)[at]
    return at, within, cdf[row, at] + share * (cdf[row, at + 1] - cdf[row, at])


def _area(first: np.ndarray, last: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Integral of the square of a line from `first` to `last` over `width`."""
    return width * (first**2 + first * last + last**2) / 3


def crps(pdf: np.ndarray, edges: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of binned PDFs, (n,), in units of redshift.

    The integral of (F(x) - [x >= z])^2 over all x, exactly, for a density that is constant
    within each bin (F is linear there). Mean over galaxies: smaller is better; of a point
    prediction it is |z_phot - z|.

    Args:
        pdf: (n, K) probabilities of the bins; rows are normalised.
        edges: (K + 1,) rising edges in redshift.
        z: (n,) true redshifts; they may lie beyond the edges.

    Raises:
        ValueError: the shapes do not fit, or the edges do not rise.
    """
    cdf, edges = _cumulative(pdf, edges)
    z = np.asarray(z, np.float64)
    at, within, here = _place(cdf, edges, z)
    width, row = np.diff(edges), np.arange(len(cdf))
    below = np.zeros_like(cdf)
    above = np.zeros_like(cdf)
    np.cumsum(_area(cdf[:, :-1], cdf[:, 1:], width), axis=1, out=below[:, 1:])
    np.cumsum(_area(1 - cdf[:, :-1], 1 - cdf[:, 1:], width), axis=1, out=above[:, 1:])
    left = below[row, at] + _area(cdf[row, at], here, within - edges[at])
    right = above[:, -1] - above[row, at + 1]
    right += _area(1 - here, 1 - cdf[row, at + 1], edges[at + 1] - within)
    return left + right + np.abs(z - within)


def pit(pdf: np.ndarray, edges: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Probability integral transform F(z) of binned PDFs, (n,): uniform if they are calibrated.

    Arguments and errors as those of `crps`; 0 or 1 for a redshift beyond the edges.
    """
    cdf, edges = _cumulative(pdf, edges)
    return _place(cdf, edges, np.asarray(z, np.float64))[2]


def gaussian_crps(mean: np.ndarray, sigma: np.ndarray, z: np.ndarray) -> np.ndarray:
    """CRPS of Gaussian PDFs (Gneiting & Raftery 2007, equation 21), in units of redshift."""
    sigma = np.asarray(sigma, np.float64)
    at = (np.asarray(z, np.float64) - mean) / sigma
    return sigma * (at * (2 * stats.norm.cdf(at) - 1) + 2 * stats.norm.pdf(at) - 1 / np.sqrt(np.pi))


def gaussian_pit(mean: np.ndarray, sigma: np.ndarray, z: np.ndarray) -> np.ndarray:
    """PIT of Gaussian PDFs."""
    return stats.norm.cdf((np.asarray(z, np.float64) - mean) / np.asarray(sigma, np.float64))


@dataclass(frozen=True)
class Uniformity:
    """How far PIT values are from uniform, and how likely as much is by chance."""

    ks: float
    """Largest distance of their distribution from the uniform one (Kolmogorov-Smirnov)."""
    ks_p: float
    chi2: float
    """Reduced chi^2 of their histogram, `bins` - 1 degrees of freedom."""
    chi2_p: float
    bins: int


def pit_uniformity(values: np.ndarray, bins: int = PIT_BINS) -> Uniformity:
    """Test PIT values (n,) for uniformity; fewer bins are taken where there are few values."""
    values = np.asarray(values, np.float64)
    bins = int(np.clip(len(values) // 5, 2, bins))
    ks = stats.kstest(values, "uniform")
    counts = np.histogram(values, bins, (0, 1))[0]
    chi2 = stats.chisquare(counts)
    return Uniformity(
        float(ks.statistic), float(ks.pvalue),
        float(chi2.statistic) / (bins - 1), float(chi2.pvalue), bins,
    )  # fmt: skip


def pit_spread(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Root mean square of PIT - 1/2 over that of a uniform one.

    1: widths are right; above 1: PDFs are too narrow (or biased); below 1: too wide.
    """
    return np.sqrt(12 * np.mean((np.asarray(values, np.float64) - 0.5) ** 2, axis=axis))


def resamples(count: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (b, count) of int32 row numbers, `number` rows of them in all, drawn with replacement.

    The draws follow from (count, number, seed) alone.
    """
    random = np.random.default_rng([seed, count])
    step = max(1, _BLOCK // max(count, 1))
    for first in range(0, number, step):
        size = (min(step, number - first), count)
        yield random.integers(0, count, size, dtype=np.int32)


def bootstrap(
    statistic: Statistic,
    *values: np.ndarray,
    number: int = 2000,
    seed: int = 0,
    progress: run.Progress | None = None,
) -> list[np.ndarray]:
    """`statistic` of each array of `values` under the same resamples of galaxies.

    All arrays (n,) speak of the same n galaxies, and resample i takes the same of them from
    each; so the difference of two results is the paired bootstrap of the difference.
    `statistic` is given (b, n), reduces the last axis and returns (..., b); the results, one for
    each array, are (..., number). `progress` counts resamples of arrays.

    Raises:
        ValueError: no galaxies, or arrays of unlike length.
    """
    arrays = [np.asarray(one, np.float64) for one in values]
    if len({one.shape for one in arrays}) != 1 or arrays[0].ndim != 1 or not len(arrays[0]):
        raise ValueError("a bootstrap needs arrays of the same galaxies, one at least")
    found: list[list[np.ndarray]] = [[] for _ in arrays]
    for block in resamples(len(arrays[0]), number, seed):
        for one, blocks in zip(arrays, found, strict=True):
            blocks.append(statistic(one[block], axis=-1))
            if progress is not None:
                progress.add(len(block))
    return [np.concatenate(blocks, axis=-1) for blocks in found]


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of bootstrap draws (number,)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def two_sided_p(differences: np.ndarray) -> float:
    """How rarely bootstrapped differences fall on the other side of zero, both ways.

    Twice the smaller tail, ties counted to both; never 0, since the draws are finite.
    """
    number = len(differences)
    tail = min(np.sum(differences <= 0), np.sum(differences >= 0))
    return float(min(1.0, 2 * (tail + 1) / (number + 1)))
