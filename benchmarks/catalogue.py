"""From SQL to shards at SDSS's size: peak memory and time of the queries and of the catalogue.

`python benchmarks/catalogue.py` makes a DuckDB database with DR12's tables for 1.7 million galaxies
on 938,046 fields of 765 runs: numbers are random, but places, ids and counts are as in Hayat et al.
2020 (547,224 spectra of 502,977 galaxies; the rest unlabelled), with repeat spectra, neighbours
within an arcsecond, galaxies near the Galactic plane and galaxies without photo-z or beyond the
limit, a known number of each. It runs the four queries and the catalogue of 400 shards on it, each
as a process of its own. The table shows what each took, and for every count what was put in beside
what came out: a row that a query found must be a galaxy or a rejected row with the right reason.
With `--engine casjobs` the queries are batch jobs of CasJobs, brought home in pages.
The last line is one line of JSON with the figures. It fails where a count is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import duckdb
import measure
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import serving

from pipeline import run
from pipeline.run import UserError
from pipeline.settings import ROOT
from pipeline.survey import positions
from pipeline.survey.credentials import PASSWORD as PASSWORD_VARIABLE
from pipeline.survey.credentials import USER as USER_VARIABLE
from pipeline.survey.dr12 import DUCKDB_TYPES, columns
from pipeline.survey.fields import MARGIN, equatorial
from pipeline.survey.names import BANDS, FIELD_STEP, FRAME_SHAPE, RERUN, pack_objid

QUERIES = ("labelled", "unlabelled", "fields", "morphology")
ALIASES = {
    "PhotoObjAll": "po", "SpecObjAll": "za", "Photoz": "zp", "galSpecInfo": "zi", "zooSpec": "zs",
    "Field": "f",
}  # fmt: skip
"""The tables, and what the queries call them."""
GALAXIES, FIELDS, RUNS, SHARDS = 1_700_000, 938_046, 765, 400
FUNNEL, REJECTED = "catalog.json", "catalog-rejected.parquet"
LEAST = 3000
"""With fewer galaxies there are fewer fields than shards."""
SEED = 1
MIN_B, MAX_PHOTOZ = 15.0, 0.8
FIELD_REACH = 0.3
"""Degrees; no pixel of a field is so far from its centre."""
PIXEL = 0.396 / 3600
NODE, INCL = 95.0, 32.5
"""The runs scan along parallels of one tilted sphere [deg], side by side: no two overlap."""
FIRST_FIELD = 11
CAMCOL_STEP = 0.23
"""From one camera column to the next [deg]; a frame is 0.2253 wide."""
BLOCK = 10_000
"""Fields whose rows are in memory at once."""


class Kind(NamedTuple):
    """Galaxies made alike: how many of `GALAXIES` there are, and what the tables have of each.

    `spectra` of the galaxy itself; `twin`: those of a second object 0.5 arcsec away, -1 for no
    such object; `photoz`: nan for one that is drawn, -1 for none.
    """

    count: int
    spectra: int = 0
    twin: int = -1
    photoz: float = np.nan


KINDS = {
    "one spectrum": Kind(458_230, spectra=1),
    "two spectra": Kind(43_747, spectra=2),
    "beside one with a spectrum": Kind(500, spectra=1, twin=1),
    "beside one without": Kind(500, spectra=1, twin=0),
    "no spectrum": Kind(1_172_023),
    "no spectrum, beside another": Kind(1_000, twin=0),
    "no photo-z": Kind(24_000, photoz=-1),
    "beyond the limit": Kind(6_000, photoz=0.9),
    "near the plane": Kind(60_000),
}
"""The last two kinds end as rejected rows, all others as galaxies of the catalogue."""
SPECTRA, TWIN, PHOTOZ = np.array([kind[1:] for kind in KINDS.values()]).T
VOTED = 250_000 / 502_977
"""The share of the galaxies with spectra that zooSpec has."""
PLAIN, KEPT, PLANE = (
    list(KINDS).index(name) for name in ("no spectrum", "beyond the limit", "near the plane")
)


@dataclass(frozen=True)
class Plan:
    """The sky: fields in order of run, camcol, field, and the galaxies on each.

    mu and nu [deg] are of a field's corner, row 0 and column 0; a row is `step` [deg of mu] long.
    The galaxies of field k are `first[k]` to `first[k + 1]`; `kind` counts in `KINDS`.
    """

    run: np.ndarray
    camcol: np.ndarray
    field: np.ndarray
    mu: np.ndarray
    nu: np.ndarray
    step: np.ndarray
    first: np.ndarray
    kind: np.ndarray

    def fields(self) -> np.ndarray:
        """The field of each galaxy."""
        return np.repeat(np.arange(len(self.run)), np.diff(self.first))

    def latitude(self) -> np.ndarray:
        """|b| [deg] of each field's centre."""
        ra, dec = self.sky(np.arange(len(self.run)), FRAME_SHAPE[0] / 2, FRAME_SHAPE[1] / 2)
        return np.abs(positions.galactic_latitude(ra, dec))

    def sky(self, fields, row, column) -> tuple[np.ndarray, np.ndarray]:
        """ra, dec [deg] of a row and column (SDSS's, in r) of each of the fields."""
        mu = self.mu[fields] + self.step[fields] * row
        return equatorial(mu, self.nu[fields] + PIXEL * column, NODE, INCL)


