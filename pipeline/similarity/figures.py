"""What the figures of a search show: which queries, their neighbours, the outliers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.images.gallery import gallery, mosaic
from pipeline.images.reader import ImageSet
from pipeline.images.shard import SPLITS
from pipeline.run import UserError
from pipeline.similarity.neighbours import Neighbours, nearest
from pipeline.similarity.vectors import Vectors

QUERIES = 8
"""Rows of the gallery."""
SHOWN = 5
"""Neighbours of each query, as in Fig. 1 of Hayat et al. 2020."""
OUTLIERS = 20
ANY = "any"
"""In place of a split: queries from the whole set, and neighbours too."""


def choose_queries(table: pd.DataFrame, split: str, count: int = QUERIES) -> np.ndarray:
    """Rows of `count` galaxies of a split (or any), spread evenly over the redshifts they have.

    Raises:
        UserError: the set has no galaxy of that split.
    """
    chosen = (table["split"] == split).to_numpy() | (split == ANY)
    if not chosen.any():
        there = [name for name in SPLITS if (table["split"] == name).any()]
        raise UserError(
            f"queries: {split}, but the set has no galaxy of that split; "
            f"choose {' or '.join([*there, ANY])}"
        )
    z, objid = table["z"].to_numpy(), table["objID"].to_numpy()
    known = chosen & np.isfinite(z)
    rows = np.flatnonzero(known if known.any() else chosen)
    rows = rows[np.lexsort((objid[rows], z[rows]))]
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]


def draw_gallery(vectors: Vectors, images: ImageSet, split: str, apart: float) -> Figure:
    """Galaxies of `split`, each with its nearest among all other splits, as the paper's Fig. 1.

    Raises:
        UserError: no galaxy of that split, or too few of others.
    """
    table = vectors.table
    queries = choose_queries(table, split)
    others = np.flatnonzero(table["split"] != split)
    if not len(others):
        raise UserError(
            f"queries: {split}, but the set has galaxies of no other split to find; choose {ANY}"
        )
    found = nearest(vectors.unit, vectors.positions(), min(SHOWN, len(others)), queries, others,
                    table["objID"].to_numpy(), apart)  # fmt: skip
    lines = np.column_stack([queries, found.rows])
    galaxies = [
        _galaxies(table, line, similarity)
        for line, similarity in zip(lines, found.similarity, strict=True)
    ]
    stamps = stamps_of(vectors, images, lines.ravel())
    title = f"Galaxies of the {split} split and their nearest among all others"
    if split == ANY:
        title = "Galaxies and their nearest neighbours"
    stamps = stamps.reshape(*lines.shape, *stamps.shape[1:])
    return gallery(galaxies, stamps, vectors.crop, title, subtitle(vectors))


def draw_likes(vectors: Vectors, images: ImageSet, query: int, found: Neighbours) -> Figure:
    """The galaxy in row `query`, then its likes `found`, one query's."""
    rows = np.append(query, found.rows[0])
    objid = vectors.table["objID"].iloc[query]
    return mosaic(
        _galaxies(vectors.table, rows, found.similarity[0]), stamps_of(vectors, images, rows),
        vectors.crop, f"The likes of {objid}", subtitle(vectors), columns=7, framed=True,
    )  # fmt: skip


def draw_outliers(vectors: Vectors, images: ImageSet, outliers: pd.DataFrame) -> Figure:
    """The galaxies that are most alone, in order; `outliers` as `outliers.rank` gives them."""
    top = outliers.head(OUTLIERS)
    rows = pd.Index(vectors.table["objID"]).get_indexer(top["objID"])
    return mosaic(
        top.to_dict("records"), stamps_of(vectors, images, rows), vectors.crop,
        f"The {len(top)} of {len(outliers)} galaxies that are most alone", subtitle(vectors),
    )  # fmt: skip


def stamps_of(vectors: Vectors, images: ImageSet, rows: np.ndarray) -> np.ndarray:
    """The images (n, 5, size, size) of the galaxies in `rows` of the vectors.

    Raises:
        UserError: one has no image in the set.
    """
    objid = vectors.table["objID"].to_numpy()[rows]
    at = pd.Index(images.table["objID"]).get_indexer(objid)
    if (at < 0).any():
        raise UserError(
            f"galaxy {objid[int(at.argmin())]} of {vectors.path} has no image in "
            f"{images.files[0].parent}; give the set that the vectors were made from"
        )
    return images.read(at)


def subtitle(vectors: Vectors) -> str:
    """What was compared, and how to read the stamps."""
    return (
        f"{vectors.kind} vectors of {vectors.path.name}, compared by dot product\n"
        f"square: the {vectors.crop} pixels that the encoder sees; blue, green, red: g, r, i"
    )


def _galaxies(table: pd.DataFrame, rows: np.ndarray, similarity: np.ndarray) -> list[dict]:
    """The query as it is, and its neighbours with their similarity."""
    first, *others = table.iloc[rows].to_dict("records")
    return [first, *({**one, "similarity": s} for one, s in zip(others, similarity, strict=True))]
