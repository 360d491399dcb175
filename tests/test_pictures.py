import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from matplotlib.path import Path as Outline
from small_sets import FUNNEL, make_catalog, write_set

from pipeline import dataset, pictures, run
from pipeline.images import sheet
from pipeline.run import UserError


def make_set(folder, catalog, failed=(), funnel=FUNNEL):
    shards = write_set(folder, catalog, failed=failed)
    content = dataset.summarise(shards, catalog, folder, funnel, "test")
    run.write_json(content, folder / "dataset.json")
    return [
        "--dataset", str(folder / "dataset.json"), "--catalog", str(folder / "catalog.parquet"),
        "--output", str(folder / "pictures"),
    ]  # fmt: skip


def assert_drawn(folder):
    """All four pictures are there, of a decent size, and not of one colour."""
    for name in pictures.PICTURES:
        image = imread(folder / "pictures" / f"{name}.png")
        assert min(image.shape[:2]) > 100
        assert image[..., :3].std() > 0.01


def positions_only(count):
    """What a user's list of positions gives: no magnitudes, no redshifts."""
    catalog = make_catalog(count, shards=1, labelled=0)
    return catalog[["objID", "ra", "dec", "run", "camcol", "field", "shard", "split"]]


def test_a_mixed_set(tmp_path):
    pictures.main(make_set(tmp_path, make_catalog(60, shards=3), failed=(3, 17)))
    assert_drawn(tmp_path)


def test_positions_only(tmp_path):
    pictures.main(make_set(tmp_path, positions_only(12), funnel=None))
    assert_drawn(tmp_path)


def test_one_galaxy(tmp_path):
    pictures.main(make_set(tmp_path, make_catalog(1, shards=1)))
    assert_drawn(tmp_path)


def test_the_same_set_gives_the_same_bytes(tmp_path):
    arguments = make_set(tmp_path, make_catalog(20, shards=2))
    pictures.main(arguments)
    paths = sorted((tmp_path / "pictures").iterdir())
    first = [path.read_bytes() for path in paths]
    pictures.main(arguments)
    assert [path.read_bytes() for path in paths] == first
    assert not any(b"Software" in data or b"date:" in data for data in first)


def test_missing_inputs_end_in_one_line(tmp_path):
    arguments = make_set(tmp_path, make_catalog(5, shards=1))
    (tmp_path / "catalog.parquet").unlink()
    with pytest.raises(UserError, match="no such catalogue"):
        pictures.main(arguments)
    make_catalog(6, shards=1, seed=9).to_parquet(tmp_path / "catalog.parquet")
    with pytest.raises(UserError, match="made from another catalogue"):
        pictures.main(arguments)
    (tmp_path / "dataset.json").write_text(json.dumps({"format": "ugriz-dataset"}))
    with pytest.raises(UserError, match="dataset format None"):
        pictures.main(arguments)


@pytest.mark.parametrize("conserve", [True, False])
def test_magnitudes_measured_on_stamps(conserve):
    size, scale = 107, 0.012 / 107 * 3600
    radius = np.hypot(*(np.indices((size, size)) - 53)) * scale
    profile = np.exp(-(radius**2) / 2)  # sigma 1 arcsec: 4 arcsec hold all but 3e-4
    flux = np.array([10.0, 100.0, -1.0])
    pixels = flux[:, None, None] * profile / profile.sum()
    if not conserve:
        pixels *= (0.396 / scale) ** 2
    images = np.repeat(pixels[:, None], 5, axis=1)
    stamp = {"size": size, "fov_deg": 0.012, "conserve_flux": conserve}
    found = sheet.aperture_magnitudes(images, stamp)
    np.testing.assert_allclose(found, [20.0, 17.5, np.nan], atol=1e-3)


def stamps(count, **columns):
    random = np.random.default_rng(count)
    table = pd.DataFrame({name: np.nan for name in ("z", "photoz", "r", "g-r")}, range(count))
    return table.assign(objID=random.permutation(count) + 10, **columns)


@pytest.mark.parametrize("count", [1, 2, 5, 44, 48, 49, 397])
def test_a_sheet_holds_each_galaxy_once_and_is_full(count):
    random = np.random.default_rng(count)
    table = stamps(count, z=random.random(count), **{"g-r": random.random(count)})
    columns, rows = sheet.sheet_shape(count)
    chosen, _ = sheet.choose(table, columns, rows)
    assert len(chosen) == min(count, 48) == chosen["objID"].nunique()
    assert columns * (rows - 1) < len(chosen) <= columns * rows


