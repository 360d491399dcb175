"""Vectors -> nearest neighbours and outliers of a whole set; or the likes of one galaxy.

python -m pipeline.search --embed E.h5 --dataset D.json --output FOLDER    the whole set;
python -m pipeline.search --embed E.h5 --like OBJID|RA,DEC -k 20    one galaxy, for a person.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline import run
from pipeline.images.reader import ImageSet, open_set
from pipeline.images.shard import SPLITS
from pipeline.similarity import figures, like
from pipeline.similarity.neighbours import APART, nearest
from pipeline.similarity.outliers import loneliness, rank
from pipeline.similarity.vectors import KINDS, WHITENED, Vectors, read_vectors


def search(vectors: Vectors, k: int, apart: float = APART) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Neighbours and outliers of a whole set.

    The neighbours, by objID and rank: objID, rank (from 1), neighbour (its objID) and
    similarity. The outliers are all galaxies, the most alone first, by 1 - the mean similarity
    to the `k` nearest. Whatever lies within `apart` [arcsec] of a galaxy is no neighbour of it.

    Raises:
        UserError: a galaxy has fewer than `k` others to choose from.
    """
    objid = vectors.table["objID"].to_numpy()
    found = nearest(vectors.unit, vectors.positions(), k, objid=objid, apart=apart)
    order = np.argsort(objid, kind="stable")
    neighbours = pd.DataFrame(
        {
            "objID": np.repeat(objid[order], k),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), len(objid)),
            "neighbour": objid[found.rows[order]].ravel(),
            "similarity": found.similarity[order].astype(np.float32).ravel(),
        }
    )
    return neighbours, rank(vectors.table, loneliness(found.similarity))


def search_set(args: argparse.Namespace, vectors: Vectors, images: ImageSet) -> None:
    """Write the neighbours, the outliers and a figure of each to the folder `args.output`."""
    gallery = figures.draw_gallery(vectors, images, args.queries, args.apart)
    neighbours, outliers = search(vectors, args.k, args.apart)
    folder = Path(args.output)
    for name, table in (("neighbours", neighbours), ("outliers", outliers)):
        with run.whole_file(folder / f"{name}.parquet") as part:
            table.to_parquet(part, index=False)
    save_figure(gallery, folder / "gallery.png")
    save_figure(figures.draw_outliers(vectors, images, outliers), folder / "outliers.png")
    run.write_provenance(folder / "neighbours.parquet", threads=args.threads)


def search_one(args: argparse.Namespace, vectors: Vectors, images: ImageSet | None) -> None:
    """Print the likes of the galaxy `args.like`, and draw them where a picture is asked for."""
    query = like.find(args.like, vectors.table, args.radius, args.embed)
    objid = vectors.table["objID"].to_numpy()
    found = nearest(vectors.unit, vectors.positions(), args.k, [query], objid=objid,
                    apart=args.apart)  # fmt: skip
    table = like.likes(vectors.table, query, found.rows[0], found.similarity[0])
    print(like.in_words(vectors.table, query, table, vectors.kind))
    if images is not None:
        save_figure(figures.draw_likes(vectors, images, query, found), args.picture)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole; nothing in it tells versions or dates."""
    with run.whole_file(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})


def main(argv: list[str] | None = None) -> None:
    """Command line: see `--help`."""
    args = _arguments(argv)
    images = args.images or args.dataset
    if args.like and args.picture and not images:
        raise run.UserError("picture: needs the images; give --dataset or --images too")
    if args.output and not images:
        raise run.UserError("output: the figures need the images; give --dataset or --images too")
    for name in ("apart", "radius", "threads"):
        if not 0 <= getattr(args, name) < np.inf:
            raise run.UserError(f"{name}: {getattr(args, name)}; give 0 or more")
    if args.threads:
        faiss.omp_set_num_threads(args.threads)
    vectors = read_vectors(args.embed, args.vectors)
    if args.output:
        search_set(args, vectors, open_set(images))
    else:
        search_one(args, vectors, open_set(images) if args.picture else None)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.search",
        description="Nearest neighbours by dot product: of every galaxy of a set (--output), with "
        "its outliers, or of one galaxy (--like), printed.",
    )
    parser.add_argument("--embed", required=True, metavar="E.h5", help="vectors that embed wrote")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--output", help="search the whole set; folder for tables and figures")
    mode.add_argument("--like", metavar="OBJID|RA,DEC", help="search the likes of this galaxy")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--dataset", help="dataset.json of the set, for the figures")
    source.add_argument("--images", nargs="+", metavar="F.h5", help="instead: files of images")
    parser.add_argument("-k", "--k", type=int, default=10, help="neighbours of each galaxy (10)")
    parser.add_argument("--vectors", choices=(*KINDS, WHITENED),
                        help="which to compare; whitened: the pooled ones, turned and scaled "
                        "so that all their directions count alike (contrastive, where the file "
                        "has them)")  # fmt: skip
    parser.add_argument("--apart", type=float, default=APART, metavar="ARCSEC",
                        help=f"what is closer to a galaxy is part of it ({APART:g})")  # fmt: skip
    parser.add_argument("--queries", choices=(*SPLITS, figures.ANY), default="test",
                        help="with --output: of which split its queries are (test)")  # fmt: skip
    parser.add_argument("--radius", type=float, default=5.0, metavar="ARCSEC",
                        help="with --like RA,DEC: how far off it may be (5)")  # fmt: skip
    parser.add_argument("--picture", metavar="F.png", help="with --like: draw them too")
    parser.add_argument("--threads", type=int, default=0, help="of faiss; 0 = its own choice (0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run.start(main)
