"""Many small files through the downloader, beside what its streams could carry and beside wget.

`python benchmarks/downloads.py` makes 2,000 frame files of a few kB (valid ones: bzip2, FITS, the
header that the name promises; all pixels alike), serves them by the services of the tests in a
process of its own, 50 ms before each answer, and brings them home. A plain loop over one connection
tells what a file takes; so many streams could carry so many times that. The table shows files a
second and the share of that bound, CPU, requests a minute and connections as the server saw them,
and the most memory and open files in the first and in the second half of the time: both should be
flat. The rows: with the files' hashes as the check; as frames are checked, in full; with the
default requests a minute; and `wget`, so many processes. The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from pipeline import run
from pipeline.images.gather import check
from pipeline.run import UserError
from pipeline.settings import ROOT
from pipeline.simulation.frame import ASTRANS, frame_content
from pipeline.survey import frame
from pipeline.survey.names import BANDS, FRAME_SHAPE, Field, frame_path

FILES, CHECKED, POLITE = 2000, 300, 200
"""Files of the row that counts, and of those that the check or the manners make slow."""
LATENCY = 0.05
STREAMS = 5
TARGET = 0.8
EVERY = 0.05
"""Seconds between two looks at memory, open files and connections."""
RUN, CAMCOL, FIRST = 1000, 1, 11


def paths_of(count: int) -> list[str]:
    """The paths of the first `count` frames."""
    fields = (Field(RUN, CAMCOL, FIRST + number) for number in range(-(-count // len(BANDS))))
    return [frame_path(field, band) for field in fields for band in BANDS][:count]


def write_frames(root: Path, count: int) -> list[str]:
    """Write frames that differ in their headers alone; what is alike is compressed once."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150, 2], [1025, 745]
    wcs.wcs.cd = np.diag([-1.1e-4, 1.1e-4])
    raw = frame_content(np.zeros(FRAME_SHAPE, np.float32), wcs, Field(RUN, CAMCOL, FIRST), "r")
    start, end = len(fits.Header.fromstring(raw).tostring()), len(raw) - frame.BLOCK
    header, middle = fits.Header.fromstring(raw[:start]), bz2.compress(raw[start:end])
    terms = np.frombuffer(raw, ASTRANS, 1, end).copy()
    paths = paths_of(count)
    for number, path in enumerate(paths):
        header["FILTER"] = terms["FILTER"] = BANDS[number % len(BANDS)]
        terms["FIELD"] = FIRST + number // len(BANDS)
        last = terms.tobytes().ljust(frame.BLOCK, b"\0")
        parts = (bz2.compress(header.tostring().encode()), middle, bz2.compress(last))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"".join(parts))
    for path in (paths[0], paths[-1]):
        check(path, (root / path).read_bytes())
    return paths


