"""Windows, placing and colour draws against slow twins: one image at a time, plain Python, the same draws."""

import numpy as np
import pytest
import tensorflow as tf

from tfdet.config import SSD_PAPER_AUGMENT, YOLO_AUGMENT, AugmentConfig
from tfdet.data import augment, image_ops

WHOLE = [0.0, 0.0, 1.0, 1.0]


def both_ways(function, *arrays):
    """The function's result eagerly, which must be what it is inside Dataset.map."""
    arrays = tuple(tf.constant(array) for array in arrays)
    eager = tf.nest.map_structure(lambda x: x.numpy(), function(*arrays))
    mapped = next(tf.data.Dataset.from_tensors(arrays).map(function).as_numpy_iterator())
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), eager, mapped)
    return eager


# --- the SSD paper's sampler ----------------------------------------------------------------------


def twin_ssd_crop(u, boxes, labels):
    """50 tries one after the other, each with its own scale, aspect and place."""
    choice = int(np.float32(u[0]) * np.float32(7))
    if choice == 6:
        return WHOLE
    objects = [box for box, label in zip(boxes, labels) if label != -1 and box[2] > box[0] and box[3] > box[1]]
    for scale, aspect, x, y in zip(*np.float64(u[1:]).reshape(4, 50)):
        scale = 0.3 + 0.7 * scale
        least, most = max(0.5, scale**2), min(2.0, 1 / scale**2)
        root = (least + (most - least) * aspect) ** 0.5
        width, height = scale * root, scale / root
        left, top = x * (1 - width), y * (1 - height)
        window = [left, top, left + width, top + height]
        enough = any(iou(window, box) >= (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)[choice] for box in objects)
        if enough and any(holds_centre(window, box) for box in objects):
            return window
    return WHOLE


def iou(a, b):
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def holds_centre(window, box):
    return window[0] < (box[0] + box[2]) / 2 < window[2] and window[1] < (box[1] + box[3]) / 2 < window[3]


@pytest.mark.parametrize("number, padded", [(0, 8), (1, 8), (100, 128)])
def test_ssd_crop(rng, number, padded):
    u = rng.uniform(size=(24, 201)).astype("f4")
    low = rng.uniform(-0.1, 0.8, (24, number, 2))
    boxes = np.zeros([24, padded, 4], "f4")
    boxes[:, :number] = np.concatenate([low, low + rng.uniform(0.02, 0.5, (24, number, 2))], -1)
    labels = np.full([24, padded], -1, "i4")
    labels[:, :number] = rng.choice([0, 3, -2], (24, number))
    windows = both_ways(augment.ssd_crop, u, boxes, labels)
    expected = [twin_ssd_crop(*row) for row in zip(u, boxes, labels)]
    np.testing.assert_allclose(windows, expected, atol=2e-6)
    assert (windows != WHOLE).any() == (number > 0)


# --- zooming out ----------------------------------------------------------------------------------


def twin_expand(u, config):
    """A canvas of the drawn ratio; the image's corner is put anywhere that leaves the image on it."""
    if not u[0] < config.expand_probability:
        return WHOLE
    ratio = 1 + (config.expand_ratio - 1) * float(u[1])
    left, top = float(u[2]) * (ratio - 1), float(u[3]) * (ratio - 1)
    return [-left, -top, ratio - left, ratio - top]


@pytest.mark.parametrize("geometry", ["none", "ssd_crop"])
@pytest.mark.parametrize("size", [(300, 300), (120, 500)])
def test_expand(rng, geometry, size):
    config = AugmentConfig(geometry=geometry, expand_probability=0.5, expand_ratio=3.0)
    u = rng.uniform(size=(30, augment.NUM_WINDOW_DRAWS[geometry])).astype("f4")
    u[:, 4:5] = 0.99  # of ssd_crop: the whole canvas
    boxes, labels = np.zeros([30, 8, 4], "f4"), np.full([30, 8], -1, "i4")
    windows = both_ways(
        lambda u: augment.choose_window(u, tf.constant([size] * 30), boxes, labels, config, (300, 300)), u
    )
    np.testing.assert_allclose(windows, [twin_expand(row, config) for row in u], atol=1e-5)
    assert (windows == WHOLE).all(-1).any()


def test_expand_never_and_always(rng):
    u = rng.uniform(size=(9, 4)).astype("f4")
    whole = np.tile(np.float32(WHOLE), (9, 1))
    for probability in (0.0, 1.0):
        config = AugmentConfig(geometry="none", expand_probability=probability)
        windows = both_ways(lambda u, config=config: augment.expand(u, whole, config), u)
        np.testing.assert_allclose(windows, [twin_expand(row, config) for row in u], atol=1e-5)


# --- placing on the canvas ------------------------------------------------------------------------


def twin_canvas(image, crop, target, window, output, fill):
    """Every output pixel by itself: its centre, seen through the window, and the four decoded pixels around that."""
    canvas = np.tile(np.float64(fill), (*output, 1))
    height, width = image.shape[:2]
    part = image[crop[0] : crop[0] + crop[2], crop[1] : crop[1] + crop[3]].astype("f8")
    for row in range(target[0], target[0] + target[2]):
        y = (window[1] + (window[3] - window[1]) * (row + 0.5) / output[0]) * height - 0.5 - crop[0]
        for column in range(target[1], target[1] + target[3]):
            x = (window[0] + (window[2] - window[0]) * (column + 0.5) / output[1]) * width - 0.5 - crop[1]
            canvas[row, column] = bilinear(part, y, x)
    return canvas


