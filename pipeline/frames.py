"""A shard's galaxies -> its corrected frames, in a folder with SAS's layout.

`fetch` brings them: from a folder as links; over HTTP they are fetched, checked in full (length,
bzip2 CRCs, FITS header against the name), and hard-linked out of a cache that all shards share. A
file that the archive does not have, or has damaged, is told in frames.json; its galaxies become
failures with that reason. `plan` says beforehand what a catalogue will take; `verify` and `repair`
are for a cache that has lain about.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import run
from pipeline.images.gather import check, gather, identity, read_shard
from pipeline.images.stamp import Stamp
from pipeline.run import UserError
from pipeline.survey import archive, estimate, measured, network
from pipeline.survey.cache import Store
from pipeline.survey.excerpt import SUFFIX, Excerpt
from pipeline.survey.names import frame_path, mask_path
from pipeline.survey.network import Manners
from pipeline.survey.room import Room
from pipeline.survey.transfer import Damaged, Tally


def fetch(args: argparse.Namespace) -> None:
    """Bring one shard's frames."""
    stamp = Stamp(args.size, args.fov)
    galaxies = read_shard(args.galaxies, args.shard)
    tally, began = Tally(), time.monotonic()
    options = _options(args) | {"tally": tally, "give_up": args.unreachable == "fail"}
    if args.disk_gb is not None:
        options["room"] = _room(args.disk_gb, [args.output.parent, options["cache"]])
    if args.let_go:
        shutil.rmtree(args.let_go, ignore_errors=True)
    with run.whole_folder(args.output) as folder:
        parts = stamp if args.parts else None
        losses = gather(galaxies, stamp.reach, args.root, folder, bool(args.mask), parts, **options)
        archive.write_record(folder, args.root, losses)
    absent = sum(loss.absent for loss in losses.values())
    run.log.info(
        "%s: frames of %d galaxies; %d files are not in the archive, %d are damaged",
        args.output, len(galaxies), absent, len(losses) - absent,
    )  # fmt: skip
    seconds = round(time.monotonic() - began, 3)
    facts = {"roots": args.root, "streams": args.streams, "seconds": seconds, **tally.facts()}
    run.write_provenance(args.output, **facts)


def plan(args: argparse.Namespace) -> None:
    """Say what fetching and cutting a catalogue will take."""
    stamp = Stamp(args.size, args.fov)
    planned = estimate.plan(
        args.galaxies, stamp.reach, bool(args.mask), args.mb_per_second, args.streams,
        args.seconds_per_frame, args.cores, window=args.window, cache_gb=args.cache_gb,
        size=args.size, disk_gb=args.disk_gb,
    )  # fmt: skip
    lines, facts = estimate.lines(planned), estimate.as_json(planned)
    if args.measured:
        rates = measured.measured(args.measured)
        lines += ["", *measured.whole(planned, rates)]
        facts |= {"measured": rates._asdict()}
    print("\n".join(lines))
    if args.output:
        run.write_json(facts, args.output)


DISK_GB = "GB that fetched frames, of all shards and the cache, may take at once (no bound)"
FOREIGN = "has no frame's or mask's name; move it away if it is yours, it is left alone"


def is_named(path: str) -> bool:
    """Whether a path is one that the archive has for a frame or a mask."""
    try:
        key = identity(path)
        return path in (frame_path(*key), mask_path(*key))
    except (ValueError, IndexError, KeyError):
        return False


def damaged_files(store: Store, workers: int) -> dict[str, str]:
    """Path -> reason of every stored file that is not what its name promises."""

    def reason(file: Path) -> str | None:
        path = str(file.relative_to(store.folder))
        try:
            if not is_named(path.removesuffix(SUFFIX)):
                return FOREIGN
            if path.endswith(SUFFIX):
                Excerpt.from_bytes(file.read_bytes())
            else:
                check(path, file.read_bytes())
        except (Damaged, ValueError) as error:
            return str(error)
        except FileNotFoundError:  # trimmed meanwhile
            return None
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return None

    if workers < 1:
        raise UserError(f"--workers {workers}: give at least one")
    files = sorted(store.files())
    progress = run.Progress("verify", len(files), "files")
    found = {}
    with ThreadPoolExecutor(workers) as pool:
        for file, why in zip(files, pool.map(reason, files), strict=True):
            progress.add()
            if why:
                found[str(file.relative_to(store.folder))] = why
                run.log.info("%s: %s", file, why)
    progress.close()
    return found


def verify(args: argparse.Namespace) -> None:
    """Check every file of a cache: exit status 1 if some are damaged or no frame's."""
    store = _store(args.cache)
    found = damaged_files(store, args.workers)
    if found:
        first = next(iter(found))
        raise UserError(
            f"{args.cache}: {len(found)} files are not right (the first: {first}: {found[first]}); "
            "python -m pipeline.frames repair fetches them anew"
        )


