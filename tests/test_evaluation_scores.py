from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from small_predictions import make_catalog, write_run, write_runs

from pipeline import metrics
from pipeline.evaluation.bins import bin_edges, scores_in_bins
from pipeline.evaluation.efficiency import label_efficiency, needed_fraction
from pipeline.evaluation.intervals import Bootstrap, certain, compare, estimate, over_seeds
from pipeline.evaluation.predictions import Prediction, Run, Sample, read_sample
from pipeline.evaluation.scores import (
    MEASURES,
    Cell,
    cells,
    difference,
    differences,
    largest,
    method_rows,
    run_rows,
    score,
    score_row,
)

HOW = Bootstrap(300, 0)
FRACTIONS = np.array([0.05, 0.25, 1.0])


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Three fractions, two seeds and two starts on 200 test galaxies."""
    folder = tmp_path_factory.mktemp("scores")
    catalog = make_catalog(folder / "catalog.parquet", 200)
    return read_sample(write_runs(folder, catalog, seeds=(0, 1)), folder / "catalog.parquet")


@pytest.fixture(scope="module")
def scored(sample):
    return score(sample, cells(sample), HOW)


def by_name(scored):
    return {str(one.cell): one for one in scored}


def made_sample(residuals, starts):
    """A sample whose runs {Run: dz} are given; CRPS and PIT are |dz| and 1/2."""
    z = np.full(len(residuals[0]), 0.1)
    runs = {
        run: Prediction(z + np.asarray(dz) * 1.1, np.abs(dz), np.full(len(z), 0.5))
        for run, dz in zip(starts, residuals, strict=True)
    }
    nothing = Prediction(*(np.full(len(z), np.nan) for _ in range(3)))
    names = ("objID", "z", "r", "e_bv", "seeing")
    galaxies = pd.DataFrame(dict.fromkeys(names, z)).assign(objID=np.arange(len(z)))
    return Sample(galaxies, runs, nothing)


def test_supervised_comes_first_and_fractions_rise(scored):
    assert list(by_name(scored)) == [
        "supervised 0.05", "supervised 0.25", "supervised 1", "moco 0.05", "moco 0.25", "moco 1",
    ]  # fmt: skip
    assert all(one.cell.seeds == (0, 1) and one.galaxies == 200 for one in scored)


def test_values_are_means_over_seeds_of_the_metrics(sample, scored):
    values = dict(zip(MEASURES, by_name(scored)["moco 0.25"].values, strict=True))
    both = [sample.runs[Run("moco", 0.25, seed)] for seed in (0, 1)]
    dz = [metrics.residuals(one.z_phot, sample.galaxies["z"]) for one in both]
    assert values["sigma_mad"] == np.mean([metrics.sigma_mad(one) for one in dz])
    assert values["bias"] == pytest.approx(np.mean(dz))
    assert values["eta"] == np.mean([metrics.outlier_fraction(one) for one in dz])
    assert values["crps"] == pytest.approx(np.mean([one.crps for one in both]))
    assert values["pit_spread"] == np.mean([metrics.pit_spread(one.pit) for one in both])


def test_intervals_hold_their_values(scored):
    for one in scored:
        for name, found in one.estimates().items():
            assert found["low"] <= found["value"] <= found["high"], (one.cell, name)


def test_draws_follow_from_the_seed_alone(sample, scored):
    again = score(sample, cells(sample), HOW)
    other = score(sample, cells(sample), Bootstrap(300, 1))
    for one, same, unlike in zip(scored, again, other, strict=True):
        assert np.array_equal(one.draws, same.draws)
        assert not np.array_equal(one.draws, unlike.draws)


def test_a_cell_is_drawn_alike_alone_and_among_others(sample, scored):
    chosen = cells(sample)[3]
    assert np.array_equal(score(sample, [chosen], HOW)[0].draws, scored[3].draws)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_intervals_over_few_seeds_hold_the_truth_as_often_as_they_say(count):
    """Seeds scatter about 0 and galaxies tell nothing: the interval is Student's t's."""
    how = Bootstrap(number=4000, seed=1)
    seeds = np.random.default_rng(0).normal(size=(count, 1000))
    nothing = np.zeros((count, 1, how.number))
    few = [over_seeds(one[:, None], nothing, tuple(range(count)), how)[0] for one in seeds.T]
    low, high = np.percentile(few, [2.5, 97.5], axis=1)
    mean = seeds.mean(axis=0)
    assert np.mean((low + mean < 0) & (high + mean > 0)) == pytest.approx(0.95, abs=0.025)


def test_differences_of_the_same_seeds_are_the_paired_t(scored):
    """What both starts share of a seed's luck does not widen their difference."""
    luck = 100 * np.random.default_rng(2).normal(size=(3, 1))
    own = np.random.default_rng(3).normal(size=(2, 3, 1))
    nothing = np.zeros((3, 1, 4000))
    how = Bootstrap(number=4000, seed=0)
    first, second = (over_seeds(luck + each, nothing, (0, 1, 2), how)[0] for each in own)
    apart = (own[0] - own[1])[:, 0]
    t = stats.t(2, scale=apart.std(ddof=1) / np.sqrt(3))
    assert np.percentile(first - second, 97.5) == pytest.approx(t.ppf(0.975), rel=0.1)


