"""What the CCDs add: gain and dark variance per camera column, band and run.

Values of the SDSS-III frame data model; a catalogue's gain_* and darkVariance_* columns (table
Field) come before them.
"""

from __future__ import annotations

from pipeline.survey.names import BANDS

_GAIN = {
    1: (1.62, 3.32, 4.71, 5.165, 4.745),
    2: (1.595, 3.855, 4.6, 6.565, 5.155),
    3: (1.59, 3.845, 4.72, 4.86, 4.885),
    4: (1.6, 3.995, 4.76, 4.885, 4.775),
    5: (1.47, 4.05, 4.725, 4.64, 3.48),
    6: (2.17, 4.035, 4.895, 4.76, 4.69),
}
_DARK_VARIANCE = {
    1: (9.61, 15.6025, 1.8225, 7.84, 0.81),
    2: (12.6025, 1.44, 1.0, 5.76, 1.0),
    3: (8.7025, 1.3225, 1.3225, 4.6225, 1.0),
    4: (12.6025, 1.96, 1.3225, 6.25, 9.61),
    5: (9.3025, 1.1025, 0.81, 7.84, 1.8225),
    6: (7.0225, 1.8225, 0.9025, 5.0625, 1.21),
}
_LATER_GAIN = {(2, "u"): (1100, 1.825)}
_LATER_DARK_VARIANCE = {
    (2, "i"): (1500, 6.25),
    (4, "i"): (1500, 7.5625),
    (4, "z"): (1500, 12.6025),
    (5, "z"): (1500, 2.1025),
}
"""(camcol, band) -> (the run after which the second value holds, that value)."""


def gain(run: int, camcol: int, band: str) -> float:
    """Electrons per DN. The data model leaves run 1100 itself open; it counts as earlier."""
    return _lookup(_GAIN, _LATER_GAIN, run, camcol, band)


def dark_variance(run: int, camcol: int, band: str) -> float:
    """Dark and read-noise variance [DN^2]; run 1500 itself counts as earlier."""
    return _lookup(_DARK_VARIANCE, _LATER_DARK_VARIANCE, run, camcol, band)


def _lookup(table: dict, later: dict, run: int, camcol: int, band: str) -> float:
    after, value = later.get((camcol, band), (None, None))
    if after is not None and run > after:
        return value
    return table[camcol][BANDS.index(band)]
