"""Figures of the photo-z: the paper's Fig. 2, z_p against z_s, residuals in bins, PIT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy import stats

from pipeline import metrics
from pipeline.evaluation import drawing
from pipeline.evaluation.drawing import ABOVE, GREY, beside, look_of, points
from pipeline.evaluation.predictions import Sample
from pipeline.evaluation.scores import Cell, own_start

_LABELS = {
    "r": "r, dereddened Petrosian [mag]", "z": "spectroscopic redshift", "e_bv": "E(B−V) [mag]",
    "seeing": "PSF FWHM in r [arcsec]",
}  # fmt: skip
_MANY = 3000
"""Galaxies beyond which their density is drawn, and not a point each."""


def fig2(content: dict, path: str | Path) -> None:
    """sigma_mad against the labels' fraction, and the labels that the supervised net needs."""
    with drawing.figure(path, 9, 4) as figure:
        left, right = figure.subplots(1, 2)
        looks = look_of([own_start(row["start"]) for row in content["scores"]])
        _sigma_panel(left, content["scores"], looks)
        _efficiency_panel(right, content["label_efficiency"], looks)
        handles, _ = left.get_legend_handles_labels()
        handles += _bound_handles(content["label_efficiency"])
        figure.legend(handles=handles, **ABOVE)


def _sigma_panel(axes, rows: list[dict], looks: dict) -> None:
    for row in rows:
        if row["fraction"] is None:
            own = own_start(row["start"])
            _band(axes, row["measures"]["sigma_mad"], row["start"], looks[own],
                  shade=own == row["start"])  # fmt: skip
    starts = dict.fromkeys(row["start"] for row in rows if row["fraction"] is not None)
    for at, start in enumerate(starts):
        here = [row for row in rows if row["start"] == start]
        x = np.array([row["fraction"] for row in here]) * beside(at, len(starts))
        points(axes, x, [row["measures"]["sigma_mad"] for row in here], start, looks[start])
    _fraction_axis(axes, [row["fraction"] for row in rows if row["fraction"]])
    axes.set_ylabel(r"$\sigma_\mathrm{MAD}$")


def _band(axes, one: dict, label: str, look: dict, shade: bool) -> None:
    """A dashed line, with its interval unless many such would cover each other."""
    axes.axhline(one["value"], color=look["color"], ls="--", label=label, zorder=1)
    if shade and one["low"] is not None:
        axes.axhspan(one["low"], one["high"], color=look["color"], alpha=0.12, lw=0, zorder=0)


def _fraction_axis(axes, fractions: list[float]) -> None:
    ticks = sorted(set(fractions))
    kept = [ticks[-1]]
    for tick in ticks[-2::-1]:
        if kept[-1] / tick > 1.4:  # nearer ones would be written over each other
            kept.append(tick)
    axes.set_xscale("log")
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}"))
    axes.set_xlabel("training labels used [%]")


def _efficiency_panel(axes, rows: list[dict], looks: dict) -> None:
    axes.set_ylabel(
        "labels that the supervised net needs\n" r"for this $\sigma_\mathrm{MAD}$ / labels used"
    )
    if not rows:
        axes.text(0.5, 0.5, "needs a supervised curve\nand another start", ha="center",
                  va="center", transform=axes.transAxes, color=GREY)  # fmt: skip
        axes.set(xticks=[], yticks=[])
        return
    starts = list(dict.fromkeys(row["start"] for row in rows))
    for row in rows:
        at = row["fraction"] * beside(starts.index(row["start"]), len(starts))
        _efficiency_point(axes, at, row["ratio"], looks[row["start"]])
    axes.axhline(1, color=GREY, lw=1, ls=":")
    axes.set_yscale("log")
    _fraction_axis(axes, [row["fraction"] for row in rows])
    values = [one["value"] for row in rows for one in row["ratio"].values()]
    low, high = min(0.9, *values) / 1.15, max(2.0, *values) * 1.3
    axes.set_ylim(low, high)
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low < t < high]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}×"))


