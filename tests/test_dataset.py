import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from small_sets import FUNNEL, make_catalog, write_set, write_shard
from test_statistics import exact

from pipeline import dataset
from pipeline.images import manifest
from pipeline.images.stamp import Stamp
from pipeline.run import UserError


@pytest.fixture
def made(tmp_path):
    """A set of 60 galaxies in 3 shards with 3 failures: (folder, catalogue, shards)."""
    catalog = make_catalog(60, shards=3)
    return tmp_path, catalog, write_set(tmp_path, catalog, failed=(3, 17, 40))


def arguments(folder, *more):
    shards = sorted((folder / "cutouts").glob("*.h5"))
    return [
        "--shards", *map(str, shards), "--catalog", str(folder / "catalog.parquet"),
        "--funnel", str(folder / "catalog.json"), "--output", str(folder / "dataset.json"),
        "--survey", "test", *more,
    ]  # fmt: skip


def images_of(shards, split):
    parts = []
    for path in shards:
        with h5py.File(path) as file:
            parts.append(file["images"][:][file["split"][:] == split.encode()])
    return np.concatenate(parts)


def test_everything_is_counted(made):
    folder, catalog, shards = made
    dataset.main(arguments(folder))
    content = json.loads((folder / "dataset.json").read_text())
    assert content["galaxies"] == {"catalogue": 60, "stamps": 57, "failed": 3}
    kept = catalog.drop(index=[3, 17, 40])
    assert content["splits"] == {
        name: int((kept["split"] == name).sum())
        for name in ("train", "valid", "test", "unlabelled")
    }
    assert content["failures"] == {"frame is truncated": 2, "frame is missing": 1}
    assert content["coverage"] == {"below_1": 6, "below_0.5": 0}
    assert content["funnel"] == FUNNEL and content["survey"] == "test"
    assert [one["file"] for one in content["shards"]] == [f"cutouts/000{n}.h5" for n in range(3)]
    assert [one["bytes"] for one in content["shards"]] == [one.stat().st_size for one in shards]
    assert content["stamp"] | {"size": 11, "fov_deg": 0.012, "dtype": "float32"} == content["stamp"]


def test_mad_is_that_of_the_training_images(made):
    folder, _, shards = made
    dataset.main(arguments(folder))
    pixels = manifest.read(folder / "dataset.json")["pixels"]
    images = images_of(shards, "train")
    assert pixels["set"] == "train" and pixels["images"] == len(images)
    median, mad = exact(images)
    np.testing.assert_allclose(list(pixels["mad"].values()), mad, rtol=2e-4)
    np.testing.assert_allclose(list(pixels["median"].values()), median, atol=1e-4 * mad.max())


def test_mad_of_both_sets_when_asked(made):
    folder, _, shards = made
    dataset.main(arguments(folder, "--mad-set", "train+unlabelled"))
    pixels = manifest.read(folder / "dataset.json")["pixels"]
    images = np.concatenate([images_of(shards, name) for name in ("train", "unlabelled")])
    assert pixels["set"] == "train+unlabelled" and pixels["images"] == len(images)
    np.testing.assert_allclose(list(pixels["mad"].values()), exact(images)[1], rtol=2e-4)


def test_bytes_depend_on_neither_workers_nor_order(made):
    folder, catalog, shards = made
    dataset.main(arguments(folder))
    first = (folder / "dataset.json").read_bytes()
    dataset.main(arguments(folder, "--workers", "3"))
    assert (folder / "dataset.json").read_bytes() == first
    again = dataset.summarise(shards[::-1], catalog, folder, FUNNEL, "test", workers=2)
    assert json.loads(first) == again


def test_galaxies_beyond_the_training_sky_are_not_counted(made):
    folder, catalog, shards = made
    sides = np.resize(["train", "valid", "test", "border", None], len(catalog))
    result = dataset.summarise(shards, catalog.assign(sky_split=sides), folder,
                               mad_set="train+unlabelled")  # fmt: skip
    kept = catalog.drop(index=[3, 17, 40])
    seen = kept["split"].isin(["train", "unlabelled"])
    seen &= pd.Series(sides, index=catalog.index)[kept.index].isin(["train", None])
    assert result["pixels"]["images"] == seen.sum() < len(kept)


def test_an_unlabelled_set_uses_its_unlabelled_images(tmp_path):
    catalog = make_catalog(12, shards=2, labelled=0)
    shards = write_set(tmp_path, catalog)
    result = dataset.summarise(shards, catalog, tmp_path)
    assert result["pixels"]["set"] == "unlabelled" and result["pixels"]["images"] == 12
    assert result["failures"] == {}
    with pytest.raises(UserError, match="mad_set: train has no images"):
        dataset.summarise(shards, catalog, tmp_path, mad_set="train")


@pytest.mark.parametrize("split", ["test", "unlabelled", "train"])
def test_a_set_of_one_galaxy(tmp_path, split):
    catalog = make_catalog(1, shards=1).assign(split=split)
    result = dataset.summarise(write_set(tmp_path, catalog), catalog, tmp_path)
    assert result["galaxies"]["stamps"] == 1
    if split == "test":
        assert result["pixels"] == {"set": None, "images": 0, "median": None, "mad": None}
    else:
        assert result["pixels"]["set"] == split


def test_only_failures_is_refused_with_the_commonest_reason(tmp_path):
    catalog = make_catalog(9, shards=1)
    shards = write_set(tmp_path, catalog, failed=range(9))
    with pytest.raises(UserError, match="all 9 failed, 6 of them because: frame is missing"):
        dataset.summarise(shards, catalog, tmp_path)


