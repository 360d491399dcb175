"""Label efficiency: how many labels the supervised net needs to be as good (the paper's Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from pipeline import metrics
from pipeline.evaluation.intervals import number
from pipeline.evaluation.scores import SUPERVISED, Scored


def label_efficiency(scored: Sequence[Scored], labels: int) -> list[dict]:
    """For each other start and fraction: the supervised net's labels for the same sigma_mad.

    The supervised curve, sigma_mad against the logarithm of the fraction, is made falling
    (isotonic regression) and read backwards by linear interpolation, in each bootstrap draw of
    galaxies and seeds anew. Nothing is read beyond the curve's ends: there a number is a bound,
    with relation ">" (not even all labels are enough) or "<" (the fewest would do).

    Args:
        scored: cells scored together (`scores.score`).
        labels: labelled training galaxies at fraction 1.

    Returns:
        A row a cell, empty where the supervised net has fewer than two fractions: start,
        fraction, labels, ratio (value, low, high, each with its relation) and equivalent_labels.
    """
    curve = [one for one in scored if one.cell.start == SUPERVISED]
    if len(curve) < 2:
        return []
    fractions = np.array([one.cell.fraction for one in curve])
    sigma = np.array([one.values[0] for one in curve])
    draws = np.stack([one.draws[0] for one in curve], axis=1)
    others = [one for one in scored if one.cell.start != SUPERVISED and one.cell.fraction]
    rows = []
    for one in others:
        value = needed_fraction(fractions, sigma, one.values[0])
        drawn = np.array(
            [needed_fraction(fractions, *pair) for pair in zip(draws, one.draws[0], strict=True)]
        )
        low, high = _interval(drawn)
        needed = {"value": value, "low": low, "high": high}
        own = one.cell.fraction
        rows.append({
            "start": one.cell.start, "fraction": own, "labels": round(own * labels),
            "seeds": len(one.cell.seeds),
            "ratio": {name: _bound(at, fractions, 1 / own) for name, at in needed.items()},
            "equivalent_labels": {
                name: _bound(at, fractions, labels) for name, at in needed.items()
            },
        })  # fmt: skip
    return rows


def needed_fraction(fractions: np.ndarray, sigma: np.ndarray, wanted: float) -> float:
    """The least fraction at which the falling curve through (fractions, sigma) is at `wanted`.

    inf where it never gets so low, 0 where it is lower from the first.
    """
    falling = isotonic_regression(sigma, increasing=False).x
    if wanted > falling[0]:
        return 0.0
    if wanted < falling[-1]:
        return np.inf
    at = int(np.argmax(falling <= wanted))
    if at == 0:
        return float(fractions[0])
    share = (falling[at - 1] - wanted) / (falling[at - 1] - falling[at])
    return float(
        np.exp(np.log(fractions[at - 1]) + share * np.log(fractions[at] / fractions[at - 1]))
    )


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    """Percentiles without interpolation, which infinite bounds would spoil."""
    ends = ((1 - metrics.LEVEL) / 2, (1 + metrics.LEVEL) / 2)
    low, high = (np.quantile(drawn, end, method="inverted_cdf") for end in ends)
    return float(low), float(high)


def _bound(needed: float, fractions: np.ndarray, scale: float) -> dict[str, object]:
    """A needed fraction times `scale`: a number, or a bound at an end of the curve."""
    if np.isinf(needed):
        return {"relation": ">", "value": number(fractions[-1] * scale)}
    if needed == 0:
        return {"relation": "<", "value": number(fractions[0] * scale)}
    return {"relation": "=", "value": number(needed * scale)}
