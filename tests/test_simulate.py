"""The simulated survey as a whole: products, tables, truth."""

from __future__ import annotations

import bz2
import io

import duckdb
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from pipeline import run, simulate
from pipeline.simulation import artefacts, observe, population, references, render, spectra
from pipeline.simulation.colours import relative_flux
from pipeline.simulation.plan import Plan, stream
from pipeline.survey import dr12, photoz
from pipeline.survey.extinction import R_DR12, R_SF11, e_bv
from pipeline.survey.names import BANDS, Field, frame_path, mask_path, unpack_objid

OPTIONS = (
    "--runs 4207 4263 --camcols 3 --fields 1 1 --galaxies-per-field 60 --stars-per-field 20 "
    "--reference-size 1500 --seed 3"
)
PLAN = Plan(
    seed=3, camcols=(3,), fields=(1, 1), galaxies_per_field=60.0, stars_per_field=20.0,
    reference_size=1500,
)  # fmt: skip


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A survey of two fields, made by the stage's own command with two workers."""
    folder = tmp_path_factory.mktemp("simulated") / "simulate"
    simulate.main(["--output", str(folder), "--workers", "2", *OPTIONS.split()])
    return folder


@pytest.fixture(scope="module")
def tables(survey) -> dict[str, pd.DataFrame]:
    with duckdb.connect(survey / "survey.duckdb", read_only=True) as database:
        return {name: database.execute(f'SELECT * FROM "{name}"').df() for name in dr12.SCHEMAS}


@pytest.fixture(scope="module")
def truth(survey) -> pd.DataFrame:
    return pd.read_parquet(survey / "truth.parquet", dtype_backend="numpy_nullable")


@pytest.fixture(scope="module")
def found(tables, truth) -> pd.DataFrame:
    """Primary detections of galaxies beside the truth."""
    return tables["PhotoObjAll"].merge(truth, on="objID", suffixes=("", "_true"))


def read_frame(survey, field: Field, band: str):
    raw = bz2.decompress((survey / "sas/dr9" / frame_path(field, band)).read_bytes())
    return fits.open(io.BytesIO(raw))


def test_layout_is_that_of_the_archive(survey):
    for field in PLAN.all_fields():
        for band in BANDS:
            path = survey / "sas/dr9" / frame_path(field, band)
            assert 2.2e6 < path.stat().st_size < 4.5e6
            assert (survey / "sas/dr9" / mask_path(field, band)).is_file()
    assert (survey.parent / "simulate.provenance.json").is_file()
    assert not list(survey.parent.glob(".*"))


@pytest.mark.parametrize("band", "uz")
def test_same_seed_gives_the_same_bytes_whatever_the_workers(survey, band):
    """A frame of the last field again, alone and in this process."""
    sky, field = population.make_sky(PLAN), PLAN.all_fields()[-1]
    clean = render.noiseless_frame(sky, field, band)
    found = artefacts.artefacts(PLAN, field, band)
    frame, _, _ = observe.take_frame(sky, field, band, clean, found)
    path = survey / "sas/dr9" / frame_path(field, band)
    assert observe.frame_bytes(sky, field, band, frame) == path.read_bytes()


def test_tables_have_the_types_of_dr12(survey):
    with duckdb.connect(survey / "survey.duckdb", read_only=True) as database:
        for name in dr12.SCHEMAS:
            described = database.execute(f'DESCRIBE "{name}"').fetchall()
            kinds = {row[0]: row[1] for row in described}
            assert list(kinds) == list(dr12.columns(name))
            for column, kind in dr12.columns(name).items():
                assert kinds[column] == dr12.DUCKDB_TYPES[kind]


def test_ids_say_where_an_object_is(tables):
    photo = tables["PhotoObjAll"]
    assert photo["objID"].dtype == np.int64
    assert photo["objID"].is_unique
    parts = unpack_objid(photo["objID"].to_numpy())
    for name in ("run", "camcol", "field", "obj"):
        np.testing.assert_array_equal(parts[name], photo[name])
    np.testing.assert_array_equal(photo["fieldID"], photo["objID"] & ~0xFFFF)
    assert set(tables["SpecObjAll"]["bestObjID"]) <= set(photo["objID"])
    assert set(tables["Photoz"]["objID"]) <= set(photo["objID"])