def test_seeds_that_differ_widen_the_interval():
    dz = np.random.default_rng(0).normal(0, 0.01, 400)
    runs = [Run("supervised", 1.0, seed) for seed in (0, 1, 2)]
    alike = made_sample([dz, dz, dz], runs)
    apart = made_sample([0.8 * dz, dz, 1.2 * dz], runs)
    widths = [np.ptp(metrics.interval(score(one, cells(one), HOW)[0].draws[0]))
              for one in (alike, apart)]  # fmt: skip
    seeds = np.std([0.8, 1, 1.2], ddof=1) / np.sqrt(3) * metrics.sigma_mad(dz)
    t = 2 * stats.t(2).ppf(0.975) * seeds
    assert t < widths[1] < np.hypot(widths[0], t) * 1.15


def test_a_share_of_outliers_is_never_below_none():
    dz = np.random.default_rng(0).normal(0, 0.01, 400)
    runs = [Run("supervised", 1.0, seed) for seed in (0, 1, 2)]
    one = made_sample([2 * dz, 5 * dz, 8 * dz], runs)
    scored = score(one, cells(one), HOW)[0]
    assert metrics.interval(scored.draws[1])[0] < 0 == scored.estimates()["eta"]["low"]


def test_paired_differences_are_far_surer_than_unpaired_ones(scored):
    first, second = by_name(scored)["moco 0.05"], by_name(scored)["supervised 0.05"]
    found = difference(first, second)["measures"]["sigma_mad"]
    assert found["value"] == pytest.approx(first.values[0] - second.values[0], rel=1e-5)
    assert found["high"] < 0 and found["excludes_zero"] and found["p"] < 0.02
    paired = np.std(first.draws[0] - second.draws[0])
    assert paired < 0.8 * np.hypot(np.std(first.draws[0]), np.std(second.draws[0]))


def test_a_run_does_not_differ_from_itself():
    dz = np.random.default_rng(1).normal(0, 0.01, 60)
    one = made_sample([dz, dz], [Run("supervised", 1.0, 0), Run("moco", 1.0, 0)])
    measures = differences(score(one, cells(one), HOW))[0]["measures"]
    assert all(found["value"] == 0 and not found["excludes_zero"] for found in measures.values())


@pytest.fixture(scope="module")
def averaged(sample):
    """The sample with an ensemble of each start, and with one that is named after none."""
    moco, supervised = (sample.runs[Run(start, 1.0, 0)] for start in ("moco", "supervised"))
    ensembles = {"ensemble": moco, "moco ensemble": moco, "supervised ensemble": supervised}
    return replace(sample, ensembles=ensembles)


def test_each_ensemble_is_a_row_after_the_starts_as_they_are_ordered(averaged):
    found = [str(cell) for cell in cells(averaged)]
    assert found[6:] == ["supervised ensemble", "ensemble", "moco ensemble"]
    named = [row["start"] for row in run_rows(averaged)]
    assert named[12:] == ["ensemble", "moco ensemble", "supervised ensemble", "catalogue"]
    scored = score(averaged, cells(averaged), HOW)
    row = score_row(scored[6], 240)
    assert row["fraction"] is row["labels"] is None and row["seeds"] == []
    methods = {row["start"] for row in method_rows(scored, [], None, 240)}
    assert methods == {"supervised", "moco", "ensemble", "supervised ensemble", "moco ensemble"}


def test_an_ensemble_is_compared_with_its_own_start_and_a_nameless_one_with_all(averaged):
    scored = score(averaged, cells(averaged), HOW)
    rows = {(row["of"], row["minus"]): row for row in differences(scored)[3:]}
    assert list(rows) == [
        ("supervised ensemble", "supervised 1"), ("ensemble", "supervised 1"),
        ("ensemble", "moco 1"), ("moco ensemble", "moco 1"),
    ]  # fmt: skip
    exact = difference(by_name(scored)["moco ensemble"], by_name(scored)["moco 1"])
    assert rows["moco ensemble", "moco 1"] == exact and exact["seeds"] == [1, 2]


