"""The map itself: samples, clusters, seeds."""

import numba
import numpy as np
import pytest
from small_vectors import unit

from pipeline.run import UserError
from pipeline.similarity.umap_map import Projection, project, sample

IDS = 1237648720693755918 + 7 * np.arange(500)


def test_a_smaller_sample_is_part_of_a_larger_one_and_order_is_kept():
    small, large = sample(IDS, 50), sample(IDS, 200)
    assert len(small) == 50 and len(large) == 200
    assert set(small) < set(large)
    assert (np.diff(large) > 0).all()
    assert 0.3 < np.mean(large < 250) < 0.7, "from everywhere"


def test_a_sample_knows_ids_and_not_rows():
    turned = IDS[::-1]
    assert set(turned[sample(turned, 60)]) == set(IDS[sample(IDS, 60)])


@pytest.mark.parametrize("count", [0, 500, 501])
def test_all_are_taken_where_there_are_no_more(count):
    assert sample(IDS, count).tolist() == list(range(500))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"neighbours": 1}, "neighbours: 1; give 2 or more"),
        ({"min_dist": 1.5}, "min_dist: 1.5; give a number from 0 to 1"),
        ({"min_dist": float("nan")}, "min_dist: nan; give"),
        ({"seed": -1}, "seed: -1; give 0 or more"),
        ({"seed": 1 << 32}, "seed: 4294967296; give 0 or more, below"),
    ],
)
def test_what_makes_no_map_is_refused(how, message):
    with pytest.raises(UserError, match=message):
        Projection(**how)


def positions(count):
    return np.column_stack([np.linspace(10, 20, count), np.zeros(count)])


def test_fewer_galaxies_than_neighbours_are_refused():
    vectors = unit(np.random.default_rng(0), 15, 4)
    with pytest.raises(UserError, match="neighbours: 15, but the map has 15 galaxies; give fewer"):
        project(vectors, positions(15), Projection())


@pytest.fixture(scope="module")
def clusters():
    """120 vectors about one direction, 80 about another, in turn."""
    random = np.random.default_rng(1)
    second = random.permutation(200) < 80
    vectors = random.normal(0, 0.15, (200, 8))
    vectors[~second, 0] += 1
    vectors[second, 1] += 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), second


def test_two_clusters_of_vectors_are_two_on_the_map(clusters):
    vectors, second = clusters
    places = project(vectors, positions(200), Projection())
    assert places.shape == (200, 2) and places.dtype == np.float32
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(apart, np.inf)
    nearest = np.argsort(apart, axis=1)[:, :10]
    assert np.mean(second[nearest] == second[:, None]) > 0.99
    centres = np.array([places[~second].mean(axis=0), places[second].mean(axis=0)])
    scatter = np.mean([places[second].std(), places[~second].std()])
    assert np.linalg.norm(centres[0] - centres[1]) > 3 * scatter


def test_the_seed_alone_decides_the_map(clusters):
    vectors = clusters[0]
    first = project(vectors, positions(200), Projection(neighbours=10))
    threads = numba.get_num_threads()
    again = project(vectors, positions(200), Projection(neighbours=10))
    assert again.tobytes() == first.tobytes()
    assert numba.get_num_threads() == threads, "left as it was"
    other = project(vectors, positions(200), Projection(neighbours=10, seed=1))
    assert not np.allclose(other, first)


def test_equal_vectors_and_few_of_them_have_places():
    """A collapsed encoder, and the fewest galaxies that there may be."""
    same = np.tile(unit(np.random.default_rng(0), 1, 4), (40, 1))
    assert np.isfinite(project(same, positions(40), Projection())).all()
    few = unit(np.random.default_rng(0), 3, 4)
    assert np.isfinite(project(few, positions(3), Projection(neighbours=2))).all()
