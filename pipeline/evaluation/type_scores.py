"""Scores of predicted types with intervals, and paired differences between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import metrics, run
from pipeline.evaluation.classify import MEASURES, THRESHOLD, Classified, draw
from pipeline.evaluation.intervals import Bootstrap, certain, compare, estimate, over_seeds
from pipeline.evaluation.methods import ranked
from pipeline.evaluation.scores import SUPERVISED
from pipeline.evaluation.types import TypeSample

PAIRS = (("simclr", "pca"), ("moco", "pca"), ("simclr", "moco"))
"""Starts that are compared, the first minus the second, beside each with the supervised net."""
_SHARES = MEASURES[:3]
"""Those that are shares of some galaxies, and binomial."""


@dataclass(frozen=True)
class TypeCell:
    """What is one row of the table: a start at a number of labels, p_early (n,) for each seed."""

    start: str
    labels: int
    seeds: tuple[int, ...]
    predictions: tuple[np.ndarray, ...]

    def __str__(self) -> str:
        return f"{self.start} {self.labels}"


@dataclass(frozen=True)
class TypeScored:
    """The measures of a cell: values (4,), NaN = undefined, and bootstrap draws (4, number)."""

    cell: TypeCell
    galaxies: int
    values: np.ndarray
    draws: np.ndarray
    trials: tuple[int, int, int]
    """What accuracy, precision and recall are shares of: all, those called early, the early."""

    def estimates(self) -> dict[str, dict[str, float | None]]:
        """Measure -> value and 95 % interval, within 0..1, ready for JSON; null = not known.

        A share that is 0 or 1 in all seeds is so in every resample: there the interval is the
        binomial one (Clopper & Pearson 1934). An area under the ROC curve of 0 or 1 has none.
        """
        found = {
            name: _within(estimate(value, draws))
            for name, value, draws in zip(MEASURES, self.values, self.draws, strict=True)
        }
        for name, value, trials in zip(_SHARES, self.values, self.trials, strict=False):
            if value in (0, 1):
                found[name] |= certain(value, trials)
        return found


def _within(found: dict[str, float | None]) -> dict[str, float | None]:
    """An interval brought within 0..1: Student's t knows no bounds."""
    return {
        name: one if one is None else min(max(one, 0.0), 1.0) for name, one in found.items()
    }  # fmt: skip


def type_cells(sample: TypeSample) -> list[TypeCell]:
    """The cells of a sample: starts in the order of names (supervised first), labels rising."""
    grouped: dict[tuple[str, int], list] = {}
    for (start, labels, seed), chances in sorted(sample.runs.items(), key=lambda one: one[0]):
        grouped.setdefault((start, labels), []).append((seed, chances))
    return [
        TypeCell(*key, *zip(*grouped[key], strict=True))
        for key in sorted(grouped, key=lambda key: (key[0] != SUPERVISED, *key))
    ]


def score_types(
    sample: TypeSample, how: Bootstrap, progress: run.Progress | None = None
) -> list[TypeScored]:
    """Measures of all cells, each the mean over its seeds, with draws that are paired.

    As for redshifts: a draw takes the same galaxies from all cells, and adds what so few seeds
    leave unknown (`over_seeds`). A measure that is undefined for one seed is so for their mean.
    """
    cells = type_cells(sample)
    flat = [chances for cell in cells for chances in cell.predictions]
    classified = Classified(sample.early, flat)
    values = classified.measure()[..., 0]
    draws = draw(classified, len(sample.early), how, progress)
    result, first = [], 0
    for cell in cells:
        here = slice(first, first + len(cell.seeds))
        called = min(int(np.sum(chances >= THRESHOLD)) for chances in cell.predictions)
        result.append(
            TypeScored(
                cell,
                len(sample.early),
                values[here].mean(axis=0),
                over_seeds(values[here], draws[here], cell.seeds, how),
                (len(sample.early), called, int(sample.early.sum())),
            )
        )
        first = here.stop
    return result


def type_difference(first: TypeScored, second: TypeScored) -> dict[str, object]:
    """`first` minus `second`, measure by measure: above zero is the better."""
    return {
        "of": str(first.cell), "minus": str(second.cell), "labels": first.cell.labels,
        "seeds": [len(first.cell.seeds), len(second.cell.seeds)], "galaxies": first.galaxies,
        "measures": {
            name: compare(first.values[at] - second.values[at], first.draws[at] - second.draws[at])
            for at, name in enumerate(MEASURES)
        },
    }  # fmt: skip


def type_differences(scored: Sequence[TypeScored]) -> list[dict]:
    """At each number of labels: every other start minus the supervised net, then `PAIRS`."""
    by_key = {(one.cell.start, one.cell.labels): one for one in scored}
    rows = []
    for labels in sorted({one.cell.labels for one in scored}):
        others = [one.cell.start for one in scored
                  if one.cell.labels == labels and one.cell.start != SUPERVISED]  # fmt: skip
        for pair in (*((start, SUPERVISED) for start in others), *PAIRS):
            first, second = (by_key.get((start, labels)) for start in pair)
            if first and second:
                rows.append(type_difference(first, second))
    return rows


def type_score_row(scored: TypeScored) -> dict:
    """A cell's row of metrics.json."""
    cell = scored.cell
    return {
        "start": cell.start,
        "labels": cell.labels,
        "seeds": list(cell.seeds),
        "galaxies": scored.galaxies,
        "measures": scored.estimates(),
    }


def scores_of_types(sample: TypeSample, how: Bootstrap) -> dict:
    """Score all classifiers: what metrics.json says of them.

    Keys: `test_galaxies` (counts), `positive` (the class of precision and recall), `threshold`,
    `bootstrap`, and lists of rows: `scores` (a start and number of labels each), `differences`
    and `methods` (each start with its most labels, the most accurate first, and its paired
    difference from that).
    """
    progress = run.Progress("evaluate: bootstrap", how.number, "resamples")
    scored = score_types(sample, how, progress)
    progress.close()
    most = {one.cell.start: one for one in scored}.values()
    entries = [(type_score_row(one), one) for one in most]
    return {
        "test_galaxies": sample.counts,
        "positive": "early",
        "threshold": THRESHOLD,
        "bootstrap": {"resamples": how.number, "seed": how.seed, "level": metrics.LEVEL},
        "scores": [type_score_row(one) for one in scored],
        "differences": type_differences(scored),
        "methods": ranked(entries, "accuracy", "high", type_difference),
    }