def test_a_sheet_goes_from_low_to_high_redshift_and_from_blue_to_red():
    random = np.random.default_rng(0)
    table = stamps(400, z=random.random(400), **{"g-r": random.random(400)})
    chosen, order = sheet.choose(table, 8, 6)
    z, colour = (chosen[name].to_numpy().reshape(6, 8) for name in ("z", "g-r"))
    assert np.all(z.max(axis=1)[:-1] < z.min(axis=1)[1:])
    assert np.all(np.diff(colour, axis=1) > 0)
    assert "redshift" in order and "g - r" in order
    again, _ = sheet.choose(table.sample(frac=1, random_state=1), 8, 6)
    np.testing.assert_array_equal(again["objID"], chosen["objID"])


@pytest.mark.parametrize(("column", "words"), [("photoz", "photo-z"), ("r", "magnitude")])
def test_a_sheet_without_redshifts_takes_the_next_best(column, words):
    chosen, order = sheet.choose(stamps(20, **{column: np.linspace(0, 1, 20)}), 4, 2)
    assert words in order and chosen[column].is_monotonic_increasing
    assert sheet.choose(stamps(20), 4, 2)[1] == "in the order of objID"


def test_captions_name_the_object():
    galaxy = {"objID": 1237657586023197281, "z": np.nan, "photoz": np.nan, "r": 17.456}
    assert sheet.caption(galaxy) == "2820-3-122-60001\nr = 17.46"
    assert sheet.caption(galaxy | {"photoz": 0.123}).endswith("photo-z = 0.12")
    assert sheet.caption(galaxy | {"objID": -42, "z": 0.1234}) == "-42\nz = 0.123"
    assert sheet.caption(galaxy | {"r": np.nan}) == "2820-3-122-60001"


@given(st.lists(st.floats(0, 359.999), min_size=1, max_size=30), st.floats(0, 360))
@settings(deadline=None)
def test_unwrapped_positions_hang_together(ra, shift):
    ra = np.array(ra)
    spread = np.ptp(pictures.unwrap(ra, pictures.middle_of_ra(ra)))
    turned = (ra + shift) % 360
    assert np.ptp(pictures.unwrap(turned, pictures.middle_of_ra(turned))) == pytest.approx(
        spread, abs=1e-6
    )
    assert spread <= 360 * (1 - 1 / len(ra)) + 1e-6


def test_a_field_across_ra_0_is_not_torn():
    ra = np.array([359.9, 0.1, 0.05, 359.95])
    assert np.ptp(pictures.unwrap(ra, pictures.middle_of_ra(ra))) == pytest.approx(0.2)


def test_patches_are_found_across_ra_0_and_at_the_pole():
    ra = np.array([359.9, 0.1, 40.0, 40.2, 10.0, 190.0])
    dec = np.array([0.0, 0.0, 0.0, 0.1, 89.5, 89.5])
    patch = pictures.patches(ra, dec)
    assert patch[0] == patch[1] and patch[2] == patch[3] and patch[4] == patch[5]
    assert len(set(patch)) == 3
    assert set(pictures.patches(np.arange(0, 360, 30.0), np.zeros(12))) == {0}


def test_corners_of_a_real_field_lie_where_its_frame_ends(real_data):
    from pipeline.survey import fields

    table = fields.read_fields(
        real_data / "sas/dr9/boss/photoObj/301/2583/photoField-002583-2.fits"
    )
    ra, dec = (each[0] for each in pictures.field_corners(table[table["field"] == 136]))
    assert np.mean(ra) == pytest.approx(323.343, abs=0.002)
    assert np.mean(dec) == pytest.approx(-0.734, abs=0.002)
    assert np.ptp(ra) == pytest.approx(1489 * 0.396 / 3600, rel=0.2)
    assert np.ptp(dec) == pytest.approx(2048 * 0.396 / 3600, rel=0.2)


def test_fields_are_drawn_below_galaxies(tmp_path):
    catalog = make_catalog(10, shards=1).assign(ra=lambda table: table["ra"])
    make_set(tmp_path, catalog)
    terms = {"a": 359.8, "b": 0.11 / 1489, "c": 0.0, "d": -0.1, "e": 0.0, "f": 0.2 / 2048}
    table = pd.DataFrame(
        {"run": 3900, "camcol": 3, "field": np.arange(100, 110), "node": 0.0, "incl": 0.0}
        | {f"{name}_r": value for name, value in terms.items()}
    )
    table["a_r"] += 0.05 * np.arange(10)
    figures = pictures.draw(tmp_path / "dataset.json", catalog, table)
    held = catalog["field"].nunique()
    (outlines,) = figures["sky-map"].axes[0].patches
    assert (outlines.get_path().codes == Outline.CLOSEPOLY).sum() == held
