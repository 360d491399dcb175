"""SpecObjAll, galSpecInfo and zooSpec, with the rows that each cut of a catalogue must remove."""

from __future__ import annotations

import numpy as np
import pandas as pd
from astropy import units as u
from astropy.coordinates import Angle

from pipeline.simulation.plan import Plan, stream
from pipeline.simulation.population import Sky

FLAWS = (
    "negative_z", "z_warning", "boss", "class_star", "class_qso", "sky_target", "primtarget",
    "no_galspec", "not_clean", "masked", "repeat", "repeat_none_primary", "photoz_high",
    "photoz_failed", "photoz_missing",
)  # fmt: skip
"""Each is given to at least two labelled galaxies (primary detections), no galaxy has two."""
PHOTOZ_FLAWS = FLAWS[-3:]
"""Given to galaxies without a spectrum as well, whose photo-z is what is cut on."""
FLAW_SHARE = 0.01
RUN2D = 26
STAR_SHARE = 0.1
"""Stars with a spectrum."""


def choose_flaws(plan: Plan, ids: np.ndarray, kinds: tuple[str, ...] = FLAWS) -> pd.Series:
    """Flaw (or "") of each galaxy of a sample, by id: the same whatever the order of `ids`."""
    ids = np.sort(ids)
    each = max(2, round(FLAW_SHARE * len(ids)))
    order = stream(plan.seed, *kinds).permutation(ids)
    flaws = pd.Series("", index=ids, dtype=object)
    for k, flaw in enumerate(kinds):
        flaws[order[k * each : (k + 1) * each]] = flaw
    return flaws


def spectrum_tables(sky: Sky, photo: pd.DataFrame, flaws: pd.Series) -> dict[str, pd.DataFrame]:
    """SpecObjAll, galSpecInfo, zooSpec of the detections in `photo` (as `photo_table` makes it).

    Every labelled galaxy has a spectrum matched to its primary detection, or to a secondary one
    where it has no other; one in three of those seen twice has a second spectrum matched to the
    secondary detection (two positions within 1 arcsec).
    """
    rng = stream(sky.plan.seed, "spectra")
    truth = sky.galaxies.set_index("id")
    labelled = photo[photo["id"].isin(truth.index[truth["labelled"]])]
    labelled = labelled.sort_values(["id", "mode", "objID"])
    first = labelled.drop_duplicates("id")
    second = labelled[labelled.duplicated("id")].drop_duplicates("id")
    second = second[rng.random(len(second)) < 1 / 3]
    flawed = first["id"].map(flaws).fillna("")
    repeats = first[flawed.isin(["repeat", "repeat_none_primary"]).to_numpy()]
    stars = photo[(photo["type"] == 6) & (photo["mode"] == 1)].sort_values("id")
    stars = stars[rng.random(len(stars)) < STAR_SHARE]
    matched = pd.concat([first, second, repeats, stars], ignore_index=True)
    visit = np.repeat([0, 1, 2, 0], [len(first), len(second), len(repeats), len(stars)])
    spectra = _spectra(matched, visit, truth, flaws, rng)
    return {
        "SpecObjAll": spectra,
        "galSpecInfo": _galspec(spectra, truth, rng),
        "zooSpec": _zoo(sky.plan, spectra, truth),
    }


def _spectra(matched: pd.DataFrame, visit: np.ndarray, truth: pd.DataFrame, flaws, rng):
    count = len(matched)
    flaw = matched["id"].map(flaws).fillna("").to_numpy(dtype=object)
    star = (matched["type"] == 6).to_numpy()
    z = matched["id"].map(truth["z"]).fillna(0.0).to_numpy(dtype=np.float64)
    z = z + np.where(star, 1e-4 * rng.standard_normal(count), 5e-5 * rng.standard_normal(count))
    error = 2e-5 * np.exp(0.4 * rng.standard_normal(count))
    error = np.where(visit == 2, 0.5 * error, error)
    z = np.where(flaw == "negative_z", -np.abs(1e-4 * rng.standard_normal(count)), z)
    primary = (visit != 2) & (flaw != "repeat_none_primary")
    number = np.arange(count)
    plate, fiber = 1000 + number // 600, 1 + number % 600
    mjd = 52_000 + plate
    specobjid = (
        (plate.astype(np.int64) << 50) + (fiber << 38) + ((mjd - 50_000) << 24) + (RUN2D << 10)
    )
    boss = flaw == "boss"
    kind = np.select(
        [star | (flaw == "class_star"), flaw == "class_qso"], ["STAR", "QSO"], "GALAXY"
    )
    target = np.where(star, 0, np.where(flaw == "primtarget", 32, 64))
    return matched[["id", "ra", "dec"]].assign(
        specObjID=specobjid, bestObjID=matched["objID"], fluxObjID=matched["objID"],
        targetObjID=matched["objID"], sciencePrimary=primary.astype(int),
        sdssPrimary=(primary & ~boss).astype(int), legacyPrimary=(primary & ~boss).astype(int),
        bossPrimary=(primary & boss).astype(int), survey=np.where(boss, "boss", "sdss"),
        instrument=np.where(boss, "BOSS", "SDSS"), programname=np.where(boss, "boss", "legacy"),
        mjd=mjd, plate=plate, fiberID=fiber, run2d=str(RUN2D), legacy_target1=target,
        primTarget=target, secTarget=0, sourceType=np.where(star, "STAR", "GALAXY"),
        targetType=np.where(flaw == "sky_target", "SKY", "SCIENCE"), z=z, zErr=error,
        zWarning=np.where(flaw == "z_warning", 4, 0), subClass="", flaw=flaw, visit=visit,
        **{"class": kind},
    )  # fmt: skip


