"""Galaxies and frames -> a shard: what is in it, what a bad frame costs, the same bytes always."""

import errno
import os
import random
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import real_sky
from small_archive import SKY, SMALL, make_archive, make_galaxies, same_bytes
from small_sets import problems
from small_sky import NOISE, Sky, add_gaussian, add_noise, decompressed, write_frame

from pipeline import cutouts
from pipeline.images import overlap, shard
from pipeline.images.cutting import Recipe
from pipeline.images.geometry import corners, window
from pipeline.images.stamp import Stamp
from pipeline.run import UserError
from pipeline.simulation.frame import round_floats
from pipeline.survey import frame
from pipeline.survey.archive import Loss
from pipeline.survey.names import BANDS, FRAME_SHAPE, frame_path
from pipeline.survey.transfer import ABSENT


class Now:
    """Stands for a Dask client: runs what waits in a shuffled order when a result is wanted."""

    def __init__(self, seed=None):
        self.waiting, self.order, self.random = [], [], random.Random(seed)
        self.shuffle = seed is not None

    def nthreads(self):
        return {"here": 4}

    def submit(self, function, *args, pure=None):
        future = Future(self, partial(function, *args))
        self.waiting.append(future)
        return future

    def run_all(self):
        if self.shuffle:
            self.random.shuffle(self.waiting)
        while self.waiting:
            future = self.waiting.pop(0)
            self.order.append(future.work.args[-2].name)
            future.value = future.work()


class Future:
    def __init__(self, client, work):
        self.client, self.work, self.value = client, work, None

    def result(self):
        self.client.run_all()
        return self.value


@pytest.fixture(autouse=True, scope="module")
def frames_are_decompressed_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "decompress", decompressed)
        yield


@pytest.fixture(scope="module")
def galaxies() -> pd.DataFrame:
    return make_galaxies()


@pytest.fixture(scope="module")
def archive(tmp_path_factory, galaxies) -> Path:
    return make_archive(tmp_path_factory.mktemp("sas"), galaxies)


@pytest.fixture
def spoilt(archive, tmp_path) -> Path:
    """A copy of the archive whose files may be replaced."""
    root = tmp_path / "sas"
    shutil.copytree(archive, root, copy_function=os.symlink)
    return root


def replace(root: Path, step: int, band: str, data: bytes | None) -> Path:
    path = root / frame_path(SKY.field(step), band)
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    return path


def cut(galaxies, root, output, recipe=SMALL, client=None, **options):
    made = cutouts.cut_shard(galaxies, root, output, recipe, client or Now(), **options)
    with shard.open_shard(output) as file:
        assert problems(file) == []
        content = {name: file[name][:] for name in file if name != "failed"}
        content |= {f"failed/{name}": file["failed"][name][:] for name in file["failed"]}
    assert made == (len(content["ObjID"]), len(content["failed/ObjID"]))
    return content


@pytest.fixture(scope="module")
def whole(galaxies, archive, tmp_path_factory):
    """The shard of all galaxies, nothing being wrong."""
    return cut(galaxies, archive, tmp_path_factory.mktemp("whole") / "a.h5")


def test_every_galaxy_is_a_stamp_in_order(galaxies, archive, tmp_path):
    made = cut(galaxies, archive, tmp_path / "a.h5")
    assert made["ObjID"].tolist() == galaxies.objID.tolist()
    assert made["ObjID"][0] == 1237653651835781245 and made["failed/ObjID"].size == 0
    assert made["images"].shape == (6, 5, 31, 31) and made["images"].dtype == np.float32
    assert np.array_equal(made["ra"], galaxies.ra) and (made["split"] == b"unlabelled").all()
    peaks = made["images"][:, :, 15, 15]
    assert (peaks > 2).all() and (made["images"][:, :, 0].max() < 0.3)
    assert os.listdir(tmp_path) == ["a.h5"]


