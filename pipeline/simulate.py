"""A small sky in SDSS's own formats: frames and masks in SAS's layout, tables of DR12 in DuckDB."""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import run
from pipeline.simulation import catalogue, schema, spectra
from pipeline.simulation.observe import observe_field
from pipeline.simulation.plan import Plan
from pipeline.simulation.population import Sky, make_sky
from pipeline.survey.names import BANDS, Field

ISOLATED_SHARE = 0.02
"""A galaxy is isolated if others add at most this share of its light within 10 arcsec."""
SAS_ROOT = Path("sas/dr9")


def simulate(plan: Plan, output: Path, workers: int = 1, masks: bool = True):
    """Write a plan's frames below `output`/sas/dr9 and make its tables.

    Returns (tables, truth): DR12's tables by name, and a row for every galaxy on the sky. Neither
    they nor the files depend on `workers`.
    """
    sky = make_sky(plan)
    detections = _observe(sky, output / SAS_ROOT, workers, masks)
    if "kind" not in detections or not (detections["kind"] == "galaxy").any():
        raise run.UserError(
            f"simulated survey: no galaxy on its {len(plan.all_fields())} fields; "
            "raise galaxies per field"
        )
    photo = catalogue.photo_table(sky, detections)
    photoz = catalogue.photoz_table(plan, photo, sky.galaxies["e_bv"].to_numpy())
    flaws = _flaws(sky, photo)
    photo, photoz = spectra.mark_flaws(photo, photoz, flaws)
    tables = spectra.spectrum_tables(sky, photo, flaws)
    photo = spectra.with_spectra(photo, tables["SpecObjAll"])
    tables |= {"PhotoObjAll": photo, "Photoz": photoz, "Field": catalogue.field_table(sky, photo)}
    tables = {name: schema.conform(rows, name) for name, rows in tables.items()}
    return tables, truth_table(sky, photo)


def _flaws(sky: Sky, photo: pd.DataFrame) -> pd.Series:
    """What is wrong with the few galaxies that each cut must remove, by id."""
    labelled = photo["id"].isin(sky.galaxies.loc[sky.galaxies["labelled"], "id"])
    found = (photo["mode"] == 1) & (photo["type"] == 3)
    bright = photo["petroMag_r"] - photo["extinction_r"] <= 17.8
    others = photo.loc[found & ~labelled & bright, "id"].to_numpy()
    return pd.concat(
        [
            spectra.choose_flaws(sky.plan, photo.loc[found & labelled, "id"].to_numpy()),
            spectra.choose_flaws(sky.plan, others, spectra.PHOTOZ_FLAWS),
        ]
    )


_sky: Sky | None = None


def _take(sky: Sky) -> None:
    global _sky
    _sky = sky


def _observe_one(field: Field, root: Path, masks: bool) -> pd.DataFrame:
    return observe_field(_sky, field, root, masks)


def _observe(sky: Sky, root: Path, workers: int, masks: bool) -> pd.DataFrame:
    """Observe all fields, in processes if `workers` > 1; rows come in the order of the fields."""
    fields = sky.plan.all_fields()
    progress = run.Progress("simulate", len(fields), "fields")
    measured: dict[Field, pd.DataFrame] = {}
    if workers == 1:
        for field in fields:
            measured[field] = observe_field(sky, field, root, masks)
            progress.add()
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, _take, (sky,)) as pool:
            jobs = {pool.submit(_observe_one, field, root, masks): field for field in fields}
            for job in as_completed(jobs):
                measured[jobs[job]] = job.result()
                progress.add()
    progress.close()
    return pd.concat([measured[field] for field in fields], ignore_index=True)


