import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_predictions import CENTRES, EDGES, FIRST_ID, make_catalog, make_pdf, write_run

from pipeline import metrics
from pipeline.evaluation.predictions import (
    Run,
    ensemble_files,
    prediction_files,
    read_sample,
    run_of,
)
from pipeline.run import UserError
from pipeline.survey import extinction


@pytest.fixture
def made(tmp_path):
    """(folder, catalogue, two runs of 60 test galaxies)."""
    catalog = make_catalog(tmp_path / "catalog.parquet")
    paths = [
        write_run(tmp_path, catalog, "supervised", 1, 0, 0.01),
        write_run(tmp_path, catalog, "moco", 0.025, 2, 0.012),
    ]
    return tmp_path, catalog, paths


def change(path, edit):
    table = pd.read_parquet(path)
    edit(table).to_parquet(path, index=False)


def ensemble(folder, catalog, metadata=True, name="photoz", off=0.004):
    z = catalog["z"].to_numpy(dtype=float)
    pdf = make_pdf(z + off, 0.01)
    table = pa.table({
        "objID": catalog["objID"], "split": catalog["split"], "z": catalog["z"],
        "z_phot": pdf @ CENTRES,
        "pdf": pa.FixedSizeListArray.from_arrays(pa.array(pdf.astype("f4").ravel()), 180),
    })  # fmt: skip
    if metadata:
        table = table.replace_schema_metadata({"edges": json.dumps(EDGES.tolist())})
    pq.write_table(table, folder / f"{name}.parquet")
    return folder / f"{name}.parquet", pdf


