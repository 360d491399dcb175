"""`python -m pipeline.train --task morphology`: types by nets on images, vectors, components."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from small_photoz import NET_FLAGS, galaxy_catalog, small_net, write_galaxies
from small_sets import write_set

from pipeline import dataset, embed, run, train
from pipeline.images import manifest
from pipeline.images.morphology import read_types
from pipeline.images.reader import first_labels, members, open_set
from pipeline.images.stamp import Stamp
from pipeline.learning import checkpoint, smallnet, training
from pipeline.learning.redshift import load_model
from pipeline.run import UserError

QUICK = ["--steps", "6", "--batch", "8", "--check-every", "2", "--jitter", "3", "--turns", "1",
         "--threads", "1", "--device", "cpu", "--small-epochs", "20"]  # fmt: skip
COUNTS = ["--counts", "10", "40", "5000"]


def with_votes(table: pd.DataFrame) -> pd.DataFrame:
    """Galaxies with spectra have votes: nearby ones are early, so that colours tell types."""
    z = table["z"].to_numpy(dtype=float, na_value=np.nan)
    known = np.isfinite(z)
    early = np.where(z < 0.14, 0.95, np.where(z > 0.16, 0.05, 0.5))
    votes = {"nvote": np.where(known, 40, np.nan), "p_el": early, "p_cs": 1 - early,
             "p_el_debiased": early, "p_cs_debiased": 1 - early}  # fmt: skip
    return table.assign(**{
        name: pd.array(np.where(known, value, np.nan), "Float64") for name, value in votes.items()
    })  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of stamps, its catalogue, and vectors of an encoder that knows nothing."""
    folder = tmp_path_factory.mktemp("set")
    table = with_votes(galaxy_catalog(240))
    table.to_parquet(folder / "catalog.parquet", index=False)
    write_galaxies(folder / "galaxies.h5", table)
    checkpoint.save_encoder(folder / "encoder.pt", small_net(3).encoder)
    embed.main(["--images", str(folder / "galaxies.h5"), "--encoder", str(folder / "encoder.pt"),
                "--output", str(folder / "vectors.h5"), "--threads", "1"])  # fmt: skip
    return folder


def arguments(made, output, start, *more):
    how = {
        "supervised": NET_FLAGS,
        "pca": [*NET_FLAGS, "--components", "6"],
        "moco": ["--vectors", str(made / "vectors.h5"), "--kind", "pooled"],
        "encoder": ["--encoder", str(made / "encoder.pt")],
    }[start]
    return ["--task", "morphology", "--dataset", str(made / "galaxies.h5"), "--catalog",
            str(made / "catalog.parquet"), "--output", str(output / start), *COUNTS, *how, *QUICK,
            *more]  # fmt: skip


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    for start in ("supervised", "pca", "moco"):
        train.main(arguments(made, output, start, "--seed", "3"))
    return output


@pytest.mark.parametrize("start", ["supervised", "pca", "moco"])
def test_a_run_makes_a_folder_for_each_count_that_there_is_and_one_file_of_all(
    made, trained, start
):
    there = sorted(path.name for path in (trained / start).iterdir())
    table = "predictions-3.parquet"
    assert there == ["10-3", "40-3", table, f"{table}.provenance.json"]
    for name in there[:2]:
        files = {path.name for path in (trained / start / name).iterdir()}
        products = {"model.pt", "history.csv", "predictions.parquet"}
        assert files == {*products, "model.pt.provenance.json"}
    table = pd.read_parquet(trained / start / there[2])
    assert list(table.columns) == ["objID", "split", "labels", "early", "p_early"]
    images = open_set(made / "galaxies.h5")
    types = read_types(str(made / "catalog.parquet"), images.objid)
    judged = np.isfinite(types) & images.table["split"].isin(["valid", "test"]).to_numpy()
    known = dict(zip(images.objid[judged], types[judged], strict=True))
    for count, own in table.groupby("labels"):
        assert count in (10, 40) and set(own["objID"]) == set(known) and len(own) == len(known)
        assert own["early"].tolist() == [known[each] == 1 for each in own["objID"]]
        assert own["p_early"].between(0, 1).all()
    record = json.loads((trained / start / "10-3" / "model.pt.provenance.json").read_text())
    assert record["product"] == "model.pt"


