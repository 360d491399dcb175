"""cutana and astrocut on the same frames: what they can do of the work, where they are installed.

Neither rotates or resamples onto a template: both cut native pixels (cutana then resizes), so
that north is not up and the bands do not lie on each other. Neither reads .bz2 at a usable speed
(astrocut took 146 s a stamp), so both are given frames that were decompressed beforehand; that
time is not counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import util
from pathlib import Path

import numpy as np
import pandas as pd
from decompressors import python_bz2

from pipeline.images.stamp import Stamp
from pipeline.survey.names import BANDS, Field, frame_path

Cutter = Callable[[pd.DataFrame, dict[Field, list[Path]], Stamp], np.ndarray]
"""Galaxies (with `where`, their Field), plain frames u g r i z of each field -> their images."""


def plain_frames(fields: list[Field], root: Path, folder: Path) -> dict[Field, list[Path]]:
    """Decompress the five frames of each field to `folder`/field/band.fits."""
    plain = {}
    for field in fields:
        plain[field] = [folder / str(field) / f"{band}.fits" for band in BANDS]
        for band, path in zip(BANDS, plain[field], strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(python_bz2(root / frame_path(field, band)))
    return plain


def by_astrocut(galaxies: pd.DataFrame, plain: dict, stamp: Stamp) -> np.ndarray:
    """A square of stamp.size native pixels in each band, (N, 5, size, size)."""
    import astrocut
    from astropy.coordinates import SkyCoord

    images = []
    for galaxy in galaxies.itertuples():
        centre = SkyCoord(galaxy.ra, galaxy.dec, unit="deg")
        files = [str(path) for path in plain[galaxy.where]]
        cut = astrocut.FITSCutout(files, centre, stamp.size)
        images.append([hdus[0].data for hdus in cut.hdu_cutouts_by_file.values()])
    return np.array(images)


def by_cutana(galaxies: pd.DataFrame, plain: dict, stamp: Stamp) -> np.ndarray:
    """A square of stamp.fov in native pixels, resized to stamp.size, (N, size, size, 5)."""
    import cutana

    config = cutana.get_default_config()
    config.target_resolution, config.max_workers = stamp.size, 1
    config.normalisation_method, config.apply_flux_conversion = "none", False
    config.channel_weights = {band: [float(band == each) for each in BANDS] for band in BANDS}
    catalogue = pd.DataFrame(
        {
            "SourceID": [str(objid) for objid in galaxies["objID"]],
            "RA": galaxies["ra"],
            "Dec": galaxies["dec"],
            "diameter_arcsec": stamp.fov * 3600,
            "fits_file_paths": [str([str(path) for path in plain[w]]) for w in galaxies["where"]],
        }
    )
    batches = cutana.create_cutouts_direct(catalogue, config, max_workers=1)
    return np.concatenate([batch["cutouts"] for batch in batches])


CUTTERS: dict[str, tuple[Cutter, str]] = {
    "astrocut": (by_astrocut, "frames decompressed before: native pixels, not resampled"),
    "cutana": (by_cutana, "frames decompressed before: native pixels resized, not rotated"),
}
"""Name of the package -> how it is called, and what it does, in a line."""


def installed(name: str) -> bool:
    """Whether the package can be imported."""
    return util.find_spec(name) is not None


def cut(name: str, galaxies: pd.DataFrame, plain: dict, stamp: Stamp) -> np.ndarray:
    """Cut `galaxies` with the package `name`, its warnings kept quiet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CUTTERS[name][0](galaxies, plain, stamp)
