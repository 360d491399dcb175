"""Tables of galaxies: reading the usual formats, and bringing them to the house's columns."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from decimal import Decimal
from itertools import islice
from pathlib import Path
from xml.parsers.expat import ExpatError

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Column, Table
from yaml import YAMLError

from pipeline.run import UserError, whole_file
from pipeline.survey.hashing import mix64
from pipeline.survey.names import BANDS, RERUN

PER_BAND = (
    "rowc", "colc", "petroMag", "modelMag", "extinction", "psfWidth", "gain", "darkVariance",
)  # fmt: skip
INTEGERS = ("run", "rerun", "camcol", "field")
OF_BANDS = tuple(f"{name}_{band}" for name in PER_BAND for band in BANDS)
REALS = (
    "b",
    "mode",
    "sciencePrimary",
    "dered_petro_r",
    "z",
    "zErr",
    "photoz",
    "photozErr",
    *OF_BANDS,
)
REDSHIFT_NAMES = {
    "z": ("z", "specz", "spec_z", "zspec", "z_spec", "redshift", "specz_redshift"),
    "zErr": (
        "zErr", "z_err", "specz_err", "spec_z_err", "zspec_err", "z_spec_err",
        "redshift_err", "specz_redshift_err",
    ),
}  # fmt: skip
"""Names under which a table may give a spectroscopic redshift and its error."""
FIELD_LIMITS = {"run": (1, 65535), "camcol": (1, 6), "field": (0, 4095)}
MISSING = -9999
"""CAS writes this for a value that could not be measured."""
KINDS = ".csv, .ecsv, .fits, .parquet or .vot"
UNREADABLE = (
    ValueError, OSError, EOFError, TypeError, IndexError, pa.ArrowException, csv.Error, YAMLError,
    ExpatError,
)  # fmt: skip
"""What the libraries raise for a file that is not what its suffix says."""


def read_table(path: str | Path) -> pd.DataFrame:
    """A table by its suffix: .csv, .ecsv, .fits, .fit, .parquet, .pq, .vot, .xml (VOTable).

    All but Parquet also with .gz. Columns keep their names; a column of five values a row becomes
    five, `_u` to `_z`. Ids (columns whose names end in objID or fieldID) of a CSV file are kept as
    text, since a number of 19 digits does not survive any detour; integers never become floats on
    the way. What is masked, or equals a FITS integer column's TNULL, is missing. Raises UserError
    for a file that is missing or unreadable, for a name that two columns have and for a row of a
    CSV file that is longer than its header.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the name")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    readers = {
        "csv": _read_csv, "fits": _read_fits, "fit": _read_fits,
        "parquet": _read_parquet, "pq": _read_parquet,
        "ecsv": _read_ecsv, "vot": _read_votable, "xml": _read_votable,
    }  # fmt: skip
    if kind not in readers:
        raise UserError(f"{path}: unknown kind of table; give {KINDS}")
    try:
        return readers[kind](path)
    except UserError:
        raise
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as {kind}: {reason}") from None


def _read_csv(path: Path) -> pd.DataFrame:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as handle:
        skip = 1 if handle.readline().startswith("#Table") else 0  # SkyServer's first line
        handle.seek(0)
        rows = filter(None, csv.reader(islice(handle, skip, None)))
        names = next(rows, [])
        _refuse_repeats(names, path)
        _refuse_long(islice(rows, 1), names, path)  # pandas lets the first row be longer
        ids = {name: "string" for name in names if _key(name).endswith(("objid", "fieldid"))}
        try:
            return pd.read_csv(path, skiprows=skip, dtype=ids, index_col=False, low_memory=False)
        except pd.errors.ParserError:
            handle.seek(0)
            rows = filter(None, csv.reader(islice(handle, skip, None)))
            _refuse_long(islice(rows, 1, None), names, path)
            raise


def _refuse_repeats(names: list[str], path: Path) -> None:
    keys = [_key(name) for name in names]
    for k, key in enumerate(keys):
        if key and key in keys[:k]:
            both = f"{names[keys.index(key)]} and {names[k]}"
            raise UserError(f"{path}: columns {both} are one name; rename one")