def test_counts_that_the_survey_has_not_are_told(made, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train.main(arguments(made, tmp_path, "moco"))
    told = [line for line in caplog.messages if "left out" in line]
    images = open_set(made / "galaxies.h5")
    types = read_types(str(made / "catalog.parquet"), images.objid)
    train_rows = members(images, "train")
    number = int(np.isfinite(types[train_rows]).sum())
    assert told == [f"counts 5000 are left out: {number} train galaxies have a type"]


@pytest.mark.parametrize("start", ["supervised", "pca", "moco"])
def test_the_same_command_gives_the_same_bytes(made, trained, tmp_path, start):
    train.main(arguments(made, tmp_path, start, "--seed", "3"))
    for name in ("predictions-3.parquet", "10-3/model.pt", "40-3/history.csv"):
        assert (tmp_path / start / name).read_bytes() == (trained / start / name).read_bytes()


def test_labels_are_nested_and_the_same_for_all_starts(made, trained, monkeypatch, tmp_path):
    used, original = [], smallnet.fit_small
    monkeypatch.setattr(
        smallnet, "fit_small", lambda *args: used.append(args[0]) or original(*args)
    )
    train.main(arguments(made, tmp_path, "moco", "--seed", "3"))
    train.main(arguments(made, tmp_path, "pca", "--seed", "4", "--label-seed", "3"))
    assert [len(each.x) for each in used] == [10, 40, 10, 40]
    rows = {tuple(row) for row in used[1].x.tolist()}
    assert {tuple(row) for row in used[0].x.tolist()} <= rows
    assert used[1].early.tolist() == used[3].early.tolist()
    images = open_set(made / "galaxies.h5")
    types = read_types(str(made / "catalog.parquet"), images.objid)
    typed = np.array([row for row in members(images, "train") if np.isfinite(types[row])])
    chosen = typed[first_labels(images.objid[typed], 10, 3)]
    assert used[0].early.tolist() == (types[chosen] == 1).tolist()


def test_vectors_follow_their_galaxies_whatever_their_order(made, trained, tmp_path):
    shutil.copy(made / "vectors.h5", tmp_path / "turned.h5")
    with h5py.File(tmp_path / "turned.h5", "a") as file:
        for name in file:
            file[name][...] = file[name][:][::-1]
    words = arguments(made, tmp_path, "moco", "--seed", "3")
    words[words.index(str(made / "vectors.h5"))] = str(tmp_path / "turned.h5")
    train.main(words)
    name = "moco/predictions-3.parquet"
    assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_enough_labels_tell_types(made, tmp_path):
    """Colour tells them here, and the components of the images hold it."""
    more = ["--counts", "90", "--small-epochs", "150"]
    train.main([*arguments(made, tmp_path, "pca"), *more])
    table = pd.read_parquet(tmp_path / "pca" / "predictions-0.parquet")
    assert np.mean((table["p_early"] >= 0.5) == table["early"]) > 0.85


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(made, tmp_path, monkeypatch):
    more = ["--checkpoint-minutes", "0", "--steps", "12"]
    train.main([*arguments(made, tmp_path / "whole", "encoder"), *more])
    original, steps = training._Training.step, []

    def dies(self, batch):
        if len(steps) == 17:  # in the second count
            raise KeyboardInterrupt
        steps.append(batch.step)
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(training._Training, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train.main([*arguments(made, tmp_path / "broken", "encoder"), *more])
    assert not (tmp_path / "broken" / "encoder" / "predictions-0.parquet").exists()
    monkeypatch.setattr(
        training._Training, "step", lambda *args: steps.append(0) or original(*args)
    )
    train.main([*arguments(made, tmp_path / "broken", "encoder"), *more])
    assert len(steps) == 24
    for name in ("predictions-0.parquet", "10-0/model.pt", "40-0/model.pt", "40-0/history.csv"):
        one, two = (tmp_path / run_ / "encoder" / name for run_ in ("whole", "broken"))
        assert one.read_bytes() == two.read_bytes()


def test_a_model_of_types_tells_no_redshift_but_is_an_encoder(trained):
    path = trained / "supervised" / "40-3" / "model.pt"
    with pytest.raises(UserError, match="a model of morphology, that tells no redshift"):
        load_model(path)
    encoder, extra = checkpoint.load_encoder(path)
    assert encoder.spec.net == "resnet10" and extra["classes"] == ["late", "early"]
    assert extra["training"]["labels"] == 40


@pytest.mark.parametrize(
    ("start", "more", "text"),
    [
        ("moco", ["--counts", "5000"], "counts: 5000 at least, but .* train galaxies have a type"),
        ("moco", ["--counts", "1"], "counts: 1; give 2 labels or more"),
        ("moco", ["--counts", "2", "--label-seed", "0"], "none of these labels is (early|late)"),
        ("moco", ["--threshold", "0.3"], "threshold: 0.3"),
        ("moco", ["--least-votes", "41"], "none of the train galaxies has a type"),
        ("moco", ["--small-lr", "-1"], "^lr: -1.0; give a number above 0"),
        ("moco", ["--crop", "32"], "--crop: .*vectors.h5 are made already"),
        ("moco", ["--kind", "contrastive"], "vectors.h5: no contrastive vectors; it has pooled"),
        ("moco", ["--components", "3"], "--vectors and --components are two things to learn from"),
        ("moco", ["--magnitudes", "local_linear"], "--magnitudes is of --task photoz"),
        ("moco", ["--task", "photoz"], "--vectors is of --task morphology"),
        ("moco", ["--seed", "-1"], "^seed: -1; give 0 or more"),
        ("pca", ["--crop", "46", "--bin", "1"], "components: of images of 10580 numbers they take"),
        ("pca", ["--components", "100000"], "components: 100000, but .* images of 1280 pixels"),
        ("supervised", ["--loss", "ordinal"], "loss: ordinal is of redshifts"),
        (
            "supervised",
            ["--groups", "8"],
            "counts: 10: 10 labels, but batch normalisation in 8 groups needs 16; give",
        ),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line_and_leaves_nothing(
    made, tmp_path, start, more, text
):
    with pytest.raises(UserError, match=text) as error:
        train.main(arguments(made, tmp_path, start, *more))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*/[0-9p]*"))


def test_a_class_without_a_test_galaxy_is_told_before_anything_is_trained(made, tmp_path, caplog):
    table = pd.read_parquet(made / "catalog.parquet")
    late = table["split"] == "test"
    table.loc[late, ["p_el", "p_el_debiased"]] = 0.0
    table.to_parquet(tmp_path / "catalog.parquet", index=False)
    words = arguments(made, tmp_path, "moco")
    words[words.index("--catalog") + 1] = str(tmp_path / "catalog.parquet")
    train.main(words)
    told = [line for line in caplog.messages if "no test galaxy" in line]
    assert len(told) == 1 and "is early by these votes" in told[0]


def test_labels_that_are_absent_are_told(made, tmp_path):
    words = arguments(made, tmp_path, "moco")
    at = words.index("--catalog")
    with pytest.raises(UserError, match="--task morphology needs --catalog"):
        train.main([*words[:at], *words[at + 2 :]])
    galaxy_catalog(240).to_parquet(tmp_path / "none.parquet", index=False)
    words[at + 1] = str(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="none.parquet: none of the galaxies has a nvote"):
        train.main(words)


def test_vectors_of_another_dataset_are_refused(made, tmp_path):
    other = galaxy_catalog(240, seed=9).assign(run=1)
    other["objID"] += 10**9
    write_galaxies(tmp_path / "galaxies.h5", with_votes(other))
    with_votes(other).to_parquet(tmp_path / "catalog.parquet", index=False)
    shutil.copy(made / "vectors.h5", tmp_path / "vectors.h5")
    with pytest.raises(UserError, match="vectors of another dataset than .*: galaxy .* is not in"):
        train.main(arguments(tmp_path, tmp_path, "moco"))


def test_vectors_of_other_pixels_of_the_same_galaxies_are_refused(tmp_path):
    shards = write_set(tmp_path, with_votes(galaxy_catalog(80)), stamp=Stamp(size=37))
    catalog = manifest.read_catalog(tmp_path / "catalog.parquet", ("objID", "split"))
    checkpoint.save_encoder(tmp_path / "encoder.pt", small_net(3).encoder)
    words = ["--task", "morphology", "--dataset", str(tmp_path / "dataset.json"), "--catalog",
             str(tmp_path / "catalog.parquet"), "--output", str(tmp_path / "out"), "--counts", "20",
             "--vectors", str(tmp_path / "vectors.h5"), *QUICK]  # fmt: skip
    for change in (False, True):
        if change:
            with h5py.File(shards[0], "a") as file:
                file["images"][0, 0, 0, 0] += 1
        run.write_json(dataset.summarise(shards, catalog, tmp_path), tmp_path / "dataset.json")
        if not change:
            embed.main(["--dataset", str(tmp_path / "dataset.json"), "--encoder",
                        str(tmp_path / "encoder.pt"), "--output", str(tmp_path / "vectors.h5"),
                        "--threads", "1"])  # fmt: skip
            train.main(words)
    with pytest.raises(UserError, match="another dataset than .*, with the same galaxies"):
        train.main(words)