def kinds_of(galaxies: int) -> np.ndarray:
    """How many of each kind there are where `galaxies` end in the catalogue."""
    counts = [max(1, round(kind.count * galaxies / GALAXIES)) for kind in KINDS.values()]
    counts[PLAIN] += galaxies - sum(counts[:KEPT])
    return np.array(counts)


def make_plan(galaxies: int, weigh: Callable[[Plan], np.ndarray] | None = None) -> Plan:
    """Lay fields out and put three or four galaxies on each of about half of them.

    `weigh` is given the plan without galaxies and returns a weight for each field: galaxies fall
    on the fields by chance then, as often as the weights say. Those near the Galactic plane lie
    three or four on a field in any case.
    """
    rng = np.random.default_rng(SEED)
    place = _strips(round(FIELDS * galaxies / GALAXIES))
    bare = Plan(*place, first=np.array([]), kind=np.array([]))
    latitude = bare.latitude()
    counts = kinds_of(galaxies)
    number = np.zeros(len(bare.run), np.int64)
    plane = latitude < MIN_B - FIELD_REACH
    number += _evenly(rng, plane, counts[PLANE])
    rest, others = latitude > MIN_B + FIELD_REACH, counts.sum() - counts[PLANE]
    if weigh is None:
        number += _evenly(rng, rest, others)
    else:
        weights = weigh(bare) * rest
        number += rng.multinomial(others, weights / weights.sum())
    kind = np.full(counts.sum(), PLANE, np.uint8)
    others = np.repeat(np.arange(len(KINDS), dtype=np.uint8), counts)
    kind[~np.repeat(plane, number)] = rng.permutation(others[others != PLANE])
    return Plan(*place, first=np.concatenate([[0], np.cumsum(number)]), kind=kind)


