"""The reader: many files of any known layout as one row of images."""

import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sets import STAMP, make_catalog, write_set, write_shard

from pipeline import dataset, export, run
from pipeline.images import reader
from pipeline.images.stamp import Stamp
from pipeline.run import UserError
from pipeline.survey.names import BANDS

PAPER = (
    "ObjID", "dec", "e_bv", "images", "ra", "specObjID", "specz_redshift", "specz_redshift_err",
)  # fmt: skip
"""All that is in the file that the paper's authors released."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three shards of unequal length, with failures, their dataset.json and their export."""
    folder = tmp_path_factory.mktemp("set")
    catalog = make_catalog(83, shards=3)
    catalog.loc[catalog.index < 40, "shard"] = 0
    shards = write_set(folder, catalog, failed=(2, 50))
    run.write_json(dataset.summarise(shards, catalog, folder), folder / "dataset.json")
    export.export(folder / "dataset.json", folder / "export")
    return folder, catalog.drop(index=[2, 50]).reset_index(drop=True), shards


def by_hand(images, index):
    """What `read` should give, file by file with h5py alone."""
    found = []
    for at in index:
        place = images.table.iloc[at]
        with h5py.File(images.files[place["file"]]) as file:
            found.append(file["images"][:][place["row"]])
    return np.array(found)


def paper_file(path, count=7, dtype="f4", size=11, first=10**18):
    """A file in the layout of the paper's released one."""
    random = np.random.default_rng(count)
    with h5py.File(path, "w") as file:
        file["images"] = random.normal(0, 1, (count, 5, size, size)).astype(dtype)
        file["e_bv"] = random.uniform(0, 0.3, (count, 5)).astype("f4")
        file["ObjID"] = first + np.arange(count)
        file["specObjID"] = 3 * 10**18 + np.arange(count)
        for name in ("ra", "dec", "specz_redshift", "specz_redshift_err"):
            file[name] = random.uniform(0, 0.4, count)
    return path


def test_galaxies_whose_dust_is_unknown_are_counted(tmp_path, caplog):
    path = paper_file(tmp_path / "paper.h5")
    reader.warn_of_dust(reader.open_set(path))
    assert not caplog.text
    with h5py.File(path, "a") as file:
        file["e_bv"][2, 3] = np.nan
    reader.warn_of_dust(reader.open_set(path))
    assert "1 of 7 galaxies have no extinction, so their dust is left on" in caplog.text


def test_a_dataset_gives_all_stamps_with_the_catalogues_columns(made):
    folder, catalog, _ = made
    images = reader.open_set(folder / "dataset.json")
    table = images.table
    assert len(images) == 81
    assert table["objID"].dtype == np.int64
    assert table["objID"].tolist() == catalog["objID"].tolist()
    assert table["split"].tolist() == catalog["split"].tolist()
    assert table["sky_split"].eq("").all()
    assert len(set(np.bincount(table["file"]))) > 1, "files of unequal length"
    for name in ("ra", "dec"):
        assert np.array_equal(table[name], catalog[name])
    for name in ("z", "zErr", "photoz", "petroMag_r"):
        wanted = catalog[name].to_numpy(float, na_value=np.nan)
        np.testing.assert_allclose(table[name], wanted, rtol=1e-6)
    wanted = catalog[[f"extinction_{band}" for band in BANDS]].to_numpy()
    np.testing.assert_allclose(images.extinction, wanted, rtol=1e-6)
    assert (images.sky_noise == np.float32(0.05)).all()
    assert set(table["coverage"].round(3)) == {1.0, round(1 - 2 / 11, 3)}
    assert images.size == 11
    assert images.dtype == np.float32
    np.testing.assert_allclose(images.mad, 0.6745 * np.array([5, 2, 3, 4, 15]) / 100, rtol=0.05)


def test_images_come_in_the_order_asked(made):
    folder, *_ = made
    images = reader.open_set(folder / "dataset.json")
    index = np.random.default_rng(1).permutation(81)[:40]
    index[5] = index[6]
    read = images.read(index)
    assert read.dtype == np.float32
    assert np.array_equal(read, by_hand(images, index))
    assert images.read(np.array([], int)).shape == (0, 5, 11, 11)


