"""The figure and the page of an atlas: what they show, and that the page is whole."""

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_atlas import make_atlas, make_stamps

from pipeline.similarity.atlas import QUANTITIES, draw, has_types
from pipeline.similarity.atlas_page import SIDE, page, thumbnail

REDSHIFT, MAGNITUDE = QUANTITIES


def titles(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def legend(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_a_figure_has_a_panel_for_each_thing_that_is_known():
    figure = draw(make_atlas(), "T", "S")
    assert titles(figure) == ["type (votes of Galaxy Zoo)", REDSHIFT.title, MAGNITUDE.title]
    assert legend(figure.axes[0]) == ["type unknown (10)", "early (10)", "late (10)"]
    assert legend(figure.axes[1]) == ["no spectrum (6)"]
    assert figure.axes[2].get_legend() is None, "all have a magnitude"


def test_types_part_by_colour_and_by_marker():
    early, late = draw(make_atlas(), "T", "S").axes[0].collections[-2:]
    assert not np.array_equal(early.get_facecolor(), late.get_facecolor())
    shapes = [len(one.get_paths()[0].vertices) for one in (early, late)]
    assert shapes[0] != shapes[1]


def test_without_types_there_is_no_panel_of_them():
    table = make_atlas(types=False)
    assert not has_types(table)
    assert titles(draw(table, "T", "S")) == [REDSHIFT.title, MAGNITUDE.title]


def test_colours_are_of_spectroscopic_redshifts_alone():
    table = make_atlas().assign(z=np.nan)
    figure = draw(table, "T", "S")
    assert legend(figure.axes[1]) == ["no spectrum (30)"]
    drawn = figure.axes[1].collections[-1]
    assert len(drawn.get_array()) == 0, "photo-z is no spec-z"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([np.nan], (0, 1)),
        ([0.2, 0.2], (-0.3, 0.7)),
        (np.append(np.arange(101.0), np.nan), (1, 99)),
    ],
)
def test_limits_leave_extremes_out_and_are_never_one_number(values, expected):
    assert REDSHIFT.limits(np.array(values)) == pytest.approx(expected)


def opened(stamp: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(stamp))))


def test_a_thumbnail_is_the_middle_of_a_stamp_with_north_up():
    image = np.zeros((5, 107, 107), np.float32)
    image[:, 60:84, 24:40] = 5.0  # north (rows grow northwards) and east (columns grow westwards)
    image[:, :20] = 50.0  # outside of the middle
    seen = opened(thumbnail(image)).astype(int).sum(axis=2)
    assert seen.shape == (SIDE, SIDE)
    half = SIDE // 2
    assert seen[:half, :half].mean() > 100 + seen[half:].mean()
    assert seen[:half, :half].mean() > 100 + seen[:half, half:].mean()
    assert opened(thumbnail(image[:, :21, :21])).shape == (21, 21, 3), "smaller ones are whole"


def item(content: str) -> dict:
    """What the page gives Bokeh."""
    return json.loads(re.search(r'embed_item\((\{.*\}), "atlas"\)', content)[1])


def test_a_page_holds_every_stamp_and_asks_for_nothing_else():
    table = make_atlas()
    stamps = make_stamps(table.iloc[5:15])
    content = page(table, stamps, "An <atlas>", "of these\nhere")
    assert "<h1>An &lt;atlas&gt;</h1>" in content and "<p>of these<br>here</p>" in content
    assert all(content.count(stamp) == 1 for stamp in stamps)
    for objid, has_stamp in zip(table["objID"], table["objID"].isin(stamps.index), strict=True):
        assert (f'"{objid}"' in content) == has_stamp, "ids are text: JavaScript rounds numbers"
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"'](?!data:)[^$@]", content)
    assert set(item(content)) == {"target_id", "root_id", "doc", "version"}


def test_a_page_without_types_has_two_colourings():
    with_types, without = (
        json.dumps(item(page(table, make_stamps(table), "T", "S")))
        for table in (make_atlas(), make_atlas(types=False))
    )
    labels = f'["{REDSHIFT.title}", "{MAGNITUDE.title}"]'
    assert labels in without and f'["type", {labels[1:]}' in with_types
    assert "early type" in with_types and "votes of Galaxy Zoo" not in without


def test_the_same_atlas_gives_the_same_page_again():
    table = make_atlas()
    stamps = make_stamps(table)
    first = page(table, stamps, "T", "S")
    assert page(table, stamps, "T", "S") == first
    other = pd.Series(stamps.to_numpy()[::-1], stamps.index)
    assert page(table, other, "T", "S") != first
