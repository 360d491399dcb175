"""Splits and shards."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import angular_separation as separation
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run import UserError
from pipeline.survey import splits

OVERLAP = 0.012 * np.sqrt(2)


def test_random_split_has_its_shares():
    ids = np.arange(40000) + 1237653651835781245
    split = splits.random_split(ids, np.ones(40000, bool), 0.2048, 0.05, 0)
    share = {name: np.mean(split == name) for name in splits.NAMES}
    assert share["test"] == pytest.approx(0.2048, abs=0.01)
    assert share["valid"] == pytest.approx(0.7952 * 0.05, abs=0.005)
    assert share["train"] == pytest.approx(0.7952 * 0.95, abs=0.01)


def test_random_split_follows_the_object_not_the_row():
    rng = np.random.default_rng(1)
    ids = rng.integers(1, 2**62, 3000)
    whole = splits.random_split(ids, np.ones(3000, bool), 0.2, 0.05, 4)
    some = rng.permutation(3000)[:500]
    assert (splits.random_split(ids[some], np.ones(500, bool), 0.2, 0.05, 4) == whole[some]).all()
    wider = splits.random_split(ids, np.ones(3000, bool), 0.3, 0.05, 4)
    assert (wider[whole == "test"] == "test").all()
    other = splits.random_split(ids, np.ones(3000, bool), 0.2, 0.05, 5)
    assert (other != whole).mean() > 0.2
    assert set(splits.random_split(ids, np.zeros(3000, bool), 0.2, 0.05, 4)) == {"unlabelled"}


def sky(number=3000, side=12.0):
    rng = np.random.default_rng(2)
    ra, dec = (355 + rng.uniform(0, side, number)) % 360, rng.uniform(-3, side - 3, number)
    return ra, dec, rng.uniform(size=number) < 0.5


def test_sky_split_is_by_whole_pixels_and_keeps_sides_apart():
    ra, dec, labelled = sky()
    split, side = splits.sky_split(ra, dec, labelled, 0.2048, 0.05, 32, OVERLAP, 0)
    assert (split[~labelled] == "unlabelled").all()
    assert np.mean(split[labelled] == "test") == pytest.approx(0.2048, abs=0.03)
    tests, train = labelled & (split == "test"), side == "train"
    a, b = np.radians([ra[tests], dec[tests]]), np.radians([ra[train], dec[train]])
    between = np.degrees(separation(a[0][:, None], a[1][:, None], b[0], b[1]))
    assert between.min() > OVERLAP
    assert (side == "border").any() and set(side[split == "test"]) == {"test"}
    assert (side[~labelled] == "test").any()  # unlabelled galaxies that pretraining must not see
    again = splits.sky_split(ra, dec, labelled, 0.2048, 0.05, 32, OVERLAP, 0)
    assert (again[0] == split).all() and (again[1] == side).all()


def test_sky_split_of_the_labelled_does_not_follow_the_unlabelled():
    ra, dec, labelled = sky()
    split, _ = splits.sky_split(ra, dec, labelled, 0.2048, 0.05, 32, OVERLAP, 0)
    alone, _ = splits.sky_split(
        ra[labelled], dec[labelled], labelled[labelled], 0.2048, 0.05, 32, OVERLAP, 0
    )
    assert (alone == split[labelled]).all()


def test_an_empty_split_is_refused_with_its_counts():
    ra, dec, labelled = sky(400, side=1.0)
    with pytest.raises(UserError, match=r"nside 1 gives 1 pixels .* train \d+, valid 0, test 0"):
        splits.sky_split(ra + 20, dec, labelled, 0.2048, 0.05, 1, OVERLAP, 0)
    split, side = splits.sky_split(ra, dec, 0 * ra, 0.2048, 0.05, 1, OVERLAP, 0)
    assert set(split) == {"unlabelled"} and set(side) == {"train"}


@pytest.mark.parametrize(
    ("test", "valid", "nside", "message"),
    [(1.0, 0.05, 8, "test-fraction: 1"), (0.2, -0.1, 8, "valid-fraction"), (0.2, 0.1, 12, "nside")],
)
def test_impossible_values_are_refused(test, valid, nside, message):
    with pytest.raises(UserError, match=message):
        splits.sky_split(*sky(50), test, valid, nside, OVERLAP, 0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.data())
def test_shards_are_whole_fields_in_order_and_balanced(members, data):
    number = data.draw(st.integers(1, len(members)))
    field = np.repeat(np.arange(len(members)), members)
    place = pd.DataFrame({"run": 94 + field // 20, "camcol": 1, "field": field})
    shard = splits.shards(place, number)
    assert (np.diff(shard) >= 0).all() and set(shard) == set(range(number))
    of_field = pd.Series(shard).groupby(field).nunique()
    assert (of_field == 1).all()
    fields = pd.Series(field).groupby(shard).nunique()
    assert fields.max() - fields.min() <= 1


def test_more_shards_than_fields_are_refused_with_both_numbers():
    place = pd.DataFrame({"run": [94, 94], "camcol": [1, 1], "field": [11, 12]})
    for number in (0, 3):
        with pytest.raises(UserError, match=f"shards: {number}, but .* on 2 fields"):
            splits.shards(place, number)