def test_coverage_is_counted_band_by_band(galaxies, archive, tmp_path):
    """The last field has no field above it: a galaxy there leaves r, not the bands shifted up."""
    made = cut(galaxies, archive, tmp_path / "a.h5", Recipe())
    assert np.all(made["coverage"][:5] == 1)
    last = dict(zip(BANDS, made["coverage"][5], strict=True))
    assert 0.5 < last["g"] < last["z"] < last["i"] < last["r"] < 1  # shifts 10, 7, 3, 0 rows
    empty = made["images"][5] == 0
    assert np.allclose(empty.mean(axis=(1, 2)), 1 - made["coverage"][5], atol=0.01)


def test_a_galaxy_leaves_one_band_and_not_another(archive, tmp_path):
    made = cut(SKY.galaxies([(900, 50)]), archive, tmp_path / "a.h5", Recipe())
    whole = dict(zip(BANDS, made["coverage"][0] == 1, strict=True))
    assert whole == {"u": True, "g": True, "r": False, "i": False, "z": True}


STRIP_ROWS = 1361 + FRAME_SHAPE[0]


@pytest.fixture(scope="module")
def strip(tmp_path_factory):
    """One strip cut into two overlapping frames, and the galaxies along their common rows."""
    xy = np.array([(300.0 + 400 * k, 1365.3 + 39 * k) for k in range(4)])
    whole = np.zeros((STRIP_ROWS, FRAME_SHAPE[1]))
    add_noise(whole, xy)
    for x, y in xy:
        add_gaussian(whole, x, y, 30.0)
    whole = round_floats(whole.astype(np.float32))
    root = tmp_path_factory.mktemp("strip")
    for step in (0, 1):
        rows = slice(1361 * step, 1361 * step + FRAME_SHAPE[0])
        for band in BANDS:
            write_frame(root, SKY.field(step), band, whole[rows], SKY.wcs("r", step))
    return root, whole, xy


def uncut(whole, galaxies):
    """Stamps from the strip itself."""
    stamps = []
    for ra, dec in galaxies[["ra", "dec"]].to_numpy():
        points = corners(Stamp(), ra, dec, SKY.wcs("r"))
        part = window(points, whole.shape)
        stamps.append(overlap.cut(whole[part.rows, part.columns], points - part.origin).value)
    return np.array(stamps)


@pytest.mark.parametrize("step", [0, 1])
def test_a_stamp_over_a_fields_edge_is_the_uncut_one(strip, tmp_path, step):
    root, whole, xy = strip
    galaxies = SKY.galaxies(xy - [0, 1361 * step], step)
    made = cut(galaxies, root, tmp_path / "a.h5", Recipe())
    assert np.all(made["coverage"] == 1)
    for band in range(5):
        difference = made["images"][:, band] - uncut(whole, galaxies)
        bound = 1e-6 * NOISE + 1e-7 * np.abs(made["images"][:, band])  # float32 keeps 6e-8
        assert np.abs(difference / bound).max() < 1


@pytest.mark.parametrize("step", [0, 1])
def test_own_pixels_wherever_the_own_frame_has_them(strip, tmp_path, step):
    """The neighbour is raised by 100: what comes from it is seen, and nothing is averaged."""
    root, whole, xy = strip
    other = 1 - step
    raised = tmp_path / "sas"
    shutil.copytree(root, raised, copy_function=os.symlink)
    rows = slice(1361 * other, 1361 * other + FRAME_SHAPE[0])
    path = raised / frame_path(SKY.field(other), "r")
    path.unlink()
    write_frame(raised, SKY.field(other), "r", whole[rows] + 100, SKY.wcs("r", other))
    galaxies = SKY.galaxies(xy - [0, 1361 * step], step)
    made = cut(galaxies, raised, tmp_path / "a.h5", Recipe())["images"][:, 2]
    difference = np.rint((made - uncut(whole, galaxies)) / 100, dtype=np.float64)
    assert set(np.unique(difference)) == {0.0, 1.0}
    # at 90 degrees the border is a line along the stamp's columns; pixels on it are the other's
    pixel = Stamp().scale * 3600 / 0.396
    for stamp, (_, y) in zip(difference, xy, strict=True):
        inside = 1488.5 - y if step == 0 else y - 1360.5
        beyond = np.clip(53.5 - inside / pixel, 0, 107)
        assert -0.1 < stamp.mean() * 107 - beyond < 1.1


