"""The archive: folders, file:// and HTTP; faults, the shared cache, its cap, concurrency."""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.run import UserError
from pipeline.survey import archive
from pipeline.survey.network import Manners
from pipeline.survey.transfer import ABSENT, Damaged, Loss

QUICK = Manners(timeout=5, tries=5, longest_wait=0.01, requests_per_minute=None)
NAMES = [f"boss/301/94/{number}.fits.bz2" for number in range(8)]


def check(path, data):
    """Stands for the check of a frame: a file holds its own name."""
    if not data.startswith(path.encode()):
        raise Damaged("not what its name promises")


def content(name):
    return name.encode() + b"\n" + bytes(range(256)) * 400


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in NAMES:
        path = tmp_path / "sas" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    return tmp_path / "sas"


class Server:
    """A server of a folder that can be told to misbehave; counts what it was asked for."""

    def __init__(self, folder):
        self.faults, self.asked, self.at_once, self.most, self.delay = {}, [], 0, 0, 0.0
        self.beside = threading.Barrier(1)
        lock, outer = threading.Lock(), self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(folder))

            def log_message(self, *args):
                pass

            def do_GET(self):
                with lock:
                    outer.asked.append(self.path.lstrip("/"))
                    outer.at_once += 1
                    outer.most = max(outer.most, outer.at_once)
                with contextlib.suppress(threading.BrokenBarrierError):
                    outer.beside.wait()
                time.sleep(outer.delay)
                with lock:  # before it answers: a client that has it all may ask again at once
                    outer.at_once -= 1
                fault = outer.faults.get(self.path.lstrip("/"), SimpleHTTPRequestHandler.do_GET)
                with contextlib.suppress(ConnectionError):
                    fault(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(tree):
    server = Server(tree)
    yield server
    server.http.shutdown()
    server.http.server_close()


def closes_early(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"x" * 5000)


def breaks_chunks(handler):
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"1388\r\n" + b"x" * 1000)


def ends_short_without_length(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"x" * 5000)


def garbage(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "21")
    handler.end_headers()
    handler.wfile.write(b"<html>Maintenance.</h")


def server_error(handler):
    handler.send_error(500)


def nonsense(handler):
    handler.wfile.write(b"this is no HTTP\r\n\r\n")


def loops(handler):
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.end_headers()


def stored(folder):
    return sorted(
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    )


def test_a_folder_is_linked(tree, tmp_path):
    losses = archive.deliver(NAMES, [str(tree)], tmp_path / "out", check)
    assert losses == {}
    for name in NAMES:
        assert (tmp_path / "out" / name).is_symlink()
        assert (tmp_path / "out" / name).read_bytes() == content(name)


def test_file_url_and_relative_folder_are_the_same(tree, tmp_path, monkeypatch):
    spaced = tmp_path / "a b"
    os.symlink(tree, spaced)
    monkeypatch.chdir(tmp_path)
    for number, root in enumerate((f"file://{tree}", f"file://{tmp_path}/a%20b", "sas")):
        out = tmp_path / f"out{number}"
        assert archive.deliver(NAMES, [root], out, check) == {}
        assert (out / NAMES[3]).read_bytes() == content(NAMES[3])


def test_what_a_folder_lacks_is_absent(tree, tmp_path):
    losses = archive.deliver([NAMES[0], "boss/none.bz2"], [str(tree)], tmp_path / "out", check)
    assert list(losses) == ["boss/none.bz2"] and losses["boss/none.bz2"].absent
    assert not (tmp_path / "out" / "boss/none.bz2").exists()


def test_http_gives_the_bytes_of_the_folder(tree, server, tmp_path):
    assert archive.deliver(NAMES, [server.url], tmp_path / "out", check, tmp_path / "cache") == {}
    for name in NAMES:
        assert (tmp_path / "out" / name).read_bytes() == content(name)
        assert os.path.samefile(tmp_path / "out" / name, tmp_path / "cache" / name)
    assert stored(tmp_path / "cache") == sorted(NAMES)


def test_a_trailing_slash_of_the_root_is_no_matter(server, tmp_path):
    assert archive.deliver(NAMES[:1], [server.url + "/"], tmp_path / "out", check) == {}
    assert server.asked == NAMES[:1]


def test_404_is_absent_and_is_not_asked_for_ever(server, tmp_path):
    for number in range(3):
        out = tmp_path / str(number)
        losses = archive.deliver(["boss/none.bz2"], [server.url], out, check, tmp_path / "c")
        assert losses["boss/none.bz2"] == Loss(True, ABSENT)
        assert stored(out) == []
    assert stored(tmp_path / "c") == ["boss/none.bz2.absent"]
    assert server.asked == ["boss/none.bz2"] * 2, "asked twice to be sure, then not again"


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (closes_early, "broke off"),
        (breaks_chunks, "broke off"),
        (garbage, "a web page"),
        (server_error, "answered 500"),
        (nonsense, "broke off"),
        (loops, "round in circles"),
    ],
)
def test_what_does_not_pass_stops_and_goes_on_another_time(server, tmp_path, fault, line):
    server.faults[NAMES[2]] = fault
    with pytest.raises(UserError, match=line) as caught:
        archive.deliver(NAMES, [server.url], tmp_path / "out", check, tmp_path / "c", manners=QUICK)
    assert NAMES[2] in str(caught.value) and "\n" not in str(caught.value)
    rest = sorted(set(NAMES) - {NAMES[2]})
    assert stored(tmp_path / "out") == rest
    assert server.asked.count(NAMES[2]) == QUICK.tries * (6 if fault is loops else 1)
    server.faults.clear()
    assert archive.deliver(NAMES, [server.url], tmp_path / "o", check, tmp_path / "c") == {}
    assert (tmp_path / "o" / NAMES[2]).read_bytes() == content(NAMES[2])
    assert sorted(set(server.asked[-1:])) == NAMES[2:3], "what had come was not asked for again"


