"""What is asked for: runs, camera columns, fields, densities; and its random streams."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from pipeline.run import UserError
from pipeline.survey.names import Field

RUN_STEP = 0.65
"""A run begins after this share of the one before it."""
RUN_SHIFT = 0.05
"""Shift of a run across the scan [deg], times its place in the list modulo 3."""


@dataclass(frozen=True)
class Plan:
    """A simulated survey, as asked for.

    `fields` is the number of fields in each camera column, one number a run; `mu` [deg] is the
    great-circle longitude at which the first run begins; densities are numbers per field, that is
    per 2048 x 1361 pixels of sky; `artefact_rate` is the mean number of satellite trails a frame.
    """

    seed: int = 1
    runs: tuple[int, ...] = (4207, 4263)
    camcols: tuple[int, ...] = (3, 4)
    fields: tuple[int, ...] = (2, 1)
    first_field: int = 11
    inclination: float = 42.5
    mu: float = 117.73
    galaxies_per_field: float = 90.0
    stars_per_field: float = 40.0
    labelled_share: float = 0.6
    artefact_rate: float = 0.15
    reference_size: int = 5000
    shared_sky: bool = False

    def __post_init__(self):
        """Refuse what cannot be drawn, in one line."""
        for wrong, message in (
            (not self.runs or len(set(self.runs)) < len(self.runs), "runs: give distinct numbers"),
            (any(not 94 <= run <= 8162 or run in (1100, 1500) for run in self.runs),
             "runs: SDSS has 94 to 8162 (1100 and 1500 have no stated gain)"),
            (len(self.fields) != len(self.runs),
             f"fields: give one number for each of the {len(self.runs)} runs"),
            (any(count < 1 for count in self.fields), "fields: each run needs at least 1"),
            (not self.camcols or not set(self.camcols) <= set(range(1, 7))
             or len(set(self.camcols)) < len(self.camcols),
             "camcols: give distinct numbers from 1 to 6"),
            (self.first_field < 1 or self.first_field + max(self.fields, default=0) > 4095,
             "first field: field numbers run from 1 to 4095"),
            (not 0 <= self.labelled_share <= 1, "labelled share: give a number from 0 to 1"),
            (self.galaxies_per_field < 0 or self.stars_per_field < 0 or self.artefact_rate < 0,
             "galaxies, stars and artefacts per field: give numbers from 0 up"),
            (self.reference_size < 200, "reference size: a fit to 100 neighbours needs 200"),
            (self.seed < 0, "seed: give a whole number from 0 up"),
        ):  # fmt: skip
            if wrong:
                raise UserError(f"simulated survey: {message}")

    @property
    def run_starts(self) -> list[float]:
        """First field of each run, counted in fields from the first run's start."""
        return list(accumulate((RUN_STEP * count for count in self.fields[:-1]), initial=0.0))

    def count(self, run: int) -> int:
        """Number of fields of `run` in each camera column."""
        return self.fields[self.runs.index(run)]

    def strips(self) -> list[tuple[int, int]]:
        """(run, camcol) of every strip of sky that is scanned, in order."""
        return [(run, camcol) for run in self.runs for camcol in sorted(self.camcols)]

    def all_fields(self) -> list[Field]:
        """Every field, strip by strip."""
        return [
            Field(run, camcol, self.first_field + step)
            for run, camcol in self.strips()
            for step in range(self.count(run))
        ]


def stream(seed: int, label: str, *keys: int | str) -> np.random.Generator:
    """The random stream of one thing: the same for the same keys, whoever draws it and when."""
    words = [zlib.crc32(key.encode()) if isinstance(key, str) else int(key) for key in keys]
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(label.encode()), *words]))