def test_a_bad_neighbour_costs_only_who_needs_it(galaxies, archive, spoilt, tmp_path):
    replace(spoilt, 1, "r", b"BZh9 and no more")
    made = cut(galaxies, spoilt, tmp_path / "a.h5", Recipe())
    lost = galaxies.objID[[2, 3, 4, 5]].tolist()  # 2 reaches into the field above
    assert made["failed/ObjID"].tolist() == lost
    assert all(
        r.startswith(b"frame-r-001000-1-0101.fits.bz2: the bz") for r in made["failed/reason"]
    )
    # 20 px of stamp: the same galaxy does not reach the edge and needs no neighbour
    made = cut(galaxies, spoilt, tmp_path / "b.h5", SMALL)
    assert made["failed/ObjID"].tolist() == galaxies.objID[[3, 4, 5]].tolist()
    # 68 px from the edge a corner might, but the sides are parallel to it here
    near = SKY.galaxies([(900, 1488 - 68)])
    assert cut(near, spoilt, tmp_path / "c.h5", Recipe())["failed/ObjID"].size == 0


def other_frame(archive):
    return (archive / frame_path(SKY.field(0), "r")).read_bytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda a: None, b"not in the archive"),
        (lambda a: b"", b"empty"),
        (lambda a: b"<html>not bzip2</html>", b"not bzip2"),
        (lambda a: other_frame(a)[:5000], b"truncated"),
        (lambda a: other_frame(a), b"field 100: another frame"),
    ],
)
def test_one_bad_frame_costs_only_its_galaxies(
    galaxies, archive, spoilt, whole, tmp_path, data, reason
):
    replace(spoilt, 1, "r", data(archive))
    made = cut(galaxies, spoilt, tmp_path / "a.h5")
    assert made["failed/ObjID"].tolist() == galaxies.objID[3:6].tolist()
    assert all(
        reason in text and b"frame-r-001000-1-0101" in text for text in made["failed/reason"]
    )
    assert np.array_equal(made["images"], whole["images"][:3])


BEYOND = {frame_path(SKY.field(2), band): Loss(True, ABSENT) for band in BANDS}
"""The field after the last: what fetching would tell of it."""


def test_why_a_frame_did_not_come_is_kept(galaxies, spoilt, tmp_path):
    name = frame_path(SKY.field(1), "r")
    replace(spoilt, 1, "r", None)
    losses = BEYOND | {name: Loss(False, "the archive answered 503")}
    made = cut(galaxies, spoilt, tmp_path / "a.h5", losses=losses)
    assert made["failed/reason"][0].endswith(b"answered 503")
    assert len(made["ObjID"]) == 3


def test_a_patch_of_nan_is_counted_as_not_covered(galaxies, spoilt, tmp_path):
    image = SKY.image(galaxies, "i", 0)
    x, y = SKY.wcs("i").wcs_world2pix(galaxies[["ra", "dec"]].to_numpy(), 0)[0].astype(int)
    image[y - 20 : y + 20, x - 20 : x] = np.nan
    (spoilt / frame_path(SKY.field(), "i")).unlink()
    write_frame(spoilt, SKY.field(), "i", image, SKY.wcs("i"))
    made = cut(galaxies, spoilt, tmp_path / "a.h5")
    assert len(made["ObjID"]) == 6 and np.isfinite(made["images"]).all()
    assert 0.4 < made["coverage"][0, 3] < 0.6 and np.all(made["coverage"][0, [0, 1, 2, 4]] == 1)
    image[:] = np.nan
    image[0, 0] = 1
    write_frame(spoilt, SKY.field(), "i", image, SKY.wcs("i"))
    made = cut(galaxies, spoilt, tmp_path / "b.h5")
    lost = galaxies.objID[:2].tolist()  # the third is on the field above as well
    assert made["failed/ObjID"].tolist() == lost and np.isnan(made["sky_noise"][0, 3])
    assert b"off the frame, or NaN there, in i" in made["failed/reason"][0]


