"""Files over HTTP on bad days: resumed parts, mirrors, refusals, pauses, and what it asks for."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import small_survey
from services import Faults, Services
from small_sky import Sky, write_frame

from pipeline.images import gather
from pipeline.run import UserError
from pipeline.survey import archive, network
from pipeline.survey.names import BANDS, FRAME_SHAPE, frame_path
from pipeline.survey.network import Manners
from pipeline.survey.transfer import ABSENT, Damaged, Fetch, Loss, Tally

QUICK = Manners(timeout=2, tries=5, longest_wait=0.02, requests_per_minute=None)
SIZE = 300_000
NAMES = [f"boss/301/94/{number}.fits.bz2" for number in range(12)]
ONE = NAMES[0]
PAGE = b"<!DOCTYPE html><html><head><title>Log in</title></head><body>Log in</body></html>"


def content(path, size=SIZE) -> bytes:
    """A file that tells its own name and whether it is whole."""
    body = path.encode() + b"\n" + random.Random(path).randbytes(size)
    return body + struct.pack(">I", zlib.crc32(body))


def check(path, data):
    """Stands for the check of a frame."""
    if struct.pack(">I", zlib.crc32(data[:-4])) != data[-4:]:
        raise Damaged("damaged (CRC)")
    if not data.startswith(path.encode() + b"\n"):
        raise Damaged("another file than its name tells")


class Asked(NamedTuple):
    """One request, as the server saw it."""

    path: str
    first: int | None
    tag: str | None
    time: float
    status: int
    sent: int


class Archive:
    """A server of files in memory, with ETag and Range as nginx has them, and faults to order.

    `plans`: path -> what to do in place of the right answer, request after request (None: the
    right one); a function of the handler and the right (status, headers, body). `always` comes
    before any plan.
    """

    def __init__(self, names=NAMES, size=SIZE):
        self.files = {name: content(name, size) for name in names}
        self.tags = {name: f'"{name}-1"' for name in names}
        self.plans, self.always, self.delay = {}, None, 0.0
        self.asked: list[Asked] = []
        self.at_once = self.most = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/sas"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler):
        path = handler.path.removeprefix("/sas/")
        asked = handler.headers.get("Range", "")
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked else None
        tag = handler.headers.get("If-Range")
        handler.sent, handler.status, began = 0, 0, time.time()
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            plan = self.plans.get(path)
            act = self.always or (plan.pop(0) if plan else None)
        time.sleep(self.delay)
        try:
            (act or send)(handler, *self.right(path, first, tag))
        except OSError:
            handler.close_connection = True
        finally:
            with self.lock:
                self.at_once -= 1
                entry = Asked(path, first, tag, began, handler.status, handler.sent)
                self.asked.append(entry)

    def right(self, path, first, tag):
        if path not in self.files:
            return 404, {}, b"<h1>404 Not Found</h1>"
        body, mark = self.files[path], self.tags[path]
        headers = {"ETag": mark} if mark else {}
        if first is None or tag not in (None, mark):
            return 200, headers, body
        if first >= len(body):
            return 416, headers | {"Content-Range": f"bytes */{len(body)}"}, b""
        span = f"bytes {first}-{len(body) - 1}/{len(body)}"
        return 206, headers | {"Content-Range": span}, body[first:]

    def of(self, path=ONE):
        """(first byte asked for, status) of every request of a path."""
        return [(each.first, each.status) for each in self.asked if each.path == path]


def send(handler, status, headers, body, stop=None, pause=0.0, chunk=1 << 16):
    """An answer, or its first `stop` bytes and then a closed connection."""
    handler.status = status
    handler.send_response(status)
    for name, value in ({"Content-Length": len(body)} | headers).items():
        handler.send_header(name, str(value))
    handler.end_headers()
    for start in range(0, len(body) if stop is None else stop, chunk):
        part = body[start : min(start + chunk, len(body) if stop is None else stop)]
        handler.wfile.write(part)
        handler.sent += len(part)
        if pause:
            time.sleep(pause)
    handler.close_connection = handler.close_connection or stop is not None


def cut(handler, status, headers, body):
    send(handler, status, headers, body, stop=100_000)


def refuse(status, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, *_: send(handler, status, named, b"<h1>No</h1>")


def flip(handler, status, headers, body):
    place = len(body) // 2
    send(handler, status, headers, body[:place] + bytes([body[place] ^ 4]) + body[place + 1 :])


def page(handler, status, headers, body):
    send(handler, 200, {"Content-Type": "text/html"}, PAGE)


def stall(handler, status, headers, body):
    send(handler, status, headers, body, stop=50_000)
    time.sleep(4)


def trickle(handler, status, headers, body):
    send(handler, status, headers, body, pause=0.1, chunk=4)


def slowly(handler, status, headers, body):
    send(handler, status, headers, body, pause=0.05, chunk=5000)


def drip(handler, status, headers, body):
    """In a quarter of a minute."""
    send(handler, status, headers, body, pause=0.5, chunk=10_000)


def reset(handler, status, headers, body):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    send(handler, status, headers, body, stop=100_000)
    handler.wfile.flush()
    handler.connection.close()


def whole_always(handler, status, headers, body):
    """A server that knows nothing of Range."""
    path = handler.path.removeprefix("/sas/")
    send(handler, 200, headers, content(path))


@pytest.fixture
def sas():
    server = Archive()
    yield server
    server.close()


@pytest.fixture
def other():
    server = Archive()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def strangers(monkeypatch):
    """No host has answered yet: each test begins as a process does."""
    monkeypatch.setattr(network, "_answered", set())


@pytest.fixture
def waits(monkeypatch):
    """The pauses before further tries, in seconds, as they were told."""
    told, tell = [], network.tell
    monkeypatch.setattr(network, "tell", lambda *words: told.append(words[3]) or tell(*words))
    return told


@pytest.fixture
def bring(tmp_path):
    """Deliver from servers (or other roots), into a new folder each time; the losses."""

    def act(*roots, paths=(ONE,), manners=QUICK, **options):
        act.folder = tmp_path / f"out{act.count}"
        act.count += 1
        roots = [getattr(root, "url", root) for root in roots]
        options = {"cache": tmp_path / "cache", "manners": manners} | options
        return archive.deliver(paths, roots, act.folder, check, **options)

    act.count = 0
    return act


def right(folder, names=(ONE,)):
    """Whether a folder has just these files, each as it should be."""
    there = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return there == sorted(names) and all((folder / n).read_bytes() == content(n) for n in names)


def left_in(cache):
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and not p.name.startswith("."))


# --- parts and their rest ---


def test_only_the_rest_of_what_broke_off_is_asked_for(sas, bring, tmp_path):
    sas.plans[ONE] = [cut, cut]
    tally = Tally()
    assert bring(sas, tally=tally) == {} and right(bring.folder)
    assert sas.of() == [(None, 200), (100_000, 206), (200_000, 206)]
    assert {each.tag for each in sas.asked[1:]} == {sas.tags[ONE]}
    assert tally.bytes == len(content(ONE)) and tally.requests == 3 and tally.files == 1
    assert tally.facts()["attempts"] == 3
    assert left_in(tmp_path / "cache") == [Path(ONE).name]


def test_a_reset_is_gone_on_from(sas, bring):
    sas.plans[ONE] = [reset]
    assert bring(sas) == {} and right(bring.folder)
    assert [status for _, status in sas.of()] == [200, 206] or sas.of()[1][0] is None


def test_what_has_come_is_kept_when_it_is_given_up_and_not_asked_for_again(sas, bring):
    sas.plans[ONE] = [cut]
    with pytest.raises(UserError, match="broke off"):
        bring(sas, manners=Manners(tries=1))
    assert bring(sas) == {} and right(bring.folder)
    assert sas.of() == [(None, 200), (100_000, 206)]


def test_a_file_that_changed_meanwhile_comes_whole(sas, bring):
    def change(handler, status, headers, body):
        cut(handler, status, headers, bytes(len(body)))  # of the file as it was before
        sas.tags[ONE] = '"newer"'

    sas.plans[ONE] = [change]
    assert bring(sas) == {} and right(bring.folder)
    assert sas.of() == [(None, 200), (100_000, 200)] and sas.asked[1].tag == f'"{ONE}-1"'


@pytest.mark.parametrize("tag", ['"same"', None, 'W/"weak"'])
def test_a_server_without_range_gives_the_whole_again(sas, bring, tag):
    sas.tags[ONE] = tag
    sas.plans[ONE] = [cut, whole_always]
    assert bring(sas) == {} and right(bring.folder)
    asked_for_rest = 100_000 if tag == '"same"' else None
    assert sas.of() == [(None, 200), (asked_for_rest, 200)]


def test_last_modified_will_do_where_there_is_no_etag(sas, bring):
    day = formatdate(1e9, usegmt=True)
    sas.plans[ONE] = [lambda h, s, headers, b: cut(h, s, {"Last-Modified": day}, b)]
    sas.tags[ONE] = None
    assert bring(sas) == {} and right(bring.folder)
    assert sas.asked[1].tag == day


def begins_elsewhere(handler, status, headers, body):
    whole = content(ONE)
    span = f"bytes 90000-{len(whole) - 1}/{len(whole)}"
    send(handler, 206, headers | {"Content-Range": span}, whole[90_000:])


def no_span(handler, status, headers, body):
    send(handler, 206, {"ETag": headers["ETag"]}, body)


@pytest.mark.parametrize("odd", [begins_elsewhere, no_span, refuse(416), refuse(204)])
def test_an_odd_answer_for_the_rest_is_not_built_upon(sas, bring, odd):
    sas.plans[ONE] = [cut, odd]
    assert bring(sas) == {} and right(bring.folder)
    assert sas.of()[1][0] == 100_000 and sas.of()[2] in ((None, 200), (100_000, 206))


def test_a_part_that_is_longer_than_the_file_begins_anew(sas, bring, tmp_path):
    part = tmp_path / "cache" / f"{ONE}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content(ONE) + b"more")
    Path(f"{part}.json").write_text(json.dumps({"tag": sas.tags[ONE], "length": 10**6}))
    assert bring(sas) == {} and right(bring.folder)
    assert [status for _, status in sas.of()] == [416, 200]


@pytest.mark.parametrize("note", [None, "", "{", '{"tag": ""}', "[1]"])
def test_a_part_whose_note_is_lost_begins_anew(sas, bring, tmp_path, note):
    part = tmp_path / "cache" / f"{ONE}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"y" * 1_000_000)
    if note is not None:
        Path(f"{part}.json").write_text(note)
    assert bring(sas) == {} and right(bring.folder)
    assert sas.of() == [(None, 200)] and left_in(tmp_path / "cache") == [Path(ONE).name]


PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from pipeline import run
from pipeline.survey import archive
from pipeline.survey.network import Manners

def check(path, data):
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)

root, out, cache, dies, streams, manners, names = json.loads(sys.argv[1])
run.start(lambda _: print(archive.deliver(
    names, [root], Path(out), check, Path(cache), streams=streams, manners=Manners(**manners))))
"""


