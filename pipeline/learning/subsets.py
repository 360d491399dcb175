"""One training after the other on subsets of the labels, each killed and taken up as it may be.

A training that is done waits, whole, in OUTPUT/.state-{seed} until all of a run are; one that is
not left its state there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline import run
from pipeline.images.reader import ImageSet, in_split, members
from pipeline.learning.labelnet import LabelNet
from pipeline.learning.ranks import Ranks
from pipeline.learning.tasks import Task
from pipeline.learning.training import Data, Keeping, Settings, fit
from pipeline.run import UserError


@dataclass(frozen=True)
class Means:
    """What a training may use; none of it changes the models."""

    ranks: Ranks
    workers: int = 0
    memory_gb: float = 4.0
    minutes: float = 5.0
    tensorboard: bool = False


@dataclass(frozen=True)
class Start:
    """`make_net` gives a fresh net; `origin` tells its start from all others."""

    make_net: Callable[[], LabelNet]
    origin: str = ""


@dataclass(frozen=True)
class Parts:
    """Labelled galaxies of train, of valid, of valid and test; and unlabelled ones, if wanted."""

    train: ImageSet
    valid: ImageSet
    judged: ImageSet
    unlabelled: ImageSet | None = None


Finish = Callable[[LabelNet, dict, Data, Path, str], None]
"""Writes what a training gives, its net and the facts about it, to a folder; the last is a label
for log lines."""


def labelled_parts(
    images: ImageSet, labelled: np.ndarray, what: str, memory_gb: float, unlabelled: bool = False
) -> Parts:
    """The parts of a set whose galaxies `labelled` (mask) have `what`.

    Raises:
        UserError: none of train has.
    """
    train = members(images, "train")
    train = train[labelled[train]]
    if not len(train):
        raise UserError(f"{images.files[0]}: none of the train galaxies has a {what}; label some, "
                        "or look at the catalogue's funnel")  # fmt: skip
    valid = np.flatnonzero(labelled & in_split(images, "valid"))
    if not len(valid):
        run.log.info("no valid galaxies have a %s: the last weights are taken, not the best", what)
    used = images.take(np.concatenate([train, valid]))
    if used.nbytes <= memory_gb * 1e9:
        used = used.in_memory()  # once for all subsets
    return Parts(
        used.take(np.arange(len(train))),
        used.take(np.arange(len(train), len(used))),
        images.take(labelled & (in_split(images, "valid") | in_split(images, "test"))),
        images.take(members(images, "unlabelled")) if unlabelled else None,
    )


def train_subsets(
    parts: Parts, masks: Mapping[str, np.ndarray], start: Start, task: Task, settings: Settings,
    means: Means, output: Path, facts: Mapping, finish: Finish,
    gather: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """Train a net for each of `masks` of parts.train, by name: OUTPUT/{name}-{seed}/.

    `gather` is called when all are there, before what a killed run would go on from is removed.
    `facts` are what, beside the settings, a state must agree in to be taken up.

    Raises:
        UserError: what `fit` raises.
    """
    state = output / f".state-{settings.seed}"
    facts = {**asdict(settings), "origin": start.origin, **facts}
    for name, train, known in _subsets(parts.train, masks, settings.seed, facts):
        done = state / f"{name}-{known[:16]}"
        if not means.ranks.any(means.ranks.first and done.is_dir()):
            data = Data(train, parts.valid, parts.unlabelled, means.workers, means.memory_gb)
            keeping = Keeping(
                state / f"{name}.pt", state / f"{name}.csv", known, means.minutes,
                output / "tensorboard" / name if means.tensorboard else None,
                f"train {output.name} {name}",
            )  # fmt: skip
            net, found = fit(start.make_net(), data, settings, keeping, means.ranks, task)
            found["of"] = len(parts.train)
            if means.ranks.first:
                with run.whole_folder(done) as part:
                    finish(net, found, data, part, keeping.label)
                    shutil.copyfile(keeping.history, part / "history.csv")
                for path in (keeping.state, keeping.history):
                    path.unlink(missing_ok=True)
        if means.ranks.first:
            with run.whole_folder(output / name) as part:
                shutil.copytree(done, part, dirs_exist_ok=True)
    means.ranks.barrier()
    if means.ranks.first:
        if gather:
            gather()
        shutil.rmtree(state)


def _subsets(
    train: ImageSet, masks: Mapping[str, np.ndarray], seed: int, facts: Mapping
) -> Iterator[tuple[str, ImageSet, str]]:
    """(name of the folder, the galaxies, a fingerprint of the training)."""
    for name, mask in masks.items():
        chosen = train.take(mask)
        yield f"{name}-{seed}", chosen, fingerprint(**facts, labels=_hash(chosen.objid))


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def fingerprint(**facts: object) -> str:
    """A hash of `facts`, plain values by name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
