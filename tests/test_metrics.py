import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial import cKDTree

from pipeline import metrics
from pipeline.survey.photoz import features, local_linear

EDGES = np.linspace(0, 0.4, 181)
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
residual_lists = arrays(np.float64, st.integers(3, 60), elements=st.floats(-0.375, 0.375, width=32))
masses = arrays(np.float64, 12, elements=st.floats(0, 1)).filter(lambda mass: mass.sum() > 0.01)


def gaussian(mean, sigma):
    """Probabilities of the bins of Gaussian PDFs, (n, 180)."""
    cdf = stats.norm.cdf(EDGES, np.atleast_1d(mean)[:, None], np.atleast_1d(sigma)[:, None])
    return np.diff(cdf, axis=1)


def random_pdfs(count, seed=0):
    random = np.random.default_rng(seed)
    return random.random((count, 180)) ** 6, random.uniform(-0.05, 0.5, count)


def test_residuals_are_relative_to_one_plus_z():
    assert metrics.residuals([0.11, 0.3], [0.1, 0.5]) == pytest.approx([0.01 / 1.1, -0.2 / 1.5])


def test_point_metrics_of_a_gaussian_are_its_parameters():
    dz = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000, loc=0.003, scale=0.02)
    assert metrics.sigma_mad(dz) == pytest.approx(0.02, rel=1e-4)
    assert metrics.bias(dz) == pytest.approx(0.003, rel=1e-6)
    beyond = stats.norm.sf(0.05, 0.003, 0.02) + stats.norm.cdf(-0.05, 0.003, 0.02)
    assert metrics.outlier_fraction(dz) == pytest.approx(beyond, abs=1e-5)


def test_a_residual_on_the_limit_is_no_outlier():
    assert metrics.outlier_fraction(np.array([0.05, -0.05, 0.0501, -0.0501])) == 0.5


@given(residual_lists, st.floats(-0.2, 0.2), st.floats(0.1, 10))
def test_sigma_mad_is_deaf_to_shifts_and_scales_with_the_residuals(dz, shift, scale):
    plain = metrics.sigma_mad(dz)
    assert metrics.sigma_mad(dz + shift) == pytest.approx(plain, abs=1e-12)
    assert metrics.sigma_mad(-scale * dz) == pytest.approx(scale * plain, rel=1e-12, abs=1e-15)


@given(residual_lists)
def test_sigma_mad_is_its_definition_along_any_axis(dz):
    exact = 1.4826 * np.median(np.abs(dz - np.median(dz)))
    assert metrics.sigma_mad(dz) == pytest.approx(exact, rel=1e-15)
    both = np.stack([dz, 2 * dz])
    assert metrics.sigma_mad(both) == pytest.approx(np.array([exact, 2 * exact]))
    assert metrics.sigma_mad(both.T, axis=0) == pytest.approx(np.array([exact, 2 * exact]))


def test_sigma_mad_of_what_is_not_known_is_not_known():
    assert np.isnan(metrics.sigma_mad(np.array([0.1, np.nan, 0.2, 0.3])))
    assert np.isnan(metrics.sigma_mad(np.array([0.1, np.nan, 0.2])))


def test_crps_is_the_integral_it_is_defined_by():
    pdf, z = random_pdfs(20)
    x = np.linspace(-0.2, 0.6, 400_001)
    for mass, truth, found in zip(pdf, z, metrics.crps(pdf, EDGES, z), strict=True):
        cdf = np.interp(x, EDGES, np.append(0, np.cumsum(mass / mass.sum())))
        assert found == pytest.approx(np.trapezoid((cdf - (x >= truth)) ** 2, x), abs=3e-6)


def test_crps_of_one_bin_is_that_of_a_uniform_distribution():
    edges, z = np.array([0.1, 0.3]), np.array([0.1, 0.2, 0.25, 0.5])
    u = np.clip((z - 0.1) / 0.2, 0, 1)
    exact = 0.2 * (u**3 + (1 - u) ** 3) / 3 + np.maximum(z - 0.3, 0)
    assert metrics.crps(np.ones((4, 1)), edges, z) == pytest.approx(exact)


