"""From measurements to PhotoObjAll, Photoz and Field: ids, modes, magnitudes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.simulation.measure import magnitude
from pipeline.simulation.observe import TRIM, field_facts
from pipeline.simulation.plan import Plan, stream
from pipeline.simulation.population import Sky
from pipeline.simulation.references import reference_set
from pipeline.simulation.scan import first_row, strip
from pipeline.survey.names import BANDS, FIELD_STEP, FRAME_SHAPE, RERUN, Field, pack_objid
from pipeline.survey.photoz import local_linear

PRIMARY_COLUMNS = (64, FRAME_SHAPE[1] - 64)
"""SDSS columns in which a detection can be the primary one."""
EDGE, SATURATED = 1 << 2, 1 << 18
PHOTOZ_MISSING = 0.02
PHOTOZ_FAILED = 0.01
PIXEL_DEG = 0.396 / 3600


def photo_table(sky: Sky, detections: pd.DataFrame) -> pd.DataFrame:
    """PhotoObjAll's columns for each detection, and its `id` and `kind`.

    Of the detections of one source, the first that lies 64 columns or more from the frame's sides
    is primary (mode 1): runs in the plan's order. All others are secondary (mode 2).
    """
    plan = sky.plan
    table = detections.copy()
    table["order"] = table["run"].map({run: k for k, run in enumerate(plan.runs)})
    table = table.sort_values(["order", "camcol", "field", "id"], ignore_index=True)
    table["obj"] = table.groupby(["run", "camcol", "field"]).cumcount() + 1
    parts = [table[name].to_numpy(np.int64) for name in ("run", "camcol", "field")]
    table["objID"] = pack_objid(*parts, table["obj"].to_numpy(np.int64))
    table["fieldID"] = pack_objid(*parts, 0)
    table = table.assign(**_positions(sky, table))
    table = table.assign(**_pixels(plan, table))
    inside = table["colc_r"].between(*PRIMARY_COLUMNS)
    first = table[inside].drop_duplicates("id").index
    table["mode"] = np.where(table.index.isin(first), 1, 2)
    columns = _magnitudes(sky, table) | _constants(table)
    return pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1)


def _true_columns(sky: Sky, table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    true = pd.concat([sky.galaxies[["id", *names]], sky.stars[["id", *names]]]).set_index("id")
    return true.loc[table["id"]]


def _positions(sky: Sky, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Measured positions: the true ones with an error of 0.02 arcsec or more in each axis."""
    true = _true_columns(sky, table, ["ra", "dec", "l", "b"])
    error = np.hypot(0.02, 0.5 * table["fwhm_r"] * table["modelErr_r"] / table["model_r"].abs())
    error = np.minimum(error.fillna(0.2), 0.2).to_numpy()
    noise = np.array(
        [stream(sky.plan.seed, "astrometry", objid).standard_normal(2) for objid in table["objID"]]
    ).reshape(-1, 2)
    dec = true["dec"].to_numpy() + noise[:, 1] * error / 3600
    ra = true["ra"].to_numpy() + noise[:, 0] * error / 3600 / np.cos(np.radians(dec))
    cosine = np.cos(np.radians(dec))
    return {
        "ra": ra, "dec": dec, "raErr": error, "decErr": error,
        "cx": cosine * np.cos(np.radians(ra)), "cy": cosine * np.sin(np.radians(ra)),
        "cz": np.sin(np.radians(dec)), "l": true["l"].to_numpy(), "b": true["b"].to_numpy(),
    }  # fmt: skip