def test_pixels_follow_from_positions(survey, tables):
    """rowc, colc (SDSS, from the edge) against the header's WCS at ra, dec."""
    photo = tables["PhotoObjAll"]
    for field in PLAN.all_fields():
        own = photo[photo["run"] == field.run]
        for band in "rz":
            with bz2.open(survey / "sas/dr9" / frame_path(field, band)) as handle:
                header = fits.Header.fromstring(handle.read(8640))
            x, y = WCS(header).all_world2pix(own["ra"], own["dec"], 0)
            np.testing.assert_allclose(own[f"colc_{band}"], x + 0.5, atol=0.02)
            np.testing.assert_allclose(own[f"rowc_{band}"], y + 0.5, atol=0.02)
        assert own["rowc"].between(63.5, 1425.5).all()


def test_runs_overlap_with_primary_and_secondary_detections(tables, truth):
    photo = tables["PhotoObjAll"].set_index("objID")
    twice = truth.dropna(subset=["objID", "objID_secondary"])
    assert len(twice) >= 5
    one, two = photo.loc[twice["objID"]], photo.loc[twice["objID_secondary"]]
    assert (one["mode"] == 1).all() and (two["mode"] == 2).all()
    assert (one["run"].to_numpy() != two["run"].to_numpy()).all()
    apart = np.hypot(
        (one["ra"].to_numpy() - two["ra"].to_numpy()) * np.cos(np.radians(one["dec"].to_numpy())),
        one["dec"].to_numpy() - two["dec"].to_numpy(),
    )
    assert (apart < 1 / 3600).all()
    assert set(truth["objID"].dropna()) <= set(photo.index)
    assert photo.loc[truth["objID"].dropna(), "mode"].eq(1).all()
    assert photo[photo["mode"] == 1]["colc"].between(64, 1984).all()


@pytest.mark.parametrize("band", BANDS)
def test_model_magnitudes_are_the_true_ones_within_their_errors(found, band):
    clean = found[(found["trail"] == "") & (found["cosmic_ray"] == "") & (found["bleed"] == "")]
    clean = clean[clean[f"modelMag_{band}"] > 0]
    true = 22.5 - 2.5 * np.log10(clean[f"flux_{band}"].astype(float))
    pull = (clean[f"modelMag_{band}"] - true) / clean[f"modelMagErr_{band}"]
    spread = 1.4826 * (pull - pull.median()).abs().median()
    assert len(pull) > 40
    assert 0.7 < spread < 1.4
    assert abs(pull.median()) < 0.5


def test_petrosian_magnitudes_miss_a_little_light(found):
    good = found[found["isolated"] & (found["petroMag_r"] < 18)]
    true = 22.5 - 2.5 * np.log10(good["flux_r"].astype(float))
    missing = (good["petroMag_r"] - true).to_numpy(float)
    assert 0.0 < np.median(missing) < 0.08
    assert np.quantile(np.abs(missing), 0.9) < 0.2
    assert 0.8 < (good["petroR50_r"] / good["r50"].astype(float)).median() < 1.3


def test_isolated_galaxies_are_alone_on_the_frame(survey, found):
    """Light within 8 arcsec on the frame itself is the galaxy's own."""
    field = PLAN.all_fields()[0]
    own = found[found["isolated"] & (found["run"] == field.run) & (found["r50"] < 2.5)]
    assert len(own) > 5
    with read_frame(survey, field, "r") as hdus:
        image = hdus[0].data.astype(float)
    row, col = np.indices(image.shape, sparse=True)
    for one in own.itertuples():
        near = (row + 0.5 - one.rowc_r) ** 2 + (col + 0.5 - one.colc_r) ** 2 < (8 / 0.396) ** 2
        assert image[near].sum() == pytest.approx(one.flux_r, rel=0.2)


