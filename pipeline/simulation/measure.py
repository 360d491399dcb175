"""Photometry on the finished frames: Petrosian, model and PSF magnitudes with their errors.

Neighbours are taken off as drawn (an ideal deblender): what is measured is the frame less the
noiseless light of all other sources, so noise, sky error, rounding and artefacts stay in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep

from pipeline.simulation.detector import Chip
from pipeline.simulation.render import MOFFAT_BETA, SCALE, Stamp
from pipeline.survey.names import FRAME_SHAPE

PETRO_RATIO = 0.2
PETRO_FACTOR = 2.0
FAILED_PETRO = 3.0 / SCALE
"""Petrosian radius where the profile never crosses the ratio: 3 arcsec, as SDSS takes it."""
STEP = 1.25**0.25
"""Ratio of successive radii: the annulus 0.8 r to 1.25 r is four steps to either side."""
SHARE_RADIUS = 10.0 / SCALE
"""Radius within which other light is counted: 10 arcsec."""
LARGEST_WINDOW = 230


@dataclass
class Window:
    """Pixels about a source: what is measured, its own noiseless light, and which exist."""

    data: np.ndarray
    own: np.ndarray
    exists: np.ndarray
    row: float
    col: float


def window(stamp: Stamp, residual: np.ndarray, row0: int) -> Window:
    """The source's part of the frame: residual (frame less all noiseless light) plus itself."""
    half = int(np.clip(max(stamp.light.shape) * 0.55, 45, LARGEST_WINDOW))
    top, left = round(stamp.at[0]) - half, round(stamp.at[1]) - half
    side = 2 * half + 1
    own, rest = np.zeros((side, side)), np.zeros((side, side))
    exists = np.zeros((side, side), bool)
    common = stamp.overlap(top, left, own.shape)
    own[common[0]] = stamp.light[common[1]]
    r0, r1 = max(top, row0), min(top + side, row0 + FRAME_SHAPE[0])
    c0, c1 = max(left, 0), min(left + side, FRAME_SHAPE[1])
    if r0 < r1 and c0 < c1:
        there = (slice(r0 - top, r1 - top), slice(c0 - left, c1 - left))
        rest[there] = residual[r0 - row0 : r1 - row0, c0:c1]
        exists[there] = True
    data = np.where(exists, rest + own, 0.0)
    return Window(data, own, exists, stamp.at[0] - top, stamp.at[1] - left)


def aperture(image: np.ndarray, at: Window, radius) -> np.ndarray:
    """Sum of `image` within circles of `radius` [pixels] about the source, 5 x 5 subpixels."""
    radius = np.atleast_1d(np.asarray(radius, dtype=np.float64))
    x, y = np.full(radius.shape, at.col), np.full(radius.shape, at.row)
    return sep.sum_circle(np.ascontiguousarray(image), x, y, radius, subpix=5)[0]


@dataclass
class Petrosian:
    """Petrosian radius and the radii of 50 and 90 % of the Petrosian flux [pixels]."""

    radius: float
    r50: float
    r90: float


def petrosian(at: Window) -> Petrosian:
    """Circular Petrosian radius: mean light in 0.8 to 1.25 r is 0.2 of that within r.

    Blanton et al. 2001, eq. 1-3, as SDSS uses them (apertures of 2 Petrosian radii).
    """
    last = at.data.shape[0] / 2
    radii = 0.8 * STEP ** np.arange(int(np.log(last / 0.8) / np.log(STEP)) + 1)
    flux, area = aperture(at.data, at, radii), np.pi * radii**2
    ring = (flux[8:] - flux[:-8]) / (area[8:] - area[:-8])
    mean = flux[4:-4] / area[4:-4]
    below = np.flatnonzero((ring < PETRO_RATIO * mean) & (radii[4:-4] > 1.6))
    if below.size == 0 or below[0] == 0:
        radius = FAILED_PETRO
    else:
        k = below[0]
        ratio = ring[k - 1 : k + 1] / mean[k - 1 : k + 1]
        share = (ratio[0] - PETRO_RATIO) / (ratio[0] - ratio[1])
        radius = radii[4 + k - 1] * STEP ** float(np.clip(share, 0, 1))
    total = aperture(at.data, at, PETRO_FACTOR * radius)[0]
    fine = np.linspace(0.3, PETRO_FACTOR * radius, 80)
    growth = np.maximum.accumulate(aperture(at.data, at, fine)) / total if total > 0 else fine
    r50, r90 = np.interp([0.5, 0.9], growth, fine)
    return Petrosian(float(radius), float(r50), float(r90))


