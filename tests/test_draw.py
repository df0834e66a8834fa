"""Boxes on pictures: pixels of the class's colour where they belong, labels inside the picture."""

import numpy as np
import pytest
from PIL import Image

from tfdet import draw


def is_near(pixels, colour):
    return (np.abs(np.asarray(pixels, int) - colour) < 12).all(-1)


def test_a_box_is_outlined_in_the_colour_of_its_class():
    """100x60 pixels: lines one pixel wide on the box's own corners."""
    image = Image.new("RGB", (100, 60), "gray")
    out = np.asarray(draw.draw_boxes(image, [[20, 30, 80, 50]], [3], "abcd"))
    assert is_near(out[30:51, 20], draw.class_colour(3)).all()
    assert is_near(out[50, 20:81], draw.class_colour(3)).all()
    assert is_near(out[40, 30:70], (128, 128, 128)).all()  # not filled
    assert is_near(np.asarray(image), (128, 128, 128)).all()  # a copy


@pytest.mark.parametrize(
    "box", [[0, 0, 20, 20], [280, 180, 300, 200], [-50, -40, 400, 300], [150, 1, 160, 199], [290, 90, 310, 95]]
)
def test_the_label_stays_in_the_picture(box):
    """The plate holds more pixels of the colour than the outline: as many wherever the box is."""
    size = (300, 200)
    plate = draw.draw_boxes(Image.new("RGB", size), [[100, 100, 101, 101]], [0], ["a long name"], [0.5])
    out = draw.draw_boxes(Image.new("RGB", size), [box], [0], ["a long name"], [0.5])
    count = [is_near(np.asarray(image), draw.class_colour(0)).sum() for image in (plate, out)]
    assert count[1] >= 0.9 * count[0]


def test_text_grows_with_the_picture():
    counts = []
    for side in (300, 1200):
        out = draw.draw_boxes(Image.new("RGB", (side, side)), [[side / 2] * 4], [0], ["name"])
        counts.append(is_near(np.asarray(out), draw.class_colour(0)).sum())
    assert counts[1] > 4 * counts[0]


def test_any_mode_no_boxes_ignored_and_inverted_boxes():
    assert draw.draw_boxes(Image.new("P", (8, 8)), [], [], []).mode == "RGB"
    out = draw.draw_boxes(Image.new("L", (64, 64)), [[50, 50, 10, 40]], [-2], [])
    assert is_near(np.asarray(out), (128, 128, 128)).any()


def test_colours_of_twenty_classes_are_different():
    colours = np.array([draw.class_colour(label) for label in range(20)], int)
    distance = np.abs(colours[:, None] - colours).sum(-1) + 1000 * np.eye(20, dtype=int)
    assert distance.min() > 40
