"""The SQL files: what they select, checked on tables of which every row is known."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_survey import KNOWN, make, objid
from sqlglot import exp

from pipeline import query
from pipeline.survey import tsql

QUERIES = Path(__file__).resolve().parents[1] / "queries"
NAMES = ("labelled", "unlabelled", "morphology", "fields")
BANDED = ("rowc", "colc", "petroMag", "modelMag", "extinction")


def rows_of(tmp_path, name, **tables):
    source = make(tmp_path / "survey.duckdb", **tables)
    out = source.with_name(f"{name}.parquet")
    query.main(["--engine=duckdb", f"--source={source}", f"--sql={QUERIES / name}.sql",
                f"--output={out}"])  # fmt: skip
    return pq.read_table(out).to_pandas()


@pytest.mark.parametrize("name", NAMES)
def test_each_begins_with_a_comment_and_is_one_select(name):
    text = (QUERIES / f"{name}.sql").read_text()
    assert text.startswith("-- ") and "Hayat et al. 2020" in text.split("SELECT")[0]
    query = tsql.parse(text, name)
    names = [column.lower() for column in query.named_selects]
    assert len(names) == len(set(names)) and "*" not in names
    assert all(isinstance(column, exp.Column | exp.Alias) for column in query.selects)


def test_labelled_keeps_what_the_main_galaxy_sample_keeps(tmp_path):
    bad = [
        dict(z=0.0), dict(z=-0.1), dict(z=0.41), dict(zWarning=4), dict(targetType="SKY"),
        dict(survey="boss"), {"class": "STAR"}, dict(primtarget=32), dict(bestObjID=objid(9)),
        dict(bestObjID=objid(8)), dict(bestObjID=objid(7)), dict(bestObjID=objid(6)),
    ]  # fmt: skip
    spectra = [{"specObjID": 100 + k, **row} for k, row in enumerate(bad)]
    spectra += [dict(specObjID=1), dict(specObjID=2, survey="SDSS", sciencePrimary=0, z=0.4)]
    photo = [{}, dict(objID=objid(9), clean=0), dict(objID=objid(8), insideMask=1),
             dict(objID=objid(7), petroMag_r=17.91), dict(objID=objid(6))]  # fmt: skip
    photoz = [dict(objID=objid(k), z=0.1, zErr=0.02) for k in (125, 9, 8, 7)]
    rows = rows_of(tmp_path, "labelled", spectra=spectra, photo=photo, photoz=photoz)
    assert rows["specObjID"].tolist() == [1, 2]
    assert rows["objID"].tolist() == [KNOWN, KNOWN]
    assert {f"{name}_{band}" for name in BANDED for band in "ugriz"} <= set(rows)
    wanted = {"mode", "run", "rerun", "camcol", "field", "b", "sciencePrimary", "zErr", "photoz"}
    assert wanted | {"photozErr", "dered_petro_r"} <= set(rows)


def test_unlabelled_needs_no_spectrum_and_shows_a_missing_photoz(tmp_path):
    photo = [{}, dict(objID=objid(2)), dict(objID=objid(3), type=6), dict(objID=objid(4), mode=2),
             dict(objID=objid(5), clean=0), dict(objID=objid(6), insideMask=2),
             dict(objID=objid(7), petroMag_r=17.91),
             dict(objID=objid(8), petroMag_r=17.8999)]  # fmt: skip
    photoz = [dict(objID=KNOWN, z=0.1, zErr=0.02), dict(objID=objid(8), z=-9999, zErr=-9999)]
    rows = rows_of(tmp_path, "unlabelled", photo=photo, photoz=photoz).set_index("objID")
    assert sorted(rows.index) == [objid(2), objid(8), KNOWN]
    assert rows["photoz"].isna().to_dict() == {objid(2): True, objid(8): False, KNOWN: False}


def test_morphology_gives_votes_by_the_objects_later_id(tmp_path):
    zoo = [dict(objid=KNOWN, specobjid=7, dr7objid=1, nvote=30, p_el=0.7, spiral=0)]
    rows = rows_of(tmp_path, "morphology", zoo=zoo)
    assert rows["objID"].tolist() == [KNOWN] and rows["p_el"].tolist() == [0.7]


def test_fields_carry_what_places_positions_and_weighs_pixels(tmp_path):
    rows = rows_of(tmp_path, "fields")
    assert rows[["run", "camcol", "field"]].to_numpy().tolist() == [[1904, 3, 163]]
    needed = {"ra", "dec", "muStart", "primaryArea", "score", "quality", "raMin", "decMax"}
    banded = ("psfWidth", "sky", "gain", "darkVariance", *"abcdef")
    assert needed | {f"{name}_{band}" for name in banded for band in "ugriz"} <= set(rows)
