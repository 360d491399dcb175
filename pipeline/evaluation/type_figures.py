"""Figures of predicted types: the measures against labels, ROC curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from pipeline.evaluation import drawing
from pipeline.evaluation.classify import THRESHOLD, roc
from pipeline.evaluation.drawing import ABOVE, GREY, beside, look_of, points
from pipeline.evaluation.type_scores import type_cells
from pipeline.evaluation.types import TypeSample

_TITLES = {
    "accuracy": "accuracy",
    "precision": "precision of early types",
    "recall": "recall of early types",
    "roc_auc": "area under the ROC curve",
}
_GRID = np.linspace(0, 1, 1001)
"""Where curves are averaged, and drawn."""


def counts(content: dict, path: str | Path) -> None:
    """The four measures against the labelled galaxies learnt from, a line a start."""
    rows = content["scores"]
    looks = look_of([row["start"] for row in rows])
    starts = list(dict.fromkeys(row["start"] for row in rows))
    labels = sorted({row["labels"] for row in rows})
    apart = max(labels[-1] / labels[0], 10) ** 0.015
    with drawing.figure(path, 9, 6.6) as figure:
        grid = figure.subplots(2, 2, sharex=True)
        for axes, (name, title) in zip(grid.flat, _TITLES.items(), strict=True):
            for at, start in enumerate(starts):
                here = [row for row in rows if row["start"] == start]
                x = np.array([row["labels"] for row in here]) * beside(at, len(starts), apart)
                points(axes, x, [row["measures"][name] for row in here], start, looks[start])
            axes.set_ylabel(title)
            if all(row["measures"][name]["value"] is None for row in rows):
                _say_nothing(axes)
        _label_axis(grid[0, 0], labels)
        for axes in grid[1]:
            axes.set_xlabel("labelled galaxies learnt from")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), **ABOVE)


def _say_nothing(axes) -> None:
    axes.text(0.5, 0.5, "not defined:\na net calls no galaxy early", ha="center", va="center",
              transform=axes.transAxes, color=GREY)  # fmt: skip
    axes.set(yticks=[])
    axes.grid(False)


def _label_axis(axes, labels: list[int]) -> None:
    kept = [labels[-1]]
    for tick in labels[-2::-1]:
        if kept[-1] / tick > 1.4:  # nearer ones would be written over each other
            kept.append(tick)
    axes.set_xscale("log")
    axes.set_xlim(labels[0] / 1.25, labels[-1] * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def roc_curves(sample: TypeSample, content: dict, path: str | Path) -> None:
    """ROC curves, means over seeds, with the fewest and with the most labels."""
    cells = type_cells(sample)
    looks = look_of([cell.start for cell in cells])
    area = {(row["start"], row["labels"]): row["measures"]["roc_auc"]["value"]
            for row in content["scores"]}  # fmt: skip
    labels = [cell.labels for cell in cells]
    shown = sorted({min(labels), max(labels)})
    with drawing.figure(path, 0.6 + 4.2 * len(shown), 5) as figure:
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, count in zip(panels, shown, strict=True):
            here = [cell for cell in cells if cell.labels == count]
            for cell in here:
                text = f"{cell.start}, {area[cell.start, count]:.3f}"
                _curve(axes, sample.early, cell.predictions, text, looks[cell.start])
            axes.plot((0, 1), (0, 1), color=GREY, lw=0.8, ls=":")
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axes.set_xlabel("late types called early (false positives)")
            axes.set_title(f"{count} labels", fontsize=10)
            axes.legend(loc="lower right", title="area under the curve", fontsize=9)
        panels[0].set_ylabel("early types called early (recall)")
        text = f"markers: called early where p_early ≥ {THRESHOLD:g}"
        mark = Line2D([], [], ls="", marker="o", color=GREY, label=text)
        figure.legend(handles=[mark], **ABOVE)


def _curve(axes, early: np.ndarray, predictions: Sequence[np.ndarray], text: str, look: dict):
    """The mean of the seeds' curves at each share of false positives; a marker at the threshold."""
    curves = [np.interp(_GRID, *roc(early, chances)) for chances in predictions]
    x, y = np.append(0, _GRID), np.append(0, np.mean(curves, axis=0))
    called = np.stack(predictions) >= THRESHOLD
    place = called[:, ~early].mean(), called[:, early].mean()
    axes.plot(x, y, color=look["color"])
    axes.plot(*place, ls="", mec="white", mew=0.8, ms=8, zorder=3, **look)
    axes.plot([], [], label=text, **look)
