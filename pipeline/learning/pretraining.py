"""Learning from images alone: the loop that every method shares, and what a method is.

A step: a batch, two views of each image, the method's loss, a step of the optimiser. All that is
random follows from the seed and the number of the step, so a state holds no random generator, and
a run that was killed and goes on ends where an unbroken one does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline import run
from pipeline.learning import checkpoint
from pipeline.learning.augment import view_keys
from pipeline.learning.batches import SEEDS, Batch, Batches
from pipeline.learning.encoder import Encoder
from pipeline.learning.history import History, Pace
from pipeline.learning.method import Loss, Method, Projector, micro_batches, spread
from pipeline.learning.optimise import Ema, finite, learning_rate, set_learning_rate
from pipeline.learning.ranks import Ranks
from pipeline.learning.resnet import share_momentum
from pipeline.run import UserError

COLUMNS = ("epoch", "lr", "loss", "top1", "spread", "probe")
"""Of the history: means of loss and of top1 (the share of views that are most like the other one
of their image) since the row before; `spread` as in `spread`; sigma_mad of the probe where there
was one."""
COLLAPSED = 0.1
"""A spread below this, `_PATIENCE` rows of the history in a row, is called a collapse."""
_PATIENCE = 5
OPTIMISERS = ("sgd", "adam")
View = Callable[[torch.Tensor, torch.Tensor, np.ndarray], torch.Tensor]
"""What makes a view of a batch: (images, extinction, keys) -> (n, 5, crop, crop), as
`augment.Augmentation` does."""


@dataclass(frozen=True)
class Plan:
    """How a method is trained; `accumulate` and `checkpoint_seconds` do not change what comes out.

    `amp` is "none", "bf16" or "fp16"; `ema` the decay of averaged weights, None without;
    `optimiser` "sgd" (momentum 0.9) or "adam" (Kingma & Ba 2015, with its decay in the gradient).
    """

    steps: int
    batch: int = 256
    lr: float = 0.03
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: int = 0
    ema: float | None = None
    amp: str = "none"
    seed: int = 0
    log_every: int = 10
    probe_every: int = 0
    double: bool = False
    accumulate: int = 1
    checkpoint_seconds: float = 600.0
    optimiser: str = "sgd"

    def __post_init__(self):
        """Refuse what cannot be run.

        Raises:
            UserError: numbers out of their range.
        """
        for name, value, least in (
            ("steps", self.steps, 1), ("batch", self.batch, 2), ("log-every", self.log_every, 1),
            ("lr", self.lr, 0), ("weight-decay", self.weight_decay, 0),
            ("accumulate", self.accumulate, 1), ("probe-every", self.probe_every, 0),
        ):  # fmt: skip
            if not value >= least:
                raise UserError(f"{name}: {value}; give {least} or more")
        if self.optimiser not in OPTIMISERS:
            raise UserError(f"optimiser: {self.optimiser}; give one of {', '.join(OPTIMISERS)}")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"seed: {self.seed}; give 0 or more, and less than {SEEDS}")
        learning_rate(0, self.steps, self.lr, self.schedule, self.warmup)

    def due(self, step: int) -> bool:
        """Does step `step` (from 0) end with a row in the history, and perhaps a checkpoint?"""
        done = step + 1
        return (
            done % self.log_every == 0
            or done == self.steps
            or (self.probe_every > 0 and done % self.probe_every == 0)
        )


class Trainer:
    """A method, its optimiser and all else that a step changes."""

    def __init__(self, method: Method, views: tuple[View, View], plan: Plan, ranks: Ranks):
        self.plan, self.ranks, self.views = plan, ranks, views
        self.method = method.to(ranks.device, torch.float64 if plan.double else torch.float32)
        self.amp = _amp(plan.amp, ranks.device)
        for part in method.modules():
            if isinstance(part, Projector):
                part.amp = self.amp
        self.optimiser = _optimiser(plan, method.network)
        self.scaler = torch.amp.GradScaler(enabled=self.amp == torch.float16)
        self.ema = None if plan.ema is None else Ema(method.network, plan.ema)
        self.network = ranks.parallel(method.network)

    @property
    def trained(self) -> Projector:
        """The network that is the product: the averaged one where there is one."""
        return self.method.network if self.ema is None else self.ema.module

    def make_views(self, batch: Batch) -> list[torch.Tensor]:
        """Two views (n, 5, crop, crop) of each image of `batch`, on the device."""
        images = batch.images.to(self.ranks.device, non_blocking=True)
        images = images.double() if self.plan.double else images.float()
        extinction = batch.extinction.to(self.ranks.device, non_blocking=True)
        return [
            view(images, extinction, view_keys(self.plan.seed, batch.epoch, batch.objid, number))
            for number, view in enumerate(self.views)
        ]

    def step(self, batch: Batch) -> Loss:
        """Train on `batch`; the losses and vectors of this rank's rows, in their order."""
        rate = learning_rate(batch.step, self.plan.steps, self.plan.lr, self.plan.schedule,
                             self.plan.warmup)  # fmt: skip
        set_learning_rate(self.optimiser, rate)
        self.method.train()
        views = self.make_views(batch)
        prepared = self.method.prepare(views, batch.step)
        self.optimiser.zero_grad()
        parts = micro_batches(self.plan.accumulate)
        found = []
        for number, rows in enumerate(parts):
            share_momentum(self.method.network, number, len(parts))
            with self._gradients_stay(number + 1 < len(parts)):
                one = self.method.loss(self.network, views, prepared, rows)
                self.scaler.scale(one.loss / len(parts)).backward()
            found.append(one._replace(loss=one.loss.detach()))
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.ranks.mean_buffers(self.method)
        self.method.after_step(prepared)
        if self.ema:
            self.ema.update()
        return _together(found)

    def _gradients_stay(self, stay: bool) -> contextlib.AbstractContextManager:
        """Within this, gradients are summed on each rank and not yet shared."""
        return self.network.no_sync() if stay and self.ranks.ranks > 1 else contextlib.nullcontext()

    def finite(self) -> bool:
        """Are all weights numbers?"""
        return finite(self.method.network)

    def state_dict(self) -> dict:
        """All that a later step depends on."""
        return {
            "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema and self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`."""
        self.method.load_state_dict(state["method"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])


def _optimiser(plan: Plan, network: torch.nn.Module) -> torch.optim.Optimizer:
    given = {"lr": plan.lr, "weight_decay": plan.weight_decay}
    if plan.optimiser == "adam":
        return torch.optim.Adam(network.parameters(), **given)
    return torch.optim.SGD(network.parameters(), momentum=0.9, **given)


def _amp(name: str, device: torch.device) -> torch.dtype | None:
    dtypes = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in dtypes:
        raise UserError(f"amp: {name}; give one of {', '.join(dtypes)}")
    if name == "fp16" and device.type != "cuda":
        raise UserError("amp: fp16 needs a GPU; give bf16, or none")
    return dtypes[name]


def _together(parts: list[Loss]) -> Loss:
    """One `Loss` of the micro-batches j::count, its vectors in the order of the batch."""
    vectors = torch.stack([part.vectors for part in parts], dim=1).flatten(0, 1)
    mean = [
        torch.stack([getattr(part, name) for part in parts]).mean() for name in ("loss", "top1")
    ]
    return Loss(mean[0], vectors, mean[1])


class Run:
    """A training from its first step, or from the last state in `folder`, to its end."""

    def __init__(
        self,
        trainer: Trainer,
        folder: str | Path,
        settings: dict,
        tensorboard: bool = False,
        probe: Callable[[Encoder], float] | None = None,
    ):
        """`settings` (plain values) are all that changes what comes out.

        A state that was kept under other settings is not used, and that is said.
        """
        self.trainer, self.folder, self.settings = trainer, Path(folder), settings
        self.tensorboard, self.probe = tensorboard, probe
        self.state_path = self.folder / ".state.pt"
        self.next_step, self.low = 0, 0
        self.saved, self.waiting = time.monotonic(), []
        self.history: History | None = None
        self._resume()

    def _resume(self) -> None:
        label = self.trainer.method.name
        if not self.state_path.is_file():
            return
        try:
            state = checkpoint.load(self.state_path, "state")
        except UserError as error:
            run.log.warning("%s: begins anew: %s", label, error)
            return
        changed = _difference(state["settings"], self.settings)
        if changed:
            run.log.warning("%s: begins anew: the state that is there is of other settings (%s)",
                            label, changed)  # fmt: skip
            return
        self.trainer.load_state_dict(state["trainer"])
        self.next_step, self.low = state["step"], state["low"]
        run.log.info("%s: goes on after step %d of %d", label, self.next_step,
                     self.trainer.plan.steps)  # fmt: skip

    def train(self, batches: Batches) -> None:
        """Take all steps that are left.

        Raises:
            UserError: the loss is not a number (the last good state stays), or an image cannot
            be read.
        """
        plan, ranks = self.trainer.plan, self.trainer.ranks
        history = self.history = self._history() if ranks.first else None
        pace = Pace(self.trainer.method.name, plan.steps, plan.batch, self.next_step)
        for batch in batches.steps(self.next_step, plan.steps):
            found = self.trainer.step(batch)
            self.waiting.append(torch.stack([found.loss, found.top1.to(found.loss.dtype)]))
            self.next_step = batch.step + 1
            if ranks.first:
                pace.step(batch.step, batch.epoch, lambda loss=found.loss: float(loss))
            if plan.due(batch.step):
                self._note(history, batch, found.vectors)
                self._keep(history)
        if history:
            history.close()

    def _history(self) -> History:
        resume_at = self.next_step or None
        board = self.folder / "tensorboard" if self.tensorboard else None
        return History(self.folder / "history.csv", COLUMNS, resume_at, board)

    def _note(self, history: History | None, batch: Batch, vectors: torch.Tensor) -> None:
        """A row of the history, if the losses since the last one are numbers."""
        plan, ranks = self.trainer.plan, self.trainer.ranks
        values = ranks.mean(torch.stack(self.waiting))
        self.waiting = []
        bad = (~torch.isfinite(values[:, 0])).nonzero()
        if len(bad):
            self._refuse(batch.step + 1 - len(values) + int(bad[0]) + 1)
        loss, top1 = values.mean(dim=0).tolist()
        wide = spread(ranks.gather(vectors))
        self._watch(wide)
        probed = None
        probing = plan.probe_every and (batch.step + 1) % plan.probe_every == 0
        if probing and not self.trainer.finite():  # a step may spoil them after a good loss
            self._refuse(batch.step + 1)
        if history and self.probe and probing:
            probed = self.probe(self.trainer.trained.encoder)
            run.log.info("%s: step %d, probe: sigma_mad %.5f", self.trainer.method.name,
                         batch.step + 1, probed)  # fmt: skip
        if history:
            rate = self.trainer.optimiser.param_groups[0]["lr"]
            history.row(batch.step + 1, epoch=batch.epoch, lr=rate, loss=loss, top1=top1,
                        spread=wide, probe=probed)  # fmt: skip

    def _watch(self, wide: float) -> None:
        """Say it where the embeddings stay together."""
        self.low = self.low + 1 if wide < COLLAPSED else 0
        if self.low and self.low % _PATIENCE == 0:
            run.log.warning(
                "%s: WARNING: step %d: the embeddings have collapsed, all images look alike to "
                "the net (spread %.3f, 1 is all over the sphere); try a lower lr, a warm-up, a "
                "higher temperature or %s",
                self.trainer.method.name, self.next_step, wide, self.trainer.method.remedy,
            )  # fmt: skip

    def _refuse(self, step: int) -> None:
        raise UserError(
            f"{self.trainer.method.name}: the loss is not a number at step {step} of "
            f"{self.trainer.plan.steps}; {checkpoint.kept(self.state_path)}; lower lr "
            f"(now {self.trainer.plan.lr:g}), add a warm-up or leave amp out"
        )

    def _keep(self, history: History | None) -> None:
        """Keep the state where it is time to, on disk, and whole."""
        plan, ranks = self.trainer.plan, self.trainer.ranks
        late = time.monotonic() - self.saved >= plan.checkpoint_seconds
        if not ranks.any(ranks.first and (late or self.next_step == plan.steps)):
            return
        if not self.trainer.finite():
            self._refuse(self.next_step)
        if history:
            history.sync()
            content = {"settings": self.settings, "step": self.next_step, "low": self.low,
                       "trainer": self.trainer.state_dict()}  # fmt: skip
            checkpoint.save(self.state_path, "state", content)
        ranks.barrier()
        self.saved = time.monotonic()

    def finish(self, **extra: object) -> Path | None:
        """Write encoder.pt, with `extra` beside the weights, and remove what resuming needed.

        On the first rank; gives the path there.
        """
        if not self.trainer.ranks.first:
            return None
        trained = self.trainer.trained
        path = self.folder / "encoder.pt"
        checkpoint.save_encoder(
            path, trained.encoder, projection=trained.projection.state_dict(),
            method=self.trainer.method.name, settings=self.settings, **extra,
        )  # fmt: skip
        self.state_path.unlink(missing_ok=True)
        if self.history:
            self.history.discard()
        return path


def _difference(old: dict, new: dict) -> str:
    """The settings that differ, in words; empty where none does."""
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return ", ".join(f"{name}: {old.get(name)} then, {new.get(name)} now" for name in names)