def refused(paths, folder, *more):
    with pytest.raises(UserError) as caught:
        read_sample(paths, folder / "catalog.parquet", *more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_test_galaxies_are_read_and_set_beside_the_catalogue(made):
    folder, catalog, paths = made
    sample = read_sample(paths, folder / "catalog.parquet")
    test = catalog[catalog["split"] == "test"]
    galaxies = sample.galaxies
    assert galaxies["objID"].dtype == np.int64 and galaxies["objID"].tolist() == list(test["objID"])
    assert galaxies["z"].tolist() == test["z"].tolist()
    assert galaxies["r"].tolist() == test["dered_petro_r"].tolist()
    dust = test[[f"extinction_{band}" for band in "ugriz"]].to_numpy()
    assert galaxies["e_bv"].to_numpy() == pytest.approx(extinction.e_bv(dust))
    assert galaxies["seeing"].tolist() == test["psfWidth_r"].tolist()
    assert list(sample.runs) == [Run("moco", 0.025, 2), Run("supervised", 1.0, 0)]
    assert sample.labels == 240
    assert sample.counts == {"test": 60, "predicted": 60, "compared": 60}


def test_the_catalogues_failures_count_as_missing(made):
    folder, catalog, paths = made
    sample = read_sample(paths, folder / "catalog.parquet")
    assert (~sample.has_catalogue).sum() == 6
    assert np.isnan(sample.catalogue.crps[~sample.has_catalogue]).all()
    known = sample.has_catalogue
    z, photoz = sample.galaxies["z"][known], sample.catalogue.z_phot[known]
    assert photoz.tolist() == catalog["photoz"].head(60)[known].tolist()
    exact = metrics.gaussian_crps(photoz, 0.016, z)
    assert sample.catalogue.crps[known] == pytest.approx(exact)


def test_a_catalogue_may_know_nothing_of_the_galaxies_but_ids(made):
    folder, catalog, paths = made
    catalog[["objID", "split"]].to_parquet(folder / "catalog.parquet", index=False)
    sample = read_sample(paths, folder / "catalog.parquet")
    assert not sample.has_catalogue.any()
    assert sample.galaxies[["r", "e_bv", "seeing"]].isna().all(axis=None)


def test_magnitudes_are_dereddened_here_where_the_catalogue_has_not(made):
    folder, catalog, paths = made
    catalog.drop(columns="dered_petro_r").to_parquet(folder / "catalog.parquet", index=False)
    sample = read_sample(paths, folder / "catalog.parquet")
    assert sample.galaxies["r"].to_numpy() == pytest.approx(catalog["dered_petro_r"].head(60))


def test_under_a_split_by_sky_only_labels_of_the_training_sky_count(made):
    folder, catalog, paths = made
    sky = np.where(np.arange(len(catalog)) % 3 == 0, "test", "train")
    catalog.assign(sky_split=sky).to_parquet(folder / "catalog.parquet", index=False)
    assert read_sample(paths, folder / "catalog.parquet").labels == 160


def test_the_ensemble_is_scored_from_its_pdfs(made):
    folder, catalog, paths = made
    path, pdf = ensemble(folder, catalog)
    sample = read_sample(paths, folder / "catalog.parquet", {"ensemble": path})
    (name, found), *others = sample.ensembles.items()
    assert name == "ensemble" and not others
    z = catalog["z"].head(60).to_numpy(dtype=float)
    assert found.z_phot == pytest.approx(pdf[:60] @ CENTRES)
    assert found.crps == pytest.approx(metrics.crps(pdf[:60], EDGES, z), rel=1e-5)
    assert found.pit == pytest.approx(metrics.pit(pdf[:60], EDGES, z), abs=1e-5)


def test_an_ensemble_without_edges_of_its_bins_is_refused(made):
    folder, catalog, paths = made
    path, _ = ensemble(folder, catalog, metadata=False)
    assert "edges of the bins" in refused(paths, folder, {"ensemble": path})


def test_several_ensembles_are_told_by_their_names(made):
    folder, catalog, paths = made
    offs = {"supervised ensemble": 0.002, "moco ensemble": 0.006}
    files = {name: ensemble(folder, catalog, name=name, off=off)[0] for name, off in offs.items()}
    sample = read_sample(paths, folder / "catalog.parquet", files)
    assert list(sample.ensembles) == ["moco ensemble", "supervised ensemble"]
    z = sample.galaxies["z"].to_numpy()
    for name, off in offs.items():
        assert np.median(sample.ensembles[name].z_phot - z) == pytest.approx(off, abs=1e-4)


def test_an_ensemble_is_named_for_its_start():
    words = ["a/photoz.parquet", "moco=b/p.parquet", "my net=p=1.parquet", "pasquet=/run=3/p"]
    assert ensemble_files(words) == {
        "ensemble": "a/photoz.parquet",
        "moco ensemble": "b/p.parquet",
        "my net ensemble": "p=1.parquet",
        "pasquet ensemble": "/run=3/p",
    }
    assert ensemble_files(["a/run=3/p.parquet"]) == {"ensemble": "a/run=3/p.parquet"}
    assert ensemble_files([]) == {}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["a.parquet", "b.parquet"], "--photoz b.parquet: ensemble is given twice"),
        (["moco=a", "pasquet=b", "moco=a"], "--photoz moco=a: moco ensemble is given twice"),
    ],
)
def test_a_name_of_two_ensembles_is_refused(words, text):
    with pytest.raises(UserError, match=text) as caught:
        ensemble_files(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda table: table.drop(columns="pdf"), "moco.parquet: column pdf is missing"),
        (lambda table: table.assign(objID=table["objID"] + 3), "moco.parquet: the runs predict "
         "none of its test galaxies; make it from the same dataset"),
        (lambda table: table[table["split"] == "train"], "moco.parquet: no test galaxy is in it"),
        (lambda table: table.assign(z=table["z"] + 1e-6), "another redshift in moco ensemble"),
        (lambda table: table.assign(z_phot=np.nan), "moco.parquet: z_phot of galaxy"),
    ],
)  # fmt: skip
def test_a_spoilt_ensemble_is_refused_in_one_line(made, edit, text):
    folder, catalog, paths = made
    files = {"ensemble": ensemble(folder, catalog)[0]}
    files["moco ensemble"] = ensemble(folder, catalog, name="moco")[0]
    kept = pq.read_schema(files["moco ensemble"]).metadata[b"edges"]
    table = edit(pd.read_parquet(files["moco ensemble"]))
    table = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"edges": kept}), files["moco ensemble"])
    assert text in refused(paths, folder, files)


def test_an_ensemble_that_is_not_there_is_named(made):
    folder, _, paths = made
    files = {"moco ensemble": folder / "no.parquet"}
    assert "no.parquet: no such file" in refused(paths, folder, files)


def test_runs_with_other_galaxies_are_compared_on_the_common_ones(made, caplog):
    folder, _, paths = made
    change(paths[0], lambda table: table.iloc[5:])
    change(paths[1], lambda table: table.drop(index=table.index[[7, 8]]))
    sample = read_sample(paths, folder / "catalog.parquet")
    assert sample.counts == {"test": 60, "predicted": 60, "compared": 53}
    assert all(len(one.z_phot) == 53 for one in sample.runs.values())
    assert "53 of 60 are in all" in caplog.text


