"""From a position to the field it lies on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run import UserError
from pipeline.survey import fields
from pipeline.survey.names import BANDS, FIELD_STEP

SCALE = 0.396 / 3600


def strip(node, incl, mu, nu=0.0, number=3, run=94, camcol=1, **columns) -> pd.DataFrame:
    """Neighbouring fields of one run and camcol, the first one's corner at `mu`, `nu`."""
    start = mu + np.arange(number) * FIELD_STEP * SCALE
    table = pd.DataFrame({"run": run, "camcol": camcol, "field": np.arange(11, 11 + number)})
    terms = {}
    for k, band in enumerate(BANDS):  # bands are shifted by a few rows
        terms |= {f"a_{band}": start % 360 - 2 * k * SCALE, f"b_{band}": SCALE, f"c_{band}": 0.0}
        terms |= {f"d_{band}": nu, f"e_{band}": 0.0, f"f_{band}": SCALE}
    return table.assign(rerun=301, node=node, incl=incl, **terms, **columns)


def place(table, row, rowc, colc):
    """ra, dec of a pixel of a field's r band."""
    field = table.iloc[row]
    return fields.equatorial(
        field.a_r + SCALE * rowc, field.d_r + SCALE * colc, field.node, field.incl
    )


@given(
    st.floats(0, 359.99), st.floats(-89.9, 89.9), st.sampled_from([0.0, 95.0, 275.0]),
    st.floats(-80, 85),
)  # fmt: skip
def test_great_circle_and_equatorial_are_inverse(ra, dec, node, incl):
    back = fields.equatorial(*fields.great_circle(ra, dec, node, incl), node, incl)
    assert abs((back[0] - ra + 180) % 360 - 180) * np.cos(np.radians(dec)) < 1e-9
    assert abs(back[1] - dec) < 1e-9


SCANS = {
    "equator, RA 0": (95.0, 0.0, 359.9, 0.3), "declination 85": (95.0, 85.0, 184.9, 0.0),
    "tilted": (95.0, 32.5, 200.0, -1.0),
}  # fmt: skip


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS.keys())
def test_pixels_are_found_again(scan):
    table = strip(*scan)
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 3, 200)
    rowc, colc = rng.uniform(64, 1425, 200), rng.uniform(64, 1984, 200)
    places = [place(table, *each) for each in zip(rows, rowc, colc, strict=True)]
    ra, dec = np.array(places).T
    assert (fields.locate(ra, dec, table) == rows).all()
    pixels = fields.pixels_of_bands(table, rows, ra, dec)
    assert np.allclose(pixels["rowc_u"], rowc - 4, atol=1e-6)
    assert np.allclose(pixels["colc_z"], colc, atol=1e-6)
    assert np.allclose(pixels["rowc_z"], rowc + 4, atol=1e-6)


def test_the_scans_lie_where_their_names_say():
    ra, _ = fields.centres(strip(*SCANS["equator, RA 0"]))
    assert ra.max() > 359 and ra.min() < 1
    assert abs(fields.centres(strip(*SCANS["declination 85"]))[1] - 85).max() < 0.2


def test_a_box_in_ra_and_dec_is_not_enough():
    """On a tilted scan a corner of the field's box in ra and dec is off the field."""
    table = strip(95.0, 45.0, 120.0, number=1)
    corners = np.array([place(table, 0, y, x) for y in (0, 1489) for x in (0, 2048)])
    ra = np.array([corners[:, 0].min(), corners[:, 0].min()]) + 1e-4
    dec = np.array([corners[:, 1].min(), corners[:, 1].max()])
    assert (fields.locate(ra, dec, table) == -1).all()


def test_nowhere_is_minus_one():
    table = strip(95.0, 0.0, 100.0)
    ra, dec = place(table, [0, 2, 0, 0], np.array([-1.0, 1490, 9, 9]), np.array([9, 9, -1.0, 2049]))
    assert (fields.locate(ra, dec, table) == -1).all()
    assert fields.locate([], [], table).shape == (0,)


def choice(table, rowc=700.0, colc=1000.0):
    return int(fields.locate(*place(table, [0], rowc, np.array([colc])), table)[0])


