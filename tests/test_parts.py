"""Parts of files over HTTP: few requests, servers that give no parts or odd ones, and bad days."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_survey
from hypothesis import given
from hypothesis import strategies as st
from services import Faults, Services
from services.exchange import Answer, text
from services.faults import Dice, Fault
from services.sas import Sas
from services.sas import _parts as several

from pipeline.run import UserError
from pipeline.survey import archive, network, parts
from pipeline.survey.cache import Store
from pipeline.survey.excerpt import SUFFIX, Excerpt
from pipeline.survey.names import Field, frame_path
from pipeline.survey.network import Manners
from pipeline.survey.transfer import ABSENT, Damaged, Loss, Tally

QUICK = Manners(timeout=10, tries=6, longest_wait=0.01, requests_per_minute=None)
BLOCK, COUNT = 1000, 300
SIZE = BLOCK * COUNT
NAMES = [frame_path(Field(1904, 3, number), "r") for number in range(8)]
ONE = NAMES[0]


def content(path, blocks=COUNT) -> bytes:
    """A file of blocks, each with its own checksum."""
    draw = random.Random(path)
    bodies = (draw.randbytes(BLOCK - 4) for _ in range(blocks))
    return b"".join(body + zlib.crc32(body).to_bytes(4, "big") for body in bodies)


def check(path, data):
    """Stands for the check of a frame."""
    for start in range(0, len(data), BLOCK):
        if (
            zlib.crc32(data[start : start + BLOCK - 4]).to_bytes(4, "big")
            != (data[start + BLOCK - 4 : start + BLOCK])
        ):
            raise Damaged("damaged block")
    if not data:
        raise Damaged("nothing in it")


def wanting(*blocks):
    """The first block and the last, and then these."""

    def wants(path, excerpt):
        if excerpt.length is None:
            return [(0, BLOCK), (-BLOCK, None)]
        spans = [(0, BLOCK), (excerpt.length - BLOCK, excerpt.length)]
        spans += [(BLOCK * block, BLOCK * (block + 1)) for block in blocks]
        for span in spans:
            if (data := excerpt.piece_at(*span)) is not None:
                check(path, data)
        return excerpt.lacks(spans)

    return wants


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(name))
    (folder / "boss/empty.bz2").write_bytes(b"")
    database = small_survey.make(folder / "survey.duckdb", photo=[{}])
    return {"database": database, "archive": folder}


@pytest.fixture
def sas(survey, tmp_path):
    with Services(**survey, work=tmp_path / "work") as services:
        yield services


@pytest.fixture(autouse=True)
def strangers(monkeypatch):
    """No host has answered yet: each test begins as a process does."""
    monkeypatch.setattr(network, "_answered", set())


@pytest.fixture
def plan(monkeypatch):
    """What to do with the right answers, one after the other (None: send them)."""
    plans, get = [], Sas.get

    def act(self, ask, path, fault=None):
        answer = get(self, ask, path, fault)
        todo = plans.pop(0) if plans else None
        return todo(answer) if todo else answer

    monkeypatch.setattr(Sas, "get", act)
    return plans


@pytest.fixture
def bring(tmp_path):
    """Deliver into a new folder each time; the losses."""

    def act(*servers, paths=(ONE,), wants=None, **options):
        act.folder = tmp_path / f"out{act.count}"
        act.count += 1
        roots = [getattr(server, "sas", server) for server in servers]
        options = {"cache": tmp_path / "cache", "manners": QUICK} | options
        return archive.deliver(paths, roots, act.folder, check, wants=wants, **options)

    act.count = 0
    return act


def files(folder):
    return sorted(
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    )


def blocks_in(file, name=ONE):
    """The blocks that an excerpt has; they are as they should be."""
    excerpt, raw = Excerpt.from_bytes(file.read_bytes()), content(name)
    assert excerpt.length == len(raw)
    for start, data in excerpt.pieces:
        assert data == raw[start : start + len(data)] and start % BLOCK == len(data) % BLOCK == 0
    return sorted(
        start // BLOCK + k for start, data in excerpt.pieces for k in range(len(data) // BLOCK)
    )


def asked(services):
    """(ranges, status) of every request."""
    return [((each.range or "").removeprefix("bytes="), each.status) for each in services.log]


ENDS = f"0-{BLOCK - 1},-{BLOCK}"


def only_excerpt(bring, tmp_path, *blocks):
    """Whether what was delivered is an excerpt of these blocks, in the store as well."""
    name = ONE + SUFFIX
    assert files(bring.folder) == files(tmp_path / "cache") == [name]
    assert (bring.folder / name).samefile(tmp_path / "cache" / name)
    return blocks_in(bring.folder / name) == [0, *blocks, COUNT - 1]


def only_whole(bring, tmp_path):
    """Whether what was delivered is the whole file, in the store as well."""
    assert files(bring.folder) == files(tmp_path / "cache") == [ONE]
    return (bring.folder / ONE).read_bytes() == content(ONE)


# --- requests ---


def test_all_ranges_are_asked_for_in_one_request(sas, bring, tmp_path):
    tally = Tally()
    assert bring(sas, wants=wanting(7, 9, 100), tally=tally) == {}
    assert only_excerpt(bring, tmp_path, 7, 9, 100)
    assert asked(sas) == [(ENDS, 206), ("7000-7999,9000-9999,100000-100999", 206)]
    assert (tally.requests, tally.files, tally.partial) == (2, 1, 1)
    assert tally.bytes == sum(each.sent for each in sas.log) < 7 * BLOCK
    assert tally.facts()["partial"] == 1 and tally.facts()["attempts"] == 1


def test_more_ranges_than_servers_like_are_asked_for_in_turns(sas, bring, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MOST", 2)
    assert bring(sas, wants=wanting(2, 4, 6)) == {} and only_excerpt(bring, tmp_path, 2, 4, 6)
    assert [ranges for ranges, _ in asked(sas)[1:]] == ["2000-2999,4000-4999", "6000-6999"]


def test_other_parts_are_added_and_known_ones_not_asked_for(sas, bring, tmp_path):
    assert bring(sas, wants=wanting(7)) == {}
    first = bring.folder
    assert bring(sas, wants=wanting(9)) == {} and only_excerpt(bring, tmp_path, 7, 9)
    assert blocks_in(first / (ONE + SUFFIX)) == [0, 7, COUNT - 1], "who has it keeps it"
    for wants in (wanting(7, 9), wanting(9), wanting()):
        assert bring(sas, wants=wants) == {} and only_excerpt(bring, tmp_path, 7, 9)
    assert [ranges for ranges, _ in asked(sas)] == [ENDS, "7000-7999", "9000-9999"]


def test_a_former_excerpt_in_the_folder_gives_way(sas, tmp_path):
    out, options = tmp_path / "out", {"cache": tmp_path / "cache", "manners": QUICK}
    for block in (7, 9):
        archive.deliver([ONE], [sas.sas], out, check, wants=wanting(block), **options)
    assert blocks_in(out / (ONE + SUFFIX)) == [0, 7, 9, COUNT - 1]
    assert not list(out.rglob(f".*{SUFFIX}"))


def test_a_whole_file_in_the_store_is_linked_without_a_request(sas, bring, tmp_path):
    assert bring(sas) == {}
    assert bring(sas, wants=wanting(7)) == {} and only_whole(bring, tmp_path)
    assert len(sas.log) == 1


def test_a_whole_file_takes_the_place_of_its_excerpt(sas, bring, tmp_path):
    assert bring(sas, wants=wanting(7)) == {}
    assert bring(sas) == {} and only_whole(bring, tmp_path)


def test_a_file_of_a_folder_is_linked(sas, survey, bring):
    assert bring(str(survey["archive"]), sas, wants=wanting(7)) == {}
    assert (bring.folder / ONE).is_symlink() and not sas.log


def test_a_file_that_is_wanted_whole_goes_on_from_its_first_piece(sas, bring, tmp_path):
    def wants(path, excerpt):
        return wanting(7)(path, excerpt) if excerpt.length is None else None

    tally = Tally()
    assert bring(sas, wants=wants, tally=tally) == {} and only_whole(bring, tmp_path)
    assert asked(sas) == [(ENDS, 206), (f"{BLOCK}-", 206)] and tally.partial == 0


def test_what_cannot_be_had_is_no_endless_loop(sas, bring, tmp_path):
    def wants(path, excerpt):
        return [(0, BLOCK), (SIZE, SIZE + 5)]

    assert bring(sas, wants=wants) == {} and only_whole(bring, tmp_path)
    assert len(sas.log) == 2


def test_nothing_wanted_is_nothing_asked_for(sas, bring, tmp_path):
    assert bring(sas, wants=lambda path, excerpt: []) == {} and not sas.log
    assert Excerpt.from_bytes((bring.folder / (ONE + SUFFIX)).read_bytes()) == Excerpt()


def test_what_the_archive_lacks_is_absent(sas, bring, tmp_path):
    assert bring(sas, paths=[f"{ONE}.no"], wants=wanting(7)) == {f"{ONE}.no": Loss(True, ABSENT)}
    assert bring(sas, paths=[f"{ONE}.no"], wants=wanting(7)) == {f"{ONE}.no": Loss(True, ABSENT)}
    assert [status for _, status in asked(sas)] == [404, 404]
    assert files(bring.folder) == []


# --- servers of other kinds ---


def test_a_server_without_ranges_gives_the_whole_file(sas, bring, tmp_path, monkeypatch):
    monkeypatch.setattr(Sas, "ranges", 0)
    tally = Tally()
    assert bring(sas, wants=wanting(7), tally=tally) == {} and only_whole(bring, tmp_path)
    assert asked(sas) == [(ENDS, 200)] and (tally.files, tally.partial) == (1, 0)


def test_a_server_that_gives_one_range_of_several_is_asked_again(sas, bring, tmp_path, monkeypatch):
    monkeypatch.setattr(Sas, "ranges", 1)
    assert bring(sas, wants=wanting(7, 9)) == {} and only_excerpt(bring, tmp_path, 7, 9)
    last = f"{SIZE - BLOCK}-{SIZE - 1}"
    assert [ranges for ranges, _ in asked(sas)] == [
        ENDS, f"7000-7999,9000-9999,{last}", f"9000-9999,{last}", last,
    ]  # fmt: skip


def test_a_file_without_bytes_is_judged_as_a_whole(sas, bring):
    path = "boss/empty.bz2"
    losses = bring(sas, paths=[path], wants=wanting(7), manners=replace(QUICK, tries=8))
    assert losses == {path: Loss(False, "nothing in it")}
    assert {status for ranges, status in asked(sas) if ranges} == {416}


def untagged(answer):
    headers = {k: v for k, v in answer.headers.items() if k not in ("ETag", "Last-Modified")}
    return replace(answer, headers=headers)


def test_a_file_that_cannot_be_known_again_comes_whole(sas, bring, tmp_path, plan):
    plan[:] = [untagged, untagged]
    tally = Tally()
    assert bring(sas, wants=wanting(7), tally=tally) == {} and only_whole(bring, tmp_path)
    assert asked(sas) == [(ENDS, 206), ("", 200)] and not tally.troubles


def headed(**headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda answer: replace(answer, headers=answer.headers | named)


def same_again(answer):
    span = {"Content-Range": f"bytes 0-{BLOCK - 1}/{SIZE}", "Content-Type": "x/y"}
    return Answer(content(ONE)[:BLOCK], 206, answer.headers | span)


def moved(answer):
    """The first mark of the body a byte early."""
    return replace(answer, body=answer.body[:200] + answer.body[201:])


ODD = {
    "no boundary": headed(Content_Type="multipart/byteranges"),
    "another boundary": headed(Content_Type="multipart/byteranges; boundary=x"),
    "no range": headed(Content_Type="application/octet-stream"),
    "another unit": headed(Content_Type="x/y", Content_Range="lines 0-9/20"),
    "no length": headed(Content_Type="x/y", Content_Range="bytes 0-9/*"),
    "backwards": headed(Content_Type="x/y", Content_Range="bytes 9-0/20"),
    "beyond the file": headed(Content_Type="x/y", Content_Range="bytes 0-20/20"),
    "more than said": headed(Content_Type="x/y", Content_Range="bytes 0-9/20"),
    "marks elsewhere": moved,
    "known bytes": same_again,
    "empty": lambda answer: replace(answer, body=b""),
    "416": lambda answer: text("no", status=416),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_answer_is_a_trouble_and_the_file_comes_whole_at_last(
    sas, bring, tmp_path, plan, odd
):
    plan[:] = [None, odd]
    tally = Tally()
    assert bring(sas, wants=wanting(7, 9), tally=tally) == {}
    assert only_excerpt(bring, tmp_path, 7, 9) and sum(tally.troubles.values()) == 1
    plan[:] = [odd, odd, odd]
    if odd is same_again:
        plan.insert(0, None)
    tally, again = Tally(), tmp_path / "again"
    assert bring(sas, wants=wanting(7, 9), tally=tally, cache=again / "cache") == {}
    assert only_whole(bring, again) and sum(tally.troubles.values()) == 3


def test_an_answer_without_end_is_broken_off(sas, bring, tmp_path, plan):
    plan[:] = [None, lambda answer: replace(answer, body=answer.body + bytes(20_000_000))]
    tally = Tally()
    assert bring(sas, wants=wanting(7, 9), tally=tally) == {}
    assert only_excerpt(bring, tmp_path, 7, 9) and tally.bytes < 2_000_000
    assert tally.troubles == {"sent more than was asked for": 1}


def test_parts_are_found_with_a_quoted_boundary_and_without_an_empty_line_first(
    sas, bring, tmp_path, plan
):
    def other(answer):
        kind, _, boundary = answer.headers["Content-Type"].partition("=")
        headers = answer.headers | {"Content-Type": f'{kind.upper()}="{boundary}"; charset=x'}
        return replace(answer, headers=headers, body=answer.body.removeprefix(b"\r\n"))

    plan[:] = [other, other]
    assert bring(sas, wants=wanting(7, 9)) == {} and only_excerpt(bring, tmp_path, 7, 9)
    assert len(sas.log) == 2


# --- bad days ---


@pytest.mark.parametrize("respects", [True, False])
def test_a_file_that_changes_meanwhile_begins_anew(sas, bring, tmp_path, plan, respects):
    """Where the server respects If-Range it comes whole."""

    def older(answer):
        return replace(answer, headers=answer.headers | {"ETag": '"old"'}, body=spoilt(answer).body)

    def spoilt(answer):
        return replace(answer, body=answer.body.replace(content(ONE)[:BLOCK], older_block))

    body = bytes(BLOCK - 4)
    older_block = body + zlib.crc32(body).to_bytes(4, "big")
    plan[:] = [older]
    if not respects:
        get = Sas.get

        def ignoring(self, ask, path, fault=None):
            headers = {k: v for k, v in ask.headers.items() if k != "If-Range"}
            return get(self, replace(ask, headers=headers), path, fault)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sas, "get", ignoring)
            assert bring(sas, wants=wanting(7)) == {} and only_excerpt(bring, tmp_path, 7)
        last = f"{SIZE - BLOCK}-{SIZE - 1}"
        assert [ranges for ranges, _ in asked(sas)] == [ENDS, "7000-7999", f"0-999,{last}"]
    else:
        assert bring(sas, wants=wanting(7)) == {} and only_whole(bring, tmp_path)
        assert asked(sas) == [(ENDS, 206), ("7000-7999", 200)]


def test_a_file_that_changes_all_the_time_comes_whole(sas, bring, tmp_path, plan, monkeypatch):
    part = sys.modules[Sas.__module__]._part

    def ignoring(ask, *others):
        headers = {k: v for k, v in ask.headers.items() if k != "If-Range"}
        return part(replace(ask, headers=headers), *others)

    monkeypatch.setattr(sys.modules[Sas.__module__], "_part", ignoring)
    plan[:] = [headed(ETag=f'"{number}"') for number in range(4)]
    assert bring(sas, wants=wanting(7)) == {} and only_whole(bring, tmp_path)
    assert len(sas.log) == 5


class Place:
    """Draws where an answer is cut."""

    def __init__(self, share):
        self.share = share

    def random(self):
        return 1.0

    def randrange(self, size):
        return int(self.share * size)


@pytest.fixture
def cuts(monkeypatch):
    """Shares of the answers' bodies after which the connection breaks, one after the other."""
    left = []

    def throw(self, service, *request):
        share = left.pop(0) if left else None
        return None if share is None else Fault("cut", service, Place(share))

    monkeypatch.setattr(Dice, "throw", throw)
    return left


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 12))
def test_a_connection_that_breaks_is_gone_on_from(sas, bring, tmp_path, cuts, share):
    cuts[:] = [None, share]
    tally = Tally()
    assert bring(sas, wants=wanting(7, 9, 11), tally=tally) == {}
    assert only_excerpt(bring, tmp_path, 7, 9, 11) and sum(tally.troubles.values()) == 1
    assert tally.bytes == pytest.approx(sum(each.sent for each in sas.log), abs=0)
    again = "".join(ranges for ranges, _ in asked(sas)[2:])
    came = [7, 9, 11][: int(share * sas.log[1].length) // (BLOCK + 150)]
    assert not any(f"{block}000-" in again for block in came), "what came is not asked for again"


def test_a_whole_file_that_breaks_off_goes_on_whole(sas, bring, tmp_path, cuts, monkeypatch):
    monkeypatch.setattr(Sas, "ranges", 0)
    cuts[:] = [0.5]
    with pytest.raises(UserError, match="broke off"):
        bring(sas, wants=wanting(7), manners=Manners(tries=1))
    monkeypatch.setattr(Sas, "ranges", None)
    assert bring(sas, wants=wanting(7)) == {} and only_whole(bring, tmp_path)
    assert asked(sas) == [(ENDS, 200), (f"{SIZE // 2}-", 206)]


def flip(answer):
    place = answer.body.index(content(ONE)[7 * BLOCK : 8 * BLOCK]) + 5
    flipped = bytes([answer.body[place] ^ 4])
    return replace(answer, body=answer.body[:place] + flipped + answer.body[place + 1 :])


def test_damaged_bytes_come_anew(sas, bring, tmp_path, plan):
    plan[:] = [None, flip]
    tally = Tally()
    assert bring(sas, wants=wanting(7, 9), tally=tally) == {}
    assert only_excerpt(bring, tmp_path, 7, 9) and tally.troubles == {"damaged block": 1}
    assert len(sas.log) == 4


def test_the_same_damage_again_and_again_is_the_archives_own(sas, bring, tmp_path, plan):
    plan[:] = [None, flip] * 4
    assert bring(sas, wants=wanting(7, 9)) == {ONE: Loss(False, "damaged block")}
    assert len(sas.log) == 8 and files(tmp_path / "cache") == files(bring.folder) == []


def test_a_stored_excerpt_that_is_damaged_comes_anew(sas, bring, tmp_path):
    stored = tmp_path / "cache" / (ONE + SUFFIX)
    stored.parent.mkdir(parents=True)
    wrong = Excerpt(SIZE, '"tag"').with_piece(0, bytes(BLOCK)).to_bytes()
    for raw in (wrong, wrong[:-1]):
        stored.write_bytes(raw)
        assert bring(sas, wants=wanting(7)) == {} and only_excerpt(bring, tmp_path, 7)
    assert len(sas.log) == 4


def test_a_web_page_is_no_file(sas, bring, tmp_path, plan):
    page = text("<html><title>Down</title></html>", "text/html")
    plan[:] = [None, lambda answer: page]
    tally = Tally()
    assert bring(sas, wants=wanting(7), tally=tally) == {} and only_excerpt(bring, tmp_path, 7)
    (trouble,) = tally.troubles
    assert "Down" in trouble
    assert [ranges for ranges, _ in asked(sas)] == [ENDS, "7000-7999", "7000-7999"]


def test_another_mirror_goes_on_with_what_the_first_gave(sas, survey, bring, tmp_path, plan):
    plan[:] = [None, lambda answer: text("no", status=500)]
    with Services(**survey, work=tmp_path / "other") as other:
        assert bring(sas, other, wants=wanting(7)) == {} and only_excerpt(bring, tmp_path, 7)
        assert asked(other) == [("7000-7999", 206)]


# --- many at a time ---

PROGRAM = """
import json, os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_parts
from pipeline.survey import archive
from pipeline.survey.network import Manners

root, folder, out, blocks, dies, names = json.loads(sys.argv[1])
wanted = test_parts.wanting(*blocks)

def wants(path, excerpt):
    if dies and excerpt.length is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return wanted(path, excerpt)

losses = archive.deliver(names, [root], Path(folder) / out, test_parts.check,
    Path(folder) / "cache", manners=test_parts.QUICK, wants=wants)
assert losses == {}
"""


def command(services, folder, out, blocks, dies=False, names=(ONE,)):
    words = json.dumps([services.sas, str(folder), out, blocks, dies, list(names)])
    here = Path(__file__).parent
    return [sys.executable, "-c", PROGRAM, words, str(here), str(here.parent)]


def test_processes_that_want_different_parts_leave_all_of_them(sas, tmp_path):
    running = [
        subprocess.Popen(command(sas, tmp_path, f"out{block}", [block, 50], names=NAMES))
        for block in (7, 9)
    ]
    assert [process.wait(100) for process in running] == [0, 0]
    for name in NAMES:
        assert blocks_in(tmp_path / "cache" / (name + SUFFIX), name) == [0, 7, 9, 50, COUNT - 1]
        for block in (7, 9):
            there = blocks_in(tmp_path / f"out{block}" / (name + SUFFIX), name)
            assert {0, block, 50, COUNT - 1} <= set(there)
    assert len(sas.log) == 3 * len(NAMES), "what one had asked for the other did not"


def test_threads_that_want_different_parts_leave_all_of_them(sas, tmp_path):
    options = {"cache": tmp_path / "cache", "manners": QUICK}

    def one(block):
        out = tmp_path / f"out{block}"
        archive.deliver(NAMES, [sas.sas], out, check, wants=wanting(block), **options)

    threads = [threading.Thread(target=one, args=(block,)) for block in (3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in NAMES:
        assert blocks_in(tmp_path / "cache" / (name + SUFFIX), name) == [0, 3, 5, 7, COUNT - 1]


def test_a_kill_between_two_requests_loses_nothing(sas, bring, tmp_path):
    killed = subprocess.run(command(sas, tmp_path, "dead", [7], dies=True))
    assert killed.returncode == -signal.SIGKILL and len(sas.log) == 1
    assert files(tmp_path / "cache") == sorted([f"{ONE}{SUFFIX}.part", f"{ONE}.part"])
    assert bring(sas, wants=wanting(7)) == {} and only_excerpt(bring, tmp_path, 7)
    assert [ranges for ranges, _ in asked(sas)] == [ENDS, "7000-7999"]


def test_what_was_whole_when_it_was_killed_is_not_asked_for(sas, bring, tmp_path):
    killed = subprocess.run(command(sas, tmp_path, "dead", [], dies=True))
    assert killed.returncode == -signal.SIGKILL
    tally = Tally()
    assert bring(sas, wants=wanting(), tally=tally) == {} and only_excerpt(bring, tmp_path)
    assert len(sas.log) == 1 and (tally.files, tally.requests) == (1, 0)


def test_requests_and_bytes_are_those_that_the_server_counts(sas, bring, tmp_path, cuts):
    cuts[:] = [None, 0.3, None, 0.0, 0.7, None] * 2
    tally = Tally()
    assert bring(sas, paths=NAMES, wants=wanting(7, 9, 200), tally=tally, streams=1) == {}
    for name in NAMES:
        assert blocks_in(bring.folder / (name + SUFFIX), name) == [0, 7, 9, 200, COUNT - 1]
    assert tally.requests == len(sas.log) and tally.partial == tally.files == len(NAMES)
    assert tally.bytes == sum(each.sent for each in sas.log)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_faults_at_once_leave_the_bytes_as_they_are(survey, bring, tmp_path, seed):
    kinds = ("500", "html", "429", "503", "reset", "cut", "flip")
    faults, tally = Faults(rate=0.5, seed=seed, kinds=kinds), Tally()
    with Services(**survey, work=tmp_path / "work", faults=faults) as sas:
        patient = replace(QUICK, tries=30)
        losses = bring(sas, paths=NAMES, wants=wanting(7, 9), tally=tally, manners=patient)
        log = sas.log
    assert losses == {} and len(files(bring.folder)) == len(NAMES)
    for name in NAMES:
        if (bring.folder / name).exists():
            assert (bring.folder / name).read_bytes() == content(name)
        else:
            assert {0, 7, 9, COUNT - 1} <= set(blocks_in(bring.folder / (name + SUFFIX), name))
    assert tally.requests == len(log) and tally.partial > len(NAMES) / 2
    assert files(tmp_path / "cache") == files(bring.folder)


SPANS = [(0, 5), (40, 60), (95, 100)]
BODY = random.Random(1).randbytes(100)


@given(st.data())
def test_of_an_answer_that_broke_off_the_right_bytes_are_taken(data):
    answer = several(BODY, SPANS, {"Content-Type": "x/y"})
    stop = data.draw(st.integers(0, len(answer.body)))
    came = list(parts._came(answer.headers, answer.body[:stop]))
    for (start, length, piece), (first, last) in zip(came, SPANS, strict=False):
        assert (start, length) == (first, 100) and BODY[first:last].startswith(piece)
    assert stop < len(answer.body) or [len(piece) for *_, piece in came] == [5, 20, 5]


@given(st.data(), st.binary(max_size=9))
def test_an_answer_that_is_not_understood_is_a_value_error(data, odd):
    answer = several(BODY, SPANS, {"Content-Type": "x/y"})
    place = data.draw(st.integers(0, len(answer.body)))
    with contextlib.suppress(ValueError):
        for _ in parts._came(answer.headers, answer.body[:place] + odd + answer.body[place + 1 :]):
            pass


# --- the store ---


def test_excerpts_are_files_of_the_store(sas, bring, tmp_path):
    assert bring(sas, paths=NAMES[:3], wants=wanting(7)) == {}
    store = Store(tmp_path / "cache", 0.0)
    assert sorted(map(str, store.files())) == [
        f"{store.folder}/{name}{SUFFIX}" for name in NAMES[:3]
    ]
    store.forget(NAMES[0])
    assert len(list(store.files())) == 2
    store.release(1e9)
    assert len(list(store.files())) == 2, "a folder holds them"
    os.unlink(bring.folder / (NAMES[1] + SUFFIX))
    store.release(1e9)
    assert [file.name for file in store.files()] == [Path(NAMES[2]).name + SUFFIX]
    store.trim()
    assert list(store.files()) == []
    assert blocks_in(bring.folder / (NAMES[2] + SUFFIX), NAMES[2]) == [0, 7, COUNT - 1]
