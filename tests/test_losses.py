"""The losses against slow references and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.learning import losses
from pipeline.learning.redshift import Bins

BINS = Bins(12, 0.4)


def draw(seed: int, count: int, bins: Bins = BINS):
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, bins.count, generator=random, dtype=torch.float64)
    return logits, 0.4 * torch.rand(count, generator=random, dtype=torch.float64)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_crps_is_that_of_the_metrics(seed):
    logits, z = draw(seed, 7)
    reference = metrics.crps(logits.softmax(1).numpy(), BINS.edges, z.numpy()).mean()
    assert float(losses.crps(logits, z, BINS)) == pytest.approx(reference, rel=1e-10)


def test_crps_against_an_integral_by_hand():
    logits, z = draw(3, 4)
    x = (np.arange(400_000) + 0.5) * 1e-6
    total = 0.0
    for p, true in zip(logits.softmax(1).numpy(), z.numpy(), strict=True):
        cdf = np.interp(x, BINS.edges, np.concatenate([[0], np.cumsum(p)]))
        total += np.sum((cdf - (x >= true)) ** 2) * 1e-6
    assert float(losses.crps(logits, z, BINS)) == pytest.approx(total / 4, rel=1e-4)


def test_crps_of_a_sharp_pdf_is_what_a_uniform_bin_gives():
    logits = torch.full((1, 12), -1e4, dtype=torch.float64)
    logits[0, 4] = 0.0
    centre = torch.tensor([BINS.centres[4]])
    # a bin of width w, z in its middle: w (1/24 + 1/24)
    assert float(losses.crps(logits, centre, BINS)) == pytest.approx(BINS.width / 12)


def test_cross_entropy_is_minus_log_of_the_bin():
    logits, z = draw(5, 9)
    p = logits.softmax(1).numpy()
    at = np.floor(z.numpy() / BINS.width).astype(int)
    expected = -np.log(p[np.arange(9), at]).mean()
    assert float(losses.cross_entropy(logits, z, BINS)) == pytest.approx(expected)


def test_ordinal_against_a_slow_reference():
    logits, z = draw(6, 5)
    total = []
    for p, true in zip(logits.softmax(1).numpy(), z.numpy(), strict=True):
        for edge in range(1, 12):
            below = p[:edge].sum()
            total.append(-np.log(1 - below if true >= BINS.edges[edge] else below))
    assert float(losses.ordinal(logits, z, BINS)) == pytest.approx(np.mean(total))


@pytest.mark.parametrize("name", ["crps", "ordinal"])
def test_a_pdf_farther_off_costs_more_and_cross_entropy_does_not_see_it(name):
    near, far = torch.zeros(1, 12), torch.zeros(1, 12)
    near[0, 5], far[0, 10] = 4.0, 4.0
    z = torch.tensor([BINS.centres[4]])
    assert losses.LOSSES[name](far, z, BINS) > 1.5 * losses.LOSSES[name](near, z, BINS)
    assert losses.cross_entropy(far, z, BINS) == losses.cross_entropy(near, z, BINS)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_gradients_are_right_and_finite_for_any_logits(name):
    logits, z = draw(8, 3, Bins(6, 0.4))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.LOSSES[name](x, z, Bins(6, 0.4)), logits)
    steep = torch.tensor([[200.0, -200.0, 0.0, 90.0, -90.0, 5.0]], requires_grad=True)
    losses.LOSSES[name](steep, torch.tensor([0.21]), Bins(6, 0.4)).backward()
    assert torch.isfinite(steep.grad).all()
