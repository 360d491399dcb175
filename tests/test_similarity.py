"""Neighbours against brute force, outliers, and the file of vectors."""

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run import UserError
from pipeline.similarity import neighbours, outliers, vectors
from pipeline.survey.positions import unit_vectors


def unit(random, count, size):
    values = random.standard_normal((count, size))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def everywhere(random, count):
    dec = np.degrees(np.arcsin(random.uniform(-1, 1, count)))
    return np.stack([random.uniform(0, 360, count), dec], axis=1)


def separation(one, other):
    """Arcsec between positions [deg], by the haversine formula: no unit vectors."""
    ra, dec, other_ra, other_dec = np.radians([*one, *other])
    half = np.sin((dec - other_dec) / 2) ** 2
    half += np.cos(dec) * np.cos(other_dec) * np.sin((ra - other_ra) / 2) ** 2
    return 3600 * np.degrees(2 * np.arcsin(np.sqrt(half)))


def brute_force(values, positions, k, queries, base, objid, apart=25.0):
    """Neighbours one by one, without faiss, trees or blocks."""
    rows = []
    for query in queries:
        found = []
        for other in base:
            if other != query and separation(positions[query], positions[other]) >= apart:
                similarity = (values[query].astype(float) * values[other]).sum()
                found.append((-similarity, objid[other], other))
        rows.append([row for *_, row in sorted(found)[:k]])
    return np.array(rows)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(12, 60),
    size=st.integers(1, 9),
    k=st.integers(1, 4),
    block=st.integers(1, 20),
    few=st.booleans(),
)
def test_neighbours_are_those_of_brute_force(seed, count, size, k, block, few):
    random = np.random.default_rng(seed)
    # few different vectors: most similarities are equal, and the objID decides
    values = (
        unit(random, 3, size)[random.integers(0, 3, count)] if few else unit(random, count, size)
    )
    positions = everywhere(random, count)
    pairs = random.integers(0, count - 6, 4)
    positions[:4] = positions[pairs] + random.uniform(-0.004, 0.004, (4, 2)) / [1, 2]
    positions[:, 1] = np.clip(positions[:, 1], -89, 89)
    objid = random.permutation(count) + 10**18
    queries = random.permutation(count)[: count // 2]
    base = np.sort(random.permutation(count)[: count - 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_BLOCK", block)
        patch.setattr(neighbours, "_SPARE", 0)
        found = neighbours.nearest(values, positions, k, queries, base, objid)
    expected = brute_force(values, positions, k, queries, base, objid)
    assert found.rows.tolist() == expected.tolist()
    close = (values[queries][:, None].astype(float) * values[expected]).sum(axis=2)
    assert np.array_equal(found.similarity, close)


@pytest.mark.parametrize(
    "positions",
    [
        [[359.9999, 10], [0.0001, 10], [0.02, 10]],
        [[0, 89.9999], [180, 89.9999], [90, 89.98]],
        [[10, -90], [200, -89.999], [200, -89.9]],
    ],
    ids=["RA 0", "north pole", "south pole"],
)
def test_pieces_of_one_object_are_no_neighbours(positions):
    values = np.ones((3, 1), np.float32)
    found = neighbours.nearest(values, np.array(positions), 1)
    assert found.rows.ravel().tolist() == [2, 2, 0]
    free = neighbours.nearest(values, np.array(positions), 2, apart=0)
    assert free.rows.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_a_pair_at_the_limit_is_kept_and_one_inside_is_not():
    inside, outside = 24.999 / 3600, 25.001 / 3600
    positions = np.array([[50, 0], [50, inside], [50, -outside], [70, 0]])
    values = unit(np.random.default_rng(0), 4, 3)
    found = neighbours.nearest(values, positions, 2, queries=[0])
    assert set(found.rows[0]) == {2, 3}


def test_blocks_and_threads_leave_no_trace(monkeypatch):
    random = np.random.default_rng(3)
    values, positions = unit(random, 700, 16), everywhere(random, 700)
    whole = neighbours.nearest(values, positions, 5)
    monkeypatch.setattr(neighbours, "_BLOCK", 13)
    neighbours.faiss.omp_set_num_threads(1)
    parts = neighbours.nearest(values, positions, 5)
    assert np.array_equal(whole.rows, parts.rows)
    assert np.array_equal(whole.similarity, parts.similarity)


def test_more_equals_than_are_asked_for_are_said(monkeypatch, caplog):
    monkeypatch.setattr(neighbours, "_MOST", 12)
    values = np.ones((40, 2), np.float32) / np.float32(np.sqrt(2))
    neighbours.nearest(values, everywhere(np.random.default_rng(0), 40), 3)
    assert "40 galaxies have more than 12 others as near" in caplog.text


def test_k_larger_than_the_set_is_refused():
    random = np.random.default_rng(0)
    values, positions = unit(random, 6, 3), everywhere(random, 6)
    positions[5] = positions[4]
    objid = np.arange(6) + 587722981742084000
    with pytest.raises(UserError, match=r"k = 5 .*galaxy 587722981742084004 has 4 .*at most 4"):
        neighbours.nearest(values, positions, 5, objid=objid)
    with pytest.raises(UserError, match="k = 0"):
        neighbours.nearest(values, positions, 0)


def test_the_lonely_one_is_the_first_outlier():
    random = np.random.default_rng(5)
    crowd = unit(random, 30, 8) * 0.1 + [[1, 0, 0, 0, 0, 0, 0, 0]]
    values = np.vstack([crowd, [[0, 0, 0, 0, 0, 0, 0, -1.0]]])
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    score = outliers.outlier_score(values, everywhere(random, 31), k=4)
    likeness = values.astype(float) @ values.T.astype(float)
    np.fill_diagonal(likeness, -2)
    assert np.allclose(score, 1 - np.sort(likeness, axis=1)[:, -4:].mean(axis=1), atol=1e-12)
    assert score.argmax() == 30


def test_equal_outliers_go_by_objid():
    table = pd.DataFrame({"objID": [5, 3, 9, 1], "z": [0.1, 0.2, 0.3, 0.4]})
    ranked = outliers.rank(table, np.array([0.5, 0.5, 0.9, 0.1]))
    assert ranked["objID"].tolist() == [9, 3, 5, 1]
    assert ranked["outlier_rank"].tolist() == [1, 2, 3, 4]
    assert ranked["outlier_score"].tolist() == [0.9, 0.5, 0.5, 0.1]


def small_table(count):
    random = np.random.default_rng(0)
    ra, dec = everywhere(random, count).T
    return pd.DataFrame(
        {"objID": np.arange(count) + 587722981742084000, "ra": ra, "dec": dec,
         "z": np.where(np.arange(count) % 2, np.nan, 0.1), "photoz": 0.2,
         "petroMag_r": 17.5,
         "split": np.resize(["test", "unlabelled"], count)}
    )  # fmt: skip


def write(path, dtype="float32", kinds=("contrastive", "pooled"), count=9):
    random = np.random.default_rng(1)
    values = {"contrastive": unit(random, count, 4), "pooled": random.uniform(0, 9, (count, 6))}
    values = {kind: values[kind] for kind in kinds}
    sizes = {kind: block.shape[1] for kind, block in values.items()}
    with vectors.VectorWriter(
        path, small_table(count), sizes, dtype, {"turns": 1, "crop": 64}
    ) as writer:
        for first in range(0, count, 4):
            writer.write(first, {kind: one[first : first + 4] for kind, one in values.items()})
    return values


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_are_read_as_they_were_written(tmp_path, dtype):
    path = tmp_path / "moco.h5"
    written = write(path, dtype)
    found = vectors.read_vectors(path)
    assert found.kind == "contrastive" and found.attrs["turns"] == 1
    pd.testing.assert_frame_equal(found.table, small_table(9), check_dtype=False)
    assert found.table["objID"].dtype == np.int64
    tolerance = 1e-6 if dtype == "float32" else 1e-3
    assert np.allclose(found.unit, written["contrastive"], atol=tolerance)
    pooled = vectors.read_vectors(path, "pooled").unit
    expected = written["pooled"] / np.linalg.norm(written["pooled"], axis=1, keepdims=True)
    assert np.allclose(pooled, expected, atol=tolerance)
    assert np.allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-6)


def test_without_contrastive_vectors_the_pooled_are_taken(tmp_path, caplog):
    write(tmp_path / "paper.h5", kinds=("pooled",))
    with caplog.at_level("INFO", logger="ugriz"):
        assert vectors.read_vectors(tmp_path / "paper.h5").kind == "pooled"
    assert "the pooled ones are compared" in caplog.text
    with pytest.raises(UserError, match="no contrastive vectors; it has pooled"):
        vectors.read_vectors(tmp_path / "paper.h5", "contrastive")


def test_whitened_vectors_are_made_of_the_pooled_ones(tmp_path, monkeypatch):
    written = write(tmp_path / "moco.h5")["pooled"].astype(float)
    monkeypatch.setattr(vectors, "_BLOCK", 2)
    found = vectors.read_vectors(tmp_path / "moco.h5", "whitened")
    apart = written - written.mean(axis=0)
    product = apart @ np.linalg.pinv(apart.T @ apart, rcond=1e-6) @ apart.T
    length = np.sqrt(product.diagonal())
    assert found.kind == "whitened"
    assert np.allclose(found.unit @ found.unit.T, product / length[:, None] / length, atol=1e-4)
    with h5py.File(tmp_path / "moco.h5", "r+") as file:
        file["pooled"][:] = 1.5
    with pytest.raises(UserError, match="cannot be whitened; has the encoder collapsed"):
        vectors.read_vectors(tmp_path / "moco.h5", "whitened")


def test_the_same_vectors_are_the_same_bytes(tmp_path):
    write(tmp_path / "one.h5")
    write(tmp_path / "two.h5")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_a_file_that_is_no_file_of_vectors_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file; run the rule embed"):
        vectors.read_vectors(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        vectors.read_vectors(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(UserError, match="not a file of vectors"):
        vectors.read_vectors(tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.attrs.update(format_version=9), "vectors of format 9, .* reads 1"),
        (lambda file: file.__delitem__("petroMag_r"), "petroMag_r is missing"),
        (
            lambda file: file["dec"].__setitem__(2, np.nan),
            "galaxy 587722981742084002 has no ra or dec",
        ),
        (
            lambda file: file["contrastive"].__setitem__((3, 1), np.nan),
            "the vector of galaxy 587722981742084003 is not finite",
        ),
    ],
)
def test_a_spoilt_file_is_refused_in_one_line(tmp_path, spoil, message):
    write(tmp_path / "moco.h5")
    with h5py.File(tmp_path / "moco.h5", "r+") as file:
        spoil(file)
    with pytest.raises(UserError, match=message) as caught:
        vectors.read_vectors(tmp_path / "moco.h5")
    assert "\n" not in str(caught.value)


def test_haversine_of_the_tests_agrees_with_unit_vectors():
    random = np.random.default_rng(2)
    one, other = everywhere(random, 20), everywhere(random, 20)
    for a, b in zip(one, other, strict=True):
        angle = np.degrees(np.arccos(unit_vectors(*a) @ unit_vectors(*b))) * 3600
        assert separation(a, b) == pytest.approx(angle, rel=1e-9)
