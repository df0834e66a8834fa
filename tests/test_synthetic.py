"""The drawn data sets: real files, tight boxes, the two formats saying the same."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfdet.data import synthetic


def image_size(path):
    with Image.open(path) as image:
        return image.size


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shapes")
    return directory, synthetic.make_shapes(directory, num_images=60, seed=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    directory = tmp_path_factory.mktemp("photos")
    return directory, synthetic.make_photos(directory, num_images=8, seed=1)


def test_shapes_are_jpeg_files_of_many_sizes(shapes):
    sizes = set()
    for annotation in shapes[1]:
        with Image.open(annotation.image_path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.add(image.size)
    assert len(sizes) >= 6
    assert any(width > height for width, height in sizes)
    assert any(width < height for width, height in sizes)


def test_shapes_have_up_to_eight_objects_of_every_class_and_some_images_none(shapes):
    counts = [len(annotation.labels) for annotation in shapes[1]]
    assert min(counts) == 0
    assert max(counts) in range(5, 9)
    assert set(np.concatenate([annotation.labels for annotation in shapes[1]])) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["shapes", "photos"])
def test_both_formats_say_what_was_returned(name, request):
    directory, annotations = request.getfixturevalue(name)
    classes = (directory / "classes.txt").read_text().split()
    rows = pickle.loads((directory / "gt.pkl").read_bytes())
    lines = (directory / "lines.txt").read_text().splitlines()
    assert len(rows) == len(lines) == len(annotations)
    for annotation, line in zip(annotations, lines):
        path, *texts = line.split()
        width, height = image_size(directory / path)
        pixels = np.array([text.split(",") for text in texts], int).reshape(-1, 5)
        corners = pixels[:, :4] / np.array([width, height, width, height])
        row = rows[annotation.image_id]
        assert row.shape == (len(pixels), 4 + len(classes))
        np.testing.assert_allclose(row[:, :4], corners, atol=1e-6)
        np.testing.assert_allclose(annotation.boxes, corners, atol=1e-6)
        np.testing.assert_array_equal(row[:, 4:], np.eye(len(classes))[pixels[:, 4]])
        np.testing.assert_array_equal(annotation.labels, pixels[:, 4])


def test_boxes_lie_inside_the_image(shapes, photos):
    for annotation in shapes[1] + photos[1]:
        boxes = annotation.boxes
        assert boxes.dtype == np.float32
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("name", synthetic.SHAPE_CLASSES)
def test_a_box_is_as_tight_as_pixels_allow(name, rng):
    """On one flat colour the changed pixels show where the shape is; its edge blends over one pixel at most."""
    for _ in range(5):
        canvas = np.full((150, 200, 3), 128, np.float32)
        x_min, y_min, x_max, y_max = synthetic._place(rng, canvas, name, [])
        changed = np.abs(canvas - 128).max(-1) > 0
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (x_min, y_min, x_max, y_max)
        assert min(x_max - x_min, y_max - y_min) >= 10


def test_tight_box_by_hand():
    covered = np.zeros((5, 6), bool)
    covered[1:4, 2] = covered[2, 2:5] = True  # rows 1-3, columns 2-4
    assert synthetic._tight_box(covered) == (2, 1, 5, 4)


def test_the_same_seed_draws_the_same_files(shapes, tmp_path):
    again = synthetic.make_shapes(tmp_path, num_images=3, seed=1)
    other = synthetic.make_shapes(tmp_path / "other", num_images=3, seed=2)
    for ours, theirs, different in zip(again, shapes[1], other):
        same = [Path(item.image_path).read_bytes() for item in (ours, theirs, different)]
        assert same[0] == same[1] != same[2]
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)


def test_photos_weigh_what_photos_weigh(photos):
    directory, annotations = photos
    sizes = [path.stat().st_size for path in (directory / "images").iterdir()]
    assert len(sizes) == 8
    assert all(78_000 <= size <= 92_000 for size in sizes)
    assert {image_size(item.image_path) for item in annotations} == {(640, 480), (480, 640)}
    assert all(1 <= len(item.labels) <= 8 for item in annotations)


def test_photos_have_the_spectrum_of_photos(photos):
    """Natural images: power falls about as 1 / frequency^2 (Field 1987), so amplitude as its inverse."""
    slopes = []
    for annotation in photos[1][:3]:
        with Image.open(annotation.image_path) as image:
            gray = np.asarray(image.convert("L"), float)[:480, :480]
        power = np.abs(np.fft.rfft2(gray - gray.mean())) ** 2
        frequency = np.hypot(np.fft.fftfreq(480)[:, None], np.fft.rfftfreq(480)[None])
        band = (frequency > 0.01) & (frequency < 0.25)
        slopes.append(np.polyfit(np.log(frequency[band]), np.log(power[band] + 1e-9), 1)[0])
    assert -3.2 < np.mean(slopes) < -1.5
