"""Batches: the same ones with any workers, from any step, on any number of ranks."""

import gc
import multiprocessing
import os
import signal

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sets import make_catalog, write_set

from pipeline.images.reader import ImageSet, members, open_set
from pipeline.learning.batches import Batches, in_order
from pipeline.run import UserError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """53 labelled and unlabelled galaxies for training, in three files of unequal length."""
    catalog = make_catalog(80, shards=3)
    catalog.loc[catalog.index < 40, "shard"] = 0
    whole = open_set(write_set(tmp_path_factory.mktemp("set"), catalog))
    return whole.take(members(whole, "train+unlabelled"))


def same(one, other):
    """Whether two batches are the same in every respect."""
    return (
        (one.step, one.epoch) == (other.step, other.epoch)
        and np.array_equal(one.index, other.index)
        and np.array_equal(one.objid, other.objid)
        and torch.equal(one.images, other.images)
        and torch.equal(one.extinction, other.extinction)
        and torch.equal(one.z.nan_to_num(-1), other.z.nan_to_num(-1))
    )


def all_same(some, others):
    return all(same(one, other) for one, other in zip(some, others, strict=True))


def test_a_batch_is_what_the_set_has_of_its_galaxies(images):
    batch = next(Batches(images, 10, seed=3).steps(4, 5))
    assert (batch.step, batch.epoch) == (4, 4 // (len(images) // 10))
    assert batch.objid.dtype == np.int64
    assert batch.objid.tolist() == images.objid[batch.index].tolist()
    assert np.array_equal(batch.images.numpy(), images.read(batch.index))
    assert batch.extinction.dtype == batch.z.dtype == torch.float32
    assert np.array_equal(batch.extinction.numpy(), images.extinction[batch.index])
    wanted = images.table["z"].to_numpy(np.float32)[batch.index]
    np.testing.assert_array_equal(batch.z.numpy(), wanted)
    assert np.isnan(wanted).any()
    assert np.isfinite(wanted).any()


def test_an_epoch_has_a_galaxy_once_and_the_next_another_order(images):
    batches = Batches(images, 10, seed=0)
    number = batches.steps_per_epoch
    assert number == len(images) // 10
    epochs = [
        np.concatenate([batch.index for batch in batches.steps(k * number, (k + 1) * number)])
        for k in range(6)
    ]
    for order in epochs:
        assert len(np.unique(order)) == len(order) == 10 * number
    assert len({tuple(order) for order in epochs}) == 6
    assert len({tuple(sorted(order)) for order in epochs}) > 1, "another rest is left out"
    assert not np.array_equal(Batches(images, 10, seed=1).order(0), batches.order(0))


def test_every_place_of_an_epoch_is_as_likely(images):
    batches = Batches(images, 10, seed=0)
    place = np.array([np.argsort(batches.order(epoch)) for epoch in range(600)])
    spread = np.sqrt((len(images) ** 2 - 1) / 12 / 600)
    assert np.abs(place.mean(axis=0) - (len(images) - 1) / 2).max() < 4.5 * spread


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 24),
    seed=st.integers(0, 2**40),
    first=st.integers(0, 60),
    length=st.integers(0, 12),
)
def test_a_resumed_run_goes_on_with_the_same_batches(images, batch, seed, first, length):
    unbroken = list(Batches(images, batch, seed).steps(0, first + length))
    resumed = Batches(images, batch, seed).steps(first, first + length)
    assert all_same(resumed, unbroken[first:])


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.integers(1, 6),
    each=st.integers(1, 6),
    seed=st.integers(0, 2**40),
    first=st.integers(0, 30),
)
def test_ranks_share_the_batch_of_one(images, ranks, each, seed, first):
    whole = list(Batches(images, ranks * each, seed).steps(first, first + 4))
    parts = [
        list(Batches(images, ranks * each, seed, rank=rank, ranks=ranks).steps(first, first + 4))
        for rank in range(ranks)
    ]
    for step, batch in enumerate(whole):
        for rank in range(ranks):
            part = parts[rank][step]
            assert part.index.tolist() == batch.index[rank::ranks].tolist()
            assert torch.equal(part.images, batch.images[rank::ranks])
            assert torch.equal(part.extinction, batch.extinction[rank::ranks])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_batches(images, workers):
    alone = Batches(images, 8, seed=1, memory_gb=0)
    assert alone.images.pixels is None
    wanted = list(alone.steps(5, 20))
    kept = Batches(images, 8, seed=1)
    assert kept.images.pixels is not None
    assert all_same(kept.steps(5, 20), wanted)
    read = Batches(images, 8, seed=1, workers=workers, memory_gb=0)
    assert all_same(read.steps(5, 20), wanted)
    assert all_same(read.steps(19, 20), wanted[-1:])
    assert all_same(in_order(images, 8, workers), list(in_order(images, 8)))


