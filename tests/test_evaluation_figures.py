"""The figures of evaluate: what is drawn lies on the canvas, and fills it."""

import matplotlib.image
import numpy as np
import pytest
from small_predictions import make_catalog, write_run, write_runs
from small_types import STARTS, truth, write_types

from pipeline import evaluate
from pipeline.evaluation.drawing import look_of
from pipeline.evaluation.intervals import Bootstrap
from pipeline.evaluation.predictions import read_sample
from pipeline.evaluation.types import read_types

FIGURES = ("fig2", "redshifts", "residuals", "residuals-sky", "pit")
TYPE_FIGURES = ("counts", "roc")
PAPERS = (0.025, 0.0625, 0.125, 0.25, 0.375, 0.625, 0.75, 0.875, 1.0)


def worse_and_better(folder, catalog):
    """Starts that are bounds on both sides of the supervised curve, with long names."""
    for fraction in (0.25, 0.5, 1.0):
        write_run(folder, catalog, "supervised", fraction, 0, 0.01 * fraction**-0.3)
        write_run(folder, catalog, "worse than supervised", fraction, 0, 0.03)
        write_run(folder, catalog, "better than supervised", fraction, 0, 0.006)


def single_run(folder, catalog):
    write_run(folder, catalog, "moco", 1, 0, 0.01)


def paper(folder, catalog):
    write_runs(folder, catalog, PAPERS)


@pytest.fixture(
    scope="module",
    params=[(worse_and_better, 38, True), (paper, 200, True), (paper, 60, False),
            (single_run, 12, False)],
    ids=["three starts", "the paper's fractions", "no photo-z in the catalogue", "one run"],
)  # fmt: skip
def drawn(request, tmp_path_factory):
    """Figure name -> a mask of what is not white."""
    write, count, photoz = request.param
    folder = tmp_path_factory.mktemp("figures")
    catalog = make_catalog(folder / "catalog.parquet", count)
    if not photoz:
        catalog.drop(columns="photoz").to_parquet(folder / "catalog.parquet", index=False)
    write(folder / "train", catalog)
    sample = read_sample([folder / "train"], folder / "catalog.parquet")
    evaluate.write(sample, evaluate.evaluate(sample, Bootstrap(100, 0)), folder)
    return {name: ink_of(folder / f"{name}.png") for name in FIGURES}


def ink_of(path):
    return matplotlib.image.imread(path)[..., :3].min(axis=2) < 0.98


@pytest.fixture(
    scope="module",
    params=[(STARTS, (100, 300, 1000), 300), (("moco", "pca"), (80, 100, 90, 5000), 200),
            (("supervised",), (50,), 30)],
    ids=["all starts", "counts near each other", "one run"],
)  # fmt: skip
def drawn_types(request, tmp_path_factory):
    """As `drawn`; one seed of the first start calls nothing early, which leaves a gap."""
    starts, labels, count = request.param
    folder = tmp_path_factory.mktemp("figures")
    for start in starts:
        for seed in (0, 1):
            write_types(folder, truth(count), start, seed, labels)
    sample = read_types([folder])
    first = next(iter(sample.runs))
    sample.runs[first] = sample.runs[first] / 3
    evaluate.write_types(sample, evaluate.evaluate_types(sample, Bootstrap(100, 0)), folder)
    return {name: ink_of(folder / f"{name}.png") for name in TYPE_FIGURES}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_runs_over_the_edge_of_a_figure(drawn, name):
    stays_within(drawn[name])


@pytest.mark.parametrize("name", TYPE_FIGURES)
def test_figures_of_types_fill_theirs_and_no_more(drawn_types, name):
    stays_within(drawn_types[name])
    fills(drawn_types[name])


@pytest.mark.parametrize("name", FIGURES)
def test_panels_fill_a_figure(drawn, name):
    fills(drawn[name])


def test_starts_look_the_same_in_figures_of_both_tasks():
    redshifts = look_of(["catalogue", "simclr", "moco", "supervised"])
    assert redshifts.items() <= look_of(["pca", "supervised", "simclr", "moco"]).items()


def stays_within(ink):
    assert not ink[[0, -1]].any() and not ink[:, [0, -1]].any()


def fills(ink):
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    # the line of the horizontal axes, which ends with the last panel
    axis = max(np.flatnonzero(line)[-1] for line in ink if line.mean() > 0.5)
    assert axis > 0.96 * ink.shape[1] and columns[0] < 0.04 * ink.shape[1]
    assert rows[0] < 0.08 * ink.shape[0] and rows[-1] > 0.92 * ink.shape[0]
