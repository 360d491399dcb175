"""Ranks: what one holds, and what all get."""

import pytest
import several_ranks
import torch
from torch import nn

from pipeline.learning.ranks import Ranks, choose_device
from pipeline.learning.resnet import GroupedBatchNorm
from pipeline.run import UserError


def exchange(ranks: Ranks, folder) -> None:
    rows = torch.arange(12.0).reshape(6, 2)
    norm = GroupedBatchNorm(2)
    norm.running_mean.fill_(float(ranks.rank))
    weights = nn.Linear(1, 1, bias=False)
    nn.init.ones_(weights.weight)
    shared = ranks.parallel(weights)
    shared(torch.full((1, 1), float(ranks.rank))).sum().backward()
    ranks.mean_buffers(norm)
    ranks.barrier()
    torch.save(
        {
            "device": str(ranks.device),
            "rows": ranks.gather(rows[ranks.rank :: ranks.ranks]),
            "mean": ranks.mean(torch.tensor(float(ranks.rank))),
            "any": [ranks.any(ranks.rank == 1), ranks.any(False)],
            "buffer": norm.running_mean,
            "gradient": weights.weight.grad,
        },
        folder / f"{ranks.rank}.pt",
    )


def test_two_ranks_share_what_they_have(tmp_path):
    several_ranks.start(exchange, tmp_path)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["rows"], torch.arange(12.0).reshape(6, 2))
        assert found["mean"] == 0.5 and found["any"] == [True, False]
        assert torch.equal(found["buffer"], torch.full((2,), 0.5))
        assert found["gradient"].item() == 0.5 and found["device"] == "cpu"


def test_one_rank_needs_no_group():
    ranks = Ranks.from_environment("cpu")
    rows = torch.arange(4.0, requires_grad=True)
    assert ranks == Ranks(0, 1, torch.device("cpu")) and ranks.first
    assert torch.equal(ranks.gather(rows), rows) and not ranks.gather(rows).requires_grad
    assert ranks.mean(rows.sum()) == 6 and ranks.any(True) and not ranks.any(False)
    module = nn.Linear(1, 1)
    assert ranks.parallel(module) is module
    ranks.mean_buffers(module)
    ranks.barrier()
    ranks.close()


def test_many_ranks_that_torchrun_did_not_start_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but LOCAL_RANK is not set"):
        Ranks.from_environment("cpu")


def test_devices_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    for name, said in (("cuda", "finds no GPU"), ("tpu", "give one of auto, cpu, cuda")):
        with pytest.raises(UserError, match=said):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="rank 1"):
        choose_device("auto", local_rank=1)
