"""Images and an encoder -> vectors: one file with a representation of every galaxy."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pipeline import run
from pipeline.images.reader import ImageSet, open_set, warn_of_dust
from pipeline.learning import embedding
from pipeline.learning.augment import TURNS, check_crop
from pipeline.learning.checkpoint import load_encoder, projection
from pipeline.learning.encoder import Encoder, Projection
from pipeline.learning.ranks import choose_device, use_threads
from pipeline.similarity.vectors import VectorWriter


def write_vectors(
    images: ImageSet,
    encoder: Encoder,
    head: Projection | None,
    path: str | Path,
    dtype: str = "float32",
    attrs: dict | None = None,
    **options,
) -> None:
    """Write the vectors of all `images`, every split, in their order.

    `options` are those of `learning.embedding.embed`; `attrs` go to the file's attributes.

    Raises:
        UserError: see `embed`; or a vector that does not fit `dtype`.
    """
    sizes = {"pooled": encoder.feature_dim}
    if head is not None:
        sizes["contrastive"] = head[-1].out_features
    with VectorWriter(path, images.table, sizes, dtype, attrs) as writer:
        for first, block in embedding.embed(images, encoder, head, **options):
            worst = float(np.abs(block["pooled"]).max())
            if worst > float(np.finfo(dtype).max):
                raise run.UserError(f"a vector holds {worst:.0f}, too much for {dtype}; "
                                    "set dtype to float32")  # fmt: skip
            writer.write(first, block)


def main(argv: list[str] | None = None) -> None:
    """Command line: see `--help`."""
    args = _arguments(argv)
    if args.batch < 1:
        raise run.UserError(f"batch: {args.batch}; give 1 or more")
    use_threads(args.threads)
    device = choose_device(args.device)
    encoder, extra = load_encoder(args.encoder)
    head = projection(args.encoder, extra)
    if head is None:
        run.log.info("embed: %s has no projection head; pooled vectors only", args.encoder)
    if extra.get("deredden", args.deredden) != args.deredden:
        run.log.warning("embed: %s was trained with deredden %s, not %s", args.encoder,
                        extra["deredden"], args.deredden)  # fmt: skip
    images = open_set(args.images or args.dataset)
    check_crop(encoder.spec.crop, images.size)
    if args.deredden:
        warn_of_dust(images)
    attrs = {
        "encoder_sha256": run.sha256(args.encoder), "net": encoder.spec.net,
        "crop": encoder.spec.crop, "deredden": args.deredden, "turns": args.turns,
    }  # fmt: skip
    if args.dataset:  # loose files have no name that lasts
        attrs["data"] = images.digest
    with run.whole_file(args.output) as part:
        write_vectors(
            images, encoder, head, part, args.dtype, attrs,
            deredden=args.deredden, turns=args.turns, batch=args.batch, workers=args.workers,
            device=device,
        )  # fmt: skip
    run.write_provenance(args.output, device=device.type, batch=args.batch, workers=args.workers)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.embed",
        description="Write the vectors that an encoder makes of every image of a set.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", help="dataset.json of the set")
    source.add_argument("--images", nargs="+", metavar="F.h5",
                        help="instead: shards, export files, the paper's file")  # fmt: skip
    parser.add_argument("--encoder", required=True, help="encoder.pt, or the paper's checkpoint")
    parser.add_argument("--output", required=True, help="file of vectors to write (HDF5)")
    parser.add_argument("--deredden", action=argparse.BooleanOptionalAction, default=True,
                        help="correct the images for Galactic extinction (yes)")  # fmt: skip
    parser.add_argument("--turns", type=int, choices=TURNS, default=1,
                        help="8: average over turns and reflections of the stamp (1)")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32",
                        help="type of the vectors in the file (float32)")  # fmt: skip
    parser.add_argument("--batch", type=int, default=256, help="images at a time (256)")
    parser.add_argument("--workers", type=int, default=0,
                        help="processes that read images (0: this one does)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 = its own choice (0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run.start(main)