def command(server, folder, names, out="out", dies=False, streams=5, **manners):
    """A command line that brings files, without a check, in a process of its own."""
    manners = {"longest_wait": 0.02, "requests_per_minute": None} | manners
    paths = (str(folder / name) for name in (out, "cache"))
    words = json.dumps([server.url, *paths, dies, streams, manners, list(names)])
    return [sys.executable, "-c", PROGRAM, words]


@pytest.mark.parametrize("seed", [1, 2])
def test_bytes_that_were_there_when_it_was_killed_are_not_asked_for_again(
    sas, bring, tmp_path, seed
):
    enough = random.Random(seed).randrange(1, SIZE // 2)
    sas.plans[ONE] = [slowly]
    running = subprocess.Popen(command(sas, tmp_path, [ONE]))
    part = tmp_path / "cache" / f"{ONE}.part"
    while not part.exists() or part.stat().st_size < enough:
        time.sleep(0.002)
        assert running.poll() is None
    running.kill()
    running.wait()
    here = part.stat().st_size
    assert enough <= here < len(content(ONE))
    tally = Tally()
    assert bring(sas, tally=tally) == {} and right(bring.folder)
    assert (here, 206) in sas.of() and tally.bytes == len(content(ONE)) - here


def test_a_part_that_was_whole_when_it_was_killed_is_verified_and_not_asked_for(
    sas, bring, tmp_path
):
    killed = subprocess.run(command(sas, tmp_path, [ONE], dies=True))
    assert killed.returncode == -signal.SIGKILL
    assert len(sas.asked) == 1 and not (tmp_path / "cache" / ONE).exists()
    assert bring(sas) == {} and right(bring.folder)
    assert len(sas.asked) == 1


def test_a_whole_part_that_is_damaged_comes_anew(sas, bring, tmp_path):
    part = tmp_path / "cache" / f"{ONE}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(len(content(ONE))))
    note = {"tag": sas.tags[ONE], "length": len(content(ONE))}
    Path(f"{part}.json").write_text(json.dumps(note))
    assert bring(sas) == {} and right(bring.folder)
    assert sas.of() == [(None, 200)]


# --- what is not the file ---


@pytest.mark.parametrize("before", [[], [cut]])
def test_a_flipped_byte_is_found_and_the_file_comes_anew(sas, bring, before):
    sas.plans[ONE] = [*before, flip]
    assert bring(sas) == {} and right(bring.folder)
    assert sas.of()[-1] == (None, 200) and len(sas.asked) == len(before) + 2


def test_another_file_under_the_name_is_not_taken(sas, bring):
    sas.plans[ONE] = [lambda h, status, headers, b: send(h, status, headers, content(NAMES[1]))]
    assert bring(sas) == {} and right(bring.folder)


def test_a_file_that_always_comes_with_the_same_damage_is_the_archives_own(sas, bring, tmp_path):
    sas.files[ONE] = content(ONE)[:1000]
    assert bring(sas, paths=NAMES[:3]) == {ONE: Loss(False, "damaged (CRC)")}
    assert len(sas.of()) == 4 and right(bring.folder, NAMES[1:3])
    assert left_in(tmp_path / "cache") == ["1.fits.bz2", "2.fits.bz2"]


def test_a_web_page_with_status_200_is_no_file(sas, bring):
    sas.plans[ONE] = [page, page]
    assert bring(sas) == {} and right(bring.folder)
    sas.always = page
    with pytest.raises(UserError, match=r'a web page \("Log in"\).*proxy or login page'):
        bring(sas, paths=NAMES[1:3])


# --- time ---


def test_a_stall_is_broken_off_and_gone_on_from(sas, bring):
    sas.plans[ONE] = [stall]
    assert bring(sas, manners=Manners(timeout=0.3, longest_wait=0.02)) == {} and right(bring.folder)
    assert sas.asked[0].first == 50_000, "the rest was there before the stall had ended"


def test_a_trickle_is_broken_off_and_gone_on_from(sas, bring):
    sas.plans[ONE] = [trickle]
    assert bring(sas, manners=Manners(timeout=0.5, longest_wait=0.02)) == {} and right(bring.folder)
    assert any(0 < (each.first or 0) < 1000 and each.status == 206 for each in sas.asked)


def in_date(seconds, clock=0.0):
    """503 until a date, of a server whose clock is wrong by `clock`."""

    def act(handler, *_):
        now = time.time() + clock
        handler.date_time_string = lambda timestamp=None: formatdate(now, usegmt=True)
        until = formatdate(now + seconds, usegmt=True)
        refuse(503, Retry_After=until)(handler)

    return act


@pytest.mark.parametrize(
    "act", [refuse(429, Retry_After=1), refuse(503, Retry_After=1), in_date(1), in_date(1, -86400)]
)
def test_a_pause_that_is_asked_for_is_made_by_all_streams(sas, bring, act, monkeypatch):
    heard, after = [], Fetch._after

    def hear(*words):
        wait = after(*words)
        heard.append(time.time())
        return wait

    monkeypatch.setattr(Fetch, "_after", hear)
    sas.delay = 0.02
    sas.plans[NAMES[3]] = [act]
    manners = Manners(longest_wait=10, requests_per_minute=None)
    assert bring(sas, paths=NAMES, manners=manners) == {} and right(bring.folder, NAMES)
    refused = next(each for each in sas.asked if each.status in (429, 503))
    times = np.array([each.time for each in sas.asked])
    assert (times > refused.time + 0.95).any()
    early = (times > heard[0]) & (times < refused.time + 0.95)
    assert early.sum() <= 4, "of the other streams, what was on its way may come"


def test_a_pause_that_is_asked_for_holds_for_other_processes(sas, bring, tmp_path):
    sas.plans[ONE] = [refuse(429, Retry_After=2)]
    thread = threading.Thread(
        target=bring, args=(sas,), kwargs={"manners": Manners(longest_wait=10)}
    )
    thread.start()
    while not (tmp_path / "cache" / ".pace-rest").exists():
        time.sleep(0.01)
    assert subprocess.run(command(sas, tmp_path, NAMES[1:2])).returncode == 0
    thread.join()
    assert all(each.time > sas.asked[0].time + 1.9 for each in sas.asked[1:])


def test_a_pause_of_no_seconds_is_no_invitation(sas, bring):
    sas.plans[ONE] = [refuse(503, Retry_After=0)] * 3
    assert bring(sas, manners=Manners(longest_wait=0.2)) == {}
    gaps = np.diff([each.time for each in sas.asked])
    assert (gaps > 0.09).all()


def test_pauses_grow_and_are_bounded(sas, bring, waits):
    sas.plans[ONE] = [refuse(500)] * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "FIRST_WAIT", 0.1)
        assert bring(sas, manners=Manners(longest_wait=0.3)) == {}
    gaps = np.diff([each.time for each in sas.asked])
    low, high = np.array([0.05, 0.1, 0.15, 0.15]), np.array([0.1, 0.2, 0.3, 0.3])
    assert (waits >= low).all() and (waits <= high).all(), waits
    assert (gaps > low).all(), gaps


