"""What is on the sky: galaxies, stars and the dust before them, strip by strip.

Stated relations, for a galaxy of absolute magnitude M = M_r (H0 = 70):
- luminosity: Schechter, M* = -21.2, alpha = -1.05 (Blanton et al. 2003), constant in comoving
  volume, seen down to an apparent limit: for r < 17.8 the median redshift is about 0.1;
- type u from 0 (early) to 1 (late): normal cdf of 0.55 (M + 20.9) + 0.8 times a normal deviate;
- bulge's share of rest-frame r: 0.95 (1 - u)^1.4, scatter 0.08; bulges have the E spectrum,
  discs that of spectral type 0.3 + 2.5 u (E = 0, Sbc = 1, Scd = 2, Im = 3), scatter 0.15;
- half-light radius: 3.2 kpc (L / L(-20.5))^0.6 early, 5.0 kpc (L / L(-20.5))^0.3 late, blended by
  u, scatter 0.25 in ln (after Shen et al. 2003); bulge and disc share it as in `_shapes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from astropy.coordinates import SkyCoord
from scipy.special import ndtr

from pipeline.simulation.colours import (
    distance_modulus,
    kpc_per_arcsec,
    relative_flux,
    volume_element,
)
from pipeline.simulation.plan import Plan, stream
from pipeline.simulation.scan import strip
from pipeline.survey.extinction import R_DR12, R_SF11
from pipeline.survey.names import BANDS, FIELD_STEP, FRAME_SHAPE

MAIN_LIMIT = 17.9
"""r without dust down to which the main sample goes: its cut, on measured r, lies before it."""
FAINT_LIMIT = 19.2
FAINT_SHARE = 0.25
"""Galaxies between the two limits, as a share of those of the main sample."""
DISTANT_SHARE = 0.01
"""Giant ellipticals at 0.4 < z < 0.48, brighter than the limit."""
BORDER = 60
"""Sources lie up to this many pixels outside a strip."""


@dataclass
class Sky:
    """A plan and all that shines on it; positions of sources in each strip are kept as needed.

    `galaxies` and `stars` have a row a source: id, ra, dec [deg], e_bv, flux_b [nanomaggy,
    reddened], and for galaxies what `sample_galaxies` draws.
    """

    plan: Plan
    galaxies: pd.DataFrame
    stars: pd.DataFrame
    _places: dict = field(default_factory=dict, repr=False)
    _records: dict = field(default_factory=dict, repr=False)

    def record(self, kind: str, which: int) -> dict:
        """One galaxy or star, by its place in the table, as a dict of plain numbers."""
        if kind not in self._records:
            self._records[kind] = getattr(self, kind).to_dict("records")
        return self._records[kind][which]

    def places(self, kind: str, run: int, camcol: int, band: str) -> np.ndarray:
        """(row, col) of all galaxies or stars in a strip's pixels, shape (n, 2)."""
        key = (kind, run, camcol, band)
        if key not in self._places:
            table = getattr(self, kind)
            on_strip = strip(self.plan, run, camcol, band)
            row_col = on_strip.to_pixel(table["ra"].to_numpy(), table["dec"].to_numpy())
            self._places[key] = np.column_stack(row_col)
        return self._places[key]


def make_sky(plan: Plan) -> Sky:
    """All sources of a plan: the same for the same plan, whoever asks."""
    galaxies, stars = [], []
    for run, camcol in plan.strips():
        rng = stream(plan.seed, "galaxies", run, camcol)
        galaxies.append(_place(plan, run, camcol, _galaxies_of_strip(plan, run, rng), rng))
        rng = stream(plan.seed, "stars", run, camcol)
        count = rng.poisson(plan.stars_per_field * _strip_fields(plan, run))
        stars.append(_place(plan, run, camcol, sample_stars(rng, count), rng))
    galaxies = _with_dust(plan, pd.concat(galaxies, ignore_index=True))
    stars = _with_dust(plan, pd.concat(stars, ignore_index=True))
    galaxies.insert(0, "id", np.arange(len(galaxies), dtype=np.int64))
    stars.insert(0, "id", np.arange(len(stars), dtype=np.int64) + len(galaxies))
    return Sky(plan, galaxies, stars)


def _strip_fields(plan: Plan, run: int) -> float:
    """Area that sources of a strip are strewn over, in fields of 2048 x 1361 pixels."""
    rows = FIELD_STEP * (plan.count(run) - 1) + FRAME_SHAPE[0] + 2 * BORDER
    return rows * (FRAME_SHAPE[1] + 2 * BORDER) / (FIELD_STEP * FRAME_SHAPE[1])


