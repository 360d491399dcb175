import h5py
import numpy as np
import pandas as pd
import pytest
from small_sets import STAMP, make_catalog, problems, write_shard

from pipeline.images import shard
from pipeline.run import UserError


@pytest.fixture
def galaxies():
    return make_catalog(20, shards=1)


def test_the_same_stamps_are_the_same_bytes(tmp_path, galaxies):
    first = write_shard(tmp_path / "a.h5", galaxies, failed=(3,))
    second = write_shard(tmp_path / "b.h5", galaxies, failed=(3,))
    assert first.read_bytes() == second.read_bytes()


def test_what_is_written_is_read(tmp_path, galaxies):
    path = write_shard(tmp_path / "a.h5", galaxies, failed=(2, 5), attrs={"engine": "overlap"})
    kept = galaxies.drop(index=[2, 5])
    with shard.open_shard(path) as file:
        assert problems(file) == []
        assert file.attrs["engine"] == "overlap"
        assert file["images"].shape == (18, 5, STAMP.size, STAMP.size)
        assert file["images"].chunks == (1, 5, STAMP.size, STAMP.size)
        np.testing.assert_array_equal(file["ObjID"][:], kept["objID"])
        np.testing.assert_array_equal(
            file["specz_redshift"][:], kept["z"].to_numpy(np.float32, na_value=np.nan)
        )
        np.testing.assert_array_equal(file["split"][:].astype(str), kept["split"])
        np.testing.assert_allclose(file["e_bv"][:, 2], kept["extinction_r"], rtol=1e-6)


def test_failures_keep_their_ids_and_reasons(tmp_path, galaxies):
    path = write_shard(tmp_path / "a.h5", galaxies, failed=(3, 4))
    with shard.open_shard(path) as file:
        np.testing.assert_array_equal(file["failed/ObjID"][:], galaxies["objID"].iloc[[3, 4]])
        np.testing.assert_array_equal(file["failed/ra"][:], galaxies["ra"].iloc[[3, 4]])
        assert file["failed/reason"][:].tolist() == [b"frame is truncated", b"frame is missing"]


def test_an_id_of_19_digits_stays_what_it_is(tmp_path):
    galaxies = make_catalog(3, shards=1)
    galaxies["objID"] = np.array([1237653651835781245, 1237653651835781246, -5], dtype=np.int64)
    galaxies["specObjID"] = pd.array([pd.NA, 2**62 + 1, pd.NA], "Int64")
    with shard.open_shard(write_shard(tmp_path / "a.h5", galaxies)) as file:
        assert file["ObjID"][:].tolist() == [1237653651835781245, 1237653651835781246, -5]
        assert file["specObjID"][:].tolist() == [0, 2**62 + 1, 0]


def test_a_shard_of_failures_only_and_one_of_none(tmp_path, galaxies):
    for name, failed in (("all", range(20)), ("none", ())):
        with shard.open_shard(write_shard(tmp_path / f"{name}.h5", galaxies, failed)) as file:
            assert problems(file) == []
            assert len(file["failed/ObjID"]) == len(failed)


def test_a_catalogue_of_positions_alone_is_enough(tmp_path):
    galaxies = pd.DataFrame({"objID": [-7], "ra": [0.1], "dec": [85.0]})
    with shard.open_shard(write_shard(tmp_path / "a.h5", galaxies)) as file:
        assert problems(file) == []
        assert file["split"][0] == b"unlabelled"
        assert np.isnan(file["specz_redshift"][0]) and np.isnan(file["e_bv"][:]).all()


def test_float16_holds_what_fits_and_refuses_the_rest(tmp_path, galaxies):
    image = np.full((5, STAMP.size, STAMP.size), 0.1234567, dtype=np.float32)
    with (
        pytest.raises(UserError, match=f"galaxy {galaxies.objID[1]}: 70000 .* float32"),
        shard.ShardWriter(tmp_path / "a.h5", galaxies, STAMP, dtype="float16") as writer,
    ):
        writer.append(0, {"images": image}, np.ones(5), np.ones(5))
        assert writer.file["images"][0, 0, 0, 0] == np.float16(0.1234567)
        image[2, 3, 4] = -70_000
        writer.append(1, {"images": image}, np.ones(5), np.ones(5))