# --- mirrors ---


@pytest.fixture
def nobody():
    """A root where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/sas"


def test_the_second_root_is_not_asked_while_the_first_answers(sas, other, bring):
    assert bring(sas, other, paths=NAMES) == {} and right(bring.folder, NAMES)
    assert len(sas.asked) == len(NAMES) and not other.asked


def test_a_root_that_is_down_costs_little(nobody, other, bring, waits):
    tally = Tally()
    polite = Manners(requests_per_minute=None)
    assert bring(nobody, other, paths=NAMES, manners=polite, tally=tally) == {}
    assert right(bring.folder, NAMES) and not any(waits)
    assert tally.requests <= len(NAMES) + 5, "five streams may find out at the same time"


def test_a_root_that_stalls_costs_one_time_out(sas, other, bring, waits):
    sas.always, tally = stall, Tally()
    manners = Manners(timeout=1, requests_per_minute=None)
    assert bring(sas, other, paths=NAMES, manners=manners, tally=tally) == {}
    assert right(bring.folder, NAMES) and not any(waits)
    assert len(other.asked) == len(NAMES) and tally.requests <= len(NAMES) + 5


def test_a_root_that_answers_500_is_passed_over(sas, other, bring, waits):
    sas.always = refuse(500)
    polite = Manners(requests_per_minute=None)
    assert bring(sas, other, paths=NAMES, manners=polite) == {} and right(bring.folder, NAMES)
    assert len(sas.asked) <= 5 and not any(waits)


def test_a_root_that_asks_for_a_pause_gets_it_while_another_is_asked(sas, other, bring, waits):
    sas.always = refuse(503, Retry_After=60)
    assert bring(sas, other, paths=NAMES) == {} and right(bring.folder, NAMES)
    assert len(sas.asked) <= 5 and not any(waits)


def test_what_the_first_root_lacks_comes_from_the_second(sas, other, bring, tmp_path):
    del sas.files[ONE]
    assert bring(sas, other, paths=NAMES[:3]) == {} and right(bring.folder, NAMES[:3])
    assert sas.of() == [(None, 404)] * 2 and other.of() == [(None, 200)]
    assert not list((tmp_path / "cache").rglob("*.absent"))


def test_what_the_first_root_has_damaged_comes_from_the_second(sas, other, bring):
    sas.files[ONE] = content(NAMES[1])
    assert bring(sas, other, paths=NAMES[:3]) == {} and right(bring.folder, NAMES[:3])
    assert len(sas.asked) == 3 and other.of() == [(None, 200)]


def test_a_part_of_one_root_is_gone_on_with_at_another_only_if_it_is_the_same(sas, other, bring):
    sas.plans[ONE] = [cut]
    assert bring(sas, other) == {} and right(bring.folder)
    assert other.of() == [(100_000, 206)]
    sas.plans[NAMES[1]] = [cut]
    other.tags[NAMES[1]] = '"another"'
    network._answered.clear()
    assert bring(sas, other, paths=NAMES[1:2]) == {} and right(bring.folder, NAMES[1:2])
    assert other.of(NAMES[1]) == [(100_000, 200)]


def test_what_all_roots_lack_is_absent(sas, other, bring):
    for server in (sas, other):
        del server.files[ONE]
    assert bring(sas, other, paths=NAMES[:2]) == {ONE: Loss(True, ABSENT)}
    assert sas.of() == other.of() == [(None, 404)] * 2
    assert bring(sas, other, paths=NAMES[:2]) == {ONE: Loss(True, ABSENT)}
    assert len(sas.of()) == len(other.of()) == 2, "not asked again"


def test_absent_takes_all_roots_word_for_it(sas, other, nobody, bring):
    """One says no, one cannot say: it may be there."""
    del sas.files[ONE]
    other.always = refuse(500)
    with pytest.raises(UserError, match=f"{other.url}/{ONE}: answered 500") as caught:
        bring(sas, other)
    assert "\n" not in str(caught.value) and len(other.asked) == QUICK.tries
    with pytest.raises(UserError, match=f"{nobody}: cannot be reached"):
        bring(sas, nobody)
    assert bring(sas) == {ONE: Loss(True, ABSENT)}


def test_a_trouble_before_a_no_leaves_it_a_no(sas, bring):
    del sas.files[ONE]
    sas.plans[ONE] = [refuse(500), refuse(404), refuse(500)]
    assert bring(sas) == {ONE: Loss(True, ABSENT)}


def test_pauses_are_made_where_all_roots_are_in_trouble(sas, other, bring):
    sas.always = other.always = refuse(500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "FIRST_WAIT", 0.2)
        with pytest.raises(UserError, match="tried 6 times"):
            bring(sas, other, manners=Manners(tries=3))
    times = sorted(each.time for each in sas.asked + other.asked)
    assert len(times) == 6 and times[-1] - times[0] > 0.4


def test_a_folder_before_a_url(sas, bring, tmp_path):
    for name in NAMES[:4]:
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    roots = [str(tmp_path / "local"), sas.url]
    assert bring(*roots, paths=[*NAMES, "boss/none"]) == {"boss/none": Loss(True, ABSENT)}
    assert right(bring.folder, NAMES)
    assert (bring.folder / NAMES[3]).is_symlink() and not (bring.folder / NAMES[4]).is_symlink()
    assert {each.path for each in sas.asked} == {*NAMES[4:], "boss/none"}


# --- the end of a run ---


def test_403_stops_everything_soon_with_advice_and_keeps_what_came(sas, bring, tmp_path):
    """All files are on their way, and of all something has come, when one of them is refused."""
    assert bring(sas, paths=NAMES[:2]) == {}
    before = set(threading.enumerate())  # other tests of this process may have left some
    others = [name for name in NAMES[2:] if name != NAMES[5]]
    parts = [tmp_path / "cache" / f"{name}.part" for name in others]

    def refuse_late(*answer):
        while not all(part.exists() and part.stat().st_size for part in parts):
            time.sleep(0.01)
        refuse(403)(*answer)

    sas.plans = {name: [drip] for name in others} | {NAMES[5]: [refuse_late]}
    patient = Manners(timeout=60, requests_per_minute=None)
    with pytest.raises(UserError, match="answered 403 Forbidden.*helpdesk") as caught:
        bring(sas, paths=NAMES, manners=patient, streams=len(NAMES))
    assert "\n" not in str(caught.value) and sas.of(NAMES[5]) == [(None, 403)]
    left = set(threading.enumerate()) - before
    assert not [one for one in left if "ThreadPool" in one.name]
    sizes = [part.stat().st_size for part in parts]
    assert all(0 < size < len(content(ONE)) for size in sizes), "none came to its end meanwhile"
    sas.plans.clear()
    asked = len(sas.asked)
    with pytest.raises(UserError, match="answered 403.*said to another job.*remove .*refused"):
        bring(sas, paths=NAMES)
    assert len(sas.asked) == asked, "the next shard leaves the archive alone"
    os.utime(tmp_path / "cache" / ".refused", (1e9, 1e9))  # an hour later
    tally = Tally()
    assert bring(sas, paths=NAMES, tally=tally) == {} and right(bring.folder, NAMES)
    assert tally.bytes == sum(len(content(name)) for name in NAMES[2:]) - sum(sizes)


def test_an_archive_that_is_down_is_one_line_soon(nobody, bring, monkeypatch):
    monkeypatch.setattr(network, "FIRST_WAIT", 0.05)
    tally, polite = Tally(), Manners(requests_per_minute=None)
    with pytest.raises(UserError, match="cannot be reached.*check the address") as caught:
        bring(nobody, paths=NAMES, manners=polite, give_up=True, tally=tally)
    assert "\n" not in str(caught.value)
    assert tally.requests <= network.FEW * len(NAMES) < polite.tries * len(NAMES)


@pytest.mark.parametrize("give_up", [False, True])
def test_an_archive_in_trouble_is_not_asked_for_every_file(sas, bring, give_up):
    """Nor are files that were never asked for told as lost, or as there."""
    sas.always = refuse(500)
    with pytest.raises(UserError, match="answered 500.*files so"):
        bring(sas, paths=NAMES, give_up=give_up, streams=3)
    assert len({each.path for each in sas.asked}) < len(NAMES)


def test_one_file_that_never_comes_stops_the_run_or_is_lost(sas, bring):
    sas.plans[ONE] = [refuse(500)] * 100
    with pytest.raises(UserError, match=f"{ONE}: answered 500.*run again to go on"):
        bring(sas, paths=NAMES)
    losses = bring(sas, paths=NAMES, give_up=True)
    assert list(losses) == [ONE] and "answered 500" in losses[ONE].reason
    assert not losses[ONE].absent and right(bring.folder, NAMES[1:])
    assert list(bring(sas, paths=[ONE], give_up=True)) == [ONE], "also where it is the only one"
    sas.plans.clear()
    assert bring(sas, paths=NAMES) == {} and right(bring.folder, NAMES)


def test_a_root_without_any_of_many_files_is_asked_again_another_time(sas, bring, tmp_path):
    names = [f"boss/none/{number}.bz2" for number in range(30)]
    assert set(bring(sas, paths=names).values()) == {Loss(True, ABSENT)}
    assert not list((tmp_path / "cache").rglob("*.absent"))
    sas.files |= {name: content(name) for name in names}
    sas.tags |= dict.fromkeys(names)
    assert bring(sas, paths=names) == {}


FULL = """
set -e
mount -t tmpfs -o size={size}k none {cache}
for size in {size} 20000; do
    mount -o remount,size=${{size}}k {cache}
    find {cache} -name '*.part' -size +0 -printf '%s\\n' > {folder}/parts
    {command} && echo ended 0 || echo ended $?
