"""Predictions of all runs -> metrics with intervals, tables and figures: photo-z, or types.

python -m pipeline.evaluate --predictions results/train/photoz --catalog results/catalog.parquet
    --output results/evaluate/photoz
python -m pipeline.evaluate --task morphology --predictions results/train/morphology
    --output results/evaluate/morphology
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pipeline import metrics, run
from pipeline.evaluation import figures, tables, type_figures, type_tables
from pipeline.evaluation.bins import VARIABLES, scores_in_bins
from pipeline.evaluation.efficiency import label_efficiency
from pipeline.evaluation.intervals import Bootstrap
from pipeline.evaluation.predictions import Sample, ensemble_files, read_sample
from pipeline.evaluation.scores import (
    CATALOGUE,
    Cell,
    Scored,
    cells,
    difference,
    differences,
    largest,
    method_rows,
    run_rows,
    score,
    score_row,
)
from pipeline.evaluation.type_scores import scores_of_types
from pipeline.evaluation.types import TypeSample, read_types

FORMAT, VERSION = "ugriz-evaluation", 1


def evaluate(sample: Sample, how: Bootstrap) -> dict:
    """Score every run, and the catalogue, on the test galaxies: the content of metrics.json.

    Keys: `test_galaxies` (counts), `catalogue` (with and without a photo-z), `labels` (training
    galaxies at fraction 1), `bootstrap`, and lists of rows: `runs` (a trained model each, the
    ensembles and the catalogue: their measures, and Kolmogorov-Smirnov and chi^2 tests of their
    PIT), `scores` (a start and fraction each, mean over seeds, with value, low and high of each
    measure), `differences` (paired; `of` minus `minus`, with p and excludes_zero),
    `label_efficiency`, `methods` (each start with its most labels, the least sigma_mad first, and
    its paired difference from that), `bins`. Measures are sigma_mad, eta (a fraction), bias, crps
    and pit_spread (`metrics`); null is what cannot be known. The catalogue's PDF is taken to be a
    Gaussian of its stated error.
    """
    chosen = cells(sample)
    members = sum(len(cell.seeds) for cell in chosen)
    progress = run.Progress("evaluate: bootstrap", 3 * members * how.number, "resamples")
    scored = score(sample, chosen, how, progress=progress)
    progress.close()
    known = sample.has_catalogue
    content = {
        "format": FORMAT,
        "format_version": VERSION,
        "test_galaxies": sample.counts,
        "catalogue": {"with": int(known.sum()), "without": int(np.sum(~known))},
        "labels": sample.labels,
        "bootstrap": {"resamples": how.number, "seed": how.seed, "level": metrics.LEVEL},
        "runs": run_rows(sample),
        "scores": [score_row(one, sample.labels) for one in scored],
        "differences": differences(scored),
        "label_efficiency": label_efficiency(scored, sample.labels),
    }
    in_bins, own, theirs = largest(chosen), [], None
    if known.any():
        own, theirs = _with_catalogue(sample, scored, how)
        content["scores"].append(score_row(theirs, sample.labels))
        content["differences"] += [difference(one, theirs) for one in own]
        in_bins.append(theirs.cell)
    content["methods"] = method_rows(scored, own, theirs, sample.labels)
    progress = run.Progress("evaluate: bins", len(VARIABLES) * len(in_bins), "columns")
    content["bins"] = scores_in_bins(sample, in_bins, how, progress)
    progress.close()
    return content


def _with_catalogue(sample: Sample, scored: list[Scored], how: Bootstrap):
    """(every cell, the catalogue) scored on the galaxies that have a photo-z in the catalogue."""
    known = sample.has_catalogue
    theirs = score(sample, [Cell(CATALOGUE, None, (0,), (sample.catalogue,))], how, known)[0]
    if known.all():
        return scored, theirs
    run.log.info(
        "evaluate: %d of %d test galaxies have no photo-z with its error in the catalogue; it is "
        "compared on the others", np.sum(~known), len(known),
    )  # fmt: skip
    chosen = [one.cell for one in scored]
    members = sum(len(cell.seeds) for cell in chosen)
    progress = run.Progress("evaluate: against the catalogue", 3 * members * how.number,
                            "resamples")  # fmt: skip
    own = score(sample, chosen, how, known, progress)
    progress.close()
    return own, theirs


def evaluate_types(sample: TypeSample, how: Bootstrap) -> dict:
    """Score every classifier of early and late types: the content of metrics.json.

    Keys, after format, version and task: those of `scores_of_types`. Measures are accuracy,
    precision and recall, of early types, and roc_auc; null is what cannot be known.
    """
    about = {"format": FORMAT, "format_version": VERSION, "task": "morphology"}
    return about | scores_of_types(sample, how)


def write(sample: Sample, content: dict, folder: str | Path) -> None:
    """Write metrics.json, table.md, scores.csv and the figures to `folder`, each whole."""
    folder = Path(folder)
    _write_tables(tables.to_markdown(content), tables.to_csv(content), folder)
    shown = largest(cells(sample))
    if sample.has_catalogue.any():
        shown.append(Cell(CATALOGUE, None, (0,), (sample.catalogue,)))
    figures.fig2(content, folder / "fig2.png")
    figures.redshifts(sample, shown, folder / "redshifts.png")
    figures.residuals(content, ("z", "r"), folder / "residuals.png")
    figures.residuals(content, ("e_bv", "seeing"), folder / "residuals-sky.png")
    figures.pit(sample, shown, folder / "pit.png")
    run.write_json(content, folder / "metrics.json")


def write_types(sample: TypeSample, content: dict, folder: str | Path) -> None:
    """As `write`, of types: metrics.json, table.md, scores.csv, counts.png and roc.png."""
    folder = Path(folder)
    _write_tables(type_tables.to_markdown(content), type_tables.to_csv(content), folder)
    type_figures.counts(content, folder / "counts.png")
    type_figures.roc_curves(sample, content, folder / "roc.png")
    run.write_json(content, folder / "metrics.json")


def _write_tables(markdown: str, csv: str, folder: Path) -> None:
    for name, text in (("table.md", markdown), ("scores.csv", csv)):
        with run.whole_file(folder / name) as part:
            part.write_text(text)


def main(argv: list[str] | None = None) -> None:
    """Command line: see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        description="Score the predictions of all runs on the test galaxies, with bootstrap "
        "intervals: metrics.json, table.md, scores.csv and figures.",
    )
    add = parser.add_argument
    add("--task", choices=("photoz", "morphology"), default="photoz", help="photoz without it")
    add(
        "--predictions",
        nargs="+",
        required=True,
        metavar="PATH",
        help="START/FRACTION-SEED/predictions.parquet of each run (of morphology: "
        "START/predictions-SEED.parquet), or folders with such below",
    )
    add("--catalog", help="photoz: the catalogue, with its own photo-z")
    add(
        "--photoz",
        nargs="+",
        action="extend",
        default=[],
        metavar="[START=]FILE",
        help="photoz: catalogues of ensembles, each another row of the table: `START ensemble`, "
        "compared with that start, or `ensemble`, compared with all",
    )
    add("--output", required=True, metavar="DIR", help="folder to write to")
    add("--bootstrap", type=int, default=2000, help="resamples behind an interval (2000)")
    add("--seed", type=int, default=0, help="seed of the resamples (0)")
    args = parser.parse_args(argv)
    _check(args)
    how = Bootstrap(args.bootstrap, args.seed)
    if args.task == "morphology":
        sample = read_types(args.predictions)
        content, line = evaluate_types(sample, how), type_tables.one_line
        write_types(sample, content, args.output)
    else:
        photoz = ensemble_files(args.photoz)
        sample = read_sample(args.predictions, args.catalog, photoz)
        content, line = evaluate(sample, how), tables.one_line
        write(sample, content, args.output)
    run.write_provenance(args.output, predictions=len(sample.runs))
    for row in content["scores"]:
        run.log.info("evaluate: %s", line(row))


def _check(args: argparse.Namespace) -> None:
    if args.bootstrap < 100:
        raise run.UserError(f"--bootstrap {args.bootstrap}: an interval needs 100 at least")
    if args.seed < 0:
        raise run.UserError(f"--seed {args.seed}: must be 0 or more")
    if args.task == "photoz" and not args.catalog:
        raise run.UserError("--task photoz needs --catalog, results/catalog.parquet")
    if args.task == "morphology" and (args.catalog or args.photoz):
        raise run.UserError("--task morphology takes neither --catalog nor --photoz; leave it out")


if __name__ == "__main__":
    run.start(main)
