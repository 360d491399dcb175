"""The catalogue: from tables to frame order, with every row accounted for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_survey import KNOWN, make, objid
from test_fields import place, strip

from pipeline import catalog, query
from pipeline.catalog import Options, build
from pipeline.run import UserError
from pipeline.survey import tables
from pipeline.survey.names import pack_objid

QUERIES = Path(__file__).resolve().parents[1] / "queries"
PAPER = Options(min_b_unlabelled=15, max_photoz=0.8)


def galaxies(number: int, first: int = 1, **columns) -> pd.DataFrame:
    """Galaxies 0.1 deg apart, three to a field."""
    k = np.arange(number)
    rows = pd.DataFrame({
        "objID": KNOWN + first + k, "ra": (359 + (k + first) * 0.1) % 360, "dec": 1.0, "b": -60.0,
        "run": 94 + k // 30, "rerun": 301, "camcol": 1 + k // 15 % 2, "field": 11 + k // 3 % 5,
    })  # fmt: skip
    return rows.assign(**columns)


def labelled(number: int, **columns) -> pd.DataFrame:
    plain = dict(z=0.1, zErr=1e-5, sciencePrimary=1, petroMag_r=17.0, extinction_r=0.2)
    return galaxies(number, **{**plain, **columns})


def counts(made, sample: str) -> dict[str, int]:
    return {step["step"]: step["count"] for step in made.funnel["samples"][sample]}


def reasons(made) -> dict[str, int]:
    return made.rejected.to_pandas()["reason"].value_counts().to_dict()


def test_from_sql_to_parquet_the_id_is_the_same(tmp_path):
    photo = [{}, dict(objID=objid(2), ra=151.0), dict(objID=objid(3), ra=152.0, b=3.0),
             dict(objID=objid(4), ra=153.0)]  # fmt: skip
    photoz = [dict(objID=objid(k), z=z, zErr=0.01) for k, z in ((125, 0.1), (2, 0.2), (4, 0.9))]
    spectra = [dict(specObjID=1, sciencePrimary=0), dict(specObjID=2)]
    zoo = [dict(objid=KNOWN, specobjid=1, nvote=9, p_el=0.5), dict(objid=KNOWN, nvote=30, p_el=0.7)]
    source = make(tmp_path / "s.duckdb", spectra, photo, photoz, zoo)
    for name in ("labelled", "unlabelled", "morphology", "fields"):
        query.main(["--engine=duckdb", f"--source={source}", f"--sql={QUERIES / name}.sql",
                    f"--output={tmp_path / name}.parquet"])  # fmt: skip
    names = ("labelled", "unlabelled", "morphology", "fields")
    catalog.main([
        *(f"--{name}={tmp_path / name}.parquet" for name in names),
        f"--output={tmp_path}/catalog.parquet", f"--funnel={tmp_path}/catalog.json",
        f"--rejected={tmp_path}/rejected.parquet", "--min-b-unlabelled=15", "--max-photoz=0.8",
        "--survey=sdss-dr12",
    ])  # fmt: skip
    rows = pq.read_table(tmp_path / "catalog.parquet")
    assert str(rows.schema.field("objID").type) == "int64"
    assert rows.column("objID").to_pylist() == [objid(2), 1237653651835781245]
    assert rows.column("specObjID").to_pylist() == [None, 2]
    assert rows.column("nvote").to_pylist() == [None, 30]
    assert rows.column("p_el").to_pylist()[1] == pytest.approx(0.7)
    assert rows.column("dered_petro_r").to_pylist() == [pytest.approx(16.9)] * 2
    assert rows.schema.equals(catalog.schema(morphology=True))
    funnel = json.loads((tmp_path / "catalog.json").read_text())
    by_step = {s["step"]: (s["count"], s["paper"]) for s in funnel["samples"]["unlabelled"]}
    assert by_step == {
        "queried": (4, None), "one row an object": (4, None), "not labelled": (3, None),
        "no other within 1 arcsec": (3, None), "|b| >= 15 deg": (2, None),
        "photo-z missing, kept": (2, None), "photo-z <= 0.8": (1, 1_194_779),
    }  # fmt: skip
    assert funnel["samples"]["labelled"][0]["paper"] == 547_224
    gone = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert {(row["objID"], row["sample"], row["reason"]) for row in gone} == {
        (KNOWN, "labelled", "repeat spectrum of an object"),
        (KNOWN, "unlabelled", "is in the labelled sample"),
        (objid(3), "unlabelled", "|b| below 15 deg"),
        (objid(4), "unlabelled", "photo-z above 0.8"),
    }


def test_every_row_is_a_galaxy_or_has_a_reason():
    one = labelled(40)
    one.loc[3, "objID"] = one.loc[2, "objID"]
    one.loc[[8], ["ra", "dec"]] = one.loc[9, "ra"] + 0.5 / 3600, 1.0
    other = galaxies(60, first=35, b=np.where(np.arange(60) < 5, 10.0, 60.0))
    other["photoz"] = np.where(np.arange(60) % 10 == 7, 0.9, 0.1)
    other.loc[20:22, "photoz"] = np.nan
    made = build(one, other, options=PAPER)
    assert counts(made, "labelled") == {
        "queried": 40, "one row an object": 39, "no other within 1 arcsec": 38,
    }  # fmt: skip
    assert list(counts(made, "unlabelled").values()) == [60, 60, 54, 54, 54, 54, 48]
    missing = made.funnel["samples"]["unlabelled"][5]
    assert missing["step"] == "photo-z missing, kept" and missing["missing"] == 3
    assert made.galaxies.num_rows == 38 + 48 and made.rejected.num_rows == 2 + 6 + 6
    assert made.galaxies.num_rows + made.rejected.num_rows == 100
    assert sum(reasons(made).values()) == made.rejected.num_rows
    dropped = build(one, other, options=Options(max_photoz=0.8, missing_photoz="drop"))
    assert reasons(dropped)["photo-z missing"] == 3
    assert all(s["paper"] is None for rows in made.funnel["samples"].values() for s in rows)


def test_each_column_comes_from_the_table_that_has_it():
    one = labelled(3, psfWidth_r=1.4, gain_u=2.2, modelMag_g=np.float32(17.3))
    other = galaxies(3, first=50, petroMag_r=16.5, rowc_u=[1.5, np.nan, 3.5], photoz=0.2)
    fields = strip(95.0, 0.0, 100.0, psfWidth_r=1.1).assign(run=94, camcol=1).drop(index=2)
    votes = pd.DataFrame({"objID": [KNOWN + 51, KNOWN + 2, 7], "nvote": [5, 9, 1], "p_el": 0.5})
    made = build(one, other.assign(field=13), fields, votes).galaxies.to_pandas()
    expected = {
        "psfWidth_r": [1.1] * 3 + [np.nan] * 3,  # of the field, where one is known
        "gain_u": [2.2] * 3 + [np.nan] * 3,  # the fields have none: the table's own
        "modelMag_g": [np.float32(17.3)] * 3 + [np.nan] * 3,
        "rowc_u": [np.nan] * 3 + [1.5, np.nan, 3.5],
        "dered_petro_r": [16.8] * 3 + [np.nan] * 3,  # those have no extinction
        "nvote": [np.nan, 9, np.nan, np.nan, 5, np.nan],
        "photoz": [np.nan] * 3 + [0.2] * 3,
    }
    for name, values in expected.items():
        assert np.allclose(made[name].astype(float), values, equal_nan=True), name
    assert "row" not in made and "shard" in made


def test_latitude_cuts_are_per_sample_and_b_is_computed_where_it_is_missing():
    one, other = labelled(5, b=10.0), galaxies(5, first=50, b=[-14.9, -15, 15, 20, 0])
    made = build(one, other, options=PAPER)
    assert counts(made, "labelled")["no other within 1 arcsec"] == 5
    assert counts(made, "unlabelled")["|b| >= 15 deg"] == 3
    with pytest.raises(UserError, match=r"no galaxy is left of 5; .*\|b\| below 15 deg"):
        build(one, None, options=Options(min_b_labelled=15))
    made = build(one.drop(columns="b"), None)
    assert -62 < made.galaxies.column("b").to_numpy().min() < -58


def test_frame_order_shards_and_the_columns_of_the_contract():
    rng = np.random.default_rng(0)
    rows = pd.concat([labelled(60), galaxies(60, first=100)], ignore_index=True)
    rows = rows.sample(frac=1, random_state=1)
    made = build(rows[rows.z.notna()], rows[rows.z.isna()], options=Options(shards=7))
    out = made.galaxies.to_pandas()
    key = out[["run", "camcol", "field", "objID"]]
    assert key.equals(key.sort_values(list(key), ignore_index=True))
    assert out["shard"].is_monotonic_increasing and set(out["shard"]) == set(range(7))
    assert made.galaxies.schema.equals(catalog.schema())
    assert made.galaxies.column("psfWidth_r").null_count == 120
    assert made.galaxies.column("z").null_count == 60
    assert {"train", "test", "unlabelled"} <= set(out["split"])
    assert made.funnel["splits"]["unlabelled"] == 60 and made.funnel["fields"] == 20
    shuffled = rows.iloc[rng.permutation(120)]
    again = build(shuffled[shuffled.z.notna()], shuffled[shuffled.z.isna()],
                  options=Options(shards=7))  # fmt: skip
    assert again.galaxies.equals(made.galaxies) and again.funnel == made.funnel
    with pytest.raises(UserError, match="shards: 21, but the galaxies lie on 20 fields"):
        build(rows[rows.z.notna()], rows[rows.z.isna()], options=Options(shards=21))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 25))
def test_row_order_does_not_matter_to_duplicates(seed, number):
    rng = np.random.default_rng(seed)
    rows = labelled(number, zErr=rng.integers(1, 3, number) * 1e-5, mode=rng.integers(1, 3, number))
    rows["objID"] = KNOWN + rng.integers(0, number, number)
    rows["specObjID"] = pd.array(np.arange(number), dtype="Int64")
    rows["ra"] = (rng.normal(0, 1.0, number) / 3600) % 360
    first = build(rows, None)
    second = build(rows.iloc[rng.permutation(number)].reset_index(drop=True), None)
    assert first.galaxies.equals(second.galaxies)
    assert first.rejected.num_rows + first.galaxies.num_rows == number


def test_positions_alone_find_their_fields():
    fields = strip(95.0, 32.5, 200.0, score=0.9, psfWidth_r=[1.1, 1.2, 1.3], gain_u=1.6)
    ra, dec = place(fields, [0, 2, 1], np.array([500.0, 600, 700]), np.array([100.0, 900, 1900]))
    ra, dec = np.append(ra, 10.0), np.append(dec, 0.0)
    rows = tables.galaxies(pd.DataFrame({"ra": ra, "dec": dec}), "own")
    made = build(None, rows, fields)
    out = made.galaxies.to_pandas()
    assert out["field"].tolist() == [11, 12, 13] and out["run"].unique() == [94]
    assert np.allclose(out["rowc_r"], [500, 700, 600], atol=1e-3)
    assert np.allclose(out["psfWidth_r"], [1.1, 1.2, 1.3]) and np.allclose(out["gain_u"], 1.6)
    assert counts(made, "unlabelled")["on a field"] == 3
    assert reasons(made) == {"lies on no field of the survey": 1}
    with pytest.raises(
        UserError, match="no galaxy is left of 1.* ra 10.000000, dec 0.000000: lies"
    ):
        build(None, rows[3:].reset_index(drop=True), fields)
    with pytest.raises(UserError, match="no run, camcol, field and .*; add those columns, or give"):
        build(None, rows)


def test_ids_of_sdss_tell_the_field():
    fields = strip(95.0, 32.5, 200.0, psfWidth_r=[1.1, 1.2, 1.3])
    ra, dec = place(fields, [0, 1, 2], np.array([1400.0, 600, 700]), np.array([100.0, 900, 1900]))
    ids = pack_objid(94, 1, [11, 12, 14], [5, 6, 7])
    rows = tables.galaxies(pd.DataFrame({"objID": ids, "ra": ra, "dec": dec}), "own")
    out = build(None, rows[1:]).galaxies.to_pandas()  # an index that does not start at 0
    assert out[["run", "rerun", "camcol", "field"]].to_numpy().tolist() == [
        [94, 301, 1, 12], [94, 301, 1, 14]
    ]  # fmt: skip
    out = build(None, rows, fields).galaxies.to_pandas()
    assert out["field"].tolist() == [11, 12, 14]  # the last is not in the table of fields
    assert np.allclose(out["rowc_r"], [1400, 600, np.nan], atol=1e-3, equal_nan=True)
    assert np.allclose(out["psfWidth_r"], [1.1, 1.2, np.nan], equal_nan=True)
    for other in (
        7, -ids[0], pack_objid(94, 7, 11, 1), pack_objid(0, 1, 11, 1),
        pack_objid(94, 1, 11, 1, rerun=157), pack_objid(94, 1, 11, 1, sky_version=1),
    ):  # fmt: skip
        mixed = rows.assign(objID=[*ids[:2], other])
        with pytest.raises(UserError, match="no run, camcol, field and no objIDs of SDSS"):
            build(None, mixed)
        assert build(None, mixed, fields).galaxies.column("field").to_pylist() == [11, 12, 13]


def test_an_emptied_sample_is_told(caplog):
    made = build(labelled(5, b=-10.0), galaxies(5, first=100), options=Options(min_b_labelled=15))
    assert made.galaxies.num_rows == 5
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["no labelled galaxy is left after the step '|b| >= 15 deg'"]


@pytest.mark.parametrize(
    "name", ["max_photoz", "min_b_labelled", "min_b_unlabelled", "duplicate_radius", "fov"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(name, value):
    with pytest.raises(UserError, match=f"^{name.replace('_', '-')}: {value}; give a finite"):
        build(labelled(3), None, options=Options(**{name: value}))


def test_sky_split_marks_every_galaxy():
    options = Options(split="sky", nside=64)
    made = build(labelled(300), galaxies(300, first=150), options=options)
    out = made.galaxies.to_pandas()
    assert set(out["sky_split"]) <= {"train", "valid", "test", "border"}
    assert (out.loc[out["split"] == "test", "sky_split"] == "test").all()
    assert sum(made.funnel["sky_split"].values()) == len(out)
    with pytest.raises(UserError, match="split sky: nside 1 gives"):
        build(labelled(20), None, options=Options(split="sky", nside=1))
    assert build(labelled(20), None).galaxies.column("sky_split").null_count == 20


def test_no_labels_at_all():
    for split in ("random", "sky"):
        made = build(None, galaxies(9), options=Options(split=split, shards=3))
        assert set(made.galaxies.column("split").to_pylist()) == {"unlabelled"}
        assert made.funnel["splits"]["test"] == 0


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="the samples have no rows"):
        build(None, None)
    with pytest.raises(UserError, match="labelled sample has rows without z"):
        build(galaxies(3), None)
    with pytest.raises(UserError, match="duplicate-radius: -1"):
        build(labelled(3), None, options=Options(duplicate_radius=-1))
    with pytest.raises(UserError, match="test-fraction: 1.5"):
        build(labelled(3), None, options=Options(test_fraction=1.5))


def run_main(tmp_path, source, *flags):
    catalog.main([f"--galaxies={source}", f"--output={tmp_path}/c.parquet",
                  f"--funnel={tmp_path}/c.json", *flags])  # fmt: skip
    return pq.ParquetFile(tmp_path / "c.parquet")


def test_a_shard_is_a_row_group_and_bytes_repeat(tmp_path):
    rows = pd.concat([labelled(40), galaxies(20, first=90)])
    rows.sample(frac=1, random_state=2).to_csv(tmp_path / "a.csv", index=False)
    rows.to_parquet(tmp_path / "b.parquet")
    first = run_main(tmp_path, tmp_path / "a.csv", "--shards=4")
    bytes_ = (tmp_path / "c.parquet").read_bytes(), (tmp_path / "c.json").read_bytes()
    assert first.num_row_groups == 4
    third = first.read_row_group(2).column("shard").to_pylist()
    assert set(third) == {2}
    part = pq.read_table(tmp_path / "c.parquet", filters=[("shard", "=", 2)])
    assert part.num_rows == len(third)
    run_main(tmp_path, tmp_path / "b.parquet", "--shards=4")
    assert bytes_ == ((tmp_path / "c.parquet").read_bytes(), (tmp_path / "c.json").read_bytes())


def test_the_real_list(real_data, tmp_path):
    rows = run_main(tmp_path, real_data / "galaxies.csv", "--shards=2").read().to_pandas()
    assert len(rows) == 44 and rows["split"].unique() == ["unlabelled"]
    assert rows.groupby("shard")["run"].unique().tolist() == [[2583], [2820]]


def test_a_bad_catalogue_ends_in_one_line_with_nothing_written(tmp_path):
    (tmp_path / "own.csv").write_text("objID,ra,dec\n1.23765E+18,1,1\n")
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.catalog", "--galaxies", tmp_path / "own.csv",
         "--output", out / "c.parquet", "--funnel", out / "c.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and not out.exists()
    assert done.stderr.count("\n") == 1 and "row 1: objID 1.23765E+18" in done.stderr
