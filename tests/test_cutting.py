"""One frame and its galaxies -> parts of stamps in a scratch file."""

import numpy as np
import pytest
import real_sky
from small_sky import Sky, add_gaussian, make_wcs, write_frame

from pipeline.images import cutting, overlap
from pipeline.images.cutting import Recipe, Work, cut_frame
from pipeline.images.stamp import Stamp
from pipeline.simulation.masks import make_mask_bytes
from pipeline.survey.archive import Loss
from pipeline.survey.names import BANDS, FRAME_SHAPE, Field, frame_path, mask_path

FIELD = Field(1000, 1, 100)
AREA = (Stamp().scale * 3600 / 0.396) ** 2


def make_work(sky, band="r", field=FIELD):
    return Work(field, band, np.atleast_2d(sky), 4.71, 1.8225)


def parts(scratch, recipe):
    return np.fromfile(scratch, dtype=recipe.record)


def place(wcs, x, y):
    return wcs.wcs_pix2world([[x, y]], 0)[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A frame with a Gaussian of 1000 nMgy in the middle on a flat 1.0, and a hole of NaN."""
    folder = tmp_path_factory.mktemp("sas")
    image = np.ones(FRAME_SHAPE, dtype=np.float32)
    add_gaussian(image, 1000.3, 700.8, 1000.0)
    image[1000:1010, 500:520] = np.nan
    write_frame(folder, FIELD, "r", image, WCS)
    path = folder / mask_path(FIELD, "r")
    path.parent.mkdir(parents=True)
    saturated = np.zeros(FRAME_SHAPE, dtype=bool)
    saturated[699:702, 999:1002] = True
    path.write_bytes(make_mask_bytes(FIELD, {"SATUR": saturated}))
    return folder


WCS = make_wcs(150.0, 10.0, 37.0)


def test_record_holds_what_is_asked_for():
    assert Recipe().record.names == ("images", "share", "sky_noise")
    recipe = Recipe(Stamp(11), variance=True, mask=True)
    assert recipe.record.names == ("images", "share", "variance", "mask", "sky_noise")
    assert recipe.record.itemsize == 121 * (4 + 4 + 4 + 2) + 8 and recipe.planes == (
        "variance",
        "mask",
    )


@pytest.mark.parametrize(("conserve", "flat"), [(False, 1.0), (True, AREA)])
def test_flux_is_per_frame_pixel_or_per_stamp_pixel(root, tmp_path, conserve, flat):
    recipe = Recipe(conserve_flux=conserve)
    sky = [place(WCS, 1000.3, 700.8), place(WCS, 300.0, 300.0)]
    report = cut_frame(make_work(sky), root, recipe, {}, tmp_path / "s")
    source, empty = parts(tmp_path / "s", recipe)
    assert report.problem is None and source["sky_noise"] == 0
    assert np.allclose(empty["images"], flat, rtol=1e-5)
    assert np.allclose(source["share"], 1, atol=1e-6)
    light = source["images"].sum(dtype=float) - flat * 107**2
    # the file has 10 significant bits: 1e-4 of the total is what its rounding leaves
    assert light == pytest.approx(1000 if conserve else 1000 / AREA, rel=1e-3)


def test_variance_and_mask_go_with_the_image(root, tmp_path):
    recipe = Recipe(variance=True, mask=True)
    work = make_work(place(WCS, 1000.3, 700.8))
    assert cut_frame(work, root, recipe, {}, tmp_path / "s").problem is None
    part = parts(tmp_path / "s", recipe)[0]
    counts = 1 / 0.005 + 100
    native = (counts / 4.71 + 1.8225) * 0.005**2
    assert part["variance"][5, 5] < native  # a mean of some pixels
    assert part["variance"][5, 5] > native / 4
    assert part["variance"][53, 53] > 5 * part["variance"][5, 5]
    assert part["mask"][53, 53] == 2 and set(np.unique(part["mask"])) == {0, 2}
    assert 9 <= (part["mask"] == 2).sum() <= 25


def test_conserved_flux_has_the_variance_of_its_units(root, tmp_path):
    made = {}
    for conserve in (False, True):
        recipe = Recipe(variance=True, conserve_flux=conserve)
        cut_frame(make_work(place(WCS, 300, 300)), root, recipe, {}, tmp_path / "s")
        made[conserve] = parts(tmp_path / "s", recipe)[0]
    ratio = made[True]["images"] / made[False]["images"]
    assert np.allclose(made[True]["variance"] / made[False]["variance"], ratio**2, rtol=1e-5)


def test_a_hole_is_not_covered_and_not_nan(root, tmp_path):
    recipe = Recipe(variance=True)
    cut_frame(make_work(place(WCS, 510.0, 1005.0)), root, recipe, {}, tmp_path / "s")
    part = parts(tmp_path / "s", recipe)[0]
    assert np.isfinite(part["images"]).all() and np.isfinite(part["variance"]).all()
    assert part["share"][53, 53] == 0 and part["images"][53, 53] == 0
    hole = (1 - part["share"]).sum(dtype=float) * AREA
    assert hole == pytest.approx(200, rel=1e-3)


@pytest.mark.parametrize("sky", [(330.0, -10.0), (240.0, 5.0), (150.0, 60.0), (150.0, -80.0)])
def test_a_galaxy_far_from_its_frame_is_not_covered(root, tmp_path, sky):
    recipe = Recipe()
    assert cut_frame(make_work(sky), root, recipe, {}, tmp_path / "s").problem is None
    assert not parts(tmp_path / "s", recipe)["share"].any()


@pytest.mark.parametrize("engine", ["overlap", "reproject-exact", "montage"])
def test_a_stamp_that_only_the_margin_reaches_is_empty(root, tmp_path, engine):
    recipe = Recipe(engine=engine)
    sky = place(WCS, -0.5 - 54.6 * 1.43 - 3, 700)
    report = cut_frame(make_work(sky), root, recipe, {}, tmp_path / "s")
    assert report.problem is None and not parts(tmp_path / "s", recipe)["share"].any()


def test_what_is_not_there_is_reported(root, tmp_path):
    work = make_work((150, 10), "g")
    report = cut_frame(work, root, Recipe(), {}, tmp_path / "s")
    assert report.absent and report.problem.startswith("frame-g-001000-1-0100.fits.bz2: not in")
    known = {frame_path(FIELD, "g"): Loss(False, "the archive answered 500")}
    report = cut_frame(work, root, Recipe(), known, tmp_path / "s")
    assert not report.absent and report.problem.endswith("answered 500")


def test_a_frame_that_cannot_be_opened_is_reported(tmp_path):
    path = tmp_path / frame_path(FIELD, "r")
    path.mkdir(parents=True)  # a folder in its place
    report = cut_frame(make_work((150, 10)), tmp_path, Recipe(), {}, tmp_path / "s")
    assert not report.absent and "directory" in report.problem


def test_a_bad_mask_is_told_by_its_own_name(root, tmp_path):
    folder = tmp_path / "sas"
    for name in (frame_path(FIELD, "r"), mask_path(FIELD, "r")):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes((root / name).read_bytes())
    work = make_work((150, 10))
    (folder / mask_path(FIELD, "r")).write_bytes(b"")
    report = cut_frame(work, folder, Recipe(mask=True), {}, tmp_path / "s")
    assert report.problem.startswith("fpM-001000-r1-0100.fit.gz: the mask")
    (folder / mask_path(FIELD, "r")).unlink()
    report = cut_frame(work, folder, Recipe(mask=True), {}, tmp_path / "s")
    assert report.problem.startswith("fpM-001000-r1-0100.fit.gz: the mask is not in")
    assert cut_frame(work, folder, Recipe(), {}, tmp_path / "s").problem is None


@pytest.mark.parametrize("band", BANDS)
def test_real_galaxies_lie_on_pixel_54(real_data, tmp_path, band):
    """Windowed centroids in the stamp, of galaxies whose positions were measured in r."""
    table = real_sky.galaxies(real_data).set_index("name")
    names = ["2820-3-0122-02", "2820-3-0122-03"]
    sky = table.loc[names, ["ra", "dec"]].to_numpy()
    work = make_work(sky, band, real_sky.STRIPE82)
    report = cut_frame(work, real_sky.root(real_data), Recipe(), {}, tmp_path / "s")
    assert report.problem is None
    noise = real_sky.read(real_data, real_sky.STRIPE82, band).sky_noise()
    y, x = np.mgrid[1:108, 1:108]
    for part in parts(tmp_path / "s", Recipe()):
        assert part["sky_noise"] == pytest.approx(noise, rel=0.1)
        here = np.array([54.0, 54.0])
        light = part["images"].astype(float) - np.median(part["images"])
        for _ in range(30):
            weight = np.exp(-((x - here[0]) ** 2 + (y - here[1]) ** 2) / (2 * 3.0**2)) * light
            here += 2 * (np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum() - here)
        # the position is r's; bands agree to 0.14 px, u and z are noisy
        assert np.abs(here - 54).max() < {"r": 0.1, "g": 0.25, "i": 0.25}.get(band, 0.5)


def test_edges_of_the_patch_do_not_show(real_data):
    """The margin that engines get changes nothing of the kernel's result."""
    image = real_sky.read(real_data, real_sky.STRIPE82, "r")
    ra, dec = real_sky.galaxy(real_data, "2820-3-0122-02")
    cuts = []
    for margin in (2, cutting.MARGIN, 60):
        patch, _, points = real_sky.patch_of(image, ra, dec, Stamp(), margin)
        cuts.append(overlap.cut(patch, points).value)
    assert max(np.abs(cut - cuts[0]).max() for cut in cuts) < 1e-9


def test_a_galaxy_over_the_edge_is_covered_as_far_as_the_frame_goes(tmp_path):
    sky = Sky()
    xy = [(1000.0, -0.5), (2047.5, 700.0), (-0.5, -0.5)]  # on an edge, on another, on a corner
    galaxies = sky.galaxies(xy)
    write_frame(tmp_path, FIELD, "r", np.ones(FRAME_SHAPE, np.float32), sky.wcs())
    work = make_work(galaxies[["ra", "dec"]].to_numpy())
    cut_frame(work, tmp_path, Recipe(), {}, tmp_path / "s")
    shares = parts(tmp_path / "s", Recipe())["share"].mean(axis=(1, 2), dtype=float)
    assert np.abs(shares - [0.5, 0.5, 0.25]).max() < 1e-4