def test_the_ensemble_of_a_start_changes_no_other_row(sample, averaged, scored):
    assert label_efficiency(score(averaged, cells(averaged), HOW), 240) == label_efficiency(
        scored, 240
    )
    shown = [str(cell) for cell in largest(cells(averaged))]
    assert shown == ["supervised 1", "moco 1", "ensemble"]


def test_of_the_bias_the_absolute_values_are_compared():
    dz = np.random.default_rng(2).normal(0, 0.002, 100)
    one = made_sample([dz + 0.01, dz - 0.03], [Run("supervised", 1.0, 0), Run("moco", 1.0, 0)])
    (found,) = differences(score(one, cells(one), HOW))
    assert (found["of"], found["minus"]) == ("moco 1", "supervised 1")
    assert found["measures"]["bias"]["value"] == pytest.approx(0.02, abs=0.001)


def test_no_outliers_are_no_certainty_that_there_are_none():
    dz = np.random.default_rng(3).normal(0, 0.005, 50)
    one = made_sample([dz], [Run("moco", 1.0, 0)])
    found = score(one, cells(one), HOW)[0].estimates()["eta"]
    assert found == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.0711, abs=1e-4)}


@pytest.mark.parametrize("trials", [1, 7, 400])
def test_a_share_of_all_or_none_has_the_binomials_interval(trials):
    for share in (0, 1):
        exact = stats.binomtest(share * trials, trials).proportion_ci(0.95, "exact")
        found = certain(share, trials)
        assert [found["low"], found["high"]] == pytest.approx([exact.low, exact.high], rel=1e-5)


def test_few_draws_may_be_undefined_and_not_many():
    draws = np.random.default_rng(0).normal(1, 0.1, 400)
    whole = estimate(1.0, draws)
    few, many = (np.concatenate([draws, np.full(count, np.nan)]) for count in (20, 30))
    assert estimate(1.0, few) == whole and compare(1.0, few)["excludes_zero"]
    assert estimate(1.0, many) == {"value": 1.0, "low": None, "high": None}
    assert compare(1.0, many)["p"] is None


def test_methods_stand_in_the_order_of_sigma_mad_with_their_distance_from_the_best(scored):
    first, second = method_rows(scored, [], None, 240)
    both = [by_name(scored)[name] for name in ("moco 1", "supervised 1")]
    best, other = sorted(both, key=lambda one: one.values[0])
    assert first == score_row(best, 240) | {"minus_best": None}
    paired = difference(other, best)["measures"]["sigma_mad"]
    about = {"measure": "sigma_mad", "minus": str(best.cell), "galaxies": 200}
    assert second == score_row(other, 240) | {"minus_best": about | paired}


@pytest.mark.parametrize("error", [0.2, 2.0])
def test_methods_are_compared_with_the_catalogue_where_it_knows(sample, scored, error):
    """Whether it is the best of them or not."""
    known = np.arange(200) % 4 > 0
    z = sample.galaxies["z"].to_numpy()
    moco = sample.runs[Run("moco", 1.0, 0)].z_phot
    theirs = Prediction(z + error * (moco - z), np.zeros(200), np.full(200, 0.5))
    cell = Cell("catalogue", None, (0,), (theirs,))
    *own, theirs = score(sample, [*cells(sample), cell], HOW, known)
    rows = {row["start"]: row for row in method_rows(scored, own, theirs, 240)}
    galaxies = {name: row["galaxies"] for name, row in rows.items()}
    assert galaxies == {"moco": 200, "supervised": 200, "catalogue": 150}
    row = rows["moco" if error < 1 else "catalogue"]["minus_best"]
    assert row["galaxies"] == 150
    if error < 1:
        assert list(rows)[0] == row["minus"] == "catalogue"
        exact = difference(by_name(own)["moco 1"], theirs)
    else:
        exact = difference(theirs, by_name(own)[row["minus"]])
    assert row.items() >= exact["measures"]["sigma_mad"].items()


@pytest.mark.parametrize(
    ("wanted", "fraction"),
    [
        (0.02, 0.05),
        (0.015, np.sqrt(0.05 * 0.25)),
        (0.01, 0.25),
        (0.0075, 0.5),
        (0.005, 1.0),
        (0.0049, np.inf),
        (0.021, 0.0),
    ],
)
def test_the_supervised_curve_is_read_backwards_in_the_logarithm(wanted, fraction):
    assert needed_fraction(FRACTIONS, np.array([0.02, 0.01, 0.005]), wanted) == pytest.approx(
        fraction
    )


