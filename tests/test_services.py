"""The services on loopback: strangers' clients work with them unchanged."""

from __future__ import annotations

import bz2
import json
import shutil
import ssl
import subprocess
import time
from email import policy
from email.parser import BytesParser

import httpx
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from services import Services
from services.sas import Sas
from small_survey import KNOWN, make, objid

from pipeline.survey.names import BANDS, Field, frame_path

FIELD = Field(1904, 3, 163)
PHOTO = [
    dict(objID=objid(obj), ra=150.0 + obj / 1000, dec=2.0, petroMag_r=17.0 + obj / 100)
    for obj in range(1, 41)
]


def make_frames(root):
    """Files in a frame's shape and place, but small."""
    for number, band in enumerate(BANDS):
        file = root / frame_path(FIELD, band)
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).normal(size=(149, 204)).astype(np.float32)
        raw = fits.HDUList([fits.PrimaryHDU(pixels)])
        raw.writeto(file.with_suffix(""), overwrite=True)
        file.write_bytes(bz2.compress(file.with_suffix("").read_bytes()))
        file.with_suffix("").unlink()
    return root


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Database and archive."""
    folder = tmp_path_factory.mktemp("survey")
    photo = [*PHOTO, dict(objID=KNOWN, petroMag_u=None, ra=150.2)]
    spectra = [dict(specObjID=7), dict(specObjID=8, z=0.2, **{"class": "STAR"})]
    database = make(folder / "survey.duckdb", photo=photo, spectra=spectra)
    return dict(database=database, archive=make_frames(folder / "sas"))


@pytest.fixture(scope="module")
def services(survey, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    with Services(**survey, work=work, job_seconds=0.05, queries_a_minute=10_000) as running:
        yield running


class User:
    """A client of CasJobs, as plain as can be."""

    def __init__(self, services, name="astronomer", password="secret"):
        user = {"user": {"name": name, "password": password}}
        asked = {"auth": {"identity": {"password": user}}}
        self.http = httpx.Client(timeout=10)
        self.base = services.casjobs
        self.answer = self.http.post(services.login, json=asked)
        self.http.headers["X-Auth-Token"] = self.answer.headers.get("X-Subject-Token", "")

    def quick(self, sql, context="MyDB", accept="text/plain"):
        url = f"{self.base}/contexts/{context}/query"
        return self.http.post(url, json={"Query": sql}, headers={"Accept": accept})

    def rows(self, sql, context="MyDB"):
        answer = self.quick(sql, context)
        assert answer.status_code == 200, answer.text
        return [line.split(",") for line in answer.text.splitlines()]

    def wrong(self, sql, context="MyDB"):
        answer = self.quick(sql, context)
        assert answer.status_code == 500
        return answer.json()["Error Message"]

    def submit(self, sql, context="DR12", task="a task"):
        asked = {"Query": sql, "TaskName": task}
        answer = self.http.put(f"{self.base}/contexts/{context}/jobs", json=asked)
        assert answer.status_code == 200
        return int(answer.text)

    def job(self, number):
        return self.http.get(f"{self.base}/jobs/{number}").json()

    def wait(self, number):
        for _ in range(500):
            if (job := self.job(number))["Status"] >= 3:
                return job
            time.sleep(0.01)
        raise AssertionError(job)

    def run(self, sql, context="DR12"):
        return self.wait(self.submit(sql, context))


@pytest.fixture
def user(services):
    one = User(services)
    for name in [
        table["Name"] for table in one.http.get(f"{one.base}/contexts/mydb/Tables").json()
    ]:
        one.quick(f"DROP TABLE {name}")
    return one


def test_login_wants_the_password(services):
    assert User(services).answer.status_code == 200
    wrong = User(services, password="guess").answer
    assert wrong.status_code == 401 and wrong.json()["error"]["code"] == 401
    token = User(services).http.headers["X-Auth-Token"]
    who = httpx.get(f"{services.login}/{token}").json()["token"]["user"]
    assert who["name"] == "astronomer"
    assert (
        "WebServicesId" in User(services).http.get(f"{services.casjobs}/users/{who['id']}").json()
    )
    written = (services.work / "requests.jsonl").read_text()
    assert token not in written and "secret" not in written


def test_a_bad_token_is_refused(services):
    headers = {"X-Auth-Token": "0" * 32}
    answer = httpx.get(f"{services.casjobs}/jobs/", headers=headers)
    assert answer.status_code == 401 and "Error Message" in answer.json()


WRAPPED = """SELECT ROW_NUMBER() OVER (ORDER BY q.objID) AS n, q.* INTO MyDB.t FROM (
-- a comment, into nothing
SELECT objID, ra, petroMag_r - extinction_r AS dered, petroMag_u, run / 2 AS half
FROM PhotoObjAll p WHERE p.objID <> 0x0A
) q"""


def test_a_job_makes_a_table_that_quick_queries_read(user):
    job = user.run(WRAPPED)
    assert (job["Status"], job["Rows"], job["Message"]) == (5, 41, "")
    assert job["Query"] == WRAPPED and job["TaskName"] == "a task"
    header, *rows = user.rows("SELECT n, OBJID, half FROM t WHERE n BETWEEN 2 AND 4 ORDER BY n")
    assert header == ["n", "OBJID", "half"]
    assert [row[0] for row in rows] == ["2", "3", "4"]
    assert rows[0][1:] == [str(objid(2)), "952"]
    (name,) = user.http.get(f"{user.base}/contexts/MYDB/tables").json()
    assert (name["Name"], name["Rows"]) == ("t", 41) and name["Date"] > 6e17
    total = sum(objid(obj) for obj in range(1, 41)) + KNOWN
    header, *rows = user.rows(
        "SELECT TOP 2 COUNT_BIG(*) OVER () AS c, SUM(CAST(objID AS decimal(38,0))) OVER () AS s, "
        "petroMag_u, dered FROM MyDB.dbo.t ORDER BY n DESC"
    )
    assert rows[0] == ["41", str(total), "", "16.9"]


def test_types_are_those_of_sql_server(user):
    user.run(
        "SELECT objID, run, camcol, ra, petroMag_r, clean, CAST(1 AS bit) AS b, 'x' AS v, "
        "CAST(1 AS decimal(38,0)) AS d INTO MyDB.types FROM PhotoObjAll"
    )
    found = user.rows(
        "SELECT COLUMN_NAME, DATA_TYPE FROM INFORMATION_SCHEMA.COLUMNS "
        "WHERE TABLE_NAME = 'types' ORDER BY ORDINAL_POSITION"
    )
    kinds = ["bigint", "smallint", "tinyint", "float", "real", "int", "bit", "varchar", "decimal"]
    assert [row[1] for row in found[1:]] == kinds
    assert ["types"] in user.rows("SELECT TABLE_NAME FROM INFORMATION_SCHEMA.TABLES")
    assert ["types"] in user.rows("SELECT TABLE_NAME FROM MyDB.INFORMATION_SCHEMA.TABLES", "DR12")


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT nope INTO MyDB.w FROM PhotoObjAll", "Invalid column name 'nope'."),
        ("SELECT ra / nope AS x INTO MyDB.w FROM PhotoObjAll", "Invalid column name 'nope'."),
        ("SELECT ra INTO MyDB.w FROM Nowhere", "Invalid object name 'Nowhere'."),
        ("SELECT ra INTO MyDB.w FROM PhotoObjAll WHERE", "Incorrect syntax near"),
        ("SELCT ra INTO MyDB.w FROM PhotoObjAll", "Incorrect syntax near 'SELCT'."),
        ("SELECT ra, dec AS RA INTO MyDB.w FROM PhotoObjAll", "specified more than once"),
        ("SELECT ra INTO w FROM PhotoObjAll", "permission denied"),
    ],
)
def test_a_failed_job_tells_in_sql_servers_words(user, sql, words):
    job = user.run(sql)
    assert job["Status"] == 4 and words in job["Message"]


def test_a_table_is_not_overwritten(user):
    assert user.run("SELECT TOP 3 ra INTO MyDB.again FROM PhotoObjAll")["Status"] == 5
    job = user.run("SELECT TOP 3 ra INTO MyDB.again FROM PhotoObjAll")
    assert job["Message"] == "There is already an object named 'again' in the database."
    assert user.quick("DROP TABLE again").status_code == 200
    assert "does not exist" in user.wrong("DROP TABLE again")


def test_contexts_are_kept_apart(user):
    assert user.wrong("SELECT ra FROM PhotoObjAll") == "Invalid object name 'PhotoObjAll'."
    assert user.rows("SELECT COUNT(*) FROM SpecObj WHERE class = 'galaxy'", "dr7")[1] == ["1"]
    answer = user.quick("SELECT 1", "DR99")
    assert answer.status_code == 400 and "Error Message" in answer.json()


def test_rows_as_json_keep_ids(user):
    answer = user.quick(f"SELECT objID, petroMag_u, extinction_r FROM PhotoObj WHERE objID={KNOWN}",
                        "DR12", "application/json+array")  # fmt: skip
    (result,) = answer.json()["Result"]
    assert result == {
        "Columns": ["objID", "petroMag_u", "extinction_r"],
        "Data": [[KNOWN, None, 0.1]],
    }


def test_jobs_can_be_cancelled_and_listed(survey, tmp_path):
    with Services(**survey, work=tmp_path, job_seconds=5) as slow:
        user = User(slow)
        one = user.submit("SELECT ra INTO MyDB.a FROM PhotoObjAll")
        assert user.http.delete(f"{user.base}/jobs/{one}").status_code == 200
        assert user.job(one)["Status"] == 3
        assert [job["JobID"] for job in user.http.get(f"{user.base}/jobs").json()] == [one]
        assert user.http.get(f"{user.base}/jobs/1").status_code == 404


def test_a_table_can_be_uploaded(user):
    url = f"{user.base}/contexts/MyDB/Tables/mine"
    assert user.http.post(url, content=f"objID,z\n{KNOWN},0.5\n").status_code == 200
    joined = user.rows("SELECT m.z FROM MyDB.mine m JOIN PhotoObj p ON p.objID = m.objID", "DR12")
    assert joined == [["z"], ["0.5"]]


def test_a_new_server_goes_on_where_the_last_one_ended(survey, tmp_path):
    with Services(**survey, work=tmp_path, job_seconds=0.02) as first:
        user = User(first)
        done = user.run("SELECT objID INTO MyDB.kept FROM PhotoObjAll")["JobID"]
        port = first.port
    with Services(**survey, work=tmp_path, job_seconds=2, port=port) as second:
        assert user.rows("SELECT COUNT_BIG(*) AS n FROM kept")[1] == ["41"]
        waiting = user.submit("SELECT objID INTO MyDB.later FROM PhotoObjAll")
        assert [job["id"] for job in second.jobs()] == [done, waiting]
    with Services(**survey, work=tmp_path, job_seconds=0.02, port=port):
        assert user.wait(waiting)["Status"] == 5
        assert user.wait(done)["Rows"] == 41


@pytest.fixture
def sdss(services, monkeypatch):
    """astroquery, sent to the services."""
    module = pytest.importorskip("astroquery.sdss")
    monkeypatch.setattr(module.conf, "skyserver_baseurl", services.skyserver)
    monkeypatch.setattr(module.conf, "sas_baseurl", services.url + "/sas")
    return module.SDSS


def test_astroquery_gets_rows(sdss):
    sql = "SELECT TOP 5 objID, ra, petroMag_r -- a comment\nFROM Galaxy ORDER BY objID"
    table = sdss.query_sql(sql, data_release=12, cache=False)
    assert list(table["objID"]) == [objid(obj) for obj in range(1, 6)]
    assert table["petroMag_r"][0] == 17.01


def test_astroquery_gets_images(sdss, survey):
    asked = dict(run=1904, camcol=3, field=163, data_release=12, cache=False, show_progress=False)
    image, other = sdss.get_images(**asked, band="gr")
    expected = np.random.default_rng(1).normal(size=(149, 204)).astype(np.float32)
    np.testing.assert_array_equal(image[0].data, expected)
    assert (image[0].data != other[0].data).all()


def test_astroquery_finds_images_by_position(sdss):
    place = SkyCoord(150.0101, 2.0, unit="deg")
    (image,) = sdss.get_images(
        coordinates=place, band="r", data_release=12, cache=False, show_progress=False
    )
    assert image[0].data.shape == (149, 204)
    found = sdss.query_region(place, radius=5 * u.arcsec, data_release=12, cache=False)
    assert {objid(9), objid(10), objid(11)} == set(found["objid"])
    box = sdss.query_region(place, width=5 * u.arcsec, data_release=12, cache=False)
    assert set(box["objid"]) == set(found["objid"])  # astroquery rounds to 6 digits


def search(services, **fields):
    return httpx.get(f"{services.skyserver}/dr12/en/tools/search/x_results.aspx", params=fields)


def test_skyserver_speaks_csv_and_json(services):
    sql = "select top 2 objID, petroMag_u from PhotoObjAll order by objID desc"
    answer = search(services, searchtool="SQL", cmd=sql, format="csv")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.text == f"#Table1\nobjID,petroMag_u\n{KNOWN},\n{objid(40)},17\n"
    url = f"{services.skyserver}/DR12/SkyServerWS/SearchTools/SqlSearch"
    (table,) = httpx.post(url, data=dict(cmd=sql)).json()
    assert table["Rows"][0] == {"objID": KNOWN, "petroMag_u": None}


def test_functions_of_the_survey_are_there(services):
    sql = (
        "SELECT p.objID, dbo.fPhotoTypeN(p.type) AS kind "
        "FROM dbo.fGetNearbyObjEq(150.01, 2, 0.05) n JOIN PhotoObj p ON p.objID = n.objID"
    )
    assert search(services, cmd=sql, format="csv").text.splitlines()[1:] == [
        "objID,kind",
        f"{objid(10)},GALAXY",
    ]


def test_the_services_speak_tls(survey, tmp_path):
    authority = pytest.importorskip("trustme").CA()
    here, there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(here)
    authority.configure_trust(there)
    with Services(**survey, work=tmp_path, ssl=here) as safe:
        assert safe.sas.startswith("https://")
        assert httpx.get(f"{safe.sas}/{frame_path(FIELD, 'r')}", verify=there).status_code == 200


def test_skyserver_has_limits(survey, tmp_path):
    limits = dict(row_limit=7, queries_a_minute=6)
    with Services(**survey, work=tmp_path, **limits) as strict:

        def ask(sql):
            answer = search(strict, searchtool="SQL", cmd=sql, format="csv")
            assert answer.status_code == 200
            return answer.text.splitlines()

        assert len(ask("select ra from PhotoObjAll")) == 2 + 7
        assert ask("select top 8 ra from PhotoObjAll")[1:] == [
            "error_message",
            "error: limit is top 7",
        ]
        assert ask("drop table x")[1] == "error_message"
        too_long = search(strict, cmd="select 1 -- " + "x" * 2100, format="csv")
        assert too_long.status_code == 404 and "404.15" in too_long.text
        url = f"{strict.skyserver}/dr12/SkyServerWS/SearchTools/SqlSearch"
        for sql, head in (("1 -- " + "x" * 9000, "Column1"), (f"'{'x' * 9000}'", "error_message")):
            answer = httpx.post(url, data={"cmd": f"select {sql}", "format": "csv"})
            assert answer.text.splitlines()[1] == head
        assert search(strict, cmd="select nope from Field", format="csv").status_code == 400
        assert "Maximum 6 queries allowed per minute" in ask("select 1")[2]


def test_files_come_whole_or_in_part(services, survey):
    path = frame_path(FIELD, "r")
    raw = (survey["archive"] / path).read_bytes()
    whole = httpx.get(f"{services.sas}/{path}")
    assert whole.content == raw and int(whole.headers["Content-Length"]) == len(raw)
    for asked, expected in (("bytes=10-19", raw[10:20]), ("bytes=-5", raw[-5:])):
        part = httpx.get(f"{services.sas}/{path}", headers={"Range": asked})
        assert part.status_code == 206 and part.content == expected
    behind = httpx.get(f"{services.sas}/{path}", headers={"Range": f"bytes={len(raw)}-"})
    assert behind.status_code == 416
    old = {"Range": "bytes=10-", "If-Range": '"other"'}
    assert httpx.get(f"{services.sas}/{path}", headers=old).status_code == 200
    same = old | {"If-Range": whole.headers["ETag"]}
    assert httpx.get(f"{services.sas}/{path}", headers=same).content == raw[10:]
    assert httpx.get(f"{services.url}/sas/dr12/{path}").content == raw
    assert httpx.get(f"{services.sas}/{path}.nope").status_code == 404
    assert httpx.get(f"{services.sas}/boss/%2e%2e/%2e%2e/survey.duckdb").status_code == 404
    head = httpx.head(f"{services.sas}/{path}")
    assert head.headers["Content-Length"] == str(len(raw)) and not head.content


def test_several_ranges_come_in_one_answer(services, survey, monkeypatch):
    path = frame_path(FIELD, "r")
    raw = (survey["archive"] / path).read_bytes()

    def ask(text, **headers):
        return httpx.get(f"{services.sas}/{path}", headers={"Range": f"bytes={text}"} | headers)

    def parts(answer):
        head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
        several = BytesParser(policy=policy.HTTP).parsebytes(head + answer.content)
        assert answer.status_code == 206 and several.is_multipart() and not several.defects
        return [
            (part["Content-Range"], part.get_payload(decode=True)) for part in several.iter_parts()
        ]

    size = len(raw)
    expected = [
        (f"bytes 10-19/{size}", raw[10:20]),
        (f"bytes 5-12/{size}", raw[5:13]),
        (f"bytes {size - 7}-{size - 1}/{size}", raw[-7:]),
    ]
    assert parts(ask(f"10-19, 5-12,-7,{size}-")) == expected
    one = ask(f"10-19,{size}-{size + 5}")
    assert (one.status_code, one.content) == (206, raw[10:20])
    assert one.headers["Content-Range"] == expected[0][0]
    assert ask(f"{size}-,{size + 1}-").status_code == 416
    assert ask(f"0-{size - 2},5-6").status_code == 200, "more than the file has"
    assert ask("10-19,x").status_code == 200
    assert ask("10-19,-7", **{"If-Range": '"other"'}).content == raw
    last = services.log[-1]
    assert (last.status, last.range, last.sent) == (200, "bytes=10-19,-7", size)
    monkeypatch.setattr(Sas, "ranges", 1)
    assert ask("10-19,-7").content == raw[10:20]
    monkeypatch.setattr(Sas, "ranges", 0)
    assert ask("10-19,-7").content == raw


@pytest.mark.skipif(not shutil.which("wget"), reason="no wget")
def test_wget_goes_on_with_half_a_file(services, survey, tmp_path):
    path = frame_path(FIELD, "i")
    raw = (survey["archive"] / path).read_bytes()
    file = tmp_path / path.rpartition("/")[2]
    file.write_bytes(raw[: len(raw) // 2])
    subprocess.run(["wget", "-q", "-c", f"{services.sas}/{path}"], cwd=tmp_path, check=True)
    assert file.read_bytes() == raw
    last = services.log[-1]
    assert (last.status, last.range) == (206, f"bytes={len(raw) // 2}-")
    assert last.sent == last.length == len(raw) - len(raw) // 2 and last.whole


def test_connections_are_counted(survey, tmp_path):
    with Services(**survey, work=tmp_path, delay=0.1) as services:
        clients = [httpx.Client() for _ in range(3)]
        for client in clients:
            client.get(services.sas + "/nothing")
        assert services.most_at_once == 3
        for client in clients:
            client.close()
        with httpx.Client() as one:
            one.get(services.sas + "/nothing")
        assert services.most_at_once == 3


def test_services_run_in_a_process_of_their_own(survey, tmp_path):
    flags = [f"--{name}={value}" for name, value in survey.items()]
    command = ["python", "-m", "tests.services", *flags, f"--work={tmp_path}", "--user=me"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        urls = json.loads(process.stdout.readline())
        assert httpx.get(urls["sas"] + "/nothing").status_code == 404
        process.terminate()
        assert process.wait(10) == 0
