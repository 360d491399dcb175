"""The command `python -m pipeline.photoz`: its catalogue, qp's file, flags, bad input."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import qp
import torch
from small_archive import SMALL, make_archive, make_galaxies
from small_photoz import STAMP, galaxy_catalog, small_net, write_galaxies

from pipeline import photoz
from pipeline.images.reader import members, open_set
from pipeline.learning import checkpoint, domain, predict
from pipeline.learning.encoder import Encoder, EncoderSpec, seeded
from pipeline.learning.redshift import Bins, PhotozNet, load_model, save_model
from pipeline.run import UserError

torch.set_num_threads(1)
QUICK = ["--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return write_galaxies(tmp_path_factory.mktemp("set") / "galaxies.h5", galaxy_catalog(90))


@pytest.fixture(scope="module")
def model(tmp_path_factory, shard):
    """An untrained net that knows the training galaxies of the shard."""
    return write_model(tmp_path_factory.mktemp("model") / "model.pt", shard, seed=0)


def write_model(path, shard, seed, **extra):
    net, images = small_net(seed), open_set(shard)
    images = images.take(members(images, "train"))
    parts = list(predict.outputs(net, images))
    features, colours = (np.concatenate([getattr(part, name) for part in parts])
                         for name in ("features", "colours"))  # fmt: skip
    known = domain.describe(images.objid, features, colours, images.table["z"].to_numpy())
    save_model(path, net, **{"domain": domain.to_state(known), "turns": 1} | extra)
    return path


def apply(output, models, *more):
    models = [str(path) for path in (models if isinstance(models, list) else [models])]
    photoz.main(["--model", *models, "--output", str(output), *QUICK, *more])
    return pq.read_table(output)


def pdfs(table):
    return np.stack(table["pdf"].to_numpy())


def test_the_catalogue_has_every_galaxy_with_its_pdf(tmp_path, shard, model, capsys):
    table = apply(tmp_path / "c.parquet", model, "--images", str(shard))
    known, frame = open_set(shard).table, table.to_pandas()
    assert table.schema.field("objID").type == "int64"
    assert frame["objID"].tolist() == known["objID"].tolist()
    assert frame["split"].tolist() == known["split"].tolist()
    assert frame["z"].isna().sum() == (known["split"] == "unlabelled").sum() > 0
    assert table["z"].null_count == frame["z"].isna().sum()  # null, not NaN
    edges = np.array(json.loads(table.schema.metadata[b"edges"]))
    assert edges == pytest.approx(Bins().edges)
    centres = (edges[1:] + edges[:-1]) / 2
    assert pdfs(table).sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert frame["z_phot"].to_numpy() == pytest.approx(pdfs(table) @ centres, abs=1e-6)
    assert (frame["z_low"] < frame["z_median"]).all()
    assert (frame["z_median"] < frame["z_high"]).all()
    assert frame["photoz"].to_numpy() == pytest.approx(known["photoz"].to_numpy())
    assert (frame["coverage"] == 1).all()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["test", "train", "valid"]
    assert all("sigma_mad" in line for line in lines)
    # of a whole set evaluate alone looks at the test galaxies
    apply(tmp_path / "c.parquet", model, "--dataset", str(shard))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["train", "valid"]


def test_qp_reads_both_files_and_finds_the_same_means(tmp_path, shard, model):
    table = apply(tmp_path / "c.parquet", model, "--images", str(shard), "--qp",
                  str(tmp_path / "q.hdf5"))  # fmt: skip
    z_phot = table["z_phot"].to_numpy()
    ensemble = qp.read(str(tmp_path / "q.hdf5"))
    assert ensemble.mean().ravel() == pytest.approx(z_phot, abs=1e-6)
    assert np.array_equal(ensemble.ancil["objID"], table["objID"].to_numpy())
    assert ensemble.ppf(0.5).ravel() == pytest.approx(table["z_median"].to_numpy(), abs=1e-5)
    edges = json.loads(table.schema.metadata[b"edges"])
    again = qp.Ensemble(qp.hist, {"bins": edges, "pdfs": pdfs(table)})
    assert again.mean().ravel() == pytest.approx(z_phot, abs=1e-6)


def test_blocks_and_workers_do_not_change_what_is_written(tmp_path, shard, model, monkeypatch):
    one = apply(tmp_path / "a.parquet", model, "--images", str(shard))
    apply(tmp_path / "b.parquet", model, "--images", str(shard), "--workers", "1")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    monkeypatch.setattr(photoz, "BATCH", 16)
    monkeypatch.setattr(photoz, "ROWS", 32)
    many = apply(tmp_path / "c.parquet", model, "--images", str(shard))
    assert pq.ParquetFile(tmp_path / "c.parquet").metadata.num_row_groups == 3
    assert pdfs(one) == pytest.approx(pdfs(many), abs=1e-6)
    assert one["objID"] == many["objID"]


@pytest.mark.parametrize("split", ["train", "valid", "test", "unlabelled"])
def test_a_split_is_the_rows_of_its_galaxies_alone(tmp_path, shard, model, split):
    every = apply(tmp_path / "a.parquet", model, "--images", str(shard)).to_pandas()
    table = apply(tmp_path / "b.parquet", model, "--images", str(shard), "--split", split,
                  "--qp", str(tmp_path / "q.hdf5"))  # fmt: skip
    expected = every[every["split"] == split].reset_index(drop=True)
    assert 0 < len(expected) < len(every)
    assert pdfs(table) == pytest.approx(np.stack(expected["pdf"]), abs=1e-6)
    rest = [name for name in expected if name != "pdf"]
    pd.testing.assert_frame_equal(table.to_pandas()[rest], expected[rest], rtol=1e-5)
    assert json.loads(table.schema.metadata[b"edges"])
    written = qp.read(str(tmp_path / "q.hdf5"))
    assert written.ancil["objID"].tolist() == expected["objID"].tolist()
    assert written.mean().ravel() == pytest.approx(expected["z_phot"].to_numpy(), abs=1e-6)


def test_a_split_without_a_galaxy_is_refused_in_one_line(tmp_path, shard, model):
    catalog = galaxy_catalog(20)
    only = write_galaxies(tmp_path / "train.h5", catalog.assign(split="train"))
    with pytest.raises(UserError, match=r"no images of test in the set \(20 train\)") as error:
        apply(tmp_path / "c.parquet", model, "--images", str(only), "--split", "test")
    assert "\n" not in str(error.value) and not (tmp_path / "c.parquet").exists()


def test_an_ensemble_averages_pdfs_and_scores(tmp_path, shard, model):
    other = write_model(tmp_path / "other.pt", shard, seed=1)
    more = ("--images", str(shard))
    both = apply(tmp_path / "c.parquet", [model, other], *more)
    alone = [apply(tmp_path / f"{n}.parquet", path, *more) for n, path in enumerate([model, other])]
    assert pdfs(both) == pytest.approx((pdfs(alone[0]) + pdfs(alone[1])) / 2, abs=1e-6)
    mean = sum(one["outlier_score"].to_numpy() for one in alone) / 2
    assert both["outlier_score"].to_numpy() == pytest.approx(mean, rel=1e-5)


def test_a_galaxy_unlike_those_trained_on_is_flagged(tmp_path, shard, model):
    strange = shutil.copy(shard, tmp_path / "strange.h5")
    with h5py.File(strange, "a") as file:
        file["images"][4] = file["images"][4][::-1] * 50  # bluer and brighter than any
    before = apply(tmp_path / "a.parquet", model, "--images", str(shard)).to_pandas()
    after = apply(tmp_path / "b.parquet", model, "--images", str(strange)).to_pandas()
    assert after["beyond_training"][4] and not before["beyond_training"][4]
    assert after["outlier_score"][4] > 5 * before["outlier_score"][4]
    rest = np.arange(len(after)) != 4
    assert (after["beyond_training"] == before["beyond_training"])[rest].all()
    assert before["beyond_training"].mean() < 0.2


def test_turns_are_the_models_own_unless_given(tmp_path, shard):
    eight = write_model(tmp_path / "eight.pt", shard, seed=0, turns=8)
    own = apply(tmp_path / "a.parquet", eight, "--images", str(shard))
    given = apply(tmp_path / "b.parquet", eight, "--images", str(shard), "--turns", "1")
    net, _ = load_model(eight)
    images = open_set(shard)
    for table, turns in ((own, 8), (given, 1)):
        pdf = np.concatenate([out.pdf for out in predict.outputs(net, images, turns=turns)])
        assert pdfs(table) == pytest.approx(pdf, abs=1e-6)


@pytest.mark.parametrize("deredden", [True, False])
def test_dust_that_is_left_on_is_said(tmp_path, shard, caplog, deredden):
    dusty = shutil.copy(shard, tmp_path / "dusty.h5")
    with h5py.File(dusty, "a") as file:
        file["e_bv"][4] = np.nan
    model = write_model(tmp_path / "model.pt", shard, seed=0, deredden=deredden)
    apply(tmp_path / "c.parquet", model, "--images", str(dusty))
    assert ("1 of 90 galaxies have no extinction" in caplog.text) == deredden


def test_the_papers_checkpoint_is_a_model(tmp_path, monkeypatch):
    """Names and shapes of the released ResNet50, drawn at random; stamps in its own layout."""
    with seeded(0):
        net = PhotozNet(Encoder(EncoderSpec()), Bins())
    state = {f"module.{name}": value for name, value in net.encoder.net.state_dict().items()}
    state |= {f"module.fc.{name}": value for name, value in net.fc.state_dict().items()}
    path = tmp_path / "photoz_finetuned_model.pth.tar"
    torch.save({"epoch": 64, "state_dict": state}, path)
    random = np.random.default_rng(0)
    stamps = random.normal(0, 0.1, (3, 5, 107, 107)).astype(np.float32)
    with h5py.File(tmp_path / "sdss_w_specz_valid.h5", "w") as file:
        file["images"], file["e_bv"] = stamps, np.full((3, 5), 0.1, np.float32)
        file["ObjID"] = file["specObjID"] = np.arange(3) + 10**18
        file["ra"] = file["dec"] = np.arange(3.0)
        file["specz_redshift"] = np.array([0.05, 0.1, 0.45])
        file["specz_redshift_err"] = np.full(3, 1e-5)
    table = apply(tmp_path / "c.parquet", path, "--images", str(tmp_path / "sdss_w_specz_valid.h5"))
    images = open_set(tmp_path / "sdss_w_specz_valid.h5")
    expected = np.concatenate([out.pdf for out in predict.outputs(net, images)])
    assert pdfs(table) == pytest.approx(expected, abs=1e-6)
    assert table["outlier_score"].null_count == table["beyond_training"].null_count == 3
    assert table["z"].to_pylist() == pytest.approx([0.05, 0.1, 0.45])


def test_stamps_are_cut_for_a_table_of_galaxies(tmp_path):
    galaxies = make_galaxies()
    archive = make_archive(tmp_path / "sas", galaxies)
    galaxies.to_csv(tmp_path / "galaxies.csv", index=False)
    with seeded(0):
        net = PhotozNet(Encoder(EncoderSpec("resnet10", 0.125, crop=24)), Bins())
    save_model(tmp_path / "model.pt", net)
    table = apply(
        tmp_path / "c.parquet", tmp_path / "model.pt", "--galaxies", str(tmp_path / "galaxies.csv"),
        "--archive", str(archive), "--size", "31", "--fov", str(SMALL.stamp.fov),
        "--stamps", str(tmp_path / "kept.h5"),
    )  # fmt: skip
    assert set(table["objID"].to_pylist()) <= set(galaxies["objID"])
    assert table["objID"].to_pylist() == open_set(tmp_path / "kept.h5").objid.tolist()
    assert len(table) >= 4


def bad(tmp_path, shard, model):
    other = tmp_path / "bins.pt"
    save_model(other, small_net(bins=Bins(90)))
    checkpoint.save_encoder(tmp_path / "encoder.pt", small_net().encoder)
    (tmp_path / "short.pt").write_bytes(model.read_bytes()[:5000])
    large = PhotozNet(Encoder(EncoderSpec("resnet10", 0.125, crop=64)), Bins())
    save_model(tmp_path / "large.pt", large)
    spoilt = shutil.copy(shard, tmp_path / "spoilt.h5")
    with h5py.File(spoilt, "a") as file:
        file["images"][40, 0, 1, 1] = np.nan
    return {
        "another number of bins": ([model, other], shard, "bins.pt: 90 bins to z = 0.4"),
        "an encoder": ([tmp_path / "encoder.pt"], shard, "encoder.pt: an encoder without a layer"),
        "a truncated model": ([tmp_path / "short.pt"], shard, "short.pt: cannot be read"),
        "no model": ([tmp_path / "no.pt"], shard, "no.pt: no such checkpoint"),
        "a large crop": ([tmp_path / "large.pt"], shard, f"crop.*{STAMP.size}"),
        "an image of NaN": ([model], spoilt, "spoilt.h5: the image of galaxy .*not finite"),
        "no images": ([model], tmp_path / "no.h5", "no.h5: no such file"),
    }


@pytest.mark.parametrize(
    "case",
    ["another number of bins", "an encoder", "a truncated model", "no model", "a large crop",
     "an image of NaN", "no images"],
)  # fmt: skip
def test_what_a_user_can_get_wrong_is_one_line_and_leaves_nothing(tmp_path, shard, model, case):
    models, images, text = bad(tmp_path, shard, model)[case]
    with pytest.raises(UserError, match=text) as error:
        apply(tmp_path / "c.parquet", models, "--images", str(images), "--qp",
              str(tmp_path / "q.hdf5"))  # fmt: skip
    assert "\n" not in str(error.value)
    assert not (tmp_path / "c.parquet").exists() and not (tmp_path / "q.hdf5").exists()


def test_two_products_of_one_name_are_refused(tmp_path, shard, model):
    with pytest.raises(UserError, match="give two files"):
        apply(tmp_path / "c.parquet", model, "--images", str(shard), "--qp",
              str(tmp_path / "c.parquet"))  # fmt: skip


def test_a_table_without_an_archive_is_refused(tmp_path, model):
    pd.DataFrame({"ra": [1.0], "dec": [0.0]}).to_csv(tmp_path / "t.csv")
    with pytest.raises(UserError, match="--galaxies and --archive: give both"):
        apply(tmp_path / "c.parquet", model, "--galaxies", str(tmp_path / "t.csv"))
