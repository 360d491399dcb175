"""The figure of an atlas: one map of galaxies, coloured by what is known of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

UNKNOWN = "#b8b8b8"
TYPES = {"early": ("#d55e00", "circle"), "late": ("#0072b2", "triangle")}
"""Colour and marker of a type: each alone tells them apart."""
_MARKERS = {"circle": "o", "triangle": "^"}


@dataclass(frozen=True)
class Quantity:
    """A column of the atlas that colours its galaxies."""

    column: str
    title: str
    palette: str
    """Of matplotlib, light or dark towards the end, for colour-blind eyes and for grey prints."""
    missing: str
    """What is grey."""

    def limits(self, values: np.ndarray) -> tuple[float, float]:
        """Where the colours begin and end: all but 1 % of the known values at each end."""
        known = values[np.isfinite(values)]
        if not len(known):
            return 0.0, 1.0
        low, high = np.percentile(known, [1, 99])
        return (float(low), float(high)) if low < high else (float(low) - 0.5, float(high) + 0.5)


QUANTITIES = (
    Quantity("z", "spectroscopic redshift", "viridis", "no spectrum"),
    Quantity("petroMag_r", "magnitude r (Petrosian)", "cividis_r", "no magnitude"),
)


def has_types(table: pd.DataFrame) -> bool:
    """Whether any galaxy of an atlas has a type."""
    return bool(table["type"].notna().any())


def draw(table: pd.DataFrame, title: str, subtitle: str) -> Figure:
    """A panel for type, if any is known, redshift and magnitude, side by side.

    `table` has x, y, type ("early", "late" or null), z and petroMag_r [mag], NaN unknown.
    """
    count = len(QUANTITIES) + has_types(table)
    figure = Figure(figsize=(4.6 * count, 5.5), dpi=150)
    axes = figure.subplots(1, count, squeeze=False)[0]
    size = float(np.clip(3e4 / len(table), 1.5, 24))
    for axis in axes:
        axis.set_aspect("equal", adjustable="datalim")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color="0.75")
    if has_types(table):
        _types(axes[0], table, size)
    for axis, quantity in zip(axes[-len(QUANTITIES) :], QUANTITIES, strict=True):
        _quantity(axis, table, quantity, size)
    figure.text(0.012, 0.98, title, ha="left", va="top", fontsize=12)
    figure.text(0.012, 0.93, subtitle, ha="left", va="top", fontsize=8, color="0.35")
    figure.subplots_adjust(left=0.012, right=0.988, top=0.83, bottom=0.14, wspace=0.04)
    return figure


def _types(axis: Axes, table: pd.DataFrame, size: float) -> None:
    unknown = table["type"].isna()
    _unknown(axis, table[unknown], "type unknown", size)
    for name, (colour, marker) in TYPES.items():
        some = table[table["type"] == name]
        axis.scatter(some["x"], some["y"], 1.3 * size, colour, marker=_MARKERS[marker],
                     linewidths=0, alpha=0.7, label=f"{name} ({len(some)})")  # fmt: skip
    axis.set_title("type (votes of Galaxy Zoo)", fontsize=10)
    _legend(axis)


def _quantity(axis: Axes, table: pd.DataFrame, quantity: Quantity, size: float) -> None:
    values = table[quantity.column].to_numpy(np.float64)
    known = np.isfinite(values)
    low, high = quantity.limits(values)
    _unknown(axis, table[~known], quantity.missing, size)
    drawn = axis.scatter(
        table["x"][known], table["y"][known], size, values[known], cmap=quantity.palette,
        vmin=low, vmax=high, linewidths=0, alpha=0.9,
    )  # fmt: skip
    axis.set_title(quantity.title, fontsize=10)
    inset = axis.inset_axes((0.1, -0.06, 0.8, 0.03))
    bar = axis.figure.colorbar(drawn, cax=inset, orientation="horizontal", extend="both")
    bar.ax.tick_params(labelsize=8)
    bar.solids.set_alpha(1)
    if not known.all():
        _legend(axis)


def _unknown(axis: Axes, some: pd.DataFrame, label: str, size: float) -> None:
    if len(some):
        axis.scatter(some["x"], some["y"], 0.6 * size, UNKNOWN, linewidths=0, alpha=0.5,
                     label=f"{label} ({len(some)})")  # fmt: skip


def _legend(axis: Axes) -> None:
    legend = axis.legend(loc="best", fontsize=8, framealpha=0.85, handletextpad=0.2)
    for handle in legend.legend_handles:
        handle.set(sizes=[24], alpha=1)
