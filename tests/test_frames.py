"""The stage that brings a shard's frames: what it leaves, and how it ends when it cannot."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_archive import served
from small_sky import Sky, write_frame
from test_transfer import Archive, page, refuse

from pipeline import frames, run
from pipeline.survey.archive import read_record
from pipeline.survey.names import BANDS, FRAME_SHAPE, frame_path, mask_path
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


def arguments(catalog, root, output) -> list[str]:
    return ["fetch", "--galaxies", catalog, "--shard", "3", "--root", str(root),
            "--output", str(output)]  # fmt: skip


def bring(catalog, root, output, *more):
    frames.main([*arguments(catalog, root, output), *more])
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
        losses = bring(
            catalog, url, tmp_path / "frames", *QUICK, "--cache", str(tmp_path / "cache")
        )
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
    argv = arguments(catalog, archive, "frames")
    monkeypatch.setattr(sys, "argv", ["frames", *argv, *change])
    with pytest.raises(SystemExit) as caught:
        run.start(frames.main)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "\n" not in message and line in message
    assert not (tmp_path / "frames").exists() and not list(tmp_path.glob(".*"))


# --- as commands, in processes of their own ---


def command(*words, **environment) -> subprocess.CompletedProcess:
    """Run `python -m pipeline.frames`; however it ends, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.frames", *map(str, words)], capture_output=True,
        text=True, env=os.environ | environment, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def error_of(done: subprocess.CompletedProcess) -> str:
    """The one line with which a command ended."""
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("error: ") and sum("error: " in line for line in lines) == 1
    return lines[-1]


@pytest.fixture
def sas(archive):
    """A server of the archive's frames; it can be told to misbehave."""
    server = Archive([])
    for file in archive.rglob("*.bz2"):
        path = str(file.relative_to(archive))
        server.files[path], server.tags[path] = file.read_bytes(), f'"{path}"'
    yield server
    server.close()


GOOD = [frame_path(SKY.field(), band) for band in BANDS]


@pytest.fixture
def cache(archive, tmp_path) -> Path:
    for path in GOOD:
        (tmp_path / "cache" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archive / path, tmp_path / "cache" / path)
    return tmp_path / "cache"


def spoil(cache):
    """Spoil the first file's first CRC, cut the second, put the fourth in place of the third."""
    flipped, cut, wrong, other, _ = (cache / path for path in GOOD)
    data = bytearray(flipped.read_bytes())
    data[12] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:2000])
    wrong.write_bytes(other.read_bytes())


def test_verify_finds_what_is_wrong_and_repair_mends_it(cache, sas, archive, tmp_path):
    spoil(cache)
    foreign = cache / "boss" / "my-own.fits.bz2"
    foreign.write_bytes(b"mine")
    gone, found = mask_path(SKY.field(), "r"), frame_path(SKY.field(1), "u")
    for path in (gone, found):
        (cache / path).parent.mkdir(parents=True, exist_ok=True)
        note = f'{{"asked": {time.time()}, "roots": ["{sas.url}"]}}'
        (cache / f"{path}.absent").write_text(note)
    verified = command("verify", "--cache", cache, "--workers", "2")
    assert f"{cache}: 4 files are not right" in error_of(verified) and "repair" in verified.stderr
    told = {
        name: next(line for line in verified.stderr.splitlines() if f"/{Path(name).name}: " in line)
        for name in (*GOOD[:3], str(foreign))
    }
    for name, words in zip(told, ("CRC", "truncated", "says band i", "no frame's"), strict=True):
        assert words in told[name]
    assert "verify: 6 files in " in verified.stderr
    words = ("--root", sas.url, "--cache", cache, *QUICK)
    mended = command("repair", *words)
    assert mended.returncode == 0, mended.stderr
    assert "5 files asked for again, 4 are there now" in mended.stderr
    assert f"{gone}: not in the archive" in mended.stderr and "frames: 5 files in" in mended.stderr
    assert sorted({each.path for each in sas.asked}) == sorted([*GOOD[:3], gone, found])
    for path in (*GOOD, found):
        assert (cache / path).read_bytes() == (archive / path).read_bytes()
    assert foreign.read_bytes() == b"mine" and not list(cache.glob(".repair*"))
    foreign.unlink()
    assert command("verify", "--cache", cache).returncode == 0


def test_a_repair_that_cannot_go_on_ends_in_one_line_and_goes_on(cache, sas, archive):
    spoil(cache)
    sas.always = refuse(403)
    words = ("repair", "--root", sas.url, "--cache", cache, *QUICK)
    assert "answered 403" in error_of(command(*words))
    sas.always = None
    assert command(*words).returncode == 0
    whole = [path for path in GOOD if (cache / path).exists()]
    assert {GOOD[3], GOOD[4]} <= set(whole)
    assert all((cache / path).read_bytes() == (archive / path).read_bytes() for path in whole)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["verify", "--cache", "none"], "none: no such folder"),
        (["verify", "--cache", ".", "--workers", "0"], "--workers 0: give at least one"),
        (["repair", "--cache", "none", "--root", "http://a"], "none: no such folder"),
        (["repair", "--cache", ".", "--root", "."], "give the http(s):// root"),
        (["repair", "--cache", ".", "--root", "ftp://a"], "give a folder, file:// or http(s)://"),
        (["repair", "--cache", ".", "--root", "http://a", "--streams", "0"], "--streams 0"),
        (["repair", "--cache", ".", "--root", "http://a", "--cache-gb", "nan"], "--cache-gb nan"),
        (["repair", "--cache", ".", "--root", "http://a", "--tries", "0"], "--tries 0"),
        (["plan", "--galaxies", "none.parquet"], "none.parquet: no such file"),
    ],
)
def test_what_makes_no_sense_ends_in_one_line(tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["frames", *words])
    with pytest.raises(SystemExit) as caught:
        run.start(frames.main)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "\n" not in message and line in message
    assert not list(tmp_path.iterdir())