@contextlib.contextmanager
def services(archive: Path, work: Path) -> Iterator[str]:
    """The root of a SAS in a process of its own."""
    sys.path.append(str(ROOT / "tests"))
    import small_survey

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    database = small_survey.make(work / "survey.duckdb", photo=[{}])
    words = ["--database", database, "--archive", archive, "--work", work, "--delay", LATENCY]
    line = [sys.executable, "-m", "tests.services", *map(str, words)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield json.loads(server.stdout.readline())["sas"]
        finally:
            server.terminate()


def one_stream(root: str, paths: list[str]) -> float:
    """Seconds that a file takes over one connection that is kept, body included."""
    with httpx.Client(headers={"Accept-Encoding": "identity"}, trust_env=False) as client:
        client.get(f"{root}/{paths[0]}")
        began = time.monotonic()
        for path in paths:
            client.get(f"{root}/{path}").raise_for_status()
        return (time.monotonic() - began) / len(paths)


PROGRAM = """
import hashlib, json, resource, sys, time
from pathlib import Path
from pipeline.images import gather
from pipeline.survey import archive
from pipeline.survey.network import Manners
from pipeline.survey.transfer import Damaged, Tally

paths, root, folder, sums, streams, manners = json.load(sys.stdin)

def same(path, data):
    if hashlib.sha256(data).hexdigest() != sums[path]:
        raise Damaged("another hash")

def cpu():
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in each)

tally, used, began = Tally(), cpu(), time.monotonic()
losses = archive.deliver(paths, [root], Path(folder) / "out", same if sums else gather.check,
    Path(folder) / "cache", streams=streams, manners=Manners(**manners), tally=tally)
assert not losses, losses
print(json.dumps({"began": began, "ended": time.monotonic(), "cpu_s": cpu() - used,
                  "requests": tally.requests}))
"""


def ours(
    root: str, paths: list[str], folder: Path, streams: int, sums: dict | None, **manners
) -> dict:
    """Bring the files by `archive.deliver`; `sums`: their hashes, None to check them as frames."""
    order = json.dumps([paths, root, str(folder), sums, streams, manners])
    line = [sys.executable, "-c", PROGRAM]
    return _watched(line, order, root, folder / "out", paths)


def wget(root: str, paths: list[str], folder: Path, streams: int) -> dict:
    """Bring the files by so many processes of wget, some tens of files each."""
    each = max(len(paths) // streams // 8, 1)
    words = ["-q", "-x", "-nH", "--cut-dirs=2", "-P", str(folder / "out")]
    line = ["xargs", "-P", str(streams), "-n", str(each), "wget", *words]
    order = "\n".join(f"{root}/{path}" for path in paths)
    return _watched(line, order, root, folder / "out", paths)


def _watched(line: list[str], order: str, root: str, out: Path, paths: list[str]) -> dict:
    """Run a command with `order` on its stdin, watching it; that all files came is checked."""
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir(parents=True)
    before, began = _cpu_of_children(), time.monotonic()
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        looks: list[tuple] = []
        end = threading.Event()
        watcher = threading.Thread(target=_look, args=(process.pid, root, looks, end))
        watcher.start()
        said, _ = process.communicate(order)
        ended = time.monotonic()
        end.set()
        watcher.join()
    if process.returncode:
        raise UserError(f"{line[0]} ended with {process.returncode}")
    told = json.loads(said) if said else {"began": began, "ended": ended, "requests": len(paths)}
    told.setdefault("cpu_s", _cpu_of_children() - before)
    if not all((out / path).is_file() for path in paths):
        raise UserError(f"{line[0]}: not all files came")
    return _figures(told, looks, len(paths))


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _look(pid: int, root: str, looks: list[tuple], end: threading.Event) -> None:
    """(time, MB, open files, connections) again and again."""
    port = httpx.URL(root).port
    while not end.wait(EVERY):
        with contextlib.suppress(OSError, StopIteration, IndexError):
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            kb = next(int(row.split()[1]) for row in status if row.startswith("VmRSS:"))
            files = len(os.listdir(f"/proc/{pid}/fd"))
            looks.append((time.monotonic(), kb * 1024 / 1e6, files, _connections(port)))


def _connections(port: int) -> int:
    """Connections that are open at a port of this machine, from the server's side.

    The system lists them one after another: one that ends meanwhile and the next one may both be
    there, so that for a moment there can seem to be more than streams.
    """
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    here = f":{port:04X}"
    return sum(row[1].endswith(here) and row[3] == "01" for row in rows)


def _figures(told: dict, looks: list[tuple], count: int) -> dict:
    began, ended = told["began"], told["ended"]
    middle = (began + ended) / 2
    halves = [
        [look for look in looks if first <= look[0] <= last]
        for first, last in ((began, middle), (middle, ended))
    ]
    most = [[max((look[k] for look in half), default=0) for half in halves] for k in (1, 2, 3)]
    return {
        "files": count,
        "seconds": ended - began,
        "files_per_s": count / (ended - began),
        "cpu_ms_per_file": 1e3 * told["cpu_s"] / count,
        "requests": told["requests"],
        "peak_mb": most[0],
        "open_files": most[1],
        "connections": max(most[2]),
    }


def seen_by_server(work: Path, before: int) -> tuple[list[float], int]:
    """The times of the requests that the server has logged after the first `before`."""
    for _ in range(20):  # it logs a request when it has ended
        rows = (work / "requests.jsonl").read_text().splitlines()
        time.sleep(0.02)
    return [json.loads(row)["time"] for row in rows[before:]], len(rows)


def measure(root: str, paths: list[str], work: Path, args: argparse.Namespace) -> dict:
    """The figures of every row, by name."""
    sums = {
        path: hashlib.sha256((work / "archive" / path).read_bytes()).hexdigest() for path in paths
    }
    free = {"requests_per_minute": 1e6}
    rows = {
        "hashes checked": lambda out: ours(root, paths, out, args.streams, sums, **free),
        "frames checked": lambda out: ours(
            root, paths[: args.checked], out, args.streams, None, **free
        ),
        "default manners": lambda out: ours(root, paths[: args.polite], out, args.streams, sums),
        "wget": lambda out: wget(root, paths, out, args.streams),
    }
    if not shutil.which("wget"):
        del rows["wget"]
    seconds = one_stream(root, paths[: args.loop])
    bound = args.streams / seconds
    figures = {"one_stream_s_per_file": seconds, "bound_files_per_s": bound, "rows": {}}
    done = seen_by_server(work / "services", 0)[1]
    for name, bring in rows.items():
        row = bring(work / "out")
        times, done = seen_by_server(work / "services", done)
        row["requests_seen"] = len(times)
        row["most_in_a_minute"] = _most_within(times, 60.0)
        row["share"] = row["files_per_s"] / bound
        figures["rows"][name] = row
    shutil.rmtree(work / "out")
    return figures


def _most_within(times: list[float], seconds: float) -> int:
    times = np.sort(times)
    last = np.searchsorted(times, times + seconds)
    return int((last - np.arange(len(times))).max())


def report(figures: dict, streams: int) -> str:
    """The figures as a table."""
    head = (
        f"One stream takes {1e3 * figures['one_stream_s_per_file']:.1f} ms a file "
        f"({1e3 * LATENCY:.0f} ms before each answer): {streams} streams could carry "
        f"{figures['bound_files_per_s']:.1f} files/s."
    )
    names = ("files", "s", "files/s", "share", "CPU ms", "in a min", "conn.")
    columns = "".join(f"{name:>10}" for name in names)
    lines = [head, "", f"{'':16}{columns}{'MB':>14}{'open files':>12}"]
    for name, row in figures["rows"].items():
        mb = " / ".join(f"{value:.0f}" for value in row["peak_mb"])
        files = " / ".join(f"{value:.0f}" for value in row["open_files"])
        if name == "wget":  # xargs, not its processes
            mb = files = "-"
        lines.append(
            f"{name:16}{row['files']:10,}{row['seconds']:10.1f}{row['files_per_s']:10.1f}"
            f"{row['share']:10.0%}{row['cpu_ms_per_file']:10.1f}{row['most_in_a_minute']:10,}"
            f"{row['connections']:10}{mb:>14}{files:>12}"
        )
    lines += [
        "",
        "MB, open files: the most in the first / second half. CPU: of the client alone.",
        "in a min: most requests in any minute; conn.: most connections; both at the server.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Make the files, serve and bring them, and print the table and one line of JSON."""
    parser = argparse.ArgumentParser(prog="python benchmarks/downloads.py", description=__doc__)
    add = parser.add_argument
    add("--files", type=int, default=FILES, help="(default %(default)s)")
    add("--streams", type=int, default=STREAMS, help="(default %(default)s)")
    add("--work", type=Path, default=ROOT / "benchmarks/results/downloads", metavar="DIR",
        help="where files are kept (default %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.files < 1 or args.streams < 1:
        raise UserError(f"--files {args.files} --streams {args.streams}: give at least one")
    args.checked, args.polite = min(args.files, CHECKED), min(args.files, POLITE)
    args.loop = min(args.files, 200)
    paths = write_frames(args.work / "archive", args.files)
    with services(args.work / "archive", args.work / "services") as root:
        figures = measure(root, paths, args.work, args)
    print(report(figures, args.streams))
    share = figures["rows"]["hashes checked"]["share"]
    print(json.dumps({"streams": args.streams, "latency_s": LATENCY, **_rounded(figures),
                      "target": TARGET, "reached": share >= TARGET}))  # fmt: skip


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    run.start(main)
