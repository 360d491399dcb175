"""Routes from a galaxy's five frames to its stamp, one galaxy at a time: how it is done elsewhere.

Each route is a function (galaxy, band, root, folder, stamp) -> (size, size) nanomaggies per frame
pixel, NaN where nothing is covered. All read the galaxy's own field's frame, decompress it anew
and put it on the same template. As a program, `python routes.py ROUTE ROOT RUN CAMCOL FIELD RERUN
RA DEC` cuts one galaxy, so that its memory can be measured.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from astropy.io import fits

from pipeline.images.engines import ENGINES, MARGIN
from pipeline.images.geometry import corners, window
from pipeline.images.stamp import Stamp
from pipeline.survey import frame
from pipeline.survey.names import BANDS, RERUN, Field, frame_path

TRIM = 1.1
"""Sides of the patch that mSubimage cuts, over the stamp's diagonal: it fits at any rotation."""


class Galaxy(NamedTuple):
    """A galaxy on the frames of its own field; ra, dec [deg]."""

    field: Field
    ra: float
    dec: float


Route = Callable[[Galaxy, str, Path, Path, Stamp], np.ndarray]


def _decompressed(galaxy: Galaxy, band: str, root: Path, folder: Path) -> Path:
    path = folder / "frame.fits"
    with open(path, "wb") as file:
        subprocess.run(
            ["bzip2", "-dc", root / frame_path(galaxy.field, band)], stdout=file, check=True
        )
    return path


def _montage(program: str, *args: str | float | Path) -> None:
    """Run a program of Montage, which tells errors in its output rather than its exit status."""
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    if 'stat="ERROR"' in done.stdout or done.returncode:
        raise RuntimeError(f"{program}: {done.stdout.strip()}")


def _projected(program: str, image: Path, galaxy: Galaxy, stamp: Stamp) -> np.ndarray:
    output, template = image.with_name("stamp.fits"), image.with_name("template.hdr")
    header = stamp.header(galaxy.ra, galaxy.dec)
    header.insert(0, ("BITPIX", -64))  # Montage wants it, though a template has no pixels
    header.totextfile(template, endcard=True)
    _montage(program, image, output, template)
    return _on_template(output, stamp)


def _on_template(path: Path, stamp: Stamp) -> np.ndarray:
    """Montage's image, which it trims to what is covered, in its place on the whole template."""
    with fits.open(path) as hdus:
        data, header = hdus[0].data, hdus[0].header
    x, y = (round((stamp.size + 1) / 2 - header[f"CRPIX{axis}"]) for axis in (1, 2))
    whole = np.full((stamp.size, stamp.size), np.nan)
    whole[y : y + data.shape[0], x : x + data.shape[1]] = data
    return whole


def paper(galaxy: Galaxy, band: str, root: Path, folder: Path, stamp: Stamp) -> np.ndarray:
    """The paper's way: bzip2 -dc the frame, mProject the whole of it."""
    return _projected("mProject", _decompressed(galaxy, band, root, folder), galaxy, stamp)


def trimmed_by(program: str) -> Route:
    """Montage at its best: bzip2 -dc the frame, mSubimage it to the stamp, then `program`."""

    def route(galaxy, band, root, folder, stamp) -> np.ndarray:
        whole, part = _decompressed(galaxy, band, root, folder), folder / "part.fits"
        _montage("mSubimage", whole, part, galaxy.ra, galaxy.dec, TRIM * 2 * stamp.reach)
        return _projected(program, part, galaxy, stamp)

    return route


def reprojected_by(method: str) -> Route:
    """Python's bz2, the part of the frame that the stamp touches, reproject_`method`."""

    def route(galaxy, band, root, folder, stamp) -> np.ndarray:
        data = (root / frame_path(galaxy.field, band)).read_bytes()
        image = frame.read(data, galaxy.field, band)
        wcs = image.wcs()
        part = window(corners(stamp, galaxy.ra, galaxy.dec, wcs), image.image.shape, MARGIN)
        wcs.wcs.crpix -= part.origin
        patch = image.image[part.rows, part.columns].astype(np.float32)
        engine = ENGINES[f"reproject-{method}"]
        value, share = engine(patch, wcs, galaxy.ra, galaxy.dec, stamp)
        return np.where(share > 0, value, np.nan)

    return route


class Known(NamedTuple):
    """A route, the programs it needs, and what it does, in a line."""

    cut: Route
    programs: tuple[str, ...]
    does: str


_OBJECT = "per object: "
ROUTES = {
    "paper": Known(paper, ("bzip2", "mProject"), _OBJECT + "bzip2, mProject (the paper's way)"),
    "montage": Known(
        trimmed_by("mProject"),
        ("bzip2", "mSubimage", "mProject"),
        _OBJECT + "bzip2, mSubimage, mProject",
    ),
    "montage-pp": Known(
        trimmed_by("mProjectPP"),
        ("bzip2", "mSubimage", "mProjectPP"),
        _OBJECT + "bzip2, mSubimage, mProjectPP",
    ),
    "reproject-exact": Known(
        reprojected_by("exact"), (), _OBJECT + "python bz2, trim, reproject_exact"
    ),
    "reproject-interp": Known(
        reprojected_by("interp"), (), _OBJECT + "python bz2, trim, reproject_interp"
    ),
}


def missing(name: str) -> list[str]:
    """The programs that a route needs and that are not on the PATH."""
    return [program for program in ROUTES[name].programs if shutil.which(program) is None]


def galaxies_of(table: pd.DataFrame) -> list[Galaxy]:
    """A table with ra, dec, run, camcol, field and, where known, rerun, as routes take it."""
    columns = table.assign(rerun=table.get("rerun", RERUN))
    columns = columns[["run", "camcol", "field", "rerun", "ra", "dec"]]
    return [
        Galaxy(Field(*map(int, where)), float(ra), float(dec))
        for *where, ra, dec in columns.itertuples(index=False)
    ]


def cut_object(name: str, galaxy: Galaxy, root: Path, stamp: Stamp) -> np.ndarray:
    """The stamp (5, size, size) of one galaxy by a route, each band in a folder of its own."""
    planes = []
    for band in BANDS:
        with tempfile.TemporaryDirectory(prefix="ugriz-benchmark-") as folder:
            planes.append(ROUTES[name].cut(galaxy, band, root, Path(folder), stamp))
    return np.stack(planes)


def main() -> None:
    """Cut one galaxy."""
    name, root, *where = sys.argv[1:]
    galaxy = Galaxy(Field(*map(int, where[:4])), *map(float, where[4:]))
    cut_object(name, galaxy, Path(root), Stamp())


if __name__ == "__main__":
    main()