def photometry(at: Window, stamp: Stamp, petro: Petrosian, here: Chip) -> dict[str, float]:
    """Fluxes and errors [nanomaggy] in one band.

    petro: within 2 Petrosian radii (of r). model: least squares of the source's own shape in
    this band, seeing included, so colours do not depend on the seeing. psf: the same with the PSF.
    Errors are those of sky, dark current and the source's own photons.
    """
    if not at.exists[round(at.row), round(at.col)]:
        return dict.fromkeys(("petro", "petroErr", "model", "modelErr", "psf", "psfErr"), np.nan)
    photon = here.nmgy_per_dn / here.gain
    radius = PETRO_FACTOR * petro.radius
    flux = aperture(at.data, at, radius)[0]
    petro_error = np.sqrt(np.pi * radius**2 * here.noise**2 + max(flux, 0) * photon)
    model, model_error = _fit(at, at.own / stamp.light.sum(), here)
    psf, psf_error = _fit(at, _psf_template(at, stamp.fwhm), here)
    return {
        "petro": flux, "petroErr": petro_error, "model": model, "modelErr": model_error,
        "psf": psf, "psfErr": psf_error,
    }  # fmt: skip


def _fit(at: Window, template: np.ndarray, here: Chip) -> tuple[float, float]:
    """Amplitude of `template` (sum 1) by least squares with equal weights, and its error."""
    template = np.where(at.exists, template, 0.0)
    norm = (template**2).sum()
    if norm == 0:
        return np.nan, np.nan
    flux = (template * at.data).sum() / norm
    photon = here.nmgy_per_dn / here.gain
    variance = (template**2 * (here.noise**2 + np.maximum(at.own, 0) * photon)).sum() / norm**2
    return float(flux), float(np.sqrt(variance))


def _psf_template(at: Window, fwhm: float) -> np.ndarray:
    alpha = fwhm / SCALE / (2 * np.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    half, light = 25, np.zeros(at.data.shape)
    row, col = np.arange(-half, half + 1)[:, None], np.arange(-half, half + 1)[None, :]
    top, left = round(at.row), round(at.col)
    squared = (row + top - at.row) ** 2 + (col + left - at.col) ** 2
    here = (slice(top - half, top + half + 1), slice(left - half, left + half + 1))
    light[here] = (1 + squared / alpha**2) ** -MOFFAT_BETA
    return light / light.sum()


def other_share(at: Window, stamp: Stamp, total: np.ndarray, row0: int) -> float:
    """Light of others (artefacts too) within 10 arcsec over the source's own there.

    `total` is all light on the frame, without sky and noise; infinite where the circle leaves it.
    """
    row, col = stamp.at[0] - row0, stamp.at[1]
    inside = (SHARE_RADIUS < row < FRAME_SHAPE[0] - SHARE_RADIUS) and (
        SHARE_RADIUS < col < FRAME_SHAPE[1] - SHARE_RADIUS
    )
    if not inside:
        return np.inf
    both = sep.sum_circle(total, [col], [row], [SHARE_RADIUS], subpix=5)[0][0]
    own = aperture(at.own, at, SHARE_RADIUS)[0]
    return float(both / own - 1)


def magnitude(flux, error) -> tuple[np.ndarray, np.ndarray]:
    """AB magnitude and error of fluxes [nanomaggy]; both -9999 where the flux is not positive."""
    flux, error = np.asarray(flux, dtype=np.float64), np.asarray(error, dtype=np.float64)
    good = np.isfinite(flux) & (flux > 0)
    safe = np.where(good, flux, 1.0)
    mag = np.where(good, 22.5 - 2.5 * np.log10(safe), -9999.0)
    return mag, np.where(good, 2.5 / np.log(10) * error / safe, -9999.0)
