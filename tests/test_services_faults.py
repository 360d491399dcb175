"""The faults of the services, as a client sees them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime

import httpx
import pytest
from services import KINDS, WHERE, Faults, Services
from test_services import FIELD, User, survey  # noqa: F401 (survey is a fixture)

from pipeline.survey.names import BANDS, frame_path

PATH = frame_path(FIELD, "r")
HTTP = httpx.Client(timeout=0.5)
INTO = "SELECT objID, ra INTO MyDB.t FROM PhotoObjAll"


@pytest.fixture
def start(survey, tmp_path):  # noqa: F811
    """Services on which some kinds of faults happen, to all requests that they can happen to."""
    running = []

    def begin(*kinds, rate=1.0, seed=0, **options):
        options = dict(job_seconds=0.02, queries_a_minute=10_000) | options
        faults = Faults(rate=rate, seed=seed, kinds=kinds or None)
        work = tmp_path / str(len(running))
        running.append(Services(**survey, work=work, faults=faults, **options))
        running[-1].start()
        return running[-1]

    yield begin
    for services in running:
        services.stop()


def frame(services, **options):
    return HTTP.get(f"{services.sas}/{PATH}", **options)


def answers(services, count=12):
    """What the same request gives again and again."""
    for _ in range(count):
        yield frame(services)


def true_bytes(services, band="r"):
    return (services.archive / frame_path(FIELD, band)).read_bytes()


def logged(services, count=1):
    """The log once it has so many records; a client may be done before the server is."""
    for _ in range(200):
        if len(services.log) >= count:
            break
        time.sleep(0.01)
    return services.log


def test_an_error_and_a_page_of_maintenance(start):
    assert frame(start("500")).status_code == 500
    page = frame(start("html"))
    assert page.status_code == 200 and page.headers["Content-Type"].startswith("text/html")
    assert "maintenance" in page.text
    services = start("500", rate=0.5)
    user = steadfast(services)
    found = {user.http.get(f"{user.base}/jobs/").status_code for _ in range(12)}
    assert found == {200, 500}


@pytest.mark.parametrize("kind", ["429", "503"])
def test_refusals_ask_for_patience_or_do_not(start, kind):
    asked = set()
    for answer in answers(start(kind)):
        assert answer.status_code == int(kind)
        wait = answer.headers.get("Retry-After")
        asked.add(wait if wait in (None, "1") else "date")
        if wait not in (None, "1"):
            date = parsedate_to_datetime(answer.headers["Date"])
            assert 0 <= (parsedate_to_datetime(wait) - date).total_seconds() <= 3
    assert asked == {None, "1", "date"}


def test_a_reset_is_a_reset(start):
    with pytest.raises(httpx.ReadError) as caught:
        frame(start("reset"))
    cause = caught.value
    while cause and not isinstance(cause, ConnectionResetError):
        cause = cause.__cause__ or cause.__context__
    assert isinstance(cause, ConnectionResetError)


def test_a_stall_lasts_until_the_client_leaves(start):
    services = start("stall")
    for _ in range(4):
        with pytest.raises(httpx.ReadTimeout):
            frame(services)
    records = logged(services, 4)
    assert len(records) == 4 and not any(record.whole for record in records)
    assert {record.fault for record in records} == {"stall"}
    assert any(0 < record.sent < record.length for record in records)
    assert any(record.status == 0 for record in records)


def test_a_body_that_is_cut_is_short(start):
    services = start("cut")
    raw = true_bytes(services)
    with (
        pytest.raises(httpx.RemoteProtocolError),
        HTTP.stream("GET", f"{services.sas}/{PATH}") as r,
    ):
        got = b""
        assert r.headers["Content-Length"] == str(len(raw))
        for part in r.iter_bytes():
            got += part
    assert raw.startswith(got) and len(got) < len(raw)
    (record,) = logged(services)
    assert (record.sent, record.length, record.whole) == (len(got), len(raw), False)
    with pytest.raises(httpx.RemoteProtocolError):
        frame(services, headers={"Range": "bytes=100-"})
    assert logged(services, 2)[1].status == 206


def test_rows_are_also_cut_where_a_line_ends(start):
    services = start("cut")
    whole = open_query(start(rate=0.0))
    found = []
    for _ in range(12):
        try:
            found.append(open_query(services))
        except httpx.RemoteProtocolError:
            continue
    assert 2 < len(found) < 10
    assert all(whole.startswith(text) and len(text) < len(whole) for text in found)
    assert all(text == "" or text.endswith("\n") for text in found)
    assert not any(record.whole for record in logged(services, 12))


def open_query(services):
    url = f"{services.casjobs}/contexts/DR12/query"
    asked = {"Query": "SELECT objID, ra FROM PhotoObjAll ORDER BY objID"}
    return HTTP.post(url, json=asked, headers={"Accept": "text/plain"}).text


def test_a_frame_comes_with_one_wrong_byte_or_is_another(start):
    services = start("flip")
    raw, wrong = true_bytes(services), frame(services)
    assert int(wrong.headers["Content-Length"]) == len(raw) == len(wrong.content)
    assert sum(a != b for a, b in zip(raw, wrong.content, strict=True)) == 1
    part = frame(services, headers={"Range": "bytes=-50"}).content
    assert sum(a != b for a, b in zip(raw[-50:], part, strict=True)) == 1
    services = start("wrong-file")
    others = [true_bytes(services, band) for band in BANDS if band != "r"]
    assert all(answer.content in others for answer in answers(services))
    assert open_query(services)  # only frames are mistaken


def test_a_slow_body_crawls(start):
    services = start("slow")
    with (
        pytest.raises(httpx.ReadTimeout),
        HTTP.stream("GET", f"{services.sas}/{PATH}", timeout=0.3) as r,
    ):
        for part in r.iter_raw():
            assert len(part) < 10
    assert logged(services)[0].sent < 20


def steadfast(services, **options):
    """A user whose login is tried until it works."""
    for _ in range(20):
        try:
            user = User(services, **options)
        except httpx.TransportError:
            continue
        if user.answer.status_code == 200 and user.http.headers["X-Auth-Token"]:
            return user
    raise AssertionError("no login in 20 tries")


def test_a_token_ends_before_its_time(start):
    services = start("expired", rate=0.5)
    user = User(services)
    statuses = [user.http.get(f"{user.base}/jobs/").status_code for _ in range(12)]
    first = statuses.index(401)
    assert set(statuses[:first]) <= {200} and set(statuses[first:]) == {401}
    with Services(
        database=services.database, archive=services.archive, work=services.work / "x",
        token_seconds=0.05,
    ) as short:  # fmt: skip
        user = User(short)
        time.sleep(0.1)
        assert user.http.get(f"{user.base}/jobs/").status_code == 401


def test_a_job_accepted_before_a_reset_is_in_the_list(start):
    services = start("reset", rate=0.7)
    user = steadfast(services)
    resets = accepted = 0
    for number in range(8):
        try:
            user.submit(INTO, task=f"task {number}")
        except httpx.TransportError:
            resets += 1
            accepted += any(job["task"] == f"task {number}" for job in services.jobs())
    assert 0 < accepted < resets


def test_a_job_says_early_that_it_has_finished(start):
    user, seen = User(start("finished-early", seed=6)), set()
    for number in range(4):
        sql = INTO.replace("MyDB.t", f"MyDB.t{number}")
        job = user.run(sql)
        assert job["Message"] == "" and job["Rows"] == 41
        answer = user.quick(f"SELECT COUNT(*) AS n FROM t{number}")
        seen.add(answer.text if answer.status_code == 200 else answer.json()["Error Message"][:19])
        for _ in range(200):
            if user.quick(f"SELECT COUNT(*) AS n FROM t{number}").text == "n\n41\n":
                break
            time.sleep(0.01)
        else:
            raise AssertionError("the table never came whole")
    assert seen == {"n\n20\n", "Invalid object name"}


def test_a_wrong_query_does_not_finish_early(start):
    user = User(start("finished-early"))
    assert user.run("SELECT nope INTO MyDB.t FROM PhotoObjAll")["Status"] == 4


def test_the_server_ends_a_job(start):
    user = User(start("cancelled"))
    assert user.run(INTO)["Status"] == 3
    user = User(start("mydb-full"))
    job = user.run(INTO)
    assert job["Status"] == 4 and "the 'PRIMARY' filegroup is full" in job["Message"]
    assert user.wrong("SELECT ra FROM t") == "Invalid object name 't'."


def outcomes(services, order):
    """What became of each of some requests, three times each."""
    with httpx.Client() as http:
        for number in [number for number in order for _ in range(3)]:
            with contextlib.suppress(httpx.TransportError):
                http.get(f"{services.sas}/{PATH}?{number}")
    records = logged(services, 3 * len(order))
    return sorted((record.query, record.fault or "", record.sent) for record in records)


def test_faults_follow_from_the_seed_alone(start):
    kinds = "500", "html", "reset", "cut", "flip"
    forwards = outcomes(start(*kinds, rate=0.5, seed=5), range(12))
    backwards = outcomes(start(*kinds, rate=0.5, seed=5), range(11, -1, -1))
    assert forwards == backwards
    assert {fault for _, fault, _ in forwards} == {"", *kinds}
    other = outcomes(start(*kinds, rate=0.5, seed=6), range(12))
    assert forwards != other


def test_the_rate_is_kept_and_kinds_are_checked(start):
    services = start("html", rate=0.2)
    with httpx.Client() as http:
        pages = [
            "maintenance" in http.get(f"{services.sas}/{PATH}?{n}").text[:200] for n in range(300)
        ]
    assert 0.12 < sum(pages) / len(pages) < 0.28
    with pytest.raises(ValueError, match="no such kinds"):
        Faults(kinds=("tea",))
    assert set(WHERE) == set(KINDS)


def test_lost_frames_stay_lost(start):
    services = start(rate=0.0, gone=0.5)
    status = {}
    for root in (services.sas, services.url + "/sas/dr12"):
        for band in BANDS:
            answer = httpx.get(f"{root}/{frame_path(FIELD, band)}")
            assert status.setdefault(band, answer.status_code) == answer.status_code
    assert set(status.values()) == {200, 404}
    assert {record.fault for record in services.log if record.status == 404} == {"gone"}


def test_a_killed_server_goes_on_with_its_jobs(start, tmp_path):
    services = start(rate=0.0)
    flags = [f"--database={services.database}", f"--archive={services.archive}"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags += [f"--work={tmp_path}/killed", f"--port={port}"]

    def run(seconds):
        command = [sys.executable, "-m", "tests.services", *flags, f"--job-seconds={seconds}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline().startswith('{"url"')
        return process

    first = run(0.6)
    services.port, port = port, services.port  # User asks the process's port
    user = User(services)
    jobs = [user.submit(INTO.replace("MyDB.t", f"MyDB.t{n}")) for n in range(3)]
    user.wait(jobs[0])
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = run(0.02)
    assert [user.wait(job)["Status"] for job in jobs] == [5, 5, 5]
    assert [user.rows(f"SELECT COUNT(*) AS n FROM t{n}")[1] for n in range(3)] == [["41"]] * 3
    second.terminate()
    assert second.wait(10) == 0
    second.stdout.close()
