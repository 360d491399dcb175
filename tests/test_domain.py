"""Outlier scores and the flag against slow references."""

import numpy as np
import pytest
import torch

from pipeline.learning import checkpoint, colours, domain


def galaxies(count=60, seed=0):
    random = np.random.default_rng(seed)
    features = np.abs(random.normal(size=(count, 6))).astype(np.float32)
    measured = random.normal([1.5, 0.8, 0.4, 0.3, 17.0], 0.2, (count, 5))
    return np.arange(count) + 10**18, features, measured, random.uniform(0.02, 0.25, count)


def test_score_is_the_mean_cosine_distance_to_the_ten_nearest_others():
    ids, features, measured, z = galaxies()
    known = domain.describe(ids, features, measured, z)
    score = known.score(features[:5], ids[:5])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for at in range(5):
        distance = np.delete(1 - unit @ unit[at], at)
        assert score[at] == pytest.approx(np.sort(distance)[:10].mean(), abs=2e-3)


def test_a_galaxy_is_not_its_own_neighbour_but_a_twin_of_another_id_is():
    ids, features, measured, z = galaxies(11)
    known = domain.describe(ids, features, measured, z)
    own = known.score(features[:1], ids[:1])[0]
    twin = known.score(features[:1], np.array([5]))[0]
    assert twin < own


def test_limit_is_that_of_the_galaxies_given_and_the_flag_follows_it():
    ids, features, measured, z = galaxies(400)
    known = domain.with_limit(domain.describe(ids, features, measured, z), features, ids)
    score = known.score(features, ids)
    middle = np.tile(np.median(measured, axis=0), (400, 1))
    flagged = known.beyond(middle, np.full(400, 0.1), score)
    assert flagged.sum() == 2  # half a percent of 400


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("side", [-1, 1])
def test_colours_beyond_the_percentiles_by_more_than_the_margin_are_flagged(column, side):
    ids, features, measured, z = galaxies()
    known = domain.describe(ids, features, measured, z)
    limits = np.percentile(measured[:, column], [0.5, 99.5])
    rows = np.tile(np.median(measured, axis=0), (2, 1))
    edge = limits[0] if side < 0 else limits[1]
    rows[:, column] = edge + side * np.array([0.09, 0.11])
    assert known.beyond(rows, np.full(2, 0.1), np.zeros(2)).tolist() == [False, True]


def test_redshifts_beyond_the_training_ones_are_flagged():
    ids, features, measured, z = galaxies()
    known = domain.describe(ids, features, measured, z)
    rows = np.tile(np.median(measured, axis=0), (3, 1))
    z_phot = np.array([z.min() - 1e-4, 0.1, z.max() + 1e-4])
    assert known.beyond(rows, z_phot, np.zeros(3)).tolist() == [True, False, True]


def test_features_kept_do_not_depend_on_the_order_and_are_bounded(monkeypatch):
    monkeypatch.setattr(domain, "KEPT", 20)
    ids, features, measured, z = galaxies()
    turned = np.random.default_rng(1).permutation(len(ids))
    one = domain.describe(ids, features, measured, z)
    two = domain.describe(ids[turned], features[turned], measured[turned], z[turned])
    assert len(one.objid) == 20 and set(one.objid) == set(two.objid)


def test_domain_survives_a_file(tmp_path):
    known = domain.describe(*galaxies())
    checkpoint.save(tmp_path / "d.pt", "domain", {"domain": domain.to_state(known)})
    read = domain.from_state(checkpoint.load(tmp_path / "d.pt", "domain")["domain"])
    for name in ("colours", "redshifts", "objid", "features"):
        assert np.array_equal(getattr(known, name), getattr(read, name))
    assert read.limit == known.limit and domain.from_state(domain.to_state(None)) is None


def test_colours_of_a_flat_disc_are_those_of_its_fluxes():
    flux = torch.tensor([5.0, 20.0, 50.0, 80.0, 100.0], dtype=torch.float64)
    images = torch.zeros(1, 5, 33, 33, dtype=torch.float64)
    images[0, :, 14:19, 14:19] = (flux / 25)[:, None, None]
    found = colours.measure(images)[0].numpy()
    magnitude = 22.5 - 2.5 * np.log10(flux.numpy())
    expected = [*(magnitude[:-1] - magnitude[1:]), magnitude[2]]
    assert found == pytest.approx(expected, abs=2e-3)
    assert np.isfinite(colours.measure(-images).numpy()).all()
