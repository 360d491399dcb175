"""The store of fetched files: what is absent, who makes a file, what is trimmed, what is left."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_transfer import NAMES, ONE, bring, other, right, sas  # noqa: F401 (fixtures)

from pipeline.survey import cache
from pipeline.survey.cache import ABSENT_FOR, Store
from pipeline.survey.transfer import ABSENT, Loss

ROOTS = ("https://one", "https://two")


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "cache")


def put(store, path, data=b"data"):
    with store.claim(path) as part:
        part.write_bytes(data)
        store.keep(path, part)


# --- what the archive does not have ---


def test_absence_is_known_for_the_roots_that_were_asked(store):
    store.note_absent(ONE, ROOTS)
    assert store.known_absent(ONE, ROOTS) and store.known_absent(ONE, ROOTS[::-1])
    assert store.known_absent(ONE, ROOTS[1:])
    assert not store.known_absent(ONE, (*ROOTS, "https://three"))
    assert not store.known_absent(NAMES[1], ROOTS)


@pytest.mark.parametrize(
    ("later", "known"),
    [(0, True), (ABSENT_FOR - 60, True), (ABSENT_FOR + 60, False), (-86400, False)],
    ids=["now", "within a month", "after a month", "the clock was set back"],
)
def test_absence_is_known_for_a_while(store, monkeypatch, later, known):
    store.note_absent(ONE, ROOTS)
    now = time.time()
    monkeypatch.setattr(cache.time, "time", lambda: now + later)
    assert store.known_absent(ONE, ROOTS) is known


@pytest.mark.parametrize("note", ["", "{", "[]", "{}", '{"asked": null, "roots": []}'])
def test_a_note_that_cannot_be_read_is_none(store, note):
    store.note_absent(ONE, ROOTS)
    (store.folder / f"{ONE}.absent").write_text(note)
    assert not store.known_absent(ONE, ROOTS)


def test_absent_files_are_asked_for_again_when_they_may_be_there(sas, other, bring, tmp_path):  # noqa: F811
    data = sas.files.pop(ONE)
    del other.files[ONE]
    for _ in range(2):
        assert bring(sas) == {ONE: Loss(True, ABSENT)}
    assert sas.of() == [(None, 404)] * 2, "to be sure; then not again"
    assert bring(sas, other) == {ONE: Loss(True, ABSENT)}
    assert len(other.of()) == 2, "another root was not asked yet"
    note = tmp_path / "cache" / f"{ONE}.absent"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"asked": 0}))
    sas.files[ONE] = data
    assert bring(sas) == {} and right(bring.folder)


# --- one maker at a time ---

HOLD = """
import sys, time
from pathlib import Path
from pipeline.survey.cache import Store
with Store(Path(sys.argv[1])).claim(sys.argv[2]) as part:
    part.write_bytes(b"some")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_claim_excludes_others_and_ends_with_its_process(store):
    line = [sys.executable, "-c", HOLD, str(store.folder), ONE]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        got = threading.Event()

        def claim():
            with store.claim(ONE) as part:
                assert part.read_bytes() == b"some", "what a killed one left is there"
                got.set()

        thread = threading.Thread(target=claim)
        thread.start()
        assert not got.wait(0.2)
        holder.send_signal(signal.SIGKILL)
        assert got.wait(5)
        thread.join()


def test_many_that_make_one_file_at_a_time_make_it_once(store):
    made, wrong = [], []

    def make():
        for name in NAMES:
            with store.claim(name) as part:
                if (store.folder / name).exists():
                    part.unlink(missing_ok=True)
                    continue
                if part.stat().st_size:
                    wrong.append(name)
                part.write_bytes(name.encode())
                made.append(name)
                store.keep(name, part)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(NAMES) and not wrong
    assert {p.read_text() for p in store.files()} == set(NAMES)
    assert not list(store.folder.rglob("*.part"))


def test_a_claim_that_made_nothing_leaves_nothing(store):
    with store.claim(ONE):
        pass
    with pytest.raises(KeyError), store.claim(ONE) as part:
        part.write_bytes(b"")
        raise KeyError
    assert not [p for p in store.folder.rglob("*") if p.is_file()]
    with pytest.raises(KeyError), store.claim(ONE) as part:
        part.write_bytes(b"half")
        raise KeyError
    assert part.read_bytes() == b"half"


# --- what is stored ---


def test_only_files_that_are_whole_and_in_sight_are_the_stores(store):
    put(store, ONE)
    put(store, "boss/mask.fit.gz")
    store.note_absent(NAMES[1], ROOTS)
    for left in (f"{NAMES[2]}.part", f"{NAMES[2]}.part.json", ".hidden/boss/x.fits.bz2",
                 "boss/.y.fits.bz2.part", f"boss/.{NAMES[3][5:].replace('/', '-')}.1.part.absent",
                 ".stream-0", ".pace", "notes.txt"):  # fmt: skip
        (store.folder / left).parent.mkdir(parents=True, exist_ok=True)
        (store.folder / left).write_text("left")
    found = sorted(str(p.relative_to(store.folder)) for p in store.files())
    assert found == [ONE, "boss/mask.fit.gz"] and store.absences() == [NAMES[1]]


def test_what_is_forgotten_is_the_file_and_its_absence(store, tmp_path):
    put(store, ONE)
    store.note_absent(NAMES[1], ROOTS)
    assert store.link(ONE, tmp_path / "held")
    with store.claim(NAMES[1]) as part:
        part.write_bytes(b"on its way")
        store.forget(ONE)
        store.forget(NAMES[1])
        assert part.read_bytes() == b"on its way"
    assert not list(store.files()) and not store.absences()
    assert (tmp_path / "held").read_bytes() == b"data"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_there_are_no_links_it_is_copied(store, tmp_path, monkeypatch, number):
    def link(*_):
        raise OSError(number, os.strerror(number))

    put(store, ONE)
    monkeypatch.setattr(os, "link", link)
    assert store.link(ONE, tmp_path / "a" / "copy") and not store.link(NAMES[1], tmp_path / "b")
    assert (tmp_path / "a" / "copy").read_bytes() == b"data"


def test_other_troubles_with_links_are_told(store, tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    put(store, ONE)
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="No space"):
        store.link(ONE, tmp_path / "copy")


def test_trimming_takes_the_longest_unused(store, tmp_path):
    for age, name in enumerate(NAMES[:5]):
        put(store, name, bytes(1000))
        os.utime(store.folder / name, (1e9 + age, 1e9 + age))
    assert store.link(NAMES[0], tmp_path / "held")  # used just now
    store.cap = 2500
    store.trim()
    assert sorted(str(p.relative_to(store.folder)) for p in store.files()) == [NAMES[0], NAMES[4]]
    store.cap = 0
    store.trim()
    assert not list(store.files()) and (tmp_path / "held").stat().st_size == 1000