def test_extinction_is_dr12s_and_the_light_is_dimmed_by_sf11(found, truth):
    table = found[[f"extinction_{band}" for band in BANDS]].to_numpy(float)
    np.testing.assert_allclose(e_bv(table), found["e_bv"].astype(float), rtol=1e-5)
    np.testing.assert_allclose(
        table / table[:, :1], np.tile(R_DR12 / R_DR12[0], (len(table), 1)), rtol=1e-5
    )
    for k, band in enumerate(BANDS):
        dimmed = (truth[f"flux_{band}"] / truth[f"intrinsic_flux_{band}"]).to_numpy(float)
        np.testing.assert_allclose(dimmed, 10 ** (-0.4 * R_SF11[k] * truth["e_bv"].to_numpy(float)))
    assert truth["e_bv"].std() > 0.002


CUTS = {
    "z <= 0": "za.z <= 0 AND za.class = 'GALAXY'",
    "zWarning": "za.zWarning <> 0",
    "survey": "za.survey <> 'sdss'",
    "class STAR on a galaxy": "za.class = 'STAR' AND po.type = 3",
    "class QSO": "za.class = 'QSO' AND po.type = 3",
    "target type": "za.targetType <> 'SCIENCE'",
    "primtarget": "zi.primtarget < 64",
    "no galSpecInfo": "zi.specObjID IS NULL AND po.type = 3",
    "not clean": "po.clean = 0 AND po.type = 3",
    "masked": "po.insideMask <> 0",
    "too faint": "po.petroMag_r - po.extinction_r > 17.8 AND po.type = 3",
    "distant": "za.z > 0.4",
    "photo-z high": "zp.z > 0.8",
    "photo-z failed": "zp.z = -9999",
    "photo-z missing": "zp.objID IS NULL AND po.type = 3",
    "not the best spectrum": "za.sciencePrimary = 0",
    "matched to a secondary detection": "po.mode = 2",
    "star": "po.type = 6 AND po.petroMag_r < 17.8",
}


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_has_rows_to_remove(survey, cut):
    with duckdb.connect(survey / "survey.duckdb", read_only=True) as database:
        (count,) = database.execute(
            "SELECT count(*) FROM PhotoObjAll po "
            "LEFT JOIN SpecObjAll za ON za.bestObjID = po.objID "
            "LEFT JOIN Photoz zp ON zp.objID = po.objID "
            f"LEFT JOIN galSpecInfo zi ON zi.specObjID = za.specObjID WHERE {CUTS[cut]}"
        ).fetchone()
    assert count >= 1


def test_main_galaxy_sample_query_leaves_labelled_galaxies(tables, truth):
    spectra_ = tables["SpecObjAll"].merge(
        tables["galSpecInfo"], on="specObjID", suffixes=("", "_i")
    )
    good = spectra_[
        (spectra_["zWarning"] == 0) & (spectra_["class"] == "GALAXY") & (spectra_["z"] > 0)
    ]
    matched = good.merge(truth, left_on="bestObjID", right_on="objID", suffixes=("", "_true"))
    assert len(matched) > 30
    difference = (matched["z"] - matched["z_true"].astype(float)).abs()
    assert (difference < 1e-3).all()
    photo = tables["PhotoObjAll"]
    plain = photo[(photo["type"] == 3) & (photo["mode"] == 1) & (photo["specObjID"] == 0)]
    assert len(plain) > 20


def test_repeat_spectra_differ_in_error(tables):
    repeats = tables["SpecObjAll"].groupby("bestObjID").filter(lambda rows: len(rows) > 1)
    assert repeats["bestObjID"].nunique() >= 3
    for _, rows in repeats.groupby("bestObjID"):
        assert rows["zErr"].nunique() == len(rows)
        assert rows["sciencePrimary"].sum() <= 1