def test_the_order_knows_nothing_of_how_galaxies_are_filed(images):
    mixed = images.take(np.random.default_rng(0).permutation(len(images)))
    for one, other in zip(
        Batches(images, 9, seed=2).steps(0, 8), Batches(mixed, 9, seed=2).steps(0, 8), strict=True
    ):
        assert one.objid.tolist() == other.objid.tolist()
        assert torch.equal(one.images, other.images)


def test_in_order_leaves_none_out(images):
    batches = list(in_order(images, 10))
    assert [len(batch.index) for batch in batches] == [10] * 5 + [3]
    assert np.concatenate([batch.index for batch in batches]).tolist() == list(range(len(images)))
    assert [batch.step for batch in batches] == list(range(len(batches)))
    whole = torch.cat([batch.images for batch in batches]).numpy()
    assert np.array_equal(whole, images.read(np.arange(len(images))))
    assert list(in_order(images.take(np.array([], int)), 4)) == []


def test_steps_of_no_length(images):
    assert list(Batches(images, 10, seed=0).steps(7, 7)) == []


def test_a_batch_larger_than_the_set_is_refused(images):
    with pytest.raises(UserError, match=f"batch: 100, but the set has {len(images)} images"):
        Batches(images, 100, seed=0)
    with pytest.raises(UserError, match="batch: 0"):
        Batches(images, 0, seed=0)


def test_ranks_that_cannot_share_a_batch_are_refused(images):
    with pytest.raises(UserError, match="10 cannot be shared by 4 ranks"):
        Batches(images, 10, seed=0, ranks=4)


@pytest.fixture
def spoilt(tmp_path):
    """20 galaxies, one of them with an image of NaN; and its objID."""
    catalog = make_catalog(20, shards=1)
    (path,) = write_set(tmp_path, catalog)
    with h5py.File(path, "r+") as file:
        file["images"][13] = np.nan
    return open_set(path), catalog["objID"][13]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_of_nan_is_named_in_one_line(spoilt, workers):
    images, objid = spoilt
    with pytest.raises(UserError, match=f"0000.h5: the image of galaxy {objid}") as caught:
        list(in_order(images, 4, workers))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=f"galaxy {objid}"):
        list(Batches(images, 4, 0, workers, memory_gb=0).steps(0, 5))
    with pytest.raises(UserError, match=f"galaxy {objid}"):
        Batches(images, 4, 0, workers)


def test_a_worker_that_dies_is_told_in_one_line(images, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    batches = Batches(images, 8, seed=0, workers=1, memory_gb=0)
    monkeypatch.setattr(ImageSet, "read", die)
    with pytest.raises(UserError, match="give fewer workers") as caught:
        list(batches.steps(0, 4))
    assert "\n" not in str(caught.value)


def test_workers_end_with_the_batches_even_if_not_all_are_taken(images):
    before = set(multiprocessing.active_children())
    steps = Batches(images, 8, seed=0, workers=2, memory_gb=0).steps(0, 100)
    next(steps)
    assert len(set(multiprocessing.active_children()) - before) == 2
    steps.close()
    gc.collect()
    assert set(multiprocessing.active_children()) <= before
