"""A batch job over bad days: put once, brought home whole, the same bytes in the end."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import uuid

import duckdb
import pyarrow.parquet as pq
import pytest
from services import KINDS, Faults
from small_survey import make
from test_casjobs import start, survey  # noqa: F401 (fixtures)

from pipeline import query
from pipeline.run import UserError
from pipeline.survey import batch

LABELLED = "queries/labelled.sql"
FLAGS = ["--timeout=0.7", "--query-seconds=1", "--longest-wait=0.02", "--poll=0.02", "--tries=8",
         "--page-rows=20", "--requests-per-minute=1000000"]  # fmt: skip
ROWS = 60
PAGES = 3


def flags(services, output, sql=LABELLED, **more):
    options = {"engine": "casjobs", "source": services.casjobs, "login": services.login,
               "sql": sql, "output": output} | more  # fmt: skip
    return [f"--{key.replace('_', '-')}={value}" for key, value in options.items()] + FLAGS


def bring(services, output, sql=LABELLED, *more, **options):
    query.main([*flags(services, output, sql, **options), *more])
    return hashlib.sha256(output.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def right(survey, tmp_path_factory):
    """What DuckDB makes of it."""
    output = tmp_path_factory.mktemp("right") / "out.parquet"
    query.main(["--engine=duckdb", f"--source={survey['database']}", f"--sql={LABELLED}",
                f"--output={output}"])  # fmt: skip
    assert pq.read_metadata(output).num_rows == ROWS
    return hashlib.sha256(output.read_bytes()).hexdigest()


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "labelled.parquet"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(batch, "SETTLE", 0.2)


def write(tmp_path, text):
    path = tmp_path / "q.sql"
    path.write_text(text)
    return path


def test_a_good_day(start, output, right):
    services = start()
    assert bring(services, output) == right
    assert len(services.jobs()) == 1
    (job,) = services.jobs()
    assert re.fullmatch(r"ugriz_[0-9a-f]{16}_labelled", job["task"])
    assert job["target"] == f"MyDB.{job['task']}"
    assert sorted(item.name for item in output.parent.iterdir()) == [
        ".casjobs-pace", ".labelled.casjobs", output.name, f"{output.name}.provenance.json",
    ]  # fmt: skip
    assert [item.name for item in (output.parent / ".labelled.casjobs").iterdir()] == ["job.json"]


@pytest.mark.parametrize("seed", [1, 2])
def test_every_fault_at_once_and_the_same_bytes(start, output, right, seed, monkeypatch):
    monkeypatch.setattr(batch.uuid, "uuid4", lambda: uuid.UUID(int=seed))
    kinds = [kind for kind in KINDS if kind != "mydb-full"]
    services = start(faults=Faults(0.2, seed, kinds), token_seconds=0.5)
    assert bring(services, output) == right
    assert sum(job["status"] != 3 for job in services.jobs()) == 1


@pytest.mark.parametrize("size", [1, 60])
def test_bytes_do_not_depend_on_the_size_of_pages(start, output, tmp_path, size):
    path = write(tmp_path, "SELECT objID, ra FROM PhotoObjAll WHERE camcol = 2 AND run = 94")
    services = start()
    first = bring(services, output, path, f"--page-rows={size}")
    output.unlink()
    assert bring(services, output, path, "--page-rows=2") == first


def test_a_put_whose_answer_is_lost_is_found_and_not_put_twice(start, output, right):
    services = start()
    services.plan("submit", "reset")
    assert bring(services, output) == right
    assert len(services.jobs()) == 1 and services.asked("PUT", "/jobs") == 1


def test_a_put_that_did_not_arrive_is_put_again(start, output, right):
    services = start()
    services.plan("submit", "reset", draw=0.1)
    assert bring(services, output) == right
    assert len(services.jobs()) == 1 and services.asked("PUT", "/jobs") == 2


def test_a_name_that_the_server_cuts_off_is_still_found(start, output, right, monkeypatch):
    services = start()
    put = services._state.put
    monkeypatch.setattr(
        services._state, "put", lambda **job: put(**job | {"task": job["task"][:25]})
    )
    services.plan("submit", "reset")
    assert bring(services, output) == right
    assert len(services.jobs()) == 1 and len(services.jobs()[0]["task"]) == 25


def test_a_cancelled_job_is_put_again(start, output, right):
    services = start()
    services.plan("submit", "cancelled", count=2)
    assert bring(services, output) == right
    assert [job["status"] for job in services.jobs()] == [3, 3, 5]


def test_a_job_that_is_always_cancelled_is_given_up(start, output):
    services = start()
    services.plan("submit", "cancelled", count=99)
    with pytest.raises(UserError, match="put 6 times, and at last CasJobs cancelled it"):
        bring(services, output)
    assert len(services.jobs()) == batch.AGAIN + 1


@pytest.mark.parametrize("draw", [0.1, 0.9])
def test_a_job_that_is_finished_before_its_table_is_waited_for(start, output, right, draw):
    services = start()
    services.plan("submit", "finished-early", draw=draw)
    assert bring(services, output) == right
    assert len(services.jobs()) == 1


def test_a_full_mydb_is_told_in_casjobs_words_and_a_rerun_goes_on(start, output, right):
    services = start()
    services.plan("submit", "mydb-full")
    words = r"labelled\.sql: CasJobs: Could not allocate space .* drop tables of your MyDB"
    with pytest.raises(UserError, match=words):
        bring(services, output)
    assert bring(services, output) == right


def test_a_table_that_never_has_its_jobs_rows_is_no_result(start, output, impatient, monkeypatch):
    services = start()
    change = services._state.change

    def one_more(job, **values):
        change(job, **values | ({"rows": values["rows"] + 1} if "rows" in values else {}))

    monkeypatch.setattr(services._state, "change", one_more)
    monkeypatch.setattr(batch, "AGAIN", 1)
    with pytest.raises(UserError, match="put 2 times, and at last its table has 60 rows of 61"):
        bring(services, output)
    assert not output.exists()


def test_a_job_that_does_not_tell_its_rows_is_counted(start, output, right, monkeypatch):
    services = start()
    change = services._state.change
    monkeypatch.setattr(
        services._state, "change",
        lambda job, **values: change(job, **values | ({"rows": 0} if "rows" in values else {})),
    )  # fmt: skip
    assert bring(services, output) == right


def test_a_table_that_goes_meanwhile_is_told_and_made_again(start, output, right, impatient):
    services = start()

    def drop():
        services.engine("astronomer").discard(services.jobs()[0]["created"])

    services.plan("query", drop, after=4)
    with pytest.raises(UserError, match="is gone from MyDB; run again to put its job again"):
        bring(services, output)
    assert list((output.parent / ".labelled.casjobs").glob("page-*"))
    assert bring(services, output) == right
    assert len(services.jobs()) == 2


def test_pages_of_one_service_are_not_put_together_with_anothers(start, output, right, tmp_path):
    (tmp_path / "other").mkdir()
    other = start(database=make(tmp_path / "other/survey.duckdb", [{}] * 60, [{}], [dict(
        objID=1237653651835781245)]))  # fmt: skip
    other.plan("query", "500", after=4, count=99)
    with pytest.raises(UserError, match="prepared statement|DataReader"):
        bring(other, output)
    assert list((output.parent / ".labelled.casjobs").glob("page-*"))
    assert bring(start(), output) == right


def test_a_changed_query_is_another_job(start, output, tmp_path):
    services = start()
    path = write(tmp_path, "SELECT objID FROM PhotoObjAll")
    first = bring(services, output, path)
    path.write_text("SELECT objID FROM PhotoObjAll WHERE run = 94")
    assert bring(services, output, path) != first
    assert len(services.jobs()) == 2 and pq.read_metadata(output).num_rows == 30


def test_a_second_run_picks_the_table_up(start, output, right):
    services = start()
    assert bring(services, output) == right
    output.unlink()
    assert bring(services, output) == right
    assert len(services.jobs()) == 1


@pytest.mark.parametrize("answer", ["reset", None])
def test_tables_are_dropped_where_that_is_asked_for(start, output, right, answer):
    services = start()
    if answer:  # lost, after the table was dropped; all queries before it are of pages
        services.plan("query", answer, after=2 + PAGES)
    assert bring(services, output, LABELLED, "--drop-tables") == right
    assert services.engine("astronomer").tables() == {}
    assert not (output.parent / ".labelled.casjobs").exists()


def test_tables_are_kept_otherwise(start, output):
    services = start()
    bring(services, output, LABELLED, "--no-drop-tables")
    assert list(services.engine("astronomer").tables()) == [services.jobs()[0]["task"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SELECT objID,\n  nope\nFROM PhotoObjAll", "line 2: CasJobs: Invalid column name 'nope'"),
        ("SELECT objID\nFROM dbo.Nowhere", r"line 2: CasJobs: Invalid object name '\w*\.?Nowhere'"),
        ("SELECT objID, CAST('x' AS int) AS n FROM PhotoObjAll", "CasJobs: Error converting"),
    ],
)
def test_an_sql_error_comes_in_casjobs_words_with_file_and_line(
    start, output, tmp_path, text, words
):
    services = start()
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: {words}") as caught:
        bring(services, output, path)
    assert "\n" not in str(caught.value) and len(services.jobs()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SELECT ra FROM PhotoObjAll", "has no column objID or fieldID"),
        ("SELECT objID FROM PhotoObjAll ORDER BY ra", "has ORDER BY; leave it out"),
        ("WITH a AS (SELECT objID FROM PhotoObjAll) SELECT objID FROM a", "has WITH before"),
        ("SELECT objID INTO MyDB.x FROM PhotoObjAll", "has INTO; leave it out"),
        ("SELECT objID FROM", "SQL syntax"),
        ("SELECT objID, 1 FROM PhotoObjAll", "column 2 has no name"),
        ("SELECT objID, ra AS OBJID FROM PhotoObjAll", "two columns are named objid"),
    ],
)
def test_a_query_that_cannot_be_a_job_is_refused_before_anyone_is_asked(
    start, output, tmp_path, text, words
):
    services = start()
    with pytest.raises(UserError, match=f"q.sql: .*{words}"):
        bring(services, output, write(tmp_path, text))
    assert not services.log


@pytest.mark.parametrize(
    ("options", "words"),
    [({"context": "DR77"}, "labelled.sql: CasJobs: Context DR77 does not exist"),
     ({"context": "DR12/../x"}, "--context"), ({"page_rows": 0}, "--page-rows 0: .* above 0"),
     ({"poll": -1}, "--poll"), ({"poll": "nan"}, "--poll"), ({"page_rows": -5}, "--page-rows")],
)  # fmt: skip
def test_flags_that_cannot_be_are_one_line(start, output, options, words):
    services = start()
    more = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    with pytest.raises(UserError, match=words) as caught:
        bring(services, output, LABELLED, *more)
    assert "\n" not in str(caught.value) and not services.jobs()


@pytest.mark.parametrize("text", [
    "SELECT p.OBJID, p.RA AS Ra FROM PhotoObjAll p; -- all of them\n",
    "SELECT DISTINCT z.objid AS objid, 1E-5 AS tiny FROM zooSpec AS z",
    "SELECT fieldid, a_u FROM Field WHERE run < 0",
    "SELECT objID, 'it''s -- no  comment' AS t FROM PhotoObjAll WHERE run = 94",
])  # fmt: skip
def test_spelling_comments_and_empty_results_are_as_on_a_database(
    start, output, survey, tmp_path, text
):
    path, other = write(tmp_path, text), tmp_path / "duckdb.parquet"
    bring(start(), output, path)
    query.main(["--engine=duckdb", f"--source={survey['database']}", f"--sql={path}",
                f"--output={other}"])  # fmt: skip
    assert pq.read_schema(output).names == pq.read_schema(other).names
    if "tiny" not in text:
        assert output.read_bytes() == other.read_bytes()


def test_a_stretch_is_cut_by_the_service(start, output, survey, tmp_path):
    stretch = ["--stretch", "94", "3", "0", "100"]
    path, other = write(tmp_path, "SELECT objID FROM PhotoObjAll"), tmp_path / "duckdb.parquet"
    bring(start(), output, path, *stretch)
    query.main(["--engine=duckdb", f"--source={survey['database']}", f"--sql={path}",
                f"--output={other}", *stretch])  # fmt: skip
    assert pq.read_metadata(output).num_rows == 5
    assert output.read_bytes() == other.read_bytes()


def child(services, output, **options):
    environment = os.environ | {"SCISERVER_USER": "astronomer", "SCISERVER_PASSWORD": "secret"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.query", *flags(services, output, **options)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(condition):
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it does not happen")


@pytest.mark.parametrize("moment", ["before the put is answered", "while polling", "between pages"])
def test_killed_and_started_again_with_one_job_and_the_same_bytes(start, output, right, moment):
    services = start(delay=0.02, job_seconds=0.5)
    if moment.startswith("before"):
        services.plan("submit", "stall", draw=0.1)
    pages = output.parent / ".labelled.casjobs"
    first = child(services, output)
    until({
        "before the put is answered": lambda: (pages / "job.json").exists(),
        "while polling": lambda: services.jobs() and services.jobs()[0]["status"] == 1,
        "between pages": lambda: len(list(pages.glob("page-*.parquet"))) >= 1,
    }[moment])  # fmt: skip
    first.kill()
    first.communicate()
    time.sleep(0.2)  # until the server has seen it
    asked = len(services.log)
    came = {page: page.stat().st_ino for page in pages.glob("page-*.parquet")}
    task = json.loads((pages / "job.json").read_text())["name"]
    services.delay = 0
    assert bring(services, output) == right
    assert [job["task"] for job in services.jobs()] == [task]
    paged = [one for one in services.log[asked:] if one.path.lower().endswith("/mydb/query")]
    assert len(paged) == 2 + PAGES - len(came)  # the count, the columns, and what had not come


def test_memory_does_not_grow_with_the_number_of_rows(start, tmp_path, monkeypatch):
    code = """
import resource, sys, threading
from pathlib import Path
from pipeline.survey import credentials
from pipeline.survey.batch import Batch
from pipeline.survey.casjobs import CasJobs
from pipeline.survey.network import Manners, Pace
base, login, folder = sys.argv[1:]
service = CasJobs(base, login, credentials.read(), Manners(), Pace(Path(folder) / "pace", None))
for rows in (20_000, 200_000):
    text = f"SELECT objID, ra, dec, u, g, r FROM big WHERE objID <= {rows}"
    pages = Batch(service, text, "big.sql", "DR12", Path(folder) / str(rows), 10_000, 0.1).run()
    print(len(pages), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    database = make(tmp_path / "big.duckdb")
    with duckdb.connect(str(database)) as made:
        columns = ", ".join(f"random() AS {name}" for name in ("ra", "dec", "u", "g", "r"))
        made.execute(f"CREATE TABLE big AS SELECT range + 1 AS objID, {columns} FROM range(200000)")
    services = start(database=database)
    done = subprocess.run(
        [sys.executable, "-c", code, services.casjobs, services.login, tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, before, second, after = map(int, done.stdout.split())
    assert (first, second) == (2, 20)
    assert (after - before) / 1024 < 25  # MB; all rows are 24 MB of CSV
