"""Scores of runs with bootstrap intervals, and paired differences between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pipeline import metrics, run
from pipeline.evaluation.intervals import Bootstrap, certain, compare, estimate, number, over_seeds
from pipeline.evaluation.methods import ranked
from pipeline.evaluation.predictions import ENSEMBLE, Prediction, Sample

MEASURES = ("sigma_mad", "eta", "bias", "crps", "pit_spread")
SUPERVISED, CATALOGUE = "supervised", "catalogue"


@dataclass(frozen=True)
class Cell:
    """What is one row of the table: a start at a fraction, with a prediction for each seed.

    The catalogue and ensembles are cells of no fraction and one nameless seed.
    """

    start: str
    fraction: float | None
    seeds: tuple[int, ...]
    predictions: tuple[Prediction, ...]

    def __str__(self) -> str:
        return self.start if self.fraction is None else f"{self.start} {self.fraction:g}"


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
            found["eta"] |= certain(0, self.galaxies)
        return found


def cells(sample: Sample) -> list[Cell]:
    """The cells of a sample: starts in the order of names (supervised first), fractions rising.

    Then those of the ensembles, in the same order.
    """
    grouped: dict[tuple, list] = {}
    for key, prediction in sorted(sample.runs.items(), key=lambda run: run[0]):
        grouped.setdefault((key.start, key.fraction), []).append((key.seed, prediction))
    found = []
    for start, fraction in sorted(grouped, key=lambda key: (key[0] != SUPERVISED, *key)):
        seeds, predictions = zip(*grouped[start, fraction], strict=True)
        found.append(Cell(start, fraction, seeds, predictions))
    for name in sorted(sample.ensembles, key=lambda name: (own_start(name) != SUPERVISED, name)):
        found.append(Cell(name, None, (0,), (sample.ensembles[name],)))
    return found


def own_start(name: str) -> str:
    """The start that an ensemble is of, from its row's name; of another name, the name itself."""
    return name.removesuffix(f" {ENSEMBLE}")


def largest(chosen: list[Cell]) -> list[Cell]:
    """Of each start the cell with the most labels: no choice that looks at the test galaxies.

    Ensembles that are named after a start are left out: the start is there.
    """
    kept = (cell for cell in chosen if cell.fraction or own_start(cell.start) == cell.start)
    return list({cell.start: cell for cell in kept}.values())


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
    ones from all cells, and adds what so few seeds leave unknown (`over_seeds`), alike for cells
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
        draws = over_seeds(values, np.stack(by_run[first:last]), cell.seeds, how)
        result.append(Scored(cell, int(rows.sum()), values.mean(axis=0), draws))
        first = last
    return result


def _columns(sample: Sample, prediction: Prediction, rows: np.ndarray):
    return sample.dz(prediction)[rows], prediction.crps[rows], prediction.pit[rows]


def _of_residuals(dz: np.ndarray) -> tuple:
    return metrics.sigma_mad(dz), metrics.outlier_fraction(dz), metrics.bias(dz)


def difference(first: Scored, second: Scored) -> dict[str, object]:
    """`first` minus `second`, measure by measure, from draws that were made together.

    Of the bias it is the difference of the absolute values, so that below zero is always the
    better; so it is for the spread of the PIT, of its distance from 1.
    """
    measures = {}
    for at, name in enumerate(MEASURES):
        one, other = (_loss(name, scored.values[at]) for scored in (first, second))
        draws = _loss(name, first.draws[at]) - _loss(name, second.draws[at])
        measures[name] = compare(one - other, draws)
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

    Then each ensemble minus what its own start gives with its most labels; one that is not named
    after a start, minus what each start gives.
    """
    base = {one.cell.fraction: one for one in scored if one.cell.start == SUPERVISED}
    most = {one.cell.start: one for one in scored if one.cell.fraction is not None}
    pairs = [
        (one, base[one.cell.fraction])
        for one in scored
        if one.cell.start != SUPERVISED and one.cell.fraction in base
    ]
    for one in scored:
        if one.cell.fraction is None:
            own = most.get(own_start(one.cell.start))
            pairs += [(one, each) for each in ([own] if own else most.values())]
    return [difference(*pair) for pair in pairs]


def run_rows(sample: Sample) -> list[dict]:
    """A row a model, the ensembles and the catalogue: its measures and the tests of its PIT."""
    rows = [_run_row(sample, key._asdict(), one) for key, one in sample.runs.items()]
    for start, prediction in (*sample.ensembles.items(), (CATALOGUE, sample.catalogue)):
        if np.isfinite(prediction.z_phot).any():
            about = {"start": start, "fraction": None, "seed": None}
            rows.append(_run_row(sample, about, prediction))
    return rows


def _run_row(sample: Sample, about: dict, prediction: Prediction) -> dict:
    """Measures of one prediction, over the galaxies it has, and the tests of its PIT."""
    rows = np.isfinite(prediction.z_phot)
    values = map(number, measure(sample, prediction, rows))
    pit = prediction.pit[rows]
    tests = asdict(metrics.pit_uniformity(pit)) if np.all(np.isfinite(pit)) else {}
    return {
        **about,
        **dict(zip(MEASURES, values, strict=True)),
        **{f"pit_{name}": number(value) for name, value in tests.items()},
    }


def score_row(scored: Scored, labels: int) -> dict:
    """A cell's row of metrics.json; `labels` are those of fraction 1."""
    cell = scored.cell
    return {
        "start": cell.start,
        "fraction": cell.fraction,
        "labels": None if cell.fraction is None else round(cell.fraction * labels),
        "seeds": list(cell.seeds) if cell.fraction is not None else [],
        "galaxies": scored.galaxies,
        "measures": scored.estimates(),
    }


def method_rows(
    scored: Sequence[Scored], own: Sequence[Scored], theirs: Scored | None, labels: int
) -> list[dict]:
    """The table of all methods: each start with its most labels, the least sigma_mad first.

    Args:
        scored: cells on all galaxies.
        own: the same on those that have a photo-z in the catalogue.
        theirs: the catalogue on these; None where it knows none.
        labels: labelled training galaxies at fraction 1.
    """
    most = list({one.cell.start: one for one in scored}.values())
    shared = {one.cell.start: one for one in own}

    def pair(first: Scored, second: Scored) -> dict:
        if theirs is first or theirs is second:
            first, second = (shared.get(one.cell.start, theirs) for one in (first, second))
        return difference(first, second)

    entries = [(score_row(one, labels), one) for one in [*most, *([theirs] if theirs else [])]]
    return ranked(entries, MEASURES[0], "low", pair)
