"""The reference galaxies that the simulated Photoz table is fitted to."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.simulation.detector import SEEING, chip
from pipeline.simulation.measure import magnitude
from pipeline.simulation.plan import Plan, stream
from pipeline.simulation.population import FAINT_LIMIT, MAIN_LIMIT, sample_galaxies
from pipeline.simulation.render import SCALE
from pipeline.survey.extinction import R_DR12, R_SF11
from pipeline.survey.names import BANDS

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
