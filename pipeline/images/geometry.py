"""Where a stamp's pixels lie on a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from astropy.wcs import WCS

from pipeline.images.stamp import Stamp
from pipeline.survey.names import FRAME_SHAPE

TOLERANCE = 1e-6
"""Frame pixels by which the fitted map may miss the true one at the points it was fitted to."""


def from_tangent_plane(ra, dec, xi, eta) -> tuple[np.ndarray, np.ndarray]:
    """Sky position [deg] of tangent-plane offsets `xi` (east), `eta` (north) [deg] from ra, dec.

    The inverse gnomonic projection (Calabretta & Greisen 2002, section 5.1.3); arguments
    broadcast.
    """
    ra, dec, xi, eta = (np.deg2rad(value) for value in (ra, dec, xi, eta))
    toward_pole = np.cos(dec) - eta * np.sin(dec)
    longitude = ra + np.arctan2(xi, toward_pole)
    latitude = np.arctan2(np.sin(dec) + eta * np.cos(dec), np.hypot(xi, toward_pole))
    return np.rad2deg(longitude) % 360, np.rad2deg(latitude)


def corners(stamp: Stamp, ra: float, dec: float, wcs: WCS) -> np.ndarray:
    """Frame pixel (x, y), 0-based, of every pixel corner of the stamp at `ra`, `dec`.

    Shape (size + 1, size + 1, 2); [0, 0] is the south-east corner. From one tangent plane to
    another the map is a projective one, so the true WCS at 3 x 3 points gives it; where it does
    not fit (a frame that is not TAN) the true WCS is used at every corner. NaN where the stamp
    lies on the other half of the sky.
    """
    half, edges = stamp.fov / 2, np.linspace(-1, 1, stamp.size + 1)
    three = edges[[0, stamp.size // 2, -1]]
    points = _on_frame(three * half, ra, dec, wcs)
    if not np.isfinite(points).all():
        return np.full((edges.size, edges.size, 2), np.nan)
    projection = _fit_projection(three, points)
    if np.abs(_project(projection, three) - points).max() > TOLERANCE:
        return _on_frame(edges * half, ra, dec, wcs)
    return _project(projection, edges)


def _on_frame(edges: np.ndarray, ra: float, dec: float, wcs: WCS) -> np.ndarray:
    east, north = np.meshgrid(-edges, edges)
    sky = from_tangent_plane(ra, dec, east, north)
    return np.stack(wcs.wcs_world2pix(*(angle.ravel() for angle in sky), 0), -1).reshape(
        *east.shape, 2
    )


def _fit_projection(edges: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The 3 x 3 matrix that takes (east, north, 1) to (x, y, 1) up to a factor."""
    east, north = (grid.ravel() for grid in np.meshgrid(-edges, edges))
    one, none = np.ones(east.size), np.zeros(east.size)
    centre = points.reshape(-1, 2).mean(axis=0)
    x, y = (points.reshape(-1, 2) - centre).T
    for_x = np.stack([east, north, one, none, none, none, -x * east, -x * north], axis=1)
    for_y = np.stack([none, none, none, east, north, one, -y * east, -y * north], axis=1)
    terms = np.linalg.lstsq(np.concatenate([for_x, for_y]), np.concatenate([x, y]), rcond=None)[0]
    shift = np.array([[1, 0, centre[0]], [0, 1, centre[1]], [0, 0, 1]])
    return shift @ np.append(terms, 1).reshape(3, 3)


def _project(projection: np.ndarray, edges: np.ndarray) -> np.ndarray:
    east, north = np.meshgrid(-edges, edges)
    x, y, scale = np.einsum(
        "ij,j...->i...", projection, np.stack([east, north, np.ones_like(east)])
    )
    return np.stack([x / scale, y / scale], axis=-1)


@dataclass(frozen=True)
class Window:
    """The part of a frame that a stamp touches: rows and columns, half open."""

    rows: slice
    columns: slice

    @property
    def origin(self) -> np.ndarray:
        """(x, y) of its first pixel."""
        return np.array([self.columns.start, self.rows.start], dtype=float)

    def __bool__(self) -> bool:
        return self.rows.start < self.rows.stop and self.columns.start < self.columns.stop


def window(points: np.ndarray, shape: tuple[int, int], margin: int = 2) -> Window:
    """The pixels of a frame of `shape` that a stamp with corners `points` can touch."""
    flat = points.reshape(-1, 2)
    low = np.floor(flat.min(axis=0)).astype(int) - margin
    high = np.ceil(flat.max(axis=0)).astype(int) + margin + 1
    rows, columns = (
        slice(max(int(low[k]), 0), max(min(int(high[k]), shape[1 - k]), 0)) for k in (1, 0)
    )
    return Window(rows, columns)


class Place(NamedTuple):
    """Where a stamp lies on a frame: its pixel corners, and the part of the frame they touch."""

    corners: np.ndarray
    part: Window


def places(stamp: Stamp, sky: np.ndarray, wcs: WCS, margin: int) -> list[Place | None]:
    """Where stamps at `sky` (n, 2) ra, dec [deg] lie on an SDSS frame; None: not on it."""
    found: list[Place | None] = []
    for ra, dec in sky:
        points = corners(stamp, ra, dec, wcs)
        part = window(points, FRAME_SHAPE, margin) if np.isfinite(points).all() else None
        found.append(Place(points, part) if part else None)
    return found