done
"""


def test_a_disk_that_fills_is_one_line_and_is_gone_on_from(sas, tmp_path):
    """A real one: a small tmpfs, where the system lets us mount it."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here to mount a small disk in")
    cache = tmp_path / "cache"
    cache.mkdir()
    words = shlex.join(command(sas, tmp_path, NAMES))
    script = FULL.format(size=1000, cache=cache, folder=tmp_path, command=words)
    line = ["unshare", "-Urm", "sh", "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["ended", "1", "{}", "ended", "0"], done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert str(cache) in line and "no space left" in line
    assert (tmp_path / "parts").read_text().split(), "some parts were there"
    assert any(each.first for each in sas.asked), "and were gone on from"
    assert right(tmp_path / "out", NAMES)


# --- how the archive is asked ---


def most_within(times, seconds):
    times = np.sort(times)
    return int(max(np.searchsorted(times, times + seconds, "right") - np.arange(len(times))))


def test_requests_and_streams_are_bounded_retries_and_redirects_too(sas, bring):
    def away(handler, *_):
        send(handler, 302, {"Location": handler.path + "?again"}, b"")

    sas.files |= {f"{name}?again": content(name) for name in NAMES}
    sas.tags |= {f"{name}?again": None for name in NAMES}
    sas.plans = {name: [refuse(500), away] for name in NAMES}
    sas.delay = 0.05
    tally = Tally()
    polite = Manners(longest_wait=0.02, requests_per_minute=1200)
    assert bring(sas, paths=NAMES, manners=polite, streams=3, tally=tally) == {}
    assert right(bring.folder, NAMES)
    assert len(sas.asked) == tally.requests == 36
    assert sas.most <= 3 and most_within([each.time for each in sas.asked], 0.5) <= 12


def test_requests_and_streams_are_bounded_over_processes(sas, tmp_path):
    rng = random.Random(5)
    sas.plans = {name: [refuse(500)] * rng.randrange(3) for name in NAMES}
    failures, sas.delay = sum(map(len, sas.plans.values())), 0.05
    running = [
        subprocess.Popen(
            command(sas, tmp_path, NAMES, out, streams=3, requests_per_minute=1200),
            stdout=subprocess.DEVNULL,
        )
        for out in ("one", "two")
    ]
    assert [process.wait(30) for process in running] == [0, 0]
    assert len(sas.asked) == len(NAMES) + failures, "each file was fetched once"
    assert sas.most <= 3 and most_within([each.time for each in sas.asked], 0.5) <= 12
    assert right(tmp_path / "one", NAMES) and right(tmp_path / "two", NAMES)


def test_bytes_a_second_are_bounded(sas, bring):
    began = time.monotonic()
    slow = Manners(mb_per_second=1.5, requests_per_minute=None)
    assert bring(sas, paths=NAMES[:5], manners=slow) == {} and right(bring.folder, NAMES[:5])
    assert time.monotonic() - began > 0.8


# --- frames from the services ---

SKY = Sky()
FRAMES = [frame_path(SKY.field(step), band) for step in (0, 1) for band in BANDS]


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    database = small_survey.make(folder / "survey.duckdb", photo=[{}])
    image = np.zeros(FRAME_SHAPE, dtype=np.float32)
    for step in (0, 1):
        for band in BANDS:
            write_frame(folder, SKY.field(step), band, image, SKY.wcs(band, step))
    return {"database": database, "archive": folder}


@pytest.mark.parametrize("seed", [1, 2])
def test_all_faults_at_once_leave_the_bytes_as_they_are(survey, tmp_path, seed):
    manners = Manners(timeout=1.5, tries=20, longest_wait=0.05, requests_per_minute=None)
    tally, faults = Tally(), Faults(rate=0.5, seed=seed)
    with Services(**survey, work=tmp_path / "work", faults=faults) as services:
        losses = archive.deliver(
            FRAMES, [services.sas], tmp_path / "out", gather.check, tmp_path / "cache",
            manners=manners, tally=tally,
        )  # fmt: skip
    log, most = services.log, services.most_at_once
    assert losses == {}
    for path in FRAMES:
        assert (tmp_path / "out" / path).read_bytes() == (survey["archive"] / path).read_bytes()
    assert sum(tally.troubles.values()) == sum(each.fault is not None for each in log) > 5
    assert tally.requests == len(log) and most <= 5
    assert tally.bytes == pytest.approx(sum(each.sent for each in log), rel=0.5)
    assert Counter(left_in(tmp_path / "cache")) == Counter(Path(path).name for path in FRAMES)


def test_frames_that_are_gone_are_absent_whatever_else_happens(survey, tmp_path):
    manners = Manners(timeout=0.6, tries=20, longest_wait=0.05, requests_per_minute=None)
    faults = Faults(rate=0.3, seed=3, kinds=("500", "reset", "cut", "503"))
    work = tmp_path / "work"
    with Services(**survey, work=work, faults=faults, gone=0.3) as services:
        losses = archive.deliver(
            FRAMES, [services.sas], tmp_path / "out", gather.check, manners=manners
        )
    gone = {each.path.removeprefix("/sas/dr9/") for each in services.log if each.fault == "gone"}
    assert 0 < len(gone) < len(FRAMES)
    assert losses == dict.fromkeys(gone, Loss(True, ABSENT))


@pytest.mark.skipif(not shutil.which("wget"), reason="wget is not installed")
def test_the_server_of_these_tests_is_one_that_wget_resumes_from(sas, tmp_path):
    (tmp_path / "0.fits.bz2").write_bytes(content(ONE)[:100_000])
    command = ["wget", "-q", "-c", "-P", tmp_path, f"{sas.url}/{ONE}"]
    assert subprocess.run(command, timeout=20).returncode == 0
    assert (tmp_path / "0.fits.bz2").read_bytes() == content(ONE)
