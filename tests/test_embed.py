"""The stage embed from its command line."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from small_vectors import CROP, make_set

from pipeline import embed
from pipeline.images.reader import open_set
from pipeline.learning.checkpoint import save_encoder
from pipeline.learning.encoder import Encoder, EncoderSpec, Projection, seeded
from pipeline.run import UserError, sha256
from pipeline.similarity.vectors import read_vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    make_set(folder)
    with seeded(2):
        encoder = Encoder(EncoderSpec("resnet10", width=0.125, crop=CROP))
        head = Projection(encoder.feature_dim).state_dict()
    save_encoder(folder / "encoder.pt", encoder, projection=head, deredden=True)
    save_encoder(folder / "headless.pt", encoder)
    return folder


def run(folder, output, *more, encoder="encoder.pt"):
    embed.main(
        ["--dataset", str(folder / "dataset.json"), "--encoder", str(folder / encoder),
         "--output", str(output), "--device", "cpu", "--threads", "1", *more]
    )  # fmt: skip


def test_every_galaxy_of_every_split_has_its_vectors_in_order(folder, tmp_path):
    run(folder, tmp_path / "moco.h5")
    images = open_set(folder / "dataset.json")
    with h5py.File(tmp_path / "moco.h5") as file:
        assert np.array_equal(file["ObjID"][:], images.objid) and file["ObjID"].dtype == np.int64
        assert file["contrastive"].shape == (40, 128) and file["pooled"].shape == (40, 64)
        assert file["contrastive"].dtype == file["pooled"].dtype == np.float32
        assert bool(file.attrs["deredden"]) and file.attrs["turns"] == 1
        assert file.attrs["encoder_sha256"] == sha256(folder / "encoder.pt")
    found = read_vectors(tmp_path / "moco.h5")
    for name in ("ra", "dec", "z", "petroMag_r", "split"):
        assert found.table[name].equals(images.table[name])
    assert set(found.table["split"]) == {"train", "valid", "test", "unlabelled"}
    assert (tmp_path / "moco.h5.provenance.json").is_file()


@pytest.mark.parametrize("more", [("--workers", "1"), ()])
def test_the_same_inputs_give_the_same_bytes(folder, tmp_path, more):
    run(folder, tmp_path / "one.h5", "--batch", "16")
    run(folder, tmp_path / "two.h5", "--batch", "16", *more)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_options_are_recorded_and_do_something(folder, tmp_path, caplog):
    run(folder, tmp_path / "plain.h5")
    run(folder, tmp_path / "other.h5", "--no-deredden", "--turns", "8", "--dtype", "float16")
    assert "trained with deredden True, not False" in caplog.text
    plain, other = (read_vectors(tmp_path / f"{name}.h5") for name in ("plain", "other"))
    assert not other.attrs["deredden"] and other.attrs["turns"] == 8
    assert np.abs(plain.unit - other.unit).max() > 0.01
    with h5py.File(tmp_path / "other.h5") as file:
        assert file["contrastive"].dtype == file["pooled"].dtype == np.float16


def test_an_encoder_without_a_head_gives_pooled_vectors(folder, tmp_path, caplog):
    with caplog.at_level("INFO", logger="ugriz"):
        run(folder, tmp_path / "paper.h5", encoder="headless.pt")
    assert "has no projection head; pooled vectors only" in caplog.text
    with h5py.File(tmp_path / "paper.h5") as file:
        assert "contrastive" not in file and "pooled" in file


def test_files_of_images_stand_in_for_a_dataset(folder, tmp_path):
    run(folder, tmp_path / "set.h5")
    shards = sorted(str(path) for path in (folder / "cutouts").glob("*.h5"))
    embed.main(
        ["--images", *shards, "--encoder", str(folder / "encoder.pt"), "--device", "cpu",
         "--output", str(tmp_path / "files.h5"), "--threads", "1"]
    )  # fmt: skip
    with h5py.File(tmp_path / "set.h5") as one, h5py.File(tmp_path / "files.h5") as other:
        assert {*one} == {*other}
        assert all(one[name][()].tobytes() == other[name][()].tobytes() for name in one)
        told = dict(one.attrs)
        assert told.pop("data") == open_set(folder / "dataset.json").digest
        assert told == dict(other.attrs), "loose files have no name that lasts"


@pytest.mark.parametrize(("flag", "said"), [("--deredden", True), ("--no-deredden", False)])
def test_dust_that_is_left_on_is_said(folder, tmp_path, caplog, flag, said):
    make_set(tmp_path)
    shard = sorted((tmp_path / "cutouts").glob("*.h5"))[0]
    with h5py.File(shard, "r+") as file:
        file["e_bv"][3] = np.nan
    embed.main(
        ["--images", str(shard), "--encoder", str(folder / "encoder.pt"), "--device", "cpu",
         "--output", str(tmp_path / "moco.h5"), "--threads", "1", flag]
    )  # fmt: skip
    assert ("1 of 20 galaxies have no extinction" in caplog.text) == said


def test_an_image_of_nan_is_named_and_nothing_is_left(tmp_path, folder):
    make_set(tmp_path / "spoilt")
    shard = sorted((tmp_path / "spoilt" / "cutouts").glob("*.h5"))[1]
    with h5py.File(shard, "r+") as file:
        file["images"][4, 2, 6, 6] = np.nan
        objid = file["ObjID"][4]
    with pytest.raises(UserError, match=rf"galaxy {objid} .*not finite") as caught:
        embed.main(
            ["--dataset", str(tmp_path / "spoilt" / "dataset.json"), "--device", "cpu",
             "--encoder", str(folder / "encoder.pt"), "--output", str(tmp_path / "out" / "m.h5")]
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--batch", "0"), "batch: 0; give 1 or more"),
        (("--threads", "-1"), "threads: -1; give 1 or more"),
        (("--workers", "-1"), "workers: -1; give 0 or more"),
        (("--encoder", "none.pt"), "no such checkpoint"),
    ],
)
def test_bad_input_ends_in_one_line(folder, tmp_path, more, message):
    with pytest.raises(UserError, match=message) as caught:
        run(folder, tmp_path / "moco.h5", *more)
    assert "\n" not in str(caught.value) and not (tmp_path / "moco.h5").exists()


def test_a_vector_that_float16_cannot_hold_is_refused(folder, tmp_path):
    encoder = Encoder(EncoderSpec("resnet10", width=0.125, crop=CROP))
    encoder.net.layer4[-1].bn2.bias.data[:] = 1e5
    save_encoder(tmp_path / "large.pt", encoder)
    with pytest.raises(UserError, match="too much for float16; set dtype to float32"):
        run(folder, tmp_path / "m.h5", "--dtype", "float16", encoder=tmp_path / "large.pt")
    torch.set_num_threads(1)


@pytest.mark.parametrize("kilobytes", [4, 12, 24])
def test_a_full_disk_ends_in_one_line(folder, tmp_path, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here (not root)")
    try:
        words = [sys.executable, "-m", "pipeline.embed", "--dataset", folder / "dataset.json",
                 "--encoder", folder / "encoder.pt", "--output", disk / "m.h5"]  # fmt: skip
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        left = list(disk.iterdir())
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert done.returncode == 1 and not left
    assert "no space left" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