def test_field_table_holds_its_objects(tables):
    fields, photo = tables["Field"], tables["PhotoObjAll"]
    assert len(fields) == 2
    for field in fields.itertuples():
        own = photo[photo["fieldID"] == field.fieldID]
        assert len(own) == field.nObjects > 0
        assert own["ra"].between(field.raMin, field.raMax).all()
        assert own["dec"].between(field.decMin, field.decMax).all()
        assert 0.8 < field.psfWidth_r < 1.8
    assert fields["primaryArea"].iloc[1] < fields["primaryArea"].iloc[0]


def test_galaxy_zoo_follows_the_truth(tables, truth):
    votes = tables["zooSpec"].merge(truth, left_on="objid", right_on="objID")
    kinds = votes[["p_el", "p_cw", "p_acw", "p_edge", "p_dk", "p_mg"]].sum(axis=1)
    np.testing.assert_allclose(kinds, 1)
    assert votes["p_el"].corr(votes["bulge_fraction"].astype(float)) > 0.7
    assert ((votes["spiral"] + votes["elliptical"] + votes["uncertain"]) == 1).all()


def test_redshift_distribution_is_that_of_the_main_sample():
    sample = population.sample_galaxies(stream(5, "n(z)"), 4000, 13.0, 17.8)
    assert 0.08 < sample["z"].median() < 0.12
    assert sample["z"].between(0, 0.4).all()
    assert sample["z"].quantile(0.99) < 0.35
    assert sample["r_true"].between(13.0, 17.8).all()
    faint = sample["M_r"] > -20
    assert sample["type"][faint].mean() > sample["type"][~faint].mean() + 0.2
    g, r = (sample[f"bulge_flux_{band}"] + sample[f"disc_flux_{band}"] for band in "gr")
    g_r = -2.5 * np.log10(g / r)
    assert g_r[sample["type"] < 0.2].mean() > g_r[sample["type"] > 0.8].mean() + 0.25


def test_colours_of_templates_are_those_of_cww():
    """Rest-frame g - r: about 0.77 for E, 0.2 for Im (Fukugita et al. 1995)."""
    flux = relative_flux(np.array([0.0, 3.0]), np.array([0.0, 0.0]))
    g_r = -2.5 * np.log10(flux[:, 1] / flux[:, 2])
    assert g_r[0] == pytest.approx(0.77, abs=0.08)
    assert g_r[1] < 0.35
    np.testing.assert_allclose(flux[:, 2], 1)


def test_photometric_redshifts_are_honest():
    """Trained on a set of its own; the error is that of the residuals."""
    magnitudes, z = references.reference_set(PLAN, np.full(50, 0.05))
    other = Plan(seed=99, reference_size=800, fields=(1, 1))
    test, true = references.reference_set(other, np.full(50, 0.05))
    guess = photoz.local_linear(test, magnitudes, z)
    miss = (guess["z"] - true) / (1 + true)
    assert 0.005 < 1.4826 * (miss - miss.median()).abs().median() < 0.04
    pull = (guess["z"] - true) / guess["zErr"]
    assert 0.6 < 1.4826 * (pull - pull.median()).abs().median() < 1.4
    assert (guess["nnCount"] <= 100).all()
    failed = photoz.local_linear(np.full((1, 5), -9999.0), magnitudes, z)
    assert failed["z"].tolist() == [-9999.0]


def test_flaws_do_not_depend_on_the_order_of_the_galaxies():
    ids = np.arange(100)
    flaws = spectra.choose_flaws(PLAN, ids)
    pd.testing.assert_series_equal(flaws, spectra.choose_flaws(PLAN, ids[::-1]))
    assert set(spectra.FLAWS) <= set(flaws)


def test_default_survey_is_large_enough_and_crosses_the_galactic_cut():
    plan = Plan()
    assert len(plan.all_fields()) == 6 and len(plan.runs) == 2
    b = population.make_sky(plan).galaxies["b"]
    assert len(b) >= 300
    assert 0.03 < (b < 15).mean() < 0.4


def test_wrong_options_end_in_one_line(tmp_path):
    for wrong in ("--fields 1", "--workers 0", "--camcols 7", "--galaxies-per-field -3"):
        with pytest.raises(run.UserError) as caught:
            simulate.main(["--output", str(tmp_path / "x"), *wrong.split()])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()
