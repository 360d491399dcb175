"""Drawing sources with GalSim: stamps in a strip's pixels, and frames added up from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import galsim
import numpy as np

from pipeline.simulation.detector import Chip, chip, seeing
from pipeline.simulation.population import Sky
from pipeline.simulation.scan import Strip, first_row, strip
from pipeline.survey.names import FRAME_SHAPE, Field

SCALE = 0.396
"""Arcsec per pixel in which sources are drawn."""
MOFFAT_BETA = 3.5
FAINTEST = 1e-3
"""A stamp ends where the light falls below this share of the noise of an empty pixel."""
BULGE_EDGE = 8
"""Bulges end at this many half-light radii, as in SDSS's own de Vaucouleurs model."""
LARGEST = 280
"""Half the side of the largest stamp [pixels]."""
LONGEST_BLEED = 400
"""Rows by which a bleeding star's stamp grows at each end, at most."""
_PARAMS = galsim.GSParams(maximum_fft_size=8192)


@dataclass
class Stamp:
    """Light of one source [nanomaggy per pixel]; `row`, `col` are the strip's pixel of [0, 0]."""

    id: int
    kind: str
    row: int
    col: int
    light: np.ndarray
    at: tuple[float, float]
    fwhm: float
    bleed: np.ndarray | None = None

    def overlap(self, row0: int, col0: int, shape: tuple[int, int]) -> tuple | None:
        """Slices (into a window at row0, col0 and into the stamp) of their common pixels."""
        top, left = self.row - row0, self.col - col0
        height, width = self.light.shape
        r0, r1 = max(top, 0), min(top + height, shape[0])
        c0, c1 = max(left, 0), min(left + width, shape[1])
        if r0 >= r1 or c0 >= c1:
            return None
        there = (slice(r0, r1), slice(c0, c1))
        return there, (slice(r0 - top, r1 - top), slice(c0 - left, c1 - left))


@lru_cache(maxsize=128)
def _moffat(fwhm: float) -> galsim.Moffat:
    return galsim.Moffat(beta=MOFFAT_BETA, fwhm=fwhm, gsparams=_PARAMS)


def _psf(fwhm: float) -> galsim.Moffat:
    # Steps of 0.005" are far below what can be seen and let one PSF serve many sources.
    return _moffat(round(fwhm * 200) / 200)


def stamps(sky: Sky, field: Field, band: str) -> Iterator[Stamp]:
    """Every source whose light falls on a frame, galaxies before stars, in order of id.

    A stamp depends on the strip alone, not on the frame: two frames that share rows add up the
    same numbers in the same order there.
    """
    here = chip(sky.plan, field.run, field.camcol, band)
    on_sky, row0 = strip(sky.plan, field.run, field.camcol, band), first_row(sky.plan, field)
    for kind in ("galaxies", "stars"):
        places = sky.places(kind, field.run, field.camcol, band)
        reach = LARGEST + (LONGEST_BLEED if kind == "stars" else 0)
        low, high = (row0 - reach, -reach), (row0 + FRAME_SHAPE[0] + reach, FRAME_SHAPE[1] + reach)
        near = np.flatnonzero(np.all((places >= low) & (places < high), axis=1))
        width = seeing(sky.plan, field.run, field.camcol, band, places[near, 0])
        for which, fwhm in zip(near, width, strict=True):
            source, at = sky.record(kind, which), tuple(places[which].tolist())
            if kind == "stars":
                stamp = draw_star(source, band, at, float(fwhm), here)
            elif _reaches(at, _galaxy_half(source, band, float(fwhm), here.noise), row0):
                stamp = draw_galaxy(source, band, at, float(fwhm), here.noise, on_sky)
            else:
                continue
            if stamp.overlap(row0, 0, FRAME_SHAPE) is not None:
                yield stamp


def _reaches(at: tuple[float, float], half: int, row0: int) -> bool:
    row, col = at[0] - row0, at[1]
    inside = -half - 1 <= row <= FRAME_SHAPE[0] + half + 1
    return inside and -half - 1 <= col <= FRAME_SHAPE[1] + half + 1


def draw_galaxy(galaxy: dict, band: str, at, fwhm: float, noise: float, on_sky: Strip) -> Stamp:
    """Bulge (de Vaucouleurs) and disc (exponential), convolved with the PSF in one transform.

    `galaxy` is a row of `Sky.galaxies`; `at` its strip pixel (row, col); `fwhm` [arcsec] of the
    seeing; `noise` of an empty pixel [nanomaggy], which decides where the stamp ends.
    """
    angle = float(on_sky.angle(galaxy["ra"], galaxy["dec"], galaxy["angle"])) * galsim.radians
    disc = galsim.Exponential(
        half_light_radius=galaxy["disc_r50"], flux=galaxy[f"disc_flux_{band}"], gsparams=_PARAMS
    )
    light = disc.shear(q=galaxy["disc_q"], beta=angle)
    if galaxy[f"bulge_flux_{band}"] > 0:
        size = galaxy["bulge_r50"]
        bulge = galsim.DeVaucouleurs(
            half_light_radius=size,
            trunc=BULGE_EDGE * size,
            flux=galaxy[f"bulge_flux_{band}"],
            gsparams=_PARAMS,
        )
        light = bulge.shear(q=galaxy["bulge_q"], beta=angle) + light
    half = _galaxy_half(galaxy, band, fwhm, noise)
    return _drawn(galaxy["id"], "galaxy", galsim.Convolve(light, _psf(fwhm)), half, at, fwhm)