def test_failures_of_one_kind_are_counted_together(tmp_path):
    catalog = make_catalog(4, shards=1)
    path = write_set(tmp_path, catalog, failed=(1, 2))[0]
    names = [
        b"frame-u-003900-3-0101.fits.bz2: is missing",
        b"frame-g-003900-3-0102.fits.bz2: is missing",
    ]
    with h5py.File(path, "a") as file:
        del file["failed/reason"]
        file["failed/reason"] = np.array(names)
    assert dataset.summarise([path], catalog, tmp_path)["failures"] == {"is missing": 2}


def test_one_bad_shard_is_named_and_several_are_counted(made):
    folder, catalog, shards = made
    with h5py.File(shards[1], "a") as file:
        file["images"][4, 2, 0, 0] = np.inf
    with pytest.raises(UserError, match=r"0001\.h5: 1 images .* not finite$"):
        dataset.summarise(shards, catalog, folder, workers=2)
    shards[2].write_bytes(shards[2].read_bytes()[:5000])
    with pytest.raises(UserError, match=r"0001\.h5: .*\(and 1 more bad shards\)"):
        dataset.summarise(shards, catalog, folder, workers=2)
    assert not (folder / "dataset.json").exists()


def test_shards_and_catalogue_must_belong_together(made):
    folder, catalog, shards = made
    with pytest.raises(UserError, match="1 galaxies of the shards are not in the catalogue"):
        dataset.summarise(shards, catalog.iloc[:-1], folder)
    with pytest.raises(UserError, match="galaxies of the catalogue are in no shard"):
        dataset.summarise(shards[:2], catalog, folder)
    other = catalog.assign(split=catalog["split"].replace("test", "valid"))
    with pytest.raises(UserError, match="is test here and valid in the catalogue"):
        dataset.summarise(shards, other, folder)


def test_a_galaxy_in_two_shards_is_refused(made):
    folder, catalog, shards = made
    shutil.copy(shards[0], folder / "cutouts" / "stale.h5")
    with pytest.raises(UserError, match=r"stale\.h5: galaxy \d+ is there again after 0000\.h5"):
        dataset.summarise([*shards, folder / "cutouts" / "stale.h5"], catalog, folder)


def test_a_galaxy_that_is_a_stamp_and_a_failure_is_refused(made):
    folder, catalog, shards = made
    with h5py.File(shards[0], "a") as file:
        file["failed/ObjID"][0] = file["ObjID"][5]
    with pytest.raises(UserError, match=r"0000\.h5: galaxy \d+ is there again after 0000\.h5"):
        dataset.summarise(shards, catalog, folder)


def test_shards_of_different_making_are_refused(tmp_path):
    catalog = make_catalog(20, shards=2)
    shards = write_set(tmp_path, catalog)
    write_shard(shards[1], catalog[catalog["shard"] == 1], stamp=Stamp(size=13))
    with pytest.raises(UserError, match=r"0001\.h5: size is 13, that of 0000\.h5 is 11"):
        dataset.summarise(shards, catalog, tmp_path)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("catalog.json", "{", "not JSON"),
        ("catalog.json", None, "no such file"),
        ("catalog.parquet", "text", "cannot be read as Parquet"),
        ("catalog.parquet", None, "no such catalogue"),
    ],
)
def test_bad_inputs_end_in_one_line(made, path, content, words):
    folder, _, _ = made
    (folder / path).unlink()
    if content is not None:
        (folder / path).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        dataset.main(arguments(folder))
    assert "\n" not in str(error.value) and path in str(error.value)
    assert not (folder / "dataset.json").exists()


def test_a_catalogue_without_split_is_refused(made):
    folder, catalog, _ = made
    catalog.drop(columns="split").to_parquet(folder / "catalog.parquet")
    with pytest.raises(UserError, match="column split is missing"):
        dataset.main(arguments(folder))


def test_a_copied_set_verifies(made, tmp_path_factory, capsys):
    folder, _, _ = made
    dataset.main(arguments(folder))
    copy = tmp_path_factory.mktemp("copy") / "elsewhere"
    shutil.copytree(folder, copy)
    shutil.rmtree(folder / "cutouts")
    dataset.main(["verify", str(copy / "dataset.json")])
    assert capsys.readouterr().out.strip().endswith("all 3 shards are right")


def test_a_spoilt_copy_is_told_file_by_file(made, capsys):
    folder, _, shards = made
    dataset.main(arguments(folder))
    shards[0].unlink()
    data = bytearray(shards[1].read_bytes())
    data[-100] ^= 1
    shards[1].write_bytes(data)
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    with pytest.raises(UserError, match="3 of 3 shards are bad"):
        dataset.main(["verify", str(folder / "dataset.json")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"cutouts/000{n}.h5" for n in range(3)]
    for line, words in zip(lines, ("is missing", "another sha256", "bytes, not"), strict=True):
        assert words in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not a dataset.json"),
        ('{"format": "ugriz-dataset", "format_version": 7}', "dataset format 7"),
        ('{"format": "ugriz-dataset", "format_version": 1}', "key survey is missing"),
        (None, "no such file"),
    ],
)
def test_what_is_no_dataset_json_is_refused(tmp_path, text, words):
    path = tmp_path / "dataset.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        dataset.main(["verify", str(path)])