def test_rows_taken_are_those_rows(made):
    folder, *_ = made
    images = reader.open_set(folder / "dataset.json")
    index = np.array([70, 3, 41])
    few = images.take(index)
    assert few.objid.tolist() == images.objid[index].tolist()
    assert np.array_equal(few.read(np.arange(3)), images.read(index))
    for name in ("extinction", "sky_noise"):
        assert np.array_equal(getattr(few, name), getattr(images, name)[index])
    mask = np.zeros(81, bool)
    mask[[3, 41]] = True
    assert images.take(mask).objid.tolist() == images.objid[[3, 41]].tolist()


def test_a_set_in_memory_needs_its_files_no_more(tmp_path):
    path = write_shard(tmp_path / "a.h5", make_catalog(70, shards=1))
    images = reader.open_set(path)
    wanted = images.read(np.arange(70))
    kept = images.take(np.arange(70)[::-1]).in_memory()
    path.unlink()
    assert np.array_equal(kept.read(np.arange(70)), wanted[::-1])
    half = kept.take(np.arange(0, 70, 2))
    assert half.pixels is kept.pixels
    assert half.in_memory() is half
    assert np.array_equal(half.read(np.array([4, 0])), wanted[::-1][[8, 0]])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_stored_type_is_kept(tmp_path, dtype):
    path = write_shard(tmp_path / "a.h5", make_catalog(5, shards=1), dtype=dtype)
    images = reader.open_set(path)
    assert images.dtype == images.read(np.arange(5)).dtype == dtype
    assert images.in_memory().pixels.dtype == dtype
    assert images.nbytes == images.in_memory().pixels.nbytes


def test_files_of_two_types_are_read_as_the_wider(tmp_path):
    paths = [paper_file(tmp_path / f"{d}.h5", 3, d, first=10**18 + 10 * k)
             for k, d in enumerate(("f2", ">f4"))]  # fmt: skip
    images = reader.open_set(paths)
    assert images.dtype == np.dtype("f4")
    assert np.array_equal(images.read(np.arange(6)), by_hand(images, range(3)).tolist()
                          + by_hand(images, range(3, 6)).tolist())  # fmt: skip


def test_the_papers_own_layout_is_read(tmp_path):
    images = reader.open_set(paper_file(tmp_path / "sdss_w_specz_valid.h5"))
    assert images.objid.tolist() == list(range(10**18, 10**18 + 7))
    assert images.table["split"].tolist() == [""] * 7
    assert images.table["z"].between(0, 0.4).all()
    assert images.table["coverage"].eq(1).all()
    assert np.isnan(images.table["photoz"]).all()
    assert images.mad is None
    with pytest.raises(UserError, match="no images of test in the set .7 no split."):
        reader.members(images, "test")


def test_files_of_unequal_length_of_the_papers_layout(tmp_path):
    paths = [paper_file(tmp_path / f"{n}.h5", n, first=10**18 + 100 * n) for n in (4, 9, 2)]
    images = reader.open_set(paths)
    index = np.array([14, 0, 12, 13, 5])
    assert np.array_equal(images.read(index), by_hand(images, index))


def test_export_files_are_the_shards_by_galaxy(made):
    folder, *_ = made
    names = ("train", "valid", "test", "unlabelled")
    release = reader.open_set([folder / "export" / f"{name}.h5" for name in names])
    shards = reader.open_set(folder / "dataset.json")
    assert len(release) == len(shards)
    order = np.searchsorted(shards.objid, release.objid)
    assert np.array_equal(shards.objid[order], release.objid)
    assert np.array_equal(shards.read(order), release.read(np.arange(len(release))))
    for column in ("split", "z", "ra"):
        a, b = shards.table[column].iloc[order], release.table[column]
        assert a.reset_index(drop=True).equals(b.reset_index(drop=True)), column


