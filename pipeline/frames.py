"""A shard's galaxies -> its corrected frames, in a folder with SAS's layout.

From a folder they are links. Over HTTP they are fetched, checked in full (length, bzip2 CRCs,
FITS header against the name), and hard-linked out of a cache that all shards share. A file that
does not come is told in frames.json; its galaxies become failures with that reason.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import run
from pipeline.images.gather import gather, read_shard
from pipeline.images.stamp import Stamp
from pipeline.run import UserError
from pipeline.survey import archive


def main(argv: list[str] | None = None) -> None:
    """Bring one shard's frames, from the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.frames", description=__doc__)
    parser.add_argument("--galaxies", required=True, help="the catalogue (Parquet)")
    parser.add_argument("--shard", required=True, type=int)
    parser.add_argument("--root", required=True, help="archive: folder, file:// or http(s)://")
    parser.add_argument("--output", required=True, type=Path, help="folder to put the frames in")
    parser.add_argument("--cache", type=Path, help="folder of fetched files (beside the output)")
    parser.add_argument("--cache-gb", type=float, default=50.0, help="GB that the cache may hold")
    parser.add_argument("--streams", type=int, default=5, help="downloads at a time")
    parser.add_argument("--size", type=int, default=107, help="the stamps' pixels on a side")
    parser.add_argument("--fov", type=float, default=0.012, help="the stamps' degrees on a side")
    parser.add_argument("--mask", action=argparse.BooleanOptionalAction, help="fpM masks as well")
    args = parser.parse_args(argv)

    if args.streams < 1:
        raise UserError(f"--streams {args.streams}: give at least one")
    stamp = Stamp(args.size, args.fov)
    galaxies = read_shard(args.galaxies, args.shard)
    cache = args.cache or args.output.parent / "cache"
    options = {"cache": cache, "cache_gb": args.cache_gb, "streams": args.streams}
    if archive.local_root(args.root) is not None:
        options = {}
    with run.whole_folder(args.output) as folder:
        losses = gather(galaxies, stamp.reach, args.root, folder, bool(args.mask), **options)
        archive.write_record(folder, args.root, losses)
    absent = sum(loss.absent for loss in losses.values())
    run.log.info(
        "%s: frames of %d galaxies; %d files are not in the archive, %d are damaged",
        args.output, len(galaxies), absent, len(losses) - absent,
    )  # fmt: skip


if __name__ == "__main__":
    run.start(main)
