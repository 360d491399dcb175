"""The stage: from a dataset.json to encoder.pt, killed and started again, and what it refuses."""

import csv
import json
import logging
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from small_sets import STAMP, make_catalog, write_set

from pipeline import dataset, pretrain, run
from pipeline.images import manifest
from pipeline.images.reader import members, open_set
from pipeline.images.stamp import Stamp
from pipeline.learning import checkpoint, embedding
from pipeline.learning.encoder import Encoder, EncoderSpec, seeded
from pipeline.run import UserError

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "net": "resnet10", "width": 0.125, "crop": 32, "bin": 2, "scale": "asinh", "jitter": 2,
    "batch": 16, "queue": 32, "groups": 4, "steps": 30, "log-every": 3, "threads": 1,
    "checkpoint-minutes": 0, "device": "cpu", "seed": 3,
}  # fmt: skip

SIMCLR = {
    "method": "simclr", "width": 0.0625, "crop": 32, "jitter": 2, "cutout": (1, 4), "batch": 16,
    "steps": 6, "log-every": 3, "threads": 1, "device": "cpu", "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A dataset.json of 120 galaxies, half of them with a redshift."""
    return make_set(tmp_path_factory.mktemp("set"), Stamp(size=37))


def make_set(folder, stamp=STAMP, **columns):
    catalog = make_catalog(120, labelled=0.5).assign(**columns)
    shards = write_set(folder, catalog, stamp=stamp)
    catalog = manifest.read_catalog(folder / "catalog.parquet", ("objID", "split"), ("sky_split",))
    run.write_json(dataset.summarise(shards, catalog, folder), folder / "dataset.json")
    return folder / "dataset.json"


def flags(path, output, settings=SMALL, **changes):
    settings = {"dataset": path, "output": output, **settings, **changes}
    words = []
    for name, value in settings.items():
        name = name.replace("_", "-")
        if value is True:
            words.append(f"--{name}")
        elif value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def history(output):
    with open(output / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def rows(path):
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0


def test_killed_and_started_again_it_ends_as_an_unbroken_run(small, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain.main(flags(small, whole))
    command = [sys.executable, "-m", "pipeline.pretrain", *flags(small, broken)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while rows(broken / ".history.csv.live") < 4 and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, said
    assert (broken / ".state.pt").is_file() and not (broken / "encoder.pt").exists()
    assert 0 < checkpoint.load(broken / ".state.pt", "state")["step"] < 30
    # `--workers` and the place of states change nothing in what comes out
    again = subprocess.run(
        [*command, "--workers", "1"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0 and "goes on after step" in again.stderr, again.stderr
    for name in ("encoder.pt", "history.csv"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert {each.name for each in broken.iterdir()} == {
        "encoder.pt", "history.csv", "encoder.pt.provenance.json",
    }  # fmt: skip


def test_what_comes_out(small, tmp_path):
    pretrain.main(flags(small, tmp_path, steps=6, ema=0.9, probe_every=4, flips=True,
                        noise=(0.5, 2), accumulate=2, amp=True, images="unlabelled"))  # fmt: skip
    encoder, extra = checkpoint.load_encoder(tmp_path / "encoder.pt")
    mad = json.loads(small.read_text())["pixels"]["mad"]
    assert encoder.spec.softening == pytest.approx([mad[band] for band in "ugriz"])
    assert extra["mad"] == encoder.spec.softening and extra["deredden"] is True
    assert extra["settings"]["view"]["noise"] == (0.5, 2)
    assert checkpoint.projection("", extra)[2].out_features == 128
    found = history(tmp_path)
    assert [row["step"] for row in found] == ["3", "4", "6"]
    assert [bool(row["probe"]) for row in found] == [False, True, False]
    assert all(0 < float(row["loss"]) < 10 and float(row["spread"]) > 0 for row in found)
    facts = json.loads((tmp_path / "encoder.pt.provenance.json").read_text())
    assert facts["ranks"] == 1 and facts["device"] == "cpu"


def test_torchrun_with_two_ranks(small, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    pretrain.main(flags(small, one, steps=6, double=True))
    words = flags(small, two, steps=6, double=True)
    made = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "pipeline.pretrain", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stderr.count("6 steps of 16") == 1  # the other rank is silent
    losses = [[float(row["loss"]) for row in history(each)] for each in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    ours, theirs = (
        checkpoint.load_encoder(each / "encoder.pt")[0].state_dict() for each in (one, two)
    )
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-7, msg=name)


class Seen(Exception):
    """Which galaxies training was given."""


@pytest.mark.parametrize("which", pretrain.IMAGES)
def test_valid_test_and_the_other_skies_are_never_seen(tmp_path, monkeypatch, which):
    catalog = make_catalog(120, labelled=0.5)
    sky = np.where(np.arange(120) % 3 == 0, "border", "train")
    path = make_set(tmp_path, Stamp(size=37), sky_split=sky)

    def batches(images, *_):
        raise Seen(set(images.objid.tolist()))

    monkeypatch.setattr(pretrain, "Batches", batches)
    with pytest.raises(Seen) as seen:
        pretrain.main(flags(path, tmp_path, batch=8, queue=8, groups=2, images=which))
    wanted = catalog["split"].isin(which.split("+")) & (sky == "train")
    assert seen.value.args[0] == set(catalog.loc[wanted, "objID"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queue": 65536}, "queue: 65536 keys are more than half .* give 48"),
        ({"queue": 40}, "queue: 40 keys are no multiple of the batch of 16; give 32"),
        ({"batch": 128}, "batch: 128, but half of the set"),
        ({"groups": 5}, "groups: 5 do not share a batch of 16 evenly.*give 4"),
        ({"groups": 2, "accumulate": 4}, "groups: 2 cannot be shared"),
        ({"crop": 64}, "crop: 64 px do not fit in stamps of 37 px"),
        ({"bin": 3}, "bin: 3 does not divide crop 32"),
        ({"steps": 0}, "steps: 0"),
        ({"warmup": 30}, "warmup: 30"),
        ({"noise": (3, 1)}, "noise: 3 1"),
        ({"threads": -1}, "threads: -1; give 1 or more"),
        ({"workers": -1}, "workers: -1"),
        ({"lr": "nan"}, "lr: nan"),
        ({"lr": 1e10, "probe_every": 1}, "not a number at step [1-9] of 30; the last good state"),
        ({"max_e_bv": "inf"}, "max-e-bv: inf; give 0 or more magnitudes, a finite number"),
        ({"noise": (1, "inf")}, "noise: .*; give two finite factors"),
        ({"seed": 10**20}, "seed: 1000"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(small, tmp_path, change, said):
    with pytest.raises(UserError, match=said) as error:
        pretrain.main(flags(small, tmp_path, **change))
    assert "\n" not in str(error.value) and not (tmp_path / "encoder.pt").exists()


def test_a_shard_alone_has_no_mad(small, tmp_path):
    shard = small.parent / "cutouts" / "0000.h5"
    for change, said in (({}, "asinh needs"), ({"scale": "none"}, "noise")):
        with pytest.raises(UserError, match=said):
            pretrain.main(flags(shard, tmp_path, batch=8, queue=8, groups=2, **change))
    pretrain.main(flags(shard, tmp_path, batch=8, queue=8, groups=2, scale="none", steps=2,
                        noise=(0, 0)))  # fmt: skip
    assert checkpoint.load_encoder(tmp_path / "encoder.pt")[1]["mad"] is None


def test_an_image_of_nan_is_named_and_nothing_is_lost(small, tmp_path):
    copy = make_set(tmp_path / "set", Stamp(size=37))
    with h5py.File(tmp_path / "set" / "cutouts" / "0000.h5", "a") as file:
        row = np.flatnonzero(file["split"][:] == b"unlabelled")[0]
        file["images"][row, 2, 3, 3] = np.nan
        objid = int(file["ObjID"][row])
    with pytest.raises(UserError, match=str(objid)):
        pretrain.main(flags(copy, tmp_path / "out", steps=60))


def test_simclr_makes_an_encoder_that_is_taken_unchanged(small, tmp_path):
    pretrain.main(flags(small, tmp_path, SIMCLR, ema=0.9, probe_every=4, accumulate=2))
    encoder, extra = checkpoint.load_encoder(tmp_path / "encoder.pt")
    assert encoder.spec == EncoderSpec("sarmiento", 0.0625, 32, 2, "unit", bands="gri")
    settings = extra["settings"]
    assert (settings["method"], settings["temperature"], settings["optimiser"]) == (
        "simclr", 0.5, "adam")  # fmt: skip
    assert settings["lr"] == 3e-4 and settings["view"]["cutout"] == (1, 4)
    assert "queue" not in settings and "max_e_bv" not in settings["view"]
    found = history(tmp_path)
    assert [row["step"] for row in found] == ["3", "4", "6"] and found[1]["probe"]
    images = open_set(small)
    head = checkpoint.projection("", extra)
    blocks = [block for _, block in embedding.embed(images, encoder, head, batch=50)]
    vectors = np.concatenate([block["contrastive"] for block in blocks])
    assert vectors.shape == (len(images), 64) and blocks[0]["pooled"].shape == (50, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_simclr_trained_again_gives_the_same_bytes_and_moco_flags_are_not_looked_at(
    small, tmp_path
):
    for number, more in enumerate(({}, {"queue": 7, "momentum": 0.5, "max_e_bv": 3})):
        pretrain.main(flags(small, tmp_path / str(number), SIMCLR, **more))
    one, other = ((tmp_path / name / "encoder.pt").read_bytes() for name in "01")
    assert one == other


def test_what_is_beyond_max_z_is_left_out_and_counted(small, tmp_path, caplog, monkeypatch):
    images = open_set(small)
    chosen = images.take(members(images, "train+unlabelled"))
    z, photoz = (chosen.table[name].to_numpy(float) for name in ("z", "photoz"))
    labelled = np.isfinite(z)
    assert 0 < labelled.sum() < len(z) and np.isfinite(photoz).all()
    wanted = set(chosen.objid[np.where(labelled, z, photoz) <= 0.1])
    seen = []

    def batches(images, *given):
        seen.append(images.objid)
        raise Seen

    monkeypatch.setattr(pretrain, "Batches", batches)
    with caplog.at_level(logging.INFO, "ugriz"), pytest.raises(Seen):
        pretrain.main(flags(small, tmp_path, SIMCLR, max_z=0.1))
    assert set(seen[0]) == wanted
    by = [int((labelled & (z > 0.1)).sum()), int((~labelled & (photoz > 0.1)).sum())]
    assert (f"max-z 0.1: {sum(by)} of {len(z)} galaxies are left out ({by[0]} by spec-z, "
            f"{by[1]} by photo-z); 0 of unknown redshift stay") in caplog.text  # fmt: skip


def test_without_a_photo_z_a_galaxy_without_spectrum_stays(small, caplog):
    images = open_set(small)
    photoz = np.where(np.arange(len(images)) % 2, np.nan, -9999.0)
    images = replace(images, table=images.table.assign(photoz=photoz))
    z = images.table["z"].to_numpy(float)
    assert np.array_equal(pretrain.beyond(images, 0.1), z > 0.1)
    with caplog.at_level(logging.INFO, "ugriz"):
        left = pretrain._nearer(images, 0.1)
    assert len(left) == (~(z > 0.1)).sum()
    assert f"{np.isnan(z).sum()} of unknown redshift stay" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 1}, "batch: 1; give 2 or more"),
        ({"batch": 1024}, "batch: 1024, but the set has"),
        ({"batch": 16, "accumulate": 3}, "batch: 16 cannot be shared by 1 ranks with 3 micro"),
        ({"crop": 33}, "bin: 2 does not divide crop 33"),
        ({"crop": 24, "bin": 2}, "leaves 12 px; sarmiento needs 16 at least"),
        ({"crop": 64}, "crop: 64 px do not fit in stamps of 37 px"),
        ({"bands": "grz1"}, "bands: grz1; give letters of ugriz"),
        ({"max_z": 0.001}, "max-z: 0.001, but all [0-9]+ galaxies have a redshift above it"),
        ({"max_z": -1}, "max-z: -1"),
        ({"max_z": "nan"}, "max-z: nan"),
        ({"cutout": (2, 40)}, "cutout: .*16 or less"),
        ({"zoom": (0, 1)}, "zoom: "),
        ({"blur": (2, 1)}, "blur: "),
        ({"colour": 1}, "colour: 1"),
        ({"temperature": 0}, "temperature: 0"),
        ({"net": "resnet10", "groups": 5}, "groups: 5 do not share a batch of 16"),
        ({"lr": 1e30}, "not a number at step"),
    ],
)
def test_what_simclr_cannot_do_is_refused_in_one_line(small, tmp_path, change, said):
    with pytest.raises(UserError, match=said) as error:
        pretrain.main(flags(small, tmp_path, SIMCLR, **change))
    assert "\n" not in str(error.value) and not (tmp_path / "encoder.pt").exists()


def test_defaults_are_the_methods_own():
    words = ["--dataset", "d", "--output", "o", "--steps", "1"]
    for method, rate, batch, net in (
        ("moco", 0.03, 256, "resnet50"), ("simclr", 3e-4, 1024, "sarmiento"),
    ):  # fmt: skip
        for given in (["--method", method], [f"--method={method}"]):
            args = pretrain._parse([*words, *given])
            assert (args.lr, args.batch, args.net) == (rate, batch, net)
    assert pretrain._parse(words).optimiser == "sgd"
    assert pretrain._parse([*words, "--method", "simclr", "--lr", "0.1"]).lr == 0.1


def test_a_method_that_there_is_not_is_told(capsys):
    for given in (["byol"], []):
        with pytest.raises(SystemExit):
            pretrain.main(["--dataset", "d", "--output", "o", "--steps", "1", "--method", *given])
    assert "invalid choice: 'byol' (choose from 'moco', 'simclr')" in capsys.readouterr().err


def test_a_hidden_state_of_another_run_is_said(small, tmp_path, caplog):
    with seeded(0):
        encoder = Encoder(EncoderSpec("resnet10", 0.125, 32, 2))
    checkpoint.save(tmp_path / ".state.pt", "state",
                    {"settings": {"lr": 1.0}, "step": 2, "trainer": encoder.state_dict(),
                     "low": 0})  # fmt: skip
    with caplog.at_level(logging.INFO, "ugriz"):
        pretrain.main(flags(small, tmp_path, steps=3))
    assert "begins anew" in caplog.text and "lr: 1.0 then, 0.03 now" in caplog.text
    assert (tmp_path / "encoder.pt").is_file()


def test_help_is_of_use(capsys):
    with pytest.raises(SystemExit) as ended:
        pretrain.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "torchrun" in text and "--queue" in text and "--double" not in text
    with pytest.raises(SystemExit):
        pretrain.main(["--method", "simclr", "--help"])
    text = capsys.readouterr().out
    assert "0.0003" in text and "1024" in text and "sarmiento" in text
