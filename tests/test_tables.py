"""Tables of users: what is read, what is refused, and ids to the last digit."""

from __future__ import annotations

import gzip
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run import UserError
from pipeline.survey import tables
from pipeline.survey.names import unpack_objid

KNOWN = 1237653651835781245


def csv(tmp_path, text: str, name: str = "own.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def read(path) -> pd.DataFrame:
    return tables.galaxies(tables.read_table(path), path.name)


def refused(path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_ra_and_dec_alone_are_enough(tmp_path):
    rows = read(csv(tmp_path, "RA, note,Dec\n10.5,x,-3\n359.9999,y,85\n".replace(" ", "")))
    assert list(rows) == ["objID", "ra", "dec"]
    assert rows["objID"].dtype == np.int64 and rows["objID"].is_unique
    assert rows["dec"].tolist() == [-3.0, 85.0]


@pytest.mark.parametrize("form", ["csv", "csv.gz", "fits", "fits.gz", "parquet"])
def test_an_id_survives_every_format(tmp_path, form):
    path = tmp_path / f"own.{form}"
    frame = pd.DataFrame({"objid": [KNOWN, KNOWN + 1], "ra": [1.0, 2.0], "DEC": [0.1, 0.2]})
    if form == "csv":
        frame.to_csv(path, index=False)
    elif form == "csv.gz":
        path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    elif form == "parquet":
        frame.to_parquet(path)
    else:
        columns = [
            fits.Column(name, "K" if name == "objid" else "D", array=frame[name]) for name in frame
        ]
        fits.BinTableHDU.from_columns(columns).writeto(path)
    rows = read(path)
    assert rows["objID"].tolist() == [KNOWN, KNOWN + 1]
    assert rows["ra"].tolist() == [1.0, 2.0]


def test_nulls_beside_ids_do_not_make_floats_of_them(tmp_path):
    path = tmp_path / "own.parquet"
    ids = pa.array([KNOWN, None], pa.int64())
    pq.write_table(pa.table({"ra": [1.0, 2.0], "dec": [0.0, 0.0], "specObjID": ids}), path)
    assert read(path)["specObjID"].tolist() == [KNOWN, pd.NA]
    text = read(csv(tmp_path, f"ra,dec,specobjid\n1,0,{KNOWN}\n2,0,\n3,0,0\n"))
    assert text["specObjID"].tolist() == [KNOWN, pd.NA, pd.NA]  # 0 is CAS's "no spectrum"


@given(st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=1, max_size=20))
def test_exact_ids_are_exact_from_text_integers_and_decimals(ids):
    for values in (
        pd.Series([str(n) for n in ids], dtype="string"), pd.Series(ids, dtype="int64"),
        pd.Series([Decimal(n) for n in ids], dtype=object),
    ):  # fmt: skip
        assert tables.exact_ids(values, "objID", "t").tolist() == ids


@pytest.mark.parametrize(
    "cell",
    ["1.23765E+18", "1237653651835781245.0", "12a", "9" * 20, "9223372036854775808"],
)
def test_spoilt_ids_are_refused_with_their_row(tmp_path, cell):
    path = csv(tmp_path, f"objID,ra,dec\n{KNOWN},1,1\n{cell},2,2\n")
    refused(path, rf"row 2: objID {cell.replace('+', '[+]')} is no exact 64-bit integer")


def test_float_ids_are_refused_only_where_digits_are_lost():
    small = tables.exact_ids(pd.Series([1.0, 5.0, np.nan]), "objID", "t")
    assert small.tolist() == [1, 5, pd.NA]
    with pytest.raises(UserError, match="row 2: objID"):
        tables.exact_ids(pd.Series([1.0, 1.23765e18]), "objID", "t")
    with pytest.raises(UserError, match="row 1: objID"):
        tables.exact_ids(pd.Series([1.5]), "objID", "t")
    with pytest.raises(UserError, match="row 2: specObjID 14126940609093851136"):
        tables.exact_ids(pd.Series([1, 14126940609093851136], dtype="uint64"), "specObjID", "t")


def test_made_ids_are_negative_stable_and_unique():
    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, 5000), rng.uniform(-90, 90, 5000)
    ids = tables.made_ids(ra, dec)
    assert (ids < 0).all() and len(np.unique(ids)) == 5000  # SDSS's own ids are positive
    order = rng.permutation(5000)
    assert (tables.made_ids(ra[order], dec[order]) == ids[order]).all()
    twice = tables.made_ids(np.array([1.0, 2.0, 1.0]), np.array([3.0, 3.0, 3.0]))
    assert len(set(twice.tolist())) == 3
    assert twice[0] == tables.made_ids(np.array([1.0]), np.array([3.0]))[0]
    assert twice[0] != tables.made_ids(np.array([3.0]), np.array([1.0]))[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ra,b\n1,2\n", "no column dec"),
        ("ra,dec\n", "has no rows"),
        ("", "cannot be read as csv"),
        ("ra,dec\n1,2\n3,\n", "row 2: ra, dec = 3.0, nan is no position"),
        ("ra,dec\n360,2\n", "row 1: ra, dec = 360.0, 2.0"),
        ("ra,dec\n-0.1,2\n", "row 1: ra, dec = -0.1, 2.0"),
        ("ra,dec\n1,2\n1,90.5\n", "row 2: ra, dec = 1.0, 90.5"),
        ("ra,dec\n1,2\n12h30m,2\n", "row 2: ra is '12h30m'"),
        ("ra,dec,objID\n1,2,5\n2,2,6\n3,2,5\n", "row 3: objID 5 is also on row 1"),
        ("ra,dec,objID\n1,2,5\n2,2,\n", "row 2: objID is empty"),
        ("ra,dec,run\n1,2,5\n", "has run but not camcol, field"),
        ("ra,dec,run,camcol,field\n1,2,94,7,11\n", "row 1: camcol is 7; give an integer from 1 to"),
        ("ra,dec,run,camcol,field\n1,2,94,1,\n", "row 1: field is nan"),
        ("ra,dec,RA\n1,2,5\n", "columns ra and RA are one name"),
        ("ra,dec,ra\n1,2,5\n", "columns ra and ra are one name"),
        ("ra,dec\n1,2,3\n1,2,3,4,5\n", "row 1 has 3 cells, but the header names 2: 'ra', 'dec'"),
        ("ra,dec,z\n10,20,0.1,\n", "row 1 has 4 cells, but the header names 3"),
        ("ra,dec,z\n10,20,0.1\n\n10,21,0.1,\n", "row 2 has 4 cells, but the header names 3"),
        ("#Table1\nra,dec\n1,2\n1,3\n1,2,3\n", "row 3 has 3 cells, but the header names 2"),
        ("# mine\nra,dec\n1,2\n", "row 1 has 2 cells, but the header names 1: '# mine'"),
        ("ra\tdec\n1\t2\n", r"no column ra; .*it has 'ra\\tdec'$"),
        ("ra;dec\n1;2\n", "no column ra; .*it has 'ra;dec'$"),
        ("RAJ2000,DEJ2000,c,d,e,f,g,h,i\n1,2,3,4,5,6,7,8,9\n", "'RAJ2000', .*'h', [.]{3}$"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, text, message):
    refused(csv(tmp_path, text), message)


def test_a_short_row_and_a_comma_in_quotes_are_read(tmp_path):
    rows = read(csv(tmp_path, 'ra,dec,z,note\n10,20,0.1,"a, b"\n11,21,0.2\n'))
    assert rows["ra"].tolist() == [10, 11] and rows["z"].tolist() == [0.1, 0.2]


def with_null(path, objid) -> None:
    columns = [
        fits.Column("objID", "K", array=objid, null=999999),
        fits.Column("specObjID", "K", array=[999999, KNOWN + 1], null=999999),
        fits.Column("photoz", "I", array=[5, -1], null=-1),
        fits.Column("ra", "D", array=[1.0, 2.0]), fits.Column("dec", "D", array=[3.0, 4.0]),
        fits.Column("petroMag", "5J", array=[[7, 1, 1, 1, 1], [8, 8, 8, 8, 7]], null=7),
    ]  # fmt: skip
    fits.BinTableHDU.from_columns(columns).writeto(path)


def test_tnull_of_fits_is_missing(tmp_path):
    with_null(tmp_path / "own.fits", [KNOWN, KNOWN + 1])
    rows = read(tmp_path / "own.fits")
    assert rows["objID"].tolist() == [KNOWN, KNOWN + 1]
    assert rows["specObjID"].tolist() == [pd.NA, KNOWN + 1]
    assert rows["photoz"].isna().tolist() == rows["petroMag_z"].isna().tolist() == [False, True]
    assert rows["petroMag_u"].isna().tolist() == [True, False]
    with_null(tmp_path / "empty.fits", [KNOWN, 999999])
    refused(tmp_path / "empty.fits", "row 2: objID is empty")


def test_tnull_counts_before_the_zero_of_unsigned_integers(tmp_path):
    header = fits.Column("objID", "J", bzero=2**31, null=-(2**31) + 6, array=[KNOWN % 2**31, 6])
    table = fits.BinTableHDU.from_columns([header])
    table.writeto(tmp_path / "own.fits")
    ids = tables.read_table(tmp_path / "own.fits")["objID"]
    assert ids.tolist() == [KNOWN % 2**31, pd.NA]


@pytest.mark.parametrize("name", ["own.ecsv", "own.vot", "own.xml"])
def test_tables_of_astropy_keep_ids_and_what_is_masked(tmp_path, name):
    table = Table({"objID": np.array([KNOWN, KNOWN + 1]), "RA": [1.0, 2.0], "dec": [0.1, 0.2]})
    table["specObjID"] = MaskedColumn([1, KNOWN], mask=[True, False])
    table["z"] = MaskedColumn([0.1, 0.2], mask=[False, True])
    table["modelMag"] = np.arange(10.0).reshape(2, 5)
    form = "ascii.ecsv" if name.endswith("ecsv") else "votable"
    table.write(tmp_path / name, format=form)
    rows = read(tmp_path / name)
    assert rows["objID"].dtype == np.int64 and rows["objID"].tolist() == [KNOWN, KNOWN + 1]
    assert rows["specObjID"].tolist() == [pd.NA, KNOWN]
    assert rows["z"].isna().tolist() == [False, True] and rows["modelMag_z"].tolist() == [4, 9]
    table["objID"] = MaskedColumn([KNOWN, 7], mask=[False, True])
    table.write(tmp_path / name, format=form, overwrite=True)
    refused(tmp_path / name, "row 2: objID is empty")


def test_parquet_keeps_the_width_of_what_goes_by_band(tmp_path):
    values = np.array([17.3, -9999, np.nan], np.float32)
    columns = {"ra": [1.0, 2.0, 3.0], "dec": [1.0, 2.0, 3.0], "photoz": values}
    columns |= {"petroMag_r": values, "modelMag_r": values.astype(float), "z": values}
    pq.write_table(pa.table(columns), tmp_path / "own.parquet")
    rows = read(tmp_path / "own.parquet")
    assert (rows["petroMag_r"].dtype, rows["modelMag_r"].dtype) == (np.float32, np.float64)
    assert rows["photoz"].dtype == rows["z"].dtype == np.float64
    for name in ("petroMag_r", "modelMag_r", "photoz", "z"):
        assert rows[name].isna().tolist() == [False, True, True]
        assert rows[name][0] == np.float32(17.3)


def test_a_name_twice_is_refused_in_binary_tables_too(tmp_path):
    path = tmp_path / "own.parquet"
    pq.write_table(pa.table([[1.0], [2.0], [3.0]], names=["ra", "dec", "ra"]), path)
    refused(path, "columns ra and ra are one name")
    columns = [fits.Column(name, "D", array=[1.0]) for name in ("ra", "dec", "rb")]
    path = tmp_path / "own.fits"
    fits.BinTableHDU.from_columns(columns).writeto(path)
    path.write_bytes(path.read_bytes().replace(b"'rb ", b"'ra "))
    refused(path, "columns ra and ra are one name")


def test_unreadable_files_are_refused_in_one_line(tmp_path):
    refused(tmp_path / "absent.csv", "no such file")
    refused(csv(tmp_path, "x", "own.txt"), "unknown kind of table")
    for name in ("own.fits", "own.parquet", "own.csv.gz", "own.ecsv", "own.vot"):
        refused(csv(tmp_path, "not one of these", name), "cannot be read")
    fits.PrimaryHDU(np.zeros((2, 2))).writeto(tmp_path / "image.fits")
    refused(tmp_path / "image.fits", "has no table")


@pytest.mark.parametrize("name", tables.REDSHIFT_NAMES["z"])
def test_names_of_a_redshift(tmp_path, name):
    rows = read(csv(tmp_path, f"ra,dec,{name.upper()}\n1,2,0.1\n3,4,\n"))
    assert rows["z"].tolist()[0] == 0.1 and np.isnan(rows["z"][1])


def test_z_beside_ugri_is_a_magnitude(tmp_path):
    rows = read(csv(tmp_path, "ra,dec,u,g,r,i,z\n1,2,20,19,18,17,16\n"))
    assert "z" not in rows
    rows = read(csv(tmp_path, "ra,dec,u,g,r,i,z,redshift\n1,2,20,19,18,17,16,0.2\n"))
    assert rows["z"].tolist() == [0.2]


def test_sentinels_are_missing_values(tmp_path):
    rows = read(csv(tmp_path, "ra,dec,photoz,petroMag_u\n1,2,-9999,-9999\n3,4,0.1,18\n"))
    assert rows["photoz"].isna().tolist() == rows["petroMag_u"].isna().tolist() == [True, False]


def test_skyserver_marks_its_csv(tmp_path):
    rows = read(csv(tmp_path, f"#Table1\nobjID,ra,dec\n{KNOWN},1,2\n"))
    assert rows["objID"].tolist() == [KNOWN]


def test_the_real_lists(real_data):
    rows = read(real_data / "galaxies.csv")
    assert len(rows) == 44 and rows["z"].isna().all()
    assert "rowc" not in rows and "mag_r" not in rows
    parts = unpack_objid(rows["objID"])
    assert (parts["run"] == rows["run"]).all() and (parts["field"] == rows["field"]).all()
    spoilt = next((real_data / "tables/skyserver_dr14_10k").glob("*.csv"))
    refused(spoilt, "row 1: objID 1.23765E[+]18 is no exact")
    masked = read(real_data / "tables/redmapper_dr8/test_dr8_trainred_spec.fit")
    assert len(masked) == 2275 and masked["z"].between(0.1, 0.2).all()


def test_written_tables_have_one_group_a_shard_and_the_same_bytes(tmp_path):
    table = pa.table({"shard": pa.array([0, 0, 1, 2], pa.int32())})
    for name in ("a", "b"):
        tables.write_table(table, tmp_path / f"{name}.parquet", [2, 1, 1])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