def _efficiency_point(axes, x: float, ratio: dict, look: dict) -> None:
    """A point with its interval; an open arrow where there is only a bound."""
    ends = [ratio[key]["value"] for key in ("low", "high")]
    axes.plot([x, x], ends, color=look["color"], lw=1)
    for key, one in sorted(ratio.items()):
        bound = {">": "^", "<": "v"}.get(one["relation"])
        if key == "value":
            axes.plot(x, one["value"], color=look["color"], marker=bound or look["marker"], ms=7,
                      mfc="white" if bound else look["color"])  # fmt: skip
        elif one != ratio["value"]:
            axes.plot(x, one["value"], color=look["color"], marker=bound or "_", mfc="white")


def _bound_handles(rows: list[dict]) -> list[Line2D]:
    """For a legend: what the open arrows mean, those that are drawn."""
    relations = {one["relation"] for row in rows for one in row["ratio"].values()}
    return [
        Line2D([], [], ls="", marker=marker, color=GREY, mfc="white", label=text)
        for relation, marker, text in ((">", "^", "at least"), ("<", "v", "at most"))
        if relation in relations
    ]


def redshifts(sample: Sample, chosen: Sequence[Cell], path: str | Path) -> None:
    """z_p against z_s with the residuals below, a column a cell (its first seed)."""
    looks = look_of([cell.start for cell in chosen])
    z = sample.galaxies["z"].to_numpy()
    furthest = max(np.nanmax(cell.predictions[0].z_phot) for cell in chosen)
    across = (0, 1.05 * np.max(z))
    up = (0, 1.05 * min(max(np.max(z), furthest), 1.3 * np.max(z)))
    with drawing.figure(path, 1 + 2.9 * len(chosen), 4.8) as figure:
        grid = figure.subplots(2, len(chosen), sharex=True, sharey="row", squeeze=False,
                               gridspec_kw={"height_ratios": [3, 1.3]})  # fmt: skip
        for (above, below), cell in zip(grid.T, chosen, strict=True):
            known = np.isfinite(cell.predictions[0].z_phot)
            z_phot = cell.predictions[0].z_phot[known]
            dz = metrics.residuals(z_phot, z[known])
            _cloud(above, z[known], z_phot, across, up, looks[cell.start])
            _cloud(below, z[known], dz, across, (-0.1, 0.1), looks[cell.start])
            above.plot(across, across, color="black", lw=0.8)
            above.set_title(
                f"{_title(cell)}\n" rf"$\sigma_\mathrm{{MAD}}$ = {metrics.sigma_mad(dz):.4f}, "
                rf"$\eta$ = {100 * metrics.outlier_fraction(dz):.2g} %", fontsize=10,
            )  # fmt: skip
            below.axhline(0, color="black", lw=0.8)
            for limit in (-metrics.OUTLIER, metrics.OUTLIER):
                below.axhline(limit, color="black", lw=0.8, ls=":")
            below.set_xlabel("$z_s$, spectroscopic")
        grid[0, 0].set_ylabel("$z_p$, photometric")
        grid[1, 0].set_ylabel(r"$(z_p - z_s)/(1 + z_s)$")


def _cloud(axes, x, y, across: tuple, up: tuple, look: dict) -> None:
    """Points, or where there are many their density; those beyond the axes lie on the edge."""
    y = np.clip(y, *up)
    if len(x) > _MANY:
        axes.hexbin(x, y, gridsize=60, bins="log", extent=(*across, *up), mincnt=1,
                    cmap="cividis_r", linewidths=0)  # fmt: skip
    else:
        size = float(np.clip(4000 / len(x), 3, 22))
        axes.scatter(x, y, size, color=look["color"], alpha=0.6, linewidths=0, clip_on=False)
    axes.set(xlim=across, ylim=up)


