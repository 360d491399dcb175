"""A photo-z model on any stamps: redshift PDFs with quality flags, in one Parquet catalogue.

The stamps are those of a dataset.json, of shards or export files, or are cut from an archive for
a table of galaxies; --split leaves those of one split. Several models are an ensemble: their PDFs
are averaged.

Columns of the catalogue, one row a galaxy, in the order of the stamps: objID, ra, dec, split, z
(spectroscopic, null = none), z_phot (mean of the PDF), z_median, z_low and z_high (16 and 84 %),
z_width (half of z_high - z_low), pdf (the probability in each bin), coverage (of the least covered
band), outlier_score (mean of 1 - cosine to the 10 nearest training galaxies, in the features of
the model; null for a model that does not keep them), beyond_training (a colour measured on the
stamp more than 0.1 mag outside the 0.5 to 99.5 % range of the training galaxies, a z_phot outside
their redshifts, or an outlier_score above that of 99.5 % of the valid galaxies) and photoz (the
survey's own, null = none). The schema's metadata `edges` are the edges of the bins, as JSON.

qp reads what --qp writes with qp.read(FILE); from the catalogue itself:

    table = pyarrow.parquet.read_table("catalog.parquet")
    edges = json.loads(table.schema.metadata[b"edges"])
    pdfs = numpy.stack(table["pdf"].to_numpy())
    ensemble = qp.Ensemble(qp.hist, {"bins": edges, "pdfs": pdfs})
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import metrics, run
from pipeline.images.disk import new_file
from pipeline.images.reader import ImageSet, members, open_set, warn_of_dust
from pipeline.images.shard import SPLITS
from pipeline.learning import domain
from pipeline.learning.augment import TURNS, check_crop
from pipeline.learning.batches import in_order
from pipeline.learning.nets import NETS
from pipeline.learning.predict import BATCH, apply
from pipeline.learning.ranks import DEVICES, choose_device, use_threads
from pipeline.learning.redshift import Bins, PhotozNet, load_model, summary
from pipeline.run import UserError

FORMAT = "ugriz-photoz"
ROWS = 4096
"""Of a row group: what is held in memory at a time."""


@dataclass(frozen=True)
class Model:
    """A net, how its images are to be given, and what it was trained on, where that is known."""

    net: PhotozNet
    deredden: bool
    turns: int
    domain: domain.Domain | None


@dataclass
class Score:
    """Spectroscopic and photometric redshifts of the galaxies of a split."""

    z: list[np.ndarray]
    z_phot: list[np.ndarray]


def load_models(paths: Sequence[str | Path], turns: int | None = None) -> list[Model]:
    """The models in `paths`; `turns` overrides how many turns of a stamp they average over.

    Raises:
        UserError: no model, or one whose bins are not those of the first.
    """
    models = []
    for path in paths:
        net, extra = load_model(path)
        if models and net.bins != models[0].net.bins:
            first = models[0].net.bins
            raise UserError(
                f"{path}: {net.bins.count} bins to z = {net.bins.upper:g}, those of {paths[0]} are "
                f"{first.count} to {first.upper:g}; an ensemble needs the same bins"
            )
        known = domain.from_state(extra.get("domain"))
        deredden = extra.get("deredden", True)
        models.append(Model(net, deredden, turns or extra.get("turns", 1), known))
    return models


def apply_models(
    models: Sequence[Model],
    images: ImageSet,
    output: Path,
    qp_file: Path | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> dict[str, Score]:
    """Write the catalogue of `images` to `output`, whole; see the module for its columns.

    `qp_file` gets the PDFs as qp's own HDF5. What is in memory does not grow with the set, but
    for the redshifts returned: by split, those of the galaxies that have spectra.

    Raises:
        UserError: images that cannot be read, are not finite or are smaller than a model's crop.
    """
    bins = models[0].net.bins
    for model in models:
        model.net.to(device).eval()
    scores: dict[str, Score] = {}
    progress = run.Progress("photoz", len(images), "galaxies")
    schema = _schema(bins)
    with contextlib.ExitStack() as stack:
        part = stack.enter_context(run.whole_file(output))
        writer = stack.enter_context(pq.ParquetWriter(part, schema, compression="zstd"))
        ensemble = None
        if qp_file:
            place = stack.enter_context(run.whole_file(qp_file))
            ensemble = stack.enter_context(_qp_file(place, images.objid, bins))
        held: list[pa.RecordBatch] = []
        for batch in in_order(images, BATCH, workers):
            columns = _columns(models, images, batch, device)
            _count(scores, columns)
            if ensemble is not None:
                ensemble["data/pdfs"][batch.index[0] : batch.index[-1] + 1] = columns["pdf"]
            held.append(_record(columns, schema))
            if sum(len(one) for one in held) >= ROWS:
                writer.write_table(pa.Table.from_batches(held))
                held = []
            progress.add(len(batch.index))
        if held:
            writer.write_table(pa.Table.from_batches(held))
    progress.close()
    return scores


def _columns(models, images: ImageSet, batch, device) -> dict[str, np.ndarray]:
    """All columns of a batch, NaN where a number is missing; beyond_training None where unknown."""
    found = [apply(model.net, batch, model.deredden, model.turns, device) for model in models]
    pdf = np.mean([one.pdf for one in found], axis=0)
    table = images.table.iloc[batch.index]
    columns = {name: table[name].to_numpy() for name in ("objID", "ra", "dec", "split", "z")}
    columns |= summary(pdf, models[0].net.bins)
    columns |= {"pdf": pdf.astype(np.float32), "coverage": table["coverage"].to_numpy()}
    scores, flags = [], []
    for model, one in zip(models, found, strict=True):
        if model.domain is not None:
            score = model.domain.score(one.features, one.objid)
            scores.append(score)
            flags.append(model.domain.beyond(one.colours, columns["z_phot"], score))
    none = np.full(len(pdf), np.nan)
    columns["outlier_score"] = np.mean(scores, axis=0) if scores else none
    # of an ensemble: what half of the models say
    columns["beyond_training"] = np.mean(flags, axis=0) >= 0.5 if flags else None
    columns["photoz"] = table["photoz"].to_numpy()
    return columns


def _schema(bins: Bins) -> pa.Schema:
    number = pa.float64()
    kinds = {
        "objID": pa.int64(), "ra": number, "dec": number, "split": pa.string(), "z": number,
        "z_phot": number, "z_low": number, "z_median": number, "z_high": number,
        "z_width": number, "pdf": pa.list_(pa.float32(), bins.count), "coverage": pa.float32(),
        "outlier_score": pa.float32(), "beyond_training": pa.bool_(), "photoz": number,
    }  # fmt: skip
    facts = {"format": FORMAT, "format_version": "1", "edges": json.dumps(bins.edges.tolist())}
    return pa.schema(list(kinds.items()), metadata=facts)


def _record(columns: dict[str, np.ndarray], schema: pa.Schema) -> pa.RecordBatch:
    """The columns as Arrow's; NaN becomes null, but for pdf, which has none."""
    arrays = []
    for field in schema:
        values = columns[field.name]
        if field.name == "pdf":
            flat = pa.array(values.ravel(), pa.float32())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
        elif values is None:
            arrays.append(pa.nulls(len(columns["objID"]), field.type))
        else:
            arrays.append(pa.array(values, field.type, from_pandas=True))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@contextlib.contextmanager
