"""The stage search: a whole set, one galaxy, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from small_vectors import CROP, make_set, unit

from pipeline import search
from pipeline.images.reader import open_set
from pipeline.run import UserError
from pipeline.similarity import figures
from pipeline.similarity.vectors import VectorWriter, read_vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of 40 galaxies and random vectors of them, in moco.h5."""
    folder = tmp_path_factory.mktemp("set")
    images = open_set(make_set(folder))
    write(folder / "moco.h5", images.table)
    return folder


def write(path, table, seed=0):
    random = np.random.default_rng(seed)
    sizes = {"contrastive": 6, "pooled": 9}
    with VectorWriter(path, table, sizes, attrs={"crop": CROP}) as writer:
        writer.write(0, {kind: unit(random, len(table), size) for kind, size in sizes.items()})


def whole_set(folder, output, *more):
    search.main(
        ["--embed", str(folder / "moco.h5"), "--dataset", str(folder / "dataset.json"),
         "--output", str(output), "--threads", "1", *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """What a search of the whole set leaves, with k = 4."""
    output = tmp_path_factory.mktemp("search") / "moco"
    whole_set(folder, output, "-k", "4")
    return output


def test_the_whole_set_has_neighbours_and_outliers(folder, done):
    vectors = read_vectors(folder / "moco.h5")
    objid = vectors.table["objID"].to_numpy()
    found = pd.read_parquet(done / "neighbours.parquet")
    assert list(found) == ["objID", "rank", "neighbour", "similarity"]
    assert found["objID"].dtype == found["neighbour"].dtype == np.int64
    assert found["objID"].tolist() == np.repeat(np.sort(objid), 4).tolist()
    assert found["rank"].tolist() == [1, 2, 3, 4] * 40
    likeness = vectors.unit.astype(float) @ vectors.unit.T.astype(float)
    dec, ra = vectors.table["dec"].to_numpy(), vectors.table["ra"].to_numpy()
    step = (ra[:, None] - ra + 180) % 360 - 180
    near = np.hypot(step, dec[:, None] - dec) * 3600 < 25  # on the equator
    assert near.sum() >= 40
    likeness[near] = -2
    order = np.argsort(-likeness, axis=1)[:, :4]
    expected = dict(zip(objid, objid[order].tolist(), strict=True))
    assert found.groupby("objID")["neighbour"].apply(list).to_dict() == expected

    outliers = pd.read_parquet(done / "outliers.parquet")
    assert outliers["outlier_rank"].tolist() == list(range(1, 41))
    score = 1 - np.sort(likeness, axis=1)[:, -4:].mean(axis=1)
    assert outliers["objID"].tolist() == objid[np.argsort(-score)].tolist()
    assert np.allclose(outliers["outlier_score"], np.sort(score)[::-1], atol=1e-7)
    assert {"ra", "dec", "z", "petroMag_r", "split"} <= set(outliers)
    assert (done / "neighbours.parquet.provenance.json").is_file()


def test_the_same_set_gives_the_same_bytes(folder, done, tmp_path):
    whole_set(folder, tmp_path, "-k", "4")
    for file in ("neighbours.parquet", "outliers.parquet", "gallery.png", "outliers.png"):
        assert (tmp_path / file).read_bytes() == (done / file).read_bytes(), file


def test_the_other_kind_of_vectors_can_be_compared(folder, capsys):
    objid = str(read_vectors(folder / "moco.h5").table["objID"].iloc[0])
    like(folder, objid)
    contrastive = capsys.readouterr().out
    like(folder, objid, "--vectors", "pooled")
    pooled = capsys.readouterr().out
    assert "by pooled vectors" in pooled and "by contrastive vectors" in contrastive
    assert pooled.split()[-7:] != contrastive.split()[-7:]
    like(folder, objid, "--vectors", "whitened")
    whitened = capsys.readouterr().out
    assert "by whitened vectors" in whitened and whitened.split()[-7:] != pooled.split()[-7:]


def test_queries_are_of_the_test_split_and_neighbours_of_none(folder, monkeypatch):
    vectors, images = read_vectors(folder / "moco.h5"), open_set(folder / "dataset.json")
    seen = {}

    def keep(rows, stamps, crop, title, subtitle):
        seen.update(rows=rows, stamps=stamps, crop=crop)

    monkeypatch.setattr(figures, "gallery", keep)
    figures.draw_gallery(vectors, images, "test", 25.0)
    table = vectors.table
    tested = table[table["split"] == "test"]
    queries = [row[0] for row in seen["rows"]]
    assert len(queries) == min(8, len(tested)) and seen["crop"] == CROP
    assert [one["split"] for one in queries] == ["test"] * len(queries)
    z = [one["z"] for one in queries]
    assert z == sorted(z) and z[0] == tested["z"].min() and z[-1] == tested["z"].max()
    for row, stamps in zip(seen["rows"], seen["stamps"], strict=True):
        assert len(row) == 6 and "test" not in [one["split"] for one in row[1:]]
        similarity = [one["similarity"] for one in row[1:]]
        assert similarity == sorted(similarity, reverse=True)
        at = [int(np.flatnonzero(images.objid == one["objID"])[0]) for one in row]
        assert np.array_equal(stamps, images.read(np.array(at)))


def like(folder, text, *more, kind="moco.h5"):
    search.main(["--embed", str(folder / kind), "--like", text, "--threads", "1", *more])


def test_the_likes_of_one_galaxy_are_printed_and_drawn(folder, done, tmp_path, capsys):
    found = pd.read_parquet(done / "neighbours.parquet")
    row = read_vectors(folder / "moco.h5").table.iloc[17]
    expected = [str(one) for one in found[found["objID"] == row["objID"]]["neighbour"]]
    capsys.readouterr()
    like(folder, str(row["objID"]), "-k", "4")
    by_objid = capsys.readouterr().out
    assert [line.split()[0] for line in by_objid.splitlines()[2:]] == expected
    like(folder, f"{row['ra']},{row['dec']}", "-k", "4", "--picture", str(tmp_path / "like.png"),
         "--dataset", str(folder / "dataset.json"))  # fmt: skip
    assert capsys.readouterr().out == by_objid
    assert imread(tmp_path / "like.png").shape[2] == 4


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("123", (), "objID 123 is none of the 40 galaxies of .*moco.h5"),
        ("10,20", (), "no galaxy of .*moco.h5 within 5 arcsec of 10,20; the nearest of 40 is"),
        ("ten,20", (), "'ten,20' is no objID and no RA,DEC"),
        ("ID", ("-k", "40"), "k = 40 is more than there are: .* give a k of at most"),
        ("ID", ("-k", "0"), "k = 0: give the number"),
        ("ID", ("--picture", "like.png"), "picture: needs the images; give --dataset"),
        ("ID", ("--radius", "-1"), "radius: -1.0; give 0 or more"),
        ("ID", ("--apart", "nan"), "apart: nan; give 0 or more"),
    ],
)
def test_bad_questions_end_in_one_line(folder, text, more, message):
    if text == "ID":
        text = str(read_vectors(folder / "moco.h5").table["objID"].iloc[0])
    with pytest.raises(UserError, match=message) as caught:
        like(folder, text, *more)
    assert "\n" not in str(caught.value)


