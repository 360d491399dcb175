"""Asking over HTTP: pauses, paces, places, and one line for what is wrong."""

from __future__ import annotations

import datetime
import os
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import httpx
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from services import Services
from small_survey import make

from pipeline.run import UserError
from pipeline.survey import network
from pipeline.survey.network import GaveUp, Manners, Pace, Streams, Trouble, Unreachable

NEVER = threading.Event()
QUICK = Manners(tries=5, longest_wait=0.01)


def test_retry_after_in_seconds():
    for text, seconds in (("0", 0), (" 120 ", 120), ("", None), ("soon", None), ("-3", None),
                          ("\xb2", None), ("1.5", None)):  # fmt: skip
        assert network.retry_after({"Retry-After": text}) == seconds
    assert network.retry_after({}) is None


@pytest.mark.parametrize("years", [-30, 0, 30])
@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000"])
def test_a_date_is_taken_against_the_answers_own_whatever_the_clock_here(years, zone):
    there = time.time() + years * 365 * 86400

    def date(after):
        return formatdate(there + after, usegmt=True).replace("GMT", zone)

    headers = {"Date": formatdate(there, usegmt=True), "Retry-After": date(90)}
    assert network.retry_after(headers) == 90
    assert network.retry_after(headers | {"Retry-After": date(-90)}) == 0


def test_a_date_without_one_to_compare_is_taken_against_the_clock():
    soon = formatdate(time.time() + 100, usegmt=True)
    assert network.retry_after({"Retry-After": soon}) == pytest.approx(100, abs=2)


@given(st.integers(0, 5000), st.floats(0.01, 1e4))
def test_pauses_double_up_to_the_longest_and_jitter_within_their_upper_half(attempt, longest):
    whole = min(network.FIRST_WAIT * 2 ** min(attempt, 100), longest)
    assert whole / 2 <= network.pause(attempt, None, Manners(longest_wait=longest)) <= whole


@given(st.floats(0.01, 600), st.floats(0.01, 1e4))
def test_what_a_service_asks_for_is_kept_but_bounded(asked, longest):
    assert network.pause(3, asked, Manners(longest_wait=longest)) == min(asked, longest)


def test_who_asks_for_an_hour_is_not_asked_before_it_is_over():
    with pytest.raises(network.NoWay, match="not to be asked again for 1h00m"):
        network.pause(0, 3600.0, Manners())
    assert network.pause(0, 3600.0, Manners(longest_wait=7200)) == 3600
    assert network.pause(0, 0.0, Manners()) > 0, "none at all is no pause"


def tried(error, url, manners=QUICK):
    times = []

    def act():
        times.append(1)
        raise error

    with pytest.raises(GaveUp) as caught:
        network.patiently(act, "q.sql", url, manners, NEVER)
    return len(times), str(caught.value)


def test_a_host_that_has_answered_is_waited_for_and_a_strange_one_is_not():
    away = Unreachable("cannot be reached (refused)")
    times, line = tried(away, "https://strange.invalid/x")
    assert times == network.FEW and f"tried {network.FEW} times" in line
    assert "q.sql: https://strange.invalid/x: cannot be reached" in line and "VPN" in line
    network.note_answer("https://known.invalid/x")
    assert tried(away, "https://known.invalid/other")[0] == QUICK.tries
    assert tried(Trouble("answered 503"), "https://strange.invalid")[0] == QUICK.tries
    assert tried(away, "https://strange.invalid", Manners(tries=1))[0] == 1


def test_a_try_that_succeeds_ends_the_pauses():
    answers = iter([Trouble("no"), Trouble("no", wait=100), "rows"])

    def act():
        answer = next(answers)
        if isinstance(answer, Trouble):
            raise answer
        return answer

    assert network.patiently(act, "q", "http://a.invalid", QUICK, NEVER) == "rows"


def test_what_is_no_trouble_is_not_tried_again():
    with pytest.raises(UserError, match="^wrong$"):
        network.patiently(lambda: (_ for _ in ()).throw(UserError("wrong")), "q", "http://a.invalid",
                          QUICK, NEVER)  # fmt: skip


def test_a_stop_ends_a_long_pause():
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with pytest.raises(GaveUp):
        network.patiently(lambda: (_ for _ in ()).throw(Trouble("no", 60)), "q", "http://a.invalid",
                          Manners(), stop)  # fmt: skip
    assert time.monotonic() - began < 50