def fetch_words(catalog, root, folder, *more):
    words = ["fetch", "--galaxies", catalog, "--shard", "3", "--output", folder / "frames"]
    return [*words, "--root", root, *QUICK, *more]


def test_a_root_that_has_no_frames_is_one_line(catalog, tmp_path):
    server = Archive([])
    done = command(*fetch_words(catalog, server.url, tmp_path))
    server.close()
    assert "has none of the 5 frames" in error_of(done) and server.url in error_of(done)
    assert not (tmp_path / "frames").exists() and len(server.asked) == 10


def test_a_proxy_that_answers_with_a_web_page_is_one_line(catalog, tmp_path):
    proxy = Archive([])
    proxy.always = page
    root = f"http://127.0.0.1:{proxy.port}"
    environment = dict.fromkeys(("http_proxy", "HTTP_PROXY"), root)
    environment |= dict.fromkeys(("no_proxy", "NO_PROXY"), "")
    words = fetch_words(catalog, "http://sas.invalid/dr9", tmp_path, "--tries", "2")
    done = command(*words, **environment)
    proxy.close()
    assert proxy.asked[0].path.startswith("http://sas.invalid/dr9/boss/photoObj/frames/301/")
    assert 'a web page ("Log in")' in error_of(done) and "proxy" in error_of(done)
    assert not (tmp_path / "frames").exists()
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.name[0] != "."]


@pytest.mark.parametrize("choice", ["stop", "fail"])
def test_a_frame_that_never_comes(catalog, sas, tmp_path, choice):
    sas.plans[GOOD[4]] = [refuse(500)] * 20
    words = fetch_words(catalog, sas.url, tmp_path, "--unreachable", choice, "--tries", "2")
    done = command(*words)
    if choice == "stop":
        assert f"{GOOD[4]}: answered 500" in error_of(done)
        assert not (tmp_path / "frames").exists()
        assert (tmp_path / "cache" / GOOD[0]).exists(), "what has come is kept"
        return
    assert done.returncode == 0 and "frames: " in done.stderr
    loss = read_record(tmp_path / "frames")[1][GOOD[4]]
    assert not loss.absent and "answered 500" in loss.reason


def test_plan_tells_what_fetching_takes_before_anything_is_asked(catalog, tmp_path):
    done = command("plan", "--galaxies", catalog, "--output", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    assert "frames" in done.stdout and "GB" in done.stdout and (tmp_path / "plan.json").is_file()


def test_a_plan_that_the_disk_has_no_room_for_is_one_line_before_anything_is_asked(catalog):
    done = command("plan", "--galaxies", catalog, "--disk-gb", "0.01", "--cache-gb", "1")
    assert "fetched frames may take 57 MB at once" in error_of(done)
    assert error_of(done).endswith(
        "allows 10 MB; set it higher: 1 fields cannot be cut into shards so small"
    )


def test_frames_that_take_more_than_was_planned_are_stopped_and_go_on(
    catalog, sas, archive, tmp_path
):
    """What is left of a shard that is done counts; without it there is room."""
    size = sum((archive / path).stat().st_size for path in GOOD)
    left = tmp_path / "0000" / "left.fits.bz2"
    left.parent.mkdir()
    left.write_bytes(bytes(10 * size))
    words = fetch_words(catalog, sas.url, tmp_path, "--disk-gb", 8 * size / 1e9)
    assert "frames: disk_gb allows" in error_of(command(*words))
    assert left.exists() and not (tmp_path / "frames").exists() and not sas.asked
    assert command(*words, "--let-go", tmp_path / "0000").returncode == 0
    assert not left.parent.exists() and (tmp_path / "frames" / GOOD[0]).exists()


def test_a_cache_lets_go_what_no_shard_holds_before_a_shard_is_stopped(catalog, sas, tmp_path):
    old = tmp_path / "cache" / "old.fits.bz2"
    old.parent.mkdir()
    old.write_bytes(bytes(2_000_000))
    words = fetch_words(catalog, sas.url, tmp_path, "--disk-gb", 0.0015)
    assert command(*words).returncode == 0
    assert not old.exists() and (tmp_path / "cache" / GOOD[0]).exists()


@pytest.mark.parametrize("room", ["0", "-1", "nan", "inf"])
def test_a_cap_that_is_none_is_one_line(catalog, sas, tmp_path, room):
    done = command(*fetch_words(catalog, sas.url, tmp_path, "--disk-gb", room))
    assert f"--disk-gb {float(room)}: give the GB" in error_of(done)