def _galaxies_of_strip(plan: Plan, run: int, rng: np.random.Generator) -> pd.DataFrame:
    mean = plan.galaxies_per_field * _strip_fields(plan, run)
    main, faint = rng.poisson(mean), rng.poisson(FAINT_SHARE * mean)
    sample = pd.concat(
        [
            sample_galaxies(rng, main, 13.5, MAIN_LIMIT),
            sample_galaxies(rng, faint, MAIN_LIMIT, FAINT_LIMIT),
            sample_galaxies(rng, round(DISTANT_SHARE * main), 17.2, 17.7, distant=True),
        ],
        ignore_index=True,
    )
    bright = sample["r_true"] < MAIN_LIMIT
    fading = plan.labelled_share * np.clip(1.6 - 0.8 * (sample["r_true"] - 17.0), 0.8, 1.4)
    chance = np.where(bright, fading, 0.15 * plan.labelled_share)
    sample["labelled"] = rng.random(len(sample)) < chance
    return sample


def sample_galaxies(
    rng: np.random.Generator, count: int, r_min: float, r_max: float, distant: bool = False
) -> pd.DataFrame:
    """`count` galaxies with r_min <= r < r_max (no dust), by the relations at the module's top.

    Columns: z, M_r, r_true, type (0 early, 1 late), bulge_fraction (rest-frame r), bulge_flux_b
    and disc_flux_b [nanomaggy, no dust], bulge_r50, disc_r50, r50 [arcsec], bulge_q, disc_q (axis
    ratios), angle (position angle, north to east) [rad].
    """
    parts, have = [], 0
    while have < count or not parts:
        part = _draw_galaxies(rng, 2 * (count - have) + 20, r_max, distant)
        part = part[(part["r_true"] >= r_min) & (part["r_true"] < r_max)]
        parts.append(part)
        have += len(part)
    return pd.concat(parts, ignore_index=True).head(count)


def _draw_galaxies(rng, count: int, r_max: float, distant: bool) -> pd.DataFrame:
    if distant:
        z = rng.uniform(0.405, 0.48, count)
        kind, bulge = np.full(count, 0.02), np.full(count, 0.92)
        disc_type = np.full(count, 0.2)
        shape = relative_flux(np.zeros(count), z)
        r_true = rng.uniform(r_max - 0.5, r_max, count)
        magnitude = r_true - distance_modulus(z) + 2.5 * np.log10(shape[:, 2])
    else:
        z, magnitude = _luminosities(rng, count, r_max)
        kind = ndtr(0.55 * (magnitude + 20.9) + 0.8 * rng.standard_normal(count))
        bulge = np.clip(0.95 * (1 - kind) ** 1.4 + rng.normal(0, 0.08, count), 0, 0.98)
        disc_type = np.clip(0.3 + 2.5 * kind + rng.normal(0, 0.15, count), 0, 3)
    rest = 10 ** (-0.4 * (magnitude + distance_modulus(z) - 22.5))
    light = {
        "bulge": (rest * bulge)[:, None] * relative_flux(np.zeros(count), z),
        "disc": (rest * (1 - bulge))[:, None] * relative_flux(disc_type, z),
    }
    columns = {"z": z, "M_r": magnitude, "type": kind, "bulge_fraction": bulge}
    for part, flux in light.items():
        columns |= {f"{part}_flux_{band}": flux[:, k] for k, band in enumerate(BANDS)}
    total = light["bulge"][:, 2] + light["disc"][:, 2]
    columns["r_true"] = 22.5 - 2.5 * np.log10(total)
    return pd.DataFrame(columns | _shapes(rng, magnitude, z, kind, bulge))


def _luminosities(rng, count: int, r_max: float) -> tuple[np.ndarray, np.ndarray]:
    """Redshifts and absolute magnitudes of a flux-limited sample, the K-correction taken as z."""
    grid_m = np.linspace(-24.5, -16, 500)
    x = 10 ** (-0.4 * (grid_m + 21.2))
    number = np.cumsum(x**-0.05 * np.exp(-x))
    grid_z = np.linspace(0.005, 0.4, 400)
    # A margin of 0.5 mag: the true K-correction depends on type, the caller cuts on it.
    faintest = np.clip(r_max + 0.5 - distance_modulus(grid_z) - grid_z, -24.4, -16)
    reach = np.interp(faintest, grid_m, number)
    weight = np.cumsum(volume_element(grid_z) * reach)
    z = np.interp(rng.random(count), weight / weight[-1], grid_z)
    return z, np.interp(rng.random(count) * np.interp(z, grid_z, reach), number, grid_m)


