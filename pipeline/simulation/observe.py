"""One field, observed: its five frames written, its objects measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from pipeline import run
from pipeline.simulation import artefacts as spoils
from pipeline.simulation import detector, masks, measure, scan
from pipeline.simulation.frame import calibrated, make_frame_bytes
from pipeline.simulation.population import Sky
from pipeline.simulation.render import Stamp, add_stamps, stamps
from pipeline.survey.names import BANDS, FIELD_STEP, FRAME_SHAPE, Field, frame_path, mask_path

BAND_ORDER = "ruigz"
"""r first: its Petrosian radius serves all bands."""
TRIM = 64
"""Rows at each end of a frame that belong to the field before or after."""
HALF_STAMP = 0.006
"""Half the side of a galaxy's image [deg], north up."""
EDGE_COLUMNS = 2
"""An object this near to a side of the frame in r is not found."""


def observe_field(sky: Sky, field: Field, root: Path, write_masks: bool = True) -> pd.DataFrame:
    """Write a field's frames (and fpM masks) below `root`; measure the objects that are its own.

    Returns a row an object, sorted by id: id, kind, run, camcol, field, fwhm_b [arcsec],
    {petro,model,psf}{,Err}_b [nanomaggy], petroRad, petroR50, petroR90 [arcsec, r], other_share
    (largest of the bands), trail, cosmic_ray, bleed (letters of the bands in which one lies
    within the object's 0.012 degree image), saturated (letters).
    """
    rows: dict[int, dict] = {}
    radii: dict[int, measure.Petrosian] = {}
    for band in BAND_ORDER:
        drawn = list(stamps(sky, field, band))
        found = spoils.artefacts(sky.plan, field, band)
        clean = add_stamps(drawn, scan.first_row(sky.plan, field))
        frame, light, dn = take_frame(sky, field, band, clean, found)
        _write(frame_bytes(sky, field, band, frame), root / frame_path(field, band))
        if write_masks:
            planes = masks.planes(sky.plan, field, band, dn, drawn, found)
            _write(masks.make_mask_bytes(field, planes), root / mask_path(field, band))
        own = drawn if band != "r" else [stamp for stamp in drawn if belongs(sky, field, stamp)]
        if band == "r":
            rows = {stamp.id: {"id": stamp.id, "kind": stamp.kind} for stamp in own}
        own = [stamp for stamp in own if stamp.id in rows]
        _measure_band(sky, field, band, own, frame - clean, light, rows, radii)
        _mark_artefacts(sky, field, band, own, _spoiled_pixels(drawn, found), rows)
    table = pd.DataFrame(list(rows.values())).sort_values("id") if rows else pd.DataFrame()
    return table.assign(run=field.run, camcol=field.camcol, field=field.field)


def belongs(sky: Sky, field: Field, stamp: Stamp) -> bool:
    """Whether an object seen in r is this field's: rows 64 to 1424 (SDSS pixels) of the frame."""
    row = stamp.at[0] + 0.5 - scan.first_row(sky.plan, field)
    col = stamp.at[1] + 0.5
    inside = EDGE_COLUMNS <= col < FRAME_SHAPE[1] - EDGE_COLUMNS
    return inside and TRIM <= row < TRIM + FIELD_STEP


