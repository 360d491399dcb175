"""The benchmark of reading: what it compares is the same work, and its command runs."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.learning.augment import turned
from pipeline.run import UserError

torch.set_num_threads(1)
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def reading():
    """The benchmark as a module; its folder comes first on the path, as for a program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("reading")


def test_the_papers_way_gives_the_same_views(reading):
    image = np.random.default_rng(0).normal(0, 1, (5, 107, 107)).astype(np.float32)
    degrees = 33.0
    theirs = reading.rotated(image, degrees)[:, 21:85, 21:85]
    ours = [
        turned(torch.from_numpy(image)[None], np.radians([sense * degrees]), np.zeros((1, 2)),
               np.array([False]), 64)[0]
        for sense in (1, -1)
    ]  # fmt: skip
    assert min(np.abs(theirs - view.numpy()).max() for view in ours) < 1e-3


def test_shards_of_unequal_length_hold_all_images(reading, tmp_path):
    paths = reading.make_shards(tmp_path, 23, 3)
    lengths = [len(reading.open_set(path)) for path in paths]
    assert sum(lengths) == len(reading.PaperWay(paths)) == 23
    assert len(set(lengths)) > 1


def test_the_last_line_is_one_line_of_json(reading, monkeypatch, capsys):
    monkeypatch.setattr(reading, "WORKERS", (0, 1))
    reading.main(["--images", "24", "--batch", "4", "--shards", "2", "--repeats", "1"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures["gain"]) == {"0", "1"}
    assert len(figures["routes"]) == 6
    for found in figures["routes"].values():
        assert all(found[n]["images_per_s"] > 0 and found[n]["cpu_ms"] > 0 for n in ("0", "1"))


def test_too_few_images_are_refused(reading):
    with pytest.raises(UserError, match="--images: fewer than two batches"):
        reading.main(["--images", "100", "--batch", "64"])
