"""The galaxies and frames that the benchmark of the cutouts runs on."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from pipeline import run, simulate
from pipeline.run import UserError
from pipeline.survey import frame
from pipeline.survey.names import BANDS, FRAME_SHAPE, Field, frame_path, pack_objid

EDGE = 100
"""Pixels from a frame's edge: a stamp reaches 77, and the bands are shifted by up to 11."""
RUN, CAMCOL = 4207, 3


def simulated(folder: Path, fields: int, per_field: int) -> tuple[pd.DataFrame, Path]:
    """`per_field` galaxies on each of `fields` simulated fields, and their archive.

    The survey is made once and kept in `folder`. It has twice as many galaxies, so that every
    field has enough whose stamps lie on all five of its own frames.
    """
    survey = folder / f"survey-{fields}-{per_field}"
    if not survey.is_dir():
        run.log.info("%s: made once and kept; about 10 s a field", survey)
        simulate.main(
            [
                *("--output", str(survey), "--no-masks", "--workers", "2"),
                *("--runs", str(RUN), "--camcols", str(CAMCOL), "--fields", str(fields)),
                *("--galaxies-per-field", str(2 * per_field + 6)),
            ]
        )
    galaxies = _inside(survey / "survey.duckdb").groupby("field").head(per_field)
    if len(galaxies) < fields * per_field:
        raise UserError(
            f"{survey}: has {len(galaxies)} galaxies clear of the edges where {fields} fields of "
            f"{per_field} are asked for; give another --galaxies-per-field"
        )
    return galaxies.reset_index(drop=True), survey / simulate.SAS_ROOT


def _inside(database: Path) -> pd.DataFrame:
    """Primary galaxies at least EDGE from their frames' edges, in the order of the frames."""
    inside = " and ".join(
        f"{name}_{band} between {EDGE} and {side - EDGE}"
        for name, side in zip(("rowc", "colc"), FRAME_SHAPE, strict=True)
        for band in BANDS
    )
    places = ", ".join(f"{name}_{band}" for name in ("rowc", "colc") for band in BANDS)
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.sql(
            f"select objID, ra, dec, run, rerun, camcol, field, {places} from PhotoObjAll "
            f"where type = 3 and mode = 1 and {inside} order by run, camcol, field, objID"
        ).df()


def scattered(fields: list[Field], root: Path, count: int, seed: int = 1) -> pd.DataFrame:
    """`count` positions at random on the frames of `fields`, as a catalogue has galaxies."""
    random = np.random.default_rng(seed)
    parts = []
    for field, members in zip(fields, np.array_split(np.arange(count), len(fields)), strict=True):
        pixels = random.uniform(EDGE, np.array(FRAME_SHAPE[::-1]) - EDGE, (members.size, 2))
        header = frame.read_header((root / frame_path(field, "r")).read_bytes())
        ra, dec = frame.projection(header).wcs_pix2world(pixels, 0).T
        objid = pack_objid(field.run, field.camcol, field.field, 1 + np.arange(members.size))
        part = pd.DataFrame({"objID": objid, "ra": ra, "dec": dec})
        for band in BANDS:
            header = frame.read_header((root / frame_path(field, band)).read_bytes())
            rows = frame.projection(header).wcs_world2pix(ra, dec, 0)[1]
            part[f"rowc_{band}"] = rows + 0.5  # SDSS's pixels are integer at their edge
        parts.append(part.assign(**field._asdict()))
    return pd.concat(parts, ignore_index=True)