def _galspec(spectra: pd.DataFrame, truth: pd.DataFrame, rng) -> pd.DataFrame:
    """MPA-JHU's table: the spectra of galaxies, less those it does not have."""
    known = (spectra["sourceType"] == "GALAXY") & ~spectra["flaw"].isin(["no_galspec", "boss"])
    own = spectra[known.to_numpy()].reset_index(drop=True)
    noise = rng.standard_normal(len(own))
    return pd.DataFrame(
        {
            "specObjID": own["specObjID"], "plateid": own["plate"], "mjd": own["mjd"],
            "fiberid": own["fiberID"], "ra": own["ra"], "dec": own["dec"],
            "primtarget": own["primTarget"], "sectarget": np.where(own["visit"] == 2, 8, 0),
            "targettype": np.where(own["visit"] == 2, "QA", "GALAXY"), "spectrotype": own["class"],
            "subclass": "", "z": own["z"], "z_err": own["zErr"], "z_warning": own["zWarning"],
            "v_disp": 150 + 30 * noise, "v_disp_err": 10.0, "sn_median": 15 + 2 * noise,
            "e_bv_sfd": own["id"].map(truth["e_bv"]), "release": "dr7", "reliable": 1,
        }
    )  # fmt: skip


def _zoo(plan: Plan, spectra: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Galaxy Zoo 1 votes, drawn from the type and inclination of each galaxy with a spectrum."""
    own = spectra[(spectra["sourceType"] == "GALAXY") & (spectra["visit"] == 0)]
    rows = []
    for one in own.itertuples():
        galaxy = truth.loc[one.id]
        rng = stream(plan.seed, "zoo", one.id)
        counts = rng.multinomial(max(int(rng.poisson(38)), 10), _vote_chances(galaxy))
        rows.append(counts)
    votes = np.array(rows, dtype=np.float64).reshape(-1, 6)
    total = votes.sum(axis=1)
    share = votes / np.maximum(total, 1)[:, None]
    late = share[:, 1:4].sum(axis=1)
    bias = 0.1 * (share[:, 0] > 0.2) * share[:, 0]
    early_debiased, late_debiased = share[:, 0] - bias, np.minimum(late + bias, 1.0)
    spiral, elliptical = late_debiased > 0.8, early_debiased > 0.8
    names = ("p_el", "p_cw", "p_acw", "p_edge", "p_dk", "p_mg")
    position = {
        "rastring": Angle(own["ra"].to_numpy(), u.deg).to_string(
            u.hour, sep=":", precision=2, pad=True
        ),
        "decstring": Angle(own["dec"].to_numpy(), u.deg).to_string(
            u.deg, sep=":", precision=1, pad=True, alwayssign=True
        ),
    }
    return pd.DataFrame(
        {
            "specobjid": own["specObjID"].to_numpy(), "objid": own["bestObjID"].to_numpy(),
            "dr7objid": 587722981736120347 + np.arange(len(own)), "ra": own["ra"].to_numpy(),
            "dec": own["dec"].to_numpy(), **position, "nvote": total,
            **{name: share[:, k] for k, name in enumerate(names)}, "p_cs": late,
            "p_el_debiased": early_debiased, "p_cs_debiased": late_debiased,
            "spiral": spiral.astype(int), "elliptical": elliptical.astype(int),
            "uncertain": (~spiral & ~elliptical).astype(int),
        }
    )  # fmt: skip


def _vote_chances(galaxy: pd.Series) -> np.ndarray:
    """Chances of a vote: elliptical, clockwise, anticlockwise, edge-on, don't know, merger."""
    late = float(1 / (1 + np.exp((galaxy["bulge_fraction"] - 0.45) / 0.08)))
    edge = late * float(galaxy["disc_q"] < 0.3)
    face = (late - edge) * 0.92
    clockwise = face * (0.9 if galaxy["angle"] < np.pi / 2 else 0.1)
    chances = np.array([(1 - late) * 0.92, clockwise, face - clockwise, edge * 0.92, 0.06, 0.02])
    return chances / chances.sum()


def mark_flaws(photo: pd.DataFrame, photoz: pd.DataFrame, flaws: pd.Series):
    """(photo, photoz) with the flaws that lie in them: clean, insideMask, bad photometric z."""
    flaw = photo["id"].map(flaws).fillna("")
    photo = photo.assign(
        clean=np.where(flaw == "not_clean", 0, photo["clean"]),
        insideMask=np.where(flaw == "masked", 1, photo["insideMask"]),
    )
    by_object = photoz["objID"].map(pd.Series(flaw.to_numpy(), index=photo["objID"])).to_numpy()
    photoz = photoz.copy()
    photoz.loc[by_object == "photoz_high", ["z", "zErr", "photoErrorClass"]] = (0.87, 0.3, 7)
    photoz.loc[by_object == "photoz_failed", ["z", "zErr", "nnCount", "photoErrorClass"]] = (
        -9999.0, -9999.0, 0, -9999,
    )  # fmt: skip
    return photo, photoz[by_object != "photoz_missing"].reset_index(drop=True)


def with_spectra(photo: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """`photo` with specObjID: that of the best spectrum of each object, 0 without one."""
    best = spectra.sort_values(["sciencePrimary", "zErr"], ascending=[False, True])
    best = best.drop_duplicates("bestObjID").set_index("bestObjID")["specObjID"]
    found = [best.get(objid, 0) for objid in photo["objID"]]
    return photo.assign(specObjID=np.array(found, dtype=np.int64))
