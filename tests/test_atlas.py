"""The stage atlas: its products, and what is refused."""

import logging
import re
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from small_vectors import CROP, make_set, unit

from pipeline import atlas
from pipeline.images.reader import open_set
from pipeline.run import UserError
from pipeline.similarity.vectors import VectorWriter, read_vectors

COUNT = 60
COLUMNS = ["objID", "x", "y", "split", "z", "photoz", "petroMag_r", "type"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of 60 galaxies, vectors of them in moco.h5, and a catalogue with votes."""
    folder = tmp_path_factory.mktemp("set")
    table = open_set(make_set(folder, COUNT)).table
    random = np.random.default_rng(0)
    table = table.assign(photoz=table["photoz"].where(table.index != 3, -9999.0))
    with VectorWriter(folder / "moco.h5", table, {"contrastive": 6, "pooled": 9},
                      attrs={"crop": CROP}) as writer:  # fmt: skip
        writer.write(0, {"contrastive": unit(random, COUNT, 6), "pooled": unit(random, COUNT, 9)})
    catalog = pd.read_parquet(folder / "catalog.parquet")
    at = np.arange(COUNT)
    catalog["nvote"] = pd.array(np.where(at % 4, 30, None), "Int64")
    for name, kind in (("p_el_debiased", 1), ("p_cs_debiased", 2)):
        catalog[name] = pd.array(np.where(at % 4, (at % 4 == kind) * 0.85, None), "Float64")
    catalog.sample(frac=1, random_state=1).to_parquet(folder / "votes.parquet", index=False)
    return folder


def run(folder, output, *more, embed="moco.h5"):
    atlas.main(["--embed", str(folder / embed), "--dataset", str(folder / "dataset.json"),
                "--output", str(output), *more])  # fmt: skip


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """What the stage leaves, with types."""
    output = tmp_path_factory.mktemp("atlas") / "moco"
    run(folder, output, "--catalog", str(folder / "votes.parquet"), "--stamps", "12")
    return output


def test_every_galaxy_is_on_the_map_once(folder, done):
    found, vectors = pd.read_parquet(done / "atlas.parquet"), read_vectors(folder / "moco.h5").table
    assert list(found) == COLUMNS
    assert found["objID"].dtype == np.int64
    assert found["objID"].tolist() == vectors["objID"].tolist()
    assert found["objID"].is_unique and np.isfinite(found[["x", "y"]]).all(axis=None)
    for name in ("split", "z", "petroMag_r"):
        pd.testing.assert_series_equal(found[name], vectors[name], check_dtype=False)
    assert found["photoz"].isna().tolist() == [row == 3 for row in range(COUNT)]


def test_types_are_those_of_the_votes(folder, done):
    found = pd.read_parquet(done / "atlas.parquet").set_index("objID")["type"]
    ids = pd.read_parquet(folder / "catalog.parquet")["objID"]
    expected = [{1: "early", 2: "late"}.get(at % 4) for at in range(COUNT)]
    assert [one if isinstance(one, str) else None for one in found.loc[ids]] == expected


def test_the_figure_and_the_page_are_there(folder, done):
    assert imread(done / "atlas.png").shape[2] == 4
    content = (done / "atlas.html").read_text()
    assert "Atlas of 60 galaxies" in content
    shown = {one for one in open_set(folder / "dataset.json").objid if f'"{one}"' in content}
    assert len(shown) == 12
    assert (done / "atlas.parquet.provenance.json").is_file()
    assert not list(done.glob(".*"))


def test_the_same_seed_gives_the_same_bytes(folder, done, tmp_path):
    more = ["--catalog", str(folder / "votes.parquet"), "--stamps", "12"]
    run(folder, tmp_path / "again", *more)
    for name in ("atlas.parquet", "atlas.png", "atlas.html"):
        assert (tmp_path / "again" / name).read_bytes() == (done / name).read_bytes(), name
    run(folder, tmp_path / "other", *more, "--seed", "1")
    seen = (tmp_path / "other" / "atlas.parquet").read_bytes()
    assert seen != (done / "atlas.parquet").read_bytes()


def test_a_sample_is_told_and_other_vectors_make_another_map(folder, done, tmp_path):
    places = []
    for kind in ("contrastive", "pooled", "whitened"):
        run(folder, tmp_path / kind, "--galaxies", "40", "--vectors", kind)
        found = pd.read_parquet(tmp_path / kind / "atlas.parquet")
        assert len(found) == 40
        assert set(found["objID"]) < set(pd.read_parquet(done / "atlas.parquet")["objID"])
        places.append(found[["x", "y"]].to_numpy())
        assert f"UMAP of the {kind} vectors" in (tmp_path / kind / "atlas.html").read_text()
    assert "Atlas of 40 of 60 galaxies" in (tmp_path / "pooled" / "atlas.html").read_text()
    assert not np.allclose(places[0], places[1]) and not np.allclose(places[1], places[2])


@pytest.mark.parametrize(
    ("catalog", "message"),
    [(None, "no types, since no --catalog is given"), ("catalog.parquet", "no types; .*nvote")],
)
def test_without_votes_types_are_left_out_and_a_line_says_so(
    folder, tmp_path, caplog, catalog, message
):
    caplog.set_level(logging.INFO, "ugriz")
    more = ["--catalog", str(folder / catalog)] if catalog else []
    run(folder, tmp_path, *more, "--galaxies", "20")
    assert re.search(message, caplog.text)
    found = pd.read_parquet(tmp_path / "atlas.parquet")
    assert list(found) == COLUMNS and found["type"].isna().all()
    assert found["type"].dtype == "str"
    assert "votes of Galaxy Zoo" not in (tmp_path / "atlas.html").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--galaxies", "-1"), "galaxies: -1; give 1 or more, or 0 for all"),
        (("--stamps", "0"), "stamps: 0; give 1 or more"),
        (("--neighbours", "1"), "neighbours: 1; give 2 or more"),
        (("--neighbours", "60"), "neighbours: 60, but the map has 60 galaxies; give fewer"),
        (("--galaxies", "15"), "neighbours: 15, but the map has 15 galaxies"),
        (("--min-dist", "2"), "min_dist: 2; give a number from 0 to 1"),
        (("--seed", "-1"), "seed: -1; give 0 or more"),
        (("--threshold", "0.3"), "threshold: 0.3; give a share"),
        (("--catalog", "nowhere.parquet"), "nowhere.parquet: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, tmp_path, more, message):
    with pytest.raises(UserError, match=message) as refused:
        run(folder, tmp_path / "out", *more)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_vectors_of_other_images_of_the_same_galaxies_are_refused(folder, tmp_path):
    shutil.copy(folder / "moco.h5", tmp_path / "moco.h5")
    with h5py.File(tmp_path / "moco.h5", "a") as file:
        file.attrs["data"] = "of another day"
    more = ["--dataset", str(folder / "dataset.json"), "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match="moco.h5: vectors of other images .*; run embed on this"):
        atlas.main(["--embed", str(tmp_path / "moco.h5"), *more])


def test_a_set_or_a_catalogue_of_other_galaxies_is_refused(folder, tmp_path):
    make_set(tmp_path / "other", count=20)
    more = ["--embed", str(folder / "moco.h5"), "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match="is not in .*give the dataset that the vectors were made"):
        atlas.main([*more, "--dataset", str(tmp_path / "other" / "dataset.json")])
    with pytest.raises(UserError, match="is not in it .*give the catalogue"):
        run(folder, tmp_path / "out", "--catalog", str(tmp_path / "other" / "catalog.parquet"))
    with pytest.raises(UserError, match="dataset.json: cannot be read as HDF5"):
        run(folder, tmp_path / "out", embed="dataset.json")
    assert not (tmp_path / "out").exists()
