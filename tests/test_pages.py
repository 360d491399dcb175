"""Pages of CSV: what came is what was sent, and pages together do not depend on the cuts."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.survey import pages
from pipeline.survey.network import Trouble
from pipeline.survey.pages import Truncated

NAMES = ["objID", "s", "x", "y", "n", "t"]
KINDS = {"objID": "bigint", "s": "varchar", "x": "real", "y": "float", "n": "smallint",
         "t": "tinyint"}  # fmt: skip
ID = 1237653651835781245


def page(rows, names=NAMES, count=None, total=None, end="\n"):
    """CSV as a service writes it, with its sums."""
    out = io.StringIO()
    keys = [int(row[0]) for row in rows if row[0] not in ("", "null")]
    sums = [len(rows) if count is None else count, sum(keys) if total is None else total]
    writer = csv.writer(out, lineterminator=end)
    writer.writerow([*names, "ugriz_rows", "ugriz_sum"])
    writer.writerows([*row, *sums] for row in rows)
    return out.getvalue().encode()


def parse(body, names=NAMES, kinds=KINDS, key="objID"):
    return pages.parse(body, names, kinds, key)


def row(key=ID, s="a", x=1, y=1, n=1, t=1):
    return (str(key), s, x, y, n, t)


def column(name, *values):
    table = parse(page([row(ID + k, **{name: value}) for k, value in enumerate(values)]))
    return table.column(name).to_pylist()


def test_types_are_those_of_the_server_and_an_id_is_exact():
    table = parse(page([row()]))
    assert [str(kind) for kind in table.schema.types] == [
        "int64", "string", "float", "double", "int16", "uint8",
    ]  # fmt: skip
    assert table.to_pylist()[0]["objID"] == ID
    big = parse(page([row(2**63 - 1, t=255, n=-32768), row(-(2**63) + 1), row(0)]))
    assert big.column("objID").to_pylist() == [2**63 - 1, -(2**63) + 1, 0]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1E-05", 1e-5), ("1.0E-5", 1e-5), ("1e5", 1e5), ("1.5E+10", 1.5e10), ("-9999", -9999.0),
     ("-0", 0.0), (".5", 0.5), ("Infinity", math.inf), ("-inf", -math.inf), ("", None),
     ("null", None), ("NULL", None), ("150.123456789012", 150.123456789012)],
)  # fmt: skip
def test_numbers_are_read_however_they_are_written(text, number):
    assert column("y", text) == [number]


def test_nan_is_nan_and_not_missing():
    (value,) = column("y", "NaN")
    assert math.isnan(value)
    (value,) = column("x", "nan")
    assert math.isnan(value)


def test_missing_values_are_null_in_every_type():
    table = parse(page([row(), ("", "", "", "", "", ""), ("null",) * 6], total=ID))
    assert all(column.null_count == 2 for column in table.columns)


@pytest.mark.parametrize("text", ["a,b", 'say "x"', "two\nlines", "tab\t", "É ☉", " blank ", "'"])
def test_texts_keep_their_commas_quotes_and_newlines(text):
    assert column("s", text, text + "2") == [text, text + "2"]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)))
def test_any_text_comes_through(texts):
    texts = [text for text in texts if text not in pages.MISSING]
    assert column("s", *texts) == texts


def test_what_stands_before_the_names_and_their_case_do_not_matter():
    plain = parse(page([row()]))
    for body in (
        b"#Table1\n" + page([row()]) + b"\n", b"#Table1\r\n" + page([row()], end="\r\n"),
        b"\xef\xbb\xbf" + page([row()]), page([row()], [name.upper() for name in NAMES]),
        page([row()]).replace(b"objID", b'"objid"', 1),
    ):  # fmt: skip
        assert parse(body).equals(plain)
    assert parse(page([row()]), key="OBJID").equals(plain)


def test_no_rows_keep_their_types():
    for body in (page([]), page([]).strip(), b"#Table1\n" + page([]) + b"\n"):
        table = parse(body)
        assert table.num_rows == 0 and table.schema == parse(page([row()])).schema


@settings(deadline=None)
@given(st.data())
def test_a_page_cut_anywhere_is_never_taken_for_whole(data):
    body = page([row(ID + k, s="x,\ny", n=k) for k in range(12)])
    at = data.draw(st.integers(0, len(body) - 1))
    if body[at:].strip() == b"":
        return
    try:
        table = parse(body[:at])
    except Trouble:
        return
    # the sums are the last cells: a shortened sum of the last row is not looked at
    assert table.num_rows == 0 or table.equals(parse(body))


def test_a_page_cut_at_a_lines_end_says_so():
    lines = page([row(ID + k) for k in range(5)]).splitlines(keepends=True)
    with pytest.raises(Truncated, match="3 rows came where 5 were announced"):
        parse(b"".join(lines[:4]))


def test_ids_that_are_not_the_announced_ones_are_no_page():
    with pytest.raises(Trouble, match="sum of the ids"):
        parse(page([row(ID), row(ID + 2)], total=2 * ID + 1))
    assert parse(page([row(ID)], total=f"{ID}.0")).num_rows == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"", "other columns"), (b"error_message\nno\n", "other columns"),
     (page([row()], ["objID", "s", "y", "x", "n", "t"]), "other columns"),
     (b"<html><title>Down</title>", r'web page \("Down"\)'), (b'{"a": 1}', "other columns"),
     (page([row(x="abc")]), "cannot be read"), (page([row(n=40000)]), "cannot be read"),
     (page([row(s=b"\xff")]).replace(b"b'\\xff'", b"\xff"), "cannot be read"),
     (page([row()]) + b"1,2\n", "cannot be read"), (page([row()])[:-10] + b'"', "sum of the ids")],
)  # fmt: skip
def test_what_is_no_page_of_these_columns_is_trouble_in_one_line(body, words):
    with pytest.raises(Trouble, match=words) as caught:
        parse(body)
    assert "\n" not in str(caught.value)


ROWS = [
    {"objID": ID + k // 2, "x": None if k % 5 == 0 else k % 3 - 0.5, "s": None if k % 4 else "é,",
     "ugriz_row": k}
    for k in range(60)
]  # fmt: skip
SCHEMA = pa.schema(
    {"objID": pa.int64(), "x": pa.float32(), "s": pa.string(), "ugriz_row": pa.int64()}
)


def joined(folder, parts, **more):
    files = []
    for number, part in enumerate(parts):
        files.append(folder / f"{number}.parquet")
        pages.write(pa.Table.from_pylist(part, SCHEMA), files[-1])
    count = pages.join(files, folder / "out.parquet", leave_out=["ugriz_row"], **more)
    return count, (folder / "out.parquet").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    count, raw = joined(folder, [ROWS])
    assert count == len(ROWS)
    return folder, raw


@settings(max_examples=25, deadline=None)
@given(st.permutations(ROWS), st.lists(st.integers(0, len(ROWS)), max_size=6))
def test_bytes_do_not_depend_on_the_cuts_or_the_order(whole, rows, cuts):
    folder, raw = whole
    edges = [0, *sorted(cuts), len(rows)]
    parts = [rows[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert joined(folder, parts) == (len(ROWS), raw)


def test_rows_are_sorted_by_all_columns_with_nulls_last(whole):
    folder, _ = whole
    joined(folder, [ROWS])
    table = pq.read_table(folder / "out.parquet")
    assert table.column_names == ["objID", "x", "s"]
    rows = [tuple((value is None, value or 0) for value in row.values()) for row in
            table.select(["objID", "x"]).to_pylist()]  # fmt: skip
    assert rows == sorted(rows)


def test_an_empty_text_is_a_null_as_in_csv(tmp_path):
    rows = [dict(ROWS[0], s=""), dict(ROWS[0], s=None)]
    joined(tmp_path, [rows])
    assert pq.read_table(tmp_path / "out.parquet").column("s").to_pylist() == [None, None]


def test_an_empty_result_keeps_its_types(tmp_path):
    assert joined(tmp_path, [[], []])[0] == 0
    found = pq.read_schema(tmp_path / "out.parquet")
    assert found.types == SCHEMA.types[:3]


def test_row_groups_are_bounded_and_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "GROUP", 25)
    _, first = joined(tmp_path, [ROWS])
    file = pq.ParquetFile(tmp_path / "out.parquet")
    sizes = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    assert sizes == [25, 25, 10]
    monkeypatch.setattr(pages, "BATCH", 7)
    assert joined(tmp_path, [ROWS[:31], ROWS[31:]])[1] == first


def test_names_with_blanks_and_folders_with_brackets_are_no_patterns(tmp_path):
    folder = tmp_path / "run[1]* 'x'"
    folder.mkdir()
    assert joined(folder, [ROWS, ROWS])[0] == 2 * len(ROWS)


FULL = """
import resource, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from pipeline.survey import pages
from pipeline import run
def main(argv):
    folder = Path(sys.argv[1])
    table = pa.table({f"c{i}": np.random.default_rng(i).random(300000) for i in range(12)})
    pq.write_table(table, folder / "page.parquet", row_group_size=20000)
    pages.MEMORY = "100MB"
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 23, 1 << 23))
    pages.join([folder / "page.parquet"] * 4, folder / "out.parquet")
run.start(main)
"""


def test_a_disk_that_fills_while_sorting_is_one_line_and_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/out.parquet: rows cannot be sorted: IO Error")
    assert "Traceback" not in done.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["page.parquet"]


PEAK = """
import resource, sys
from test_pages import page, row, parse, ID
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
names = ["objID", *(f"c{k}" for k in range(51))]
kinds = {"objID": "bigint"} | {f"c{k}": "real" for k in range(51)}
cells = [str(k + 0.123456) for k in range(51)]
body = page([(str(ID + k), *cells) for k in range(20000)], names)
before = peak()
parse(body, names, kinds)
once = peak()
for _ in range(4): parse(body, names, kinds)
print(len(body) / 1e6, once - before, peak() - once)
"""


def test_reading_pages_takes_no_more_memory_with_each(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, cwd="tests", check=True,
        env={"PYTHONPATH": ".:..", "PATH": ""},
    )  # fmt: skip
    size, first, more = map(float, done.stdout.split())
    assert size > 10 and first < 8 * size and more < size
