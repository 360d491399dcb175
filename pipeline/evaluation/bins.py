"""Scores in bins of magnitude, redshift, reddening and seeing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline import run
from pipeline.evaluation.intervals import Bootstrap, number
from pipeline.evaluation.predictions import Sample
from pipeline.evaluation.scores import SUPERVISED, Cell, difference, score

VARIABLES = {"r": "mag", "z": "", "e_bv": "mag", "seeing": "arcsec"}
"""Columns of the galaxies and their units."""
LEAST, MOST = 20, 8
"""Galaxies that a bin holds at least, and bins that there are at most."""


def bin_edges(values: np.ndarray, least: int = LEAST, most: int = MOST) -> np.ndarray:
    """Edges of quantile bins that hold `least` of the finite `values` each, rising.

    At most `most` bins. Where ties leave a bin short it is merged with its neighbour. Bins are
    [low, high), the last one closed: it may be a single value. Fewer than `least` values: no edges.
    """
    values = values[np.isfinite(values)]
    if len(values) < least:
        return np.empty(0)
    wanted = int(np.clip(len(values) // least, 1, most))
    quantiles = np.quantile(values, np.linspace(0, 1, wanted + 1))
    kept = [quantiles[0]]
    for edge in np.unique(quantiles[1:-1]):
        inside = np.sum((values >= kept[-1]) & (values < edge))
        if inside >= least and np.sum(values >= edge) >= least:
            kept.append(edge)
    return np.array([*kept, quantiles[-1]])


def scores_in_bins(
    sample: Sample, chosen: Sequence[Cell], how: Bootstrap, progress: run.Progress | None = None
) -> list[dict]:
    """A row for each variable, bin and cell: low, high, mean, galaxies and the measures.

    And, of each but the supervised net, the paired differences from that. A cell that says
    nothing of some galaxies (the catalogue) is scored over the others of the bin, if they are at
    least `LEAST`.
    """
    rows = []
    base = next((cell for cell in chosen if cell.start == SUPERVISED), None)
    for name, unit in VARIABLES.items():
        values = sample.galaxies[name].to_numpy()
        for cell in chosen:
            for low, high, inside in _bins(values):
                known = inside & np.isfinite(cell.predictions[0].z_phot)
                if known.sum() < LEAST:
                    continue
                paired = base is not None and cell is not base
                scored = score(sample, [cell, base] if paired else [cell], how, known)
                rows.append({
                    "variable": name, "unit": unit, "low": number(low), "high": number(high),
                    "mean": number(values[known].mean()), "of": str(cell),
                    "galaxies": scored[0].galaxies, "measures": scored[0].estimates(),
                    "minus_supervised": difference(*scored)["measures"] if paired else None,
                })  # fmt: skip
            if progress is not None:
                progress.add()
    return rows


def _bins(values: np.ndarray) -> Iterator[tuple[float, float, np.ndarray]]:
    """(low, high, mask of its galaxies) of each bin."""
    edges = bin_edges(values)
    for at, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        last = at == len(edges) - 2
        yield low, high, (values >= low) & ((values <= high) if last else (values < high))
