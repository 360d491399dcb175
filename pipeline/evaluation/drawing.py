"""What the figures of all tasks share: style, a colour and a marker for each start, points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pipeline import run
from pipeline.evaluation.scores import CATALOGUE, ENSEMBLE, SUPERVISED

PCA = "pca"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe & Ito's, told apart by the colour-blind; the first is the supervised net's."""
_MARKERS = "osD^vP"
GREY, _PURPLE = "#555555", "#CC79A7"
ABOVE = {"loc": "outside upper center", "ncols": 4, "fontsize": 9}
"""A legend of a figure, where it cannot lie on what it explains; the layout makes room for it."""
_STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "lines.linewidth": 1.4, "lines.markersize": 5,
}  # fmt: skip


@contextmanager
def figure(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """A figure [inches] that is written, whole and without a date, on leaving."""
    with mpl.rc_context(_STYLE):
        drawn = Figure((width, height), dpi=150, layout="constrained")
        yield drawn
        with run.whole_file(path) as part:
            drawn.savefig(part, format="png", metadata={"Software": None})


def look_of(starts: Sequence[str]) -> dict[str, dict]:
    """Colour and marker of each start; the same in every figure of a run.

    `PCA`, which only types have, comes last: the others look as they do for redshifts.
    """
    named = {CATALOGUE, ENSEMBLE, SUPERVISED}
    trained = sorted({*starts} - named, key=lambda start: (start == PCA, start))
    looks = {
        start: {"color": _COLOURS[at % len(_COLOURS)], "marker": _MARKERS[at % len(_MARKERS)]}
        for at, start in enumerate([SUPERVISED, *trained])
    }
    return looks | {
        CATALOGUE: {"color": GREY, "marker": "X"},
        ENSEMBLE: {"color": _PURPLE, "marker": "p"},
    }


def points(axes, x, found: list[dict], label: str, look: dict) -> None:
    """A line through values, with bars of their intervals; nothing where they are null."""
    value, low, high = (
        np.array([np.nan if one[key] is None else one[key] for one in found])
        for key in ("value", "low", "high")
    )
    # a percentile interval may leave its estimate out, which errorbar refuses
    errors = np.clip([value - low, high - value], 0, None)
    axes.errorbar(x, value, errors, label=label, capsize=2, elinewidth=1, **look)


def beside(at: int, count: int, step: float = 1.02) -> float:
    """What a logarithmic place is multiplied by, so that `count` starts do not cover each other."""
    return step ** (at - (count - 1) / 2)
