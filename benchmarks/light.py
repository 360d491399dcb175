"""The light in a run's stamps against the noiseless sky that its frames were drawn from.

`python benchmarks/light.py` runs the whole workflow on a simulated survey and compares, for
isolated galaxies without artefact, the aperture flux of the stamp with that of the noiseless
image through the same kernel and aperture: chi2 per degree of freedom, and the weighted mean flux
ratio of the galaxies with S/N above 100. Its last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import yaml

from pipeline.images import overlap
from pipeline.images.geometry import corners, window
from pipeline.images.stamp import Stamp
from pipeline.simulation.plan import Plan
from pipeline.simulation.population import Sky, make_sky
from pipeline.simulation.render import noiseless_frame
from pipeline.survey import frame, noise
from pipeline.survey.names import BANDS, Field, frame_path

APERTURES = (5, 14)
"""Radii [stamp pixels]: 2.0 arcsec, where the signal is highest over the noise, and 5.7 arcsec,
most of a Main Sample galaxy's light."""


def aperture_fluxes(results: Path, settings: dict, objids: set[int]) -> pd.DataFrame:
    """Aperture fluxes of the stamps of galaxies `objids`: a row a galaxy, band and aperture.

    Columns: objID, band, radius [stamp pixels], flux (of the stamp), true (of the noiseless frame
    through the same kernel and aperture), sigma (native gain and dark variance through the
    aperture's weight on each frame pixel), direct (the flux as the sum of those weights times
    the frame's pixels).
    """
    plan = Plan(**{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()})
    sky, rows = make_sky(plan), []
    for path in sorted((results / "cutouts").glob("*.h5")):
        with h5py.File(path) as file:
            table = pd.DataFrame(
                {name: file[name][:] for name in ("ObjID", "ra", "dec", "run", "camcol", "field")}
            )
            images = {objid: file["images"][k] for k, objid in enumerate(table.ObjID)}
        table = table[table.ObjID.isin(objids)]
        for key, members in table.groupby(["run", "camcol", "field"]):
            rows += _of_field(results, sky, Field(*key), members, images)
    return pd.DataFrame(rows)


def _of_field(results: Path, sky: Sky, field: Field, members: pd.DataFrame, images) -> list[dict]:
    rows = []
    for number, band in enumerate(BANDS):
        clean = noiseless_frame(sky, field, band)
        file = results / "simulate" / "sas" / "dr9" / frame_path(field, band)
        own = frame.read(file.read_bytes(), field, band)
        for galaxy in members.itertuples():
            image = images[galaxy.ObjID][number].astype(float)
            rows += _measure(galaxy, band, image, clean, own, field)
    return rows


def _measure(galaxy, band: str, image, clean: np.ndarray, own, field: Field) -> list[dict]:
    stamp = Stamp()
    wcs = own.wcs()
    points = corners(stamp, galaxy.ra, galaxy.dec, wcs)
    part = window(points, clean.shape)
    cut = overlap.cut(clean[part.rows, part.columns], points - part.origin)
    pixels = own.image[part.rows, part.columns].astype(float)
    gain = noise.gain(field.run, field.camcol, band)
    dark = noise.dark_variance(field.run, field.camcol, band)
    variance = own.variance(part.rows, part.columns, gain, dark)
    y, x = np.mgrid[: stamp.size, : stamp.size] - stamp.size // 2
    rows = []
    for radius in APERTURES:
        inside = np.hypot(x, y) <= radius
        weights = _weights_on_frame(inside, stamp, galaxy, wcs, part) / cut.area.mean()
        row = {"objID": galaxy.ObjID, "band": band, "radius": radius}
        row |= {"flux": image[inside].sum(), "true": cut.value[inside].sum()}
        row |= {"sigma": np.sqrt((weights**2 * variance).sum())}
        rows.append(row | {"direct": (weights * pixels).sum()})
    return rows


def _weights_on_frame(inside: np.ndarray, stamp: Stamp, galaxy, wcs, part) -> np.ndarray:
    """The share of each frame pixel that the aperture covers: the stamp resampled backwards."""
    rows, columns = (one.stop - one.start for one in (part.rows, part.columns))
    side = max(rows, columns)
    y, x = np.mgrid[: side + 1, : side + 1] - 0.5
    ra, dec = wcs.wcs_pix2world((x + part.columns.start).ravel(), (y + part.rows.start).ravel(), 0)
    on_stamp = stamp.wcs(galaxy.ra, galaxy.dec).wcs_world2pix(ra, dec, 0)
    edges = np.stack(on_stamp, axis=-1).reshape(side + 1, side + 1, 2)
    back = overlap.cut(inside.astype(float), edges)
    return (back.value * back.share)[:rows, :columns]


def clean_galaxies(results: Path) -> set[int]:
    """The isolated galaxies that no artefact touches, by objID."""
    truth = pd.read_parquet(
        results / "simulate" / "truth.parquet", dtype_backend="numpy_nullable"
    ).dropna(subset="objID")
    spoiled = (truth[["trail", "cosmic_ray", "bleed"]] != "").any(axis=1)
    return set(truth[truth.isolated.fillna(False) & ~spoiled].objID.astype("int64"))


def summary(fluxes: pd.DataFrame, bright: float = 100.0) -> pd.DataFrame:
    """A row a band and radius: n, chi2 per degree of freedom, and of those with S/N > `bright` the
    number, the weighted mean flux ratio and its error.
    """
    rows = {}
    for key, sample in fluxes.groupby(["radius", "band"], sort=False):
        chi = (sample.flux - sample.true) / sample.sigma
        few = sample[sample.true / sample.sigma > bright]
        weight = (few.true / few.sigma) ** 2
        rows[key] = {
            "n": len(sample),
            "chi2_per_dof": (chi**2).mean(),
            "n_bright": len(few),
            "ratio": (few.flux / few.true * weight).sum() / weight.sum() if len(few) else np.nan,
            "ratio_error": weight.sum() ** -0.5 if len(few) else np.nan,
        }
    return pd.DataFrame(rows).T


def main() -> None:
    """Run the workflow on a larger simulated survey and print the table."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=here / "results" / "light")
    parser.add_argument("--fields", type=int, default=3, help="in each of six camera columns")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    overlay = {
        "simulate": {"runs": [4207], "camcols": [1, 2, 3, 4, 5, 6], "fields": [args.fields]},
        "catalog": {"min_b_unlabelled": None},
    }
    (args.folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    snakemake = Path(sys.executable).with_name("snakemake")
    words = ["--cores", "all", "--directory", args.folder, "results/dataset.json"]
    words += ["--configfile", args.folder / "overlay.yaml"]
    subprocess.run([snakemake, *words], cwd=here.parent, check=True)

    settings = yaml.safe_load((here.parent / "config.yaml").read_text())["simulate"]
    settings |= overlay["simulate"]
    results = args.folder / "results"
    fluxes = aperture_fluxes(results, settings, clean_galaxies(results))
    table = summary(fluxes)
    print(table.to_string(float_format="%.5f"))
    figures = {f"{band} {radius} px": row.to_dict() for (radius, band), row in table.iterrows()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
