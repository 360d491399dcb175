"""Redshifts from catalogue magnitudes alone: what a net on images is to be better than.

`local_linear`: Beck et al. 2016 (arXiv:1603.09708), as DR12's own photo-z. `boosted_trees`:
gradient-boosted regression trees (scikit-learn's histogram trees), with an error from a second
model of the first one's cross-validated residuals. The PDF of both is a Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold, cross_val_predict

from pipeline import metrics, run
from pipeline.images import manifest
from pipeline.run import UserError
from pipeline.survey.names import BANDS
from pipeline.survey.photoz import features, local_linear

LEAST = 20
"""Labels below which no plane is fitted and no tree is grown."""
FOLDS = 5
"""Of the residuals that the trees' error is learnt from."""
LEAST_ERROR = 1e-4
"""Floor of an error in z: a few galaxies may lie on a plane by chance."""


class Guess(NamedTuple):
    """Redshifts and their errors, (n,) float64."""

    z: np.ndarray
    error: np.ndarray


def by_local_linear(mags: np.ndarray, known: np.ndarray, z: np.ndarray, seed: int) -> Guess:
    """Of galaxies with magnitudes (n, 5) from those with magnitudes (m, 5) and redshifts (m,)."""
    found = local_linear(mags, known, z)
    return Guess(found["z"].to_numpy(), found["zErr"].to_numpy())


def by_boosted_trees(mags: np.ndarray, known: np.ndarray, z: np.ndarray, seed: int) -> Guess:
    """As `by_local_linear`; features are r and the four colours too. `seed` decides the folds."""
    learnt, asked = features(known), features(mags)
    model = _trees(seed)
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    left = np.abs(cross_val_predict(model, learnt, z, cv=folds) - z)
    # the mean of |x| of a Gaussian is sqrt(2 / pi) sigma
    error = _trees(seed).fit(learnt, left).predict(asked) * np.sqrt(np.pi / 2)
    return Guess(model.fit(learnt, z).predict(asked), error)


def _trees(seed: int) -> HistGradientBoostingRegressor:
    """Small trees, slowly: 200 of 15 leaves, 10 galaxies a leaf at least."""
    return HistGradientBoostingRegressor(
        max_iter=200, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=10,
        early_stopping=False, random_state=seed,
    )  # fmt: skip


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, int], Guess]] = {
    "local_linear": by_local_linear,
    "boosted_trees": by_boosted_trees,
}
"""Starts of `train` that look at no image."""


def magnitudes(catalog: str, objid: np.ndarray) -> np.ndarray:
    """Dereddened model magnitudes (n, 5) of galaxies of catalog.parquet; NaN where unknown.

    Raises:
        UserError: the catalogue has no such magnitudes, or a galaxy is not in it.
    """
    names = [f"{name}_{band}" for name in ("modelMag", "extinction") for band in BANDS]
    table = manifest.catalogued(catalog, objid, tuple(names))
    lacking = [name for name in names if name not in table or table[name].isna().all()]
    if lacking:
        raise UserError(f"{catalog}: has no {lacking[0]}; redshifts from magnitudes need those of "
                        "all bands (queries/labelled.sql gives them)")  # fmt: skip
    values = table[names].to_numpy(dtype=np.float64, na_value=np.nan)
    return values[:, :5] - values[:, 5:]


def predictions(method: str, judged: pd.DataFrame, mags: np.ndarray, known: np.ndarray,
                z: np.ndarray, seed: int) -> pd.DataFrame:  # fmt: skip
    """Photo-z of the galaxies `judged` (objID, split, z), in the columns of `predict.predictions`.

    `mags` (n, 5) are theirs, `known` (m, 5) and `z` (m,) those of the labelled galaxies. A missing
    magnitude counts as the labelled galaxies' median colour says; galaxies stay comparable.

    Raises:
        UserError: fewer labels than `LEAST`.
    """
    if len(z) < LEAST:
        raise UserError(f"{method}: {len(z)} labels; it needs {LEAST}: give a larger fraction")
    mags, known = _filled(mags, known), _filled(known, known)
    guess = METHODS[method](mags, known, z, seed)
    error = np.maximum(guess.error, LEAST_ERROR)
    truth = judged["z"].to_numpy(dtype=np.float64)
    table = pd.DataFrame({
        "objID": judged["objID"].to_numpy(dtype=np.int64), "split": judged["split"].to_numpy(),
        "z": truth, "z_phot": guess.z, "z_width": error,
        "crps": metrics.gaussian_crps(guess.z, error, truth),
        "pit": metrics.gaussian_pit(guess.z, error, truth),
    })  # fmt: skip
    return table.sort_values("objID", ignore_index=True)


def _filled(mags: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`mags` with what is missing put in: r plus the median of (band - r) of `known`."""
    missing = ~np.isfinite(mags)
    if not missing.any():
        return mags
    run.log.info("%d of %d galaxies lack a magnitude; median colours stand for it",
                 missing.any(axis=1).sum(), len(mags))  # fmt: skip
    colour = np.nanmedian(known - known[:, 2:3], axis=0)
    level = np.full((len(mags), 1), np.nanmedian(known[:, 2]))
    some = ~missing.all(axis=1)
    level[some, 0] = np.nanmedian((mags - colour)[some], axis=1)
    return np.where(missing, level + colour, mags)
