"""The contact sheet: stamps side by side in colour, with names and redshifts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from astropy.visualization import make_lupton_rgb
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.images import manifest, shard
from pipeline.survey.names import RERUN, unpack_objid


def contact_sheet(galaxies: pd.DataFrame, content: dict, dataset: str | Path) -> Figure:
    """Up to 48 stamps: redshift (or magnitude) grows downwards, colour reddens to the right."""
    columns, rows = sheet_shape(content["galaxies"]["stamps"])
    chosen, order = choose(galaxies[galaxies["stamp_row"] >= 0], columns, rows)
    images = read_stamps(chosen, list(manifest.shard_paths(dataset, content)))
    side = 1.55 if columns > 2 else 2.6
    figure = Figure(figsize=(columns * side + 0.2, rows * (side + 0.36) + 0.75))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (_, galaxy), image in zip(axes.flat, chosen.iterrows(), images, strict=False):
        axis.imshow(colour_image(image), origin="lower", interpolation="nearest")
        axis.text(0.5, -0.03, caption(galaxy), transform=axis.transAxes, ha="center", va="top",
                  fontsize=6.5, linespacing=1.35)  # fmt: skip
    _mark_scale(axes[0, 0], content["stamp"])
    fov = content["stamp"]["fov_deg"] * 3600
    height = figure.get_figheight()
    figure.suptitle(
        f"{content['survey'] or 'Stamps'}: {len(chosen)} of {content['galaxies']['stamps']}",
        x=0.1 / figure.get_figwidth(), y=1 - 0.08 / height, ha="left", va="top", fontsize=11,
    )  # fmt: skip
    figure.text(0.1 / figure.get_figwidth(), 1 - 0.34 / height,
                f"{order}\n{fov:.1f}\" on a side; blue, green, red = g, r, i",
                ha="left", va="top", fontsize=7, color="0.35")  # fmt: skip
    figure.subplots_adjust(left=0.1 / figure.get_figwidth(), right=1 - 0.1 / figure.get_figwidth(),
                           top=1 - 0.68 / height, bottom=0.4 / height, wspace=0.05,
                           hspace=0.38 / side)  # fmt: skip
    return figure


def sheet_shape(stamps: int) -> tuple[int, int]:
    """Columns and rows of a sheet for so many stamps: 8 by 6 at most."""
    columns = min(8, max(1, int(np.ceil(np.sqrt(1.4 * stamps) - 0.2))))
    return columns, min(6, -(-stamps // columns))


def choose(stamps: pd.DataFrame, columns: int, rows: int) -> tuple[pd.DataFrame, str]:
    """Galaxies spread evenly over redshift (rows) and colour (columns), and that order in words.

    Galaxies with a spectrum are preferred; without any redshift the magnitude takes its place,
    without that the catalogue's order. All are sorted by objID first, so that the choice
    depends on nothing but which galaxies there are.
    """
    stamps = stamps.sort_values("objID")
    for key, words in (("z", "redshift"), ("photoz", "photo-z"), ("r", "magnitude r")):
        usable = stamps[stamps[key].notna()]
        if len(usable) >= min(len(stamps), columns * rows):
            stamps = usable.sort_values([key, "objID"], kind="stable")
            order = f"{words} grows from row to row"
            break
    else:
        order = "in the order of objID"
    picks = np.linspace(0, len(stamps) - 1, min(len(stamps), columns * rows * 4)).round()
    picked = stamps.iloc[np.unique(picks.astype(int))]
    if picked["g-r"].notna().all() and rows > 1 and "grows" in order:
        order += ", g - r from left to right"
    bins = [part for part in np.array_split(np.arange(len(picked)), rows) if len(part)]
    sizes = [
        len(part) for part in np.array_split(np.arange(min(len(picked), columns * rows)), rows)
    ]
    chosen = []
    for part, size in zip(bins, sizes, strict=False):
        row = picked.iloc[part]
        if "left to right" in order:
            row = row.sort_values(["g-r", "objID"], kind="stable")
        chosen.append(row.iloc[np.linspace(0, len(row) - 1, size).round().astype(int)])
    return pd.concat(chosen), order


def read_stamps(chosen: pd.DataFrame, paths: list[Path]) -> np.ndarray:
    """The images (n, 5, size, size) of `chosen`, each shard opened once."""
    images = [None] * len(chosen)
    for number in sorted(chosen["stamp_shard"].unique()):
        with shard.open_shard(paths[int(number)]) as file:
            for at in np.flatnonzero(chosen["stamp_shard"] == number):
                images[at] = file["images"][int(chosen["stamp_row"].iloc[at])]
    return np.array(images, dtype=np.float32)


def colour_image(image: np.ndarray) -> np.ndarray:
    """(5, size, size) in nanomaggies -> (size, size, 3) uint8 (Lupton et al. 2004)."""
    _, g, r, i, _ = image
    return make_lupton_rgb(1.0 * i, 1.45 * r, 2.3 * g, minimum=-0.05, stretch=0.4, Q=9)


def caption(galaxy: pd.Series) -> str:
    """Name and redshift below a stamp."""
    parts = unpack_objid(galaxy["objID"])
    if galaxy["objID"] > 0 and parts["rerun"] == RERUN:
        name = "{run}-{camcol}-{field}-{obj}".format(**parts)
    else:
        name = str(galaxy["objID"])
    if np.isfinite(galaxy["z"]):
        return f"{name}\nz = {galaxy['z']:.3f}"
    if np.isfinite(galaxy["photoz"]):
        return f"{name}\nphoto-z = {galaxy['photoz']:.2f}"
    return f"{name}\nr = {galaxy['r']:.2f}" if np.isfinite(galaxy["r"]) else name


def _mark_scale(axis: Axes, stamp: dict) -> None:
    """North and east arrows and a bar of 10 arcsec on a stamp."""
    size, scale = stamp["size"], 3600 * stamp["fov_deg"] / stamp["size"]
    white = {"color": "white", "fontsize": 6.5, "ha": "center", "va": "center"}
    corner, arm = np.array([0.93, 0.07]) * size - 0.5, 0.15 * size
    for step, letter in ((np.array([0, 1]), "N"), (np.array([-1, 0]), "E")):
        axis.annotate("", corner + arm * step, corner,
                      arrowprops={"arrowstyle": "->", "color": "white", "lw": 0.9,
                                  "shrinkA": 0, "shrinkB": 0})  # fmt: skip
        axis.text(*(corner + 1.35 * arm * step), letter, **white)
    bar = 10 / scale
    if bar < 0.6 * size:
        left = 0.06 * size
        axis.plot([left, left + bar], [0.07 * size] * 2, color="white", lw=1.4)
        axis.text(left + bar / 2, 0.13 * size, '10"', **white)
    axis.set(xlim=(-0.5, size - 0.5), ylim=(-0.5, size - 0.5))
