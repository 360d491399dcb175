"""The loop: exact resume, micro-batches, ranks, what is said and what is kept."""

import csv
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import several_ranks
import torch

from pipeline.images.reader import ImageSet
from pipeline.learning import checkpoint
from pipeline.learning.augment import Augmentation
from pipeline.learning.batches import Batches
from pipeline.learning.encoder import EncoderSpec
from pipeline.learning.method import micro_batches, spread
from pipeline.learning.moco import MoCo
from pipeline.learning.pretraining import Plan, Run, Trainer
from pipeline.learning.ranks import Ranks
from pipeline.learning.simclr import SimCLR
from pipeline.run import UserError

SPEC = EncoderSpec("resnet10", 0.125, 16, 2, "asinh", (0.1,) * 5)
PLAN = Plan(steps=8, batch=16, lr=0.05, warmup=2, log_every=2, checkpoint_seconds=0)
DOUBLE = replace(PLAN, double=True, log_every=1, steps=20)
QUEUE = 32
SIMCLR = {"adam": replace(DOUBLE, steps=8, optimiser="adam", lr=1e-3, ema=0.9)}
"""Plans of SimCLR that change hands between ranks."""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def image_set(count=80, size=25) -> ImageSet:
    """Galaxies that differ in colour and size, held in memory."""
    random = np.random.default_rng(0)
    radius = np.hypot(*(np.mgrid[:size, :size] - size // 2))
    width = random.uniform(1, 5, count)[:, None, None, None]
    flux = random.lognormal(0, 1, (count, 5, 1, 1))
    pixels = flux * np.exp(-radius / width) + random.normal(0, 0.05, (count, 5, size, size))
    table = pd.DataFrame({"objID": np.arange(count, dtype=np.int64) + 10**18, "file": np.int32(0),
                          "row": np.arange(count), "z": np.nan})  # fmt: skip
    unknown = np.full((count, 5), np.nan, dtype=np.float32)
    return ImageSet(
        (), table, np.full((count, 5), 0.1, np.float32), unknown, size, np.dtype(np.float32),
        "made here", np.full(5, 0.1), pixels.astype(np.float32), np.arange(count),
    )  # fmt: skip


def make(plan=PLAN, ranks=None, simclr=False):
    ranks = ranks or Ranks()
    images = image_set()
    view = Augmentation(crop=16, max_e_bv=0.1, jitter=1, noise=(1, 2), mad=tuple(images.mad))
    if simclr:
        method = SimCLR(SPEC, 0.5, 4, plan.accumulate, plan.seed, ranks)
    else:
        method = MoCo(SPEC, QUEUE, 0.99, 0.1, 4, plan.accumulate, plan.seed, ranks)
    trainer = Trainer(method, (view, view), plan, ranks)
    return trainer, Batches(images, plan.batch, plan.seed, 0, ranks.rank, ranks.ranks)


class Until:
    """Batches that end after step `last`, as a run does that is killed."""

    def __init__(self, batches, last):
        self.batches, self.last = batches, last

    def steps(self, first, last):
        return self.batches.steps(first, min(last, self.last))


def complete(
    folder, plan=PLAN, ranks=None, stop=None, settings=None, finish=True, simclr=False
):  # fmt: skip
    """Train in `folder`, up to step `stop` where it is given; the trainer."""
    trainer, batches = make(plan, ranks, simclr)
    whole = Run(trainer, folder, settings or {"seed": plan.seed})
    whole.train(batches if stop is None else Until(batches, stop))
    if stop is None and finish:
        whole.finish(deredden=True)
    return trainer


def assert_same(one: Trainer, other: Trainer, tolerance=0.0):
    ours, theirs = (each.method.state_dict() for each in (one, other))
    assert ours.get("_extra_state") == theirs.get("_extra_state")
    for name, value in ours.items():
        counts = tolerance and name.endswith("num_batches_tracked")  # SimCLR's parts pass twice
        if torch.is_tensor(value) and not counts:
            torch.testing.assert_close(
                value, theirs[name], rtol=tolerance, atol=tolerance, msg=name
            )


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("change", [{}, {"ema": 0.9}, {"amp": "bf16"}])
def test_a_run_that_goes_on_ends_as_an_unbroken_one(tmp_path, change):
    plan = replace(PLAN, **change)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trainer = complete(whole, plan)
    complete(broken, plan, stop=3)  # state after step 2: row and state at every second
    complete(broken, plan, stop=6)
    complete(broken, plan, finish=False)  # killed before its product was written
    assert_same(trainer, complete(broken, plan))
    for name in ("encoder.pt", "history.csv"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert sorted(each.name for each in broken.iterdir()) == ["encoder.pt", "history.csv"]
    assert [row["step"] for row in history(whole)] == ["2", "4", "6", "8"]


def test_what_is_exported_is_the_average_where_there_is_one(tmp_path):
    trainer = complete(tmp_path, replace(PLAN, ema=0.9))
    encoder, extra = checkpoint.load_encoder(tmp_path / "encoder.pt")
    averaged, last = trainer.ema.module.encoder, trainer.method.network.encoder
    assert torch.equal(encoder.net.conv1.weight, averaged.net.conv1.weight)
    assert not torch.equal(encoder.net.conv1.weight, last.net.conv1.weight)
    assert extra["method"] == "moco" and extra["deredden"] is True
    assert checkpoint.projection("", extra)[2].out_features == 128


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_make_the_same_step(accumulate):
    one, batches = make(DOUBLE)
    many, _ = make(replace(DOUBLE, accumulate=accumulate))
    for batch in batches.steps(0, 4):
        whole, parts = one.step(batch), many.step(batch)
        torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-9, atol=0)
        torch.testing.assert_close(parts.vectors, whole.vectors, rtol=1e-8, atol=1e-9)
    ours, theirs = one.method.state_dict(), many.method.state_dict()
    for name in ours:
        if torch.is_tensor(ours[name]) and not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(theirs[name], ours[name], rtol=1e-8, atol=1e-9)


def test_learning_lowers_the_loss():
    trainer, batches = make(replace(PLAN, steps=300, lr=0.03, seed=2))
    losses = [trainer.step(batch).loss.item() for batch in batches.steps(0, 300)]
    # of log 33 = 3.5 where nothing is known; at first the queue is not yet of images. By the seed
    # and the machine's rounding it falls by 0.4 to 0.8
    assert np.mean(losses[-30:]) < np.mean(losses[10:40]) - 0.3


def two_ranks(ranks, folder):
    """What is compared with one rank: losses, views, queue; then runs that change hands."""
    torch.set_num_threads(1)
    trainer, batches = make(DOUBLE, ranks)
    losses, views = [], None
    for batch in batches.steps(0, 20):
        if views is None:
            views = ranks.gather(trainer.make_views(batch)[1])
        losses.append(float(ranks.mean(trainer.step(batch).loss)))
    state = {"losses": losses, "views": views, "queue": trainer.method.queue,
             "mean": trainer.method.network.encoder.net.bn1.running_mean}  # fmt: skip
    torch.save(state, folder / f"{ranks.rank}.pt")
    complete(folder / "from-two", DOUBLE, ranks, stop=5)
    complete(folder / "from-one", DOUBLE, ranks, finish=False)
    for name, plan in SIMCLR.items():
        complete(folder / f"{name}-from-two", plan, ranks, stop=5, simclr=True)
        complete(folder / f"{name}-from-one", plan, ranks, finish=False, simclr=True)
    ranks.barrier()


def test_two_ranks_are_one(tmp_path):
    trainer, batches = make(DOUBLE)
    first = next(iter(batches.steps(0, 1)))
    views = trainer.make_views(first)[1]
    losses = [trainer.step(batch).loss.item() for batch in batches.steps(0, 20)]
    complete(tmp_path / "from-one", DOUBLE, stop=5)
    for name, plan in SIMCLR.items():
        complete(tmp_path / f"{name}-from-one", plan, stop=5, simclr=True)
    several_ranks.start(two_ranks, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for each in found:
        assert torch.equal(each["views"], views)
        np.testing.assert_allclose(each["losses"], losses, rtol=0, atol=1e-8)
        torch.testing.assert_close(each["queue"], trainer.method.queue, rtol=0, atol=1e-8)
    assert torch.equal(found[0]["queue"], found[1]["queue"])
    assert torch.equal(found[0]["mean"], found[1]["mean"])
    # a state of two ranks goes on with one, and the other way round
    assert_same(trainer, complete(tmp_path / "from-two", DOUBLE), 1e-8)
    state = checkpoint.load(tmp_path / "from-one" / ".state.pt", "state")
    assert state["step"] == 20
    torch.testing.assert_close(state["trainer"]["method"]["queue"], trainer.method.queue,
                               rtol=0, atol=1e-8)  # fmt: skip
    rows = [[row["loss"] for row in history(tmp_path / name)] for name in ("from-one", "from-two")]
    assert len(rows[0]) == len(rows[1]) == 20
    for name, plan in SIMCLR.items():
        unbroken = complete(tmp_path / name, plan, finish=False, simclr=True)
        gone_on = complete(tmp_path / f"{name}-from-two", plan, simclr=True)
        assert_same(unbroken, gone_on, 1e-8)
        ours, theirs = (
            checkpoint.load(tmp_path / each / ".state.pt", "state")["trainer"]["ema"]["module"]
            for each in (name, f"{name}-from-one")
        )
        for key, value in ours.items():
            if not key.endswith("num_batches_tracked"):
                torch.testing.assert_close(theirs[key], value, rtol=0, atol=1e-8, msg=key)
    np.testing.assert_allclose(np.array(rows, float), [losses, losses], rtol=2e-6)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path):
    complete(tmp_path, stop=4)
    before = (tmp_path / ".state.pt").read_bytes()
    trainer, batches = make()
    whole = Run(trainer, tmp_path, {"seed": 0})

    class Spoilt(Until):
        def steps(self, first, last):
            for batch in self.batches.steps(first, last):
                if batch.step == 5:
                    batch.images[0, 0] = np.nan
                yield batch

    with pytest.raises(UserError, match="not a number at step 6 of 8; the last good") as error:
        whole.train(Spoilt(batches, 8))
    assert "\n" not in str(error.value)
    assert (tmp_path / ".state.pt").read_bytes() == before
    assert not (tmp_path / "encoder.pt").exists()


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    with pytest.raises(UserError, match="no state was kept"):
        complete(tmp_path, replace(PLAN, lr=1e30, warmup=0))
    assert not (tmp_path / ".state.pt").exists()


def test_weights_that_are_no_numbers_are_not_probed(tmp_path):
    trainer, batches = make(replace(PLAN, probe_every=1))
    original = trainer.step

    def spoils(batch):
        found = original(batch)  # whose loss is a number still
        torch.nn.init.constant_(trainer.trained.encoder.net.conv1.weight, np.nan)
        return found

    trainer.step = spoils
    whole = Run(trainer, tmp_path, {}, probe=lambda encoder: pytest.fail("it was probed"))
    with pytest.raises(UserError, match="not a number at step 1 of 8; no state was kept"):
        whole.train(batches)


def test_other_settings_begin_anew_and_that_is_said(tmp_path, caplog):
    complete(tmp_path, stop=4, settings={"seed": 0, "lr": 0.1})
    with caplog.at_level(logging.INFO, "ugriz"):
        complete(tmp_path, settings={"seed": 0, "lr": 0.2})
    assert "begins anew" in caplog.text and "lr: 0.1 then, 0.2 now" in caplog.text
    assert [row["step"] for row in history(tmp_path)] == ["2", "4", "6", "8"]


def test_a_spoilt_state_begins_anew(tmp_path, caplog):
    complete(tmp_path, stop=4)
    path = tmp_path / ".state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    trainer, _ = make()
    assert Run(trainer, tmp_path, {"seed": 0}).next_step == 0
    assert "begins anew" in caplog.text


def test_spread_tells_a_sphere_from_a_point():
    random = torch.Generator().manual_seed(0)
    sphere = torch.nn.functional.normalize(torch.randn(4000, 64, generator=random), dim=1)
    assert spread(sphere) == pytest.approx(1, abs=0.01)
    assert spread(sphere[:1].repeat(10, 1)) == pytest.approx(0, abs=1e-6)


def test_a_collapse_is_said_in_words(tmp_path, caplog):
    trainer, _ = make()
    whole = Run(trainer, tmp_path, {})
    for wide in (0.05, 0.05, 0.05, 0.05, 0.5, 0.05, 0.05, 0.05, 0.05):
        whole._watch(wide)
    assert "collapsed" not in caplog.text
    whole._watch(0.05)
    assert "WARNING" in caplog.text and "collapsed" in caplog.text and "0.050" in caplog.text


def test_rows_are_due_at_the_same_steps_wherever_a_run_began():
    plan = Plan(steps=25, log_every=10, probe_every=6)
    assert [step + 1 for step in range(25) if plan.due(step)] == [6, 10, 12, 18, 20, 24, 25]
    assert [list(range(6)[rows]) for rows in micro_batches(2)] == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"accumulate": 0}, "accumulate: 0"),
        ({"lr": float("nan")}, "lr: nan"),
        ({"schedule": "linear"}, "schedule: linear"),
        ({"warmup": 8}, "warmup: 8"),
        ({"ema": 1.0}, "ema: 1"),
        ({"amp": "fp16"}, "fp16 needs a GPU"),
        ({"amp": "fp8"}, "amp: fp8"),
        ({"optimiser": "lars"}, "optimiser: lars; give one of sgd, adam"),
    ],
)
def test_plans_that_cannot_be_run_are_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        make(replace(PLAN, **wrong))
