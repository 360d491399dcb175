"""What goes wrong, where, and when: drawn from a seed, whatever the order of the requests."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

_ALL = ("login", "query", "submit", "jobs", "casjobs", "skyserver", "frames", "sas")
_BODIES = ("query", "jobs", "skyserver", "frames", "sas")
WHERE: dict[str, tuple[str, ...]] = {
    "500": _ALL,
    "html": _ALL,
    "429": _ALL,
    "503": _ALL,
    "reset": _ALL,
    "stall": _ALL,
    "cut": _BODIES,
    "slow": _BODIES,
    "flip": ("frames",),
    "wrong-file": ("frames",),
    "expired": ("query", "submit", "jobs", "casjobs"),
    "finished-early": ("submit",),
    "cancelled": ("submit",),
    "mydb-full": ("submit",),
}
"""The services where each kind of fault can happen.

500, html, 429, 503: an error, a maintenance page with status 200, `Retry-After` or none. reset:
RST, before or after the request was carried out. stall: nothing comes until the client leaves.
cut: the body ends early, rows also at a line's end with a Content-Length that fits. slow: a few
bytes a second. flip, wrong-file: a frame with one wrong byte; another frame. expired: the token
ends. finished-early: a job says so before its table is whole. cancelled, mydb-full: a job's end.
"""
KINDS = tuple(WHERE)


@dataclass(frozen=True)
class Faults:
    """Of all requests, the share `rate` goes wrong; `kinds`: only these. One fault a request."""

    rate: float = 0.0
    seed: int = 0
    kinds: tuple[str, ...] | None = None

    def __post_init__(self):
        unknown = set(self.kinds or ()) - set(KINDS)
        if unknown:
            raise ValueError(f"no such kinds of fault: {sorted(unknown)}; there are {KINDS}")


class Fault(NamedTuple):
    """One fault of one service, and the random numbers for how it shows itself."""

    kind: str
    service: str
    draw: random.Random


class Dice:
    """Decides request by request; the same one asked again is another throw."""

    def __init__(self, faults: Faults):
        self._faults = faults
        self._asked: Counter[str] = Counter()

    def throw(self, service: str, *request: str | bytes) -> Fault | None:
        """The fault of a request to a service; `request` says all that is asked."""
        key = digest(*request)
        self._asked[key] += 1
        draw = random.Random(digest(self._faults.seed, key, self._asked[key]))
        kinds = [
            kind
            for kind, services in WHERE.items()
            if service in services and kind in (self._faults.kinds or KINDS)
        ]
        if draw.random() >= self._faults.rate or not kinds:
            return None
        return Fault(draw.choice(kinds), service, draw)


def digest(*parts: object) -> str:
    """One hash of several parts."""
    raw = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in raw)).hexdigest()


def share(*parts: object) -> float:
    """A number from 0 to 1 that follows from the parts."""
    return int(digest(*parts)[:13], 16) / 16**13