def bilinear(image, y, x):
    """The colour at a place between pixel centres; beyond the outer ones it stays theirs."""
    y, x = np.clip(y, 0, image.shape[0] - 1), np.clip(x, 0, image.shape[1] - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
    upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
    lower = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


@pytest.mark.parametrize("output", [(24, 24), (20, 36)])
@pytest.mark.parametrize("size", [(30, 30), (17, 51), (1, 1)])
@pytest.mark.parametrize("config", [SSD_PAPER_AUGMENT, YOLO_AUGMENT], ids=["zoom out", "yolo_jitter"])
def test_images_on_their_canvas(rng, config, size, output):
    count, geometry = 6, "none" if config is SSD_PAPER_AUGMENT else "yolo_jitter"
    images = rng.integers(0, 256, (count, *size, 3), np.uint8)
    u = rng.uniform(size=(count, 9)).astype("f4")
    u[:, 0] = 0.0  # zooms out
    sizes, no_boxes = np.tile(np.int32(size), (count, 1)), (np.zeros([count, 8, 4], "f4"), np.full([count, 8], -1))
    config = AugmentConfig(**{**config.__dict__, "geometry": geometry})

    def show(u, sizes, images):
        asked = augment.choose_window(u, sizes, *no_boxes, config, output)
        crop, target, ratio, window = image_ops.place(asked, sizes, output, allow_ratio=False)
        raw = [image.tobytes() for image in images_as_numpy]
        pixels = [
            image_ops.resize_into(
                image_ops.decode_crop(raw[i], crop[i], ratio[i], "raw", sizes[i]), target[i], output, image_ops.GRAY
            )
            for i in range(count)
        ]
        return asked, crop, target, window, tf.stack(pixels)

    images_as_numpy = images
    asked, crop, target, window, pixels = both_ways(show, u, sizes, images)
    for i in range(count):
        expected = twin_canvas(images[i], crop[i], target[i], window[i], output, image_ops.GRAY)
        assert np.abs(pixels[i] - expected).max() <= 0.5 + 1e-2
        # what is shown is what was asked for, to a source pixel and an output pixel at both ends
        side = np.tile((asked[i, 2:] - asked[i, :2]) / output[::-1] + 1 / np.array(size[::-1]), 2)
        overlaps = (asked[i, :2] < 1).all() and (asked[i, 2:] > 0).all()
        if overlaps and min(size) > 1:
            shown = np.clip(np.stack([asked[i], window[i]]), 0, 1)
            assert (np.abs(shown[0] - shown[1]) <= side + 1e-5).all()


def test_keras_yolo3_pastes_the_whole_image(rng):
    """Where the drawn image is smaller than the input it is resized to whole pixels and put at whole pixels."""
    config = AugmentConfig(geometry="yolo_jitter", scale=(0.3, 0.8), jitter=0.1)
    u, size, output = rng.uniform(size=(40, 5)).astype("f4"), (50, 80), (96, 96)
    windows = augment.yolo_jitter(tf.constant(u), config, output)
    crop, target, _, _ = image_ops.place(windows, tf.constant([size] * 40), output, allow_ratio=False)
    assert (crop.numpy() == [0, 0, *size]).all()
    same = [list(row) == twin_paste(draws, config, output) for row, draws in zip(target.numpy(), u)]
    assert np.mean(same) > 0.9  # single precision floors a rare side otherwise


def twin_paste(u, config, output):
    """y, x, height, width."""
    u = np.float64(u)
    aspect = output[1] / output[0] * (0.9 + 0.2 * u[0]) / (0.9 + 0.2 * u[1])
    scale = config.scale[0] + (config.scale[1] - config.scale[0]) * u[2]
    if aspect < 1:
        height = int(scale * output[0])
        width = int(height * aspect)
    else:
        width = int(scale * output[1])
        height = int(width / aspect)
    return [int(u[4] * (output[0] - height)), int(u[3] * (output[1] - width)), height, width]


# --- keras-yolo3's colour draws -------------------------------------------------------------------


def twin_factor(u, limit):
    """A coin, then a number from 1 to the limit, which counts as it is or inverted; one draw is both."""
    if u < 0.5:
        return 1 + (limit - 1) * (u / 0.5)
    return 1 / (1 + (limit - 1) * (u - 0.5) / 0.5)


@pytest.mark.parametrize("count", [0, 1, 100])
def test_hsv_factors(rng, count):
    u = rng.uniform(size=(count, augment.NUM_COLOUR_DRAWS)).astype("f4")
    hue, saturation, value = both_ways(lambda u: augment.hsv_factors(u, YOLO_AUGMENT), u)
    np.testing.assert_allclose(hue, [-0.1 + 0.2 * row[4] for row in u], atol=1e-6)
    np.testing.assert_allclose(saturation, [twin_factor(row[5], 1.5) for row in u], rtol=1e-6)
    np.testing.assert_allclose(value, [twin_factor(row[6], 1.5) for row in u], rtol=1e-6)
