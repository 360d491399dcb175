"""Pictures of a set: stamps, sky, funnel, magnitudes; the first things to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from pipeline import run
from pipeline.images import manifest, shard
from pipeline.images.sheet import APERTURE, aperture_magnitudes, contact_sheet, read_stamps
from pipeline.survey import fields, positions
from pipeline.survey.names import FRAME_SHAPE

PICTURES = ("contact-sheet", "sky-map", "funnel", "magnitudes")
COLOURS = {"unlabelled": "#9a9a9a", "train": "#0072b2", "valid": "#e69f00", "test": "#d55e00"}
"""One colour a split, told apart by colour-blind eyes too; drawn in this order."""
FIELD_FACE, FIELD_EDGE = "#eef3f8", "#b9c7d6"
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 10, "axes.titlelocation": "left",
    "legend.frameon": False, "figure.dpi": 120, "savefig.dpi": 120,
}  # fmt: skip
_COLUMNS = (
    "objID", "ra", "dec", "run", "camcol", "field", "z", "photoz", "dered_petro_r", "petroMag_r",
    "modelMag_g", "modelMag_r", "extinction_g", "extinction_r", "split",
)  # fmt: skip


def draw(
    dataset: str | Path, catalog: pd.DataFrame, footprints: pd.DataFrame | None = None
) -> dict:
    """The pictures of a set, by name.

    `dataset` is the path of a dataset.json, `catalog` the table its shards were made from;
    `footprints` (the table of fields) adds the outlines of fields to the sky map.

    Raises:
        UserError: a shard cannot be read, or the catalogue is not that of the set.
    """
    content = manifest.read(dataset)
    galaxies = prepare(catalog).join(find_stamps(dataset, content), on="objID")
    if galaxies["stamp_row"].isna().any() or len(galaxies) != content["galaxies"]["catalogue"]:
        raise run.UserError(
            f"{dataset}: made from another catalogue; give the one it was made from"
        )
    label = "petroMag_r, corrected for extinction [mag]"
    if galaxies["r"].isna().all():
        galaxies["r"] = measured(galaxies, content, dataset)
        label = f"r within {APERTURE:g} arcsec, measured on the stamps [mag]"
    with style.context(["default", _STYLE]):
        return {
            "contact-sheet": contact_sheet(galaxies, content, dataset),
            "sky-map": sky_map(galaxies, content["survey"], footprints),
            "funnel": funnel(content.get("funnel")),
            "magnitudes": magnitudes(galaxies, label),
        }


def prepare(catalog: pd.DataFrame) -> pd.DataFrame:
    """The columns that pictures use, missing values as NaN and missing columns filled with it."""
    table = pd.DataFrame({"objID": catalog["objID"].to_numpy(dtype=np.int64)})
    for name in _COLUMNS[1:-1]:
        if name in catalog:
            table[name] = catalog[name].to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            table[name] = np.nan
    table["split"] = catalog["split"].astype(str).to_numpy(dtype=object)
    magnitude = table["dered_petro_r"].fillna(table["petroMag_r"] - table["extinction_r"])
    table["r"] = magnitude.fillna(table["petroMag_r"]).where(lambda r: r.between(5, 35))
    table["photoz"] = table["photoz"].where(table["photoz"] > -1)
    colour = table["modelMag_g"] - table["modelMag_r"]
    table["g-r"] = colour - (table["extinction_g"] - table["extinction_r"]).fillna(0)
    return table


def find_stamps(dataset: str | Path, content: dict) -> pd.DataFrame:
    """For each objID in the shards: shard (its index) and row of its stamp (-1 if it failed)."""
    parts = []
    for number, path in enumerate(manifest.shard_paths(dataset, content)):
        with shard.open_shard(path) as file:
            ids, failed = file["ObjID"][:], file["failed/ObjID"][:]
        rows = np.concatenate([np.arange(len(ids)), np.full(len(failed), -1)])
        parts.append(
            pd.DataFrame({"stamp_shard": number, "stamp_row": rows},
                         index=np.concatenate([ids, failed]))
        )  # fmt: skip
    return pd.concat(parts)


def measured(galaxies: pd.DataFrame, content: dict, dataset: str | Path) -> pd.Series:
    """r measured on up to 1,000 stamps, evenly along the catalogue; NaN for the others."""
    stamps = galaxies[galaxies["stamp_row"] >= 0]
    stamps = stamps.iloc[:: -(-len(stamps) // 1000)]
    images = read_stamps(stamps, list(manifest.shard_paths(dataset, content)))
    return pd.Series(aperture_magnitudes(images, content["stamp"]), index=stamps.index)


# -- sky map ---------------------------------------------------------------------------------


def sky_map(galaxies: pd.DataFrame, survey: str, footprints: pd.DataFrame | None = None) -> Figure:
    """Where the galaxies lie, by split, over the outlines of fields; RA grows to the left.

    A sky of a few patches far from each other gets a panel for each.
    """
    patch = patches(galaxies["ra"].to_numpy(), galaxies["dec"].to_numpy())
    parts = [galaxies[patch == number] for number in range(patch.max() + 1)]
    margin = 0.15 if footprints is not None else 0.03
    frames = [_frame(part, margin) for part in parts]
    columns = min(len(parts), 3)
    rows = -(-len(parts) // columns)
    shape = max(height / across for _, across, height in frames)
    side = 6.0 if columns == 1 else 3.2  # of a map; its labels take 0.85 by 0.6 inches
    width, height = columns * (side + 0.85) + 1.6, rows * (side * shape + 0.6) + 0.4
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(left=0.8 / width, right=1 - 1.65 / width, bottom=0.5 / height,
                           top=1 - 0.4 / height, wspace=0.85 / side,
                           hspace=0.6 / (side * shape))  # fmt: skip
    for axis in axes.flat[len(parts) :]:
        axis.axis("off")
    size = float(np.clip(4000 / len(galaxies), 0.3, 22))
    for axis, part, frame in zip(axes.flat, parts, frames, strict=False):
        _draw_patch(axis, part, frame, shape, size, footprints)
    figure.suptitle(f"{survey or 'Sky'}: {galaxies_in_words(len(galaxies))}",
                    x=0.15 / width, y=1 - 0.1 / height, ha="left", va="top")  # fmt: skip
    _sky_legend(figure, galaxies, footprints is not None)
    return figure


def patches(ra: np.ndarray, dec: np.ndarray, gap: float = 4.0, most: int = 6) -> np.ndarray:
    """Number of the patch of sky that each position [deg] lies on, from 0; in order of RA.

    Patches are `gap` [deg] apart, to about a degree. More than `most` of them count as one.
    """
    cells, member = np.unique(
        np.round(positions.unit_vectors(ra, dec) * 60).astype(int), axis=0, return_inverse=True
    )
    near = cKDTree(cells / 60).query_pairs(positions.chord(gap), output_type="ndarray")
    links = coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(len(cells),) * 2)
    count, label = connected_components(links, directed=False)
    if count > most:
        return np.zeros(len(ra), dtype=int)
    label = label[member]
    order = np.argsort([np.asarray(ra)[label == number].min() for number in range(count)])
    return np.argsort(order)[label]


def middle_of_ra(ra: np.ndarray) -> float:
    """The right ascension [deg] opposite to the middle of the widest gap, to unwrap around."""
    ra = np.unique(np.asarray(ra, dtype=np.float64) % 360)
    gaps = np.diff(np.append(ra, ra[0] + 360))
    widest = int(np.argmax(gaps))
    return float((ra[widest] + gaps[widest] / 2 + 180) % 360)


def unwrap(ra, middle: float) -> np.ndarray:
    """Right ascensions [deg] within 180 deg of `middle`, so that they do not jump at 360."""
    return middle + (np.asarray(ra, dtype=np.float64) - middle + 180) % 360 - 180


def _frame(part: pd.DataFrame, margin: float) -> tuple[tuple[float, float, float], float, float]:
    """Centre (RA to unwrap around, Dec, its cosine) and sizes [deg on the sky] of a map."""
    middle = middle_of_ra(part["ra"].to_numpy())
    ra = unwrap(part["ra"], middle)
    dec = (part["dec"].min() + part["dec"].max()) / 2
    shrink = max(np.cos(np.radians(dec)), 0.05)
    across = 1.06 * np.ptp(ra) * shrink + 2 * margin
    height = 1.06 * np.ptp(part["dec"]) + 2 * margin
    height = max(height, 0.4 * across)
    return ((ra.min() + ra.max()) / 2, dec, shrink), max(across, height / 0.9), height


def _draw_patch(axis: Axes, part, frame, shape: float, size: float, footprints) -> None:
    (middle, dec, shrink), across, height = frame
    across, height = max(across, height / shape), max(height, across * shape)
    if footprints is not None:
        _draw_fields(axis, footprints, part, middle)
    for split, colour in COLOURS.items():
        chosen = part[part["split"] == split]
        axis.scatter(unwrap(chosen["ra"], middle), chosen["dec"], s=size, color=colour,
                     linewidths=0)  # fmt: skip
    lost = part[part["stamp_row"] < 0]
    axis.scatter(unwrap(lost["ra"], middle), lost["dec"], s=max(2 * size, 12), color="black",
                 marker="x", linewidths=0.8)  # fmt: skip
    half = across / shrink / 2
    axis.set(xlim=(middle + half, middle - half), aspect=1 / shrink,
             ylim=(max(dec - height / 2, -90), min(dec + height / 2, 90)),
             xlabel="RA [deg]", ylabel="Dec [deg]")  # fmt: skip
    axis.locator_params(axis="x", nbins=5)
    axis.xaxis.set_major_formatter(lambda value, _: f"{round(value % 360, 6):g}")
    axis.grid(color="0.92", lw=0.6)
    axis.set_axisbelow(True)


def _sky_legend(figure: Figure, galaxies: pd.DataFrame, outlined: bool) -> None:
    counts = galaxies["split"].value_counts()
    dot = {"marker": "o", "markersize": 5, "linestyle": ""}
    handles = [
        Line2D([], [], color=colour, label=f"{split} ({counts[split]:,})", **dot)
        for split, colour in COLOURS.items()
        if split in counts
    ]
    lost = int((galaxies["stamp_row"] < 0).sum())
    if lost:
        handles.append(Line2D([], [], color="black", marker="x", markersize=5, linestyle="",
                              label=f"no stamp ({lost:,})"))  # fmt: skip
    if outlined:
        handles.append(Patch(facecolor=FIELD_FACE, edgecolor=FIELD_EDGE, label="field"))
    figure.legend(handles=handles, loc="upper right", borderaxespad=0.3)


def _draw_fields(axis: Axes, footprints: pd.DataFrame, part, middle: float) -> None:
    """Outlines of the fields that have a galaxy of `part`.

    Some thousands in one path: a polygon each, of the whole survey, would take gigabytes, and more
    at once than Agg's cells hold.
    """
    held = part[["run", "camcol", "field"]].drop_duplicates()
    ra, dec = field_corners(footprints.merge(held, on=["run", "camcol", "field"]))
    corners = np.stack([unwrap(ra, middle), dec], axis=2)
    for start in range(0, len(corners), 2000):
        outlines = Outline.make_compound_path_from_polys(corners[start : start + 2000])
        axis.add_patch(
            PathPatch(outlines, facecolor=FIELD_FACE, edgecolor=FIELD_EDGE, lw=0.5, zorder=0)
        )


def field_corners(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """RA and Dec [deg] of each field's four corners in r, both (n, 4).

    `fields.has_geometry` must hold.
    """
    if {f"{term}_r" for term in fields.TERMS} <= set(table):
        a, b, c, d, e, f = (table[f"{term}_r"].to_numpy()[:, None] for term in fields.TERMS)
        height, width = FRAME_SHAPE
        row, column = np.array([0, 0, height, height]), np.array([0, width, width, 0])
        mu, nu = a + b * row + c * column, d + e * row + f * column
    else:
        mu = np.stack([table[name] for name in ("muStart", "muStart", "muEnd", "muEnd")], axis=1)
        nu = np.stack([table[name] for name in ("nuStart", "nuEnd", "nuEnd", "nuStart")], axis=1)
    node, incl = (table[name].to_numpy()[:, None] for name in ("node", "incl"))
    return fields.equatorial(mu, nu, node, incl)


# -- funnel ----------------------------------------------------------------------------------


def funnel(counts: dict | None) -> Figure:
    """A bar for the count after each step, a panel a sample, with the paper's count beside it."""
    samples = {
        name: steps
        for name, steps in (counts or {}).get("samples", {}).items()
        if any(step["count"] for step in steps)
    }
    if not samples:
        return _words("No funnel: dataset.json was made without catalog.json.")
    heights = [len(steps) for steps in samples.values()]
    size = (8, 0.36 * sum(heights) + 0.75 * len(samples))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(samples), 1, squeeze=False, height_ratios=heights)
    for axis, (name, steps) in zip(axes[:, 0], samples.items(), strict=True):
        _draw_steps(axis, name, steps)
    return figure


