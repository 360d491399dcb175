"""The room that fetched frames may take, of all shards and the cache together."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.run import UserError
from pipeline.survey.cache import Store

SHARE = 0.01
"""Of the room: what may come between two looks at the disk, and what is freed beyond need."""


def taken(folders: Iterable[Path]) -> int:
    """Bytes on the disk of all files below `folders`: hard links count once, symbolic ones not."""
    seen = {(facts.st_dev, facts.st_ino): facts.st_blocks * 512 for facts in _facts(folders)}
    return sum(seen.values())


def _facts(folders: Iterable[Path]) -> Iterator[os.stat_result]:
    for top in folders:
        for folder, _, names in os.walk(top):
            for name in names:
                try:
                    facts = os.lstat(os.path.join(folder, name))
                except FileNotFoundError:  # let go meanwhile
                    continue
                if stat.S_ISREG(facts.st_mode):
                    yield facts


class Room:
    """At most `cap_gb` GB below `folders`. The plan keeps to it beforehand; this sees to it where
    frames are larger than it thought, or folders are there that it did not know of.
    """

    def __init__(self, cap_gb: float, folders: Iterable[Path]):
        self.cap, self.folders = cap_gb * 1e9, list(folders)
        self.next_look = 0.0

    def watch(self, store: Store, arrived: int) -> None:
        """Look whether there is room still, when so many bytes have arrived in all.

        Where there is none, `store` lets go what no shard holds.

        Raises:
            UserError: that does not suffice.
        """
        if arrived < self.next_look:
            return
        left = self.cap - taken(self.folders)
        if left < 0:
            store.release(SHARE * self.cap - left)
            left = self.cap - taken(self.folders)
        if left < 0:
            raise UserError(
                f"{self.folders[0]}: fetched frames take {(self.cap - left) / 1e9:.3g} GB, and "
                f"frames: disk_gb allows {self.cap / 1e9:.3g}; run again when the shards that are "
                "here are cut (snakemake does that first), raise disk_gb, or see whether folders "
                "of frames are left there that no shard needs (snakemake --delete-temp-output)"
            )
        self.next_look = arrived + max(left / 2, SHARE * self.cap)