def test_crps_and_pit_of_fine_bins_are_those_of_the_gaussian_they_approach():
    random = np.random.default_rng(1)
    mean, z = random.uniform(0.12, 0.28, 50), random.uniform(0.05, 0.35, 50)
    sigma = random.uniform(0.01, 0.02, 50)
    pdf = gaussian(mean, sigma)
    exact = metrics.gaussian_crps(mean, sigma, z)
    assert metrics.crps(pdf, EDGES, z) == pytest.approx(exact, rel=2e-3)
    assert metrics.pit(pdf, EDGES, z) == pytest.approx(
        metrics.gaussian_pit(mean, sigma, z), abs=2e-3
    )
    at_the_mean = metrics.gaussian_crps(0.1, 0.02, 0.1)
    assert at_the_mean == pytest.approx(0.02 * (np.sqrt(2) - 1) / np.sqrt(np.pi))


@given(masses, st.floats(-0.1, 0.5))
def test_crps_does_not_exceed_the_mean_distance(mass, z):
    """E|X - z| is the CRPS and half the mean distance of two draws more."""
    edges = np.linspace(0, 0.4, 13)
    crps = metrics.crps(mass[None], edges, np.array([z]))[0]
    grid = np.concatenate([np.linspace(a, b, 60) for a, b in zip(edges, edges[1:], strict=False)])
    distance = np.average(np.abs(grid - z), weights=np.repeat(mass, 60))
    assert 0 <= crps <= distance + 1e-4
    assert 0 <= metrics.pit(mass[None], edges, np.array([z]))[0] <= 1


def test_crps_of_a_sharp_pdf_is_the_absolute_error():
    pdf = np.zeros((3, 180))
    pdf[:, 44] = 1
    z = np.array([0.02, 0.2, 0.39])
    assert metrics.crps(pdf, EDGES, z) == pytest.approx(np.abs(CENTRES[44] - z), abs=1e-3)


def test_pdfs_are_normalised_and_may_be_float32():
    pdf, z = random_pdfs(30)
    exact = metrics.crps(pdf, EDGES, z), metrics.pit(pdf, EDGES, z)
    for same in (pdf * 7, (pdf / pdf.sum(1, keepdims=True)).astype(np.float32)):
        assert metrics.crps(same, EDGES, z) == pytest.approx(exact[0], rel=1e-5)
        assert metrics.pit(same, EDGES, z) == pytest.approx(exact[1], abs=1e-5)


def test_edges_that_do_not_fit_the_bins_are_refused():
    pdf, z = random_pdfs(2)
    with pytest.raises(ValueError, match="181 rising edges"):
        metrics.crps(pdf, EDGES[:-1], z)
    with pytest.raises(ValueError, match="rising"):
        metrics.pit(pdf, EDGES[::-1], z)


@pytest.mark.parametrize(
    ("width", "spread"), [(1.0, (0.97, 1.03)), (0.5, (1.2, 1.5)), (2.0, (0.5, 0.8))]
)
def test_pit_tells_right_widths_from_wrong_ones(width, spread):
    random = np.random.default_rng(12)
    z = random.uniform(0.15, 0.25, 5000)
    mean = z + random.normal(0, 0.012, len(z))
    values = metrics.pit(gaussian(mean, np.full(len(z), 0.012 * width)), EDGES, z)
    test = metrics.pit_uniformity(values)
    assert spread[0] < metrics.pit_spread(values) < spread[1]
    right = width == 1
    assert all(p > 0.01 if right else p < 1e-6 for p in (test.ks_p, test.chi2_p))
    assert test.bins == 20 and (0.4 < test.chi2 < 2 if right else test.chi2 > 10)


def test_uniformity_takes_fewer_bins_for_few_values():
    assert metrics.pit_uniformity(np.linspace(0.01, 0.99, 40)).bins == 8
    assert metrics.pit_uniformity(np.array([0.2, 0.9])).bins == 2
    assert metrics.pit_uniformity(np.full(50, 0.5)).ks == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("statistic", "error"),
    [(metrics.bias, 1.0), (metrics.sigma_mad, 1.167)],
    ids=["bias", "sigma_mad"],
)
def test_bootstrap_has_the_standard_error_of_theory(statistic, error):
    """sigma / sqrt(n) for the mean; 1.167 times it for the MAD of a Gaussian."""
    dz = stats.norm.ppf((np.arange(4000) + 0.5) / 4000) * 0.02
    (draws,) = metrics.bootstrap(statistic, dz, number=1500)
    assert draws.std() == pytest.approx(error * 0.02 / np.sqrt(4000), rel=0.08)


