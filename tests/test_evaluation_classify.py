"""Measures of two classes: against scikit-learn, under resamples, and what must not change them."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn
from small_types import chances

from pipeline import metrics
from pipeline.evaluation.classify import Classified, draw, roc
from pipeline.evaluation.intervals import Bootstrap
from pipeline.evaluation.type_scores import score_types
from pipeline.evaluation.types import TypeRun, TypeSample

HOW = Bootstrap(150, 3)


def reference(early, p):
    """The four measures by scikit-learn, NaN where it has none."""
    called = p >= 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            sklearn.accuracy_score(early, called),
            sklearn.precision_score(early, called, zero_division=np.nan),
            sklearn.recall_score(early, called, zero_division=np.nan),
            sklearn.roc_auc_score(early, p) if 0 < early.sum() < len(early) else np.nan,
        ]


@st.composite
def galaxies(draw_from):
    """Types and probabilities of some galaxies, of both classes, with many ties."""
    count = draw_from(st.integers(2, 40))
    grid = draw_from(st.sampled_from([np.array([0.2, 0.5, 0.8]), np.linspace(0, 1, 101)]))
    early = np.array(draw_from(st.lists(st.booleans(), min_size=count, max_size=count)))
    assume(0 < early.sum() < count)
    p = draw_from(st.lists(st.sampled_from(grid), min_size=count, max_size=count))
    return early, np.array(p)


def values(early, *predictions):
    return Classified(early, predictions).measure()[..., 0]


@settings(deadline=None)
@given(galaxies())
def test_measures_are_scikit_learns(made):
    early, p = made
    found, exact = values(early, p)[0], reference(early, p)
    assert found[:3] == pytest.approx(exact[:3], rel=0, abs=0, nan_ok=True)
    assert found[3] == pytest.approx(exact[3], rel=1e-14)


def test_measures_of_many_galaxies_are_scikit_learns():
    random = np.random.default_rng(0)
    early = random.random(20_000) < 0.3
    for p in (chances(early, 1.5, random), np.round(chances(early, 1.5, random), 2)):
        assert values(early, p)[0] == pytest.approx(reference(early, p), rel=1e-13)


def test_draws_are_scikit_learns_of_the_resampled_galaxies():
    """Of each resample written out, ties and resamples without a class among them."""
    random = np.random.default_rng(1)
    early = np.arange(25) < 2
    runs = [chances(early, 1.0, random), np.round(chances(early, 1.0, random), 1), np.zeros(25)]
    found = draw(Classified(early, runs), 25, HOW)
    rows = np.concatenate(list(metrics.resamples(25, HOW.number, HOW.seed)))
    for one, p in zip(found, runs, strict=True):
        exact = np.array([reference(early[row], p[row]) for row in rows]).T
        assert one == pytest.approx(exact, rel=1e-12, nan_ok=True)
    assert 0 < np.isnan(found[0, 3]).sum() < 75 and np.isnan(found[2, 1]).all()


def test_resamples_in_blocks_are_those_of_one_block(monkeypatch):
    random = np.random.default_rng(2)
    early = random.random(50) < 0.4
    classified = Classified(early, [chances(early, 1.0, random)])
    whole = draw(classified, 50, HOW)
    monkeypatch.setattr(metrics, "_BLOCK", 350)
    assert np.array_equal(draw(classified, 50, HOW), whole)


@settings(deadline=None)
@given(galaxies(), st.sampled_from([np.sqrt, np.square, lambda p: p / 3 + 0.1, np.exp]))
def test_the_area_knows_only_the_order(made, rising):
    early, p = made
    assert values(early, rising(p))[0, 3] == values(early, p)[0, 3]


@settings(deadline=None)
@given(galaxies())
def test_classes_and_probabilities_turned_round_change_no_accuracy_and_no_area(made):
    early, p = made
    p = np.where(p == 0.5, 0.6, p)  # 0.5 is early both ways
    (first,), (second,) = values(early, p), values(~early, 1 - p)
    assert first[[0, 3]] == pytest.approx(second[[0, 3]], rel=1e-14)
    assert values(early, 1 - p)[0, 3] == pytest.approx(1 - first[3], abs=1e-14)


@settings(deadline=None)
@given(galaxies(), st.randoms(use_true_random=False))
def test_the_order_of_galaxies_changes_nothing(made, random):
    early, p = made
    order = np.array(random.sample(range(len(p)), len(p)))
    assert np.array_equal(values(early, p), values(early[order], p[order]), equal_nan=True)


@settings(deadline=None)
@given(galaxies(), st.integers(2, 5))
def test_weights_are_galaxies_given_so_often(made, most):
    early, p = made
    weights = 1 + np.arange(len(p), dtype=np.int32) % most
    found = Classified(early, [p]).measure(weights[None])[..., 0]
    exact = values(np.repeat(early, weights), np.repeat(p, weights))
    assert np.array_equal(found, exact, equal_nan=True)


@settings(deadline=None)
@given(galaxies())
def test_a_curve_rises_from_none_to_all_and_encloses_its_area(made):
    early, p = made
    wrong, right = roc(early, p)
    exact = sklearn.roc_curve(early, p, drop_intermediate=False)
    assert wrong == pytest.approx(exact[0]) and right == pytest.approx(exact[1])
    assert np.trapezoid(right, wrong) == pytest.approx(values(early, p)[0, 3])


def sample(early, p):
    counts = {"compared": len(early)}
    return TypeSample(np.arange(len(early)), early, {TypeRun("moco", 100, 0): p}, counts)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Logits of two Gaussians, `apart` apart, called early above their middle."""
    apart, share, trials = 1.8, 0.35, 300
    right = stats.norm.cdf(apart / 2)
    precision = share * right / (share * right + (1 - share) * (1 - right))
    truth = [right, precision, right, stats.norm.cdf(apart / np.sqrt(2))]
    random = np.random.default_rng(4)
    held = np.zeros(4)
    for seed in range(trials):
        early = random.random(400) < share
        scored = score_types(sample(early, chances(early, apart, random)), Bootstrap(300, seed))
        ends = [(one["low"], one["high"]) for one in scored[0].estimates().values()]
        held += [low <= value <= high for (low, high), value in zip(ends, truth, strict=True)]
    assert held / trials == pytest.approx(0.95, abs=0.035)
