"""What was asked of the services: one record a request, in memory and in `requests.jsonl`."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import NamedTuple


class Request(NamedTuple):
    """One request. `length`: bytes that the whole body has; `status` 0: no answer was begun."""

    time: float
    method: str
    path: str
    query: str
    status: int
    fault: str | None
    sent: int
    length: int
    whole: bool
    range: str | None
    user_agent: str | None


class Log:
    """The records, oldest first; no bodies, passwords or tokens."""

    def __init__(self, file: Path):
        self._file = open(file, "a", buffering=1)  # noqa: SIM115 (closed by close)
        self._lock = threading.Lock()
        self._requests: list[Request] = []

    def add(self, request: Request) -> None:
        """Keep a record."""
        with self._lock:
            self._requests.append(request)
            if not self._file.closed:
                self._file.write(json.dumps(request._asdict()) + "\n")

    def requests(self) -> list[Request]:
        """A copy of the records."""
        with self._lock:
            return list(self._requests)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


def without_tokens(target: str) -> str:
    """A path or query string in which tokens are stars."""
    target = re.sub(r"(?i)(/tokens/)[^/?]+", r"\1***", target)
    return re.sub(r"(?i)(token=)[^&]*", r"\1***", target)