def _refuse_long(rows: Iterable[list[str]], names: list[str], path: Path) -> None:
    for row, cells in enumerate(rows, 1):
        if len(cells) > len(names):
            raise UserError(
                f"{path}: row {row} has {len(cells)} cells, but the header names {len(names)}: "
                f"{listed(names)}; give each row as many, with no comma at its end"
            )


def listed(names: Iterable) -> str:
    """The first eight names, quoted so that a tab or another separator shows, for a message."""
    names = [repr(str(name)) for name in names]
    return ", ".join(names[:8])[:200] + (", ..." if len(names) > 8 else "")


def _key(name: object) -> str:
    return str(name).strip().lower()


def _read_parquet(path: Path) -> pd.DataFrame:
    """Column by column, so that no more than one is in memory twice."""
    columns = {}
    with pq.ParquetFile(path) as file:
        _refuse_repeats(file.schema_arrow.names, path)
        for name in file.schema_arrow.names:
            columns[name] = _from_arrow(file.read([name]).column(name))
        return pd.DataFrame(columns, index=range(file.metadata.num_rows), copy=False)


def _from_arrow(column: pa.ChunkedArray) -> pd.Series:
    if column.null_count and pa.types.is_integer(column.type):
        return column.cast(pa.int64()).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return column.to_pandas()


def _read_fits(path: Path) -> pd.DataFrame:
    with fits.open(path, memmap=False) as hdus:
        tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
        if not tables:
            raise UserError(f"{path}: has no table; give a FITS file with a binary table")
        columns = {}
        _refuse_repeats(tables[0].columns.names, path)
        for column in tables[0].columns:
            values = np.asarray(tables[0].data[column.name])
            values = values.astype(values.dtype.newbyteorder("="))
            columns |= _flat(column.name, np.ma.array(values, mask=_is_null(values, column)))
        frame = pd.DataFrame(columns)
        frame.attrs["header"] = {
            key: hdus[0].header[key] for key in ("NODE", "INCL") if key in hdus[0].header
        }
    return frame


def _is_null(values: np.ndarray, column: fits.Column) -> np.ndarray | bool:
    """Where an integer column holds its TNULL, which is a value before scale and zero."""
    if not isinstance(column.null, int) or values.dtype.kind not in "iuf":
        return False
    return values == column.null * (column.bscale or 1) + int(column.bzero or 0)


def _read_ecsv(path: Path) -> pd.DataFrame:
    return _from_astropy(Table.read(path, format="ascii.ecsv"), path)


def _read_votable(path: Path) -> pd.DataFrame:
    return _from_astropy(Table.read(path, format="votable", use_names_over_ids=True), path)


def _from_astropy(table: Table, path: Path) -> pd.DataFrame:
    _refuse_repeats(table.colnames, path)
    columns = {}
    for name in table.colnames:
        if isinstance(table[name], Column):  # others, such as coordinates, are no numbers
            columns |= _flat(name, np.ma.asarray(table[name]))
    return pd.DataFrame(columns, index=range(len(table)))


def _flat(name: str, values: np.ma.MaskedArray) -> dict:
    if values.ndim == 1:
        return {name: _with_missing(values)}
    if values.shape[1:] == (len(BANDS),):
        return {f"{name}_{band}": _with_missing(values[:, k]) for k, band in enumerate(BANDS)}
    return {}


def _with_missing(values: np.ma.MaskedArray):
    """A column with what is masked missing: integers stay integers."""
    missing = np.ma.getmaskarray(values)
    if not missing.any():
        return values.data
    whole = values.dtype.kind in "iu"
    return pd.Series(pd.array(values.data) if whole else values.data).mask(missing)


def write_table(table: pa.Table, path: str | Path, groups: list[int] | None = None) -> None:
    """Write Parquet, whole, with the same bytes for the same rows.

    `groups`: the number of rows of each row group; without it, groups of about a million.
    """
    with (
        whole_file(path) as part,
        pq.ParquetWriter(part, table.schema, compression="zstd", store_schema=False) as writer,
    ):
        if groups is None:
            writer.write_table(table)
            return
        start = 0
        for rows in groups:
            writer.write_table(table.slice(start, rows), row_group_size=max(rows, 1))
            start += rows