def test_a_dataset_is_no_file_of_vectors(folder):
    with pytest.raises(UserError, match="dataset.json: cannot be read as HDF5"):
        like(folder, "123", kind="dataset.json")
    with pytest.raises(UserError, match="is ugriz-shard, not a file of vectors|not a file of vect"):
        like(folder, "123", kind="cutouts/0000.h5")


def test_without_test_galaxies_another_split_is_named_and_taken(folder, tmp_path):
    table = open_set(folder / "dataset.json").table.copy()
    table.loc[table["split"] == "test", "split"] = "train"
    write(tmp_path / "moco.h5", table)
    arguments = ["--embed", str(tmp_path / "moco.h5"), "--dataset", str(folder / "dataset.json"),
                 "--output", str(tmp_path / "out"), "-k", "3"]  # fmt: skip
    message = "test, but the set has no galaxy of that split; choose train or valid or unlabelled"
    with pytest.raises(UserError, match=message):
        search.main(arguments)
    assert not (tmp_path / "out").exists()
    search.main([*arguments, "--queries", "valid"])
    assert (tmp_path / "out" / "gallery.png").is_file()


def test_images_of_another_set_are_refused(folder, tmp_path):
    other = make_set(tmp_path / "other", count=20)
    with pytest.raises(UserError, match="has no image in .*give the set that the vectors were"):
        search.main(["--embed", str(folder / "moco.h5"), "--dataset", str(other),
                     "--output", str(tmp_path / "out")])  # fmt: skip


def test_a_whole_set_needs_its_images(folder, tmp_path):
    with pytest.raises(UserError, match="output: the figures need the images; give --dataset"):
        search.main(["--embed", str(folder / "moco.h5"), "--output", str(tmp_path / "out")])


def test_a_set_without_splits_asks_for_any(folder):
    table = open_set(folder / "dataset.json").table.assign(split="")
    with pytest.raises(UserError, match="no galaxy of that split; choose any"):
        figures.choose_queries(table, "test")
    rows = figures.choose_queries(table, "any", count=5)
    z = table["z"].to_numpy()
    assert len(rows) == 5 and z[rows].tolist() == sorted(z[rows])
    assert z[rows[0]] == np.nanmin(z) and z[rows[-1]] == np.nanmax(z)
    unlabelled = table.assign(z=np.nan)
    assert len(figures.choose_queries(unlabelled, "any", count=50)) == 40


def test_any_galaxy_may_be_near_any(folder, monkeypatch):
    vectors, images = read_vectors(folder / "moco.h5"), open_set(folder / "dataset.json")
    vectors.table["split"] = "train"
    with pytest.raises(UserError, match="galaxies of no other split to find; choose any"):
        figures.draw_gallery(vectors, images, "train", 25.0)
    seen = []
    monkeypatch.setattr(figures, "gallery", lambda rows, *_: seen.extend(rows))
    figures.draw_gallery(vectors, images, "any", 25.0)
    assert [len(row) for row in seen] == [6] * 8
    assert all(row[0]["objID"] not in [one["objID"] for one in row[1:]] for row in seen)
