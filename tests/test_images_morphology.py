"""Types from votes: thresholds, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.morphology import CLASSES, Votes, read_types
from pipeline.run import UserError

ID = np.int64(1237645941824356481)


def write(path, **columns):
    count = len(next(iter(columns.values())))
    table = pd.DataFrame({"objID": ID + np.arange(count), **columns})
    for name in ("nvote", "p_el", "p_cs", "p_el_debiased", "p_cs_debiased"):
        table[name] = pd.array(columns.get(name, [None] * count), "Float64")
    table.to_parquet(path, index=False)
    return str(path)


def test_types_are_those_above_the_threshold_of_enough_votes(tmp_path):
    catalog = write(
        tmp_path / "catalog.parquet",
        nvote=[30, 30, 30, 30, 5, None],
        p_el=[0.95, 0.05, 0.5, 0.82, 1.0, None],
        p_cs=[0.05, 0.9, 0.4, 0.1, 0.0, None],
        p_el_debiased=[0.9, 0.0, 0.4, 0.8, 1.0, None],
        p_cs_debiased=[0.1, 0.95, 0.5, 0.2, 0.0, None],
    )
    ids = ID + np.array([5, 3, 1, 0, 2, 4])

    def types(**how):
        return read_types(catalog, ids, Votes(**how)).tolist()

    nan = pytest.approx(np.nan, nan_ok=True)
    assert types() == [nan, nan, 0, 1, nan, 1]
    assert types(least_votes=10) == [nan, nan, 0, 1, nan, nan]
    assert types(debiased=False) == [nan, 1, 0, 1, nan, 1]
    assert CLASSES[1] == "early"


@given(st.floats(0.5, 0.99), st.floats(0, 1))
def test_no_galaxy_is_of_both_types(tmp_path_factory, threshold, early):
    folder = tmp_path_factory.mktemp("votes")
    table = {"nvote": [40], "p_el_debiased": [early], "p_cs_debiased": [1 - early]}
    catalog = write(folder / "c.parquet", p_el=[early], p_cs=[1 - early], **table)
    found = read_types(catalog, np.array([ID]), Votes(threshold))[0]
    side = {1.0: early, 0.0: 1 - early}
    assert np.isnan(found) == (max(early, 1 - early) <= threshold)
    assert np.isnan(found) or side[found] > threshold


@pytest.mark.parametrize("how", [{"threshold": 0.4}, {"threshold": 1.0}, {"least_votes": 0}])
def test_thresholds_that_make_no_sense_are_refused(how):
    with pytest.raises(UserError, match=f"{next(iter(how))}: "):
        Votes(**how)


def test_a_catalogue_without_votes_or_of_other_galaxies_is_refused(tmp_path):
    empty = write(tmp_path / "empty.parquet", nvote=[None])
    with pytest.raises(UserError, match="none of the galaxies has a nvote"):
        read_types(empty, np.array([ID]))
    pd.DataFrame({"objID": [ID]}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="queries/morphology.sql"):
        read_types(str(tmp_path / "none.parquet"), np.array([ID]))
    votes = {"nvote": [3], "p_el_debiased": [1.0], "p_cs_debiased": [0.0]}
    some = write(tmp_path / "some.parquet", **votes)
    with pytest.raises(UserError, match=f"galaxy {ID + 7} is not in it"):
        read_types(some, np.array([ID, ID + 7]))
