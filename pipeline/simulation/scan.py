"""Drift scans: great circles, strips of pixels along them, and the frames cut from them.

A strip is all that one CCD (run, camcol, band) saw. Its pixel (row, col) is 0-based like a FITS
array and counts rows from the first row of the run's first field; frame k is the 1489 rows from
1361 k on. SDSS measures from pixel edges: row' = row + 0.5, col' = col + 0.5, and

    mu = a + b row' + c col',    nu = d + f col'

(asTrans's transformation; e = 0 and no distortion), mu and nu being longitude and latitude on
the scan's great circle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from astropy.wcs import WCS

from pipeline.simulation.plan import RUN_SHIFT, Plan, stream
from pipeline.survey.names import FIELD_STEP, FRAME_SHAPE, Field

NODE = 95.0
"""Right ascension of the ascending node of every SDSS scan [deg]."""
ROW_SCALE = 0.39600 / 3600
"""Great-circle longitude per row [deg]: set by the scan rate, so the same in all bands."""
CAMCOL_SPACING = 25.17 / 60
"""Distance of two camera columns [deg]; a CCD is 13.5' wide, so the sky between is not seen."""
COLUMN_SCALE = {"u": 0.39600, "g": 0.39582, "r": 0.39602, "i": 0.39592, "z": 0.39594}
"""Arcsec per column."""
BAND_SHIFT = {
    "u": (7.30, 2.35), "g": (10.64, 0.55), "r": (0.0, 0.0), "i": (2.68, -1.67), "z": (6.95, -1.64),
}  # fmt: skip
"""(row, column) of a point of the sky minus that in r: measured on run 2820, camcol 3."""
FRAME_OFFSET = {"r": 0, "i": 2, "u": 4, "z": 6, "g": 8}
"""Header card FRAME minus the field number: the bands cross a field one after the other."""


def circle_to_sky(mu, nu, inclination: float) -> tuple[np.ndarray, np.ndarray]:
    """(ra, dec) [deg] of great-circle coordinates (mu, nu) [deg]; SDSS, asTrans data model."""
    mu, nu, i = np.radians(np.asarray(mu) - NODE), np.radians(nu), np.radians(inclination)
    x = np.cos(mu) * np.cos(nu)
    y = np.sin(mu) * np.cos(nu) * np.cos(i) - np.sin(nu) * np.sin(i)
    z = np.sin(mu) * np.cos(nu) * np.sin(i) + np.sin(nu) * np.cos(i)
    return (NODE + np.degrees(np.arctan2(y, x))) % 360, np.degrees(np.arcsin(z))


def sky_to_circle(ra, dec, inclination: float) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `circle_to_sky`; mu lies within 180 deg of the node."""
    alpha, delta, i = np.radians(np.asarray(ra) - NODE), np.radians(dec), np.radians(inclination)
    x = np.cos(delta) * np.cos(alpha)
    y = np.cos(delta) * np.sin(alpha) * np.cos(i) + np.sin(delta) * np.sin(i)
    z = -np.cos(delta) * np.sin(alpha) * np.sin(i) + np.sin(delta) * np.cos(i)
    return NODE + np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(z))


@dataclass(frozen=True)
class Strip:
    """What one CCD sees in one run: coefficients [deg, deg/pixel] and the circle's inclination."""

    a: float
    b: float
    c: float
    d: float
    f: float
    inclination: float

    def to_sky(self, row, col) -> tuple[np.ndarray, np.ndarray]:
        """(ra, dec) [deg] of strip pixels (0-based)."""
        row, col = np.asarray(row) + 0.5, np.asarray(col) + 0.5
        return circle_to_sky(
            self.a + self.b * row + self.c * col, self.d + self.f * col, self.inclination
        )

    def to_pixel(self, ra, dec) -> tuple[np.ndarray, np.ndarray]:
        """Strip pixels (row, col), 0-based, of sky positions [deg]."""
        mu, nu = sky_to_circle(ra, dec, self.inclination)
        col = (nu - self.d) / self.f
        return (mu - self.a - self.c * col) / self.b - 0.5, col - 0.5

    def angle(self, ra, dec, position_angle) -> np.ndarray:
        """Angle from +column towards +row [rad] of a position angle (north to east) [rad]."""
        step = 1e-4
        north = dec + step * np.cos(position_angle)
        east = ra + step * np.sin(position_angle) / np.cos(np.radians(dec))
        (row0, col0), (row1, col1) = self.to_pixel(ra, dec), self.to_pixel(east, north)
        return np.arctan2(row1 - row0, col1 - col0)