def _draw_steps(axis: Axes, name: str, steps: list[dict]) -> None:
    counts = [step["count"] for step in steps]
    places, widest = np.arange(len(steps)), max(*counts, 1)
    before = np.array([counts[0], *counts[:-1]])
    axis.barh(places, np.maximum(before, counts), color="#e3e8ee", height=0.72)
    axis.barh(places, counts, color="#56789a", height=0.72)
    axis.set_yticks(places, [step["step"] for step in steps])
    axis.invert_yaxis()
    for place, step, previous in zip(places, steps, before, strict=True):
        gone = previous - step["count"]
        text = f"{step['count']:,}" + (f"  (\N{MINUS SIGN}{gone:,})" if gone > 0 else "")
        text += f"  ({step['missing']:,} without)" if step.get("missing") and not gone else ""
        if step.get("paper") is not None:
            text += f"   paper: {step['paper']:,}"
        axis.text(max(previous, step["count"]) + 0.01 * widest, place, text, va="center",
                  fontsize=8)  # fmt: skip
    axis.set_xlim(0, widest * 1.45)
    axis.xaxis.set_visible(False)
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_title(f"{name}: galaxies after each step (pale: removed by it)")


# -- magnitudes ------------------------------------------------------------------------------


def magnitudes(galaxies: pd.DataFrame, label: str) -> Figure:
    """Magnitude (`label` says which) against redshift, photo-z against spec-z; or histograms."""
    panels = []
    labelled = galaxies[galaxies["z"].notna()]
    if labelled["r"].notna().any():
        panels.append(lambda axis: _redshift_and_magnitude(axis, labelled, label))
    elif galaxies["r"].notna().any():
        panels.append(lambda axis: _histogram(axis, galaxies, "r", label))
    if labelled["photoz"].notna().any():
        panels.append(lambda axis: _photoz_and_specz(axis, labelled))
    elif galaxies["photoz"].notna().any():
        panels.append(lambda axis: _histogram(axis, galaxies, "photoz", "photo-z (catalogue)"))
    if not panels:
        return _words("The catalogue has neither magnitudes nor redshifts to draw.")
    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        panel(axis)
    return figure


