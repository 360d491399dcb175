"""Synthetic frames: any TAN projection, Gaussians integrated over pixels, SAS's layout."""

from __future__ import annotations

import bz2
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.wcs import WCS
from scipy.special import erf

from pipeline.simulation.frame import frame_content
from pipeline.survey import frame
from pipeline.survey.names import BANDS, FRAME_SHAPE, Field, frame_path

SCALE = 0.396 / 3600
NOISE = 0.02


def make_wcs(ra, dec, angle=0.0, parity=-1, crpix=(1025.0, 745.0), scale=SCALE) -> WCS:
    """TAN, ICRS; `angle` [deg] of the rows from north; `parity` -1 is the sky's own handedness."""
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.radesys = ["RA---TAN", "DEC--TAN"], "ICRS"
    wcs.wcs.crval, wcs.wcs.crpix = [ra % 360, dec], list(crpix)
    wcs.wcs.cd = scale * rotation @ np.diag([parity, 1])
    return wcs


def add_gaussian(image, x, y, flux, sigma=1.6) -> None:
    """Add a round Gaussian, integrated over each pixel, centred on the 0-based pixel (x, y)."""
    half = int(8 * sigma) + 1
    rows = slice(max(round(y) - half, 0), max(min(round(y) + half + 1, image.shape[0]), 0))
    columns = slice(max(round(x) - half, 0), max(min(round(x) + half + 1, image.shape[1]), 0))
    profiles = []
    for part, centre in ((rows, y), (columns, x)):
        edges = (np.arange(part.start, part.stop + 1) - 0.5 - centre) / (sigma * np.sqrt(2))
        profiles.append(np.diff(erf(edges)) / 2)
    image[rows, columns] += flux * np.outer(*profiles)


def add_noise(image, galaxies_xy, seed=0, half=90, level=NOISE) -> None:
    """Noise around the galaxies only: a frame that is zero elsewhere compresses in no time."""
    random = np.random.default_rng(seed)
    for x, y in np.rint(galaxies_xy).astype(int):
        part = image[max(y - half, 0) : y + half, max(x - half, 0) : x + half]
        part[...] = random.normal(0, level, part.shape)


def write_frame(root: Path, field: Field, band: str, image, wcs: WCS, **options) -> Path:
    path = root / frame_path(field, band)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compressed(frame_content(image, wcs, field, band, **options)))
    return path


PIECE = 1 << 19


def compressed(content: bytes) -> bytes:
    """bzip2, in several streams: pieces that frames have in common are compressed once."""
    starts = range(0, len(content), PIECE)
    return b"".join(_stream(content[start : start + PIECE]) for start in starts)


@lru_cache(maxsize=16)
def _stream(piece: bytes) -> bytes:
    return bz2.compress(piece)


decompressed = lru_cache(maxsize=12)(frame.decompress)
"""Stands for `frame.decompress` where the same frames are read again and again."""


class Sky:
    """Fields of one run and camcol with a galaxy at each of given pixels of the r frame.

    Bands are shifted against r by `SHIFT` rows, neighbouring fields share their 128 rows.
    """

    SHIFT: Mapping[str, float] = {"u": 7.0, "g": 10.0, "r": 0.0, "i": 3.0, "z": 7.0}

    def __init__(self, ra=150.0, dec=10.0, angle=90.0, run=1000, camcol=1, first=100):
        self.pointing, self.run, self.camcol, self.first = (ra, dec, angle), run, camcol, first

    def field(self, step=0) -> Field:
        return Field(self.run, self.camcol, self.first + step)

    def wcs(self, band="r", step=0) -> WCS:
        ra, dec, angle = self.pointing
        return make_wcs(ra, dec, angle, crpix=(1025.0, 745.0 + self.SHIFT[band] - 1361 * step))

    def galaxies(self, xy, step=0) -> pd.DataFrame:
        """A table of galaxies at the 0-based pixels `xy` (n, 2) of the r frame of a field."""
        xy = np.asarray(xy, dtype=float)
        sky = self.wcs("r", step).wcs_pix2world(xy, 0)
        field = self.field(step)
        return pd.DataFrame(
            {
                "objID": np.arange(len(xy), dtype=np.int64) + (1237653651835781245 + 1000 * step),
                "ra": sky[:, 0], "dec": sky[:, 1], "run": field.run, "rerun": field.rerun,
                "camcol": field.camcol, "field": field.field,
            }
        )  # fmt: skip

    def image(self, galaxies: pd.DataFrame, band="r", step=0, flux=50.0, seed=0) -> np.ndarray:
        """The frame of a band: noise around the galaxies, and on each a Gaussian."""
        image = np.zeros(FRAME_SHAPE, dtype=np.float32)
        xy = self.wcs(band, step).wcs_world2pix(galaxies[["ra", "dec"]].to_numpy(), 0)
        add_noise(image, xy, seed=[seed, BANDS.index(band), step])
        for x, y in xy:
            add_gaussian(image, x, y, flux)
        return image

    def write(self, root: Path, galaxies: pd.DataFrame, step=0, bands=BANDS, **options) -> None:
        for band in bands:
            image = self.image(galaxies, band, step, **options)
            write_frame(root, self.field(step), band, image, self.wcs(band, step))