def _qp_file(path: Path, objid: np.ndarray, bins: Bins) -> Iterator[h5py.File]:
    """An HDF5 file as qp 1.1 writes a histogram ensemble; data/pdfs is to be filled."""
    with new_file(path) as (file, _):
        file["meta/pdf_name"] = np.array([b"hist"])
        file["meta/pdf_version"] = np.array([0])
        file["meta/bins"] = bins.edges[None]
        file["ancil/objID"] = objid
        file.create_dataset("data/pdfs", (len(objid), bins.count), "f8")
        yield file


def _count(scores: dict[str, Score], columns: dict[str, np.ndarray]) -> None:
    known = np.isfinite(columns["z"])
    for split in np.unique(columns["split"][known].astype(str)):
        rows = known & (columns["split"] == split)
        score = scores.setdefault(split, Score([], []))
        score.z.append(columns["z"][rows])
        score.z_phot.append(columns["z_phot"][rows])


def report(scores: dict[str, Score]) -> list[str]:
    """A line for each split whose galaxies have spectroscopic redshifts: how good z_phot is."""
    lines = []
    for split, score in sorted(scores.items()):
        dz = metrics.residuals(np.concatenate(score.z_phot), np.concatenate(score.z))
        lines.append(
            f"{split or 'all'}: {len(dz)} galaxies with spectra, sigma_mad "
            f"{metrics.sigma_mad(dz):.5f}, eta {100 * metrics.outlier_fraction(dz):.3f} %, "
            f"bias {metrics.bias(dz):+.5f}"
        )
    return lines