def galaxies(frame: pd.DataFrame, where: str, repeats: bool = False) -> pd.DataFrame:
    """The columns of the house that `frame` holds, named and typed as the catalogue has them.

    Names match whatever their case; other columns are left out. `ra` and `dec` [deg] are needed
    and all else is optional; without objID each galaxy gets an id made of its position
    (`made_ids`). Where a table has u, g, r and i, its `z` is a magnitude and no redshift.
    `repeats` allows an objID on several rows (repeat spectra). `where` names the table in
    messages. What goes by band stays float32 where `frame` has it so, and all reals may share
    memory with `frame`. Raises UserError for no rows, missing columns, positions, ids and integers
    that cannot be right: with the first row that is wrong, counted from 1.
    """
    found = _match(frame, where)
    for name in ("ra", "dec"):
        if name not in found:
            raise UserError(
                f"{where}: has no column {name}; ra and dec [deg] are needed, and it has "
                f"{listed(frame.columns)}"
            )
    if frame.empty:
        raise UserError(f"{where}: has no rows; give at least one galaxy")
    ra, dec = (_reals(frame[found[name]], name, where) for name in ("ra", "dec"))
    check_positions(ra, dec, where)
    table = {"objID": _object_ids(frame, found, ra, dec, where, repeats)}
    if "specObjID" in found:
        ids = exact_ids(frame[found["specObjID"]], "specObjID", where)
        table["specObjID"] = ids.where(ids != 0)  # CAS's 0: no spectrum
    table |= {"ra": ra, "dec": dec} | _integers(frame, found, where)
    for name in REALS:
        if name in found:
            values = _reals(frame[found[name]], name, where, narrow=name in OF_BANDS)
            table[name] = without_missing(values)
    return pd.DataFrame(table, copy=False)


def _match(frame: pd.DataFrame, where: str) -> dict[str, str]:
    """The house's name -> the table's own name, for the columns that are there."""
    present: dict[str, str] = {}
    for name in frame.columns:
        key = _key(name)
        if key in present:
            raise UserError(f"{where}: columns {present[key]} and {name} are one name; rename one")
        present[key] = name
    found = {}
    magnitudes = {"u", "g", "r", "i", "z"} <= present.keys()
    for name in ("objID", "specObjID", "ra", "dec", *INTEGERS, *REALS):
        for candidate in REDSHIFT_NAMES.get(name, (name,)):
            if candidate.lower() in present and not (candidate == "z" and magnitudes):
                found[name] = present[candidate.lower()]
                break
    return found


def _object_ids(frame, found, ra, dec, where: str, repeats: bool) -> np.ndarray:
    if "objID" not in found:
        return made_ids(ra, dec)
    ids = exact_ids(frame[found["objID"]], "objID", where)
    if ids.isna().any():
        raise UserError(f"{where}: row {_first(ids.isna())}: objID is empty; fill it in")
    ids = ids.to_numpy(np.int64)
    again = pd.Series(ids).duplicated()
    if again.any() and not repeats:
        row = _first(again)
        one = 1 + int(np.flatnonzero(ids == ids[row - 1])[0])
        raise UserError(
            f"{where}: row {row}: objID {ids[row - 1]} is also on row {one}; leave one of the two"
        )
    return ids


def exact_ids(values: pd.Series, name: str, where: str) -> pd.Series:
    """`values` (integers, text or decimals) as nullable Int64, exactly.

    Raises UserError, naming the first row, for an id that went through a floating-point number:
    1.23765E+18 has lost the digits that tell galaxies apart.
    """
    if pd.api.types.is_integer_dtype(values):
        if not pd.api.types.is_signed_integer_dtype(values):
            _refuse_ids(values > np.iinfo(np.int64).max, values, name, where)
        return values.astype("Int64").reset_index(drop=True)
    if pd.api.types.is_float_dtype(values):
        number = values.astype("float64").to_numpy(na_value=np.nan)
        known = ~np.isnan(number)
        _refuse_ids(known & ((np.abs(number) >= 2**53) | (number % 1 != 0)), values, name, where)
        return pd.Series(pd.array(number, dtype="Int64"))
    text = values.map(_digits, na_action="ignore").astype("string").str.strip()
    text = text.where(text != "").reset_index(drop=True)
    whole = text.str.fullmatch(r"[+-]?\d{1,19}").fillna(True)
    _refuse_ids(~whole, text, name, where)
    number = text.map(int, na_action="ignore")
    _refuse_ids(number.map(lambda n: abs(n) >= 2**63, na_action="ignore"), text, name, where)
    return pd.Series(pd.array(number.to_list(), dtype="Int64"))