def residuals(content: dict, variables: Sequence[str], path: str | Path) -> None:
    """Bias and sigma_mad in bins of some variables, a column each."""
    rows = [row for row in content["bins"] if row["variable"] in variables]
    names = list(dict.fromkeys(row["of"] for row in rows))
    looks = look_of([name.split()[0] for name in names])
    with drawing.figure(path, 4.3 * len(variables), 5.4) as figure:
        grid = figure.subplots(2, len(variables), sharex="col", sharey="row", squeeze=False)
        for (above, below), variable in zip(grid.T, variables, strict=True):
            here = [row for row in rows if row["variable"] == variable]
            _binned(above, here, names, "sigma_mad", looks)
            _binned(below, here, names, "bias", looks)
            below.axhline(0, color="black", lw=0.8)
            below.set_xlabel(_LABELS[variable])
            if not here:
                above.text(0.5, 0.5, "not known, or too few galaxies", ha="center",
                           transform=above.transAxes, color=GREY)  # fmt: skip
        grid[0, 0].set_ylabel(r"$\sigma_\mathrm{MAD}$")
        grid[1, 0].set_ylabel(r"bias, mean $(z_p - z_s)/(1 + z_s)$")
        grid[0, 0].set_ylim(bottom=0)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, **ABOVE)


def _title(cell: Cell) -> str:
    return cell.start if cell.fraction is None else f"{cell.start}, {100 * cell.fraction:g} %"


def _binned(axes, rows: list[dict], names: list[str], measure: str, looks: dict) -> None:
    if not rows:
        return
    # of the galaxies of the first: what others know of the bin does not move the bin
    place = {(row["low"], row["high"]): row["mean"] for row in rows if row["of"] == names[0]}
    left, right = min(place.values()), max(place.values())
    if left == right:
        left, right = next(iter(place))
    span = right - left or 1.0
    axes.set_xlim(left - 0.12 * span, right + 0.12 * span)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    for at, name in enumerate(names):
        here = [row for row in rows if row["of"] == name]
        shift = 0.008 * span * (at - (len(names) - 1) / 2)
        x = np.array([place[row["low"], row["high"]] for row in here]) + shift
        points(axes, x, [row["measures"][measure] for row in here], name, looks[name.split()[0]])
    for edge in {row["low"] for row in rows} | {row["high"] for row in rows}:
        axes.axvline(edge, ymax=0.03, color=GREY, lw=0.8)


def pit(sample: Sample, chosen: Sequence[Cell], path: str | Path) -> None:
    """Histogram of the PIT, a panel a cell (its first seed), with the band of a uniform one."""
    shown = [cell for cell in chosen if np.isfinite(cell.predictions[0].pit).any()]
    looks = look_of([cell.start for cell in shown])
    with drawing.figure(path, 1 + 2.9 * max(len(shown), 1), 3.7) as figure:
        for axes, cell in zip(
            figure.subplots(1, len(shown), sharey=True, squeeze=False)[0] if shown else [],
            shown, strict=True,
        ):  # fmt: skip
            values = cell.predictions[0].pit
            _pit_panel(axes, cell, values[np.isfinite(values)], looks[cell.start]["color"])
        if shown:
            figure.axes[0].set_ylabel("density")
            figure.axes[0].set_ylim(bottom=0)
            figure.legend(*figure.axes[0].get_legend_handles_labels(), **ABOVE)


def _pit_panel(axes, cell: Cell, values: np.ndarray, colour: str) -> None:
    test = metrics.pit_uniformity(values)
    counts, edges = np.histogram(values, test.bins, (0, 1))
    scale = test.bins / len(values)
    low, high = stats.binom.interval(metrics.LEVEL, len(values), 1 / test.bins)
    axes.axhspan(low * scale, high * scale, color=GREY, alpha=0.25, lw=0,
                 label=f"{100 * metrics.LEVEL:g} % of the bins of uniform values")  # fmt: skip
    axes.stairs(counts * scale, edges, color=colour, lw=1.6)
    axes.axhline(1, color=GREY, lw=0.8)
    axes.set(xlim=(0, 1), xticks=(0, 0.25, 0.5, 0.75), xlabel="PIT")
    axes.set_title(f"{_title(cell)}\nKS {test.ks:.3f} (p = {test.ks_p:.2g})", fontsize=10)
