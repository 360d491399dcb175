"""Predictions of many runs for the same test galaxies, side by side with the catalogue."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import metrics, run
from pipeline.images import manifest
from pipeline.survey import extinction
from pipeline.survey.names import BANDS

ENSEMBLE = "ensemble"
COLUMNS = ("objID", "split", "z", "z_phot", "crps", "pit")
_FOLDER = re.compile(r"(?P<fraction>.+)-(?P<seed>\d+)")
_NAMED_FILE = re.compile(r"(?P<start>[^/=]+)=(?P<file>.+)")
_NO_PHOTOZ = -1.0
"""SDSS writes -9999 where its fit had nothing to go by."""


class Run(NamedTuple):
    """One trained model: what it started from, its share of the labels, its seed."""

    start: str
    fraction: float
    seed: int

    def __str__(self) -> str:
        return f"{self.start}/{self.fraction:g}-{self.seed}"


@dataclass(frozen=True)
class Prediction:
    """What one model, or the catalogue, says of n galaxies, (n,) float64; NaN = says nothing."""

    z_phot: np.ndarray
    crps: np.ndarray
    pit: np.ndarray

    def take(self, rows: np.ndarray) -> Prediction:
        """Those of the galaxies `rows` (index or mask)."""
        return Prediction(self.z_phot[rows], self.crps[rows], self.pit[rows])


@dataclass(frozen=True)
class Sample:
    """The test galaxies that all runs have predicted.

    `galaxies` is sorted by objID: objID int64, z, and from the catalogue r [mag, dereddened
    where it can be], e_bv [mag], seeing [arcsec, FWHM in r]; NaN where unknown. `ensembles` are
    what averaged PDFs say, each under the name of its row (`ensemble_files`).
    """

    galaxies: pd.DataFrame
    runs: dict[Run, Prediction]
    catalogue: Prediction
    ensembles: dict[str, Prediction] = field(default_factory=dict)
    labels: int = 0
    """Labels of fraction 1: labelled train galaxies that have a stamp."""
    counts: dict[str, int] = field(default_factory=dict)
    """test: of the catalogue; predicted: by any run; compared: by all."""

    @property
    def has_catalogue(self) -> np.ndarray:
        """Mask of the galaxies that have a photo-z (with its error) in the catalogue."""
        return np.isfinite(self.catalogue.z_phot)

    def dz(self, prediction: Prediction) -> np.ndarray:
        """Residuals of a prediction, (n,)."""
        return metrics.residuals(prediction.z_phot, self.galaxies["z"].to_numpy())


def read_sample(
    predictions: Sequence[str | Path],
    catalog: str | Path,
    photoz: Mapping[str, str | Path] | None = None,
) -> Sample:
    """Read what runs predict for their test galaxies, and what is known of these.

    Args:
        predictions: files named {start}/{fraction}-{seed}/predictions.parquet, or folders that
            have such files below them.
        catalog: catalog.parquet, with the catalogue's own photo-z.
        photoz: photo-z catalogues of ensembles (from the stage photoz), each by the name of its
            row.

    Raises:
        UserError: a file cannot be read or names no run; no prediction, no test galaxy, none in
            common; a NaN; two redshifts for one galaxy; a test galaxy that is not catalogued.
    """
    tables = {}
    for path in prediction_files(predictions):
        key = run_of(path)
        if key in tables:
            raise run.UserError(f"{path}: run {key} is given twice; leave one out")
        tables[key] = _read_test(path)
    averaged = {
        name: _read_ensemble(Path(path), tables.values())
        for name, path in sorted((photoz or {}).items())
    }
    every = [*tables.values(), *averaged.values()]
    common, predicted = in_common([table.index for table in every])
    tables = {key: table.loc[common] for key, table in sorted(tables.items())}
    averaged = {name: table.loc[common] for name, table in averaged.items()}
    z = _one_redshift(tables | averaged)
    galaxies, catalogue, labels, test = _read_galaxies(catalog, common, z)
    # the catalogue's is an upper limit: not all of its galaxies have a stamp
    labels = max((table.attrs.get("of", 0) for table in tables.values()), default=0) or labels
    return Sample(
        galaxies,
        {key: _prediction(table) for key, table in tables.items()},
        catalogue,
        {name: _prediction(table) for name, table in averaged.items()},
        labels,
        {"test": test, "predicted": predicted, "compared": len(common)},
    )


def ensemble_files(given: Sequence[str]) -> dict[str, str]:
    """Name of its row -> file, of ensembles given as START=FILE, or as FILE alone.

    The row of START=FILE is called `START ensemble`, that of FILE `ensemble`.

    Raises:
        UserError: two have the same name.
    """
    files: dict[str, str] = {}
    for word in given:
        named = _NAMED_FILE.fullmatch(word)
        name, file = (f"{named['start']} {ENSEMBLE}", named["file"]) if named else (ENSEMBLE, word)
        if name in files:
            raise run.UserError(
                f"--photoz {word}: {name} is given twice; give each as START=FILE, another START"
            )
        files[name] = file
    return files


def in_common(indexes: Sequence[pd.Index]) -> tuple[pd.Index, int]:
    """(the galaxies that are in all, rising; how many are in any), with a warning if they differ.

    Raises:
        UserError: none is in all.
    """
    common = indexes[0]
    for index in indexes[1:]:
        common = common.intersection(index)
    predicted = len(np.unique(np.concatenate(list(indexes))))
    if not len(common):
        raise run.UserError("the runs have no test galaxy in common: they are of other data sets")
    if len(common) < predicted:
        run.log.warning(
            "evaluate: runs differ in their test galaxies: %d of %d are in all, and compared",
            len(common), predicted,
        )  # fmt: skip
    return common.sort_values(), predicted


def prediction_files(
    paths: Sequence[str | Path], name: str = "predictions.parquet", how: str = "run the rule train"
) -> list[Path]:
    """The files among `paths`, and those called `name` (a glob) below those that are folders.

    Raises:
        UserError: there are none; it says `how` to make them.
    """
    found = []
    for path in map(Path, paths):
        below = _below(path, name) if path.is_dir() else [path]
        if not below:
            raise run.UserError(f"{path}: no {name} below it; {how}")
        found += below
    if not found:
        raise run.UserError("no predictions to evaluate; give --predictions")
    return found


def _below(folder: Path, name: str) -> list[Path]:
    """The files `name` in a folder, but those of trainings that are not done (hidden)."""
    found = sorted(folder.glob(f"**/{name}"))
    hidden = (any(part.startswith(".") for part in path.relative_to(folder).parts)
              for path in found)  # fmt: skip
    return [path for path, skip in zip(found, hidden, strict=True) if not skip]


def run_of(path: Path) -> Run:
    """The run that a file belongs to, from its path .../{start}/{fraction}-{seed}/name."""
    parts = path.absolute().parts
    match = _FOLDER.fullmatch(parts[-2]) if len(parts) > 2 else None
    try:
        return Run(parts[-3], float(match["fraction"]), int(match["seed"]))
    except (TypeError, ValueError):
        raise run.UserError(
            f"{path}: its folders name no run; it should lie in START/FRACTION-SEED/"
        ) from None


def read_test_rows(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Some columns of the test galaxies of a predictions file, nullable.

    Raises:
        UserError: it is not there or no Parquet, or a column is missing.
    """
    try:
        missing = [name for name in columns if name not in pq.read_schema(path).names]
        if missing:
            raise run.UserError(f"{path}: column {missing[0]} is missing; make it anew")
        return pd.read_parquet(
            path,
            columns=list(columns),
            filters=[("split", "==", "test")],
            dtype_backend="numpy_nullable",
        )
    except FileNotFoundError:
        raise run.UserError(f"{path}: no such file; run the stage that makes it") from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise run.UserError(f"{path}: cannot be read as Parquet ({reason})") from None


