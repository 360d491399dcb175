"""Training a net on labelled stamps: from scratch, or from an encoder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline import run
from pipeline.images.reader import ImageSet
from pipeline.learning import checkpoint
from pipeline.learning.augment import Augmentation, centre, e_bv_of, refuse_wrong, view_keys
from pipeline.learning.batches import SEEDS, Batch, Batches, in_order
from pipeline.learning.colours import ColourTask, measure
from pipeline.learning.history import History, Pace
from pipeline.learning.labelnet import LabelNet
from pipeline.learning.losses import LOSSES
from pipeline.learning.optimise import Ema, finite, learning_rate, set_learning_rate
from pipeline.learning.ranks import Ranks
from pipeline.learning.tasks import Task
from pipeline.run import UserError

OPTIMISERS = ("sgd", "adamw")
SELECT = ("best", "last")
COLUMNS = ("epoch", "loss", "lr")
"""Of a history, before what the task is judged by."""
_COLOURS = 0xC010
"""Added to the seed for the order and views of the unlabelled images."""
_SCALE_SAMPLE = 512
"""Unlabelled images whose colours scale those that are asked for."""


@dataclass(frozen=True)
class Settings:
    """How a net is trained. `encoder_rate` is the encoder's learning rate over that of the rest.

    `ema` is a decay, 0 for none. `freeze` leaves the encoder as it is. `colour_weight` is that of
    the colours of unlabelled images (`colours.ColourTask`), 0 for none. With `select` best the
    weights of the check, every `check_every` steps, that valid galaxies judge best are taken.
    `amp` None is mixed precision on a GPU and none on a CPU; a state of either is taken up by both.
    """

    steps: int = 4000
    batch: int = 256
    loss: str = "cross_entropy"
    optimiser: str = "sgd"
    lr: float = 0.004
    encoder_rate: float = 1.0
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: int = 0
    ema: float = 0.0
    rotate: bool = True
    jitter: int = 7
    flips: bool = True
    deredden: bool = True
    groups: int = 1
    freeze: bool = False
    colour_weight: float = 0.0
    check_every: int = 200
    select: str = "best"
    amp: bool | None = False
    seed: int = 0

    def __post_init__(self):
        refuse_wrong((
            ("steps", self.steps, self.steps >= 1, "at least 1"),
            ("batch", self.batch, self.batch >= 1, "at least 1"),
            ("groups", self.groups, self.groups >= 1, "at least 1"),
            ("check_every", self.check_every, self.check_every >= 1, "at least 1"),
            ("seed", self.seed, 0 <= self.seed < SEEDS, f"0 or more, and less than {SEEDS}"),
            ("lr", self.lr, self.lr > 0, "a number above 0"),
            ("encoder_rate", self.encoder_rate, self.encoder_rate >= 0, "0 or more"),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
            ("colour_weight", self.colour_weight, self.colour_weight >= 0, "0 or more"),
            ("loss", self.loss, self.loss in LOSSES, f"one of {', '.join(LOSSES)}"),
            ("optimiser", self.optimiser, self.optimiser in OPTIMISERS,
             f"one of {', '.join(OPTIMISERS)}"),
            ("select", self.select, self.select in SELECT, f"one of {', '.join(SELECT)}"),
        ))  # fmt: skip
        if self.freeze and self.colour_weight:
            raise UserError("colour_weight: a frozen encoder learns nothing from colours; give 0")
        learning_rate(0, self.steps, self.lr, self.schedule, self.warmup)  # refuses what is wrong

    def batch_of(self, labels: int, ranks: int = 1) -> int:
        """The batch for so many labels: no larger than they are, a multiple of `groups`.

        Raises:
            UserError: fewer labels than two groups of batch normalisation need (2 each), or
                groups that ranks cannot share.
        """
        if self.groups % ranks:
            raise UserError(f"groups: {self.groups} is not a multiple of {ranks} ranks; give one "
                            "that is")  # fmt: skip
        least = 2 * max(self.groups, 2)
        if labels < least:
            raise UserError(
                f"{labels} labels, but batch normalisation in {self.groups} groups needs {least}; "
                "give more labels or fewer groups"
            )
        batch = min(self.batch, labels) // self.groups * self.groups
        if batch < 2 * self.groups:
            raise UserError(f"batch: {self.batch} leaves {self.groups} groups of batch "
                            f"normalisation fewer than 2 images each; give {2 * self.groups} or "
                            "more")  # fmt: skip
        return batch


@dataclass(frozen=True)
class Data:
    """What a training reads: labelled images to train and to select on, and unlabelled ones."""

    train: ImageSet
    valid: ImageSet
    unlabelled: ImageSet | None = None
    workers: int = 0
    memory_gb: float = 4.0


@dataclass(frozen=True)
class Keeping:
    """Where the state for a resume and the history go, and how often the state is written."""

    state: Path
    history: Path
    fingerprint: str
    minutes: float = 5.0
    tensorboard: Path | None = None
    label: str = "train"


def fit(
    net: LabelNet, data: Data, settings: Settings, keeping: Keeping, ranks: Ranks, task: Task
) -> tuple[LabelNet, dict]:
    """Train `net` for `task` and give it with the chosen weights, and facts about the training.

    The facts: labels, batch, step of the chosen weights, and what the task is judged by, of valid
    (None without valid galaxies).
    A state of the same fingerprint is taken up where it was left; the result is the same.

    Raises:
        UserError: too few labels, a loss that is not finite, images that cannot be read.
    """
    training = _Training(net, data, settings, keeping, ranks, task)
    first = training.resume()
    history = None
    if ranks.first:
        resume_at = first if first else None
        columns = (*COLUMNS, task.judged)
        history = History(keeping.history, columns, resume_at, keeping.tensorboard)
    pace = Pace(keeping.label, settings.steps, training.batch, first)
    written = time.monotonic()
    for batch in training.batches.steps(first, settings.steps):
        training.step(batch)
        done = batch.step + 1
        if ranks.first:
            pace.step(batch.step, batch.epoch, training.mean_loss)
        if done % settings.check_every == 0 or done == settings.steps:
            training.check(done, batch.epoch, history)
        due = ranks.any(time.monotonic() - written >= 60 * keeping.minutes)
        if due and done < settings.steps:
            if ranks.first:
                history.sync()
            training.save(done)
            written = time.monotonic()
    if ranks.first:
        history.close()
        history.discard()
    return training.chosen()


class _Training:
    """A net in training: everything that its next step depends on."""

    def __init__(
        self, net: LabelNet, data: Data, settings: Settings, keeping: Keeping, ranks: Ranks,
        task: Task,
    ):  # fmt: skip
        self.settings, self.keeping, self.ranks, self.task = settings, keeping, ranks, task
        self.valid = data.valid
        self.batch = settings.batch_of(len(data.train), ranks.ranks)
        self.net = net.to(ranks.device)
        self.net.encoder.set_groups(settings.groups // ranks.ranks)
        self.net.encoder.requires_grad_(not settings.freeze)
        self.dtype = self.net.fc.weight.dtype
        share = dict(workers=data.workers, rank=ranks.rank, ranks=ranks.ranks,
                     memory_gb=data.memory_gb)  # fmt: skip
        self.batches = Batches(data.train, self.batch, settings.seed, **share)
        self.others = self.colours = self._next_other = None
        if settings.colour_weight:
            self._prepare_colours(data.unlabelled, share)
        self.learner = _Learner(self.net, self.colours)
        self.parallel = ranks.parallel(self.learner)
        self.optimiser = _optimiser(self.learner, settings)
        gpu = ranks.device.type == "cuda"
        self.amp = gpu if settings.amp is None else settings.amp
        half = self.amp and gpu and not torch.cuda.is_bf16_supported()
        self.half = torch.float16 if half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=half)
        self.ema = Ema(self.net, settings.ema) if settings.ema else None
        self.augment = Augmentation(
            crop=net.encoder.spec.crop, deredden=settings.deredden, rotate=settings.rotate,
            jitter=settings.jitter, flips=settings.flips,
        )  # fmt: skip
        self.losses: list[float] = []
        self.best: dict = {"step": None, task.judged: None, "weights": None}

    def _prepare_colours(self, unlabelled: ImageSet | None, share: dict) -> None:
        if unlabelled is None or len(unlabelled) < self.batch:
            count = 0 if unlabelled is None else len(unlabelled)
            raise UserError(f"colour_weight: needs unlabelled images, a batch of {self.batch} at "
                            f"least, and the set has {count}; give 0")  # fmt: skip
        self.others = Batches(unlabelled, self.batch, self.settings.seed + _COLOURS, **share)
        sample = self.others.images.take(np.arange(min(_SCALE_SAMPLE, len(unlabelled))))
        crop = self.net.encoder.spec.crop
        found = [
            measure(centre(part.images, part.extinction, crop)) for part in in_order(sample, 64)
        ]
        dim = self.net.encoder.feature_dim
        task = ColourTask(dim, torch.cat(found).to(self.dtype), self.settings.seed)
        self.colours = task.to(self.ranks.device, self.dtype)

    def _views(self, batch: Batch, seed: int) -> torch.Tensor:
        keys = view_keys(seed, batch.epoch, batch.objid, 0)
        return self.augment(self._pixels(batch), batch.extinction.to(self.ranks.device), keys)

    def _pixels(self, batch: Batch) -> torch.Tensor:
        # float16 on disk; the net's own type from here on
        return batch.images.to(self.ranks.device).to(self.dtype)

    def _e_bv(self, batch: Batch) -> torch.Tensor:
        return e_bv_of(batch.extinction).to(self.ranks.device)

    def step(self, batch: Batch) -> None:
        """One step of the optimiser.

        Raises:
            UserError: the loss is not finite.
        """
        settings, device = self.settings, self.ranks.device
        rate = learning_rate(
            batch.step, settings.steps, settings.lr, settings.schedule, settings.warmup
        )
        set_learning_rate(self.optimiser, rate)
        self._train_mode()
        inputs = [self._views(batch, settings.seed), self._e_bv(batch)]
        if self.others is not None:
            inputs += self._other_views(batch.step)
        with torch.autocast(device.type, dtype=self.half, enabled=self.amp):
            logits, colour_loss = self.parallel(*inputs)
        logits = logits.to(self.dtype) if self.amp else logits
        loss = self.task.loss(logits, batch)
        total = loss + settings.colour_weight * colour_loss
        value = float(self.ranks.mean(total))
        if not np.isfinite(value):
            self._refuse(batch.step + 1, f"the loss is {value}")
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.ema:
            self.ema.update()
        self.losses.append(value)

    def _other_views(self, step: int) -> list[torch.Tensor]:
        """A batch of unlabelled images: views of it, and it as it is for its colours."""
        if step != self._next_other:
            self._other_steps = self.others.steps(step, self.settings.steps)
        self._next_other = step + 1
        batch = next(self._other_steps)
        clean = centre(self._pixels(batch), batch.extinction, self.augment.crop)
        return [self._views(batch, self.settings.seed + _COLOURS), self._e_bv(batch), clean]

    def _train_mode(self) -> None:
        self.learner.train()
        if self.settings.freeze:
            self.net.encoder.eval()

    def mean_loss(self) -> float:
        """Of the steps since the last check."""
        return float(np.mean(self.losses))

    def check(self, done: int, epoch: int, history: History | None) -> None:
        """After `done` steps: a look at valid, a row of the history, the best weights yet."""
        self._refuse_not_finite(done)  # by all ranks at once
        judged = self.ema.module if self.ema else self.net
        self.ranks.mean_buffers(judged)
        if history is not None:
            found = None
            if len(self.valid):
                options = {"device": self.ranks.device, "deredden": self.settings.deredden}
                found = self.task.judge(judged, self.valid, **options)
                self._refuse_not_finite(done, found)
            best = self.best[self.task.judged]
            last = self.settings.select == "last" or found is None
            if last or best is None or found < best:
                weights = _copy(judged)
                self.best = {"step": done, self.task.judged: found, "weights": weights}
            rate = self.optimiser.param_groups[-1]["lr"]
            row = {"epoch": epoch, "loss": self.mean_loss(), "lr": rate, self.task.judged: found}
            history.row(done, **row)
        self.losses = []

    def chosen(self) -> tuple[LabelNet, dict]:
        """The net with the chosen weights, in eval mode, and facts; on the first rank."""
        facts = {"labels": len(self.batches.images), "batch": self.batch,
                 **{name: self.best[name] for name in ("step", self.task.judged)}}  # fmt: skip
        if self.best["weights"] is not None:
            self.net.load_state_dict(self.best["weights"])
        self.net.encoder.requires_grad_(True)
        return self.net.eval(), facts

    def save(self, done: int) -> None:
        """Write the state after `done` steps; running statistics are shared by ranks before."""
        self._refuse_not_finite(done)
        self.ranks.mean_buffers(self.learner)
        if not self.ranks.first:
            return
        content = {
            "fingerprint": self.keeping.fingerprint, "step": done,
            "learner": self.learner.state_dict(),
            "optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "losses": list(self.losses), "best": self.best,
        }  # fmt: skip
        checkpoint.save(self.keeping.state, "state", content)

    def _refuse_not_finite(self, done: int, found: float = 0.0) -> None:
        """A step may spoil the weights after its loss was still a number."""
        if not (finite(self.learner) and np.isfinite(found)):
            self._refuse(done, "what the net says is not finite")

    def _refuse(self, done: int, what: str) -> None:
        raise UserError(
            f"step {done}: {what}; give a smaller lr or a warmup "
            f"({checkpoint.kept(self.keeping.state)})"
        )

    def resume(self) -> int:
        """Take up the state on disk where it is one of this training; the number of steps done."""
        keeping = self.keeping
        if not keeping.state.is_file():
            return 0
        try:
            state = checkpoint.load(keeping.state, "state")
        except UserError as error:
            run.log.warning("%s: begun anew: %s", keeping.label, error)
            return 0
        if state["fingerprint"] != keeping.fingerprint:
            run.log.info("%s: other settings or data than the state's; begun anew", keeping.label)
            return 0
        self.learner.load_state_dict(state["learner"])
        self.optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:  # none of a CPU
            self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.losses, self.best = state["losses"], state["best"]
        run.log.info("%s: taken up after step %d", keeping.label, state["step"])
        return state["step"]


class _Learner(nn.Module):
    """The net and, where it is wanted, the colour task: one forward pass for both."""

    def __init__(self, net: LabelNet, colours: ColourTask | None):
        super().__init__()
        self.net, self.colours = net, colours

    def forward(
        self, views, e_bv, other_views=None, other_e_bv=None, clean=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the labelled views; the loss of the unlabelled ones' colours, 0 without."""
        logits = self.net(views, e_bv)
        if self.colours is None:
            return logits, logits.new_zeros(())
        return logits, self.colours(self.net.encoder(other_views, other_e_bv), clean)


def _optimiser(learner: _Learner, settings: Settings) -> torch.optim.Optimizer:
    """The encoder with its own factor of the rate; the rest, heads, with 1."""
    encoder = list(learner.net.encoder.parameters())
    own = {id(parameter) for parameter in encoder}
    heads = [parameter for parameter in learner.parameters() if id(parameter) not in own]
    groups = [{"params": heads, "factor": 1.0}]
    if not settings.freeze:
        groups.insert(0, {"params": encoder, "factor": settings.encoder_rate})
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)


def _copy(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
