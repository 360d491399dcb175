"""The task morphology: early or late, from so many labels, by nets on images or on vectors.

OUTPUT/{count}-{seed}/ gets model.pt and history.csv, and OUTPUT/predictions-{seed}.parquet what
all of them say of valid and test galaxies: objID, split, labels (the count), early (bool, the
truth) and p_early. Counts that the survey has not are left out, which is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import run
from pipeline.images.morphology import CLASSES
from pipeline.images.reader import ImageSet, first_labels, in_split
from pipeline.learning import checkpoint, smallnet, tasks
from pipeline.learning.labelnet import LabelNet
from pipeline.learning.smallnet import Labelled, SmallSettings
from pipeline.learning.subsets import Means, Parts, Start, labelled_parts, train_subsets
from pipeline.learning.training import Data, Settings
from pipeline.run import UserError

_OWN = "predictions.parquet"
"""Of one count; gathered into one file when all are done."""


def train_types(
    images: ImageSet, types: np.ndarray, output: Path, counts: Sequence[int], start: Start,
    settings: Settings, means: Means, label_seed: int, turns: int = 8,
) -> list[str]:  # fmt: skip
    """Train a net on images for each of `counts` labels of train; see the module for what is made.

    Gives the counts that there are, as their folders are named.
    `types` (n,) are 1 early, 0 late, NaN unknown. `label_seed` decides which labels a count has;
    those of a smaller one are among those of a larger. Predictions average over `turns` turns.

    Raises:
        UserError: no galaxy with a type, fewer than the smallest count, a class without a member
            among the labels, and what `fit` raises.
    """
    if settings.loss != "cross_entropy":
        raise UserError(f"loss: {settings.loss} is of redshifts; types take cross_entropy")
    parts = _parts(images, types, means.memory_gb, settings.colour_weight > 0)
    masks = _masks(parts, counts, label_seed)
    for count in masks:  # before anything is trained
        try:
            settings.batch_of(int(count), means.ranks.ranks)
        except UserError as error:
            raise UserError(f"counts: {count}: {error}") from None
    options = {"deredden": settings.deredden, "turns": turns}

    def finish(net: LabelNet, found: dict, data: Data, folder: Path, label: str) -> None:
        p = tasks.early_chances(
            net, parts.judged, workers=data.workers, device=next(net.parameters()).device,
            label=f"{label} predicts", **options,
        )  # fmt: skip
        checkpoint.save_encoder(
            folder / "model.pt", net.encoder, fc=net.fc.state_dict(), classes=list(CLASSES),
            training=found, **options,
        )  # fmt: skip
        _predictions(parts.judged, p, found["labels"]).to_parquet(folder / _OWN, index=False)
        _tell(label, parts.judged, p, found["labels"])

    known = np.concatenate([parts.train.objid, parts.valid.objid])
    early = np.concatenate([_early(parts.train), _early(parts.valid)])
    digest = hashlib.sha256(np.ascontiguousarray(types).tobytes()).hexdigest()
    facts = {"turns": turns, "data": images.digest, "types": digest}
    task = tasks.types(known, early)

    def gather() -> None:
        _gather(output, masks, settings.seed)

    train_subsets(parts, masks, start, task, settings, means, output, facts, finish, gather)
    return list(masks)


def train_on_vectors(
    images: ImageSet, types: np.ndarray, output: Path, counts: Sequence[int],
    vectors_of: Callable[[ImageSet], np.ndarray], settings: SmallSettings, label_seed: int,
) -> list[str]:  # fmt: skip
    """As `train_types`, by a small net on vectors: `vectors_of` a set, (n, dim) float32.

    Raises:
        UserError: as `train_types`, and what `vectors_of` and `fit_small` raise.
    """
    parts = _parts(images, types, memory_gb=0)
    masks = _masks(parts, counts, label_seed)
    train, valid, judged = (
        Labelled(vectors_of(part), _early(part))
        for part in (parts.train, parts.valid, parts.judged)
    )
    for count, mask in masks.items():
        label = f"train {output.name} {count}-{settings.seed}"
        chosen = Labelled(train.x[mask], train.early[mask])
        net, found, history = smallnet.fit_small(chosen, valid, settings)
        p = net.early_chances(judged.x)
        with run.whole_folder(output / f"{count}-{settings.seed}") as folder:
            content = {"dim": train.x.shape[1], "net": net.state_dict(), "training": found}
            checkpoint.save(folder / "model.pt", "smallnet", content)
            rows = pd.DataFrame(history)
            rows.to_csv(folder / "history.csv", index=False, float_format="%.7g")
            _predictions(parts.judged, p, int(count)).to_parquet(folder / _OWN, index=False)
        _tell(label, parts.judged, p, int(count))
    _gather(output, masks, settings.seed)
    return list(masks)


def _parts(
    images: ImageSet, types: np.ndarray, memory_gb: float, unlabelled: bool = False
) -> Parts:
    typed = replace(images, table=images.table.assign(type=types))
    parts = labelled_parts(typed, np.isfinite(types), "type", memory_gb, unlabelled)
    test = parts.judged.take(in_split(parts.judged, "test"))
    for number, called in enumerate(CLASSES):
        if not np.any(_early(test) == number):
            run.log.warning("no test galaxy is %s by these votes, so nothing can be scored; look "
                            "at threshold and least_votes", called)  # fmt: skip
    return parts


def _early(images: ImageSet) -> np.ndarray:
    """Whether each is early; they all have a type."""
    return images.table["type"].to_numpy() == CLASSES.index("early")


def _masks(parts: Parts, counts: Sequence[int], label_seed: int) -> dict[str, np.ndarray]:
    """The labels that each count has, by the name of its folder; both classes are in all."""
    there = len(parts.train)
    for count in counts:
        if count < 2:
            raise UserError(f"counts: {count}; give 2 labels or more")
    kept = sorted({count for count in counts if count <= there})
    if not kept:
        raise UserError(f"counts: {min(counts)} at least, but {there} train galaxies have a type; "
                        "give a smaller count, or a lower threshold")  # fmt: skip
    left = sorted({*counts} - {*kept})
    if left:
        run.log.info("counts %s are left out: %d train galaxies have a type",
                     ", ".join(map(str, left)), there)  # fmt: skip
    masks = {str(count): first_labels(parts.train.objid, count, label_seed) for count in kept}
    early = _early(parts.train)
    for name, mask in masks.items():
        for number, called in enumerate(CLASSES):
            if not np.any(early[mask] == number):
                raise UserError(f"counts: {name}: none of these labels is {called}; give a larger "
                                "count or another label_seed")  # fmt: skip
    return masks


def _predictions(judged: ImageSet, p: np.ndarray, labels: int) -> pd.DataFrame:
    return pd.DataFrame({
        "objID": judged.objid, "split": judged.table["split"].to_numpy(),
        "labels": np.int64(labels), "early": _early(judged), "p_early": p,
    })  # fmt: skip


def _tell(label: str, judged: ImageSet, p: np.ndarray, labels: int) -> None:
    valid = judged.table["split"].to_numpy(dtype=object) == "valid"
    if valid.any():
        right = np.mean((p >= 0.5)[valid] == _early(judged)[valid])
        run.log.info("%s: %d labels; %d valid galaxies: accuracy %.4f", label, labels,
                     valid.sum(), right)  # fmt: skip


def _gather(output: Path, names: Iterable[str], seed: int) -> None:
    """Put the predictions of all counts into one file."""
    own = [pd.read_parquet(output / f"{name}-{seed}" / _OWN) for name in names]
    table = pd.concat(own).sort_values(["labels", "objID"], kind="stable", ignore_index=True)
    with run.whole_file(output / f"predictions-{seed}.parquet") as part:
        table.to_parquet(part, index=False)