def test_what_does_not_pass_can_cost_its_own_file(server, tmp_path):
    server.faults[NAMES[2]] = server_error
    losses = archive.deliver(
        NAMES, [server.url], tmp_path / "out", check, manners=QUICK, give_up=True
    )
    assert list(losses) == [NAMES[2]]
    assert not losses[NAMES[2]].absent and "answered 500" in losses[NAMES[2]].reason


def test_the_same_damage_again_and_again_is_the_archives_own(server, tmp_path):
    server.faults[NAMES[2]] = ends_short_without_length
    losses = archive.deliver(
        NAMES, [server.url], tmp_path / "out", check, tmp_path / "cache", manners=QUICK
    )
    assert losses == {NAMES[2]: Loss(False, "not what its name promises")}
    assert server.asked.count(NAMES[2]) == 4
    rest = sorted(set(NAMES) - {NAMES[2]})
    assert stored(tmp_path / "cache") == rest and stored(tmp_path / "out") == rest


def test_what_is_stored_is_not_fetched_again(server, tmp_path):
    for number in range(3):
        archive.deliver(NAMES, [server.url], tmp_path / f"out{number}", check, tmp_path / "cache")
    assert sorted(server.asked) == sorted(NAMES)


def test_a_killed_downloads_part_is_written_over(server, tmp_path):
    part = tmp_path / "cache" / f"{NAMES[0]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"y" * 1_000_000)
    assert archive.deliver(NAMES[:1], [server.url], tmp_path / "o", check, tmp_path / "cache") == {}
    assert (tmp_path / "o" / NAMES[0]).read_bytes() == content(NAMES[0])
    assert stored(tmp_path / "cache") == NAMES[:1]


def test_the_cache_stays_under_its_cap_and_keeps_what_was_used_last(server, tmp_path):
    cache, size = tmp_path / "cache", len(content(NAMES[0]))
    archive.deliver(NAMES[:4], [server.url], tmp_path / "one", check, cache)
    for age, name in enumerate(NAMES[:4]):
        os.utime(cache / name, (1e9 + age, 1e9 + age))
    archive.deliver(NAMES[:1], [server.url], tmp_path / "two", check, cache)  # used again
    archive.deliver(NAMES[4:5], [server.url], tmp_path / "two", check, cache, 3.5 * size / 1e9)
    assert stored(cache) == sorted([NAMES[0], NAMES[3], NAMES[4]])
    for name in NAMES[:4]:  # what a shard in flight holds is not taken away
        assert (tmp_path / "one" / name).read_bytes() == content(name)


def test_no_more_than_so_many_downloads_at_a_time(server, tmp_path):
    """Each is answered when another is beside it, and a while later: a third would be seen."""
    server.beside, server.delay = threading.Barrier(2, timeout=20), 0.05
    patient = replace(QUICK, timeout=60)
    archive.deliver(NAMES, [server.url], tmp_path / "out", check, streams=2, manners=patient)
    assert server.most == 2


def test_threads_that_want_one_file_fetch_it_once(server, tmp_path):
    server.delay = 0.1
    archive.deliver(NAMES[:1] * 5, [server.url], tmp_path / "out", check, tmp_path / "cache")
    assert server.asked == NAMES[:1]


PROGRAM = """
import sys
from pathlib import Path
from pipeline.survey import archive
names, root, out, cache = sys.argv[1].split(), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
assert archive.deliver(names, [root], out, lambda path, data: None, cache) == {}
"""


def test_processes_that_share_a_cache_fetch_each_file_once(server, tmp_path):
    server.delay = 0.1
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, " ".join(NAMES), server.url,
             str(tmp_path / f"out{number}"), str(tmp_path / "cache")]
        )
        for number in range(2)
    ]  # fmt: skip
    assert [process.wait(60) for process in running] == [0, 0]
    assert sorted(server.asked) == sorted(NAMES)
    assert stored(tmp_path / "out0") == stored(tmp_path / "out1") == sorted(NAMES)


def test_a_cache_on_another_disk_is_copied_from(server, tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system (/dev/shm) to try it with")
    with tempfile.TemporaryDirectory(dir=other) as cache:
        assert archive.deliver(NAMES, [server.url], tmp_path / "o", check, Path(cache)) == {}
    assert (tmp_path / "o" / NAMES[0]).read_bytes() == content(NAMES[0])


@pytest.mark.parametrize(
    ("root", "line"),
    [
        ("/no/such/folder", "no such folder"),
        ("file:///no/such/folder", "no such folder"),
        ("ftp://data.sdss.org/sas", "give a folder"),
        ("http://127.0.0.1:9", "cannot be reached"),
        ("http://[half", "give a folder or a URL"),
        ("http://127.0.0.1:99999", "cannot be reached"),
        ("http://", "cannot be reached"),
    ],
)
def test_a_root_that_cannot_be_is_one_line(tmp_path, root, line):
    with pytest.raises(UserError, match=line) as caught:
        archive.deliver(NAMES, [root], tmp_path / "out", check, manners=QUICK)
    assert "\n" not in str(caught.value)
