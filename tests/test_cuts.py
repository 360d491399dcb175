"""Which row stays, which goes, and that each one is counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.survey import cuts
from pipeline.survey.cuts import Sample

KNOWN = 1237653651835781245


def table(**columns) -> pd.DataFrame:
    number = len(next(iter(columns.values())))
    plain = {"objID": np.arange(number) + 1, "ra": np.arange(number) * 1.0, "dec": 0.0}
    return pd.DataFrame(plain | columns)


@pytest.mark.parametrize(
    ("columns", "stays"),
    [
        (dict(sciencePrimary=[0, 1, 0], zErr=[1e-5, 3e-5, 1e-6]), 1),
        (dict(sciencePrimary=[1, 1, 0], zErr=[2e-5, 1e-5, 1e-6]), 1),
        (dict(sciencePrimary=[0, 0, 0], zErr=[np.nan, 2e-5, 1e-5]), 2),
        (dict(sciencePrimary=[np.nan, 0, np.nan], zErr=[1e-6, 1e-5, 1e-6]), 1),
        (dict(zErr=[1e-5, 1e-5, 1e-5], specObjID=[KNOWN + 1, KNOWN, KNOWN + 2]), 1),
    ],
)
def test_of_repeat_spectra_the_primary_stays_then_the_smallest_error(columns, stays):
    rows = table(objID=[KNOWN] * 3, z=[0.1, 0.1, 0.1], **columns)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        left = ~cuts.repeats(rows.iloc[order].reset_index(drop=True))
        assert [order[k] for k in np.flatnonzero(left)] == [stays]


def test_ids_that_differ_in_the_last_digit_are_two_objects():
    assert not cuts.repeats(table(objID=[KNOWN, KNOWN + 1, KNOWN - 1])).any()


@pytest.mark.parametrize(
    ("columns", "stays"),
    [
        (dict(sciencePrimary=[0, 1], mode=[1, 2], zErr=[1.0, 2.0]), 1),
        (dict(sciencePrimary=[1, 1], mode=[2, 1], zErr=[1.0, 2.0]), 1),
        (dict(mode=[1, 1], zErr=[2.0, 1.0]), 1),
        (dict(zErr=[1.0, 1.0]), 0),
    ],
)
def test_of_two_close_positions_the_better_stays(columns, stays):
    rows = table(ra=[359.9999, 0.0001], **columns)
    assert np.flatnonzero(~cuts.nearby(rows, 1.0)).tolist() == [stays]
    assert not cuts.nearby(rows, 0.5).any()


def test_also_labelled_by_id_or_place():
    rows = table(objID=[1, 2, 3], ra=[10.0, 20.0, 30.0])
    labelled = table(objID=[1, 9], ra=[50.0, 20.0 + 0.5 / 3600])
    assert cuts.also_labelled(rows, labelled, 1.0).tolist() == [True, True, False]
    assert cuts.also_labelled(rows, labelled, 0.3).tolist() == [True, False, False]


def test_a_sample_counts_what_goes_and_keeps_its_reason():
    sample = Sample("labelled", table(objID=[5, 6, 7]))
    sample.cut("latitude", "|b| >= 15 deg", [True, False, True], "|b| below 15 deg")
    sample.cut("other", "all", [False], "never")
    assert [step["count"] for step in sample.steps] == [3, 1, 1]
    assert [step["removed"] for step in sample.steps] == [0, 2, 0]
    assert sample.steps[0]["paper"] == 547_224
    gone = pd.concat(sample.removed)
    assert gone["objID"].tolist() == [5, 7] and set(gone["reason"]) == {"|b| below 15 deg"}
    assert sample.rows["objID"].tolist() == [6]


def test_narrow_samples_know_their_rows():
    one, other = table(ra=[1.0, 2.0], rowc_u=0.5, z=0.1), table(ra=[3.0, 4.0, 5.0], photoz=0.2)
    samples = Sample("labelled", one), Sample("unlabelled", other)
    cuts.narrow(samples)
    assert list(samples[0].rows) == ["objID", "ra", "dec", "z", "row"]
    assert [sample.rows["row"].tolist() for sample in samples] == [[0, 1], [2, 3, 4]]
    assert "rowc_u" in one and "row" not in one