@lru_cache(maxsize=256)
def strip(plan: Plan, run: int, camcol: int, band: str) -> Strip:
    """The strip of one CCD; neighbouring camera columns leave a gap on the sky."""
    place = plan.runs.index(run)
    shift = stream(plan.seed, "camera", run, camcol).uniform(-3, 3, 2)
    turn = stream(plan.seed, "camera", run, camcol, band).uniform(-3e-8, 3e-8)
    rows, cols = BAND_SHIFT[band]
    f = COLUMN_SCALE[band] / 3600
    center = (camcol - 3.5) * CAMCOL_SPACING + (place % 3) * RUN_SHIFT
    begin = plan.mu + plan.run_starts[place] * FIELD_STEP * ROW_SCALE
    return Strip(
        a=begin - ROW_SCALE * (rows + shift[0]) - turn * 1024.0,
        b=ROW_SCALE,
        c=turn,
        d=center - f * (1024.0 + cols + shift[1]),
        f=f,
        inclination=plan.inclination,
    )


def first_row(plan: Plan, field: Field) -> int:
    """Strip row of a field's first row."""
    return FIELD_STEP * (field.field - plan.first_field)


def frame_wcs(plan: Plan, field: Field, band: str) -> WCS:
    """The frame's header WCS (TAN, ICRS), fitted to the strip's own mapping.

    A scan at latitude nu on its circle is not quite a tangent plane: the residual over a frame is
    below 0.01 pixel in camera columns 3 and 4 and reaches 0.03 pixel in 1 and 6.
    """
    on_sky, row0 = strip(plan, field.run, field.camcol, band), first_row(plan, field)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix = [1025.0, 745.0]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crval = [float(v) for v in on_sky.to_sky(row0 + 744.0, 1024.0)]
    row, col = np.mgrid[0 : FRAME_SHAPE[0] - 1 : 9j, 0 : FRAME_SHAPE[1] - 1 : 9j]
    plane = np.column_stack(
        _tangent(*on_sky.to_sky(row0 + row.ravel(), col.ravel()), *wcs.wcs.crval)
    )
    pixel = np.column_stack([col.ravel() - 1024.0, row.ravel() - 744.0])
    wcs.wcs.cd = np.linalg.lstsq(pixel, plane, rcond=None)[0].T
    return wcs


def _tangent(ra, dec, ra0: float, dec0: float) -> tuple[np.ndarray, np.ndarray]:
    """Tangent-plane coordinates [deg], x to the east (Calabretta & Greisen 2002, eq. 54-55)."""
    alpha, dec, dec0 = np.radians(ra - ra0), np.radians(dec), np.radians(dec0)
    scale = np.sin(dec) * np.sin(dec0) + np.cos(dec) * np.cos(dec0) * np.cos(alpha)
    x = np.cos(dec) * np.sin(alpha) / scale
    y = (np.sin(dec) * np.cos(dec0) - np.cos(dec) * np.sin(dec0) * np.cos(alpha)) / scale
    return np.degrees(x), np.degrees(y)


def frame_astrans(plan: Plan, field: Field, band: str) -> dict[str, float]:
    """The coefficients that the frame's asTrans row holds: A to F, NODE, INCL."""
    on_sky = strip(plan, field.run, field.camcol, band)
    begin = on_sky.a + on_sky.b * first_row(plan, field)
    return {
        "NODE": NODE, "INCL": on_sky.inclination, "A": begin, "B": on_sky.b, "C": on_sky.c,
        "D": on_sky.d, "E": 0.0, "F": on_sky.f,
    }  # fmt: skip


def field_time(plan: Plan, field: Field, band: str) -> float:
    """TAI [s since 1858-11-17] at which the frame's first row was read: 35.82 s a field."""
    night = 51_400.2 + 0.38 * (field.run - 600)
    frame = field.field + FRAME_OFFSET[band]
    return 86400 * night + (frame - plan.first_field) * FIELD_STEP * 0.026322