def test_primary_comes_before_margin_score_and_centre():
    one = strip(95.0, 0.0, 100.0, number=1, primaryArea=0.0, score=0.9)
    two = strip(95.0, 0.0, 100.0, number=1, run=95, primaryArea=0.02, score=0.1)
    assert choice(pd.concat([one, two], ignore_index=True)) == 1
    status = [one.drop(columns="primaryArea").assign(resolveStatus=0x200),
              two.drop(columns="primaryArea").assign(resolveStatus=0x101)]  # fmt: skip
    assert choice(pd.concat(status, ignore_index=True)) == 1
    best = pd.concat([one.assign(primaryArea=0.02), two], ignore_index=True)
    assert choice(best) == 0
    equal = pd.concat([one, one.assign(run=93, a_r=one.a_r + 50 * SCALE)], ignore_index=True)
    assert choice(equal, 700) == 0 and choice(equal, 900) == 1  # the nearer centre
    same = pd.concat([one, one.assign(run=93)], ignore_index=True)
    assert choice(same) == 0 and choice(same.iloc[::-1].reset_index(drop=True)) == 0


def test_the_overlap_goes_to_the_field_that_has_the_position_inside_its_margin():
    table = strip(95.0, 0.0, 100.0, score=[0.9, 0.1, 0.9])
    assert choice(table, 1424.0) == 0
    assert choice(table, 1426.0) == 1  # of the lower score, but inside


def test_windows_alone_place_positions_too():
    """window_flist and its like: no a to f, the trimmed field's mu and nu."""
    full = strip(95.0, 32.5, 200.0)
    first = full["a_r"] + 64 * SCALE
    table = full[["run", "camcol", "field", "rerun", "node", "incl"]].assign(
        muStart=first, muEnd=first + FIELD_STEP * SCALE,
        nuStart=64 * SCALE, nuEnd=(2048 - 64) * SCALE,
    )  # fmt: skip
    ra, dec = place(full, [0, 1, 2], np.array([100.0, 700, 1400]), np.array([100, 1000, 1900]))
    assert fields.locate(ra, dec, table).tolist() == [0, 1, 2]
    assert fields.pixels_of_bands(table, np.arange(3), ra, dec) == {}


def test_real_photofield(real_data):
    path = next(real_data.glob("sas/dr9/boss/photoObj/301/2583/photoField-*.fits"))
    table = fields.read_fields(path)
    assert len(table) == 227 and table["node"][0] == pytest.approx(48.377485)
    assert table.loc[table.field == 136, "gain_u"].item() == pytest.approx(1.825)
    own = pd.read_csv(real_data / "galaxies.csv")
    found = fields.locate(own["ra"], own["dec"], table)
    assert (found[own.run == 2820] == -1).all()
    assert set(table["field"].to_numpy()[found[own.run == 2583]]) <= {135, 136, 137}
    inside = own[(own.run == 2583) & own.rowc.between(128, 1361)]
    rows = np.full(len(inside), table.index[table.field == 136][0])
    rowc, colc = fields.pixel(table, rows, inside["ra"].to_numpy(), inside["dec"].to_numpy(), "r")
    assert abs(rowc - inside["rowc"] - 0.5).max() < 0.05  # the table counts from pixel centres
    assert abs(colc - inside["colc"] - 0.5).max() < 0.05
    derived = fields.with_circles(table.drop(columns=["node", "incl"]))
    other = fields.pixel(derived, rows, inside["ra"].to_numpy(), inside["dec"].to_numpy(), "r")
    assert np.hypot(other[0] - rowc, other[1] - colc).max() < 1.5
    window = table.drop(columns=[name for name in table if name[:2] in {"a_", "b_"}])
    again = fields.locate(own["ra"], own["dec"], window)
    assert (again >= 0).sum() >= 22 and abs(again - found)[(again >= 0)].max() <= 1


def write(tmp_path, table):
    table.to_csv(tmp_path / "fields.csv", index=False)
    return tmp_path / "fields.csv"


