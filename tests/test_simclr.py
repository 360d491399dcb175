"""SimCLR: the loss, and that a batch in parts has the whole batch's loss and gradients."""

import csv
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import several_ranks
import torch
from torch.nn import functional

from pipeline.images.reader import ImageSet
from pipeline.learning import checkpoint, sarmiento
from pipeline.learning.batches import Batches
from pipeline.learning.distort import Distortion
from pipeline.learning.encoder import EncoderSpec
from pipeline.learning.method import micro_batches
from pipeline.learning.pretraining import Plan, Run, Trainer
from pipeline.learning.ranks import Ranks
from pipeline.learning.resnet import share_momentum
from pipeline.learning.simclr import SimCLR, check_batch, first_places, nt_xent, similarities
from pipeline.run import UserError

torch.set_num_threads(1)
SPEC = EncoderSpec("sarmiento", 0.0625, 32, 2, "unit", bands="gri")
NORMED = EncoderSpec("resnet10", 0.125, 16, 2, "unit", bands="gri")
PLAN = Plan(steps=8, batch=16, lr=3e-3, weight_decay=0.0, schedule="constant", log_every=2,
            checkpoint_seconds=0, optimiser="adam")  # fmt: skip
DOUBLE = replace(PLAN, double=True, log_every=1, steps=12)