@contextlib.contextmanager
def _cut(galaxies: str, archive: str, stamps: Path | None, size: int, fov: float, workers: int):
    """Cut the stamps of a table of galaxies, by the stage that does it; yields the shard."""
    with tempfile.TemporaryDirectory(prefix="ugriz-photoz-") as folder:
        shard = stamps or Path(folder) / "stamps.h5"
        command = [
            sys.executable, "-m", "pipeline.cutouts", "--galaxies", galaxies, "--archive", archive,
            "--output", str(shard), "--size", str(size), "--fov", str(fov),
            "--workers", str(max(workers, 1)),
        ]  # fmt: skip
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"{galaxies}: no stamps could be cut, for the reason above")
        with h5py.File(shard) as file:
            lost = [reason.decode() for reason in file["failed/reason"][:]]
        if lost:
            kept = f"; see failed/ in {stamps}" if stamps else "; --stamps FILE keeps them all"
            run.log.info("%d galaxies have no stamp, the first: %s%s", len(lost), lost[0], kept)
        yield shard


def main(argv: list[str] | None = None) -> None:
    """Apply models from the command line; see `--help`."""
    args = _parser().parse_args(argv)
    use_threads(args.threads)
    if bool(args.galaxies) != bool(args.archive):
        raise UserError("--galaxies and --archive: give both, a table and where its frames lie")
    if args.qp and args.qp.resolve() == args.output.resolve():
        raise UserError(f"{args.qp}: named for the catalogue and for --qp; give two files")
    device = choose_device(args.device)
    models = load_models(args.model, args.turns)
    with contextlib.ExitStack() as stack:
        source = args.images or args.dataset
        if args.galaxies:
            source = stack.enter_context(
                _cut(args.galaxies, args.archive, args.stamps, args.size, args.fov, args.workers)
            )
        images = open_set(source)
        if args.split:
            images = images.take(members(images, args.split))
        for model in models:
            check_crop(model.net.encoder.spec.crop, images.size)
        if any(model.deredden or NETS[model.net.encoder.spec.net].dust for model in models):
            warn_of_dust(images)
        scores = apply_models(models, images, args.output, args.qp, device, args.workers)
    models = [run.sha256(path) for path in args.model]
    run.write_provenance(args.output, models=models, device=str(device))
    if args.dataset:
        scores.pop("test", None)  # of a whole set, evaluate alone looks at them
    for line in report(scores):
        print(line)


def _parser() -> argparse.ArgumentParser:
    switches = {"formatter_class": argparse.RawDescriptionHelpFormatter, "description": __doc__}
    parser = argparse.ArgumentParser(prog="python -m pipeline.photoz", **switches)
    add = parser.add_argument
    add("--model", nargs="+", required=True, metavar="M.pt", help="model.pt of the stage train, or "
        "the paper's checkpoint; several are an ensemble")  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="FILE", help="dataset.json: all its shards")
    source.add_argument("--images", nargs="+", metavar="F.h5", help="shards, export files or the "
                        "paper's released files")  # fmt: skip
    source.add_argument("--galaxies", metavar="TABLE", help="table with ra, dec, run, camcol, "
                        "field, whose stamps are cut from --archive")  # fmt: skip
    add("--archive", help="folder or URL with SAS's layout beneath")
    add("--split", choices=SPLITS, help="galaxies of this split alone (all galaxies)")
    add("--stamps", type=Path, metavar="F.h5", help="keep the stamps that are cut")
    add("--size", type=int, default=107, help="of stamps that are cut, pixels on a side (107)")
    add("--fov", type=float, default=0.012, help="and degrees on a side (0.012)")
    add("--output", type=Path, required=True, metavar="F.parquet", help="the catalogue to write")
    add("--qp", type=Path, metavar="F.hdf5", help="write the PDFs in qp's own format as well")
    add("--turns", type=int, choices=TURNS, help="turns of a stamp that PDFs average over (as the "
        "model says)")  # fmt: skip
    add("--device", choices=DEVICES, default="auto", help="(auto)")
    add("--threads", type=int, help="of torch (as many as cores)")
    add("--workers", type=int, default=0, help="processes that read (0)")
    return parser


if __name__ == "__main__":
    run.start(main)
