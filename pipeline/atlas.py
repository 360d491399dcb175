"""Vectors -> a map of galaxies (UMAP): a table, a figure, and a page with their stamps."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import run
from pipeline.images import manifest
from pipeline.images.morphology import CLASSES, Votes, read_types
from pipeline.images.reader import ImageSet, open_set
from pipeline.similarity.atlas import draw
from pipeline.similarity.atlas_page import page, thumbnail
from pipeline.similarity.figures import stamps_of
from pipeline.similarity.umap_map import Projection, project, sample
from pipeline.similarity.vectors import (
    KINDS,
    WHITENED,
    Vectors,
    of_other_pixels,
    read_vectors,
)

_BLOCK = 256
"""Stamps in memory at a time."""
_COLUMNS = ["objID", "x", "y", "split", "z", "photoz", "petroMag_r", "type"]


def atlas(vectors: Vectors, rows: np.ndarray, how: Projection, types: np.ndarray) -> pd.DataFrame:
    """The map of the galaxies in `rows` of the vectors, a row each, in their order.

    Columns objID, x, y (float32), split, z, photoz, petroMag_r [mag] (null where unknown), ra,
    dec [deg] and type, of `types` (len(rows),): 1 early, 0 late, NaN unknown.

    Raises:
        UserError: there are no more galaxies than neighbours.
    """
    places = project(vectors.unit[rows], vectors.positions()[rows], how)
    table = vectors.table.iloc[rows].reset_index(drop=True)
    table["x"], table["y"] = places.T
    table["photoz"] = table["photoz"].where(table["photoz"] > -1)  # SDSS's -9999
    names = [None if np.isnan(one) else CLASSES[int(one)] for one in types]
    table["type"] = pd.array(names, dtype="str")
    return table


def types_of(catalog: str | None, objid: np.ndarray, votes: Votes) -> np.ndarray:
    """As `read_types`, but unknown for all, and a line that says so, where there are no votes.

    Raises:
        UserError: the catalogue cannot be read, or is that of other galaxies.
    """
    unknown = np.full(len(objid), np.nan)
    if catalog is None:
        run.log.info("atlas: no types, since no --catalog is given")
        return unknown
    manifest.catalogued(catalog, objid, ())
    try:
        types = read_types(catalog, objid, votes)
    except run.UserError as error:
        run.log.info("atlas: no types; %s", error)
        return unknown
    run.log.info("atlas: %d of %d galaxies have a type", np.isfinite(types).sum(), len(types))
    return types


def stamps(vectors: Vectors, images: ImageSet, rows: np.ndarray) -> pd.Series:
    """Thumbnails (JPEG, base64) of the galaxies in `rows` of the vectors, by objID.

    Raises:
        UserError: an image cannot be read.
    """
    made = []
    for first in range(0, len(rows), _BLOCK):
        block = stamps_of(vectors, images, rows[first : first + _BLOCK])
        made += [thumbnail(image) for image in block]
    return pd.Series(made, vectors.table["objID"].to_numpy()[rows], dtype=object)


def main(argv: list[str] | None = None) -> None:
    """Command line: see `--help`."""
    args = _arguments(argv)
    if args.galaxies < 0:
        raise run.UserError(f"galaxies: {args.galaxies}; give 1 or more, or 0 for all")
    if args.stamps < 1:
        raise run.UserError(f"stamps: {args.stamps}; give 1 or more")
    how = Projection(args.neighbours, args.min_dist, args.seed)
    votes = Votes(args.threshold, args.debiased, args.least_votes)
    vectors, images = read_vectors(args.embed, args.vectors), open_set(args.dataset)
    objid = vectors.table["objID"].to_numpy()
    _refuse_others(args, vectors, images)
    rows = sample(objid, args.galaxies)
    types = types_of(args.catalog, objid[rows], votes)
    progress = run.Progress("atlas", len(rows), "galaxies")
    table = atlas(vectors, rows, how, types)
    progress.add(len(rows))
    progress.close()
    shown = rows[sample(objid[rows], args.stamps)]
    write(args.output, table, stamps(vectors, images, shown), _words(vectors, table, how))
    run.write_provenance(Path(args.output) / "atlas.parquet")


def write(
    folder: str | Path, table: pd.DataFrame, shown: pd.Series, words: tuple[str, str]
) -> None:
    """Write atlas.parquet, .png and .html; `words` are their title and what is said below it."""
    with run.whole_file(Path(folder) / "atlas.parquet") as part:
        table[_COLUMNS].to_parquet(part, index=False)
    with run.whole_file(Path(folder) / "atlas.png") as part:
        draw(table, *words).savefig(part, format="png", metadata={"Software": None})
    content = page(table, shown, *words).encode()
    with run.whole_file(Path(folder) / "atlas.html") as part:
        part.write_bytes(content)
    run.log.info("atlas: atlas.html has %d stamps, %.1f MB", len(shown), len(content) / 1e6)


def _words(vectors: Vectors, table: pd.DataFrame, how: Projection) -> tuple[str, str]:
    count = f"{len(table)} of " if len(table) < len(vectors.table) else ""
    return (
        f"Atlas of {count}{len(vectors.table)} galaxies",
        f"UMAP of the {vectors.kind} vectors of {vectors.path.name}, by cosine: {how.neighbours} "
        f"neighbours, min_dist {how.min_dist:g}, seed {how.seed}\n"
        "what lies side by side is alike; the axes, and distances across the map, mean nothing",
    )


def _refuse_others(args: argparse.Namespace, vectors: Vectors, images: ImageSet) -> None:
    objid = vectors.table["objID"].to_numpy()
    others = objid[~np.isin(objid, images.objid)]
    if len(others):
        raise run.UserError(
            f"{args.embed}: galaxy {others[0]} is not in {args.dataset} ({len(others)} such); "
            "give the dataset that the vectors were made from"
        )
    if of_other_pixels(vectors, images):
        raise run.UserError(f"{args.embed}: vectors of other images of these galaxies than those "
                            f"of {args.dataset}; run embed on this one")  # fmt: skip


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.atlas",
        description="A map of galaxies, the alike near each other (UMAP): atlas.parquet, "
        "atlas.png, and atlas.html, which shows their stamps in a browser, without a network.",
    )
    parser.add_argument("--embed", required=True, metavar="E.h5", help="vectors that embed wrote")
    parser.add_argument("--dataset", required=True, help="dataset.json of the set, for the stamps")
    parser.add_argument("--output", required=True, help="folder for the table, figure and page")
    parser.add_argument("--catalog", help="catalog.parquet with the votes of Galaxy Zoo, for types")
    parser.add_argument("--galaxies", type=int, default=20000, metavar="N",
                        help="on the map, chosen by a hash of objID; 0 = all (20000)")  # fmt: skip
    parser.add_argument("--stamps", type=int, default=2000, metavar="N",
                        help="of these shown on the page, some 3 kB each (2000)")  # fmt: skip
    parser.add_argument("--vectors", choices=(*KINDS, WHITENED),
                        help="which to map (contrastive, where the file has them)")  # fmt: skip
    parser.add_argument("--neighbours", type=int, default=15, metavar="N",
                        help="few show detail, many the whole (15)")  # fmt: skip
    parser.add_argument("--min-dist", type=float, default=0.1, metavar="D",
                        help="how close points may lie, 0 to 1 (0.1)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="same seed, same map (0)")
    parser.add_argument("--threshold", type=float, default=0.8, metavar="SHARE",
                        help="of the votes, above which a galaxy is of a type (0.8)")  # fmt: skip
    parser.add_argument("--debiased", action=argparse.BooleanOptionalAction, default=True,
                        help="of votes corrected for distance and size (yes)")  # fmt: skip
    parser.add_argument("--least-votes", type=int, default=1, metavar="N",
                        help="fewer tell nothing (1)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    run.start(main)
