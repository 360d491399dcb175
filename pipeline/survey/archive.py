"""The archive: roots that are folders, file:// or http(s)://, with SAS's own layout beneath.

`deliver` brings files from them into a folder. From a folder they are linked; over HTTP they
are fetched with bounded concurrency, checked, given their name in a cache only when they are
whole, and linked from there. What the archive does not have, or has damaged, is told with its
reason; what may come another time ends the stage, which goes on from there when it is run again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import unquote, urlparse

from pipeline.run import Progress, UserError, write_json
from pipeline.survey.cache import REFUSED, Store
from pipeline.survey.network import GaveUp, Manners, NoWay
from pipeline.survey.parts import FetchParts, Wants
from pipeline.survey.room import Room
from pipeline.survey.transfer import ABSENT, Check, Fetch, Forbidden, Loss, Tally

MANY = 20
"""More files than a run's end lacks: where none of so many is there, that is not remembered."""
RECORD = "frames.json"
"""In a folder of frames: the roots they are from, and why files are not there."""


def write_record(folder: Path, roots: Sequence[str], losses: dict[str, Loss]) -> None:
    """Leave in a folder of frames where they are from, and which did not come and why."""
    content = {path: loss._asdict() for path, loss in sorted(losses.items())}
    write_json({"root": list(roots), "losses": content}, folder / RECORD)


def read_record(folder: Path, fetched: bool = False) -> tuple[list[str], dict[str, Loss] | None]:
    """(roots, losses) as `write_record` left them; of any other folder itself and None.

    With `fetched` it is no other folder.

    Raises:
        UserError: it is `fetched` and has no record: it is being removed, or not whole.
    """
    try:
        content = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        if fetched:
            raise UserError(
                f"{folder}: has no {RECORD}: no folder of `frames fetch`, or another job of this "
                "shard has let it go; run again to go on"
            ) from None
        return [str(folder)], None
    return content["root"], {path: Loss(**loss) for path, loss in content["losses"].items()}


def local_root(root: str) -> Path | None:
    """The folder that a root is, or None if it is http(s).

    Raises:
        UserError: the folder is not there, or the root is of no known kind.
    """
    try:
        kind = urlparse(root)
    except ValueError as error:
        raise UserError(f"frames: root: {root}: {error}; give a folder or a URL") from None
    if kind.scheme in ("http", "https"):
        return None
    if kind.scheme not in ("", "file"):
        raise UserError(f"frames: root: {root}: give a folder, file:// or http(s)://")
    folder = Path(unquote(kind.path)) if kind.scheme else Path(root)
    if not folder.is_dir():
        raise UserError(f"frames: root: {root}: no such folder; it holds SAS's boss/photoObj/...")
    return folder


def split_roots(roots: Sequence[str]) -> tuple[list[Path], tuple[str, ...]]:
    """The roots that are folders, and those that are http(s), each in their order.

    Raises:
        UserError: as `local_root`.
    """
    folders = [local_root(root) for root in roots]
    hosts = (root.rstrip("/") for root, folder in zip(roots, folders, strict=True) if not folder)
    return [folder for folder in folders if folder], tuple(dict.fromkeys(hosts))


def deliver(
    paths: Iterable[str],
    roots: Sequence[str],
    folder: Path,
    check: Check,
    cache: Path | None = None,
    cache_gb: float = 50.0,
    streams: int = 5,
    manners: Manners = Manners(),  # noqa: B008 (frozen)
    give_up: bool = False,
    tally: Tally | None = None,
    room: Room | None = None,
    wants: Wants | None = None,
) -> dict[str, Loss]:
    """Put the files `paths` of the archive into `folder`; return those that failed.

    `roots` are tried in their order. Files of a local root are symbolic links and are checked
    when they are read; others come through `cache` (default: `folder`/.cache), where at most
    `cache_gb` GB stay. `tally` counts what it took; `room` is not exceeded.
    With `wants` only those parts of the files come over HTTP that it asks for, as `Excerpt`s in
    files with `SUFFIX` after their names, unless the whole file is there or the server gives it.

    Raises:
        UserError: the archive cannot be reached, or forbids it; or files did not come after so
            many tries, unless `give_up` (then they are losses); or there is no room. What has come
            stays in the cache.
    """
    paths = list(paths)
    folders, hosts = split_roots(roots)
    missing = [path for path in paths if not _link_local(path, folders, folder)]
    if not hosts or not missing:
        return dict.fromkeys(missing, Loss(True, ABSENT))
    store = Store(cache or folder / ".cache", cache_gb)
    tally = tally or Tally()
    if reason := store.refused():
        raise UserError(f"{reason} (said to another job a while ago; to ask again at once, remove "
                        f"{store.folder / REFUSED})")  # fmt: skip
    with manners.client() as client:
        how = client, hosts, store, folder, check, manners, streams, tally
        fetch = FetchParts(wants, *how) if wants else Fetch(*how)
        try:
            losses, given_up, down = _fetch_all(fetch, missing, streams, room)
        except Forbidden as forbidden:
            store.note_refused(str(forbidden))
            raise
    store.trim()
    if given_up and (down or not give_up):
        first = str(next(iter(given_up.values())))
        raise UserError(first if len(given_up) == 1 else f"{first} ({len(given_up)} files so)")
    if len(losses) == len(missing) > MANY and all(loss.absent for loss in losses.values()):
        for path in losses:  # likelier no root, or one in disorder: to be asked again
            store.forget(path)
    return losses | {path: Loss(False, str(why)) for path, why in given_up.items()}


def _fetch_all(
    fetch: Fetch, paths: list[str], streams: int, room: Room | None
) -> tuple[dict[str, Loss], dict[str, GaveUp], bool]:
    """What `fetch` says of the paths, those that it gave up, and whether the archive is down.

    Twice the streams are threads: while one file is verified, another comes. The archive is down
    where it cannot be reached, or as many files as streams were given up and none came after; the
    rest is not tried then.
    """
    losses: dict[str, Loss] = {}
    given_up: dict[str, GaveUp] = {}
    down = False
    if room:
        room.watch(fetch.store, fetch.tally.bytes)
    progress = Progress("frames", len(paths), "files")
    pool = ThreadPoolExecutor(2 * streams)
    futures = {pool.submit(fetch, path): path for path in paths}
    in_a_row = 0
    try:
        for future in as_completed(futures):
            try:
                loss = future.result()
                in_a_row = 0
            except GaveUp as gave_up:
                given_up[futures[future]] = gave_up
                in_a_row += 1
                down = in_a_row == streams or isinstance(gave_up, NoWay)
                if down:
                    break
                continue
            if loss:
                losses[futures[future]] = loss
            progress.add(note=_amount(fetch.tally, progress))
            if room:
                room.watch(fetch.store, fetch.tally.bytes)
    finally:
        fetch.stop.set()
        pool.shutdown(cancel_futures=True)
    progress.close(note=_amount(fetch.tally, progress))
    return losses, given_up, down


def _amount(tally: Tally, progress: Progress) -> str:
    rate = tally.bytes / 1e6 / max(progress.elapsed, 1e-9)
    return f"{tally.bytes / 1e6:,.0f} MB, {rate:.1f} MB/s"


def _link_local(path: str, roots: list[Path], folder: Path) -> bool:
    """Link the file from the first root that has it; False where none has."""
    for root in roots:
        source = (root / path).resolve()
        if source.is_file():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                target.symlink_to(source)
            return True
    return False