def _read_test(path: Path) -> pd.DataFrame:
    """The test rows of a predictions file, by objID, all their numbers finite."""
    table = read_test_rows(path, COLUMNS)
    if table.empty:
        raise run.UserError(f"{path}: no test galaxy is in it; look at the catalogue's split")
    found = _by_objid(path, table, COLUMNS[2:])
    found.attrs = table.attrs
    return found


def _by_objid(path: Path, table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    ids = table["objID"].to_numpy(dtype=np.int64)
    if len(np.unique(ids)) < len(ids):
        raise run.UserError(f"{path}: a galaxy is in it twice; make it anew")
    values = {name: table[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in columns}
    for name, column in values.items():
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            raise run.UserError(
                f"{path}: {name} of galaxy {ids[bad[0]]} is no number ({len(bad)} such); "
                "the training went wrong, look at its history.csv and train again"
            )
    return pd.DataFrame(values, index=pd.Index(ids, name="objID"))


def _read_ensemble(path: Path, runs: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Test rows of a photo-z catalogue; CRPS and PIT from its PDFs."""
    table = read_test_rows(path, ("objID", "split", "z", "z_phot", "pdf"))
    table = table[table["z"].notna().to_numpy(dtype=bool)]
    if table.empty:
        raise run.UserError(f"{path}: no test galaxy is in it; make it from the same dataset")
    found = _by_objid(path, table, ("z", "z_phot"))
    if not any(found.index.isin(one.index).any() for one in runs):
        raise run.UserError(
            f"{path}: the runs predict none of its test galaxies; make it from the same dataset"
        )
    edges = _bin_edges(path)
    pdf, z = np.stack(table["pdf"].to_numpy()), found["z"].to_numpy()
    return found.assign(crps=metrics.crps(pdf, edges, z), pit=metrics.pit(pdf, edges, z))


def _bin_edges(path: Path) -> np.ndarray:
    try:
        return np.array(json.loads((pq.read_schema(path).metadata or {})[b"edges"]))
    except (KeyError, ValueError):
        raise run.UserError(
            f"{path}: its metadata names no edges of the bins; make it with the stage photoz"
        ) from None


def _one_redshift(tables: dict[Run | str, pd.DataFrame]) -> np.ndarray:
    """The redshifts, which all runs and ensembles must agree on."""
    (first, table), *others = tables.items()
    z = table["z"].to_numpy()
    for key, other in others:
        differs = np.flatnonzero(other["z"].to_numpy() != z)
        if len(differs):
            raise run.UserError(
                f"galaxy {table.index[differs[0]]} has another redshift in {key} than in {first}; "
                "train all on one dataset"
            )
    return z


def _prediction(table: pd.DataFrame) -> Prediction:
    return Prediction(*(table[name].to_numpy() for name in ("z_phot", "crps", "pit")))


def _read_galaxies(path, ids: pd.Index, z: np.ndarray):
    """(galaxies, the catalogue's photo-z of them, training galaxies, test galaxies)."""
    dust = tuple(f"extinction_{band}" for band in BANDS)
    wanted = ("dered_petro_r", "petroMag_r", *dust, "psfWidth_r", "photoz", "photozErr",
              "sky_split")  # fmt: skip
    catalog = manifest.read_catalog(path, ("objID", "split"), wanted)
    split = catalog["split"].astype(str)
    sky = catalog["sky_split"].fillna("train") if "sky_split" in catalog else "train"
    labels = int(((split == "train") & np.isin(sky, ("", "train"))).sum())
    catalog.index = catalog["objID"].to_numpy(dtype=np.int64)
    unknown = ids.difference(catalog.index)
    if len(unknown):
        raise run.UserError(
            f"{path}: test galaxy {unknown[0]} is not in it ({len(unknown)} such); "
            "give the catalogue that the dataset was made from"
        )

    def column(name: str) -> np.ndarray:
        if name not in catalog:
            return np.full(len(ids), np.nan)
        return catalog[name].loc[ids].to_numpy(dtype=np.float64, na_value=np.nan)

    absorbed = np.column_stack([column(name) for name in dust])
    r = column("dered_petro_r")
    galaxies = pd.DataFrame({
        "objID": ids.to_numpy(dtype=np.int64),
        "z": z,
        "r": np.where(np.isfinite(r), r, column("petroMag_r") - absorbed[:, 2]),
        "e_bv": extinction.e_bv(absorbed),
        "seeing": column("psfWidth_r"),
    })  # fmt: skip
    catalogue = _catalogue_prediction(column("photoz"), column("photozErr"), z)
    return galaxies, catalogue, labels, int((split == "test").sum())


def _catalogue_prediction(photoz: np.ndarray, error: np.ndarray, z: np.ndarray) -> Prediction:
    """The catalogue's photo-z; its PDF is a Gaussian of its error where that is given.

    A survey that gives errors says nothing of galaxies without one, so that all measures are of
    the same galaxies.
    """
    z_phot = np.where(photoz > _NO_PHOTOZ, photoz, np.nan)
    sigma = np.where((error > 0) & np.isfinite(z_phot), error, np.nan)
    if np.isfinite(sigma).any():
        z_phot = np.where(np.isfinite(sigma), z_phot, np.nan)
    return Prediction(
        z_phot, metrics.gaussian_crps(z_phot, sigma, z), metrics.gaussian_pit(z_phot, sigma, z)
    )
