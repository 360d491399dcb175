"""The room that frames may take: how it is counted, and a run of the Snakefile that keeps to it."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest
import small_workflow
from small_archive import served

from pipeline.run import UserError
from pipeline.survey.cache import Store
from pipeline.survey.room import Room, taken

MB = 1_000_000


def fill(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_what_is_taken_counts_hard_links_once_and_what_is_linked_otherwise_not(tmp_path):
    first = fill(tmp_path / "cache" / "a.fits.bz2", MB)
    (tmp_path / "0001").mkdir()
    os.link(first, tmp_path / "0001" / "a.fits.bz2")
    (tmp_path / "0001" / "b.fits.bz2").symlink_to(fill(tmp_path / "mine" / "b.fits.bz2", MB))
    fill(tmp_path / "0001" / "c.fits.bz2.part", MB // 2)
    folders = [tmp_path / "cache", tmp_path / "0001"]
    assert taken(folders) == pytest.approx(1.5 * MB, rel=0.01)
    assert taken([*folders, tmp_path / "cache", tmp_path / "none"]) == taken(folders)


def test_taken_goes_on_while_files_go(tmp_path):
    files = [fill(tmp_path / "cache" / f"{number}.bz2", 10) for number in range(300)]
    remover = threading.Thread(target=lambda: [file.unlink() for file in files])
    remover.start()
    while remover.is_alive():
        taken([tmp_path])
    assert taken([tmp_path]) == 0


def test_a_cache_gives_room_for_what_is_held_oldest_first(tmp_path):
    store = Store(tmp_path / "cache")
    for age, name in enumerate(("new", "held", "old", "older")):
        file = fill(store.folder / f"{name}.fits.bz2", MB)
        os.utime(file, (10**9 - age, 10**9 - age))
    os.link(store.folder / "held.fits.bz2", fill(tmp_path / "0001" / "x", 1).with_name("held"))
    room = Room(0.0025, [tmp_path])
    room.watch(store, 0)
    assert sorted(file.name[:5] for file in store.files()) == ["held.", "new.f"]
    assert taken([tmp_path]) < 2.5 * MB


def test_where_shards_hold_all_of_it_there_is_no_room(tmp_path):
    store = Store(tmp_path / "cache")
    held = fill(tmp_path / "0001" / "held.fits.bz2", 2 * MB)
    os.link(held, store.folder / held.name)
    room = Room(0.001, [tmp_path])
    with pytest.raises(UserError, match=r"take 2 GB|take 0.002 GB, and frames: disk_gb allows 0.0"):
        room.watch(store, 0)
    assert held.exists() and (store.folder / held.name).exists()


def test_it_is_looked_at_more_often_the_less_room_there_is(tmp_path):
    store, room = Store(tmp_path / "cache"), Room(0.1, [tmp_path])
    looks = [0.0]
    for arrived in range(0, 100 * MB, MB // 10):
        room.watch(store, arrived)
        if room.next_look != looks[-1]:
            looks.append(room.next_look)
            fill(tmp_path / "0001" / "frame", max(arrived, 1))
    steps = [after - before for before, after in zip(looks, looks[1:], strict=False)]
    assert len(looks) < 30 and steps[0] == pytest.approx(50 * MB, rel=0.01)
    assert min(steps) >= MB


SURVEY = {
    "simulate": {"runs": [4207], "camcols": [3], "fields": [2], "galaxies_per_field": 8,
                 "stars_per_field": 5, "reference_size": 500},
    "catalog": {"shards": 2}, "goals": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    return small_workflow.make_house(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def survey(house, tmp_path_factory):
    """(folder of a simulated survey with its catalogue, an overlay that fetches it over HTTP)."""
    folder = tmp_path_factory.mktemp("survey")
    words = ("--cores", "2", "results/simulate/sas", "results/catalog.parquet")
    done = small_workflow.snakemake(house, folder, *words, overlay=SURVEY)
    assert done.returncode == 0, done.stderr
    with served(folder / "results" / "simulate" / "sas" / "dr9") as url:
        frames = {"root": url, "window": 1, "cache_gb": 0.001, "disk_gb": 0.07}
        network = {"requests_per_minute": 100000, "longest_wait": 0.1}
        yield folder, SURVEY | {"frames": frames, "network": network}


def with_frames(overlay: dict, **keys) -> dict:
    return overlay | {"frames": overlay["frames"] | keys}


@pytest.mark.long
def test_a_run_that_the_disk_has_no_room_for_ends_before_anything_is_fetched(house, survey):
    folder, overlay = survey
    small = with_frames(overlay, disk_gb=0.03, window=2)
    done = small_workflow.snakemake(
        house, folder, "--cores", "2", "results/dataset.json", overlay=small
    )
    assert done.returncode != 0
    assert "may take" in done.stderr and "frames: disk_gb allows 30 MB; set " in done.stderr
    assert not (folder / "results" / "frames").exists()


@pytest.mark.long
def test_a_run_keeps_to_its_cap_and_neither_cap_nor_scheduler_reruns_a_shard(house, survey):
    folder, overlay = survey
    most, end = [0], threading.Event()

    def watch():
        while not end.wait(0.02):
            most[0] = max(most[0], taken([folder / "results" / "frames"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    words = ("--cores", "2", "results/dataset.json")
    try:
        done = small_workflow.snakemake(house, folder, *words, overlay=overlay)
    finally:
        end.set()
        watcher.join()
    assert done.returncode == 0, done.stderr
    archive = folder / "results" / "simulate" / "sas"
    everything = sum(file.stat().st_size for file in archive.rglob("frame-*.bz2"))
    assert 0.2 * everything < most[0] < 0.8 * everything, "of two shards one at a time"
    assert [path.name for path in (folder / "results" / "frames").glob("*/")] == ["cache"]

    def reruns(changed):
        return small_workflow.rules_to_rerun(house, folder, words[-1], overlay=changed)

    assert reruns(overlay) == set()
    assert reruns(overlay | {"cutouts": {"scheduler": "tcp://10.0.0.1:8786"}}) == set()
    assert reruns(with_frames(overlay, disk_gb=None)) <= {"plan"}


def test_a_later_shard_lets_go_what_a_kill_left_of_an_earlier_one(house, tmp_path):
    overlay = SURVEY | {"frames": {"root": "http://127.0.0.1:9/dr9", "window": 1}}
    plan = small_workflow.snakemake(
        house, tmp_path, "-n", "-p", "results/dataset.json", overlay=overlay
    )
    said = plan.stdout + plan.stderr
    assert re.search(r"fetch .*--shard 0001 .*--let-go results/frames/0000 ", said)
    assert not re.search(r"fetch .*--shard 0000 .*--let-go", said)
