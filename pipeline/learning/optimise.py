"""Learning rates and averaged weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from pipeline.run import UserError

SCHEDULES = ("cosine", "constant", "step")
STEP_AT = (0.6, 0.9)
"""Shares of the run after which "step" divides the rate by ten (the paper: epochs 60 and 90)."""


def learning_rate(
    step: int, steps: int, base: float, schedule: str = "cosine", warmup: int = 0
) -> float:
    """The learning rate of step `step` (from 0) of `steps`.

    It rises linearly over the first `warmup` steps to `base`; after them "cosine" is
    Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, down to 0 at `steps`.

    Raises:
        UserError: an unknown schedule, or a warm-up that is not shorter than the run.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule: {schedule}; give one of {', '.join(SCHEDULES)}")
    if not 0 <= warmup < max(steps, 1):
        raise UserError(f"warmup: {warmup} steps of {steps}; give fewer than there are")
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule == "constant":
        return base
    if schedule == "step":
        return base * 0.1 ** sum(step >= share * steps for share in STEP_AT)
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give each group of parameters `rate` times its own factor, its key "factor" (1 without)."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def finite(module: nn.Module) -> bool:
    """Are all parameters of `module` numbers?"""
    flags = [torch.isfinite(each).all() for each in module.parameters()]
    return bool(torch.stack(flags).all())


class Ema:
    """An exponential moving average of a module's parameters; its buffers are copied.

    `module` is the averaged copy, in eval mode. While fewer than about 10 / (1 - decay) updates
    are made the decay is (1 + n) / (10 + n), so that the initial weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise UserError(f"ema: {decay}; give a decay from 0 up to, but not including, 1")
        self.source, self.decay, self.updates = module, decay, 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Take the source's present weights into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averaged, present = list(self.module.parameters()), list(self.source.parameters())
        torch._foreach_lerp_(averaged, present, 1 - decay)
        for ours, theirs in zip(self.module.buffers(), self.source.buffers(), strict=True):
            ours.copy_(theirs)

    def state_dict(self) -> dict:
        """The average and the number of updates."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
