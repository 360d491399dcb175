"""Which galaxies train, validate and test, and how a catalogue is cut into shards."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pandas as pd
from astropy_healpix import HEALPix

from pipeline.run import UserError
from pipeline.survey import positions
from pipeline.survey.hashing import draw, mix64

NAMES = ("train", "valid", "test")


def random_split(objid, labelled, test: float, valid: float, seed: int) -> np.ndarray:
    """`train`, `valid`, `test`, or `unlabelled` where `labelled` is false; text, shape (n,).

    A hash of objID and seed decides (`hashing.draw`): below `test` a galaxy is a test galaxy, and
    of the rest the first `valid` validate. So no galaxy changes its split when others come or go.
    """
    _check(test, valid)
    number = draw(objid, seed)
    split = np.full(len(number), "train", dtype=object)
    split[number < test + (1 - test) * valid] = "valid"
    split[number < test] = "test"
    split[~np.asarray(labelled, dtype=bool)] = "unlabelled"
    return split


def sky_split(
    ra, dec, labelled, test: float, valid: float, nside: int, overlap: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A split by whole HEALPix pixels, of `nside`: (split, sky), text, shape (n,) each.

    Pixels go, in the order of a hash of their number, to test until the labelled galaxies in them
    come nearest to the share `test`, then to valid (share of the rest), then to train. `split` is
    as in `random_split`. `sky` is the side of every galaxy, labelled or not: `train`, `valid`,
    `test`, or `border` for one that would be on a lower side but lies within `overlap` [deg] of a
    labelled galaxy of a higher one (test > valid > train), so that their stamps may share pixels.
    Training of any kind that is to know nothing of the test sky uses `sky == "train"` alone.
    Raises UserError where a split that should have galaxies has none.
    """
    _check(test, valid)
    if nside < 1 or nside & (nside - 1):
        raise UserError(f"nside: {nside}; give a power of two, such as 16 or 64")
    labelled = np.asarray(labelled, dtype=bool)
    pixel = HEALPix(nside, order="nested").lonlat_to_healpix(
        np.asarray(ra) * u.deg, np.asarray(dec) * u.deg
    )
    pixels, index = np.unique(pixel, return_inverse=True)
    count = np.bincount(index[labelled], minlength=len(pixels))
    side = _sides(pixels, count, test, valid, seed)
    sky = side[index]
    split = np.where(labelled, sky, "unlabelled")
    _refuse_empty(split, labelled, test, valid, nside, np.count_nonzero(count))
    for low, high in (("train", ("test", "valid")), ("valid", ("test",))):
        near = np.flatnonzero(sky == low)
        higher = labelled & np.isin(split, high)
        touch = positions.near(
            np.asarray(ra)[near], np.asarray(dec)[near],
            np.asarray(ra)[higher], np.asarray(dec)[higher], overlap,
        )  # fmt: skip
        sky[near[touch]] = "border"
    return split, sky


def _sides(pixels, count, test: float, valid: float, seed: int) -> np.ndarray:
    order = np.argsort(mix64(pixels, seed), kind="stable")
    order = order[count[order] > 0]  # sky without labelled galaxies is left to train
    side = np.full(len(pixels), "train", dtype=object)
    left = order
    for name, share in (("test", test), ("valid", valid)):
        middle = np.cumsum(count[left]) - count[left] / 2
        chosen = middle <= share * count[left].sum()
        side[left[chosen]] = name
        left = left[~chosen]
    return side


def _refuse_empty(split, labelled, test, valid, nside: int, occupied: int) -> None:
    counts = {name: int(np.count_nonzero(split == name)) for name in NAMES}
    share = {"train": 1, "valid": valid, "test": test}
    if labelled.any() and any(share[name] > 0 and not counts[name] for name in NAMES):
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(
            f"split sky: nside {nside} gives {occupied} pixels with labelled galaxies and {text}; "
            f"take a larger nside, another seed or other fractions"
        )


def _check(test: float, valid: float) -> None:
    for name, share in (("test-fraction", test), ("valid-fraction", valid)):
        if not 0 <= share < 1:
            raise UserError(f"{name}: {share}; give a share from 0 up to, but not including, 1")


def shards(place: pd.DataFrame, number: int) -> np.ndarray:
    """The shard (int32, from 0) of each row of a table sorted by run, camcol, field.

    Each shard has the same number of fields, give or take one: frames are what costs. A field is
    in one shard only. Raises UserError for more shards than fields.
    """
    key = place[["run", "camcol", "field"]].to_numpy()
    ordinal = np.concatenate([[0], np.cumsum(np.any(key[1:] != key[:-1], axis=1))])
    fields = int(ordinal[-1]) + 1
    if not 1 <= number <= fields:
        raise UserError(f"shards: {number}, but the galaxies lie on {fields} fields; give 1 to "
                        f"{fields}")  # fmt: skip
    return (ordinal * number // fields).astype(np.int32)