def test_a_galaxy_on_no_listed_frame_is_a_failure(galaxies, archive, tmp_path):
    table = galaxies.copy()
    table.loc[1, ["ra", "dec"]] = 330.0, -60.0  # the other half of the sky
    table.loc[3, "dec"] += 1.0
    table.loc[5, ["run", "field"]] = 2000, 500
    made = cut(table, archive, tmp_path / "a.h5")
    assert made["failed/ObjID"].tolist() == table.objID[[1, 3, 5]].tolist()
    assert all(b"off the frame" in reason for reason in made["failed/reason"][:2])
    assert b"not in the archive" in made["failed/reason"][2]
    assert len(made["ObjID"]) == 3


def test_a_shard_in_which_nothing_can_be_made(galaxies, tmp_path):
    made = cut(galaxies, tmp_path / "none", tmp_path / "a.h5")
    assert made["images"].shape == (0, 5, 31, 31) and len(made["failed/ObjID"]) == 6


@pytest.mark.parametrize("pointing", [(0.0, 0.3, 90.0), (359.95, -10.0, 56.0), (201.0, 85.0, 33.0)])
def test_across_ra_0_and_near_the_pole(tmp_path, pointing):
    sky = Sky(*pointing)
    table = sky.galaxies([(200, 300), (1024, 744), (1900, 1300)])
    sky.write(tmp_path / "sas", table, flux=1000.0)
    made = cut(table, tmp_path / "sas", tmp_path / "a.h5")
    assert len(made["ObjID"]) == 3 and np.all(made["coverage"] == 1)
    light = made["images"].astype(float).sum(axis=1)
    y, x = np.mgrid[1:32, 1:32]
    for stamp in light:
        core = np.where(np.hypot(x - 16, y - 16) < 7, stamp, 0)
        centre = [(core * axis).sum() / core.sum() for axis in (x, y)]
        assert np.abs(np.array(centre) - 16).max() < 0.01


@pytest.mark.parametrize("table", ["unsorted", "without ids"])
def test_a_users_table_is_taken_as_it_is(galaxies, archive, whole, tmp_path, table):
    if table == "unsorted":
        order = np.random.default_rng(1).permutation(6)
        made = cut(galaxies.iloc[order], archive, tmp_path / "a.h5")
        assert made["ObjID"].tolist() == galaxies.objID.iloc[order].tolist()
        assert np.array_equal(made["images"], whole["images"][order])
        return
    path = tmp_path / "mine.csv"
    galaxies.drop(columns=["objID", "rerun"]).to_csv(path, index=False)
    read = cutouts.read_galaxies(path)
    made = cut(read, archive, tmp_path / "a.h5")
    assert (made["ObjID"] < 0).all() and len(set(made["ObjID"])) == 6
    assert (made["rerun"] == 301).all()


def test_the_order_of_completion_does_not_matter(galaxies, spoilt, tmp_path):
    replace(spoilt, 1, "r", b"")
    recipe = Recipe(SMALL.stamp, variance=True)
    table = galaxies.iloc[[5, 0, 3, 1, 2, 4]]
    clients = [Now(seed) for seed in (None, 1, 2)]
    files = [tmp_path / f"{number}.h5" for number in range(3)]
    for file, client in zip(files, clients, strict=True):
        cut(table, spoilt, file, recipe, client)
    assert len({tuple(client.order) for client in clients}) == 3
    assert same_bytes(*files)


