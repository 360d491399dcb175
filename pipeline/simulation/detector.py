"""The camera and the night: gain, dark variance, calibration, sky, seeing, noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.simulation.plan import Plan, stream
from pipeline.survey import noise
from pipeline.survey.names import BANDS, FIELD_STEP, FRAME_SHAPE, Field

NMGY_PER_DN = dict(zip(BANDS, (0.0104, 0.0038, 0.0052, 0.0069, 0.0368), strict=True))
SKY_MAG = dict(zip(BANDS, (22.1, 21.85, 20.85, 20.2, 18.95), strict=True))
"""Sky brightness of an ordinary night [mag/arcsec^2]."""
SEEING = dict(zip(BANDS, (1.48, 1.38, 1.26, 1.20, 1.24), strict=True))
"""FWHM of an ordinary night [arcsec]."""
PIXEL_AREA = 0.396**2
SATURATION = dict(zip(BANDS, (61000, 62000, 50000, 51000, 62000), strict=True))
"""Full well above the bias [DN]."""
SHARED_ROWS = FRAME_SHAPE[0] - FIELD_STEP


@dataclass(frozen=True)
class Chip:
    """One CCD in one run: DN and nanomaggies, electrons, mean sky [DN]."""

    gain: float
    dark_variance: float
    nmgy_per_dn: float
    sky: float
    saturation: int

    @property
    def noise(self) -> float:
        """Noise of an empty pixel [nanomaggy]."""
        return np.sqrt(self.sky / self.gain + self.dark_variance) * self.nmgy_per_dn


@lru_cache(maxsize=256)
def chip(plan: Plan, run: int, camcol: int, band: str) -> Chip:
    """The CCD of (camcol, band) with the zero point and the sky of `run`."""
    night, own = stream(plan.seed, "night", run, band), stream(plan.seed, "chip", run, camcol, band)
    nmgy = NMGY_PER_DN[band] * (1 + 0.04 * night.standard_normal() + 0.04 * own.standard_normal())
    sky_mag = SKY_MAG[band] + 0.08 * night.standard_normal()
    sky = PIXEL_AREA * 10 ** (0.4 * (22.5 - sky_mag)) / nmgy
    gain, dark = noise.gain(run, camcol, band), noise.dark_variance(run, camcol, band)
    return Chip(gain, dark, nmgy, sky, SATURATION[band])


@lru_cache(maxsize=64)
def calibration(plan: Plan, run: int, camcol: int, band: str) -> np.ndarray:
    """Nanomaggies per DN of each column, float32 (2048,): the flat field's structure, 0.1-0.3 %."""
    rng, here = stream(plan.seed, "flat", run, camcol, band), chip(plan, run, camcol, band)
    x = np.linspace(0, 1, FRAME_SHAPE[1])
    smooth = sum(
        rng.normal(0, 0.0006) * np.cos(np.pi * k * x + rng.uniform(0, 2 * np.pi))
        for k in range(1, 9)
    )
    steps = np.repeat(rng.normal(0, 0.0005, 64), FRAME_SHAPE[1] // 64)
    edge = 0.008 * np.exp(-x * FRAME_SHAPE[1] / 25)
    vector = (here.nmgy_per_dn * (1 + smooth + steps + edge)).astype(np.float32)
    vector.setflags(write=False)
    return vector


def seeing(plan: Plan, run: int, camcol: int, band: str, row) -> np.ndarray:
    """FWHM of the PSF [arcsec] at strip rows: a slow change along the run, of its own per chip."""
    rng = stream(plan.seed, "seeing", run)
    period, phase, level = rng.uniform(2, 5), rng.uniform(0, 2 * np.pi), rng.normal(1, 0.05)
    own = stream(plan.seed, "seeing", run, camcol, band).uniform(-0.04, 0.04)
    wave = 0.06 * np.sin(2 * np.pi * np.asarray(row) / (period * FIELD_STEP) + phase)
    return SEEING[band] * (level + own + wave)


def true_sky(plan: Plan, run: int, camcol: int, band: str, row, col) -> np.ndarray:
    """Sky [DN] at strip pixels (broadcast): a tilt across and a slow wave along the strip.

    With a `shared_sky` there is no wave: then a table of any field's grid gives the same sky.
    """
    rng = stream(plan.seed, "sky", run, camcol, band)
    period, phase, tilt = rng.uniform(5, 9), rng.uniform(0, 2 * np.pi), rng.normal(0, 1e-3)
    wave = 1.5e-3 * np.sin(2 * np.pi * np.asarray(row) / (period * FIELD_STEP) + phase)
    if plan.shared_sky:
        wave = np.zeros_like(wave)
    across = tilt * (np.asarray(col) / FRAME_SHAPE[1] - 0.5)
    return chip(plan, run, camcol, band).sky * (1 + wave + across)


def sky_table(plan: Plan, field: Field, band: str) -> np.ndarray:
    """Sky [DN] that SDSS takes off this frame, float32 (192, 256): a node every 8 pixels.

    It strays from the true one by a smooth error of 0.02 %, different in each field unless the
    plan has a `shared_sky`.
    """
    run, camcol = field.run, field.camcol
    row = 8.0 * np.arange(192)[:, None] - 4.5
    col = 8.0 * np.arange(256)[None, :] + 3.5
    row0 = FIELD_STEP * (field.field - plan.first_field)
    sky = true_sky(plan, run, camcol, band, row0 + row, col)
    if not plan.shared_sky:
        own = stream(plan.seed, "sky error", run, camcol, band, field.field)
        level, along, across = own.normal(0, 2e-4, 3)
        rows, cols = row / FRAME_SHAPE[0] - 0.5, col / FRAME_SHAPE[1] - 0.5
        sky = sky + chip(plan, run, camcol, band).sky * (level + along * rows + across * cols)
    return sky.astype(np.float32)


def interpolation_grid() -> tuple[np.ndarray, np.ndarray]:
    """XINTERP (2048,) and YINTERP (1489,), float32: places of columns and rows in the sky table."""
    x = -0.4375 + 0.125 * np.arange(FRAME_SHAPE[1])
    y = 0.5625 + 0.125 * np.arange(FRAME_SHAPE[0])
    return x.astype(np.float32), y.astype(np.float32)


def interpolate_sky(table: np.ndarray) -> np.ndarray:
    """Sky of each pixel, float64 (1489, 2048): bilinear in the table, constant beyond its edge."""
    x, y = interpolation_grid()
    across = _weights(x, table.shape[1])
    along = _weights(y, table.shape[0])
    table = table.astype(np.float64)
    rows = table[along[0]] * (1 - along[2])[:, None] + table[along[1]] * along[2][:, None]
    return rows[:, across[0]] * (1 - across[2]) + rows[:, across[1]] * across[2]


def _weights(place: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    place = np.clip(place.astype(np.float64), 0, size - 1)
    low = np.minimum(place.astype(int), size - 2)
    return low, low + 1, place - low


def read_out(plan: Plan, field: Field, band: str, light: np.ndarray) -> np.ndarray:
    """Integer DN (1489, 2048), sky included, of `light` [nanomaggy per pixel, no sky, no noise].

    The photons of a strip's rows are drawn by blocks of 1361 rows, so the 128 rows that two
    fields share hold the same DN in both, as on the sky.
    """
    here = chip(plan, field.run, field.camcol, band)
    calibvec = calibration(plan, field.run, field.camcol, band).astype(np.float64)
    row0 = FIELD_STEP * (field.field - plan.first_field)
    row, col = np.arange(FRAME_SHAPE[0])[:, None] + row0, np.arange(FRAME_SHAPE[1])[None, :]
    sky = true_sky(plan, field.run, field.camcol, band, row, col)
    dn = np.empty(FRAME_SHAPE, np.int32)
    for step, rows in ((0, slice(0, FIELD_STEP)), (1, slice(FIELD_STEP, FRAME_SHAPE[0]))):
        key = (field.run, field.camcol, band, field.field + step)
        mean = np.maximum((light[rows] / calibvec + sky[rows]) * here.gain, 0)
        photons = stream(plan.seed, "photons", *key).poisson(mean)
        # Rounding to integers adds 1/12 to the variance, which the tabulated one includes.
        spread = np.sqrt(here.dark_variance - 1 / 12)
        read = spread * stream(plan.seed, "read noise", *key).standard_normal(mean.shape)
        dn[rows] = np.rint(photons / here.gain + read)
    return np.minimum(dn, here.saturation)
