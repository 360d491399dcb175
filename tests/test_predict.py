"""A net applied to images: PDFs, averages over turns, the table of predictions."""

import numpy as np
import pytest
import torch
from small_photoz import SPEC, galaxies, small_net

from pipeline import metrics
from pipeline.learning import predict
from pipeline.learning.augment import centre
from pipeline.learning.colours import measure

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return galaxies(tmp_path_factory.mktemp("set"), count=40, labelled=1.0)


def joined(images, name, **options):
    return np.concatenate([getattr(one, name) for one in predict.outputs(small_net(), images,
                                                                         **options)])  # fmt: skip


def by_hand(images, turn):
    net = small_net().eval()
    pixels, extinction = torch.from_numpy(images.read(np.arange(len(images)))), images.extinction
    stamps = centre(pixels, torch.from_numpy(extinction), SPEC.crop, True, turn)
    with torch.no_grad():
        return net(stamps).double().softmax(dim=1).numpy(), measure(stamps).numpy()


def test_pdfs_are_the_softmax_of_the_net_and_sum_to_one(images):
    pdf = joined(images, "pdf", batch=7)
    assert pdf == pytest.approx(by_hand(images, 0)[0], abs=1e-7)
    assert pdf.sum(axis=1) == pytest.approx(1)
    assert np.array_equal(joined(images, "objid", batch=7), images.objid)


def test_pdfs_average_over_the_eight_turns_of_the_square(images):
    turns = np.stack([by_hand(images, turn)[0] for turn in range(8)])
    assert joined(images, "pdf", turns=8) == pytest.approx(turns.mean(axis=0), abs=1e-7)
    assert np.ptp(turns, axis=0).max() > 1e-5  # a turn is another input to the net


def test_colours_are_those_of_the_dereddened_stamp_whatever_the_net_is_given(images):
    expected = by_hand(images, 0)[1]
    assert joined(images, "colours", deredden=False) == pytest.approx(expected, abs=1e-5)


def test_predictions_are_sorted_and_scored_as_the_metrics_do(images):
    turned = images.take(np.random.default_rng(0).permutation(len(images)))
    table = predict.predictions(small_net(), turned)
    assert list(table.columns) == list(predict.COLUMNS)
    assert table["objID"].dtype == np.int64
    assert table["objID"].tolist() == sorted(images.objid)
    order = np.argsort(images.objid)
    pdf, z = joined(images, "pdf")[order], images.table["z"].to_numpy()[order]
    edges = small_net().bins.edges
    assert table["z"].to_numpy() == pytest.approx(z)
    assert table["z_phot"].to_numpy() == pytest.approx(pdf @ small_net().bins.centres, abs=1e-6)
    assert table["crps"].to_numpy() == pytest.approx(metrics.crps(pdf, edges, z), rel=1e-4)
    assert table["pit"].to_numpy() == pytest.approx(metrics.pit(pdf, edges, z), rel=1e-4)


def test_no_galaxies_give_an_empty_table_of_the_same_columns(images):
    table = predict.predictions(small_net(), images.take(np.zeros(0, int)))
    assert len(table) == 0 and list(table.columns) == list(predict.COLUMNS)
    assert table["objID"].dtype == np.int64