def draw(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def units(*shape, seed=0):
    return functional.normalize(draw(*shape, seed=seed), dim=-1)


def slow_loss(vectors, temperature):
    """Chen et al. 2020, equation 1, a pair of views at a time, in algorithm 1's order."""
    flat = [vectors[n, view].numpy() for n in range(len(vectors)) for view in (0, 1)]
    total, first = 0.0, 0
    for i, mine in enumerate(flat):
        other = i ^ 1
        likeness = [math.exp(float(np.dot(mine, each)) / temperature) for each in flat]
        below = sum(value for k, value in enumerate(likeness) if k != i)
        total += -math.log(likeness[other] / below)
        first += likeness[other] == max(value for k, value in enumerate(likeness) if k != i)
    return total / len(flat), first / len(flat)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_loss_against_a_slow_reference(temperature):
    vectors = units(9, 2, 8)
    vectors[:4, 1] = functional.normalize(vectors[:4, 0] + 0.3 * vectors[:4, 1], dim=-1)
    logits = similarities(vectors, temperature)
    loss, first = slow_loss(vectors, temperature)
    assert nt_xent(logits).item() == pytest.approx(loss, rel=1e-13)
    assert first_places(logits).item() == pytest.approx(first)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_loss_by_closed_form(temperature):
    same = torch.eye(1, 4).double().expand(5, 2, 4)
    assert nt_xent(similarities(same, temperature)).item() == pytest.approx(math.log(9), rel=1e-14)
    apart = torch.eye(6).double()[:, None].expand(6, 2, 6)  # pairs at right angles to one another
    expected = math.log1p(10 * math.exp(-1 / temperature))
    logits = similarities(apart, temperature)
    assert nt_xent(logits).item() == pytest.approx(expected, rel=1e-12)
    assert first_places(logits) == 1


def test_gradient_of_the_loss_by_closed_form():
    # d loss / d s_ij = (softmax_ij - [j is i's other view]) / 2n
    vectors = units(4, 2, 5).requires_grad_()
    logits = similarities(vectors, 0.5)
    logits.retain_grad()
    nt_xent(logits).backward()
    expected = torch.softmax(logits.detach(), 1)
    expected[torch.arange(8), (torch.arange(8) + 4) % 8] -= 1
    torch.testing.assert_close(logits.grad, expected / 8, rtol=1e-12, atol=1e-15)


def test_loss_of_unlike_views_does_not_overflow():
    one = units(3, 1, 8)
    assert torch.isfinite(nt_xent(similarities(torch.cat([one, -one], dim=1), 1e-3)))


def gradients(spec, accumulate, groups, views):
    """Loss, top1, vectors and gradients of a step, without the optimiser's."""
    method = SimCLR(spec, 0.5, groups, accumulate, seed=4).double().train()
    prepared = method.prepare(views, 0)
    found = []
    for part, rows in enumerate(micro_batches(accumulate)):
        share_momentum(method.network, part, accumulate)
        found.append(method.loss(method.network, views, prepared, rows))
        (found[-1].loss / accumulate).backward()
    vectors = torch.stack([one.vectors for one in found], dim=1).flatten(0, 1)
    return [one.loss.detach() for one in found], found[0].top1, vectors, method


@pytest.mark.parametrize(("spec", "groups"), [(SPEC, 8), (NORMED, 4)], ids=["plain", "normed"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_parts_has_the_whole_ones_loss_and_gradients(spec, groups, accumulate):
    views = [draw(16, 5, spec.crop, spec.crop, seed=seed) for seed in (1, 2)]
    views[1] = views[0] + 0.5 * views[1]
    whole, top1, vectors, one = gradients(spec, 1, groups, views)
    losses, first, others, many = gradients(spec, accumulate, groups, views)
    for loss in losses:
        torch.testing.assert_close(loss, whole[0], rtol=1e-13, atol=0)
    assert first == top1
    torch.testing.assert_close(others, vectors, rtol=1e-11, atol=1e-13)
    for (name, ours), theirs in zip(
        one.named_parameters(), many.parameters(), strict=True
    ):  # fmt: skip
        scale = ours.grad.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-10, atol=1e-11 * scale)
    for (name, ours), theirs in zip(one.named_buffers(), many.buffers(), strict=True):
        if "running" in name:  # moved once, though each image was seen twice
            torch.testing.assert_close(theirs, ours, rtol=1e-11, atol=1e-13)


def image_set(count=64, size=41) -> ImageSet:
    """Galaxies that differ in colour, shape and size, held in memory."""
    random = np.random.default_rng(0)
    row, column = np.mgrid[:size, :size] - size // 2
    axis = random.uniform(0.3, 1, count)[:, None, None]
    width = random.uniform(2, 6, count)[:, None, None]
    flux = random.lognormal(0, 0.7, (count, 5, 1, 1))
    pixels = flux * np.exp(-np.hypot(row / axis, column) / width)[:, None]
    pixels += random.normal(0, 0.02, pixels.shape)
    table = pd.DataFrame({"objID": np.arange(count, dtype=np.int64) + 10**18, "file": np.int32(0),
                          "row": np.arange(count), "z": np.nan})  # fmt: skip
    unknown = np.full((count, 5), np.nan, dtype=np.float32)
    return ImageSet(
        (), table, np.full((count, 5), 0.1, np.float32), unknown, size, np.dtype(np.float32),
        "made here", np.full(5, 0.02), pixels.astype(np.float32), np.arange(count),
    )  # fmt: skip


def make(plan=PLAN, ranks=None, spec=SPEC):
    ranks = ranks or Ranks()
    images = image_set()
    view = Distortion(crop=spec.crop, jitter=2, cutout=(1, 4), noise=(1, 2), mad=tuple(images.mad))
    method = SimCLR(spec, 0.5, 4, plan.accumulate, plan.seed, ranks)
    batches = Batches(images, plan.batch, plan.seed, 0, ranks.rank, ranks.ranks)
    return Trainer(method, (view, view), plan, ranks), batches


class Until:
    """Batches that end after step `last`, as a run does that is killed."""

    def __init__(self, batches, last):
        self.batches, self.last = batches, last

    def steps(self, first, last):
        return self.batches.steps(first, min(last, self.last))


def complete(folder, plan, stop=None, spec=SPEC):
    trainer, batches = make(plan, spec=spec)
    whole = Run(trainer, folder, {"seed": plan.seed})
    whole.train(batches if stop is None else Until(batches, stop))
    if stop is None:
        whole.finish(deredden=True)
    return trainer


@pytest.mark.parametrize(
    "change", [{}, {"ema": 0.9}, {"amp": "bf16", "accumulate": 2}, {"optimiser": "sgd"}]
)
def test_a_run_that_goes_on_ends_as_an_unbroken_one(tmp_path, change):
    plan = replace(PLAN, **change)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    complete(whole, plan)
    complete(broken, plan, stop=3)  # state after step 2: row and state at every second
    complete(broken, plan, stop=6)
    complete(broken, plan)
    for name in ("encoder.pt", "history.csv"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    with open(whole / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6", "8"]
    assert all(0 < float(row["loss"]) < 5 and float(row["spread"]) > 0 for row in rows)


def test_what_comes_out_is_read_as_every_encoder(tmp_path):
    trainer = complete(tmp_path, replace(PLAN, ema=0.5))
    encoder, extra = checkpoint.load_encoder(tmp_path / "encoder.pt")
    head = checkpoint.projection("", extra)
    assert encoder.spec == SPEC and extra["method"] == "simclr"
    assert isinstance(head, sarmiento.Head)
    averaged, x = trainer.ema.module, draw(2, 5, 32, 32).float()
    with torch.no_grad():
        expected = averaged(x)
        found = functional.normalize(head(encoder(x)), dim=1)
    assert found.shape == (2, 64)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("spec", [SPEC, NORMED], ids=["plain", "normed"])
def test_micro_batches_make_the_same_steps(spec):
    one, batches = make(DOUBLE, spec=spec)
    many, _ = make(replace(DOUBLE, accumulate=4), spec=spec)
    for batch in batches.steps(0, 3):
        whole, parts = one.step(batch), many.step(batch)
        torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-8, atol=0)
        torch.testing.assert_close(parts.vectors, whole.vectors, rtol=1e-6, atol=1e-7)


def test_learning_lowers_the_loss():
    trainer, batches = make(replace(PLAN, steps=150))
    found = [trainer.step(batch) for batch in batches.steps(0, 150)]
    losses = [one.loss.item() for one in found]
    # of log 31 = 3.43 where nothing is known
    assert np.mean(losses[-20:]) < np.mean(losses[:10]) - 0.3
    top1 = np.mean([one.top1.item() for one in found[-20:]])
    assert top1 > 3 / 31


def two_ranks(ranks, folder):
    """Losses of whole steps, then the gradients and vectors of one more."""
    for accumulate in (1, 2):
        trainer, batches = make(replace(DOUBLE, accumulate=accumulate), ranks)
        losses = []
        for batch in batches.steps(0, 5):
            found = trainer.step(batch)
            losses.append(float(ranks.mean(found.loss)))
        gradient = {name: value.grad for name, value in trainer.method.network.named_parameters()}
        state = {"losses": losses, "vectors": ranks.gather(found.vectors), "gradient": gradient}
        torch.save(state, folder / f"{accumulate}-{ranks.rank}.pt")


def test_two_ranks_are_one(tmp_path):
    several_ranks.start(two_ranks, tmp_path)
    trainer, batches = make(DOUBLE)
    found = [trainer.step(batch) for batch in batches.steps(0, 5)]
    for accumulate in (1, 2):
        for rank in (0, 1):
            theirs = torch.load(tmp_path / f"{accumulate}-{rank}.pt", weights_only=True)
            losses = [one.loss.item() for one in found]
            np.testing.assert_allclose(theirs["losses"], losses, rtol=1e-9)
            torch.testing.assert_close(theirs["vectors"], found[-1].vectors, rtol=0, atol=1e-7)
            for name, value in trainer.method.network.named_parameters():
                scale = value.grad.abs().max().item()
                torch.testing.assert_close(theirs["gradient"][name], value.grad, rtol=0,
                                           atol=1e-6 * scale, msg=name)  # fmt: skip


def test_weights_follow_from_the_seed():
    one, two, other = (SimCLR(SPEC, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["network.projection.dense1.weight"],
                           other["network.projection.dense1.weight"])  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": 0.0}, "temperature: 0"),
        ({"spec": NORMED, "groups": 4, "accumulate": 3}, "groups: 4 cannot be shared"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        SimCLR(**{"spec": SPEC, **wrong})


def test_batches_that_do_not_fit_are_refused():
    check_batch(SPEC, 5, 16, 2, 2)
    for given, said in (
        ((SPEC, 8, 16, 1, 3), "batch: 16 cannot be shared by 1 ranks with 3 micro-batches each; "
                              "give a multiple of 3"),
        ((NORMED, 5, 16, 1, 1), "groups: 5 do not share a batch of 16"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            check_batch(*given)