def take_frame(
    sky: Sky, field: Field, band: str, clean: np.ndarray, found: list[spoils.Artefact]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A frame of the noiseless `clean` one (`noiseless_frame`) and its artefacts.

    Returns (frame [nanomaggy] as SDSS rounds it, its light without sky and noise, integer DN).
    """
    plan = sky.plan
    light = spoils.add_artefacts(clean, found, plan, field)
    dn = detector.read_out(plan, field, band, light)
    vector = detector.calibration(plan, field.run, field.camcol, band)
    return calibrated(dn, detector.sky_table(plan, field, band), vector), light, dn


def frame_bytes(sky: Sky, field: Field, band: str, frame: np.ndarray) -> bytes:
    """The file of a frame whose pixels [nanomaggy] `take_frame` gave."""
    plan = sky.plan
    return make_frame_bytes(
        frame, scan.frame_wcs(plan, field, band), field, band,
        calibvec=detector.calibration(plan, field.run, field.camcol, band),
        sky=detector.sky_table(plan, field, band),
        astrans=scan.frame_astrans(plan, field, band),
        tai=scan.field_time(plan, field, band), inclination=plan.inclination,
    )  # fmt: skip


def _write(content: bytes, path: Path) -> None:
    with run.whole_file(path) as part:
        part.write_bytes(content)


def _measure_band(sky, field: Field, band: str, own: list[Stamp], residual, light, rows, radii):
    here = detector.chip(sky.plan, field.run, field.camcol, band)
    row0 = scan.first_row(sky.plan, field)
    for stamp in own:
        at, row = measure.window(stamp, residual, row0), rows[stamp.id]
        if band == "r":
            radii[stamp.id] = petro = measure.petrosian(at)
            row |= {
                "petroRad": petro.radius * measure.SCALE,
                "petroR50": petro.r50 * measure.SCALE,
                "petroR90": petro.r90 * measure.SCALE,
                "other_share": -np.inf, "trail": "", "cosmic_ray": "", "bleed": "", "saturated": "",
            }  # fmt: skip
        fluxes = measure.photometry(at, stamp, radii[stamp.id], here)
        row |= {f"{name}_{band}": value for name, value in fluxes.items()}
        row[f"fwhm_{band}"] = stamp.fwhm
        share = measure.other_share(at, stamp, light, row0)
        row["other_share"] = max(row["other_share"], share)
        if stamp.bleed is not None:
            row["saturated"] += band


def _spoiled_pixels(drawn: list[Stamp], found: list[spoils.Artefact]) -> dict[str, np.ndarray]:
    """Strip pixels (n, 2) of each kind of artefact."""
    pixels = {"trail": [], "cosmic_ray": [], "bleed": []}
    for artefact in found:
        pixels[artefact.kind].append(artefact.pixels)
    for stamp in drawn:
        if stamp.bleed is not None:
            pixels["bleed"].append(np.argwhere(stamp.bleed) + (stamp.row, stamp.col))
    return {kind: np.concatenate(parts) for kind, parts in pixels.items() if parts}


def _mark_artefacts(sky, field: Field, band: str, own: list[Stamp], spoiled, rows) -> None:
    """Note, for each object, the kinds of artefact within its image in this band."""
    cd = scan.frame_wcs(sky.plan, field, band).wcs.cd
    radius = np.hypot(HALF_STAMP, HALF_STAMP) / scan.ROW_SCALE + 1
    for kind, pixels in spoiled.items():
        near = cKDTree(pixels).query_ball_point([stamp.at for stamp in own], radius) if own else []
        for stamp, which in zip(own, near, strict=True):
            offset = (pixels[which] - np.array(stamp.at))[:, ::-1]
            if np.any(np.all(np.abs(offset @ cd.T) < HALF_STAMP, axis=1)):
                rows[stamp.id][kind] += band


def field_facts(sky: Sky, field: Field) -> dict[str, float]:
    """What table Field says of a field, measured values apart: times, astrometry, seeing, sky."""
    plan, facts = sky.plan, {}
    center = scan.first_row(plan, field) + (FRAME_SHAPE[0] - 1) / 2
    for band in BANDS:
        here = detector.chip(plan, field.run, field.camcol, band)
        trans = scan.frame_astrans(plan, field, band)
        width = float(detector.seeing(plan, field.run, field.camcol, band, center))
        sky_dn = float(detector.sky_table(plan, field, band).mean())
        sky_nmgy = sky_dn * here.nmgy_per_dn / detector.PIXEL_AREA
        facts |= {f"{name.lower()}_{band}": trans[name] for name in "ABCDEF"}
        facts |= {
            f"mjd_{band}": scan.field_time(plan, field, band) / 86400,
            f"gain_{band}": here.gain, f"darkVariance_{band}": here.dark_variance,
            f"nMgyPerCount_{band}": here.nmgy_per_dn, f"saturationLevel_{band}": here.saturation,
            f"psfWidth_{band}": width, f"sky_{band}": sky_nmgy, f"skyFrames_{band}": sky_nmgy,
            f"sigPix_{band}": here.noise / detector.PIXEL_AREA,
        }  # fmt: skip
    return facts