def truth_table(sky: Sky, photo: pd.DataFrame) -> pd.DataFrame:
    """A row for every galaxy put on the sky, found or not, sorted by id.

    Columns: id, ra, dec [deg], z, M_r, type (0 early, 1 late), bulge_fraction (rest-frame r),
    r50, bulge_r50, disc_r50 [arcsec], bulge_q, disc_q, angle [rad, north to east], e_bv, labelled
    (meant to have a spectrum), flux_b [total nanomaggy on the frames, behind dust],
    intrinsic_flux_b (without dust), objID of the primary detection and objID_secondary of the
    first other one (null if none), other_share (light of others within 10 arcsec, over its own,
    largest of bands and null off the frames), isolated (other_share <= 0.02), and trail,
    cosmic_ray, bleed: the bands in which one crosses the galaxy's 43 arcsec image. The last three
    and other_share are those of the primary detection, or of a secondary one without it.
    """
    kept = [
        "id", "ra", "dec", "z", "M_r", "type", "bulge_fraction", "r50", "bulge_r50", "disc_r50",
        "bulge_q", "disc_q", "angle", "e_bv", "labelled",
        *(f"flux_{band}" for band in BANDS), *(f"intrinsic_flux_{band}" for band in BANDS),
    ]  # fmt: skip
    truth = sky.galaxies[kept].set_index("id")
    seen = photo.sort_values(["mode", "objID"])
    primary = seen[seen["mode"] == 1].set_index("id")["objID"].astype("Int64")
    secondary = seen[seen["mode"] == 2].drop_duplicates("id").set_index("id")["objID"]
    secondary = secondary.astype("Int64")
    best = seen.drop_duplicates("id").set_index("id").reindex(truth.index)
    share = best["other_share"].where(np.isfinite(best["other_share"]))
    return truth.assign(
        objID=primary.reindex(truth.index),
        objID_secondary=secondary.reindex(truth.index),
        other_share=share,
        isolated=(share <= ISOLATED_SHARE),
        **{name: best[name].fillna("") for name in ("trail", "cosmic_ray", "bleed")},
    ).reset_index()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    default = Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for survey.duckdb, sas/, truth.parquet")
    add("--workers", type=int, default=1, help="processes; the products do not depend on it")
    add("--seed", type=int, default=default.seed, help="of all random numbers")
    add(
        "--runs",
        type=int,
        nargs="+",
        default=default.runs,
        help="run numbers; each begins two thirds along the one before it",
    )
    add("--camcols", type=int, nargs="+", default=default.camcols, help="camera columns, 1 to 6")
    add(
        "--fields",
        type=int,
        nargs="+",
        default=default.fields,
        help="fields in each camera column, one number a run",
    )
    add("--first-field", type=int, default=default.first_field, help="number of the first field")
    add(
        "--inclination",
        type=float,
        default=default.inclination,
        help="of the scan's great circle against the equator [deg]",
    )
    add(
        "--mu",
        type=float,
        default=default.mu,
        help="longitude on the great circle at which the first run begins [deg]",
    )
    add(
        "--galaxies-per-field",
        type=float,
        default=default.galaxies_per_field,
        help="brighter than about r = 17.8 (the real sky: 1 to 8), and a quarter as many fainter",
    )
    add("--stars-per-field", type=float, default=default.stars_per_field, help="down to r = 20.5")
    add(
        "--labelled-share",
        type=float,
        default=default.labelled_share,
        help="of the brighter galaxies that have a spectrum",
    )
    add(
        "--artefact-rate",
        type=float,
        default=default.artefact_rate,
        help="satellite trails a frame; cosmic rays are 20 times as many",
    )
    add(
        "--reference-size",
        type=int,
        default=default.reference_size,
        help="galaxies, not on the sky, that the photometric redshifts are fitted to",
    )
    add(
        "--shared-sky",
        action=argparse.BooleanOptionalAction,
        default=default.shared_sky,
        help="take the same sky off neighbouring frames: the rows they share are then equal",
    )
    add("--masks", action=argparse.BooleanOptionalAction, default=True,
        help="also write fpM pixel masks")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write `output`/survey.duckdb, `output`/sas and `output`/truth.parquet."""
    options = vars(_arguments(argv))
    output, workers, masks = (options.pop(name) for name in ("output", "workers", "masks"))
    if workers < 1:
        raise run.UserError(f"--workers {workers}: give 1 or more")
    plan = Plan(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    with run.whole_folder(output) as part:
        tables, truth = simulate(plan, part, workers, masks)
        schema.write_database(tables, part / "survey.duckdb")
        truth.to_parquet(part / "truth.parquet", index=False)
    counts = {name: len(rows) for name, rows in sorted(tables.items())}
    run.log.info("simulate: %s", ", ".join(f"{name} {count}" for name, count in counts.items()))
    run.write_provenance(output, workers=workers, plan=asdict(plan), rows=counts)


if __name__ == "__main__":
    run.start(main)
