"""Tables of galaxies -> one catalogue: deduplicated, cut, split, in frame order, in shards."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline import run
from pipeline.run import UserError
from pipeline.survey import cuts, positions, splits, tables
from pipeline.survey import fields as field_tables
from pipeline.survey.cuts import Sample
from pipeline.survey.names import BANDS

log = logging.getLogger("ugriz")

MORPHOLOGY = {
    **dict.fromkeys(("nvote", "spiral", "elliptical", "uncertain"), pa.int32()),
    **dict.fromkeys(
        ("p_el", "p_cw", "p_acw", "p_edge", "p_dk", "p_mg", "p_cs", "p_el_debiased",
         "p_cs_debiased"), pa.float32(),
    ),
}  # fmt: skip
"""Columns of queries/morphology.sql that go into the catalogue, where it is asked for."""


OF_FIELD = tuple(f"{name}_{band}" for name in field_tables.PER_BAND for band in BANDS)


@dataclass(frozen=True)
class Options:
    """How the catalogue is made; None switches a cut off. Names are those of the flags.

    Raises UserError for a number that is none (nan would switch its cut off, and say nothing).
    """

    survey: str = "unnamed"
    shards: int = 1
    split: str = "random"
    test_fraction: float = 0.2048
    valid_fraction: float = 0.05
    nside: int = 64
    fov: float = 0.012
    duplicate_radius: float = 1.0
    min_b_labelled: float | None = None
    min_b_unlabelled: float | None = None
    max_photoz: float | None = None
    missing_photoz: str = "keep"
    seed: int = 0

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, float) and not np.isfinite(value):
                raise UserError(f"{name.replace('_', '-')}: {value}; give a finite number")


class Catalog(NamedTuple):
    """The catalogue, its funnel (catalog.json) and the rows that were removed, with reasons."""

    galaxies: pa.Table
    funnel: dict
    rejected: pa.Table


def build(
    labelled: pd.DataFrame | None,
    unlabelled: pd.DataFrame | None,
    fields: pd.DataFrame | None = None,
    morphology: pd.DataFrame | None = None,
    options: Options = Options(),  # noqa: B008 (frozen)
) -> Catalog:
    """Make the catalogue of two samples, either of which may be None.

    `labelled` and `unlabelled` are as `tables.galaxies` gives them, `fields` as
    `fields.read_fields`, `morphology` has objID and the columns of `MORPHOLOGY`. Galaxies without
    run, camcol and field get those that SDSS's objIDs hold, or of the field they lie on. The
    galaxies come sorted by run, camcol, field and objID, with the columns and types of `schema`.
    Raises UserError where nothing is left, and for shards, splits and fields that cannot be.
    """
    samples = _samples(labelled, unlabelled)
    for sample in samples:
        _place(sample, fields)
        if "b" not in sample.rows:
            b = positions.galactic_latitude(sample.rows["ra"], sample.rows["dec"])
            sample.rows = sample.rows.assign(b=b)
    whole = _dereddened([sample.rows for sample in samples])
    cuts.narrow(samples)
    _cut_labelled(samples[0], options)
    _cut_unlabelled(samples[1], labelled, options)
    if all(sample.rows.empty for sample in samples):
        raise _nothing_left(samples)
    _warn_of_empty(samples)
    rows = _split(_in_order(samples), options)
    rows["shard"] = splits.shards(rows, options.shards)
    funnel = _funnel(samples, rows, options)
    return Catalog(_complete(rows, whole, fields, morphology), funnel, _rejected(samples))


def schema(morphology: bool = False) -> pa.Schema:
    """Names and types of the catalogue's columns; everything but ids, place and split may be null.

    ra, dec, b [deg]; rowc, colc [SDSS pixels]; magnitudes and extinction [mag, DR12's]; psfWidth
    [arcsec]; gain [e-/DN]; darkVariance [DN^2].
    """
    bands = [
        (f"{name}_{band}", pa.float32())
        for name in ("rowc", "colc", "petroMag", "modelMag", "extinction")
        for band in BANDS
    ]
    of_field = [(name, pa.float32()) for name in OF_FIELD]
    place = [(name, pa.int32()) for name in ("run", "rerun", "camcol", "field")]
    return pa.schema([
        ("objID", pa.int64()), ("specObjID", pa.int64()),
        ("ra", pa.float64()), ("dec", pa.float64()), ("b", pa.float64()),
        *place, *bands, ("dered_petro_r", pa.float32()),
        ("z", pa.float64()), ("zErr", pa.float64()),
        ("photoz", pa.float32()), ("photozErr", pa.float32()),
        *of_field, *(MORPHOLOGY.items() if morphology else ()),
        ("shard", pa.int32()), ("split", pa.string()), ("sky_split", pa.string()),
    ])  # fmt: skip


def _samples(labelled, unlabelled) -> tuple[Sample, Sample]:
    empty = pd.DataFrame({
        "objID": np.array([], np.int64), "ra": np.array([], float), "dec": np.array([], float),
        **{name: np.array([], np.int32) for name in ("run", "rerun", "camcol", "field")},
    })  # fmt: skip
    if labelled is not None and ("z" not in labelled or labelled["z"].isna().any()):
        raise UserError("the labelled sample has rows without z; give those as unlabelled")
    if unlabelled is not None:
        unlabelled = unlabelled.drop(columns=["z", "zErr"], errors="ignore")
    return (
        Sample("labelled", empty if labelled is None else labelled),
        Sample("unlabelled", empty if unlabelled is None else unlabelled),
    )


def _place(sample: Sample, fields: pd.DataFrame | None) -> None:
    """Give galaxies without one their field, and their row and column on it."""
    rows = sample.rows
    if "run" in rows:
        return
    place = field_tables.of_ids(rows["objID"])
    if fields is None and place is None:
        raise UserError(
            "the galaxies have no run, camcol, field and no objIDs of SDSS that hold them; "
            "add those columns, or give --fields"
        )
    if place is None:
        found = field_tables.locate(rows["ra"], rows["dec"], fields)
        sample.cut("field", "on a field", found < 0, "lies on no field of the survey")
        rows, found = sample.rows, found[found >= 0]
        names = ("run", "rerun", "camcol", "field")
        place = {name: fields[name].to_numpy()[found] for name in names}
    elif fields is not None:
        found = field_tables.rows_of(fields, place)
    if fields is not None and "rowc_r" not in rows:
        ra, dec = rows["ra"].to_numpy(), rows["dec"].to_numpy()
        place |= field_tables.pixels_of_bands(fields, found, ra, dec)
    sample.rows = rows.assign(**place)


def _dereddened(samples: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """With dered_petro_r where no sample has it and it follows from other columns."""
    if any("dered_petro_r" in rows for rows in samples):
        return samples
    return [
        rows.assign(dered_petro_r=rows["petroMag_r"] - rows["extinction_r"])
        if {"petroMag_r", "extinction_r"} <= set(rows)
        else rows
        for rows in samples
    ]


def _cut_labelled(sample: Sample, options: Options) -> None:
    repeat = cuts.repeats(sample.rows)
    sample.cut("object", "one row an object", repeat, "repeat spectrum of an object")
    cuts.cut_nearby(sample, options.duplicate_radius)
    cuts.cut_latitude(sample, options.min_b_labelled)


def _cut_unlabelled(sample: Sample, labelled: pd.DataFrame | None, options: Options) -> None:
    sample.cut("object", "one row an object", cuts.repeats(sample.rows), "repeat of an object")
    if labelled is not None:
        also = cuts.also_labelled(sample.rows, labelled, options.duplicate_radius)
        sample.cut("labelled", "not labelled", also, "is in the labelled sample")
    cuts.cut_nearby(sample, options.duplicate_radius)
    cuts.cut_latitude(sample, options.min_b_unlabelled)
    cuts.cut_photoz(sample, options.max_photoz, drop=options.missing_photoz == "drop")


def _in_order(samples: tuple[Sample, Sample]) -> pd.DataFrame:
    """What is left, in frame order: the columns that splits and shards look at, and `row`."""
    names = ["objID", "ra", "dec", "run", "camcol", "field", "z", "row"]
    rows = [sample.rows.filter(names) for sample in samples if len(sample.rows)]
    for sample in samples:
        del sample.rows  # to free the memory: what is left of them is here now
    return pd.concat(rows).sort_values(["run", "camcol", "field", "objID"], ignore_index=True)


def _split(rows: pd.DataFrame, options: Options) -> pd.DataFrame:
    labelled = rows["z"].notna().to_numpy() if "z" in rows else np.zeros(len(rows), bool)
    shares = (options.test_fraction, options.valid_fraction)
    if options.split == "random":
        split = splits.random_split(rows["objID"], labelled, *shares, options.seed)
        return rows.assign(split=split, sky_split=None)
    if options.split != "sky":
        raise UserError(f"split: {options.split!r}; give random or sky")
    overlap = options.fov * np.sqrt(2)
    split, sky = splits.sky_split(
        rows["ra"], rows["dec"], labelled, *shares, options.nside, overlap, options.seed
    )
    return rows.assign(split=split, sky_split=sky)


def _funnel(samples, rows: pd.DataFrame, options: Options) -> dict:
    steps = {sample.name: sample.steps for sample in samples}
    if not options.survey.lower().startswith("sdss"):
        for sample in samples:
            sample.steps[:] = [{**step, "paper": None} for step in sample.steps]
    count = rows["split"].value_counts()
    order = (*splits.NAMES, "unlabelled")
    funnel = {
        "survey": options.survey,
        "samples": steps,
        "splits": {name: int(count.get(name, 0)) for name in order},
    }
    if options.split == "sky":
        side = rows["sky_split"].value_counts()
        funnel["sky_split"] = {n: int(side.get(n, 0)) for n in (*splits.NAMES, "border")}
    fields = len(rows[["run", "camcol", "field"]].drop_duplicates())
    return funnel | {"galaxies": len(rows), "fields": fields, "shards": options.shards}


def _rejected(samples) -> pa.Table:
    names = pa.schema([
        ("objID", pa.int64()), ("specObjID", pa.int64()), ("ra", pa.float64()),
        ("dec", pa.float64()), ("sample", pa.string()), ("reason", pa.string()),
    ])  # fmt: skip
    removed = [part for sample in samples for part in sample.removed]
    if not removed:
        return names.empty_table()
    order = ["sample", "reason", "objID", "ra", "dec"]
    rows = pd.concat(removed).sort_values(order, ignore_index=True, kind="stable")
    return _arrow(rows, names)


def _nothing_left(samples) -> UserError:
    removed = [part for sample in samples for part in sample.removed]
    if not removed:
        return UserError("the samples have no rows; give at least one galaxy")
    rows = pd.concat(removed)
    reason = rows["reason"].value_counts().index[0]
    first = rows[rows["reason"] == reason].iloc[0]
    return UserError(
        f"no galaxy is left of {len(rows)}; the first of most of them, objID {first.objID} at ra "
        f"{first.ra:.6f}, dec {first.dec:.6f}: {reason}; check the table, the cuts and the fields"
    )


def _warn_of_empty(samples) -> None:
    for sample in samples:
        if sample.removed and sample.rows.empty:
            step = [step["step"] for step in sample.steps if step["removed"]][-1]
            log.warning("no %s galaxy is left after the step '%s'", sample.name, step)


def _complete(
    rows: pd.DataFrame,
    samples: list[pd.DataFrame],
    fields: pd.DataFrame | None,
    morphology: pd.DataFrame | None,
) -> pa.Table:
    """The catalogue in the order of `rows`: each column in turn, from the table that has it."""
    sources = [([rows[["shard", "split", "sky_split"]]], np.arange(len(rows)))]
    if fields is not None:
        names = [name for name in OF_FIELD if name in fields]
        sources.append(([fields[names]], field_tables.rows_of(fields, rows)))
    if morphology is not None:
        votes = morphology.set_index("objID")
        sources.append(([votes], votes.index.get_indexer(rows["objID"])))
    sources.append((samples, rows["row"].to_numpy()))
    sources = [(parts, pa.array(places, mask=places < 0)) for parts, places in sources]
    names, columns = schema(morphology is not None), []
    for name, kind in zip(names.names, names.types, strict=True):
        having = (source for source in sources if any(name in part for part in source[0]))
        parts, places = next(having, sources[-1])
        columns.append(pa.concat_arrays([_column(part, name, kind) for part in parts]).take(places))
    return pa.Table.from_arrays(columns, schema=names)


def _arrow(rows: pd.DataFrame, names: pa.Schema) -> pa.Table:
    columns = [_column(rows, *column) for column in zip(names.names, names.types, strict=True)]
    return pa.Table.from_arrays(columns, schema=names)


def _column(rows: pd.DataFrame, name: str, kind: pa.DataType) -> pa.Array:
    """With NaN as null, and null where `rows` has no such column."""
    if name not in rows:
        return pa.nulls(len(rows), kind)
    return pa.array(rows[name], type=kind, from_pandas=True)


def read_morphology(path: str) -> pd.DataFrame:
    """objID and the columns of `MORPHOLOGY`; of two rows of an object, that of more votes."""
    frame = tables.read_table(path)
    present = {str(name).lower(): name for name in frame.columns}
    lacking = [name for name in ("objID", *MORPHOLOGY) if name.lower() not in present]
    if lacking:
        raise UserError(f"{path}: has no column {', '.join(lacking)}; see queries/morphology.sql")
    ids = tables.exact_ids(frame[present["objid"]], "objID", path)
    votes = frame[[present[name.lower()] for name in MORPHOLOGY]].set_axis(list(MORPHOLOGY), axis=1)
    rows = votes.assign(objID=ids).dropna(subset="objID").astype({"objID": np.int64})
    order = [name for name in rows if name not in ("objID", "nvote")]
    rows = rows.sort_values(["objID", "nvote", *order], ascending=[True, False, *([True] * 12)])
    return rows.drop_duplicates("objID", ignore_index=True)


def read_sample(path: str | None, repeats: bool = True) -> pd.DataFrame | None:
    """A sample's table in the house's columns; None for no path or a query that found nothing."""
    if path is None:
        return None
    frame = tables.read_table(path)
    if frame.empty and repeats:
        log.warning("%s: has no rows", path)
        return None
    return tables.galaxies(frame, str(path), repeats)


def main(argv: list[str] | None = None) -> None:
    """Command line: see --help."""
    flags = vars(_parser().parse_args(argv))
    files = {name: flags.pop(name) for name in
             ("labelled", "unlabelled", "galaxies", "fields", "morphology", "output", "funnel",
              "rejected")}  # fmt: skip
    labelled, unlabelled = (read_sample(files[name]) for name in ("labelled", "unlabelled"))
    if files["galaxies"]:
        if files["labelled"] or files["unlabelled"]:
            raise UserError("--galaxies goes without --labelled and --unlabelled; give one kind")
        rows = read_sample(files["galaxies"], repeats=False)
        known = rows.get("z", pd.Series(np.nan, index=rows.index)).notna()
        labelled = rows[known] if known.any() else None
        unlabelled = rows[~known] if not known.all() else None
    fields = None
    if files["fields"]:
        unplaced = any(rows is not None and "run" not in rows for rows in (labelled, unlabelled))
        fields = field_tables.read_fields(files["fields"], geometry=unplaced)
    morphology = read_morphology(files["morphology"]) if files["morphology"] else None
    made = build(labelled, unlabelled, fields, morphology, Options(**flags))
    shard = made.galaxies.column("shard").to_numpy()
    if files["rejected"]:
        tables.write_table(made.rejected, files["rejected"])
    run.write_json(made.funnel, files["funnel"])
    tables.write_table(made.galaxies, files["output"], np.bincount(shard).tolist())
    log.info("%s: %d galaxies on %d fields in %d shards", files["output"],
             *(made.funnel[name] for name in ("galaxies", "fields", "shards")))  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.catalog",
        description="One catalogue of galaxies from the tables of the queries, or from a table of "
        "your own: deduplicated, cut, split, sorted by frame and cut into shards.",
    )
    add, default = parser.add_argument, Options()
    add("--labelled", metavar="TABLE", help="galaxies with redshifts (queries/labelled.sql)")
    add("--unlabelled", metavar="TABLE", help="galaxies without (queries/unlabelled.sql)")
    add("--galaxies", metavar="TABLE", help="your own: those with a z are labelled")
    add("--fields", metavar="TABLE",
        help="result of queries/fields.sql, photoField file or window_flist.fits; positions alone "
        "get their field from it, and rowc to 2-3 pixels (fields.sql), below one (photoField) or "
        "not at all (window_flist: the frame tells it later)")  # fmt: skip
    add("--morphology", metavar="TABLE", help="votes to add (queries/morphology.sql)")
    add("--output", required=True, metavar="PARQUET", help="the catalogue")
    add("--funnel", required=True, metavar="JSON", help="the counts after every step")
    add("--rejected", metavar="PARQUET", help="every row that was removed, with the reason")
    add("--survey", default=default.survey, help="its name; sdss* puts the paper's counts beside")
    add("--shards", type=int, default=default.shards, help="how many (default %(default)s)")
    add("--split", choices=("random", "sky"), default=default.split,
        help="by a hash of objID, or by whole HEALPix pixels (default %(default)s)")  # fmt: skip
    add("--test-fraction", type=float, default=default.test_fraction,
        help="share of the labelled galaxies (default: the paper's %(default)s)")  # fmt: skip
    add("--valid-fraction", type=float, default=default.valid_fraction,
        help="share of the labelled galaxies that are not test (default %(default)s)")  # fmt: skip
    add("--nside", type=int, default=default.nside, help="of the pixels (default %(default)s)")
    add("--fov", type=float, default=default.fov,
        help="side of a stamp [deg]; with a split by sky, tells whose stamps may overlap "
        "(default %(default)s)")  # fmt: skip
    add("--duplicate-radius", type=float, default=default.duplicate_radius,
        help="positions this close [arcsec] are one galaxy (default %(default)s)")  # fmt: skip
    add("--min-b-labelled", type=float, help="least |b| [deg] (default: no cut)")
    add("--min-b-unlabelled", type=float, help="least |b| [deg] (default: no cut; the paper: 15)")
    add("--max-photoz", type=float,
        help="highest photo-z, unlabelled (default: no cut; the paper: 0.8)")  # fmt: skip
    add("--missing-photoz", choices=("keep", "drop"), default=default.missing_photoz,
        help="unlabelled galaxies without a photo-z (default %(default)s)")  # fmt: skip
    add("--seed", type=int, default=default.seed, help="of the splits (default %(default)s)")
    return parser


if __name__ == "__main__":
    run.start(main)
