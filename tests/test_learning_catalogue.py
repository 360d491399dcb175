"""Redshifts from magnitudes: on real galaxies, and as a start of `train` beside the nets."""

import sys

import numpy as np
import pandas as pd
import pytest
from small_photoz import galaxy_catalog, write_galaxies

from pipeline import metrics, run, settings, train
from pipeline.images.reader import label_fraction, members, open_set
from pipeline.learning import catalogue, checkpoint
from pipeline.run import UserError


def main_galaxies(folder, name):
    """(magnitudes u g r i z, redshifts) of 5,000 real Main Galaxy Sample galaxies."""
    table = np.loadtxt(folder / "tables" / "mlz_sdss_mgs" / f"SDSS_MGS.{name}")
    return table[:, 1:6], table[:, 0]


@pytest.fixture(scope="module")
def real(real_data):
    known, z = main_galaxies(real_data, "train")
    mags, truth = main_galaxies(real_data, "test")
    judged = pd.DataFrame({"objID": np.arange(len(mags)), "split": "test", "z": truth})
    return {
        method: catalogue.predictions(method, judged, mags, known, z, 0)
        for method in catalogue.METHODS
    }


@pytest.mark.parametrize("method", list(catalogue.METHODS))
def test_real_galaxies_get_redshifts_as_good_as_dr12s_and_errors_that_hold(real, method):
    table = real[method]
    dz = metrics.residuals(table["z_phot"], table["z"])
    assert 0.0110 <= metrics.sigma_mad(dz) <= 0.0145
    assert metrics.outlier_fraction(dz) <= 0.012 and abs(metrics.bias(dz)) < 0.002
    pull = (table["z"] - table["z_phot"]) / table["z_width"]
    assert 0.6 < np.mean(np.abs(pull) < 1) < 0.85
    expected = metrics.gaussian_crps(table["z_phot"], table["z_width"], table["z"])
    assert np.array_equal(table["crps"], expected)


def test_the_workflow_knows_the_methods_that_have_no_net():
    assert set(settings.NO_NETS) == set(catalogue.METHODS)


def test_a_missing_magnitude_is_one_of_the_labelled_galaxies_median_colour():
    known = np.array([[19.0, 18, 17, 16, 15]] * 3) + np.array([[0.0], [1.0], [2.0]])
    mags = np.array([[np.nan, 18.5, 17.5, 16.5, 15.5], [np.nan] * 5])
    filled = catalogue._filled(mags, known)
    assert filled[0] == pytest.approx([19.5, 18.5, 17.5, 16.5, 15.5])
    assert filled[1] == pytest.approx([20.0, 19, 18, 17, 16])


@pytest.fixture(scope="module")
def galaxies(tmp_path_factory):
    """A file of stamps, and the catalogue that it was made from, with colours that tell z."""
    folder = tmp_path_factory.mktemp("set")
    table = galaxy_catalog(200)
    z = table["z"].to_numpy(dtype=float, na_value=0.1)
    for at, band in enumerate("ugriz"):
        table[f"modelMag_{band}"] = 18 + z * 3 * (2 - at) + table[f"extinction_{band}"]
    table.to_parquet(folder / "catalog.parquet", index=False)
    return write_galaxies(folder / "galaxies.h5", table), folder / "catalog.parquet"


def arguments(galaxies, output, method, *more):
    shard, catalog = galaxies
    return ["--dataset", str(shard), "--catalog", str(catalog), "--magnitudes", method,
            "--output", str(output), "--seed", "2", *more]  # fmt: skip


@pytest.mark.parametrize("method", list(catalogue.METHODS))
def test_train_makes_what_it_makes_of_nets_twice_the_same(galaxies, tmp_path, method):
    for name in ("one", "two"):
        train.main(arguments(galaxies, tmp_path / name, method, "--fractions", "0.5", "1"))
    for fraction in ("0.5-2", "1-2"):
        for file in ("predictions.parquet", "model.pt", "history.csv"):
            one, two = ((tmp_path / name / fraction / file).read_bytes() for name in ("one", "two"))
            assert one == two
    images = open_set([str(galaxies[0])])
    labels = images.take(members(images, "train"))
    used = label_fraction(labels.objid, 0.5, 2).sum()
    content = checkpoint.load(tmp_path / "one" / "0.5-2" / "model.pt", "magnitudes")
    table = pd.read_parquet(tmp_path / "one" / "0.5-2" / "predictions.parquet")
    assert len(content["z"]) == used == table.attrs["labels"]
    assert set(table["split"]) == {"valid", "test"} and table["objID"].is_monotonic_increasing
    best = pd.read_parquet(tmp_path / "one" / "1-2" / "predictions.parquet")
    assert metrics.sigma_mad(metrics.residuals(best["z_phot"], best["z"])) < 0.02


def test_bad_input_ends_in_one_line(galaxies, tmp_path, monkeypatch):
    shard, catalog = galaxies
    bare = tmp_path / "bare.parquet"
    pd.read_parquet(catalog).drop(columns="modelMag_z").to_parquet(bare)
    fewer = tmp_path / "fewer.parquet"
    pd.read_parquet(catalog).iloc[:50].to_parquet(fewer)
    for change, line in (
        (["--catalog", str(bare)], "has no modelMag_z"),
        (["--catalog", str(fewer)], "is not in it"),
        (["--catalog", "none.parquet"], "no such catalogue"),
        (["--fractions", "0.05"], "it needs 20"),
    ):
        argv = arguments(galaxies, tmp_path / "out", "local_linear", *change)
        monkeypatch.setattr(sys, "argv", ["train", *argv])
        with pytest.raises(SystemExit) as caught:
            run.start(train.main)
        message = str(caught.value.code)
        assert message.startswith("error: ") and "\n" not in message and line in message
    with pytest.raises(UserError, match="--catalog"):
        train.main(["--dataset", str(shard), "--magnitudes", "local_linear", "--output", "x"])
