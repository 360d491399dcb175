"""Learning rates and averaged weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.learning.optimise import SCHEDULES, Ema, learning_rate, set_learning_rate
from pipeline.run import UserError


def test_cosine_by_hand():
    rates = [learning_rate(step, 8, 2.0) for step in range(8)]
    assert rates[0] == 2 and rates[4] == pytest.approx(1)
    assert rates[2] == pytest.approx(1 + math.sqrt(0.5))
    assert learning_rate(8, 8, 2.0) == pytest.approx(0)


def test_step_divides_by_ten_at_60_and_90_per_cent():
    rates = [learning_rate(step, 100, 1.0, "step") for step in range(100)]
    assert rates[:60] == [1.0] * 60
    assert rates[60:90] == pytest.approx([0.1] * 30) and rates[90:] == pytest.approx([0.01] * 10)


def test_warm_up_rises_to_the_base():
    rates = [learning_rate(step, 20, 1.0, "constant", 4) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1]
    assert learning_rate(4, 20, 1.0, "cosine", 4) == 1


@given(st.integers(1, 400), st.data(), st.sampled_from(SCHEDULES))
def test_rates_lie_between_nothing_and_the_base(steps, data, schedule):
    warmup = data.draw(st.integers(0, steps - 1))
    rates = [learning_rate(step, steps, 0.3, schedule, warmup) for step in range(steps)]
    assert all(0 < rate <= 0.3 for rate in rates)
    after = rates[warmup:]
    assert after == sorted(after, reverse=True) and after[0] <= 0.3


@pytest.mark.parametrize(("schedule", "warmup"), [("linear", 0), ("cosine", 10), ("cosine", -1)])
def test_what_makes_no_sense_is_refused(schedule, warmup):
    with pytest.raises(UserError):
        learning_rate(0, 10, 1.0, schedule, warmup)


def test_groups_have_their_own_factor():
    one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    optimiser = torch.optim.SGD(
        [{"params": one.parameters(), "factor": 0.1}, {"params": two.parameters()}], 1.0
    )
    set_learning_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.05, 0.5]


def test_average_follows_its_recursion_and_copies_buffers():
    module = nn.BatchNorm1d(2).double()
    ema, expected = Ema(module, 0.5), torch.ones(2).double()
    for step in range(12):
        with torch.no_grad():
            module.weight.fill_(float(step))
            module.running_mean.fill_(step + 0.5)
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(ema.module.weight.data, expected, rtol=1e-14, atol=0)
    assert torch.equal(ema.module.running_mean, module.running_mean)
    assert not ema.module.training and not ema.module.weight.requires_grad


def test_average_goes_on_from_its_state():
    module = nn.Linear(2, 1)
    one = Ema(module, 0.9)
    one.update()
    two = Ema(nn.Linear(2, 1), 0.9)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.module.weight, one.module.weight) and two.updates == 1


def test_a_decay_of_one_is_refused():
    with pytest.raises(UserError, match="ema: 1"):
        Ema(nn.Linear(1, 1), 1)
