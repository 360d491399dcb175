"""Broad-band fluxes of galaxy spectra at any redshift: CWW templates through SDSS's filters."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import speclite.filters
from astropy.cosmology import FlatLambdaCDM
from galsim.meta_data import share_dir

from pipeline.survey.names import BANDS

COSMOLOGY = FlatLambdaCDM(H0=70, Om0=0.3)
TEMPLATES = ("E", "Sbc", "Scd", "Im")
"""Coleman, Wu & Weedman (1980), from red to blue; a spectral type counts along them, 0 to 3."""
Z_GRID = np.linspace(0, 0.8, 161)


@lru_cache(maxsize=1)
def flux_table() -> np.ndarray:
    """(template, z, band): flux through each filter, relative to that in r at z = 0 (AB).

    Dimming by distance is left out; the K-correction of Hogg et al. (2002), eq. 8, is in.
    """
    filters = speclite.filters.load_filters("sdss2010-*")
    table = np.empty((len(TEMPLATES), Z_GRID.size, len(BANDS)))
    for row, name in enumerate(TEMPLATES):
        path = Path(share_dir) / "SEDs" / f"CWW_{name}_ext.sed"
        wave, flux = np.loadtxt(path, unpack=True)[:2]
        for column, response in enumerate(filters):
            table[row, :, column] = [_ab_flux(wave, flux, z, response) for z in Z_GRID]
        table[row] /= table[row, 0, BANDS.index("r")]
    return table


def _ab_flux(wave: np.ndarray, flux: np.ndarray, z: float, response) -> float:
    """Photon-weighted mean of F_lambda, redshifted, over that of a flat F_nu."""
    at, through = response.wavelength, response.response
    observed = np.interp(at / (1 + z), wave, flux) / (1 + z)
    return np.trapezoid(observed * at * through, at) / np.trapezoid(through / at, at)


def relative_flux(spectral_type, z) -> np.ndarray:
    """(n, 5) fluxes relative to rest-frame r, linear between templates and between redshifts."""
    spectral_type, z = np.atleast_1d(spectral_type), np.atleast_1d(z)
    table = flux_table()
    low = np.clip(spectral_type.astype(int), 0, len(TEMPLATES) - 2)
    share = (spectral_type - low)[:, None]
    step = np.clip(z / (Z_GRID[1] - Z_GRID[0]), 0, Z_GRID.size - 1.001)
    cell = step.astype(int)
    part = (step - cell)[:, None]

    def at(template):
        return table[template, cell] * (1 - part) + table[template, cell + 1] * part

    return at(low) * (1 - share) + at(low + 1) * share


@lru_cache(maxsize=1)
def _distances() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z = np.linspace(1e-3, 0.8, 1600)
    volume = COSMOLOGY.differential_comoving_volume(z).value
    return z, COSMOLOGY.distmod(z).value, volume


def distance_modulus(z) -> np.ndarray:
    """Distance modulus [mag], flat LCDM with H0 = 70, Omega_m = 0.3."""
    grid, modulus, _ = _distances()
    return np.interp(z, grid, modulus)


def volume_element(z) -> np.ndarray:
    """dV/dz per steradian [Mpc^3]."""
    grid, _, volume = _distances()
    return np.interp(z, grid, volume)


def kpc_per_arcsec(z) -> np.ndarray:
    """Proper kiloparsecs per arcsec."""
    z = np.asarray(z)
    parsecs = 10 ** (distance_modulus(z) / 5 + 1) / (1 + z) ** 2
    return parsecs / 1e3 * np.radians(1 / 3600)
