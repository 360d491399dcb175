"""One process or many: ranks that share a batch, as `torchrun` starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

from pipeline.run import UserError

DEVICES = ("auto", "cpu", "cuda")
_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that it sets beside WORLD_SIZE."""
_PATIENCE = timedelta(hours=6)
"""How long ranks wait for the first, which alone predicts and writes."""


def on_this_node() -> int:
    """How many ranks share this node's cores and memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def use_threads(count: int | None) -> None:
    """Let torch compute with `count` threads on a CPU, which the ranks of a node share.

    With None or 0 they are the cores, if there are many ranks; one takes as many as torch likes.

    Raises:
        UserError: a count below 0.
    """
    if count and count < 0:
        raise UserError(f"threads: {count}; give 1 or more, or leave it out")
    ranks = on_this_node()
    if not count and ranks > 1:
        count = len(os.sched_getaffinity(0))
    if count:
        torch.set_num_threads(max(1, count // ranks))


def check_devices(name: str, ranks: int = 1) -> None:
    """Refuse, before anything is started, a device that is not there for each of `ranks`.

    Raises:
        UserError: as `choose_device`; fewer GPUs than ranks on this node.
    """
    if choose_device(name).type == "cuda" and torch.cuda.device_count() < ranks:
        raise UserError(
            f"ranks: {ranks}, but torch finds {torch.cuda.device_count()} GPUs on this node; ask "
            "for more (in a profile: set-resources: gpu), give as many ranks as GPUs, or device cpu"
        )


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """`cpu`, `cuda`, or with `auto` the GPU where there is one.

    Raises:
        UserError: no such name, or a GPU is asked for that is not there.
    """
    if name not in DEVICES:
        raise UserError(f"device: {name}; give one of {', '.join(DEVICES)}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device: cuda, but torch finds no GPU; ask for one (in a profile: "
                        "set-resources: gpu), or give cpu or auto")  # fmt: skip
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"rank {local_rank} of this node has no GPU, there are "
                        f"{torch.cuda.device_count()}; start as many ranks")  # fmt: skip
    return torch.device("cuda", local_rank)


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that share batches: rank r holds rows r::ranks."""

    rank: int = 0
    ranks: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def from_environment(cls, device: str = "auto") -> Ranks:
        """Join the group that torchrun's variables describe; one rank where there are none.

        Raises:
            UserError: some of them are missing, or the device is.
        """
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        missing = [name for name in _TORCHRUN if name not in os.environ]
        if ranks > 1 and missing:
            raise UserError(f"WORLD_SIZE is {ranks}, but {missing[0]} is not set; start many ranks "
                            "with torchrun, or unset WORLD_SIZE")  # fmt: skip
        if ranks == 1:
            return cls(0, 1, choose_device(device))
        chosen = choose_device(device, int(os.environ["LOCAL_RANK"]))
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
        return cls(distributed.get_rank(), ranks, chosen)

    @property
    def first(self) -> bool:
        """Is this the rank that writes?"""
        return self.rank == 0

    def __str__(self) -> str:
        """`cpu`, or where there are more than one `cpu, 2 ranks`."""
        return str(self.device) + (f", {self.ranks} ranks" if self.ranks > 1 else "")

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """All ranks' rows, in the batch's order; (n, ...) -> (n ranks, ...), without gradient."""
        if self.ranks == 1:
            return rows.detach()
        rows = rows.detach().contiguous()
        parts = [torch.empty_like(rows) for _ in range(self.ranks)]
        distributed.all_gather(parts, rows)
        return torch.stack(parts, dim=1).flatten(0, 1)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of `value` over ranks."""
        if self.ranks == 1:
            return value.detach()
        value = value.detach().clone()
        distributed.all_reduce(value)
        return value / self.ranks

    def any(self, flag: bool) -> bool:
        """Does any rank say so? All get the same answer."""
        if self.ranks == 1:
            return bool(flag)
        value = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(value)
        return bool(value > 0)

    def mean_buffers(self, module: nn.Module) -> None:
        """Set `module`'s running statistics to their mean over ranks, on all of them."""
        if self.ranks == 1:
            return
        buffers = [buffer for name, buffer in module.named_buffers()
                   if name.endswith(("running_mean", "running_var"))]  # fmt: skip
        if not buffers:
            return
        flat = self.mean(torch.cat([buffer.flatten() for buffer in buffers]))
        parts = flat.split([buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))

    def parallel(self, module: nn.Module) -> nn.Module:
        """`module`, or a wrap of it whose gradients are averaged over ranks on the way back."""
        if self.ranks == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            module, device_ids=ids, forward_sync_buffers=False
        )

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.ranks > 1:
            distributed.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.ranks > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