def _galaxy_half(galaxy: dict, band: str, fwhm: float, noise: float) -> int:
    """Half the side [pixels] that holds all light above the faintest, along the major axis."""
    flux = {part: galaxy[f"{part}_flux_{band}"] for part in ("bulge", "disc")}
    scale = galaxy["disc_r50"] / 1.678 / SCALE
    peak = flux["disc"] / (2 * np.pi * scale**2 * galaxy["disc_q"])
    disc = scale * np.log(max(peak / (FAINTEST * noise), 2.0)) / np.sqrt(galaxy["disc_q"])
    size = galaxy["bulge_r50"] / SCALE
    bulge = BULGE_EDGE * size / np.sqrt(galaxy["bulge_q"]) if flux["bulge"] > 0 else 0.0
    # Where I_e exp(-7.67 ((r / r_e)^(1/4) - 1)), I_e = flux / (22.7 r_e^2), meets the limit.
    contrast = flux["bulge"] / (22.7 * size**2 * FAINTEST * noise)
    bulge = min(bulge, size * max(1 + np.log(max(contrast, 1e-3)) / 7.67, 0.2) ** 4 * 1.3)
    wings = _moffat_radius(flux["bulge"] + flux["disc"], fwhm, noise)
    return int(np.clip(max(disc, bulge, wings) + 2 * fwhm / SCALE, 16, LARGEST))


def _moffat_radius(flux: float, fwhm: float, noise: float) -> float:
    """Radius [pixels] at which a point source falls below the faintest light drawn."""
    alpha = fwhm / SCALE / (2 * np.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    peak = flux * (MOFFAT_BETA - 1) / (np.pi * alpha**2)
    return alpha * np.sqrt(max(peak / (FAINTEST * noise), 1.0) ** (1 / MOFFAT_BETA))


def draw_star(star: dict, band: str, at, fwhm: float, here: Chip) -> Stamp:
    """The PSF; above full well the charge spills along the column."""
    flux = star[f"flux_{band}"]
    half = int(np.clip(_moffat_radius(flux, fwhm, here.noise) + 4, 12, LARGEST))
    stamp = _drawn(star["id"], "star", _psf(fwhm) * flux, half, at, fwhm)
    full = here.saturation * here.nmgy_per_dn
    if stamp.light.max() > full:
        stamp.light, stamp.bleed, extra = bled(stamp.light, full)
        stamp.row -= extra
    return stamp


def bled(light: np.ndarray, full: float) -> tuple[np.ndarray, np.ndarray, int]:
    """(light, bled pixels, rows added at each end): charge above `full` fills its column."""
    excess = np.maximum(light - full, 0).sum(axis=0)
    extra = min(int(np.ceil(excess.max() / full / 2)), LONGEST_BLEED)
    light = np.pad(light, ((extra, extra), (0, 0)))
    mask = light >= full
    center = (light.shape[0] - 1) / 2
    outward = np.argsort(np.abs(np.arange(light.shape[0]) - center), kind="stable")
    for column in np.flatnonzero(excess):
        left = excess[column]
        light[:, column] = np.minimum(light[:, column], full)
        for row in outward:
            room = full - light[row, column]
            if room <= 0:
                continue
            light[row, column] += min(room, left)
            mask[row, column] = True
            left -= room
            if left <= 0:
                break
    return light, mask, extra


def _drawn(source: int, kind: str, light, half: int, at, fwhm: float) -> Stamp:
    row, col = round(at[0]), round(at[1])
    offset = galsim.PositionD(at[1] - col, at[0] - row)
    side = 2 * half + 1
    image = light.drawImage(nx=side, ny=side, scale=SCALE, offset=offset, dtype=np.float64)
    return Stamp(source, kind, row - half, col - half, image.array, at, fwhm)


def add_stamps(drawn: list[Stamp], row0: int) -> np.ndarray:
    """Light of all stamps on the frame that begins at strip row `row0`, float64 (1489, 2048)."""
    image = np.zeros(FRAME_SHAPE)
    for stamp in drawn:
        common = stamp.overlap(row0, 0, FRAME_SHAPE)
        if common is not None:
            image[common[0]] += stamp.light[common[1]]
    return image


def noiseless_frame(sky: Sky, field: Field, band: str) -> np.ndarray:
    """What a frame is drawn from, float64 (1489, 2048) [nanomaggy per pixel].

    Sources and seeing only (bleeding stars as they bleed): no sky, no noise, no artefacts.
    """
    return add_stamps(list(stamps(sky, field, band)), first_row(sky.plan, field))
