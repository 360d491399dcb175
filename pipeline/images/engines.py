"""Other ways to resample a stamp, behind one signature: reproject's and Montage's.

The default is `overlap` (its own module). These are references and the paper's own route; each
takes a patch of a frame with its WCS and returns (value, share), both (size, size): the stamp in
nanomaggies per native pixel, 0 where nothing is covered, and the covered share of each pixel.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from pipeline.images.stamp import Stamp
from pipeline.run import UserError

MARGIN = 12
"""Frame pixels that a patch holds around its stamp: Montage is given a wider one (below)."""
RING = 5
"""Stamp pixels by which Montage's stamp is larger than ours: its outermost ring is wrong by 0.8
of the sky noise (weights of pixels that its output cuts are not those of their overlap)."""

Engine = Callable[[np.ndarray, WCS, float, float, Stamp], tuple[np.ndarray, np.ndarray]]


def by_reproject(
    method: str, image: np.ndarray, wcs: WCS, ra: float, dec: float, stamp: Stamp
) -> tuple[np.ndarray, np.ndarray]:
    """Resample with the package reproject: `method` is interp (bilinear), adaptive or exact."""
    import reproject

    resample = getattr(reproject, f"reproject_{method}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 where nothing is covered
        value, share = resample((image.astype(np.float64), wcs), stamp.header(ra, dec))
    covered = np.isfinite(value) & (share > 0)
    return np.where(covered, value, 0), np.where(covered, np.clip(share, 0, 1), 0)


def by_montage(
    image: np.ndarray, wcs: WCS, ra: float, dec: float, stamp: Stamp
) -> tuple[np.ndarray, np.ndarray]:
    """Resample with Montage's mProjectPP through montage-wrapper, as the paper did with mProject.

    Raises:
        UserError: Montage's programs are not installed.
    """
    wide = Stamp(stamp.size + 2 * RING, stamp.scale * (stamp.size + 2 * RING))
    with tempfile.TemporaryDirectory(prefix="ugriz-montage-") as folder:
        where = Path(folder)
        fits.writeto(where / "in.fits", image.astype(np.float32), _cd_header(wcs))
        template = fits.PrimaryHDU(header=wide.header(ra, dec)).header
        template["BITPIX"], template["NAXIS"] = -64, 2
        template["NAXIS1"] = template["NAXIS2"] = wide.size
        template.totextfile(where / "template.hdr", endcard=True)
        _project(where)
        images = ("out.fits", "out_area.fits")
        value, area = (_on_template(where / name, wide.size) for name in images)
    ours = slice(RING, RING + stamp.size)
    value, share = value[ours, ours], area[ours, ours] / np.deg2rad(stamp.scale) ** 2
    covered = np.isfinite(value) & (share > 1e-6)
    return np.where(covered, value, 0), np.where(covered, np.clip(share, 0, 1), 0)


def _cd_header(wcs: WCS) -> fits.Header:
    """The WCS with a CD matrix, which Montage reads, where astropy would write PC."""
    header = wcs.to_header()
    cd = wcs.pixel_scale_matrix
    for i, j in np.ndindex(2, 2):
        header.pop(f"PC{i + 1}_{j + 1}", None)
        header[f"CD{i + 1}_{j + 1}"] = cd[i, j]
    del header["CDELT1"], header["CDELT2"]
    return header


def _project(where: Path) -> None:
    if shutil.which("mProjectPP") is None:
        raise UserError(
            "engine montage: the program mProjectPP is not on the PATH; install Montage "
            "(apt install montage) or set cutouts: engine to overlap"
        )
    from montage_wrapper import commands

    commands.mProjectPP(*(str(where / name) for name in ("in.fits", "out.fits", "template.hdr")))


def _on_template(path: Path, size: int) -> np.ndarray:
    """Put Montage's image, which it trims to what is covered, back onto the whole template."""
    with fits.open(path) as hdus:
        data, header = hdus[0].data.astype(np.float64), hdus[0].header
    whole = np.full((size, size), np.nan)
    x, y = (round((size + 1) / 2 - header[f"CRPIX{axis}"]) for axis in (1, 2))
    whole[y : y + data.shape[0], x : x + data.shape[1]] = data
    return whole


ENGINES: dict[str, Engine | None] = {
    "overlap": None,
    "reproject-exact": partial(by_reproject, "exact"),
    "reproject-interp": partial(by_reproject, "interp"),
    "reproject-adaptive": partial(by_reproject, "adaptive"),
    "montage": by_montage,
}
"""Name in config.yaml -> engine; `overlap` is the kernel whose weights all of them need."""
