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

APERTURE = 4.0
"""Radius [arcsec] in which stamps are measured where the catalogue has no magnitudes."""
FRAME_SCALE = 0.396
"""Arcsec a pixel of a frame, to a few parts in ten thousand."""


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
    for axis, galaxy, image in zip(axes.flat, chosen.to_dict("records"), images, strict=False):
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

    Where too few have a spectroscopic redshift, photo-z takes its place, then the magnitude r,
    then objID. Four times as many as there is room for are taken along the first quantity, and
    of those in a row the ones spread evenly over colour.
    """
    stamps = stamps.sort_values("objID")
    room = min(len(stamps), columns * rows)
    key, order = "objID", "in the order of objID"
    for name, words in (("z", "redshift"), ("photoz", "photo-z"), ("r", "magnitude r")):
        if stamps[name].notna().sum() >= room:
            stamps, key = stamps[stamps[name].notna()], name
            order = f"{words} grows from row to row"
            break
    taken = _evenly(stamps.sort_values([key, "objID"], kind="stable"), 4 * room)
    by_colour = key != "objID" and rows > 1 and taken["g-r"].notna().all()
    ends = np.append(np.arange(columns, room, columns), room)
    chosen = []
    for first, end in zip(ends - np.diff(ends, prepend=0), ends, strict=True):
        row = taken.iloc[round(first * len(taken) / room) : round(end * len(taken) / room)]
        if by_colour:
            row = row.sort_values(["g-r", "objID"], kind="stable")
        chosen.append(_evenly(row, end - first))
    return pd.concat(chosen), order + (", g - r from left to right" if by_colour else "")


def _evenly(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows from first to last of a table, or all of a shorter one."""
    count = min(count, len(table))
    return table.iloc[np.linspace(0, len(table) - 1, count).round().astype(int)]


def read_stamps(chosen: pd.DataFrame, paths: list[Path]) -> np.ndarray:
    """The images (n, 5, size, size) of `chosen`, each shard opened once."""
    images = [None] * len(chosen)
    for number in sorted(chosen["stamp_shard"].unique()):
        with shard.open_shard(paths[int(number)]) as file:
            for at in np.flatnonzero(chosen["stamp_shard"] == number):
                images[at] = file["images"][int(chosen["stamp_row"].iloc[at])]
    return np.array(images, dtype=np.float32)


def aperture_magnitudes(images: np.ndarray, stamp: dict) -> np.ndarray:
    """r [AB mag] within `APERTURE` of the centre of `images` (n, 5, size, size); NaN if not > 0.

    `stamp` is that of a dataset.json.
    """
    size, scale = stamp["size"], 3600 * stamp["fov_deg"] / stamp["size"]
    inside = np.hypot(*(np.indices((size, size)) - (size - 1) / 2)) * scale <= APERTURE
    flux = images[:, 2, inside].sum(axis=1, dtype=np.float64)
    if not stamp.get("conserve_flux"):
        flux *= (scale / FRAME_SCALE) ** 2
    return 22.5 - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))


def colour_image(image: np.ndarray) -> np.ndarray:
    """(5, size, size) in nanomaggies -> (size, size, 3) uint8 (Lupton et al. 2004)."""
    _, g, r, i, _ = image
    return make_lupton_rgb(1.0 * i, 1.45 * r, 2.3 * g, minimum=-0.05, stretch=0.4, Q=9)


def caption(galaxy: dict) -> str:
    """Name and redshift (or photo-z, or magnitude) below a stamp; NaN is unknown."""
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
