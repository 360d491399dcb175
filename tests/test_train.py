"""The command `python -m pipeline.train`: what it makes, kills, starts, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from small_photoz import NET_FLAGS, galaxy_catalog, small_net, write_galaxies
from small_sets import write_set

from pipeline import dataset, run, train
from pipeline.images import manifest
from pipeline.images.reader import label_fraction, members, open_set
from pipeline.images.stamp import Stamp
from pipeline.learning import checkpoint, domain, subsets
from pipeline.learning.redshift import load_model
from pipeline.run import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
QUICK = ["--steps", "4", "--batch", "8", "--check-every", "2", "--jitter", "3", "--turns", "1",
         "--threads", "1", "--device", "cpu"]  # fmt: skip
PRODUCTS = ("model.pt", "predictions.parquet", "history.csv")


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    return write_galaxies(tmp_path_factory.mktemp("set") / "galaxies.h5", galaxy_catalog(120))


def arguments(shard, output, *more):
    net = [] if "--encoder" in more else NET_FLAGS
    return ["--dataset", str(shard), "--output", str(output), *net, *QUICK, *more]


def products(folder) -> list[bytes]:
    return [(folder / name).read_bytes() for name in PRODUCTS]


@pytest.fixture(scope="module")
def made(tmp_path_factory, shard) -> Path:
    output = tmp_path_factory.mktemp("made") / "supervised"
    train.main(arguments(shard, output, "--fractions", "0.25", "1", "--seed", "3"))
    return output


def test_a_run_makes_a_folder_for_each_fraction_and_leaves_nothing_else(made):
    assert sorted(path.name for path in made.iterdir()) == ["0.25-3", "1-3"]
    for name in ("0.25-3", "1-3"):
        there = {path.name for path in (made / name).iterdir()}
        assert there == {*PRODUCTS, "model.pt.provenance.json"}


def test_predictions_are_of_all_valid_and_test_galaxies(made, shard):
    table = pd.read_parquet(made / "1-3" / "predictions.parquet")
    known = open_set(shard).table
    judged = known[known["split"].isin(["valid", "test"])].sort_values("objID")
    assert list(table.columns) == ["objID", "split", "z", "z_phot", "z_width", "crps", "pit"]
    assert table["objID"].tolist() == judged["objID"].tolist()
    assert table["split"].tolist() == judged["split"].tolist()
    assert table["z"].to_numpy() == pytest.approx(judged["z"].to_numpy())
    assert table["z_phot"].between(0, 0.4).all() and (table["z_width"] > 0).all()


def test_labels_are_nested_and_the_domain_is_of_those_used_alone(made, shard):
    images = open_set(shard)
    ids = images.objid[members(images, "train")]
    used = {}
    for fraction in (0.25, 1):
        _, extra = load_model(made / f"{fraction:g}-3" / "model.pt")
        known = domain.from_state(extra["domain"])
        used[fraction] = set(known.objid.tolist())
        assert used[fraction] == set(ids[label_fraction(ids, fraction, 3)].tolist())
        told = pd.read_parquet(made / f"{fraction:g}-3" / "predictions.parquet").attrs
        assert told == {"labels": len(used[fraction]), "of": len(ids)}
        assert extra["training"]["labels"] == len(used[fraction])
        assert extra["deredden"] is True and extra["turns"] == 1
    assert used[0.25] < used[1]


def test_the_same_command_gives_the_same_bytes_with_a_worker_and_alone(made, shard, tmp_path):
    more = ["--fractions", "0.25", "--seed", "3", "--workers", "1", "--memory-gb", "0"]
    train.main(arguments(shard, tmp_path / "supervised", *more))
    assert products(tmp_path / "supervised" / "0.25-3") == products(made / "0.25-3")


def test_a_killed_run_goes_on_and_ends_bit_identical(shard, tmp_path, monkeypatch):
    more = ["--fractions", "0.5", "1", "--steps", "60", "--ema", "0.9", "--check-every", "20"]
    whole, broken = tmp_path / "whole" / "a", tmp_path / "broken" / "a"
    command = arguments(shard, broken, *more, "--checkpoint-minutes", "0")
    child = subprocess.Popen([sys.executable, "-m", "pipeline.train", *command], cwd=REPOSITORY,
                             env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    state = broken / ".state-0" / "1-0.pt"
    until = time.monotonic() + 120
    while not state.is_file() and time.monotonic() < until and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL  # it was not done before
    train.main(arguments(shard, whole, *more))
    assert products(broken / "0.5-0") == products(whole / "0.5-0")
    assert 1 <= checkpoint.load(state, "state")["step"] < 60
    trained = []
    original = subsets.fit
    monkeypatch.setattr(subsets, "fit", lambda *args: trained.append(args) or original(*args))
    shutil.rmtree(broken / "0.5-0")  # as Snakemake removes what a failed job was to make
    train.main(command)
    assert len(trained) == 1  # the first fraction was not trained again
    for name in ("0.5-0", "1-0"):
        assert products(broken / name) == products(whole / name)
    assert not (broken / ".state-0").exists()


def test_two_ranks_make_what_one_makes(shard, tmp_path):
    more = ["--fractions", "0.5", "1", "--groups", "2"]
    train.main(arguments(shard, tmp_path / "one", *more))
    command = arguments(shard, tmp_path / "two", *more, "--ranks", "2")
    made = subprocess.run([sys.executable, "-m", "pipeline.train", *command], cwd=REPOSITORY,
                          capture_output=True, text=True, timeout=240)  # fmt: skip
    assert made.returncode == 0 and made.stderr.count("weights of step") == 2, made.stderr
    for name in ("0.5-0", "1-0"):
        one, two = (tmp_path / each / name for each in ("one", "two"))
        assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
        for file in ("history.csv", "predictions.parquet"):
            read = pd.read_csv if file.endswith("csv") else pd.read_parquet
            pd.testing.assert_frame_equal(read(one / file), read(two / file), rtol=1e-4)
    facts = json.loads((two / "model.pt.provenance.json").read_text())
    assert facts["ranks"] == 2 and not (tmp_path / "two" / ".state-0").exists()


def test_a_state_of_other_pixels_is_not_taken_up(tmp_path, monkeypatch):
    catalog = galaxy_catalog(60)
    shards = write_set(tmp_path, catalog, stamp=Stamp(size=37))
    catalog = manifest.read_catalog(tmp_path / "catalog.parquet", ("objID", "split"))
    origins = []
    monkeypatch.setattr(
        train, "train_photoz", lambda images, *_: origins.append(images.digest) or []
    )
    monkeypatch.setattr(train.run, "write_provenance", lambda *args, **facts: None)
    for _ in range(2):
        run.write_json(dataset.summarise(shards, catalog, tmp_path), tmp_path / "dataset.json")
        train.main(arguments(tmp_path / "dataset.json", tmp_path / "out"))
        with h5py.File(shards[0], "a") as file:
            file["images"][0, 0, 0, 0] += 1  # the file is as long as it was
    assert len(origins) == 2 and origins[0] != origins[1]


def test_from_an_encoder_the_convolutions_start_there_and_learn_slowly(shard, tmp_path):
    start = small_net(5).encoder
    checkpoint.save_encoder(tmp_path / "encoder.pt", start, deredden=False)
    output = tmp_path / "moco"
    train.main(arguments(shard, output, "--encoder", str(tmp_path / "encoder.pt"), "--steps", "1"))
    net, extra = load_model(output / "1-0" / "model.pt")
    assert extra["deredden"] is False  # as the encoder was trained
    before, after = start.net.conv1.weight, net.encoder.net.conv1.weight
    assert not torch.equal(before, after)
    assert torch.allclose(before, after, atol=0.02)
    assert net.encoder.spec == start.spec


def test_a_model_is_an_encoder_to_start_from_as_well(made, shard, tmp_path):
    train.main(arguments(shard, tmp_path / "again", "--encoder", str(made / "1-3" / "model.pt"),
                         "--freeze", "--bins", "40", "--loss", "crps"))  # fmt: skip
    first, second = (load_model(folder / "model.pt")[0]
                     for folder in (made / "1-3", tmp_path / "again" / "1-0"))  # fmt: skip
    assert second.bins.count == 40
    for one, two in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True):
        assert torch.equal(one, two)


def test_tensorboard_has_the_history(shard, tmp_path):
    train.main(arguments(shard, tmp_path / "a", "--tensorboard", "--steps", "2"))
    assert list((tmp_path / "a" / "tensorboard" / "1-0").glob("events*"))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--fractions", "1", "0.02"], "fraction 0.02: 1 labels, but batch normalisation in 1 "),
        (["--fractions", "0"], "fraction 0 of"),
        (["--fractions", "1.5"], "fraction 1.5 of"),
        (["--encoder", "none.pt"], "none.pt: no such checkpoint"),
        (["--encoder", "e.pt", "--crop", "32"], "--crop: e.pt says itself what its net is"),
        (["--crop", "64"], "crop: 64 px do not fit in stamps of 47 px"),
        (["--scale", "asinh"], "asinh needs the bands' MAD; give a dataset.json"),
        (["--bins", "1"], "bins: 1"),
        (["--lr", "0"], "lr: 0"),
        (["--lr", "1e30", "--steps", "1"], "step 1: .*not finite; give a smaller lr"),
        (["--seed", str(10**20)], "seed: 1000"),
        (["--seed", "-1"], "seed: -1; give 0 or more"),
        (["--label-seed", str(10**20)], "label_seed: 1000"),
        (["--label-seed", "-1"], "label_seed: -1; give 0 or more"),
        (["--z-max", "1e-7"], "z_max: 1e-07 in 180 bins; give a finite redshift above 0.00018"),
        (["--threads", "-1"], "threads: -1; give 1 or more"),
        (["--workers", "-1"], "workers: -1; give 0 or more"),
        (["--groups", "64"], "fraction 1: .* labels, but batch normalisation in 64 groups"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line_and_leaves_nothing(shard, tmp_path, more, text):
    with pytest.raises(UserError, match=text) as error:
        train.main(arguments(shard, tmp_path / "out", *more))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("[0-9]*"))


def test_fractions_of_one_name_are_trained_once(shard, tmp_path, monkeypatch):
    trained = []
    original = subsets.fit
    monkeypatch.setattr(subsets, "fit", lambda *args: trained.append(args) or original(*args))
    train.main(arguments(shard, tmp_path / "a", "--fractions", "0.50000001", "0.5"))
    assert len(trained) == 1 and [path.name for path in (tmp_path / "a").iterdir()] == ["0.5-0"]


def test_a_set_without_labels_is_refused(tmp_path):
    shard = write_galaxies(tmp_path / "none.h5", galaxy_catalog(20, labelled=0.0))
    with pytest.raises(UserError, match="no images of train"):
        train.main(arguments(shard, tmp_path / "out"))


def test_an_image_of_nan_is_named(shard, tmp_path):
    spoilt = shutil.copy(shard, tmp_path / "spoilt.h5")
    row = members(open_set(spoilt), "train")[0]
    with h5py.File(spoilt, "a") as file:
        file["images"][row, 2, 5, 5] = np.nan
        objid = file["ObjID"][row]
    with pytest.raises(UserError, match=f"galaxy {objid}.*not finite"):
        train.main(arguments(spoilt, tmp_path / "out"))


def test_provenance_lies_beside_the_model(made):
    record = json.loads((made / "1-3" / "model.pt.provenance.json").read_text())
    assert record["product"] == "model.pt" and record["ranks"] == 1


def test_a_net_of_three_bands_is_trained_from_scratch(shard, tmp_path):
    """The net of SimCLR, without its pretraining."""
    train.main(["--dataset", str(shard), "--output", str(tmp_path / "out"), *QUICK, "--net",
                "sarmiento", "--width", "0.05", "--crop", "32", "--bin", "2", "--bands", "gri",
                "--scale", "unit"])  # fmt: skip
    net, _ = load_model(tmp_path / "out" / "1-0" / "model.pt")
    assert net.encoder.spec.bands == "gri" and net.encoder.spec.net == "sarmiento"
