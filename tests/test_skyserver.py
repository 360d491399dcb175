"""SkyServer: slices, limits, and errors that come as rows or pages."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import hashlib
import time
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from services import KINDS, Faults, skyserver
from test_casjobs import start, survey  # noqa: F401 (fixtures)

from pipeline import query
from pipeline.run import UserError
from pipeline.survey.network import GaveUp, Manners, Pace, Trouble, patiently
from pipeline.survey.skyserver import Refused, SkyServer, Slices, TooMuch

QUICK = Manners(timeout=1.0, query_seconds=1.0, longest_wait=0.02, tries=8)
UNLABELLED = "queries/unlabelled.sql"


@pytest.fixture(scope="module")
def right(survey, tmp_path_factory):
    output = tmp_path_factory.mktemp("right") / "out.parquet"
    query.main(["--engine=duckdb", f"--source={survey['database']}", f"--sql={UNLABELLED}",
                f"--output={output}"])  # fmt: skip
    assert pq.read_metadata(output).num_rows == 90
    return hashlib.sha256(output.read_bytes()).hexdigest()


@pytest.fixture
def sky(tmp_path):
    def make(services, base=None, manners=QUICK):
        pace = Pace(tmp_path / "pace", None)
        return SkyServer(base or services.skyserver, 12, manners, pace)

    return make


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(query, "PER_MINUTE", 1e6)
    return tmp_path / "out" / "unlabelled.parquet"


def bring(services, output, sql=UNLABELLED, *more):
    query.main(["--engine=skyserver", f"--source={services.skyserver}", f"--sql={sql}",
                f"--output={output}", "--longest-wait=0.02", "--timeout=0.5", "--query-seconds=0.5",
                *more])  # fmt: skip
    return hashlib.sha256(output.read_bytes()).hexdigest()


def slices(sky, services, folder, text="SELECT objID, ra FROM PhotoObjAll", **more):
    return Slices(sky(services), text, "q.sql", folder, **more)


def ids(files):
    return [key for file in files for key in pq.read_table(file).column("objID").to_pylist()]


def test_a_good_day_leaves_the_table_alone(start, output, right):
    services = start()
    assert bring(services, output) == right
    assert sorted(item.name for item in output.parent.iterdir()) == [
        ".skyserver-pace", output.name, f"{output.name}.provenance.json",
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 45])
def test_slices_above_the_row_limit_are_cut_and_nothing_is_lost_or_twice(
    start, output, right, limit
):
    services = start(row_limit=limit)
    if limit == 1:  # the list of runs has three rows
        with pytest.raises(GaveUp, match="does not tell the runs"):
            bring(services, output)
    else:
        assert bring(services, output) == right


@pytest.mark.parametrize("fields", [1, 6, 10**6])
def test_slices_follow_the_runs_and_hold_all_rows_once(start, sky, tmp_path, fields):
    services = start()
    files = slices(sky, services, tmp_path, fields=fields).run()
    found = ids(files)
    assert len(found) == 90 == len(set(found))
    assert len(files) == {1: 3, 6: 3, 10**6: 1}[fields]


def test_ids_outside_all_runs_are_brought_too(start, sky, tmp_path, survey):
    services = start()
    text = "SELECT CASE WHEN objID % 2 = 0 THEN -objID ELSE 2 * objID END AS objID FROM PhotoObjAll"
    found = ids(slices(sky, services, tmp_path, text, fields=1).run())
    assert len(set(found)) == 90 and min(found) < 0


@pytest.mark.parametrize("seed", [0, 1])
def test_every_fault_at_once_and_the_same_bytes(start, output, right, seed):
    services = start(faults=Faults(0.15, seed, KINDS), row_limit=60)
    assert bring(services, output) == right


def test_rows_cut_to_the_names_alone_are_not_an_empty_slice(start, sky, tmp_path):
    services = start()
    service, whole = slices(sky, services, tmp_path), SkyServer.ask
    cut = [True]

    class Short(SkyServer):
        def ask(self, sql):
            body = whole(self, sql)
            if "ugriz_sum" in sql and cut:
                cut.pop()
                return b"".join(body.splitlines(keepends=True)[:2])
            return body

    short = Short(**vars(service.service))
    assert len(ids(Slices(short, service.text, "q.sql", tmp_path).run())) == 90 and not cut


def test_an_empty_result_is_confirmed_and_keeps_its_types(start, output, tmp_path):
    path = tmp_path / "q.sql"
    path.write_text("SELECT objID, petroMag_r, class FROM PhotoObjAll "
                    "JOIN SpecObjAll ON bestObjID = objID WHERE PhotoObjAll.run = 5")  # fmt: skip
    bring(start(), output, path)
    schema = pq.read_schema(output)
    assert [str(kind) for kind in schema.types] == ["int64", "float", "string"]


def test_a_run_goes_on_with_the_slices_that_are_there(start, output, right):
    services = start(row_limit=89)
    bring(services, output)
    whole = len(services.log)
    services.plan("skyserver", "500", after=whole - 1, count=8)
    with pytest.raises(GaveUp, match="answered 500"):
        bring(services, output)
    folder = output.parent / ".unlabelled.skyserver"
    assert list(folder.glob("slice-*"))
    before = len(services.log)
    assert bring(services, output) == right
    assert len(services.log) - before < whole - 1


def test_slices_of_another_server_or_query_are_not_used(start, sky, tmp_path):
    services, other = start(), start()
    slices(sky, services, tmp_path).run()
    before = len(other.log)
    slices(sky, other, tmp_path).run()
    assert len(other.log) - before == 2
    assert len(ids(slices(sky, other, tmp_path, "SELECT objID FROM Photoz").run())) == 70


def test_sixty_queries_a_minute_are_not_exceeded_and_a_refusal_is_waited_for(
    start, sky, monkeypatch
):
    began = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: began + 60 * (time.monotonic() - began))
    monkeypatch.setattr(skyserver, "time", clock)  # the server's minute is a second
    services = start(queries_a_minute=5)
    service = sky(services, manners=Manners(longest_wait=0.3, tries=8))
    for number in range(12):
        sql = f"SELECT {number} AS n"
        body = patiently(lambda sql=sql: service.ask(sql), "q", service.base, service.manners,
                         service.stop)  # fmt: skip
        assert body == b"#Table1\nn\n%d\n" % number
    refused = len(services.log) - 12
    assert 1 <= refused <= 20


def test_a_refusal_of_the_rate_asks_for_a_minute(start, sky):
    services = start(queries_a_minute=1)
    service = sky(services)
    service.ask("SELECT 1 AS n")
    with pytest.raises(Trouble, match="Maximum 1 queries allowed per minute") as caught:
        service.ask("SELECT 1 AS n")
    assert caught.value.wait == 60


def test_the_pace_is_below_sixty_a_minute():
    assert query.PER_MINUTE < 60


def test_errors_that_come_as_rows_are_refusals_in_skyservers_words(start, sky):
    service = sky(start(row_limit=7))
    with pytest.raises(TooMuch, match="limit is top 7"):
        service.ask("SELECT TOP 8 objID FROM PhotoObjAll")
    with pytest.raises(Refused, match="Only SELECT statements are allowed"):
        service.ask("UPDATE x SET a = 1")
    with pytest.raises(Refused, match="Invalid column name 'nope'"):
        service.ask("SELECT nope FROM PhotoObjAll")


def test_an_sql_error_has_the_querys_file_and_line(start, sky, tmp_path):
    services = start()
    text = "SELECT objID,\n CAST(nope AS real) AS x\nFROM PhotoObjAll"
    with pytest.raises(UserError, match="q.sql: line 2: SkyServer: Invalid column name 'nope'"):
        slices(sky, services, tmp_path, text).run()


@pytest.mark.parametrize("kind", ["html", "503", "429", "500", "reset", "stall", "slow", "cut"])
def test_what_may_pass_is_trouble(start, sky, kind):
    services = start()
    service = sky(services)
    service.ask("SELECT 1 AS n")
    services.plan("skyserver", kind, draw=0.6 if kind != "cut" else 0.9)
    with pytest.raises(Trouble) as caught:
        service.ask("SELECT objID, ra FROM PhotoObjAll")
    assert "\n" not in str(caught.value)


def test_a_long_query_goes_by_post_and_a_longer_one_is_refused(start, sky, tmp_path):
    services = start()
    columns = ", ".join(f"ra + {number} AS a_long_name_for_column_{number}" for number in range(60))
    found = slices(sky, services, tmp_path, f"SELECT objID, {columns} FROM PhotoObjAll").run()
    assert len(ids(found)) == 90
    assert {one.method for one in services.log} == {"GET", "POST"}
    columns = ", ".join(f"ra + {n} AS a_long_name_for_column_{n}" for n in range(220))
    with pytest.raises(UserError, match="q.sql: SkyServer: the query has .* of 8000 at most"):
        slices(sky, services, tmp_path, f"SELECT objID, {columns} FROM PhotoObjAll").run()


@pytest.mark.parametrize("length", range(1400, 1800, 57))
def test_no_address_is_longer_than_iis_takes(start, sky, length):
    service = sky(start())
    text = "%" * (length // 3) + "x" * (length % 300)
    assert service.ask(f"SELECT 1 AS n WHERE 'a' <> '{text}'").endswith(b"n\n1\n")


def test_comments_go_and_texts_stay(start, sky):
    service = sky(start())
    sql = "SELECT 'a  b ''c' AS t -- it's; all\n  /* or\n not */ , 1 AS n"
    assert service.ask(sql) == b"#Table1\nt,n\na  b 'c,1\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SELECT TOP 10 objID FROM PhotoObjAll", "has TOP; leave it out"),
        ("SELECT objID FROM PhotoObjAll ORDER BY ra", "has ORDER BY"),
        ("WITH a AS (SELECT objID FROM PhotoObjAll) SELECT objID FROM a", "has WITH"),
        ("SELECT ra FROM PhotoObjAll", "has no column objID or fieldID"),
        ("SELECT objID, nope FROM PhotoObjAll", "the type of nope cannot be told"),
        ("SELECT objID, x FROM PhotoTag", r"the type of x cannot be told; .* CAST\("),
    ],
)
def test_a_query_that_cannot_be_sliced_is_refused_before_anyone_is_asked(
    start, sky, tmp_path, text, words
):
    services = start()
    with pytest.raises(UserError, match=f"^q.sql: .*{words}"):
        slices(sky, services, tmp_path, text).run()
    assert not services.log


def test_views_of_the_survey_have_their_tables_types(start, sky, tmp_path):
    services = start()
    files = slices(sky, services, tmp_path, "SELECT g.objID, g.petroMag_r FROM dbo.Galaxy g").run()
    assert {str(pq.read_schema(file).field("petroMag_r").type) for file in files} == {"float"}
    assert len(ids(files)) == 90


@pytest.mark.parametrize(
    ("base", "words"),
    [("{url}/nowhere", "has no SQL search of DR12"), ("ftp://127.0.0.1", "is no address"),
     ("skyserver.sdss.org", "is no address"), ("http://127.0.0.1:9", "cannot be reached .*VPN"),
     ("http://nowhere.invalid", "cannot be reached .*VPN")],
)  # fmt: skip
def test_an_address_that_is_not_skyservers_is_told(start, sky, tmp_path, base, words):
    services = start()
    service = sky(services, base.format(url=services.url))
    with pytest.raises(UserError, match=words) as caught:
        Slices(service, "SELECT objID FROM PhotoObjAll", "q.sql", tmp_path).run()
    assert "\n" not in str(caught.value)


def test_a_stretch_is_one_slice_with_its_rows_alone(start, output, tmp_path):
    path = tmp_path / "q.sql"
    path.write_text("SELECT objID FROM PhotoObjAll")
    services = start()
    bring(services, output, path, "--stretch", "94", "3", "0", "100")
    assert pq.read_metadata(output).num_rows == 5 and len(services.log) == 1