def test_one_and_two_workers_give_the_same_bytes(galaxies, archive, tmp_path, monkeypatch):
    """Frames differ in what they take: with two workers later ones are done before earlier ones."""
    slow = {(archive / frame_path(SKY.field(), band)).read_bytes() for band in "ug"}

    def decompress(data):
        time.sleep(0.3 if data in slow else 0)
        return decompressed(data)

    monkeypatch.setattr(frame, "decompress", decompress)
    files = [tmp_path / "0.h5", tmp_path / "1.h5"]
    for workers, file in enumerate(files, 1):
        with cutouts.dask_client(workers) as client:
            assert sum(client.nthreads().values()) == workers
            cut(galaxies, archive, file, SMALL, client)
        time.sleep(1.1 if file == files[0] else 0)  # a date in the file would show
    assert same_bytes(*files)


def test_scratch_goes_as_galaxies_are_done(galaxies, archive, tmp_path):
    """The parent keeps no more than what its next galaxies wait for."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    most = 0
    for _ in cutouts.make_stamps(galaxies, archive, SMALL, Now(), scratch):
        most = max(most, len(os.listdir(scratch)))
    assert os.listdir(scratch) == [] and most <= 15


def test_float16_stays_within_its_11_bits(galaxies, archive, whole, tmp_path):
    half, full = cut(galaxies, archive, tmp_path / "a.h5", dtype="float16"), whole
    assert half["images"].dtype == np.float16
    error = np.abs(half["images"].astype(float) - full["images"])
    assert (error <= np.abs(full["images"]) * 2.0**-11 + 2.0**-25).all()
    assert half["coverage"].dtype == np.float32


def test_frames_decoded_whole_or_in_blocks_give_the_same_bytes(real_data, tmp_path):
    """Two real galaxies, whose stamps lie on less than half of their frames' blocks."""
    table = real_sky.galaxies(real_data).query("run == 2820").head(2)
    tally = Counter()
    for decode, counts in (("whole", None), ("blocks", tally)):
        recipe, output = Recipe(decode=decode, variance=True), tmp_path / f"{decode}.h5"
        cut(table, real_sky.root(real_data), output, recipe, tally=counts)
    assert (tmp_path / "whole.h5").read_bytes() == (tmp_path / "blocks.h5").read_bytes()
    assert tally["frames"] == 5 and tally["whole"] == 0 and 15 <= tally["decoded"] < 40


def test_float16_costs_little_of_the_noise_on_real_galaxies(real_data, tmp_path):
    table = real_sky.galaxies(real_data).query("run == 2820")
    made = cut(table, real_sky.root(real_data), tmp_path / "a.h5", Recipe())
    images, noise = made["images"], made["sky_noise"][:, :, None, None]
    error = (images.astype(np.float16).astype(np.float64) - images) / noise
    assert len(images) > 15 and 0 < np.sqrt(np.mean(error**2)) < 5e-3


def test_values_that_float16_cannot_hold_are_refused(galaxies, archive, tmp_path):
    root = tmp_path / "sas"
    SKY.write(root, galaxies.iloc[:1], flux=5e6)
    with pytest.raises(UserError, match="float16"):
        cut(galaxies.iloc[:1], root, tmp_path / "a.h5", dtype="float16")
    assert os.listdir(tmp_path) == ["sas"]


def test_frames_that_were_fetched_and_are_gone_make_no_failures(galaxies, spoilt, tmp_path):
    """Another job of the shard let them go; failures would take the right shard's place."""
    root = spoilt
    replace(root, 1, "g", None)
    output = tmp_path / "a.h5"
    with pytest.raises(UserError, match=r"frame-g-.* was fetched and is gone.*Run again"):
        cutouts.cut_shard(galaxies, root, output, SMALL, Now(), losses=BEYOND)
    assert not output.exists()
    known = BEYOND | {frame_path(SKY.field(1), "g"): Loss(False, "is truncated")}
    assert cutouts.cut_shard(galaxies, root, output, SMALL, Now(), losses=known)[1] > 0


def test_a_disk_that_does_not_answer_makes_no_failures(galaxies, archive, tmp_path, monkeypatch):
    def stale(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(OSError, match="Stale file handle"):  # run.start has the words for it
        cutouts.cut_shard(galaxies, archive, tmp_path / "a.h5", SMALL, Now())
    assert not (tmp_path / "a.h5").exists()