def _pixels(plan: Plan, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """rowc_b and colc_b (from the pixel's edge) of the measured positions in each frame."""
    columns = {
        f"{axis}_{band}": np.empty(len(table)) for axis in ("rowc", "colc") for band in BANDS
    }
    for (run, camcol, field), rows in table.groupby(["run", "camcol", "field"]).indices.items():
        row0 = first_row(plan, Field(run, camcol, field))
        for band in BANDS:
            on_sky = strip(plan, run, camcol, band)
            row, col = on_sky.to_pixel(*(table[name].to_numpy()[rows] for name in ("ra", "dec")))
            columns[f"rowc_{band}"][rows], columns[f"colc_{band}"][rows] = (
                row + 0.5 - row0,
                col + 0.5,
            )
    return columns


def _magnitudes(sky: Sky, table: pd.DataFrame) -> dict[str, np.ndarray]:
    names = [f"extinction_{band}" for band in BANDS]
    columns = {name: values.to_numpy() for name, values in _true_columns(sky, table, names).items()}
    for band in BANDS:
        for kind in ("petro", "model", "psf"):
            flux, error = table[f"{kind}_{band}"], table[f"{kind}Err_{band}"]
            mag, mag_error = magnitude(flux, error)
            columns[f"{kind}Mag_{band}"], columns[f"{kind}MagErr_{band}"] = mag, mag_error
            if kind != "psf":
                columns[f"{kind}Flux_{band}"] = flux.fillna(-9999.0).to_numpy()
        mag = columns[f"modelMag_{band}"]
        columns[band], columns[f"err_{band}"] = mag, columns[f"modelMagErr_{band}"]
        dered = mag - columns[f"extinction_{band}"]
        columns[f"dered_{band}"] = np.where(mag > -1000, dered, -9999.0)
        columns[f"psffwhm_{band}"] = table[f"fwhm_{band}"].to_numpy()
        columns[f"calibStatus_{band}"] = np.ones(len(table), int)
    for name in ("Rad", "R50", "R90"):
        columns[f"petro{name}_r"] = table[f"petro{name}"].to_numpy()
    facts = {
        key: field_facts(sky, Field(*key))
        for key in set(zip(table["run"], table["camcol"], table["field"], strict=True))
    }
    for name in [f"nMgyPerCount_{band}" for band in BANDS]:
        keys = zip(table["run"], table["camcol"], table["field"], strict=True)
        columns[name] = np.array([facts[key][name] for key in keys])
    return columns


def _constants(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Classification and bookkeeping; galaxies and stars are told apart without error."""
    galaxy, primary = (table["kind"] == "galaxy").to_numpy(), (table["mode"] == 1).to_numpy()
    row, col = table["rowc_r"], table["colc_r"]
    edge = ~col.between(20, FRAME_SHAPE[1] - 20) | ~row.between(20, FRAME_SHAPE[0] - 20)
    saturated = table["saturated"] != ""
    seen = table.groupby("id")["objID"].transform("size").to_numpy()
    return {
        "skyVersion": 2, "rerun": RERUN, "nChild": 0, "type": np.where(galaxy, 3, 6),
        "clean": (~saturated).to_numpy().astype(int), "probPSF": np.where(galaxy, 0.0, 1.0),
        "insideMask": 0, "flags": edge.to_numpy() * EDGE + saturated.to_numpy() * SATURATED,
        "rowc": row.to_numpy(), "colc": col.to_numpy(),
        "mjd": (51_400.2 + 0.38 * (table["run"] - 600)).astype(int).to_numpy(), "parentID": 0,
        "specObjID": 0, "resolveStatus": np.where(primary, 0x100 | 1, 0x400 | 1),
        "thingId": table["id"].to_numpy() + 1, "nObserve": seen, "nDetect": seen, "score": 0.85,
    }  # fmt: skip


def photoz_table(plan: Plan, photo: pd.DataFrame, e_bv: np.ndarray) -> pd.DataFrame:
    """Photoz of all galaxies (type 3, modes 1 and 2); 2 % have no row, 1 % failed (-9999)."""
    galaxies = photo[photo["type"] == 3].sort_values("objID", ignore_index=True)
    mags = galaxies[[f"dered_{band}" for band in BANDS]].to_numpy()
    reference, z = reference_set(plan, e_bv)
    table = local_linear(mags, reference, z).assign(objID=galaxies["objID"], nnVol=0.0)
    chance = stream(plan.seed, "photoz").random(len(table))
    failed = (chance >= PHOTOZ_MISSING) & (chance < PHOTOZ_MISSING + PHOTOZ_FAILED)
    table.loc[failed, ["z", "zErr", "nnCount", "photoErrorClass", "nnAvgZ"]] = (
        -9999.0, -9999.0, 0, -9999, -9999.0,
    )  # fmt: skip
    return table[chance >= PHOTOZ_MISSING].reset_index(drop=True)


def field_table(sky: Sky, photo: pd.DataFrame) -> pd.DataFrame:
    """Table Field: a row a field, with what a catalogue of positions needs to find its frames."""
    rows = []
    for field in sky.plan.all_fields():
        own = photo[
            (photo["run"] == field.run)
            & (photo["camcol"] == field.camcol)
            & (photo["field"] == field.field)
        ]
        rows.append(_field_row(sky, field, own) | field_facts(sky, field))
    return pd.DataFrame(rows)


def _field_row(sky: Sky, field: Field, own: pd.DataFrame) -> dict[str, float]:
    plan = sky.plan
    on_sky, row0 = strip(plan, field.run, field.camcol, "r"), first_row(plan, field)
    edge_row = row0 + np.array([0, FRAME_SHAPE[0], 0, FRAME_SHAPE[0]]) - 0.5
    edge_col = np.array([0, 0, FRAME_SHAPE[1], FRAME_SHAPE[1]]) - 0.5
    ra, dec = on_sky.to_sky(edge_row, edge_col)
    center = on_sky.to_sky(row0 + FRAME_SHAPE[0] / 2 - 0.5, FRAME_SHAPE[1] / 2 - 0.5)
    mu = on_sky.a + on_sky.b * (row0 + np.array([TRIM, TRIM + FIELD_STEP]))
    nu = on_sky.d + on_sky.f * np.array(PRIMARY_COLUMNS)
    score = 0.6 + 0.35 * stream(plan.seed, "score", field.run, field.camcol, field.field).random()
    galaxies, stars = int((own["type"] == 3).sum()), int((own["type"] == 6).sum())
    statuses = {f"{name}_{band}": 1 for name in ("calibStatus", "imageStatus") for band in BANDS}
    offsets = {f"{name}_{band}": 0.0 for name in ("rowOffset", "colOffset") for band in BANDS}
    return statuses | offsets | {
        "fieldID": int(pack_objid(field.run, field.camcol, field.field, 0)), "skyVersion": 2,
        "run": field.run, "rerun": field.rerun, "camcol": field.camcol, "field": field.field,
        "nTotal": len(own), "nObjects": len(own), "nChild": 0, "nGalaxy": galaxies,
        "nStars": stars, "quality": 3, "ra": float(center[0]), "dec": float(center[1]),
        "raMin": ra.min(), "raMax": ra.max(), "decMin": dec.min(), "decMax": dec.max(),
        "pixScale": 0.396, "photoStatus": 0, "score": score, "pspStatus": 0, "loadVersion": 1,
        "primaryArea": _primary_area(plan, field), "muStart": mu[0], "muEnd": mu[1],
        "nuStart": nu[0], "nuEnd": nu[1],
    }  # fmt: skip


def _primary_area(plan: Plan, field: Field) -> float:
    """Area [deg^2] in which this field's detections are primary: not yet seen by an earlier run."""
    rows, cols = np.meshgrid(
        first_row(plan, field) + TRIM + FIELD_STEP * (np.arange(60) + 0.5) / 60,
        np.linspace(*PRIMARY_COLUMNS, 60),
        indexing="ij",
    )
    ra, dec = strip(plan, field.run, field.camcol, "r").to_sky(rows, cols)
    free = np.ones(ra.shape, bool)
    for run, camcol in plan.strips():
        if plan.runs.index(run) < plan.runs.index(field.run):
            row, col = strip(plan, run, camcol, "r").to_pixel(ra, dec)
            end = TRIM + FIELD_STEP * plan.count(run)
            inside = (col >= PRIMARY_COLUMNS[0]) & (col < PRIMARY_COLUMNS[1])
            free &= ~(inside & (row >= TRIM) & (row < end))
    width = PRIMARY_COLUMNS[1] - PRIMARY_COLUMNS[0]
    return float(free.mean() * FIELD_STEP * width * PIXEL_DEG**2)
