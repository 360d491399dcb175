"""The stamp: what a cut-out image is, in pixels and on the sky."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from pipeline.run import UserError


@dataclass(frozen=True)
class Stamp:
    """A square TAN image, ICRS, north up, east left, its galaxy on the central pixel's centre.

    `size` is its side in pixels (odd, so that there is a central pixel), `fov` in degrees. The
    default is that of Hayat et al. 2020: 107 px over 0.012 deg, 0.40374 arcsec a pixel.
    """

    size: int = 107
    fov: float = 0.012

    def __post_init__(self):
        if self.size < 3 or self.size % 2 == 0:
            raise UserError(f"size: {self.size} px; give an odd number from 3 up (the paper: 107)")
        if not 0 < self.fov <= 0.2:
            raise UserError(
                f"fov: {self.fov} deg; give a field of view above 0 and up to 0.2 (paper: 0.012)"
            )

    @property
    def scale(self) -> float:
        """Degrees per pixel."""
        return self.fov / self.size

    @property
    def reach(self) -> float:
        """Half the stamp's diagonal [deg]: nothing farther from the galaxy is on it."""
        return self.fov / np.sqrt(2)

    def header(self, ra: float, dec: float) -> fits.Header:
        """The FITS header of the stamp centred on `ra`, `dec` [deg, ICRS]."""
        header = fits.Header()
        header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, self.size, self.size
        header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
        header["CRVAL1"], header["CRVAL2"] = float(ra), float(dec)
        header["CRPIX1"] = header["CRPIX2"] = (self.size + 1) / 2
        header["CDELT1"], header["CDELT2"] = -self.scale, self.scale
        # the default at the very pole is 0, which would turn the stamp by half a circle
        header["LONPOLE"] = 180.0
        # without RADESYS astropy takes EQUINOX = 2000 for FK5, which is 0.06 sigma off
        header["RADESYS"], header["EQUINOX"] = "ICRS", 2000.0
        return header

    def wcs(self, ra: float, dec: float) -> WCS:
        """The astropy WCS of `header`."""
        return WCS(self.header(ra, dec))