def test_a_disk_that_fills_is_an_error_and_no_crash(tmp_path, galaxies, monkeypatch):
    """/dev/full takes nothing; the file's name is that of the shard."""
    image = np.ones((5, STAMP.size, STAMP.size), dtype=np.float32)
    with pytest.raises(OSError, match="No space left") as full:  # noqa: SIM117
        with shard.ShardWriter("/dev/full", galaxies, STAMP) as writer:
            writer.append(0, {"images": image}, np.ones(5), np.ones(5))
    assert full.value.filename == "/dev/full"


def spoil(path, change):
    with h5py.File(path, "a") as file:
        change(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.__delitem__("coverage"), "data set coverage is missing"),
        (lambda file: file.__delitem__("failed/reason"), "data set failed/reason is missing"),
        (lambda file: file.attrs.__delitem__("fov_deg"), "attribute fov_deg is missing"),
        (lambda file: file["images"].resize(3, axis=0), "ObjID has 20 rows, not 3"),
        (lambda file: file["ObjID"].write_direct(np.full(20, 7)), "ObjID is not unique"),
        (lambda file: file["coverage"].write_direct(np.full((20, 5), 1.2, "f4")), "coverage lies"),
        (lambda file: file["split"].write_direct(np.full(20, b"tset", "S10")), "'tset' is unknown"),
        (lambda file: file["ra"].write_direct(np.full(20, np.nan)), "ra or dec is not finite"),
        (
            lambda file: file["images"].write_direct(
                np.full((1, *file["images"].shape[1:]), np.nan, "f4"), dest_sel=np.s_[4:5]
            ),
            "1 images hold values that are not finite",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, galaxies, change, words):
    path = write_shard(tmp_path / "a.h5", galaxies)
    spoil(path, change)
    with shard.open_shard(path) as file:
        assert any(words in problem for problem in problems(file))


def test_ids_that_went_through_a_float_are_refused(tmp_path, galaxies):
    path = write_shard(tmp_path / "a.h5", galaxies)
    ids = galaxies["objID"].to_numpy(dtype=np.float64)
    spoil(path, lambda file: (file.__delitem__("ObjID"), file.__setitem__("ObjID", ids)))
    with shard.open_shard(path) as file:
        assert problems(file) == ["ObjID is float64, not int64"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("format", "else", "not a shard of ugriz"), ("format_version", 99, "shard format 99")],
)
def test_another_format_or_version_is_refused(tmp_path, galaxies, name, value, words):
    path = write_shard(tmp_path / "a.h5", galaxies)
    spoil(path, lambda file: file.attrs.__setitem__(name, value))
    with pytest.raises(UserError, match=words), shard.open_shard(path):
        pass


def test_truncated_missing_and_foreign_files_are_refused(tmp_path, galaxies):
    path = write_shard(tmp_path / "a.h5", galaxies)
    path.write_bytes(path.read_bytes()[:-1000])
    (tmp_path / "text.h5").write_text("no shard")
    for name, words in (("a", "truncated"), ("text", "cannot be read"), ("gone", "no such shard")):
        with (
            pytest.raises(UserError, match=rf"{name}\.h5: .*{words}"),
            shard.open_shard(tmp_path / f"{name}.h5"),
        ):
            pass


def test_blocks_cover_every_row_once(tmp_path, galaxies):
    with shard.open_shard(write_shard(tmp_path / "a.h5", galaxies)) as file:
        rows = [np.arange(20)[part] for part, _ in shard.blocks(file, 7)]
        assert [len(part) for part in rows] == [7, 7, 6]
        images = np.concatenate([block for _, block in shard.blocks(file, 7)])
        np.testing.assert_array_equal(images, file["images"][:])
