"""The services of tests/services in a process of their own, for what asks them."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USER, PASSWORD = "astronomer", "a-password-to-be-found-nowhere"


@contextlib.contextmanager
def services(database: Path, archive: Path, work: Path, *more: object) -> Iterator[dict[str, str]]:
    """Start them over a survey; yields their addresses: url, casjobs, login, skyserver, sas.

    `work` keeps jobs, MyDBs and `requests.jsonl`; `more` are flags of `python -m tests.services`.
    """
    words = ["--database", database, "--archive", archive, "--work", work, "--user", USER,
             "--password", PASSWORD, *more]  # fmt: skip
    command = [sys.executable, "-m", "tests.services", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
