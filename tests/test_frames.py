"""The stage that brings a shard's frames: what it leaves, and how it ends when it cannot."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from small_archive import served
from small_sky import Sky, write_frame

from pipeline import frames, run
from pipeline.survey.archive import read_record
from pipeline.survey.names import BANDS, FRAME_SHAPE, frame_path
from pipeline.survey.transfer import Loss

SKY = Sky()
QUICK = ("--longest-wait", "0.01", "--requests-per-minute", "100000")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Five good frames; the field above has an empty g, a truncated r, and no i."""
    root = tmp_path_factory.mktemp("sas")
    image = np.zeros(FRAME_SHAPE, dtype=np.float32)
    for step in (0, 1):
        for band in BANDS:
            write_frame(root, SKY.field(step), band, image, SKY.wcs(band, step))
    (root / frame_path(SKY.field(1), "g")).write_bytes(b"")
    path = root / frame_path(SKY.field(1), "r")
    path.write_bytes(path.read_bytes()[:1000])
    (root / frame_path(SKY.field(1), "i")).unlink()
    return root


@pytest.fixture
def catalog(tmp_path) -> str:
    table = SKY.galaxies([(1000, 700), (1000, 1480)])
    table["shard"] = 3
    table.to_parquet(tmp_path / "catalog.parquet", index=False)
    return str(tmp_path / "catalog.parquet")


def bring(catalog, root, output, *more):
    argv = ["fetch", "--galaxies", catalog, "--shard", "3", "--root", str(root), "--output", str(output)]
    frames.main([*argv, *more])
    return {path: loss._asdict() for path, loss in read_record(Path(output))[1].items()}


def test_frames_of_a_folder_are_linked(catalog, archive, tmp_path):
    losses = bring(catalog, archive, tmp_path / "frames")
    assert list(losses) == [frame_path(SKY.field(1), "i")]  # the rest is checked when it is read
    assert (tmp_path / "frames" / frame_path(SKY.field(), "u")).is_symlink()
    assert sorted(os.listdir(tmp_path)) == [
        "catalog.parquet", "frames", "frames.provenance.json",
    ]  # fmt: skip


def test_frames_over_http_are_checked_and_their_losses_told(catalog, archive, tmp_path):
    with served(archive) as url:
        losses = bring(catalog, url, tmp_path / "frames", *QUICK, "--cache", str(tmp_path / "cache"))
    names = {Path(path).name[6]: Loss(**loss) for path, loss in losses.items()}
    assert set(names) == {"g", "r", "i"}
    assert names["i"].absent and not names["g"].absent and not names["r"].absent
    assert "empty" in names["g"].reason and "truncated" in names["r"].reason
    good = tmp_path / "frames" / frame_path(SKY.field(), "u")
    assert good.read_bytes() == (archive / frame_path(SKY.field(), "u")).read_bytes()
    assert os.path.samefile(good, tmp_path / "cache" / frame_path(SKY.field(), "u"))
    assert read_record(tmp_path / "frames")[0] == [url]


def test_a_second_time_gives_the_same_and_replaces_the_first(catalog, archive, tmp_path):
    first = bring(catalog, archive, tmp_path / "frames")
    (tmp_path / "frames" / "stray").write_text("of a former run")
    assert bring(catalog, archive, tmp_path / "frames") == first
    assert not (tmp_path / "frames" / "stray").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--shard", "4"], "no galaxy in shard 4"),
        (["--galaxies", "none.parquet"], "none.parquet: no such file"),
        (["--root", "/no/such/folder"], "/no/such/folder: no such folder"),
        (["--root", "http://127.0.0.1:9"], "http://127.0.0.1:9: cannot be reached"),
        (["--fov", "-1"], "fov: -1.0"),
        (["--size", "0"], "size: 0"),
        (["--streams", "0"], "--streams 0"),
    ],
)
def test_bad_input_ends_in_one_line(catalog, archive, tmp_path, monkeypatch, change, line):
    monkeypatch.chdir(tmp_path)
    argv = ["fetch", "--galaxies", catalog, "--shard", "3", "--root", str(archive), "--output", "frames"]
    monkeypatch.setattr(sys, "argv", ["frames", *argv, *change])
    with pytest.raises(SystemExit) as caught:
        run.start(frames.main)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "\n" not in message and line in message
    assert not (tmp_path / "frames").exists() and not list(tmp_path.glob(".*"))