@settings(deadline=None)
@given(arrays(np.float64, 3, elements=st.floats(0.001, 0.1)), st.floats(0.001, 0.1))
def test_more_is_needed_for_a_smaller_sigma(sigma, wanted):
    """Of any curve, falling or not; and nothing beyond its ends."""
    needed = [needed_fraction(FRACTIONS, sigma, each) for each in (wanted, 0.9 * wanted)]
    assert needed[0] <= needed[1]
    for one in needed:
        assert one == 0 or np.isinf(one) or 0.0499999 <= one <= 1.0000001


def test_label_efficiency_is_the_gain_that_was_put_in(scored):
    rows = {row["fraction"]: row for row in label_efficiency(scored, 240)}
    assert list(rows) == [0.05, 0.25, 1.0] and rows[0.05]["labels"] == 12
    # sigma 0.6 times that of sigma ~ labels^-1/4: (1/0.6)^4 = 7.7 times the labels
    ratio = rows[0.05]["ratio"]
    assert ratio["low"]["value"] < 7.7 < ratio["high"]["value"]
    assert ratio["low"]["value"] > 2 and ratio["value"]["relation"] == "="
    needed = rows[0.05]["equivalent_labels"]["value"]["value"]
    assert needed == pytest.approx(12 * ratio["value"]["value"], rel=1e-4)


def test_beyond_the_curve_there_are_bounds_and_no_numbers(tmp_path):
    catalog = make_catalog(tmp_path / "catalog.parquet", 100)
    sigmas = {("supervised", 0.05): 0.02, ("supervised", 1): 0.012, ("moco", 0.05): 0.004,
              ("moco", 1): 0.06}  # fmt: skip
    paths = [write_run(tmp_path, catalog, *key, 0, sigma) for key, sigma in sigmas.items()]
    sample = read_sample(paths, tmp_path / "catalog.parquet")
    better, worse = label_efficiency(score(sample, cells(sample), HOW), 240)
    assert better["ratio"]["value"] == {"relation": ">", "value": 20.0}
    assert better["equivalent_labels"]["high"] == {"relation": ">", "value": 240.0}
    assert worse["ratio"]["value"] == {"relation": "<", "value": 0.05}
    assert worse["equivalent_labels"]["low"] == {"relation": "<", "value": 12.0}


def test_without_a_supervised_curve_there_is_no_label_efficiency(scored):
    few = [one for one in scored if str(one.cell) not in ("supervised 0.05", "supervised 0.25")]
    assert label_efficiency(few, 240) == []


@settings(deadline=None)
@given(
    arrays(np.float64, st.integers(0, 300), elements=st.sampled_from(np.linspace(0, 1, 25))),
    st.integers(1, 40),
)
def test_bins_hold_the_least_number_and_every_galaxy_once(values, least):
    edges = bin_edges(values, least)
    if len(values) < least:
        assert len(edges) == 0
        return
    assert edges[0] == values.min(initial=1) and edges[-1] == values.max(initial=0)
    inner = [
        np.sum((values >= a) & (values < b)) for a, b in zip(edges[:-2], edges[1:-1], strict=True)
    ]
    counts = [*inner, np.sum((values >= edges[-2]) & (values <= edges[-1]))]
    assert sum(counts) == len(values) and min(counts) >= least and len(counts) <= 8


def test_bins_divide_the_galaxies_and_are_scored_each(sample):
    chosen = [cell for cell in cells(sample) if cell.fraction == 1]
    rows = scores_in_bins(sample, chosen, HOW)
    for variable, bins in (("r", 8), ("z", 8), ("e_bv", 8), ("seeing", 3)):
        here = [row for row in rows if row["variable"] == variable and row["of"] == "moco 1"]
        assert len(here) == bins and sum(row["galaxies"] for row in here) == 200
        assert all(row["low"] <= row["mean"] <= row["high"] for row in here)
    row = next(row for row in rows if row["variable"] == "z" and row["of"] == "supervised 1")
    z = sample.galaxies["z"].to_numpy()
    inside = (z >= np.quantile(z, 0)) & (z < np.quantile(z, 1 / 8))
    dz = [sample.dz(one)[inside] for one in chosen[0].predictions]
    exact = np.mean([metrics.sigma_mad(one) for one in dz])
    assert row["measures"]["sigma_mad"]["value"] == pytest.approx(exact, rel=1e-5)
    moco = next(row for row in rows if row["variable"] == "z" and row["of"] == "moco 1")
    both = score(sample, chosen, HOW, inside)
    assert moco["minus_supervised"] == difference(both[1], both[0])["measures"]
    assert row["minus_supervised"] is None