@pytest.mark.parametrize("scan", [*SCANS.values(), (95.0, -25.0, 95.02, 0.8), (95.0, 0.0, 95.0)])
@pytest.mark.parametrize("number", [1, 40])
def test_the_great_circle_follows_from_the_fields_centres(scan, number):
    """With terms of float32, as Field has them, and centres that are a pixel off."""
    table = strip(*scan, number=number)
    terms = [f"{term}_{band}" for term in fields.TERMS for band in BANDS]
    rough = table.astype(dict.fromkeys(terms, np.float32)).astype(dict.fromkeys(terms, np.float64))
    ra, dec = fields.centres(table.assign(a_r=table.a_r + SCALE))
    rough = rough.drop(columns=["node", "incl"]).assign(ra=ra, dec=dec)
    found = fields.with_circles(rough)
    rows = np.arange(number)
    rowc, colc = np.resize([10.0, 1480.0], number), np.resize([2040.0, 10.0], number)
    place_ = fields.equatorial(
        table.a_r + SCALE * rowc, table.d_r + SCALE * colc, table.node, table.incl
    )
    again = fields.pixel(found, rows, *(value.to_numpy() for value in place_), "r")
    assert abs(again[0] - rowc).max() < 3 and abs(again[1] - colc).max() < 3  # the pixel, and 2


def test_read_fields_names_and_reruns(tmp_path):
    table = strip(95.0, 0.0, 100.0).assign(CZ=0.5, PSF_WIDTH_r=[1.3, -9999, 1.2])
    table = pd.concat([table, table.assign(rerun=157, run=93)])
    read = fields.read_fields(write(tmp_path, table.rename(columns=str.upper)))
    assert len(read) == 3 and read["c_z"].eq(0).all()  # not the unit vector's cz
    assert read["psfWidth_r"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="camcol"), "no column camcol; .*this has 'run', 'field', "),
        (lambda t: t.assign(rerun=157), "no field of rerun 301"),
        (lambda t: t.assign(run=[94, None, 94]), "run, camcol or field is empty"),
        (lambda t: t.assign(field=11), "run 94 camcol 1 field 11 is there twice"),
    ],
)
def test_bad_field_tables_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        fields.read_fields(write(tmp_path, change(strip(95.0, 0.0, 100.0))))


def test_fields_without_geometry_place_nothing():
    with pytest.raises(UserError, match="it needs a_r to f_r"):
        fields.locate([100.0], [0.0], strip(95.0, 0.0, 100.0).drop(columns="incl"))


def test_fields_are_found_by_run_camcol_and_field():
    table = strip(95.0, 0.0, 100.0)
    places = pd.DataFrame({"run": [94, 94, 99], "camcol": 1, "field": [13, 11, 11]})
    assert fields.rows_of(table, places).tolist() == [2, 0, -1]


def test_without_geometry_widths_and_gains_are_left_in_their_own_type(tmp_path):
    width = np.array([1.0, -9999, 1.2], np.float32)
    table = strip(95.0, 0.0, 100.0, psfWidth_r=width, gain_u=1.6, score=0.7)
    table.to_parquet(tmp_path / "fields.parquet")
    found = fields.read_fields(tmp_path / "fields.parquet", geometry=False)
    assert set(found) == {"run", "rerun", "camcol", "field", "psfWidth_r", "gain_u"}
    assert (found["psfWidth_r"].dtype, found["gain_u"].dtype) == (np.float32, np.float64)
    assert np.array_equal(found["psfWidth_r"], np.float32([1.0, np.nan, 1.2]), equal_nan=True)
    whole = fields.read_fields(tmp_path / "fields.parquet")
    assert fields.has_geometry(whole) and not fields.has_geometry(found)
    assert whole[list(found)].equals(found)


def test_photofield_like_fits_has_its_circle_in_the_header(tmp_path):
    five = np.tile(np.arange(5.0), (2, 1))
    columns = [fits.Column(n, "J", array=[1, 2]) for n in ("RUN", "CAMCOL", "FIELD")]
    columns += [fits.Column(n, "5E", array=five) for n in ("A", "B", "C", "D", "E", "FF", "GAIN")]
    columns.append(fits.Column("RERUN", "3A", array=["301", "301"]))
    primary = fits.PrimaryHDU()
    primary.header["NODE"], primary.header["INCL"] = 95.0, 10.0
    path = tmp_path / "photoField-000001-1.fits"
    fits.HDUList([primary, fits.BinTableHDU.from_columns(columns)]).writeto(path)
    table = fields.read_fields(path)
    assert fields.has_geometry(table) and table["f_z"].tolist() == [4.0, 4.0]
    assert table["incl"].tolist() == [10.0, 10.0] and table["gain_g"].tolist() == [1.0, 1.0]
