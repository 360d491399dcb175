"""What the figures of a search draw and say."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from pipeline.images.gallery import gallery, mosaic, words
from pipeline.images.sheet import colour_image

NAN = float("nan")


def stamps(*shape, size=11):
    return np.random.default_rng(0).normal(0.02, 0.3, (*shape, 5, size, size)).astype(np.float32)


def drawn(figure):
    """The axes that hold a stamp, in the order of reading."""
    return [axis for axis in figure.axes if axis.images]


def squares(axis):
    return [patch for patch in axis.patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize(
    ("galaxy", "expected"),
    [
        ({"z": 0.12345, "petroMag_r": 17.46}, "z = 0.123\nr = 17.5"),
        ({"z": NAN, "photoz": 0.251, "petroMag_r": 17.4}, "photo-z = 0.25\nr = 17.4"),
        ({"z": NAN, "photoz": -9999.0, "petroMag_r": 17.4}, "r = 17.4"),
        ({"z": NAN, "photoz": NAN, "petroMag_r": NAN}, "no redshift"),
        ({"z": 0.1, "similarity": 0.98765}, "z = 0.100\nsimilarity 0.9877"),
        ({"z": 0.1, "outlier_rank": 3, "outlier_score": 0.25}, "3.  z = 0.100\nscore 0.2500"),
    ],
)
def test_what_is_said_below_a_stamp(galaxy, expected):
    assert words(galaxy) == expected


def test_a_gallery_has_a_row_for_each_query_and_frames_it():
    rows = [[{"z": 0.1 * line}, *[{"z": 0.2, "similarity": 0.9}] * 2] for line in range(4)]
    images = stamps(4, 3)
    figure = gallery(rows, images, crop=5, title="T", subtitle="S")
    axes = drawn(figure)
    assert len(axes) == 12
    for at, axis in enumerate(axes):
        expected = colour_image(images[at // 3, at % 3])
        assert np.array_equal(axis.images[0].get_array(), expected)
        assert axis.images[0].origin == "lower"
        assert len(squares(axis)) == (2 if at % 3 == 0 else 1)
    texts = [text.get_text() for axis in axes for text in axis.texts]
    assert texts.count("query") == texts.count("nearest neighbours") == 1
    assert sum("similarity 0.9000" in text for text in texts) == 8


@pytest.mark.parametrize(
    ("size", "crop", "low", "high"), [(107, 64, 20.5, 84.5), (11, 5, 2.5, 7.5)]
)
def test_the_square_is_that_of_the_encoders_crop(size, crop, low, high):
    """Pixels [c - crop // 2, c - crop // 2 + crop) with c = size // 2, their outer edges."""
    figure = mosaic([{"z": 0.1}], stamps(1, size=size), crop, "T", "S")
    square = squares(drawn(figure)[0])[0]
    assert square.get_xy() == (low, low)
    assert square.get_width() == square.get_height() == high - low


def test_a_crop_of_the_whole_stamp_has_no_square():
    figure = mosaic([{"z": 0.1}] * 7, stamps(7), 11, "T", "S", columns=3, framed=True)
    axes = drawn(figure)
    assert [len(squares(axis)) for axis in axes] == [1, 0, 0, 0, 0, 0, 0]
    bottoms = sorted({round(axis.get_position().y0, 6) for axis in axes}, reverse=True)
    assert [sum(round(a.get_position().y0, 6) == y for a in axes) for y in bottoms] == [3, 3, 1]


def test_stamps_of_a_figure_are_square_and_do_not_overlap():
    figure = gallery([[{"z": 0.1}] * 6] * 3, stamps(3, 6), 5, "T", "S")
    width, height = figure.get_size_inches()
    boxes = [axis.get_position() for axis in drawn(figure)]
    for box in boxes:
        assert box.width * width == pytest.approx(box.height * height)
        assert 0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1
    for at, one in enumerate(boxes):
        for other in boxes[at + 1 :]:
            apart = one.x1 <= other.x0 or other.x1 <= one.x0
            assert apart or one.y1 <= other.y0 or other.y1 <= one.y0
