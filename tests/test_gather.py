"""A shard's galaxies -> its frames in a folder; and the checks of what came."""

import bz2

import numpy as np
import pandas as pd
import pytest
import small_survey
from services import Services
from small_sets import make_catalog
from small_sky import Sky, write_frame

from pipeline.cutouts import cut_shard, dask_client
from pipeline.images import gather
from pipeline.images.cutting import Recipe
from pipeline.images.stamp import Stamp
from pipeline.run import UserError
from pipeline.simulation.masks import make_mask_bytes
from pipeline.survey.names import BANDS, FRAME_SHAPE, Field, frame_path, mask_path
from pipeline.survey.network import Manners
from pipeline.survey.transfer import Damaged, Tally

REACH = Stamp().reach
SKY = Sky()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Field 0 whole; of the field below it only r and i; of field 0 masks as well."""
    root = tmp_path_factory.mktemp("sas")
    image = np.zeros(FRAME_SHAPE, dtype=np.float32)
    for step, bands in ((0, BANDS), (-1, "ri")):
        for band in bands:
            write_frame(root, SKY.field(step), band, image, SKY.wcs(band, step))
    for band in BANDS:
        path = root / mask_path(SKY.field(), band)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_mask_bytes(SKY.field(), {}))
    return root


def test_own_and_neighbouring_frames_come(archive, tmp_path):
    galaxies = SKY.galaxies([(1000, 700), (1000, 20)])
    losses = gather.gather(galaxies, REACH, [str(archive)], tmp_path)
    came = {
        (field, band) for field, band in keys() if (tmp_path / frame_path(field, band)).exists()
    }
    assert came == {(SKY.field(), b) for b in BANDS} | {(SKY.field(-1), b) for b in "ri"}
    assert set(losses) == {frame_path(SKY.field(-1), b) for b in "ugz"}
    assert all(loss.absent for loss in losses.values())


def keys():
    return [(SKY.field(step), band) for step in (-1, 0, 1) for band in BANDS]


def test_masks_come_where_asked_for(archive, tmp_path):
    galaxies = SKY.galaxies([(1000, 700)])
    assert gather.gather(galaxies, REACH, [str(archive)], tmp_path / "a", mask=True) == {}
    assert all((tmp_path / "a" / mask_path(SKY.field(), band)).exists() for band in BANDS)
    gather.gather(galaxies, REACH, [str(archive)], tmp_path / "b")
    assert not (tmp_path / "b" / mask_path(SKY.field(), "r")).exists()


def test_a_folder_of_the_real_archive_is_enough(real_data, tmp_path):
    galaxies = pd.read_csv(real_data / "galaxies.csv")
    losses = gather.gather(galaxies, REACH, [str(real_data / "sas" / "dr9")], tmp_path)
    assert all((tmp_path / frame_path(Field(2820, 3, 122), band)).exists() for band in BANDS)
    assert losses and all("-0122." not in p and "-0136." not in p for p in losses)


@pytest.mark.parametrize(
    ("path", "field", "band"),
    [
        (frame_path(Field(94, 1, 11), "u"), Field(94, 1, 11), "u"),
        (frame_path(Field(8162, 6, 4095, 157), "z"), Field(8162, 6, 4095, 157), "z"),
        (mask_path(Field(94, 5, 11), "g"), Field(94, 5, 11), "g"),
    ],
)
def test_a_path_names_field_and_band(path, field, band):
    assert gather.identity(path) == (field, band)


def test_check_takes_what_is_right_and_tells_what_is_not(archive):
    path = frame_path(SKY.field(), "g")
    data = (archive / path).read_bytes()
    gather.check(path, data)
    with pytest.raises(Damaged, match="band g: another"):
        gather.check(frame_path(SKY.field(), "r"), data)
    with pytest.raises(Damaged, match="truncated"):
        gather.check(path, data[:-9])
    path = mask_path(SKY.field(), "g")
    data = (archive / path).read_bytes()
    gather.check(path, data)
    with pytest.raises(Damaged, match="mask"):
        gather.check(path, data[:-9])
    with pytest.raises(Damaged, match="another"):
        gather.check(mask_path(SKY.field(1), "g"), data)


def test_a_header_comes_from_a_frame_or_not_at_all(archive, tmp_path):
    header_of = gather.header_from(archive)
    assert header_of(SKY.field(), "z")["FILTER"].strip() == "z"
    assert header_of(SKY.field(7), "z") is None
    path = tmp_path / frame_path(SKY.field(), "r")
    path.parent.mkdir(parents=True)
    path.write_bytes(bz2.compress(b"no header"))
    assert gather.header_from(tmp_path)(SKY.field(), "r") is None


def test_one_shard_of_a_catalogue_is_read_exactly(tmp_path):
    catalog = make_catalog(40, shards=4)
    catalog.loc[0, "objID"] = 1237653651835781245
    catalog.to_parquet(tmp_path / "catalog.parquet", index=False)
    parts = [gather.read_shard(tmp_path / "catalog.parquet", shard) for shard in range(4)]
    assert sum(len(part) for part in parts) == 40
    ids = pd.concat(parts)["objID"]
    assert ids.dtype == "Int64" and ids.tolist() == catalog["objID"].tolist()


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (lambda p: p.write_bytes(b"no parquet" * 99), "cannot be read"),
        (lambda p: make_catalog(4).drop(columns="shard").to_parquet(p), "cannot be read"),
        (lambda p: make_catalog(4, shards=2).to_parquet(p), "no galaxy in shard 7"),
    ],
)
def test_a_catalogue_that_cannot_serve_is_one_line(tmp_path, write, line):
    path = tmp_path / "catalog.parquet"
    write(path)
    with pytest.raises(UserError, match=line) as caught:
        gather.read_shard(path, 7)
    assert "\n" not in str(caught.value) and "catalog.parquet" in str(caught.value)


def test_parts_of_real_frames_give_the_stamps_of_the_whole(real_data, tmp_path):
    """Of a galaxy's five frames less than half of the bytes come, and no whole file."""
    galaxies = pd.read_csv(real_data / "galaxies.csv").query("run == 2820").iloc[3:4]
    galaxies = galaxies[["objID", "ra", "dec", "run", "camcol", "field"]].reset_index(drop=True)
    root, manners, tally = real_data / "sas" / "dr9", Manners(requests_per_minute=None), Tally()
    small_survey.make(tmp_path / "survey.duckdb")
    with Services(
        database=tmp_path / "survey.duckdb", archive=root, work=tmp_path / "work"
    ) as services:
        losses = gather.gather(
            galaxies, REACH, [services.sas], tmp_path / "came", parts=Stamp(), manners=manners,
            tally=tally,
        )  # fmt: skip
        sent = sum(request.sent for request in services.log if "/frame-" in request.path)
    came = [
        tmp_path / "came" / f"{frame_path(Field(2820, 3, 122), band)}.excerpt" for band in BANDS
    ]
    whole = [root / frame_path(Field(2820, 3, 122), band) for band in BANDS]
    assert all(path.is_file() for path in came) and not list((tmp_path / "came").rglob("*.bz2"))
    assert sent < 0.5 * sum(path.stat().st_size for path in whole) and tally.facts()["partial"] == 5
    with dask_client(1) as client:
        for name, folder, told in (("parts", tmp_path / "came", losses), ("whole", root, None)):
            cut_shard(galaxies, folder, tmp_path / f"{name}.h5", Recipe(), client, losses=told)
    assert (tmp_path / "parts.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