def _digits(value: object) -> str:
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return str(int(value))
    return value.decode() if isinstance(value, bytes) else str(value)


def _refuse_ids(bad, values: pd.Series, name: str, where: str) -> None:
    bad = pd.Series(bad).fillna(False).to_numpy(bool)
    if bad.any():
        row = _first(bad)
        raise UserError(
            f"{where}: row {row}: {name} {values.iloc[row - 1]} is no exact 64-bit integer (spoilt "
            f"by a float or a spreadsheet?); export it again as text or leave the column out"
        )


def made_ids(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Ids (int64) for galaxies that have none: negative, a hash of the position.

    The same position gets the same id in every table; equal positions are told apart by their
    order. SDSS's own ids are positive (bit 63 is not used), so the sign tells the two apart and
    `names.unpack_objid` has nothing to say of a made one.
    """
    position = mix64(np.float64(dec).view(np.int64)) ^ np.float64(ra).view(np.uint64)
    turn = pd.Series(position).groupby(position).cumcount().to_numpy()
    ids = _negative(mix64(position) + turn.astype(np.uint64))
    if len(np.unique(ids)) < len(ids):
        raise UserError("two positions have one made id; give the table a column objID")
    return ids


def _negative(values: np.ndarray) -> np.ndarray:
    return (values | np.uint64(1 << 63)).view(np.int64)


def check_positions(ra: np.ndarray, dec: np.ndarray, where: str) -> None:
    """UserError at the first row whose position is not a place: 0 <= ra < 360, |dec| <= 90."""
    bad = ~((ra >= 0) & (ra < 360) & (np.abs(dec) <= 90))
    if bad.any():
        row = _first(bad)
        raise UserError(
            f"{where}: row {row}: ra, dec = {ra[row - 1]}, {dec[row - 1]} is no position; "
            f"give degrees, 0 <= ra < 360 and -90 <= dec <= 90"
        )


def _integers(frame, found, where: str) -> dict[str, np.ndarray]:
    given = [name for name in FIELD_LIMITS if name in found]
    lacking = [name for name in FIELD_LIMITS if name not in found]
    if given and lacking:
        raise UserError(
            f"{where}: has {', '.join(given)} but not {', '.join(lacking)}; give all or none"
        )
    table = {}
    for name in INTEGERS:
        if name not in found:
            continue
        values = _reals(frame[found[name]], name, where)
        low, high = FIELD_LIMITS.get(name, (-(2**31), 2**31 - 1))
        bad = ~((values >= low) & (values <= high) & (values % 1 == 0))
        if bad.any():
            row = _first(bad)
            raise UserError(
                f"{where}: row {row}: {name} is {values[row - 1]:g}; give an integer "
                f"from {low} to {high}"
            )
        table[name] = values.astype(np.int32)
    if given and "rerun" not in table:
        table["rerun"] = np.full(len(frame), RERUN, np.int32)
    return table


def _reals(values: pd.Series, name: str, where: str, narrow: bool = False) -> np.ndarray:
    """`values` as float64, or as float32 where they are that and `narrow`; nan is missing."""
    if values.dtype == np.float64 or (narrow and values.dtype == np.float32):
        return values.to_numpy()
    if pd.api.types.is_float_dtype(values) or pd.api.types.is_integer_dtype(values):
        return values.to_numpy(np.float64, na_value=np.nan)
    number = pd.to_numeric(values, errors="coerce")
    bad = (number.isna() & values.notna()).to_numpy(bool)
    if bad.any():
        row = _first(bad)
        raise UserError(
            f"{where}: row {row}: {name} is {values.iloc[row - 1]!r}; give a number, or nothing"
        )
    return number.to_numpy(np.float64, na_value=np.nan)


def without_missing(values: np.ndarray) -> np.ndarray:
    """Reals with nan where they are `MISSING`; the same array where none is."""
    missing = values == MISSING
    return np.where(missing, np.nan, values) if missing.any() else values


def _first(bad) -> int:
    """Number of the first row that is bad, counted from 1."""
    return int(np.flatnonzero(np.asarray(bad, dtype=bool))[0]) + 1
