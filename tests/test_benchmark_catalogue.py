"""The benchmark of the catalogue: its database, its command, and what a wrong count does."""

import importlib
import json
import subprocess
import sys

import duckdb
import numpy as np
import pytest
from scipy.spatial import cKDTree

from pipeline.settings import ROOT
from pipeline.survey import fields, positions
from pipeline.survey.names import unpack_objid


@pytest.fixture(scope="module", autouse=True)
def on_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


def module():
    return importlib.import_module("catalogue")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory) -> subprocess.CompletedProcess:
    work = tmp_path_factory.mktemp("work")
    words = [ROOT / "benchmarks/catalogue.py", "--galaxies", "3000", "--work", work]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "survey.duckdb"
    module().write_database(module().make_plan(5000), path)
    with duckdb.connect(str(path), read_only=True) as open_one:
        yield open_one


def test_command_accounts_for_every_row_and_ends_with_its_figures(run_of):
    assert run_of.returncode == 0, run_of.stderr
    figures = json.loads(run_of.stdout.splitlines()[-1])
    assert figures["galaxies"] == 3000 and figures["wrong"] == []
    assert figures["counts"]["shards"] == 400
    assert figures["counts"]["unlabelled: |b| below 15 deg"] == 106
    assert set(figures["cost"]) == {"labelled", "unlabelled", "fields", "morphology", "catalog"}
    assert all(cost["peak_mb"] > 10 and cost["wall_s"] > 0 for cost in figures["cost"].values())
    for words in ("peak MB", "labelled: repeat spectrum of an object", "put in", "came out"):
        assert words in run_of.stdout


def test_full_size_has_the_counts_of_the_paper():
    plan = module().make_plan(1_700_000)
    put = module().expected(plan)
    assert put["labelled"] == 547_224 and put["galaxies with a redshift"] == 502_977
    assert put["galaxies"] == 1_700_000 and put["morphology"] == 250_000
    assert put["fields"] == 938_046 and len(np.unique(plan.run)) == 765
    assert set(np.diff(plan.first)) == {0, 3, 4}


def test_galaxies_lie_on_their_fields_and_no_others_are_near(database):
    photo = database.sql("SELECT * FROM PhotoObjAll WHERE mode = 1").df()
    part = unpack_objid(photo["objID"])
    assert all((part[name] == photo[name]).all() for name in ("run", "camcol", "field"))
    table = fields.with_circles(database.sql("SELECT * FROM Field ORDER BY fieldID").df())
    rows = fields.rows_of(table, photo[["run", "camcol", "field"]])
    row, column = fields.pixel(table, rows, photo["ra"], photo["dec"], "r")
    assert np.allclose(row, photo["rowc_r"], atol=2) and np.allclose(
        column, photo["colc_r"], atol=2
    )
    tree = cKDTree(positions.unit_vectors(photo["ra"], photo["dec"]))
    for radius in (1, 10):
        pairs = tree.query_pairs(positions.chord(radius / 3600))
        kinds = module().kinds_of(5000)
        assert len(pairs) == kinds[module().TWIN >= 0].sum()


def test_tables_have_the_columns_of_the_queries_in_the_types_of_the_survey(database):
    used = module().used_columns()
    assert {"objID", "flags", "colc_z"} <= used["PhotoObjAll"].keys()
    assert "ra" not in used["zooSpec"] and used["Field"]["score"] == "FLOAT"
    for table, kinds in used.items():
        described = database.sql(f"DESCRIBE {table}").fetchall()
        assert [row[:2] for row in described] == list(kinds.items())


def test_database_is_the_same_rows_again(database, tmp_path):
    module().write_database(module().make_plan(5000), tmp_path / "again.duckdb")
    with duckdb.connect(str(tmp_path / "again.duckdb"), read_only=True) as again:
        for table in module().ALIASES:
            assert database.table(table).df().equals(again.table(table).df())


def test_database_alone_is_made_once(tmp_path, capsys):
    words = ["--galaxies", "3000", "--work", str(tmp_path), "--database-only"]
    module().main(words)
    path = tmp_path / "survey-3000.duckdb"
    assert capsys.readouterr().out == f"{path}\n"
    made = path.stat().st_mtime_ns
    module().main(words)
    assert path.stat().st_mtime_ns == made and list(tmp_path.iterdir()) == [path]


def test_a_wrong_count_fails(tmp_path, monkeypatch, capsys):
    catalogue = module()
    monkeypatch.setattr(catalogue, "run_all", lambda *_: {})
    monkeypatch.setattr(catalogue, "write_database", lambda *_: None)
    monkeypatch.setattr(catalogue, "found", lambda _: {"galaxies": 2999, "labelled: other": 1})
    with pytest.raises(catalogue.UserError, match="galaxies, .*labelled: other: not as many"):
        catalogue.main(["--galaxies", "3000", "--work", str(tmp_path)])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "galaxies" in figures["wrong"]


def test_differences_are_counted():
    catalogue, ids = module(), np.array([1, 2, 2, 3])
    assert catalogue._differences(ids, ids) == 0
    assert catalogue._differences(ids, np.array([1, 2, 3, 3])) == 1
    assert catalogue._differences(ids, ids[1:]) == 1


def test_too_few_and_too_many_galaxies_are_refused():
    with pytest.raises(module().UserError, match="1700000 or fewer"):
        module().make_plan(3_000_000)
    with pytest.raises(module().UserError, match="--galaxies 2999: give 3000 or more"):
        module().main(["--galaxies", "2999"])