def _shapes(rng, magnitude, z, kind, bulge) -> dict[str, np.ndarray]:
    count = len(z)
    luminosity = 10 ** (-0.4 * (magnitude + 20.5))
    early, late = 3.2 * luminosity**0.6, 5.0 * luminosity**0.3
    kpc = early ** (1 - kind) * late**kind * np.exp(0.25 * rng.standard_normal(count))
    r50 = np.clip(kpc / kpc_per_arcsec(z), 0.35, 25.0)
    cosine = rng.random(count)
    return {
        "r50": r50,
        "bulge_r50": r50 * (0.35 + 0.65 * bulge),
        "disc_r50": r50 * (1.1 + 0.2 * bulge),
        "bulge_q": rng.uniform(0.6, 1.0, count),
        "disc_q": np.sqrt(cosine**2 + (1 - cosine**2) * 0.18**2),
        "angle": rng.uniform(0, np.pi, count),
    }


def sample_stars(rng: np.random.Generator, count: int) -> pd.DataFrame:
    """`count` stars, 11 < r < 20.5 (counts rising as 10^(0.2 r)), on a straight stellar locus."""
    low, high = 10 ** (0.2 * 11.0), 10 ** (0.2 * 20.5)
    r = 5 * np.log10(low + (high - low) * rng.random(count))
    g_r = np.clip(rng.normal(0.75, 0.35, count), 0.1, 1.5)
    colours = {"u": 2.2 * g_r + 0.6, "g": g_r, "r": 0 * g_r, "i": -0.4 * g_r, "z": -0.6 * g_r}
    return pd.DataFrame(
        {f"flux_{b}": 10 ** (-0.4 * (r + colour - 22.5)) for b, colour in colours.items()}
    )


def _place(plan: Plan, run: int, camcol: int, sample: pd.DataFrame, rng) -> pd.DataFrame:
    """Strew a sample evenly over its strip, less what an earlier strip has covered already."""
    rows = FIELD_STEP * (plan.count(run) - 1) + FRAME_SHAPE[0]
    row = rng.uniform(-BORDER, rows + BORDER, len(sample))
    col = rng.uniform(-BORDER, FRAME_SHAPE[1] + BORDER, len(sample))
    ra, dec = strip(plan, run, camcol, "r").to_sky(row, col)
    free = np.ones(len(sample), bool)
    for other, other_camcol in plan.strips()[: plan.strips().index((run, camcol))]:
        length = FIELD_STEP * (plan.count(other) - 1) + FRAME_SHAPE[0]
        at_row, at_col = strip(plan, other, other_camcol, "r").to_pixel(ra, dec)
        inside = (at_row > -BORDER) & (at_row < length + BORDER)
        free &= ~(inside & (at_col > -BORDER) & (at_col < FRAME_SHAPE[1] + BORDER))
    placed = sample.assign(ra=ra, dec=dec)
    return placed[free].reset_index(drop=True)


def reddening(plan: Plan, longitude, b) -> np.ndarray:
    """E(B-V) [mag] at galactic positions [deg]: a slab of dust with waves of 0.2 to 2 degrees."""
    rng = stream(plan.seed, "dust")
    slab = 0.028 / np.maximum(np.abs(np.sin(np.radians(b))), 0.1)
    waves = np.zeros(np.shape(longitude))
    for period, height in ((2.0, 0.2), (0.7, 0.12), (0.2, 0.06)):
        turn, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        along = longitude * np.cos(np.radians(b)) * np.cos(turn) + b * np.sin(turn)
        waves = waves + height * np.sin(2 * np.pi * along / period + phase)
    return slab * (1 + waves)


def galactic(ra, dec) -> tuple[np.ndarray, np.ndarray]:
    """Galactic (l, b) [deg] of ICRS positions [deg]."""
    position = SkyCoord(ra, dec, unit="deg").galactic
    return position.l.deg, position.b.deg


def _with_dust(plan: Plan, table: pd.DataFrame) -> pd.DataFrame:
    """Add l, b, e_bv, extinction_b (DR12's) and the reddened flux_b.

    The light is dimmed by Schlafly & Finkbeiner's coefficients, which are nearer to the truth,
    while the catalogue's extinctions use DR12's: as on the real sky.
    """
    longitude, b = galactic(table["ra"].to_numpy(), table["dec"].to_numpy())
    e_bv = reddening(plan, longitude, b)
    columns = {"l": longitude, "b": b, "e_bv": e_bv}
    for k, band in enumerate(BANDS):
        columns[f"extinction_{band}"] = R_DR12[k] * e_bv
        dimmed = 10 ** (-0.4 * R_SF11[k] * e_bv)
        if "z" in table:
            for part in ("bulge", "disc"):
                columns[f"{part}_flux_{band}"] = table[f"{part}_flux_{band}"] * dimmed
            columns[f"flux_{band}"] = columns[f"bulge_flux_{band}"] + columns[f"disc_flux_{band}"]
            columns[f"intrinsic_flux_{band}"] = columns[f"flux_{band}"] / dimmed
        else:
            columns[f"flux_{band}"] = table[f"flux_{band}"] * dimmed
    return table.assign(**columns)