def test_the_order_of_rows_and_of_files_does_not_matter(made):
    folder, _, paths = made
    first = read_sample(paths, folder / "catalog.parquet")
    change(paths[0], lambda table: table.iloc[::-1])
    second = read_sample(paths[::-1], folder / "catalog.parquet")
    pd.testing.assert_frame_equal(first.galaxies, second.galaxies)
    for key, one in first.runs.items():
        assert np.array_equal(one.z_phot, second.runs[key].z_phot)


def test_folders_are_searched(made):
    folder, _, paths = made
    assert prediction_files([folder]) == sorted(paths)
    assert prediction_files([paths[0], folder / "moco"]) == paths


def test_labels_are_those_that_had_a_stamp_where_the_training_tells(made):
    folder, _, paths = made
    assert read_sample(paths, folder / "catalog.parquet").labels == 240  # all of train
    table = pd.read_parquet(paths[0])
    table.attrs = {"labels": 100, "of": 200}
    table.to_parquet(paths[0], index=False)
    assert read_sample(paths, folder / "catalog.parquet").labels == 200


def test_trainings_that_are_not_done_are_not_searched(made):
    folder, _, paths = made
    for hidden in (".state-0/1-0-0123abcd", ".1-0.part"):
        unfinished = folder / "moco" / hidden / "predictions.parquet"
        unfinished.parent.mkdir(parents=True)
        unfinished.write_bytes(paths[0].read_bytes())
    assert prediction_files([folder]) == sorted(paths)


def test_a_catalogue_with_errors_says_nothing_where_one_is_missing(made):
    """Else a single one would leave its CRPS and PIT unknown."""
    folder, catalog, paths = made
    catalog.loc[1, "photozErr"] = -9999.0
    catalog.to_parquet(folder / "catalog.parquet", index=False)
    sample = read_sample(paths, folder / "catalog.parquet")
    assert sample.has_catalogue.sum() == 60 - 6 - 1
    assert np.isfinite(sample.catalogue.crps[sample.has_catalogue]).all()
    catalog.assign(photozErr=np.nan).to_parquet(folder / "catalog.parquet", index=False)
    assert read_sample(paths, folder / "catalog.parquet").has_catalogue.sum() == 60 - 6


@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("a/supervised/1-2/p.parquet", Run("supervised", 1.0, 2)),
        ("moco/0.0625-10/p.parquet", Run("moco", 0.0625, 10)),
        ("a/moco/1e-05-0/p.parquet", Run("moco", 1e-5, 0)),
    ],
)
def test_a_run_is_known_by_its_path(tmp_path, path, run):
    assert run_of(tmp_path / path) == run


@pytest.mark.parametrize("path", ["moco/best/p.parquet", "moco/half-0/p.parquet", "p.parquet"])
def test_a_path_that_names_no_run_is_refused(tmp_path, path):
    with pytest.raises(UserError, match="START/FRACTION-SEED"):
        run_of(tmp_path / path)


def nan_in(column):
    return lambda table: table.assign(**{column: table[column].where(table.index % 9 != 0)})


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (nan_in("z_phot"), "z_phot of galaxy 1237648"),
        (nan_in("crps"), "crps of galaxy"),
        (nan_in("z"), "z of galaxy"),
        (lambda table: table[table["split"] == "valid"], "no test galaxy"),
        (lambda table: table.drop(columns="pit"), "column pit is missing"),
        (lambda table: pd.concat([table, table]), "is in it twice"),
        (lambda table: table.assign(z=table["z"] + 1e-6), "another redshift in supervised/1-0"),
        (lambda table: table.assign(objID=table["objID"] + 3), "no test galaxy in common"),
    ],
)
def test_spoilt_predictions_are_refused_in_one_line(made, edit, text):
    folder, _, paths = made
    change(paths[0], edit)
    assert text in refused(paths, folder)


def test_what_is_missing_is_named(made):
    folder, catalog, paths = made
    (folder / "empty").mkdir()
    assert "no predictions.parquet below" in refused([folder / "empty"], folder)
    assert "no such file" in refused([folder / "moco" / "1-9" / "p.parquet"], folder)
    assert "no predictions" in refused([], folder)
    assert "given twice" in refused([*paths, paths[0]], folder)
    paths[0].write_bytes(b"PAR1 no more")
    assert "cannot be read as Parquet" in refused(paths, folder)


def test_a_catalogue_of_other_galaxies_is_refused(made):
    folder, catalog, paths = made
    catalog.iloc[1:].to_parquet(folder / "catalog.parquet", index=False)
    assert f"galaxy {FIRST_ID} is not in it (1 such)" in refused(paths, folder)