def _points(axis: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    """Dots by split; the density of dots where they are too many to tell apart."""
    table = table[table[x].notna() & table[y].notna()]
    if len(table) > 20_000:
        axis.hexbin(table[x], table[y], gridsize=120, bins="log", mincnt=1, cmap="Blues",
                    linewidths=0)  # fmt: skip
        return
    for split, colour in COLOURS.items():
        part = table[table["split"] == split]
        if len(part):
            axis.scatter(part[x], part[y], s=float(np.clip(6000 / len(table), 2, 18)),
                         color=colour, linewidths=0, alpha=0.8,
                         label=f"{split} ({len(part):,})")  # fmt: skip
    axis.legend(fontsize=7, handletextpad=0.1)


def _redshift_and_magnitude(axis: Axes, labelled: pd.DataFrame, label: str) -> None:
    _points(axis, labelled, "z", "r")
    axis.invert_yaxis()
    axis.set(xlabel="spectroscopic redshift z", ylabel=label)
    axis.set_title("Magnitude against redshift")


def _photoz_and_specz(axis: Axes, labelled: pd.DataFrame) -> None:
    _points(axis, labelled, "z", "photoz")
    both = labelled[labelled["photoz"].notna()]
    top = 1.3 * both["z"].max()
    axis.plot([0, top], [0, top], color="0.4", lw=0.7)
    axis.set(xlim=(0, top), ylim=(-0.05 * top, top),
             xlabel="spectroscopic redshift z", ylabel="photo-z (catalogue)")  # fmt: skip
    outside = int((~both["photoz"].between(-0.05 * top, top)).sum())
    error = ((both["photoz"] - both["z"]) / (1 + both["z"])).to_numpy()
    spread = 1.4826 * np.median(np.abs(error - np.median(error)))
    beyond = f" ({outside:,} beyond the axes)" if outside else ""
    axis.set_title(rf"Photo-z: $\sigma_{{\rm MAD}}$ = {spread:.4f}{beyond}")


def _histogram(axis: Axes, galaxies: pd.DataFrame, name: str, label: str) -> None:
    values = galaxies[name].dropna()
    bins = int(np.clip(np.sqrt(len(values)) * 1.5, 5, 60))
    axis.hist(values, bins=bins, color="#56789a", edgecolor="white", linewidth=0.4)
    axis.set(xlabel=label, ylabel="galaxies")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_title(f"{len(values):,} of {galaxies_in_words(len(galaxies))}")


def galaxies_in_words(count: int) -> str:
    """`1 galaxy`, `2 galaxies`, `1,000 galaxies`."""
    return f"{count:,} galax{'y' if count == 1 else 'ies'}"


def _words(text: str) -> Figure:
    figure = Figure(figsize=(6, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def save(figures: dict[str, Figure], folder: Path) -> None:
    """Write each figure as PNG, whole, without date or version in it."""
    for name, figure in figures.items():
        with run.whole_file(folder / f"{name}.png") as part:
            figure.savefig(part, dpi=120, metadata={"Software": None})


def main(argv: list[str] | None = None) -> None:
    """Command line: see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.pictures",
        description="Draw a contact sheet of stamps, a map of the sky, the funnel of the "
        "catalogue's cuts, and magnitudes against redshift, as PNG files.",
    )
    parser.add_argument("--dataset", required=True, help="dataset.json, its shards beside it")
    parser.add_argument("--catalog", required=True, help="the catalogue they were made from")
    parser.add_argument("--fields", help="table of fields; draws their footprints on the map")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    args = parser.parse_args(argv)
    catalog = manifest.read_catalog(args.catalog, ("objID", "split"), _COLUMNS)
    table = fields.read_fields(args.fields) if args.fields else None
    if table is not None and not fields.has_geometry(table):
        run.log.warning("%s: says not where fields lie; the map goes without them", args.fields)
        table = None
    save(draw(args.dataset, catalog, table), Path(args.output))
    run.log.info("pictures: %s in %s", ", ".join(PICTURES), args.output)


if __name__ == "__main__":
    run.start(main)