def repair(args: argparse.Namespace) -> None:
    """Fetch anew what is damaged in a cache, and ask again for what was absent."""
    store, options = _store(args.cache), _options(args)
    _, hosts = archive.split_roots(args.root)
    if not hosts:
        raise UserError(
            f"--root {' '.join(args.root)}: give the http(s):// root that the cache is of; files "
            "of a folder are used where they lie"
        )
    found = damaged_files(store, args.workers)
    wrong = {path for path, why in found.items() if why != FOREIGN} | set(store.absences())
    for path in wrong:
        store.forget(path.removesuffix(SUFFIX))
    paths = sorted(path for path in wrong if not path.endswith(SUFFIX))  # parts: when needed again
    losses = archive.deliver(paths, hosts, store.folder, check, **options)
    for path, loss in losses.items():
        run.log.info("%s: %s", path, loss.reason)
    run.log.info(
        "%s: %d files asked for again, %d are there now", args.cache, len(paths),
        len(paths) - len(losses),
    )  # fmt: skip


def _store(folder: Path) -> Store:
    if not folder.is_dir():
        raise UserError(f"--cache {folder}: no such folder; the default is results/frames/cache")
    return Store(folder)


def _options(args: argparse.Namespace) -> dict:
    """What `archive.deliver` is told by the flags."""
    if args.streams < 1:
        raise UserError(f"--streams {args.streams}: give at least one")
    if not args.cache_gb >= 0:
        raise UserError(f"--cache-gb {args.cache_gb}: give the GB that the cache may hold")
    cache = args.cache or args.output.parent / "cache"
    manners: Manners = network.manners(args)
    return {"cache": cache, "cache_gb": args.cache_gb, "streams": args.streams, "manners": manners}


def _room(disk_gb: float, folders: list[Path]) -> Room:
    if not 0 < disk_gb < float("inf"):
        raise UserError(f"--disk-gb {disk_gb}: give the GB that fetched frames may take at once")
    return Room(disk_gb, folders)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: see --help, and --help of each command."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.frames", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    cores = os.cpu_count() or 1

    command = _command(commands, fetch, _add_galaxies, _add_archive, network.add_flags)
    command.add_argument("--shard", required=True, type=int)
    command.add_argument("--output", required=True, type=Path, help="folder to put the frames in")
    command.add_argument("--cache", type=Path, help="folder of fetched files (beside the output)")
    command.add_argument("--disk-gb", type=float, help=DISK_GB)
    command.add_argument("--parts", action=argparse.BooleanOptionalAction,
        help="of a frame, ask for the bytes that hold its stamps' rows: half of them and less, in "
        "two or three requests")  # fmt: skip
    command.add_argument("--let-go", type=Path, metavar="FOLDER",
        help="frames of a shard whose stamps are made: removed first, if there")  # fmt: skip
    command.add_argument("--unreachable", choices=("stop", "fail"), default="stop",
        help="files that do not come after all tries: stop, to go on another time, or count them "
        "as damaged (default %(default)s)")  # fmt: skip

    command = _command(commands, plan, _add_galaxies)
    add = command.add_argument
    add("--streams", type=int, default=5, help="downloads at a time (default %(default)s)")
    add("--mb-per-second", type=float, default=10.0,
        help="of all streams together (default %(default)g)")  # fmt: skip
    add("--seconds-per-frame", type=float, default=0.65,
        help="of one core, to decompress and cut (default %(default)g)")  # fmt: skip
    add("--cores", type=int, default=cores, help="that cut (default %(default)s)")
    add("--window", type=int, default=8, help="shards whose frames are there at once")
    add("--cache-gb", type=float, default=50.0, help="GB that the cache may hold")
    add("--disk-gb", type=float, help=DISK_GB)
    add("--measured", type=Path, nargs="+", metavar="JSON",
        help="*.provenance.json of frames and cutouts: what the whole survey would take at the "
        "rates measured there")  # fmt: skip
    add("--output", type=Path, metavar="JSON", help="the figures as a file too")

    command = _command(commands, verify, _add_cache)
    command = _command(commands, repair, _add_cache, _add_archive, network.add_flags)

    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    args.act(args)


def _command(commands, act, *adders) -> argparse.ArgumentParser:
    command = commands.add_parser(act.__name__, help=act.__doc__, description=act.__doc__)
    command.set_defaults(act=act)
    for add in adders:
        add(command)
    return command


def _add_galaxies(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--galaxies", required=True, help="the catalogue (Parquet)")
    add("--size", type=int, default=107, help="the stamps' pixels on a side")
    add("--fov", type=float, default=0.012, help="the stamps' degrees on a side")
    add("--mask", action=argparse.BooleanOptionalAction, help="fpM masks as well")


def _add_archive(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--root", required=True, nargs="+",
        help="archive: folder, file:// or http(s)://; mirrors in their order")  # fmt: skip
    add("--cache-gb", type=float, default=50.0, help="GB that the cache may hold")
    add("--streams", type=int, default=5, help="downloads at a time")


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cache", required=True, type=Path, help="folder of fetched files")
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1)


if __name__ == "__main__":
    run.start(main)
