"""What spoils images: satellite trails and cosmic rays, each in one band only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.simulation.detector import calibration, chip
from pipeline.simulation.plan import Plan, stream
from pipeline.simulation.scan import first_row
from pipeline.survey.names import FIELD_STEP, FRAME_SHAPE, Field

COSMIC_RAYS_PER_TRAIL = 20
"""Cosmic rays are this many times as frequent as trails."""
REACH = 1000
"""A trail ends within this many rows of its middle, so only the next blocks' can be on a frame."""


@dataclass
class Artefact:
    """One trail or cosmic ray: strip pixels (n, 2) and the light [nanomaggy] it adds to each."""

    kind: str
    pixels: np.ndarray
    light: np.ndarray


def artefacts(plan: Plan, field: Field, band: str) -> list[Artefact]:
    """All artefacts that may touch a frame, in the order in which they are added.

    They are drawn by blocks of 1361 rows of the strip: frames that share rows share them.
    """
    found = []
    for block in (field.field - 1, field.field, field.field + 1):
        rng = stream(plan.seed, "artefacts", field.run, field.camcol, band, block)
        row0 = FIELD_STEP * (block - plan.first_field)
        for _ in range(rng.poisson(plan.artefact_rate)):
            found.append(_trail(plan, field, band, row0, rng))
        for _ in range(rng.poisson(plan.artefact_rate * COSMIC_RAYS_PER_TRAIL)):
            found.append(_cosmic_ray(plan, field, band, row0, rng))
    return found


def _trail(plan: Plan, field: Field, band: str, row0: int, rng) -> Artefact:
    """A straight trail across the strip, Gaussian across (FWHM 4 pixels), 4 to 25 sigma bright."""
    middle = np.array([row0 + rng.uniform(0, FIELD_STEP), rng.uniform(0, FRAME_SHAPE[1])])
    angle, bright = rng.uniform(0, np.pi), rng.uniform(4, 25)
    along = np.array([np.sin(angle), np.cos(angle)])
    far = np.arange(-2400, 2401)
    far = far[np.abs(far * along[0]) <= REACH - 10]
    across = np.arange(-6, 7)
    spine = middle + far[:, None] * along
    normal = np.array([along[1], -along[0]])
    near = np.rint(spine[:, None, :] + across[None, :, None] * normal).reshape(-1, 2)
    pixels = np.unique(near.astype(np.int64), axis=0)
    distance = (pixels - middle) @ normal
    noise = chip(plan, field.run, field.camcol, band).noise
    return Artefact("trail", pixels, bright * noise * np.exp(-0.5 * (distance / 1.7) ** 2))


def _cosmic_ray(plan: Plan, field: Field, band: str, row0: int, rng) -> Artefact:
    """A sharp track of 3 to 25 pixels, 200 to 4000 DN in each, not blurred by the seeing."""
    begin = np.array([row0 + rng.uniform(0, FIELD_STEP), rng.uniform(0, FRAME_SHAPE[1])])
    angle, length = rng.uniform(0, 2 * np.pi), int(rng.integers(3, 26))
    steps = np.arange(length)[:, None] * np.array([np.sin(angle), np.cos(angle)])
    pixels = np.unique(np.rint(begin + steps).astype(np.int64), axis=0)
    counts = 10 ** rng.uniform(2.3, 3.6) * rng.uniform(0.5, 1.5, len(pixels))
    nmgy = calibration(plan, field.run, field.camcol, band)
    column = np.clip(pixels[:, 1], 0, FRAME_SHAPE[1] - 1)
    return Artefact("cosmic_ray", pixels, counts * nmgy[column])


def on_frame(pixels: np.ndarray, row0: int) -> np.ndarray:
    """Which strip pixels (n, 2) lie on the frame that begins at `row0`."""
    row, col = pixels[:, 0] - row0, pixels[:, 1]
    return (row >= 0) & (row < FRAME_SHAPE[0]) & (col >= 0) & (col < FRAME_SHAPE[1])


def add_artefacts(light: np.ndarray, found: list[Artefact], plan: Plan, field: Field) -> np.ndarray:
    """A frame's light (1489, 2048) with its artefacts."""
    light, row0 = light.copy(), first_row(plan, field)
    for artefact in found:
        inside = on_frame(artefact.pixels, row0)
        row, col = artefact.pixels[inside].T
        light[row - row0, col] += artefact.light[inside]
    return light
