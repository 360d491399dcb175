"""The engines: a database with DR12's tables, or a table of the user's own."""

from __future__ import annotations

import subprocess
import sys

import duckdb
import pyarrow.parquet as pq
import pytest
from small_survey import KNOWN, make, objid

from pipeline import query
from pipeline.run import UserError


@pytest.fixture
def survey(tmp_path):
    photo = [dict(objID=objid(obj)) for obj in (9, 3, 125, 7)]
    return make(tmp_path / "survey.duckdb", photo=photo)


def sql(tmp_path, text: str):
    path = tmp_path / "q.sql"
    path.write_text(text)
    return path


def run_sql(source, path, *more):
    out = path.parent / "result.parquet"
    query.main(["--engine=duckdb", f"--source={source}", f"--sql={path}", f"--output={out}", *more])
    return pq.read_table(out)


def test_an_id_comes_through_exactly(survey, tmp_path):
    path = sql(tmp_path, f"SELECT objID FROM PhotoObjAll WHERE objID = {KNOWN}")
    out = tmp_path / "out.parquet"
    query.main(["--engine=duckdb", f"--source={survey}", f"--sql={path}", f"--output={out}"])
    column = pq.read_table(out).column("objID")
    assert str(column.type) == "int64" and column.to_pylist() == [1237653651835781245]


def test_rows_are_in_one_order_and_bytes_are_the_same(survey, tmp_path):
    files = []
    for name, order in (("a", "objID"), ("b", "objID DESC")):
        path = sql(tmp_path, f"SELECT objID, ra FROM PhotoObjAll ORDER BY {order}")
        files.append(tmp_path / f"{name}.parquet")
        query.main(["--engine=duckdb", f"--source={survey}", f"--sql={path}",
                    f"--output={files[-1]}"])  # fmt: skip
    assert files[0].read_bytes() == files[1].read_bytes()
    assert pq.read_table(files[0]).column("objID").to_pylist() == [
        objid(3), objid(7), objid(9), KNOWN,
    ]  # fmt: skip


def test_the_database_is_left_as_it_was(survey, tmp_path):
    before = survey.read_bytes()
    path = sql(tmp_path, "SELECT objID FROM PhotoObjAll")
    with duckdb.connect(str(survey), read_only=True):  # another reader does not matter
        run_sql(survey, path)
    assert survey.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "SELECT objID\nFROM PhotoObjAll\nWHERE (ra > 1",
            r"q\.sql: line 3, column \d+: SQL syntax",
        ),
        ("SELECT nope FROM PhotoObjAll", r"q\.sql: .*\"nope\" not found"),
        ("SELECT ra FROM Nowhere", r"q\.sql: .*Nowhere does not exist"),
        ("SELECT ra, dec AS RA FROM PhotoObjAll", "two columns are named ra"),
        ("SELECT nope/2 FROM PhotoObjAll", r"q\.sql: .*nope"),
        ("SELECT 1/(objID-objID) AS x FROM PhotoObjAll", "[Dd]ivision by zero"),
    ],
)
def test_bad_sql_is_refused_in_one_line(survey, tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        run_sql(survey, sql(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_bad_files_are_refused_in_one_line(survey, tmp_path):
    good = sql(tmp_path, "SELECT ra FROM PhotoObjAll")
    other = tmp_path / "other.duckdb"
    other.write_text("no database")
    binary = tmp_path / "binary.sql"
    binary.write_bytes(b"\xff\xfe SELECT")
    for source, path, message in (
        (other, good, "not a DuckDB database"), (tmp_path / "absent", good, "no such file"),
        (survey, tmp_path / "absent.sql", "no such file"), (survey, binary, "not UTF-8"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            run_sql(source, path)
        assert "\n" not in str(caught.value)


def test_a_stretch_keeps_its_fields_alone(tmp_path):
    photo = [dict(objID=objid(1, field), field=field) for field in (161, 162, 163, 164)]
    source = make(tmp_path / "survey.duckdb", photo=photo)
    path = sql(tmp_path, "SELECT po.objID, po.field -- all\nFROM PhotoObjAll po;\n")
    rows = run_sql(source, path, "--stretch", "1904", "3", "162", "163")
    assert rows.column("field").to_pylist() == [162, 163]
    for stretch in ("1904 7 1 2", "1904 3 5 2", "99999 3 1 2"):
        with pytest.raises(UserError, match="--stretch"):
            run_sql(source, path, "--stretch", *stretch.split())


def test_table_engine_reads_its_own_output(tmp_path):
    own, first, second = (tmp_path / name for name in ("own.csv", "1.parquet", "2.parquet"))
    own.write_text("RA,Dec,redshift,name\n150.1,2.2,0.1,a\n150.2,2.3,,b\n")
    query.main(["--engine=table", f"--source={own}", f"--output={first}"])
    query.main(["--engine=table", f"--source={first}", f"--output={second}"])
    assert first.read_bytes() == second.read_bytes()
    rows = pq.read_table(first)
    assert rows.column_names == ["objID", "ra", "dec", "z"] and rows.num_rows == 2


def test_sql_belongs_to_the_engine_that_runs_it(survey, tmp_path):
    with pytest.raises(UserError, match="--sql goes with the engines that run SQL"):
        query.main(["--engine=duckdb", f"--source={survey}", "--output=x.parquet"])


def test_the_command_line_ends_with_one_line_and_nothing_written(survey, tmp_path):
    out = tmp_path / "out.parquet"
    path = sql(tmp_path, "SELECT ra, FROM PhotoObjAll")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.query", "--engine", "duckdb", "--source", survey,
         "--sql", path, "--output", out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and not out.exists()
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {path}: line 1, column 10: SQL syntax")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["q.sql", "survey.duckdb"]
