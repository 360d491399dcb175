"""Figures of a search: queries with their neighbours, and the galaxies that are most alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.images.sheet import colour_image

SIDE = 1.45
"""Inches of a stamp in a figure."""
_GAP, _TEXT, _HEAD = 0.06, 0.36, 0.62
"""Inches between stamps, for the words below each, and above them all."""
_QUERY, _CROP = "#ff9d2e", "#ffffff"


def gallery(
    rows: Sequence[Sequence[Mapping]], images: np.ndarray, crop: int, title: str, subtitle: str
) -> Figure:
    """A row for each query: its stamp, framed, then its neighbours, nearest first.

    `rows` holds, for each query, the galaxies of its row (objID, z, photoz, petroMag_r, and for
    neighbours similarity; NaN unknown), `images` (rows, columns, 5, size, size) their stamps
    [nanomaggies]. The square of `crop` pixels that the encoder sees is drawn on each.
    """
    columns = max(len(row) for row in rows)
    figure, axes = _grid(len(rows), columns, title, subtitle, apart=0.16)
    for line, galaxies, stamps in zip(axes, rows, images, strict=True):
        for axis, galaxy, stamp in zip(line, galaxies, stamps, strict=False):
            _draw(axis, stamp, crop, words(galaxy))
        _frame(line[0], images.shape[-1])
    _head(axes[0, 0], "query")
    if columns > 1:
        _head(axes[0, 1], "nearest neighbours")
    return figure


def mosaic(
    galaxies: Sequence[Mapping],
    images: np.ndarray,
    crop: int,
    title: str,
    subtitle: str,
    columns: int = 5,
    framed: bool = False,
) -> Figure:
    """Stamps (n, 5, size, size) in order, so many in a row; `galaxies` as in `gallery`.

    `framed` marks the first, which is what the others are like.
    """
    columns = min(columns, len(galaxies))
    figure, axes = _grid(-(-len(galaxies) // columns), columns, title, subtitle)
    for axis, galaxy, stamp in zip(axes.flat, galaxies, images, strict=False):
        _draw(axis, stamp, crop, words(galaxy))
    if framed:
        _frame(axes[0, 0], images.shape[-1])
    return figure


def words(galaxy: Mapping) -> str:
    """Two lines below a stamp: redshift (or photo-z, or magnitude); then how like or how alone."""
    z, photoz = galaxy.get("z", np.nan), galaxy.get("photoz", np.nan)
    r = galaxy.get("petroMag_r", np.nan)
    bright = f"r = {r:.1f}" if np.isfinite(r) else ""
    if np.isfinite(z):
        first = f"z = {z:.3f}"
    elif photoz > -1:  # what SDSS writes where it has none is -9999
        first = f"photo-z = {photoz:.2f}"
    else:
        first, bright = bright or "no redshift", ""
    if "outlier_rank" in galaxy:
        return f"{galaxy['outlier_rank']}.  {first}\nscore {galaxy['outlier_score']:.4f}"
    if "similarity" in galaxy:
        return f"{first}\nsimilarity {galaxy['similarity']:.4f}"
    return f"{first}\n{bright}".rstrip()


def _grid(
    rows: int, columns: int, title: str, subtitle: str, apart: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """A figure with axes of `SIDE` inches; `apart` more between the first column and the rest."""
    above = _HEAD + (0.2 if apart else 0)
    width = columns * (SIDE + _GAP) + _GAP + apart
    height = rows * (SIDE + _TEXT) + above + 0.05
    figure = Figure(figsize=(max(width, 3.4), height), dpi=120)
    width, height = figure.get_size_inches()
    axes = np.empty((rows, columns), dtype=object)
    for row in range(rows):
        for column in range(columns):
            left = _GAP + column * (SIDE + _GAP) + (apart if column else 0)
            bottom = height - above - row * (SIDE + _TEXT) - SIDE
            place = (left / width, bottom / height, SIDE / width, SIDE / height)
            axes[row, column] = figure.add_axes(place)
            axes[row, column].axis("off")
    figure.text(_GAP / width, 1 - 0.07 / height, title, ha="left", va="top", fontsize=10.5)
    figure.text(_GAP / width, 1 - 0.3 / height, subtitle, ha="left", va="top", fontsize=7.5,
                color="0.35", linespacing=1.3)  # fmt: skip
    return figure, axes


def _draw(axis: Axes, stamp: np.ndarray, crop: int, text: str) -> None:
    size = stamp.shape[-1]
    axis.imshow(colour_image(np.float32(stamp)), origin="lower", interpolation="nearest")
    if crop < size:
        # the galaxy lies on index crop // 2 of the crop
        corner = size // 2 - crop // 2 - 0.5
        axis.add_patch(Rectangle((corner, corner), crop, crop, fill=False, ec=_CROP, lw=0.7))
    axis.set(xlim=(-0.5, size - 0.5), ylim=(-0.5, size - 0.5))
    axis.text(0.5, -0.03, text, transform=axis.transAxes, ha="center", va="top", fontsize=7,
              linespacing=1.25)  # fmt: skip


def _frame(axis: Axes, size: int) -> None:
    axis.add_patch(
        Rectangle((-0.5, -0.5), size, size, fill=False, ec=_QUERY, lw=2.5, clip_on=False)
    )


def _head(axis: Axes, text: str) -> None:
    axis.text(0, 1.03, text, transform=axis.transAxes, ha="left", va="bottom", fontsize=8)