@pytest.mark.parametrize(
    "wrong",
    [dict(tries=0), dict(timeout=0), dict(timeout=-1), dict(longest_wait=float("nan")),
     dict(query_seconds=float("inf")), dict(requests_per_minute=0), dict(mb_per_second=-2)],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused_by_their_flag(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} .*above 0"):
        Manners(**wrong)


TAKE = (
    "import sys, threading, time; from pipeline.survey.network import Pace\n"
    "pace = Pace(sys.argv[1], 50)\n"
    "for _ in range(15):\n pace.take(threading.Event()); print(time.time())"
)


def test_threads_and_processes_keep_one_pace(tmp_path):
    file = tmp_path / "pace"
    others = [
        subprocess.Popen([sys.executable, "-c", TAKE, file], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    pace, times = Pace(file, 50), []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(40):
            pool.submit(lambda: (pace.take(NEVER), times.append(time.time())))
    for other in others:
        out, _ = other.communicate()
        times += map(float, out.split())
    assert len(times) == 70
    for start in times:  # 50 a second, and not the double in any stretch of time
        assert sum(start <= other < start + 0.5 for other in times) <= 35


def test_a_rest_is_for_all_and_a_clock_that_was_set_back_is_not_waited_for(tmp_path):
    one, other = Pace(tmp_path / "pace", None), Pace(tmp_path / "pace", 1000)
    one.rest(0.3)
    one.rest(0.1)  # the longer one holds
    began = time.monotonic()
    other.take(NEVER)
    assert 0.25 < time.monotonic() - began < 50
    (tmp_path / "pace").write_text(f"{time.time() + 1e6}")
    began = time.monotonic()
    other.take(NEVER)
    one.take(NEVER)
    assert time.monotonic() - began < 50
    (tmp_path / "pace").write_text("torn by a full disk")
    other.take(NEVER)
    assert time.monotonic() - began < 50


HOLD = (
    "import sys, threading, time\nfrom pipeline.survey.network import Streams\n"
    "streams, never = Streams(sys.argv[1], 2), threading.Event()\n"
    "for _ in range(6):\n"
    " with streams.one(never):\n  print(time.time()); time.sleep(0.03); print(time.time())"
)


def test_places_are_bounded_over_threads_and_processes_and_free_after_a_kill(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    streams, spans = Streams(tmp_path, 2), []

    def hold():
        with streams.one(threading.Event()):
            began = time.time()
            time.sleep(0.03)
            spans.append((began, time.time()))

    with ThreadPoolExecutor(6) as pool:
        for _ in range(40):
            pool.submit(hold)
    times = list(map(float, other.communicate()[0].split()))
    spans += list(zip(times[::2], times[1::2], strict=True))
    assert len(spans) == 46
    assert max(sum(a <= at < b for a, b in spans) for at, _ in spans) <= 2
    held = (
        "import sys, threading, time\nfrom pipeline.survey.network import Streams\n"
        "with Streams(sys.argv[1], 1).one(threading.Event()):\n print(1, flush=True); time.sleep(9)"
    )
    killed = subprocess.Popen([sys.executable, "-c", held, tmp_path], stdout=subprocess.PIPE)
    killed.stdout.readline()
    threading.Timer(0.1, killed.kill).start()
    with Streams(tmp_path, 1).one(threading.Event()):
        assert killed.wait() == -9
    killed.stdout.close()


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"<html><body><h1>503 Service\n Unavailable</h1>", "", 'a web page ("503 Service Unav'),
        (b"\n <!DOCTYPE HTML><title>A &amp; B</title>", "", 'a web page ("A & B")'),
        (b"\xef\xbb\xbf<!doctype html>", "", "a web page"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC ""><h1>x</h1>', "", 'a web page ("x")'),
        (b"<h1>404 Not Found</h1>", "", 'a web page ("404 Not Found")'),
        (b"anything", "text/html; charset=utf-8", "a web page"),
        (b"objID,class\n1,<html>\n", "text/plain", None),
        (b"", "", None),
        (b"BZh9\x31\x41", "application/octet-stream", None),
        (b"<headers>no</headers>", "", None),
    ],
)
def test_a_web_page_is_told_from_data(body, kind, words):
    page = network.web_page(body, kind)
    assert page == words or page.startswith(words)


def test_a_trickle_is_broken_off_and_a_stream_is_not():
    def chunks(size):
        for _ in range(100):
            time.sleep(0.01)
            yield b"x" * size

    with pytest.raises(Trouble, match="bytes a second"):
        b"".join(network.unless_slow(chunks(2), 0.2))
    assert len(b"".join(network.unless_slow(chunks(100), 0.2))) == 10_000


ERRORS = [
    (httpx.InvalidURL("no"), UserError, "give an http"),
    (httpx.UnsupportedProtocol("ftp"), UserError, "give an http"),
    (httpx.ConnectError("refused"), Unreachable, "cannot be reached (refused)"),
    (httpx.ConnectTimeout(""), Unreachable, "cannot be reached (ConnectTimeout)"),
    (httpx.ProxyError("407"), Unreachable, "cannot be reached (407)"),
    *((kind(""), Trouble, "time-out")
      for kind in (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout)),
    (httpx.TooManyRedirects("x"), Trouble, "round in circles"),
    *((kind(""), Trouble, "broke off")
      for kind in (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError,
                   httpx.LocalProtocolError, httpx.DecodingError)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "kind", "words"), ERRORS)
def test_every_failure_of_a_request_has_its_words(error, kind, words):
    said = network.in_words(error, "http://a.invalid")
    assert type(said) is kind and words in str(said) and "\n" not in str(said)


def test_all_errors_of_httpx_are_among_those():
    def below(kind):
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    ends = {kind for kind in below(httpx.HTTPError) if not kind.__subclasses__()}
    ours = {type(error) for error, _, _ in ERRORS}
    assert ends - ours <= {httpx.HTTPStatusError}  # raised by raise_for_status alone


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    return dict(database=make(folder / "survey.duckdb"), archive=folder)


@pytest.mark.parametrize(("begins", "ends"), [(-20, -10), (10, 20)])
def test_a_certificate_out_of_its_time_speaks_of_the_clock(
    survey, tmp_path, monkeypatch, begins, ends
):
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = (now + datetime.timedelta(days=days) for days in (begins, ends))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate = authority.issue_cert("127.0.0.1", not_before=begins, not_after=ends)
    certificate.configure_cert(context)
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(tmp_path / "ca.pem"))
    with (
        Services(**survey, work=tmp_path / "work", ssl=context) as services,
        QUICK.client() as client,
    ):

        def act():
            try:
                return client.get(services.url)
            except httpx.HTTPError as error:
                raise network.in_words(error, services.url) from None

        with pytest.raises(GaveUp, match="is this machine's clock right") as caught:
            network.patiently(act, services.url, services.url, QUICK, NEVER)
        assert "\n" not in str(caught.value)
