"""Early or late: the type of a galaxy from the votes of Galaxy Zoo 1 in the catalogue.

Lintott et al. 2008, 2011 (arXiv:1007.3265): volunteers voted elliptical (p_el), spiral of one kind
or another (p_cs) or neither; a type counts as clean where more than 0.8 of the debiased votes are
for it (Lintott et al. 2011, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.images import manifest
from pipeline.run import UserError

CLASSES = ("late", "early")
"""By their number; early is what a classifier's probability is of."""
_VOTES = ("p_el", "p_cs")


@dataclass(frozen=True)
class Votes:
    """Which galaxies have a type: more than `threshold` of `least_votes` votes or more.

    The threshold is of the fraction for elliptical (early) or spiral (late), `debiased` for what
    distance and size hide of spiral arms, or as voted.
    """

    threshold: float = 0.8
    debiased: bool = True
    least_votes: int = 1

    def __post_init__(self):
        if not 0.5 <= self.threshold < 1:  # below, a galaxy could be of both types
            raise UserError(f"threshold: {self.threshold:g}; give a share of the votes from 0.5 "
                            "up to, not including, 1")  # fmt: skip
        if self.least_votes < 1:
            raise UserError(f"least_votes: {self.least_votes}; give 1 or more")

    @property
    def columns(self) -> tuple[str, str]:
        """Of the catalogue: the votes' fractions for early, for late."""
        end = "_debiased" if self.debiased else ""
        return tuple(f"{name}{end}" for name in _VOTES)


def read_types(catalog: str, objid: np.ndarray, votes: Votes | None = None) -> np.ndarray:
    """The types of galaxies `objid` (n,): 1 early, 0 late, NaN neither or no votes; float64 (n,).

    Raises:
        UserError: none of them has votes, or one is not in the catalogue.
    """
    votes = votes or Votes()
    names = ("nvote", *votes.columns)
    table = manifest.catalogued(catalog, objid, names)
    lacking = [name for name in names if name not in table or table[name].isna().all()]
    if lacking:
        raise UserError(f"{catalog}: none of the galaxies has a {lacking[0]}; types come from "
                        "Galaxy Zoo's votes (queries/morphology.sql)")  # fmt: skip
    number, early, late = (
        table[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names
    )
    enough = number >= votes.least_votes  # a missing number is not
    types = np.full(len(objid), np.nan)
    types[enough & (late > votes.threshold)] = CLASSES.index("late")
    types[enough & (early > votes.threshold)] = CLASSES.index("early")
    return types
