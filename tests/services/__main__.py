"""The services in a process of their own: `python -m tests.services --help`."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from pathlib import Path

from . import Faults, Services
from .faults import KINDS


def main(argv: list[str] | None = None) -> None:
    """Print one line of JSON with the addresses, then serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=main.__doc__)
    add = parser.add_argument
    add("--database", type=Path, required=True, help="a DuckDB file with DR12's tables")
    add("--archive", type=Path, required=True, help="the folder that has boss/ in it")
    add("--work", type=Path, required=True, help="folder of MyDBs, jobs and log; kept")
    add("--port", type=int, default=0, help="0: any that is free")
    add("--faults", type=float, default=0.0, metavar="RATE", help="share of requests that fail")
    add("--kinds", nargs="+", choices=KINDS, help="only these kinds of fault")
    add("--seed", type=int, default=0)
    add("--gone", type=float, default=0.0, help="share of frames that are lost")
    add("--delay", type=float, default=0.0, metavar="S", help="seconds before each answer")
    add("--user", default="astronomer")
    add("--password", default="secret")
    add("--token-seconds", type=float, default=3600)
    add("--job-seconds", type=float, default=0.2)
    add("--row-limit", type=int, default=500_000, help="SkyServer's")
    add("--queries-a-minute", type=int, default=60, help="SkyServer's, of each client")
    flags = parser.parse_args(argv)
    kinds = tuple(flags.kinds) if flags.kinds else None
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    with Services(
        database=flags.database, archive=flags.archive, work=flags.work, port=flags.port,
        faults=Faults(flags.faults, flags.seed, kinds), gone=flags.gone, delay=flags.delay,
        accounts={flags.user: flags.password}, token_seconds=flags.token_seconds,
        job_seconds=flags.job_seconds, row_limit=flags.row_limit,
        queries_a_minute=flags.queries_a_minute,
    ) as services:  # fmt: skip
        names = ("url", "casjobs", "login", "skyserver", "sas")
        print(json.dumps({name: getattr(services, name) for name in names}), flush=True)
        end.wait()


if __name__ == "__main__":
    main()