def _evenly(rng, where: np.ndarray, total: int) -> np.ndarray:
    """`total` galaxies, three or four each on fields chosen among those `where`; (fields,)."""
    number = np.zeros(len(where), np.int64)
    chosen = rng.choice(np.flatnonzero(where), -(-2 * total // 7), replace=False)
    number[chosen] = total // len(chosen)
    number[chosen[: total % len(chosen)]] += 1
    return number


def _strips(fields: int) -> tuple[np.ndarray, ...]:
    """run, camcol, field, mu, nu, step of `fields` fields: at most `RUNS` runs all over the sky."""
    runs = min(RUNS, -(-fields // 60))
    strips = 6 * runs
    length = fields // strips + (np.arange(strips) < fields % strips)
    strip = np.repeat(np.arange(strips), length)
    number = np.arange(fields) - np.repeat(np.cumsum(length) - length, length)
    mu, nu, step = _slots(runs, (length.max() * FIELD_STEP + FRAME_SHAPE[0]) * PIXEL)
    run_, camcol = strip // 6, strip % 6
    return (
        94 + 10 * run_, 1 + camcol, FIRST_FIELD + number,
        mu[run_] + number * FIELD_STEP * step[run_], nu[run_] + camcol * CAMCOL_STEP, step[run_],
    )  # fmt: skip


def _slots(runs: int, length: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mu, nu [deg] of the first corner of each run, and the length of a row in mu."""
    height, slots = 6 * CAMCOL_STEP, []
    for nu in np.arange(-56, 56) * height:
        cosine = np.cos(np.radians(max(abs(nu), abs(nu + height))))
        each = length / cosine
        slots += [(k * each, nu, PIXEL / cosine) for k in range(int(360 / each))]
    if len(slots) < runs:
        raise UserError("--galaxies: the sky has not as many fields; give 1700000 or fewer")
    chosen = np.linspace(0, len(slots) - 1, runs).round().astype(int)
    return tuple(np.array(slots)[chosen].T)


def blocks(plan: Plan) -> Iterator[dict[str, dict]]:
    """The rows of the tables, some fields at a time: name of a table -> its columns or scalars."""
    for start in range(0, len(plan.run), BLOCK):
        yield _block(plan, start, min(start + BLOCK, len(plan.run)))


def _block(plan: Plan, start: int, stop: int) -> dict[str, dict]:
    rng = np.random.default_rng([SEED, start])
    begin, end = plan.first[start], plan.first[stop]
    number = np.diff(plan.first[start : stop + 1])
    fields, kind = np.repeat(np.arange(start, stop), number), plan.kind[begin:end]
    order = np.arange(begin, end) - plan.first[fields]
    along = (order + rng.uniform(0.1, 0.9, len(order))) / np.repeat(number, number)
    row = MARGIN + FIELD_STEP * along  # so no two are closer than a tenth of a field
    column = rng.uniform(MARGIN, FRAME_SHAPE[1] - MARGIN, len(row))
    galaxy, role = _objects(kind)
    place = fields[galaxy]
    ids = pack_objid(
        plan.run[place], plan.camcol[place], plan.field[place], 1 + order[galaxy] + 100 * role
    )
    sort = np.argsort(ids)
    galaxy, role, place, ids = galaxy[sort], role[sort], place[sort], ids[sort]
    shift = np.where(role == 1, 0.5 / 3600 / PIXEL, 0)
    spectra = np.choose(role, [SPECTRA[kind[galaxy]], np.maximum(TWIN[kind[galaxy]], 0), 0])
    before = np.bincount(plan.kind[:begin], minlength=len(KINDS))
    return {
        "PhotoObjAll": _photo(plan, place, row[galaxy], column[galaxy] + shift, ids, role, rng),
        "Photoz": _photoz(ids, PHOTOZ[kind[galaxy]], rng),
        "Field": _fields(plan, start, stop, rng),
        **_spectra(ids, spectra.astype(int), int(before @ (SPECTRA + np.maximum(TWIN, 0))), rng),
        "zooSpec": _votes(ids[(spectra > 0) & (role == 0)], int(before @ (SPECTRA > 0)), rng),
    }


def _objects(kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The objects of galaxies: which galaxy, and 0 for itself, 1 for its twin, 2 for another view.

    Every tenth galaxy was seen in another run too (mode 2), which no query may find.
    """
    parts = (np.arange(len(kind)), np.flatnonzero(TWIN[kind] >= 0), np.arange(0, len(kind), 10))
    return np.concatenate(parts), np.repeat([0, 1, 2], [len(part) for part in parts])


def _photo(plan: Plan, place, row, column, ids, role, rng) -> dict:
    ra, dec = plan.sky(place, row, column)
    table = {
        "objID": ids, "mode": np.where(role == 2, 2, 1), "type": 3, "clean": 1, "insideMask": 0,
        "flags": rng.integers(1 << 40, size=len(ids)), "run": plan.run[place], "rerun": RERUN,
        "camcol": plan.camcol[place], "field": plan.field[place], "ra": ra, "dec": dec,
        "b": positions.galactic_latitude(ra, dec),
    }  # fmt: skip
    dust = rng.uniform(0.02, 0.4, len(ids))
    bright = 17.75 - rng.exponential(0.6, len(ids))  # in r, without dust
    for k, band in enumerate(BANDS):
        table[f"rowc_{band}"], table[f"colc_{band}"] = row + 2.5 * (2 - k), column
        table[f"extinction_{band}"] = dust * (1.87, 1.38, 1.0, 0.76, 0.54)[k]
        color = rng.normal((2.5, 0.8, 0, -0.4, -0.7)[k], 0.1 * (k != 2), len(ids))
        table[f"petroMag_{band}"] = bright + color + table[f"extinction_{band}"]
        table[f"modelMag_{band}"] = table[f"petroMag_{band}"] + rng.normal(0, 0.05, len(ids))
    return table


def _photoz(ids, photoz, rng) -> dict:
    """Half of the galaxies without photo-z have no row, the others a failed one."""
    z = np.where(np.isnan(photoz), rng.uniform(0.01, 0.4, len(ids)), photoz)
    z = np.where(z < 0, np.where(ids % 2, np.nan, -9999), z)
    there = ~np.isnan(z)
    error = np.where(z < 0, -9999, rng.uniform(0.01, 0.05, len(z)))
    return {"objID": ids[there], "z": z[there], "zErr": error[there]}


def _spectra(ids, number, before: int, rng) -> dict[str, dict]:
    """SpecObjAll and galSpecInfo: `number` spectra of each object, after `before` others."""
    best = np.repeat(ids, number)
    turn = np.arange(len(best)) - np.repeat(np.cumsum(number) - number, number)
    is_twin = best % (1 << 16) > 100  # of a larger error, so that the galaxy itself stays
    plate, fiber = np.divmod(before + np.arange(len(best)), 640)
    spectrum = ((266 + plate) << 50) + ((1 + fiber) << 38) + (2000 << 24) + (26 << 10)
    found = {
        "specObjID": spectrum, "bestObjID": best, "sciencePrimary": 1 - turn, "class": "GALAXY",
        "subClass": "STARFORMING", "z": rng.uniform(0.01, 0.39, len(best)),
        "zErr": rng.uniform(5e-6, 5e-5, len(best)) * np.where(is_twin, 10, 1), "zWarning": 0,
        "targetType": "SCIENCE", "survey": "sdss",
    }  # fmt: skip
    info = {
        "specObjID": spectrum, "primtarget": 64, "sectarget": 0, "targettype": "GALAXY",
        "spectrotype": "GALAXY", "subclass": "", "e_bv_sfd": rng.uniform(0.01, 0.2, len(best)),
    }  # fmt: skip
    return {"SpecObjAll": found, "galSpecInfo": info}


def _votes(ids, before: int, rng) -> dict:
    """zooSpec has an even part of the labelled galaxies, of which `before` came earlier."""
    number = before + np.arange(len(ids) + 1)
    chosen = ids[np.diff(np.floor(number * VOTED)) > 0]
    p = rng.dirichlet(np.ones(6), len(chosen)).T
    names = ("p_el", "p_cw", "p_acw", "p_edge", "p_dk", "p_mg")
    return dict(zip(names, p, strict=True)) | {
        "specobjid": chosen, "objid": chosen, "nvote": rng.integers(10, 70, len(chosen)),
        "p_cs": p[1] + p[2] + p[3], "p_el_debiased": p[0], "p_cs_debiased": p[1:4].sum(axis=0),
        "spiral": p[1:4].sum(axis=0) > 0.8, "elliptical": p[0] > 0.8, "uncertain": 0,
    }  # fmt: skip


def _fields(plan: Plan, start: int, stop: int, rng) -> dict:
    k, (height, width) = np.arange(start, stop), FRAME_SHAPE
    ra, dec = plan.sky(k, height / 2, width / 2)
    mu, nu, step = plan.mu[k], plan.nu[k], plan.step[k]
    table = {
        "fieldID": pack_objid(plan.run[k], plan.camcol[k], plan.field[k], 0), "run": plan.run[k],
        "rerun": RERUN, "camcol": plan.camcol[k], "field": plan.field[k], "ra": ra, "dec": dec,
        "raMin": ra - 0.1, "raMax": ra + 0.1, "decMin": dec - 0.1, "decMax": dec + 0.1,
        "muStart": mu + MARGIN * step, "muEnd": mu + (MARGIN + FIELD_STEP) * step,
        "nuStart": nu + MARGIN * PIXEL, "nuEnd": nu + (width - MARGIN) * PIXEL,
        "score": rng.uniform(0.6, 0.95, len(k)), "quality": 3, "primaryArea": 0.0316,
    }  # fmt: skip
    for number, band in enumerate(BANDS):
        table |= {
            f"psfWidth_{band}": rng.uniform(0.9, 1.6, len(k)),
            f"sky_{band}": rng.uniform(0.5, 9, len(k)),
            f"gain_{band}": 1.6 + 0.5 * plan.camcol[k], f"darkVariance_{band}": 1.2,
            f"a_{band}": mu - 2.5 * (2 - number) * step, f"b_{band}": step, f"c_{band}": 0.0,
            f"d_{band}": nu, f"e_{band}": 0.0, f"f_{band}": PIXEL,
        }  # fmt: skip
    return table


def used_columns() -> dict[str, dict[str, str]]:
    """The columns that queries/*.sql name and their DuckDB types, by table."""
    text = "\n".join((ROOT / "queries" / f"{name}.sql").read_text() for name in QUERIES)
    used = {match.lower() for match in re.findall(r"\b\w+\.\w+", text)}
    return {
        table: {
            name: DUCKDB_TYPES[kind]
            for name, kind in columns(table).items()
            if f"{alias}.{name}".lower() in used
        }
        for table, alias in ALIASES.items()
    }


def write_database(plan: Plan, path: Path) -> None:
    """Make the tables, in order of objID, and write them whole."""
    tables = used_columns()
    with (
        run.whole_file(path) as part,
        duckdb.connect(part, config={"threads": 1, "memory_limit": "400MB"}) as database,
    ):
        for table, kinds in tables.items():
            listed = ", ".join(f'"{name}" {kind} NOT NULL' for name, kind in kinds.items())
            database.execute(f"CREATE TABLE {table} ({listed})")
        progress = run.Progress("database", len(plan.run), "fields")
        for block in blocks(plan):
            for table, rows in block.items():
                database.register("incoming", _arrow(rows, list(tables[table])))
                database.execute(f"INSERT INTO {table} SELECT * FROM incoming")
                database.unregister("incoming")
            progress.add(min(BLOCK, len(plan.run) - progress.done))
        progress.close()


def _arrow(rows: dict, names: list[str]) -> pa.Table:
    count = next(len(values) for values in rows.values() if np.ndim(values))
    return pa.table({
        name: pa.array(rows[name]) if np.ndim(rows[name]) else pa.repeat(rows[name], count)
        for name in names
    })  # fmt: skip


def expected(plan: Plan) -> dict[str, int]:
    """The counts that follow from what was put in, by name; `found` tells what came out."""
    each = np.bincount(plan.kind, minlength=len(KINDS))
    count = dict(zip(KINDS, each.tolist(), strict=True))
    labelled, kept = int(each @ (SPECTRA > 0)), plan.kind < KEPT
    doubled = count["beside one with a spectrum"] + count["beside one without"]
    beside = "within 1 arcsec of another galaxy"
    return {
        "labelled": int(each @ (SPECTRA + np.maximum(TWIN, 0))),
        "unlabelled": int(each @ (1 + (TWIN >= 0))),
        "fields": len(plan.run),
        "morphology": int(labelled * VOTED),
        "galaxies": int(kept.sum()),
        "galaxies with a redshift": labelled,
        "galaxies with votes": int(labelled * VOTED),
        "galaxies of a known field": int(kept.sum()),
        "fields with galaxies": len(np.unique(plan.fields()[kept])),
        "shards": SHARDS,
        "labelled: repeat spectrum of an object": count["two spectra"],
        f"labelled: {beside}": count["beside one with a spectrum"],
        "unlabelled: is in the labelled sample": labelled + doubled,
        f"unlabelled: {beside}": count["no spectrum, beside another"],
        "unlabelled: |b| below 15 deg": count["near the plane"],
        "unlabelled: photo-z above 0.8": count["beyond the limit"],
        "rows that are neither": 0,
    }


def found(folder: Path) -> dict[str, int]:
    """The counts of the files that the queries and the catalogue wrote."""
    files = {name: pq.ParquetFile(folder / f"{name}.parquet") for name in (*QUERIES, "catalog")}
    counts = {name: files[name].metadata.num_rows for name in QUERIES}
    names = ["objID", "z", "nvote", "psfWidth_r", "shard"]
    galaxies, funnel = files["catalog"].read(names), json.loads((folder / FUNNEL).read_text())
    rejected = pq.read_table(folder / REJECTED, columns=["objID", "sample", "reason"])
    counts |= {
        "galaxies": galaxies.num_rows,
        "galaxies with a redshift": pc.count(galaxies["z"]).as_py(),
        "galaxies with votes": pc.count(galaxies["nvote"]).as_py(),
        "galaxies of a known field": pc.count(galaxies["psfWidth_r"]).as_py(),
        "fields with galaxies": funnel["fields"],
        "shards": len(pc.unique(galaxies["shard"])),
    }
    for row in rejected.group_by(["sample", "reason"]).aggregate([([], "count_all")]).to_pylist():
        counts[f"{row['sample']}: {row['reason']}"] = row["count_all"]
    queried = [files[name].read(["objID"])["objID"] for name in ("labelled", "unlabelled")]
    ended = [galaxies["objID"], rejected["objID"]]
    return counts | {"rows that are neither": _differences(_sorted(queried), _sorted(ended))}


def _sorted(columns: list[pa.ChunkedArray]) -> np.ndarray:
    return np.sort(np.concatenate([column.to_numpy() for column in columns]))


def _differences(one: np.ndarray, other: np.ndarray) -> int:
    if len(one) != len(other):
        return abs(len(one) - len(other))
    return int(np.count_nonzero(one != other))


def run_all(database: Path, folder: Path, engine: str = "duckdb") -> dict[str, dict]:
    """Run the queries and the catalogue: wall_s, cpu_s, peak_mb and file_mb of each, by name."""
    costs = {}
    with asked(database, folder, engine) as words:
        for name in QUERIES:
            output = folder / f"{name}.parquet"
            costs[name] = _cost("query", output, *words, "--sql", ROOT / f"queries/{name}.sql")
    words = [word for name in QUERIES for word in (f"--{name}", folder / f"{name}.parquet")]
    words += ["--funnel", folder / FUNNEL, "--rejected", folder / REJECTED, "--shards", SHARDS]
    words += ["--min-b-unlabelled", MIN_B, "--max-photoz", MAX_PHOTOZ]
    costs["catalog"] = _cost("catalog", folder / "catalog.parquet", *words)
    return costs


@contextlib.contextmanager
def asked(database: Path, folder: Path, engine: str) -> Iterator[list]:
    """The flags of `pipeline.query` for an engine; CasJobs is served over the database."""
    if engine == "duckdb":
        yield ["--engine", engine, "--source", database]
        return
    os.environ |= {USER_VARIABLE: serving.USER, PASSWORD_VARIABLE: serving.PASSWORD}
    with serving.services(database, folder, folder / "services") as at:
        yield ["--engine", engine, "--source", at["casjobs"], "--login", at["login"],
               "--drop-tables", "--poll", 0.5, "--requests-per-minute", 6000]  # fmt: skip


def _cost(stage: str, output: Path, *words: object) -> dict[str, float]:
    words = [str(word) for word in ("-m", f"pipeline.{stage}", *words, "--output", output)]
    return measure.peak(*words) | {"file_mb": round(output.stat().st_size / 1e6, 1)}


def report(costs: dict[str, dict], counts: dict[str, tuple[int, int]]) -> str:
    """Costs, and what was put in beside what came out, as text."""
    lines = [f"{'':12}{'rows':>12}{'s':>9}{'CPU s':>9}{'peak MB':>9}{'file MB':>9}"]
    for name, cost in costs.items():
        rows = counts["galaxies" if name == "catalog" else name][1]
        figures = "".join(f"{cost[key]:9.1f}" for key in ("wall_s", "cpu_s", "peak_mb", "file_mb"))
        lines.append(f"{name:12}{rows:12,}{figures}")
    lines += ["", f"{'':52}{'put in':>12}{'came out':>12}"]
    lines += [f"{name:52}{put:12,}{came:12,}" for name, (put, came) in counts.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Make the database, measure, check, and print the table and one line of JSON."""
    parser = argparse.ArgumentParser(prog="python benchmarks/catalogue.py", description=__doc__)
    add = parser.add_argument
    add("--galaxies", type=int, default=GALAXIES, metavar="N",
        help="of the catalogue; all else goes with it (default %(default)s)")  # fmt: skip
    add(
        "--work",
        type=Path,
        default=ROOT / "benchmarks/results/catalogue",
        metavar="DIR",
        help="where files are kept; a database that is there is used again (default %(default)s)",
    )
    add("--engine", choices=("duckdb", "casjobs"), default="duckdb",
        help="of the queries; casjobs: served on this machine (default %(default)s)")  # fmt: skip
    add("--database-only", action="store_true", help="make the database and print its path")
    args = parser.parse_args(argv)
    if args.galaxies < LEAST:
        raise UserError(f"--galaxies {args.galaxies}: give {LEAST} or more, for {SHARDS} shards")
    plan = make_plan(args.galaxies)
    database = args.work / f"survey-{args.galaxies}.duckdb"
    if not database.is_file():
        write_database(plan, database)
    if args.database_only:
        print(database)
        return
    costs, put = run_all(database, args.work, args.engine), expected(plan)
    came = found(args.work)
    counts = {name: (put.get(name, 0), came.get(name, 0)) for name in {**put, **came}}
    print(report(costs, counts))
    wrong = [name for name, (one, other) in counts.items() if one != other]
    print(json.dumps({"galaxies": came["galaxies"], "cost": costs, "counts": came, "wrong": wrong}))
    if wrong:
        raise UserError(f"{', '.join(wrong)}: not as many as were put in; see the table")


if __name__ == "__main__":
    run.start(main)
