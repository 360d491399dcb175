"""CasJobs and the login: what is asked, what is tried again, and what is said of an error."""

from __future__ import annotations

import random
import threading

import duckdb
import pytest
from services import Services
from services import casjobs as server
from services.faults import Fault
from small_survey import make

from pipeline.run import UserError
from pipeline.survey.casjobs import CasJobs, Job, Refused
from pipeline.survey.credentials import PASSWORD, USER, Account, Secret
from pipeline.survey.names import pack_objid
from pipeline.survey.network import GaveUp, Manners, Pace, Trouble

RUNS = (94, 1904, 8162)
QUICK = Manners(timeout=0.7, longest_wait=0.02, tries=6, requests_per_minute=1e6)
TEXTS = ("GALAXY", "star, burst", 'say "x"', "", None)


MADE = {}


def make_survey(folder):
    """Galaxies on three runs with all that makes a CSV hard to read."""
    draw = random.Random(0)
    ids = [int(pack_objid(run, 1 + k % 6, 11 + k // 6, 1 + k)) for run in RUNS for k in range(30)]
    photo = [
        dict(objID=key, run=key >> 32 & 0xFFFF, b=-1e-5 * k, ra=draw.uniform(0, 360),
             dec=draw.uniform(-90, 90), flags=draw.getrandbits(62),
             rowc_u=None if k % 3 else draw.uniform(0, 1489),
             petroMag_g=-9999, colc_z=draw.uniform(0, 2048),
             extinction_r=draw.choice((1e-5, 1.5e-7, 0.1, 0.123456789)))
        for k, key in enumerate(ids)
    ]  # fmt: skip
    spectra = [
        dict(specObjID=(k << 50) + k % 2, bestObjID=ids[k // 2], z=draw.uniform(0.001, 0.4),
             zErr=draw.choice((1e-5, 3.3e-5)), subClass=TEXTS[k % len(TEXTS)])
        for k in range(60)
    ]  # fmt: skip
    photoz = [dict(objID=key, z=draw.choice((-9999, 0.25, draw.random()))) for key in ids[:70]]
    zoo = [dict(specobjid=k << 50, objid=ids[k], nvote=k, p_el=k / 7, spiral=k % 2)
           for k in range(40)]  # fmt: skip
    path = make(folder / "survey.duckdb", spectra, photo, photoz, zoo)
    with duckdb.connect(str(path)) as database:
        database.execute("UPDATE Field SET fieldID = ?, ra = 1e-7", [int(pack_objid(94, 1, 11, 0))])
        for key in sorted({key & ~0xFFFF for key in ids}):
            database.execute(
                "INSERT INTO Field (fieldID, run, camcol, field, a_u) VALUES (?, ?, ?, ?, ?)",
                [key + (1 << 16 << 5), key >> 32 & 0xFFFF, 1, key >> 16 & 0xFFF, draw.random()],
            )
    return path


class Running(Services):
    """Services on which faults are planned: what goes wrong at the next request of a kind."""

    def plan(self, service, kind, count=1, after=0, draw=0.9):
        """`kind`: a fault's, or a function to call; `draw`: each number that it draws."""
        throw = self._dice.throw
        left = [after, count]

        def planned(asked, *request):
            if asked == service and left[0] > 0:
                left[0] -= 1
            elif asked == service and left[1] > 0:
                left[1] -= 1
                if callable(kind):
                    kind()
                else:
                    numbers = random.Random(0)
                    numbers.random = lambda: draw
                    return Fault(kind, service, numbers)
            return throw(asked, *request)

        self._dice.throw = planned

    def asked(self, method, end):
        """How often a path was asked for."""
        return sum(one.method == method and one.path.lower().endswith(end) for one in self.log)


@pytest.fixture(scope="session")
def survey(tmp_path_factory):
    if not MADE:  # each module that imports this fixture has one of its own
        folder = tmp_path_factory.mktemp("survey")
        MADE.update(database=make_survey(folder), archive=folder)
    return MADE


@pytest.fixture
def start(survey, tmp_path, monkeypatch):
    monkeypatch.setenv(USER, "astronomer")
    monkeypatch.setenv(PASSWORD, "secret")
    running = []

    def begin(**options):
        options = {**survey, "job_seconds": 0.02, "queries_a_minute": 10_000, **options}
        running.append(Running(work=tmp_path / f"services-{len(running)}", **options))
        running[-1].start()
        return running[-1]

    yield begin
    for services in running:
        services.stop()


@pytest.fixture
def session(start, tmp_path):
    sessions = []

    def begin(services=None, password="secret", base=None, login=None, **options):
        services = services or start(**options)
        pace = Pace(tmp_path / "pace", None)
        account = Account("astronomer", Secret(password))
        one = CasJobs(base or services.casjobs, login or services.login, account, QUICK, pace)
        sessions.append(one)
        return services, one

    yield begin
    for one in sessions:
        one.close()


SQL = "SELECT objID INTO MyDB.t FROM PhotoObjAll"


def wait(service, number):
    for _ in range(300):
        if (job := service.job(number)).status >= 3:
            return job
        threading.Event().wait(0.01)
    raise AssertionError(job)


def test_a_job_is_put_listed_and_told_of(session):
    services, service = session()
    number = service.put("DR12", SQL, "a task")
    job = wait(service, number)
    assert job == Job(number, "a task", 5, 90, "") and service.jobs() == [job]
    assert service.tables() == {"t": 90}
    assert service.quick("MyDB", "SELECT COUNT(*) AS n FROM t", "x") == b"n\n90\n"
    assert services.asked("POST", "/tokens") == 1


def test_a_job_that_failed_has_the_services_words(session):
    _, service = session()
    job = wait(service, service.put("DR12", "SELECT nope INTO MyDB.t FROM PhotoObjAll", "x"))
    assert job.status == 4 and job.message == "Invalid column name 'nope'."


def test_a_token_that_has_run_out_is_renewed(session):
    services, service = session(token_seconds=0.2)
    for _ in range(6):
        service.jobs()
        threading.Event().wait(0.1)
    assert 2 <= services.asked("POST", "/tokens") <= 6
    assert sum(one.status == 401 for one in services.log) == services.asked("POST", "/tokens") - 1
    services.plan("query", "expired")
    assert b"1" in service.quick("MyDB", "SELECT 1 AS n", "x")


def test_a_token_that_is_never_taken_ends_in_one_line(session):
    services, service = session(token_seconds=-1)
    with pytest.raises(GaveUp, match="does not take the token that the login service gave"):
        service.jobs()
    assert services.asked("POST", "/tokens") <= QUICK.tries + 1


def test_a_wrong_password_is_tried_once(session):
    services, service = session(password="guess")
    with pytest.raises(
        UserError, match="does not let astronomer in; check the user name"
    ) as caught:
        service.jobs()
    assert services.asked("POST", "/tokens") == 1 and len(services.log) == 1
    assert "guess" not in str(caught.value)


@pytest.mark.parametrize("kind", ["500", "html", "429", "503", "reset", "stall", "slow", "cut"])
def test_what_may_pass_while_polling_is_tried_again(session, kind):
    services, service = session()
    wait(service, service.put("DR12", SQL, "x"))
    services.plan("jobs", kind, count=2, draw=0.1)
    assert len(service.jobs()) == 1
    for _ in range(100):  # the server may learn late that a client has left
        if services.asked("GET", "/jobs/") == 3:
            break
        threading.Event().wait(0.02)
    assert services.asked("GET", "/jobs/") == 3


def test_an_error_of_the_query_is_not_tried_again(session):
    services, service = session()
    for sql, words in (
        ("SELECT x FROM nowhere", "Invalid object name 'nowhere'."),
        ("SELECT 1 FROM", "Incorrect syntax"),
    ):
        with pytest.raises(Refused, match=words):
            service.quick("MyDB", sql, "x")
    with pytest.raises(Refused, match="Context DR77 does not exist"):
        service.put("DR77", SQL, "x")
    assert services.asked("POST", "/query") == 2 and services.asked("PUT", "/jobs") == 1


def test_a_lost_answer_to_a_put_is_trouble_and_the_job_is_there(session):
    services, service = session()
    services.plan("submit", "reset")
    with pytest.raises(Trouble):
        service.put("DR12", SQL, "x")
    assert len(services.jobs()) == 1 and len(service.jobs()) == 1


def test_an_address_that_is_not_casjobs_is_told(session):
    services, service = session()
    for base in (services.url + "/nowhere", services.sas, services.login):
        _, other = session(services, base=base)
        with pytest.raises(UserError, match="source is to be CasJobs' REST interface"):
            other.jobs()
    _, other = session(services, login=services.casjobs)
    with pytest.raises(UserError, match="gives no token; check query: login"):
        other.jobs()
    for base in ("ftp://127.0.0.1/CasJobs", "skyserver.sdss.org/CasJobs"):
        _, other = session(services, base=base)
        with pytest.raises(UserError, match="give an http"):
            other.jobs()


def test_an_address_that_answers_pages_is_told_after_a_while(session):
    services, service = session()
    services.plan("login", "html", count=99)
    with pytest.raises(GaveUp, match=r'sent a web page \("Maintenance"\).*proxy or login page'):
        service.jobs()
    assert services.asked("POST", "/tokens") == QUICK.tries


def test_password_and_token_do_not_go_where_a_redirect_points(session, monkeypatch):
    services, service = session()
    away, _ = session()

    def moved(*_):
        return server.text("", status=308, Location=f"{away.login}?x=1")

    service.jobs()
    monkeypatch.setattr(server.CasJobs, "all", moved)
    monkeypatch.setattr(server.Login, "enter", moved)
    with pytest.raises(UserError, match=f"sends on to {away.login}; if that is right"):
        service.jobs()
    _, fresh = session(services)
    with pytest.raises(UserError, match="sends on to"):
        fresh.jobs()
    assert not away.log


def test_numbers_that_come_as_texts_are_numbers(session, monkeypatch):
    _, service = session()
    plain = server.job_as_json

    def texts(job):
        return {key: str(value) for key, value in plain(job).items()}

    monkeypatch.setattr(server, "job_as_json", texts)
    job = wait(service, service.put("DR12", SQL, "x"))
    assert (job.status, job.rows) == (5, 90)
    monkeypatch.setattr(server, "job_as_json", lambda job: plain(job) | {"Rows": -1})
    assert service.job(job.id).rows is None
    monkeypatch.setattr(server, "job_as_json", lambda job: {
        key: value for key, value in plain(job).items() if key in ("JobID", "Status")})  # fmt: skip
    assert service.job(job.id) == Job(job.id, "", 5, None, "")


@pytest.mark.parametrize("answer", [{"a": 1}, [1, 2], ["x"], None, "text", [{"JobID": "x"}]])
def test_json_of_something_else_is_trouble_and_no_traceback(session, monkeypatch, answer):
    _, service = session()
    monkeypatch.setattr(server.CasJobs, "all", lambda *_: server.as_json(answer))
    with pytest.raises(GaveUp, match="sent not CasJobs' JSON but") as caught:
        service.jobs()
    assert "\n" not in str(caught.value)


def test_a_firewalls_page_is_waited_for_and_not_taken_for_a_refusal(session, monkeypatch):
    services, service = session()
    page = "<html><head><title>Web Page Blocked</title></head></html>"
    monkeypatch.setattr(server.CasJobs, "all", lambda *_: server.text(page, "text/html", 403))
    with pytest.raises(GaveUp, match="Web Page Blocked"):
        service.jobs()
    assert services.asked("GET", "/jobs/") == QUICK.tries


def test_thousands_of_jobs_are_listed(session):
    services, service = session()
    for number in range(3000):
        services._state.put(user="astronomer", context="survey", query="SELECT 1 " * 40,
                            task=f"t{number}")  # fmt: skip
        services._state.change(40_000_001 + number, status=5)
    assert [job.task for job in service.jobs()] == [f"t{number}" for number in range(3000)]


def test_a_job_can_be_cancelled(session):
    _, service = session(job_seconds=1)
    number = service.put("DR12", SQL, "x")
    service.cancel(number)
    assert wait(service, number).status == 3


def test_no_network_is_told_after_a_few_tries(session):
    services, service = session()
    port = services.port
    services.stop()
    other = service.login_url.replace(str(port), "9")  # the port `discard`, where nobody listens
    service.login_url = other
    with pytest.raises(GaveUp, match="cannot be reached .*tried 3 times; check the address"):
        service.jobs()
    services.start()


def test_account_and_token_are_not_in_the_session_s_text(session):
    _, service = session()
    service.jobs()
    shown = repr(service) + str(service.account) + repr(service.client)
    assert "secret" not in shown and service._token not in shown