class PapersLoader:
    """Reads release files by what is known of the paper's loader.

    It takes every file to have the row count of the first, opens a file when it is first needed
    and picks image, extinctions and redshift by a whole number; splits and ids are unknown to it.
    """

    def __init__(self, files):
        self.files, self.handles = files, [None] * len(files)
        with h5py.File(files[0], "r") as first:
            self.rows = first["images"].shape[0]

    def __len__(self):
        return self.rows * len(self.files)

    def __getitem__(self, number):
        which, row = divmod(int(number), self.rows)
        if self.handles[which] is None:
            self.handles[which] = h5py.File(self.files[which], "r")
        file = self.handles[which]
        return file["images"][row], file["e_bv"][row], file["specz_redshift"][row]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_papers_released_loader_reads_an_export_file(made, split):
    folder, *_ = made
    path = folder / "export" / f"{split}.h5"
    loader, ours = PapersLoader([path]), reader.open_set(path)
    with h5py.File(path) as file:
        assert set(PAPER) <= set(file)
    assert len(loader) == len(ours) > 0
    for row in range(len(loader)):
        image, e_bv, z = loader[row]
        assert image.shape == (5, 11, 11)
        assert image.dtype == np.float32
        assert np.array_equal(image, ours.read(np.array([row]))[0])
        assert np.array_equal(e_bv, ours.extinction[row])
        assert 0 < z == ours.table["z"][row]


def test_members_of_a_split(made):
    folder, catalog, _ = made
    images = reader.open_set(folder / "dataset.json")
    for name in ("train", "valid", "test", "unlabelled"):
        assert set(images.table["split"].iloc[reader.members(images, name)]) == {name}
    both = reader.members(images, "train+unlabelled")
    assert len(both) == catalog["split"].isin(["train", "unlabelled"]).sum()
    with pytest.raises(UserError, match="'tset' is unknown"):
        reader.members(images, "train+tset")


def test_training_knows_nothing_of_the_test_sky(tmp_path):
    catalog = make_catalog(200, shards=1)
    catalog["sky_split"] = np.resize(["train", "test", "border", "valid"], 200)
    images = reader.open_set(write_shard(tmp_path / "a.h5", catalog))
    for name in ("train", "unlabelled", "train+unlabelled"):
        chosen = reader.members(images, name)
        assert set(images.table["sky_split"].iloc[chosen]) == {"train"}
    for name in ("valid", "test"):
        chosen = reader.members(images, name)
        assert set(images.table["sky_split"].iloc[chosen]) == {name}
    alone = images.take(images.table["sky_split"].to_numpy(object) == "border")
    with pytest.raises(UserError, match="no images of unlabelled"):
        reader.members(alone, "unlabelled")


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 300),
    fractions=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    seed=st.integers(0, 2**31),
)
def test_label_fractions_are_nested_and_know_galaxies_by_id(count, fractions, seed):
    objid = 1237663542061760513 + 7 * np.arange(count)
    small, large = sorted(fractions)
    if round(small * count) == 0:
        return
    few, many = (reader.label_fraction(objid, part, seed) for part in (small, large))
    assert few.sum() == round(small * count)
    assert not (few & ~many).any()
    order = np.random.default_rng(seed).permutation(count)
    assert np.array_equal(reader.label_fraction(objid[order], small, seed), few[order])


def test_label_fractions_differ_by_seed_and_are_spread_evenly():
    objid = np.arange(20000) + 10**18
    first, second = (reader.label_fraction(objid, 0.3, seed) for seed in (0, 1))
    assert abs((first & second).sum() - 1800) < 150
    assert abs(first[:10000].sum() - 3000) < 150


@pytest.mark.parametrize("fraction", [0, -1, 1.01, 0.001])
def test_a_fraction_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(UserError, match="leaves none"):
        reader.label_fraction(np.arange(100), fraction, 0)


def _sum_of(images, index, answer):
    answer.put(float(images.read(index).sum()))


def test_handles_are_each_process_own(made):
    folder, *_ = made
    images = reader.open_set(folder / "dataset.json")
    index = np.arange(0, 81, 5)
    wanted = float(images.read(index).sum())
    copy = pickle.loads(pickle.dumps(images))
    assert not copy._open
    assert float(copy.read(index).sum()) == wanted
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    child = context.Process(target=_sum_of, args=(images, index, answer))
    child.start()
    assert answer.get(timeout=30) == wanted
    child.join()


