"""Scores of runs with bootstrap intervals, and paired differences between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import metrics, run
from pipeline.evaluation.predictions import Prediction, Sample

MEASURES = ("sigma_mad", "eta", "bias", "crps", "pit_spread")
SUPERVISED, CATALOGUE, ENSEMBLE = "supervised", "catalogue", "ensemble"


@dataclass(frozen=True)
class Cell:
    """What is one row of the table: a start at a fraction, with a prediction for each seed.

    The catalogue and the ensemble are cells of no fraction and one nameless seed.
    """

    start: str
    fraction: float | None
    seeds: tuple[int, ...]
    predictions: tuple[Prediction, ...]

    def __str__(self) -> str:
        return self.start if self.fraction is None else f"{self.start} {self.fraction:g}"


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: so many resamples, from this seed."""

    number: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Scored:
    """The measures of a cell over some galaxies: values (5,) and bootstrap draws (5, number)."""

    cell: Cell
    galaxies: int
    values: np.ndarray
    draws: np.ndarray

    def estimates(self) -> dict[str, dict[str, float | None]]:
        """Measure -> value and 95 % interval, ready for JSON.

        Resamples of galaxies without an outlier have none either: there the upper end of eta is
        the binomial one (Clopper & Pearson 1934).
        """
        found = {
            name: estimate(value, draws)
            for name, value, draws in zip(MEASURES, self.values, self.draws, strict=True)
        }
        if found["eta"]["low"] is not None:
            found["eta"]["low"] = max(found["eta"]["low"], 0.0)  # t knows no bounds
        if self.values[MEASURES.index("eta")] == 0:
            high = 1 - ((1 - metrics.LEVEL) / 2) ** (1 / self.galaxies)
            found["eta"] |= {"low": 0.0, "high": number(high)}
        return found


def cells(sample: Sample) -> list[Cell]:
    """The cells of a sample: starts in the order of names (supervised first), fractions rising."""
    grouped: dict[tuple, list] = {}
    for key, prediction in sorted(sample.runs.items(), key=lambda run: run[0]):
        grouped.setdefault((key.start, key.fraction), []).append((key.seed, prediction))
    found = []
    for start, fraction in sorted(grouped, key=lambda key: (key[0] != SUPERVISED, *key)):
        seeds, predictions = zip(*grouped[start, fraction], strict=True)
        found.append(Cell(start, fraction, seeds, predictions))
    if sample.ensemble is not None:
        found.append(Cell(ENSEMBLE, None, (0,), (sample.ensemble,)))
    return found


def measure(sample: Sample, prediction: Prediction, rows: np.ndarray) -> np.ndarray:
    """The measures (5,) of a prediction over the galaxies `rows` (mask)."""
    dz, crps, pit = _columns(sample, prediction, rows)
    return np.array([*_of_residuals(dz), np.mean(crps), metrics.pit_spread(pit)])


def score(
    sample: Sample,
    chosen: Sequence[Cell],
    how: Bootstrap,
    rows: np.ndarray | None = None,
    progress: run.Progress | None = None,
) -> list[Scored]:
    """Measures of cells over the galaxies `rows` (mask; all without it), drawn together.

    Each value is the mean over the seeds. Each draw takes galaxies with replacement, the same
    ones from all cells, and adds what so few seeds leave unknown (`_over_seeds`), alike for cells
    that have the same seeds; so differences of draws are paired.
    """
    rows = np.ones(len(sample.galaxies), bool) if rows is None else rows
    flat = [prediction for cell in chosen for prediction in cell.predictions]
    columns = [_columns(sample, prediction, rows) for prediction in flat]
    dz, crps, pit = zip(*columns, strict=True)
    common = {"number": how.number, "seed": how.seed, "progress": progress}
    by_run = [
        np.vstack(parts)
        for parts in zip(
            metrics.bootstrap(lambda x, axis: np.stack(_of_residuals(x)), *dz, **common),
            metrics.bootstrap(np.mean, *crps, **common),
            metrics.bootstrap(metrics.pit_spread, *pit, **common),
            strict=True,
        )
    ]
    result, first = [], 0
    for cell in chosen:
        last = first + len(cell.seeds)
        values = np.array([measure(sample, one, rows) for one in cell.predictions])
        draws = _over_seeds(values, np.stack(by_run[first:last]), cell.seeds, how)
        result.append(Scored(cell, int(rows.sum()), values.mean(axis=0), draws))
        first = last
    return result


def _columns(sample: Sample, prediction: Prediction, rows: np.ndarray):
    return sample.dz(prediction)[rows], prediction.crps[rows], prediction.pit[rows]


def _of_residuals(dz: np.ndarray) -> tuple:
    return metrics.sigma_mad(dz), metrics.outlier_fraction(dz), metrics.bias(dz)


def _over_seeds(
    values: np.ndarray, draws: np.ndarray, seeds: tuple[int, ...], how: Bootstrap
) -> np.ndarray:
    """(seeds, 5) and their draws (seeds, 5, number) -> draws (5, number) of the mean of all seeds.

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

    Draws that are all the same say nothing of how sure the value is.
    """
    low, high = metrics.interval(draws) if np.ptp(draws) > 0 else (np.nan, np.nan)
    return {"value": number(value), "low": number(low), "high": number(high)}


def number(value: float) -> float | None:
    """A plain float of 6 significant digits; None where it is not finite."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def difference(first: Scored, second: Scored) -> dict[str, object]:
    """`first` minus `second`, measure by measure, from draws that were made together.

    Of the bias it is the difference of the absolute values, so that below zero is always the
    better; so it is for the spread of the PIT, of its distance from 1.
    """
    measures = {}
    for at, name in enumerate(MEASURES):
        one, other = (_loss(name, scored.values[at]) for scored in (first, second))
        draws = _loss(name, first.draws[at]) - _loss(name, second.draws[at])
        known = np.all(np.isfinite(draws)) and np.ptp(draws) > 0
        measures[name] = estimate(one - other, draws) | {
            "p": number(metrics.two_sided_p(draws)) if known else None,
            "excludes_zero": bool(np.prod(metrics.interval(draws)) > 0) if known else None,
        }
    return {
        "of": str(first.cell), "minus": str(second.cell), "fraction": first.cell.fraction,
        "seeds": [len(first.cell.seeds), len(second.cell.seeds)], "galaxies": first.galaxies,
        "measures": measures,
    }  # fmt: skip


def _loss(name: str, value: np.ndarray) -> np.ndarray:
    if name == "bias":
        return np.abs(value)
    return np.abs(value - 1) if name == "pit_spread" else value


def differences(scored: Sequence[Scored]) -> list[dict]:
    """Every other start minus the supervised net at the same fraction.

    Then the ensemble minus what each start gives with its most labels.
    """
    base = {one.cell.fraction: one for one in scored if one.cell.start == SUPERVISED}
    most = {one.cell.start: one for one in scored if one.cell.fraction is not None}
    pairs = [
        (one, base[one.cell.fraction])
        for one in scored
        if one.cell.start != SUPERVISED and one.cell.fraction in base
    ]
    pairs += [(one, each) for one in scored if one.cell.start == ENSEMBLE for each in most.values()]
    return [difference(*pair) for pair in pairs]
