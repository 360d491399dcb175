"""A DuckDB database with DR12's tables, small enough to know by heart; for tests of queries."""

from __future__ import annotations

from pathlib import Path

import duckdb

from pipeline.survey.names import BANDS, pack_objid

KNOWN = 1237653651835781245
"""run 1904, camcol 3, field 163, object 125: no float64 holds it."""

_BAND_COLUMNS = ("rowc", "colc", "petroMag", "modelMag", "extinction")
_FIELD_COLUMNS = ("psfWidth", "sky", "gain", "darkVariance", "a", "b", "c", "d", "e", "f")


def objid(obj: int, field: int = 163) -> int:
    return int(pack_objid(1904, 3, field, obj))


def _bands(names, kind="REAL") -> str:
    return ", ".join(f"{name}_{band} {kind}" for name in names for band in BANDS)


def make(path: Path, spectra=(), photo=(), photoz=(), zoo=()) -> Path:
    """Write the tables; each row is a dict, its other columns are of a galaxy that passes all."""
    with duckdb.connect(str(path)) as db:
        db.execute(
            "CREATE TABLE PhotoObjAll (objID BIGINT, mode UTINYINT, type SMALLINT, clean INTEGER, "
            "insideMask UTINYINT, flags BIGINT, run SMALLINT, rerun SMALLINT, camcol UTINYINT, "
            f"field SMALLINT, ra DOUBLE, dec DOUBLE, b DOUBLE, {_bands(_BAND_COLUMNS)})"
        )
        db.execute(
            "CREATE TABLE SpecObjAll (specObjID BIGINT, bestObjID BIGINT, sciencePrimary SMALLINT, "
            "class VARCHAR, subClass VARCHAR, z REAL, zErr REAL, zWarning INTEGER, "
            "targetType VARCHAR, survey VARCHAR)"
        )
        db.execute("CREATE TABLE Photoz (objID BIGINT, z REAL, zErr REAL)")
        db.execute(
            "CREATE TABLE galSpecInfo (specObjID BIGINT, primtarget SMALLINT, sectarget SMALLINT, "
            "targettype VARCHAR, spectrotype VARCHAR, subclass VARCHAR, e_bv_sfd REAL)"
        )
        votes = ("p_el", "p_cw", "p_acw", "p_edge", "p_dk", "p_mg", "p_cs")
        votes += ("p_el_debiased", "p_cs_debiased")
        db.execute(
            "CREATE TABLE zooSpec (specobjid BIGINT, objid BIGINT, dr7objid BIGINT, nvote INTEGER, "
            + ", ".join(f"{name} DOUBLE" for name in votes)
            + ", spiral INTEGER, elliptical INTEGER, uncertain INTEGER)"
        )
        db.execute(
            "CREATE TABLE Field (fieldID BIGINT, run SMALLINT, rerun SMALLINT, camcol UTINYINT, "
            "field SMALLINT, ra DOUBLE, dec DOUBLE, raMin DOUBLE, raMax DOUBLE, decMin DOUBLE, "
            "decMax DOUBLE, muStart DOUBLE, muEnd DOUBLE, nuStart DOUBLE, nuEnd DOUBLE, "
            f"score REAL, quality INTEGER, primaryArea DOUBLE, {_bands(_FIELD_COLUMNS)})"
        )
        for row in photo:
            _insert(db, "PhotoObjAll", {**_photo(), **row})
        for row in spectra:
            spectrum, info = {**_spectrum(), **row}, dict(primtarget=64, targettype="GALAXY")
            info |= {key: spectrum.pop(key) for key in ("primtarget",) if key in spectrum}
            _insert(db, "SpecObjAll", spectrum)
            _insert(db, "galSpecInfo", {"specObjID": spectrum["specObjID"], **info})
        for row in photoz:
            _insert(db, "Photoz", row)
        for row in zoo:
            _insert(db, "zooSpec", row)
        _insert(db, "Field", dict(run=1904, rerun=301, camcol=3, field=163, score=0.9))
    return path


def _photo() -> dict:
    magnitudes = {f"petroMag_{band}": 17.0 for band in BANDS}
    place = dict(run=1904, rerun=301, camcol=3, field=163, ra=150.0, dec=2.0, b=42.0)
    good = dict(objID=KNOWN, mode=1, type=3, clean=1, insideMask=0, flags=0)
    return good | place | magnitudes | {f"extinction_{band}": 0.1 for band in BANDS}


def _spectrum() -> dict:
    good = {"class": "GALAXY", "survey": "sdss", "targetType": "SCIENCE", "zWarning": 0}
    return good | dict(bestObjID=KNOWN, specObjID=7, sciencePrimary=1, z=0.1, zErr=1e-5)


def _insert(db, table: str, row: dict) -> None:
    marks = ", ".join("?" * len(row))
    db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))
