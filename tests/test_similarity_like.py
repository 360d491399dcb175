"""Which galaxy a person means, and the table that is printed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run import UserError
from pipeline.similarity import like

TABLE = pd.DataFrame(
    {
        "objID": np.array([587722981742084000, 587722981742084001, -7000000000000000001]),
        "ra": [359.9999, 120.5, 10.0],
        "dec": [-1.25, 89.9999, 0.0],
        "z": [0.1, np.nan, 0.2],
        "petroMag_r": [17.123, np.nan, 16.0],
    }
)


@pytest.mark.parametrize("row", range(3))
def test_an_objid_is_found_to_its_last_digit(row):
    assert like.find(f" {TABLE['objID'][row]} ", TABLE, 5, "moco.h5") == row


@pytest.mark.parametrize(
    ("text", "row"),
    [("0.0002,-1.25", 0), ("359.9998,-1.2501", 0), ("300.5,89.9999", 1), ("10.001, 0.0008", 2)],
)
def test_a_position_names_the_galaxy_near_it(text, row):
    assert like.find(text, TABLE, 5, "moco.h5") == row


def test_beyond_the_radius_the_nearest_is_told():
    text = "no galaxy of moco.h5 within 5 arcsec of 10,0.0014; the nearest of 3 is -70.*5.0 arcsec"
    with pytest.raises(UserError, match=text):
        like.find("10,0.0014", TABLE, 5, "moco.h5")
    assert like.find("10,0.0014", TABLE, 5.1, "moco.h5") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("587722981742084002", "objID 587722981742084002 is none of the 3 galaxies of moco.h5"),
        ("0", "objID 0 is none of the 3"),
        ("1" * 25, "no objID and no RA,DEC"),
        ("M 87", "'M 87' is no objID and no RA,DEC"),
        ("10", "objID 10 is none"),
        ("10.5", "no RA,DEC"),
        ("10,", "no RA,DEC"),
        ("10,20,30", "no RA,DEC"),
        ("361,0", "no RA,DEC"),
        ("10,-91", "no RA,DEC"),
        ("nan,0", "no RA,DEC"),
        ("", "no RA,DEC"),
    ],
)
def test_what_names_no_galaxy_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        like.find(text, TABLE, 5, "moco.h5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["10,0", "587722981742084000"])
def test_a_file_of_no_galaxies_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="moco.h5") as caught:
        like.find(text, TABLE.iloc[:0], 5, "moco.h5")
    assert "\n" not in str(caught.value)


@given(
    ra=st.floats(0, 360), dec=st.floats(-90, 90), arcsec=st.floats(1e-3, 6e5), other=st.booleans()
)
def test_separation_along_a_meridian_is_the_difference_of_declinations(ra, dec, arcsec, other):
    there = dec + arcsec / 3600 * (-1 if dec > 0 else 1)
    opposite = (ra + 180) % 360 if other else ra
    expected = 180 - abs(dec + there) if other else abs(there - dec)  # over the pole, or along
    found = like.separation(ra, dec, np.array([opposite]), np.array([there]))[0]
    assert found == pytest.approx(3600 * expected, rel=1e-7, abs=2e-3)


def test_likes_are_a_table_to_read():
    found = like.likes(TABLE, 0, np.array([2, 1]), np.array([0.98765, -0.5]))
    assert list(found) == ["objID", "ra", "dec", "similarity", "z", "petroMag_r", "separation"]
    assert found["objID"].tolist() == [-7000000000000000001, 587722981742084001]
    text = like.in_words(TABLE, 0, found, "contrastive")
    head, names, first, second = text.splitlines()
    assert head.startswith("587722981742084000 at 359.999900,-1.250000, z 0.1000, r 17.12;")
    assert "nearest of 3 by contrastive vectors" in head
    assert names.split() == ["objID", "ra", "dec", "similarity", "z", "r", "separation"]
    assert first.split() == [
        "-7000000000000000001", "10.000000", "0.000000", "0.9877", "0.2000", "16.00", "10.1", "deg",
    ]  # fmt: skip
    assert second.split()[3:6] == ["-0.5000", "-", "-"]
    assert len({len(line) for line in (names, first, second)}) == 1


@pytest.mark.parametrize(
    ("arcsec", "words"),
    [(0.04, "0.0 arcsec"), (99.9, "99.9 arcsec"), (120, "2.0 arcmin"), (36000, "10.0 deg")],
)
def test_an_angle_is_told_in_the_unit_that_reads_best(arcsec, words):
    assert like.angle(arcsec) == words
