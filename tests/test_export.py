import hashlib
import json
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from small_sets import make_catalog, write_set

from pipeline import dataset, export, run
from pipeline.run import UserError

KEYS = {"ObjID", "dec", "e_bv", "images", "ra", "specObjID", "specz_redshift", "specz_redshift_err"}
"""Those of the file that Hayat et al. released."""
SPLITS = ("train", "valid", "test", "unlabelled")


def make_set(folder, catalog, **options):
    shards = write_set(folder, catalog, **options)
    run.write_json(
        dataset.summarise(shards, catalog, folder, survey="test"), folder / "dataset.json"
    )
    return folder / "dataset.json"


@pytest.fixture
def made(tmp_path):
    """dataset.json of 60 galaxies in 3 shards with 3 failures, and the catalogue of those kept."""
    catalog = make_catalog(60, shards=3)
    return make_set(tmp_path, catalog, failed=(3, 17, 40)), catalog.drop(index=[3, 17, 40])


def stamps_by_id(path):
    stamps = {}
    for shard in sorted((path.parent / "cutouts").glob("*.h5")):
        with h5py.File(shard) as file:
            stamps |= dict(zip(file["ObjID"][:].tolist(), file["images"][:], strict=True))
    return stamps


def read(folder, split):
    with h5py.File(folder / f"{split}.h5") as file:
        return {name: file[name][:] for name in file}


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_every_stamp_is_in_its_file_with_its_columns(made, tmp_path):
    path, catalog = made
    rows = export.export(path, tmp_path / "export", block=7)
    stamps = stamps_by_id(path)
    assert sum(rows.values()) == len(stamps) == 57
    for split in SPLITS:
        file = read(tmp_path / "export", split)
        assert set(file) == KEYS
        assert file["images"].dtype == np.float32 and file["ObjID"].dtype == np.int64
        part = catalog[catalog["split"] == split].set_index("objID").loc[file["ObjID"]]
        assert len(part) == len(file["ObjID"]) == (catalog["split"] == split).sum() == rows[split]
        for objid, image in zip(file["ObjID"].tolist(), file["images"], strict=True):
            np.testing.assert_array_equal(image, stamps[objid])
        np.testing.assert_array_equal(file["ra"], part["ra"])
        np.testing.assert_array_equal(file["dec"], part["dec"])
        np.testing.assert_array_equal(file["specObjID"], part["specObjID"].to_numpy(np.int64))
        z = part["z"].to_numpy(np.float32, na_value=np.nan)
        np.testing.assert_array_equal(file["specz_redshift"], z)
        extinction = part[[f"extinction_{band}" for band in "ugriz"]].to_numpy(np.float32)
        np.testing.assert_array_equal(file["e_bv"], extinction)


def test_rows_are_shuffled_over_shards_by_the_seed(made, tmp_path):
    path, catalog = made
    export.export(path, tmp_path / "a", seed=0)
    export.export(path, tmp_path / "b", seed=1)
    first, second = (read(tmp_path / name, "train")["ObjID"] for name in "ab")
    assert not np.array_equal(first, np.sort(first))
    assert not np.array_equal(first, second)
    assert set(first) == set(second)


def test_the_order_does_not_depend_on_how_shards_were_cut(made, tmp_path):
    path, _ = made
    catalog = make_catalog(60, shards=5)
    other = make_set(tmp_path / "other", catalog, failed=(3, 17, 40))
    export.export(path, tmp_path / "a")
    export.export(other, tmp_path / "b")
    for split in SPLITS:
        first, second = (read(tmp_path / name, split) for name in "ab")
        np.testing.assert_array_equal(first["ObjID"], second["ObjID"])


def test_a_rerun_gives_the_same_bytes(made, tmp_path):
    path, _ = made
    export.export(path, tmp_path / "export")
    first = digests(tmp_path / "export")
    export.export(path, tmp_path / "export", block=5)
    assert digests(tmp_path / "export") == first
    assert set(first) == {*(f"{split}.h5" for split in SPLITS), "README.md", "SHA256SUMS"}


def test_checksums_hold(made, tmp_path):
    path, _ = made
    export.main(["--dataset", str(path), "--output", str(tmp_path / "export")])
    check = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "export", capture_output=True, text=True
    )
    assert check.returncode == 0 and check.stdout.count("OK") == 5


def test_the_card_says_what_is_there(made, tmp_path):
    path, _ = made
    rows = export.export(path, tmp_path / "export")
    card = (tmp_path / "export" / "README.md").read_text()
    for split, count in rows.items():
        assert f"| `{split}.h5` | {count} |" in card
    for words in (*(f"`{key}`" for key in KEYS), "3 of the 60", "sha256sum -c", "Funding for SDSS"):
        assert words in card


@pytest.mark.parametrize("split", ["test", "unlabelled"])
def test_empty_splits_are_files_without_rows(tmp_path, split):
    path = make_set(tmp_path, make_catalog(1, shards=1).assign(split=split))
    rows = export.export(path, tmp_path / "export")
    for name in SPLITS:
        file = read(tmp_path / "export", name)
        assert set(file) == KEYS
        assert file["images"].shape == (int(name == split), 5, 11, 11)
        assert rows[name] == int(name == split)
    assert "(empty)" in (tmp_path / "export" / "README.md").read_text()


def test_an_unlabelled_set_has_no_redshifts(tmp_path):
    path = make_set(tmp_path, make_catalog(10, shards=2, labelled=0))
    export.export(path, tmp_path / "export")
    file = read(tmp_path / "export", "unlabelled")
    assert np.isnan(file["specz_redshift"]).all() and len(file["ObjID"]) == 10


def test_float16_shards_come_out_as_float32(tmp_path):
    path = make_set(tmp_path, make_catalog(10, shards=2, labelled=0), dtype="float16")
    export.export(path, tmp_path / "export")
    file = read(tmp_path / "export", "unlabelled")
    stamps = stamps_by_id(path)
    assert file["images"].dtype == np.float32
    for objid, image in zip(file["ObjID"].tolist(), file["images"], strict=True):
        np.testing.assert_array_equal(image, stamps[objid].astype(np.float32))


def test_changed_and_missing_shards_are_refused(made, tmp_path):
    path, _ = made
    shutil.copy(path.parent / "cutouts/0000.h5", path.parent / "cutouts/0001.h5")
    with pytest.raises(UserError, match=r"0001\.h5: changed since"):
        export.export(path, tmp_path / "export")
    (path.parent / "cutouts/0001.h5").unlink()
    with pytest.raises(UserError, match=r"0001\.h5: no such shard"):
        export.export(path, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_folder_with_other_things_is_left_alone(made, tmp_path):
    path, _ = made
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    with pytest.raises(UserError, match=r"thesis: holds chapter\.tex"):
        export.export(path, tmp_path / "thesis")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        export.export(path, tmp_path / "file")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(made, tmp_path):
    path, _ = made
    content = json.loads(path.read_text())
    content["galaxies"]["stamps"] = 10**12
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"GB are needed and .* GB are free"):
        export.export(path, tmp_path / "export")
    assert not list(tmp_path.glob("*export*"))


@pytest.mark.parametrize("flags", [["--seed", "-1"], ["--block", "0"]])
def test_impossible_flags_are_refused(made, tmp_path, flags):
    with pytest.raises(UserError, match="seed must be 0 or more and block 1 or more"):
        export.main(["--dataset", str(made[0]), "--output", str(tmp_path / "export"), *flags])
