"""The task photoz: redshifts from fractions of the labels, by nets or from magnitudes.

OUTPUT/{fraction}-{seed}/ gets model.pt, predictions.parquet (valid and test galaxies), history.csv.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline import metrics, run
from pipeline.images.reader import ImageSet, label_fraction
from pipeline.learning import catalogue, checkpoint, domain, predict, tasks
from pipeline.learning.redshift import Bins, PhotozNet, save_model
from pipeline.learning.subsets import Means, Parts, Start, labelled_parts, train_subsets
from pipeline.learning.training import Data, Settings
from pipeline.run import UserError
from pipeline.survey.hashing import mix64

_DESCRIBED = 16384
"""Galaxies of train and of valid, at most, that a model's domain is measured on."""


def train_photoz(
    images: ImageSet, output: Path, fractions: Sequence[float], start: Start, bins: Bins,
    settings: Settings, means: Means, label_seed: int, turns: int = 8,
) -> list[str]:  # fmt: skip
    """Train a net on each of `fractions` of the labels of train; see the module for what is made.

    Gives the names of the fractions, which the folders begin with.
    `label_seed` decides, for all starts alike, which labels a fraction has; predictions average
    over `turns` turns of the square.

    Raises:
        UserError: no labelled galaxies, a fraction that leaves too few, and what `fit` raises.
    """
    parts = _parts(images, means.memory_gb, settings.colour_weight > 0)
    masks = _masks(parts, fractions, label_seed)
    for name, mask in masks.items():  # before anything is trained
        try:
            settings.batch_of(int(mask.sum()), means.ranks.ranks)
        except UserError as error:
            raise UserError(f"fraction {name}: {error}") from None

    def finish(net: PhotozNet, found: dict, data: Data, folder: Path, label: str) -> None:
        _finish(net, found, data, parts.judged, settings, turns, folder, label)

    facts = {"turns": turns, "data": images.digest}
    task = tasks.redshifts(bins, settings.loss)
    train_subsets(parts, masks, start, task, settings, means, output, facts, finish)
    return list(masks)


def train_magnitudes(
    images: ImageSet, catalog: str, output: Path, fractions: Sequence[float], method: str,
    seed: int, label_seed: int,
) -> None:  # fmt: skip
    """Redshifts by a method of `learning.catalogue`: the same folders, splits and labels.

    model.pt holds what the method starts from (magnitudes and redshifts of the labelled galaxies);
    both methods make the same of it again.

    Raises:
        UserError: no labelled galaxies, too few at a fraction, no magnitudes in `catalog`.
    """
    parts = _parts(images, memory_gb=0)
    judged = parts.judged.table
    mags = catalogue.magnitudes(catalog, parts.judged.objid)
    known = catalogue.magnitudes(catalog, parts.train.objid)
    for name, mask in _masks(parts, fractions, label_seed).items():
        z = parts.train.table["z"].to_numpy(np.float64)[mask]
        table = catalogue.predictions(method, judged, mags, known[mask], z, seed)
        table.attrs = {"labels": int(mask.sum()), "of": len(parts.train)}
        crps = table.loc[table["split"] == "valid", "crps"].mean()
        with run.whole_folder(output / f"{name}-{seed}") as folder:
            table.to_parquet(folder / "predictions.parquet", index=False)
            content = {"method": method, "seed": seed, "magnitudes": torch.from_numpy(known[mask]),
                       "z": torch.from_numpy(z)}  # fmt: skip
            checkpoint.save(folder / "model.pt", "magnitudes", content)
            (folder / "history.csv").write_text(f"labels,valid_crps\n{mask.sum()},{crps:.9g}\n")
        run.log.info("train %s %s-%d: %d labels, valid CRPS %.5f", method, name, seed,
                     mask.sum(), crps)  # fmt: skip


def _parts(images: ImageSet, memory_gb: float, unlabelled: bool = False) -> Parts:
    labelled = np.isfinite(images.table["z"].to_numpy(dtype=np.float64))
    return labelled_parts(images, labelled, "redshift", memory_gb, unlabelled)


def _masks(parts: Parts, fractions: Sequence[float], label_seed: int) -> dict[str, np.ndarray]:
    """The labels that each fraction has, by its name, so that no two share a folder."""
    names = dict.fromkeys(f"{each:g}" for each in fractions)
    return {name: label_fraction(parts.train.objid, float(name), label_seed) for name in names}


def _finish(
    net: PhotozNet, found: dict, data: Data, judged: ImageSet, settings: Settings, turns: int,
    folder: Path, label: str,
) -> None:  # fmt: skip
    options = {"deredden": settings.deredden, "workers": data.workers,
               "device": next(net.parameters()).device}  # fmt: skip
    known = _describe(net, data, options)
    table = predict.predictions(net, judged, turns=turns, label=f"{label} predicts", **options)
    table.attrs = {name: found[name] for name in ("labels", "of")}
    save_model(
        folder / "model.pt", net, deredden=settings.deredden, turns=turns, training=found,
        domain=domain.to_state(known),
    )  # fmt: skip
    table.to_parquet(folder / "predictions.parquet", index=False)
    valid = table[table["split"] == "valid"]
    if len(valid):
        dz = metrics.residuals(valid["z_phot"], valid["z"])
        run.log.info(
            "%s: %d labels, weights of step %d; %d valid galaxies: sigma_mad %.5f, CRPS %.5f",
            label, found["labels"], found["step"], len(valid), metrics.sigma_mad(dz),
            valid["crps"].mean(),
        )  # fmt: skip


def _describe(net: PhotozNet, data: Data, options: dict) -> domain.Domain:
    """What `net` was trained on; the limit of outlier scores is that of valid galaxies."""
    found = []
    for images in (data.train, data.valid):
        rows = np.sort(np.argsort(mix64(images.objid), kind="stable")[:_DESCRIBED])
        chosen = images.take(rows)
        parts = list(predict.outputs(net, chosen, **options))
        found.append((chosen, *(
            np.concatenate([getattr(part, name) for part in parts]) if parts else None
            for name in ("features", "colours")
        )))  # fmt: skip
    (train, features, measured), (valid, valid_features, _) = found
    known = domain.describe(train.objid, features, measured, data.train.table["z"].to_numpy())
    return domain.with_limit(known, valid_features, valid.objid) if len(valid) else known