def test_bootstrap_of_eta_agrees_with_the_published_sample():
    """0.209 % of 102,993 galaxies: a standard error of 0.014 points."""
    dz = np.zeros(102_993)
    dz[:215] = 0.1
    (draws,) = metrics.bootstrap(metrics.outlier_fraction, dz, number=300)
    assert 100 * draws.mean() == pytest.approx(0.209, abs=0.003)
    assert 100 * draws.std() == pytest.approx(0.0142, rel=0.15)


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(3)
    held = 0
    trials = 200
    for _ in range(trials):
        dz = random.normal(0, 0.02, 150)
        low, high = metrics.interval(metrics.bootstrap(metrics.sigma_mad, dz, number=400)[0])
        held += low <= 0.02 <= high
    assert 0.88 <= held / trials <= 0.99


def test_resamples_follow_from_the_seed_and_come_in_blocks_of_any_size(monkeypatch):
    whole = np.vstack(list(metrics.resamples(50, 40, seed=4)))
    assert whole.shape == (40, 50) and whole.min() >= 0 and whole.max() < 50
    monkeypatch.setattr(metrics, "_BLOCK", 150)
    blocks = list(metrics.resamples(50, 40, seed=4))
    assert len(blocks) == 14 and np.array_equal(np.vstack(blocks), whole)
    assert not np.array_equal(whole, np.vstack(list(metrics.resamples(50, 40, seed=5))))


def test_the_paired_bootstrap_takes_the_same_galaxies_from_all():
    random = np.random.default_rng(5)
    one = random.standard_t(3, 300) * 0.02
    first, second = metrics.bootstrap(metrics.bias, one, one + 0.001, number=200)
    assert second - first == pytest.approx(np.full(200, 0.001))
    apart = metrics.bootstrap(metrics.bias, one, number=200, seed=1)[0]
    assert np.std(second - apart) > 0.0005


@settings(deadline=None, max_examples=30)
@given(residual_lists, st.integers(0, 3))
def test_draws_lie_within_the_data(dz, seed):
    both = metrics.bootstrap(
        lambda x, axis: np.stack([np.mean(x, axis), np.median(x, axis)]), dz, number=30, seed=seed
    )[0]
    assert both.shape == (2, 30)
    assert np.all((both >= dz.min() - 1e-12) & (both <= dz.max() + 1e-12))


@pytest.mark.parametrize("values", [[np.empty(0)], [np.ones(3), np.ones(4)], [np.ones((2, 2))]])
def test_a_bootstrap_of_nothing_or_of_unlike_galaxies_is_refused(values):
    with pytest.raises(ValueError, match="the same galaxies"):
        metrics.bootstrap(metrics.bias, *values)


def test_p_is_small_only_where_the_differences_keep_their_sign():
    random = np.random.default_rng(6)
    assert metrics.two_sided_p(random.normal(0, 1, 4000)) > 0.9
    assert metrics.two_sided_p(random.normal(4, 1, 4000)) < 0.002
    assert metrics.two_sided_p(random.normal(-2, 1, 4000)) == pytest.approx(0.0455, abs=0.015)
    assert metrics.two_sided_p(np.zeros(10)) == 1


def main_galaxies(folder, name):
    """(magnitudes u g r i z, redshifts) of 5,000 real Main Galaxy Sample galaxies."""
    table = np.loadtxt(folder / "tables" / "mlz_sdss_mgs" / f"SDSS_MGS.{name}")
    return table[:, 1:6], table[:, 0]


def test_local_linear_regression_on_real_galaxies(real_data):
    """What DR12's own photo-z do, k = 100; a trial elsewhere gave 0.0125 and 0.7 %."""
    known, z = main_galaxies(real_data, "train")
    mags, truth = main_galaxies(real_data, "test")
    found = local_linear(mags, known, z)["z"].to_numpy()
    dz = metrics.residuals(found, truth)
    assert 0.0115 <= metrics.sigma_mad(dz) <= 0.0135
    assert 0.004 <= metrics.outlier_fraction(dz) <= 0.010
    assert abs(metrics.bias(dz)) < 0.002
    low, high = metrics.interval(metrics.bootstrap(metrics.sigma_mad, dz, number=500)[0])
    assert low < metrics.sigma_mad(dz) < high and 0.0003 < high - low < 0.0015


def test_nearest_neighbours_on_real_galaxies(real_data):
    known, z = main_galaxies(real_data, "train")
    mags, truth = main_galaxies(real_data, "test")
    scale = features(known).std(axis=0)
    near = cKDTree(features(known) / scale).query(features(mags) / scale, 20)[1]
    dz = metrics.residuals(z[near].mean(axis=1), truth)
    assert 0.013 <= metrics.sigma_mad(dz) <= 0.017
