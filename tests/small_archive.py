"""A small archive of two fields and its galaxies, from a folder or served over HTTP."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
from small_sky import Sky

from pipeline.images.cutting import Recipe
from pipeline.images.stamp import Stamp

SKY = Sky()
SMALL = Recipe(Stamp(31, 31 * Stamp().scale))
STEPS = (0, 1)


def make_galaxies() -> pd.DataFrame:
    """Three in each of two fields, the last one 20 rows below the upper edge."""
    xy = [(400, 500), (1200, 900), (900, 1468)]
    return pd.concat([SKY.galaxies(xy, step) for step in STEPS], ignore_index=True)


def make_archive(root: Path, galaxies: pd.DataFrame) -> Path:
    for step in STEPS:
        SKY.write(root, galaxies, step)
    return root


@contextlib.contextmanager
def served(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


def same_bytes(*files):
    return len({Path(file).read_bytes() for file in files}) == 1