def spoil(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def renamed(old, new):
    def change(file):
        file[new] = file[old][:]
        del file[old]

    return change


def replaced(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("e_bv", "ebv"), "data set e_bv is missing"),
        (replaced("ObjID", np.arange(6.0)), "ObjID is float64"),
        (replaced("e_bv", np.zeros((6, 3))), r"e_bv has the shape \(6, 3\)"),
        (replaced("ra", np.zeros(5)), r"ra has the shape \(5,\)"),
        (replaced("images", np.zeros((6, 5, 10, 10), "f4")), "odd size"),
        (replaced("images", np.zeros((6, 5, 11, 11), "i2")), "images are int16"),
        (lambda file: file.attrs.update(format_version=99), "shard format 99"),
        (lambda file: file.attrs.update(format="ugriz-vectors"), "is ugriz-vectors"),
    ],
)
def test_a_file_that_is_not_right_is_refused(tmp_path, change, message):
    path = write_shard(tmp_path / "a.h5", make_catalog(6, shards=1))
    spoil(path, change)
    with pytest.raises(UserError, match=message) as caught:
        reader.open_set(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="no such file of images"):
        reader.open_set(tmp_path / "none.h5")
    with pytest.raises(UserError, match="no file of images is named"):
        reader.open_set([])
    with pytest.raises(UserError, match="a folder; name a dataset.json or the files in it"):
        reader.open_set(tmp_path)
    path = write_shard(tmp_path / "a.h5", make_catalog(6, shards=1))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match="cannot be read") as caught:
        reader.open_set(path)
    assert "\n" not in str(caught.value)


def test_stamps_of_two_sizes_are_refused(tmp_path):
    first = write_shard(tmp_path / "a.h5", make_catalog(3, shards=1))
    second = write_shard(tmp_path / "b.h5", make_catalog(3, shards=1, seed=1), stamp=Stamp(size=13))
    with pytest.raises(UserError, match=f"b.h5: stamps of 13 px.* have {STAMP.size}"):
        reader.open_set([first, second])


def test_a_galaxy_that_is_there_twice_is_refused(made):
    *_, shards = made
    with pytest.raises(UserError, match="is there again after .* .39 such"):
        reader.open_set([shards[0], shards[1], shards[0]])


def test_a_shard_of_another_run_is_refused(made, tmp_path):
    folder, catalog, _ = made
    shards = write_set(tmp_path, catalog)
    run.write_json(dataset.summarise(shards, catalog, tmp_path), tmp_path / "dataset.json")
    write_shard(shards[1], catalog[catalog["shard"] == 1].iloc[:-1])
    with pytest.raises(UserError, match="rerun the rule dataset"):
        reader.open_set(tmp_path / "dataset.json")


def test_files_of_one_image_a_chunk_are_read_without_a_cache(tmp_path):
    def cache(images):
        images.read(np.arange(2))
        ((file, _),) = images._open.values()
        return file.id.get_access_plist().get_cache()[2]

    assert cache(reader.open_set(write_shard(tmp_path / "ours.h5", make_catalog(3)))) == 0
    path = paper_file(tmp_path / "many.h5")
    with h5py.File(path, "a") as file:
        stamps = file["images"][:]
        del file["images"]
        file.create_dataset("images", data=stamps, chunks=(4, 5, 11, 11), compression="gzip")
    assert cache(reader.open_set(path)) > 1e6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_named(tmp_path, value):
    catalog = make_catalog(6, shards=1)
    path = write_shard(tmp_path / "a.h5", catalog)

    def change(file):
        file["images"][4, 2, 3, 3] = value

    spoil(path, change)
    images = reader.open_set(path)
    assert len(images.read(np.arange(4))) == 4
    with pytest.raises(UserError, match=f"a.h5: the image of galaxy {catalog.objID[4]} .row 4"):
        images.read(np.array([5, 4]))


def test_a_file_that_goes_or_shrinks_while_it_is_used(tmp_path):
    path = write_shard(tmp_path / "a.h5", make_catalog(6, shards=1))
    images = reader.open_set(path)
    write_shard(path, make_catalog(6, shards=1).iloc[:3])
    with pytest.raises(UserError, match="the image of row 5 cannot be read"):
        images.read(np.array([5]))
    path.unlink()
    with pytest.raises(UserError, match="the image of row 1 cannot be read"):
        pickle.loads(pickle.dumps(images)).read(np.array([1]))
