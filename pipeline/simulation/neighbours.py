"""Photometric redshifts as DR12 has them: a local linear fit to the nearest reference galaxies."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from pipeline.simulation.detector import SEEING, chip
from pipeline.simulation.measure import magnitude
from pipeline.simulation.plan import Plan, stream
from pipeline.simulation.population import FAINT_LIMIT, MAIN_LIMIT, sample_galaxies
from pipeline.simulation.render import SCALE
from pipeline.survey.extinction import R_DR12, R_SF11
from pipeline.survey.names import BANDS

NEIGHBOURS = 100
FAINT_REFERENCES = 0.25


def reference_set(plan: Plan, e_bv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dereddened model magnitudes (n, 5), redshifts (n,)) of galaxies that are not on the sky.

    `plan.reference_size` galaxies from the same relations but a stream of their own, seen through
    dust like that of the survey (`e_bv`, drawn from) and with the noise of a model fit of the
    right shape under the first strip's sky. Galaxies without a detection in some band are left
    out, as in Beck et al. (2016).
    """
    rng = stream(plan.seed, "reference")
    faint = round(plan.reference_size * FAINT_REFERENCES)
    sample = pd.concat(
        [
            sample_galaxies(rng, plan.reference_size - faint, 13.5, MAIN_LIMIT),
            sample_galaxies(rng, faint, MAIN_LIMIT, FAINT_LIMIT),
        ],
        ignore_index=True,
    )
    dust = rng.choice(e_bv, len(sample)) if len(e_bv) else np.full(len(sample), 0.05)
    run, camcol = plan.strips()[0]
    mags = np.empty((len(sample), len(BANDS)))
    for k, band in enumerate(BANDS):
        here = chip(plan, run, camcol, band)
        flux = sample[f"bulge_flux_{band}"] + sample[f"disc_flux_{band}"]
        flux = flux.to_numpy() * 10 ** (-0.4 * R_SF11[k] * dust)
        width = np.hypot(SEEING[band] / 2.355, 0.8 * sample["r50"].to_numpy()) / SCALE
        noise = np.sqrt(4 * np.pi * width**2 * here.noise**2 + flux * here.nmgy_per_dn / here.gain)
        mags[:, k] = magnitude(flux + noise * rng.standard_normal(len(flux)), noise)[0]
        mags[:, k] -= R_DR12[k] * dust
    seen = np.all(mags > -1000, axis=1)
    return mags[seen], sample["z"].to_numpy()[seen]


def photometric_redshifts(mags: np.ndarray, reference: np.ndarray, z: np.ndarray) -> pd.DataFrame:
    """Redshifts from magnitudes (n, 5), by Beck et al. (2016), section 3.

    A plane is fitted to the redshifts of the 100 nearest references in r and the four colours;
    those beyond three times the scatter are dropped and the plane is fitted again. Columns z,
    zErr (rms about the plane), nnCount (references used), photoErrorClass (1 within the box of
    its neighbours, -1 outside), nnAvgZ. Where a magnitude is missing: -9999, nnCount 0.
    """
    features, known = _features(mags), _features(reference)
    scale = known.std(axis=0)
    tree = cKDTree(known / scale)
    rows = []
    for magnitudes, at in zip(mags, features, strict=True):
        if not np.all(magnitudes > -1000):
            rows.append((-9999.0, -9999.0, 0, -9999, -9999.0))
            continue
        near = tree.query(at / scale, min(NEIGHBOURS, len(known)))[1]
        rows.append(_local_fit(at, known[near], z[near]))
    return pd.DataFrame(rows, columns=["z", "zErr", "nnCount", "photoErrorClass", "nnAvgZ"])


def _features(mags: np.ndarray) -> np.ndarray:
    return np.column_stack([mags[:, 2], -np.diff(mags, axis=1)])


def _local_fit(at: np.ndarray, known: np.ndarray, z: np.ndarray) -> tuple:
    keep = np.ones(len(z), bool)
    for _ in range(2):
        design = np.column_stack([np.ones(keep.sum()), known[keep] - at])
        plane = np.linalg.lstsq(design, z[keep], rcond=None)[0]
        left = z - plane[0] - (known - at) @ plane[1:]
        error = np.sqrt(np.mean(left[keep] ** 2))
        again = np.abs(left) <= 3 * error
        if again.sum() < 20 or np.array_equal(again, keep):
            break
        keep = again
    inside = np.all((at >= known.min(axis=0)) & (at <= known.max(axis=0)))
    return float(plane[0]), float(error), int(keep.sum()), 1 if inside else -1, float(z.mean())
