"""How sure a measure is: over galaxies by resampling, over seeds by Student's t."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline import metrics


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: so many resamples, from this seed."""

    number: int = 2000
    seed: int = 0


def over_seeds(
    values: np.ndarray, draws: np.ndarray, seeds: tuple[int, ...], how: Bootstrap
) -> np.ndarray:
    """(seeds, m) and their draws (seeds, m, number) -> draws (m, number) of the mean of all seeds.

    To the mean of a draw of galaxies comes an error of the mean over seeds: Student's t with
    seeds - 1 degrees of freedom times its standard error. It is made of weights of the seeds
    that follow from their numbers alone, so that of the difference of two cells with the same
    seeds it is the t of the paired differences.
    """
    count = len(seeds)
    if count == 1:
        return draws[0]
    random = np.random.default_rng([how.seed, how.number, *seeds])
    weights = random.normal(0, 1 / np.sqrt(count * (count - 1)), (count, how.number))
    weights /= np.sqrt(random.chisquare(count - 1, how.number) / (count - 1))
    return draws.mean(axis=0) + (values - values.mean(axis=0)).T @ weights


def estimate(value: float, draws: np.ndarray) -> dict[str, float | None]:
    """value, low and high, ready for JSON: null where it cannot be known.

    Draws that are all the same say nothing of how sure the value is. Of resamples that leave a
    measure undefined (NaN) there may be few, 5 %, and the interval is of the others.
    """
    draws = _defined(draws)
    low, high = metrics.interval(draws) if _vary(draws) else (np.nan, np.nan)
    return {"value": number(value), "low": number(low), "high": number(high)}


def number(value: float) -> float | None:
    """A plain float of 6 significant digits; None where it is not finite."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def compare(value: float, draws: np.ndarray) -> dict[str, object]:
    """`estimate` of a paired difference, with its p and whether its interval excludes zero."""
    found, draws = estimate(value, draws), _defined(draws)
    known = _vary(draws)
    return found | {
        "p": number(metrics.two_sided_p(draws)) if known else None,
        "excludes_zero": bool(np.prod(metrics.interval(draws)) > 0) if known else None,
    }


def certain(share: float, trials: int) -> dict[str, float | None]:
    """Interval of a share of `trials` that is 0 or 1: Clopper & Pearson's (1934), ready for JSON.

    A bootstrap of such a share knows only one outcome.
    """
    end = ((1 - metrics.LEVEL) / 2) ** (1 / trials)
    low, high = (end, 1.0) if share == 1 else (0.0, 1 - end)
    return {"low": number(low), "high": number(high)}


def _defined(draws: np.ndarray) -> np.ndarray:
    """The draws that are numbers; none of them where too many are not."""
    known = draws[np.isfinite(draws)]
    return known if len(known) >= metrics.LEVEL * len(draws) else known[:0]


def _vary(draws: np.ndarray) -> bool:
    return len(draws) > 0 and bool(np.ptp(draws) > 0)
