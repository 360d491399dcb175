"""The benchmarks of the learning half, on tables small enough to reckon by hand."""

import argparse
import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_predictions import CENTRES, EDGES, make_pdf

from pipeline import metrics
from pipeline.settings import ROOT

IDS = 1237648720693755918 + np.arange(40, dtype=np.int64)


@pytest.fixture(scope="module", autouse=True)
def on_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


def module(name: str):
    return importlib.import_module(name)


def galaxies() -> pd.DataFrame:
    """40 galaxies in a row of redshift."""
    z = np.linspace(0.05, 0.3, 40)
    table = pd.DataFrame(
        {
            "objID": IDS,
            "split": ["test", "train"] * 20,
            "z_true": z,
            "type": z,
            "bulge_fraction": 1 - z,
            "disc_q": z,
        }
    )
    for k in range(4):
        table[f"colour_{k}"] = z * (k + 1)
    return table.assign(dered_r=17 + z, log_r50=0.5 + z, trail="", cosmic_ray="", bleed="")


def next_in_line(table: pd.DataFrame, step: int) -> pd.DataFrame:
    """Neighbours that stand `step`, 2 `step`, ... places further on."""
    place = (np.arange(len(table))[:, None] + step * np.arange(1, 6)) % len(table)
    return pd.DataFrame({"objID": np.repeat(table.objID, 5), "rank": np.tile(np.arange(1, 6), 40),
                         "neighbour": table.objID.to_numpy()[place].ravel()})  # fmt: skip


def test_neighbours_are_compared_by_true_redshift_and_type():
    claims, table = module("claims"), galaxies()
    found = claims.likeness(table, {"far": next_in_line(table, 7)}, seed=0)
    assert (found["queries"], found["neighbours"]) == (20, 5)
    step = 7 * np.arange(1, 6)
    z = table.z_true.to_numpy()
    expected = np.mean([np.abs(z[(k + step) % 40] - z[k]).mean() / (1 + z[k])
                        for k in range(0, 40, 2)])  # fmt: skip
    assert found["redshift"]["far"][0] == pytest.approx(expected, abs=1e-5)
    value, low, high = found["redshift"]["far - photometry"]
    assert 0 < low < value < high  # photometry finds those next to a galaxy
    assert found["redshift"]["photometry"][0] < found["redshift"]["chance"][0]


def test_the_galaxy_itself_is_no_neighbour_by_photometry():
    claims, table = module("claims"), galaxies()
    queries = np.array([0, 10, 39])
    near = claims.by_photometry(table, queries)
    assert near.shape == (3, 5) and not (near == queries[:, None]).any()
    assert set(near[0]) == {1, 2, 3, 4, 5}


def test_precision_of_rankings_counts_artefacts_with_and_without_bleeds():
    claims, table = module("claims"), galaxies()
    table.loc[:9, "trail"] = "r"
    table.loc[10:19, "bleed"] = "g"
    order = np.arange(40.0)
    table = table.assign(flux=-np.abs(order - 15), clipped=0, one_band=-order)
    alone = pd.DataFrame({"objID": IDS[::-1], "outlier_score": order})  # the last ones first
    found = claims.artefacts(table, {"pooled": alone})
    assert found["all artefacts"]["spoilt"] == 20 and found["without bleeds"]["spoilt"] == 10
    assert found["without bleeds"]["galaxies"] == 30
    assert found["all artefacts"]["alone (pooled)"] == [1.0, 0.5]
    assert found["without bleeds"]["sigma clip, one band"] == [0.5, 0.33]
    assert found["all artefacts"]["flux"] == [0.75, 0.5]


def test_what_one_band_alone_has_is_counted():
    claims = module("claims")

    class Images:
        size, objid, sky_noise = 107, IDS[:2], np.full((2, 5), 1.0)

        def __len__(self):
            return 2

        def read(self, rows):
            stamps = np.zeros((2, 5, 107, 107), np.float32)
            stamps[:, :, 53, 53] = 100  # the galaxy, in all bands
            stamps[1, 2, 5, :50] = 10  # a trail, in r alone
            return stamps[rows]

    found = claims.measure(Images())
    assert found["one_band"].tolist() == [0, 50] and found["clipped"].tolist() == [0, 50]
    assert found["flux"].tolist() == [100, 600]


def test_an_option_is_put_after_the_flags_of_the_survey():
    options = module("options")
    base = options.base_flags(ROOT / "surveys" / "benchmark.yaml", None, [0.5, 1.0])
    assert base[base.index("--net") + 1] == "resnet10" and base[-2:] == ["0.5", "1.0"]
    assert "--encoder-rate" not in base
    fine = options.base_flags(ROOT / "surveys" / "benchmark.yaml", Path("e.pt"), [1.0])
    assert fine[fine.index("--encoder-rate") + 1] == "0.1"
    assert "--net" not in fine and fine[fine.index("--encoder") + 1].endswith("/e.pt")


def test_options_are_scored_against_the_base_galaxy_by_galaxy(tmp_path):
    options = module("options")
    z = np.linspace(0.05, 0.3, len(IDS))
    truth = pd.Series(z[:30], index=IDS[:30])  # the others are not unlabelled
    random = np.random.default_rng(0)
    base = random.normal(0, 0.01, (2, len(IDS)))
    offsets = {("base", (0,)): base[0], ("base", (1,)): base[1], ("base", (0, 1)): base.mean(0),
               ("turns 1", (0,)): 1.5 * base[0], ("turns 1", (1,)): 1.5 * base[1]}  # fmt: skip
    for (name, seeds), offset in offsets.items():
        pdf = make_pdf(z + offset * (1 + z), 0.01)
        path = options.catalogue(tmp_path, name, 1.0, seeds)
        path.parent.mkdir(exist_ok=True)
        table = pa.table({"objID": IDS, "z_phot": pdf @ CENTRES, "pdf": list(pdf)})
        edges = {"edges": json.dumps(EDGES.tolist())}
        pq.write_table(table.replace_schema_metadata(edges), path)
    args = argparse.Namespace(work=tmp_path, seeds=[0, 1])
    rows = options.score(args, ["base", "turns 1"], 1.0, truth)
    assert [row["option"] for row in rows] == ["base", "turns 1", options.TOGETHER]
    assert rows[0]["sigma_mad - base"] == 0
    assert rows[1]["sigma_mad"] == pytest.approx(1.5 * rows[0]["sigma_mad"], rel=0.02)
    assert rows[1]["sigma_mad 95 %"][0] > 0 and rows[1]["crps - base"] > 0
    one = make_pdf(z + base[0] * (1 + z), 0.01) @ CENTRES
    two = make_pdf(z + base[1] * (1 + z), 0.01) @ CENTRES
    exact = np.mean(
        [metrics.sigma_mad(metrics.residuals(each[:30], z[:30])) for each in (one, two)]
    )
    assert rows[0]["sigma_mad"] == pytest.approx(exact, abs=1e-5)
