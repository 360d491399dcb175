"""The small net on vectors: what it learns, which weights are taken, what is refused."""

import numpy as np
import pytest
import torch

from pipeline.learning.smallnet import Labelled, SmallNet, SmallSettings, fit_small
from pipeline.run import UserError


def clouds(count: int, seed: int = 0, apart: float = 3.0) -> Labelled:
    """Two clouds in five dimensions on an odd scale, of which the first and third matter."""
    random = np.random.default_rng(seed)
    early = random.random(count) < 0.4
    x = random.normal(0, 1, (count, 5))
    x[:, 0] += apart * early
    x[:, 2] -= apart * early
    return Labelled((x * [1e-3, 1, 50, 1, 1] + 7).astype(np.float32), early)


NONE = Labelled(np.empty((0, 5), np.float32), np.empty(0, bool))
QUICK = SmallSettings(epochs=40)


def test_two_clouds_are_told_apart_and_chances_are_honest():
    net, facts, history = fit_small(clouds(300), clouds(100, 1), QUICK)
    fresh = clouds(2000, 2)
    p = net.early_chances(fresh.x)
    assert p.dtype == np.float64 and p.shape == (2000,)
    assert np.mean((p >= 0.5) == fresh.early) > 0.97
    assert abs(p.mean() - fresh.early.mean()) < 0.03
    assert facts["labels"] == 300 and [row["epoch"] for row in history] == list(range(1, 41))


def test_the_weights_taken_are_those_that_valid_judges_best_or_the_last():
    random = np.random.default_rng(5)
    noise = Labelled(random.normal(size=(60, 5)).astype(np.float32), random.random(60) < 0.5)
    valid = Labelled(random.normal(size=(60, 5)).astype(np.float32), random.random(60) < 0.5)
    net, facts, history = fit_small(noise, valid, SmallSettings(epochs=60, lr=0.01))
    scores = [row["valid_log_loss"] for row in history]
    assert facts["valid_log_loss"] == min(scores) and facts["epoch"] == 1 + int(np.argmin(scores))
    assert facts["epoch"] < 60  # nothing can be learnt, so that it only gets worse
    chances = net.early_chances(valid.x)
    given = np.where(valid.early, chances, 1 - chances)
    assert -np.log(given).mean() == pytest.approx(facts["valid_log_loss"], rel=1e-9)
    _, last, _ = fit_small(noise, valid, SmallSettings(epochs=60, lr=0.01, select="last"))
    assert last["epoch"] == 60 and last["valid_log_loss"] == scores[-1]
    _, without, _ = fit_small(noise, NONE, SmallSettings(epochs=3))
    assert without["epoch"] == 3 and without["valid_log_loss"] is None


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_own_draws_alone():
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    one, two = (fit_small(clouds(50), NONE, SmallSettings(epochs=2))[0] for _ in range(2))
    assert torch.equal(torch.rand(1), before)
    other = fit_small(clouds(50), NONE, SmallSettings(epochs=2, seed=1))[0]
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.layers[1].weight, other.layers[1].weight)


def test_the_scale_of_the_vectors_does_not_matter_and_constants_do_no_harm():
    data = clouds(80)
    scaled = Labelled(data.x * np.float32(1024), data.early)
    one, two = (fit_small(each, NONE, SmallSettings(epochs=5))[0] for each in (data, scaled))
    assert one.early_chances(data.x) == pytest.approx(two.early_chances(scaled.x), abs=1e-4)
    constant = Labelled(np.full((20, 5), 3, np.float32), clouds(20).early)
    assert np.isfinite(
        fit_small(constant, NONE, SmallSettings(epochs=2))[0].early_chances(data.x)
    ).all()


def test_a_net_has_one_hidden_layer():
    net = SmallNet(64, 64)
    assert sum(weights.numel() for weights in net.parameters()) == 64 * 65 + 2 * 65


@pytest.mark.parametrize(
    "wrong",
    [{"hidden": 0}, {"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": np.inf},
     {"weight_decay": -1.0}, {"weight_decay": np.inf},
     {"dropout": 1.0}, {"select": "first"}, {"seed": -1}],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match=f"^{next(iter(wrong))}: .*; give "):
        SmallSettings(**wrong)


def test_a_loss_that_is_no_number_ends_in_a_line():
    with pytest.raises(UserError, match="the loss is .*; give a smaller lr"):
        fit_small(clouds(50), NONE, SmallSettings(epochs=30, lr=1e30))
