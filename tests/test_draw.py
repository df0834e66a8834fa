"""Boxes on pictures: pixels of the class's colour where they belong, labels inside the picture."""

import numpy as np
import pytest
from PIL import Image

from tfdet import draw
from tfdet.draw import charts, sheet
from tfdet.metrics import Curve


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


# --- charts and sheets --------------------------------------------------------------------------


def curve(points, known=True):
    recall, precision, scores = (np.array(column, float) for column in zip(*points)) if points else np.zeros((3, 0))
    return Curve(recall, precision, scores, known)


@pytest.mark.parametrize("classes", [1, 3, 25])
def test_charts_of_any_number_of_classes(tmp_path, classes):
    """One class with a curve, one where nothing was found, one without boxes, and 22 more."""
    curves = [curve([(0.5, 1.0, 0.9), (0.5, 0.5, 0.8)]), curve([]), curve([(0.0, 0.0, 0.5)], known=False)]
    curves = (curves + curves[:1] * 22)[:classes]
    averages, names = [0.5, 0.0, np.nan, *[0.5] * 22][:classes], [f"class {i}" for i in range(classes)]
    charts.save_precision_recall(tmp_path / "pr.png", curves, averages, names, min_score=0.85)
    charts.save_confusion(tmp_path / "confusion.png", np.eye(classes + 1, dtype=int) * 1234, names, "title")
    for name in ("pr", "confusion"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.convert("L").getextrema()[0] < 100


def test_a_line_in_the_colour_of_its_class(tmp_path):
    charts.save_precision_recall(tmp_path / "pr.png", [curve([(0.9, 0.5, 0.9)])], [0.45], ["red"])
    pixels = np.asarray(Image.open(tmp_path / "pr.png").convert("RGB"))
    assert is_near(pixels, draw.class_colour(0)).sum() > 200


def test_a_contact_sheet_shows_the_box_and_its_surroundings():
    """A red box of 20x20 in the middle of its cell, which shows 40x40 of the photo: 50 to 150 of 200 pixels."""
    photo = Image.new("RGB", (100, 60), "blue")
    photo.paste("red", (30, 20, 50, 40))
    cell = sheet.Cell(photo, np.array([30, 20, 50, 40]), 3, np.zeros((0, 4)), ("a caption", "x" * 200))
    pixels = np.asarray(sheet.contact_sheet({"heading": [cell] * 3, "nothing": []}, columns=2, side=200))
    assert pixels.shape[1] == 2 * 210 + 10
    top = 10 + 30
    for x in (10, 220):
        assert is_near(pixels[top + 60 : top + 140, x + 60 : x + 140], (255, 0, 0)).all()
        assert is_near(pixels[top + 5 : top + 45, x + 5 : x + 195], (0, 0, 255)).all()
        assert is_near(pixels[top + 60 : top + 140, x + 50], draw.class_colour(3)).all()


def test_a_box_at_the_corner_of_a_photo_and_a_tiny_one():
    photo = Image.new("RGB", (40, 30), "green")
    boxes = ([-5, -5, 4, 4], [39, 29, 40, 30], [5, 5, 5, 5])
    cells = [sheet.Cell(photo, np.array(box), 0, np.array([[0, 0, 40, 30]]), ()) for box in boxes]
    assert sheet.contact_sheet({"corners": cells}).width > 0
