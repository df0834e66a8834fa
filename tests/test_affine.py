import numpy as np
import pytest
import tensorflow as tf

from tfdet.config import AugmentConfig, ConfigError
from tfdet.data import affine

SIZE = (60, 90)
ALL = AugmentConfig(rotate=30.0, shear=15.0, translate=0.2)


@pytest.fixture
def draws(rng):
    return lambda *shape: rng.uniform(size=shape).astype("f4")


def in_map(function, *arrays):
    """The function inside Dataset.map, as the pipeline calls it."""
    return tf.nest.map_structure(lambda x: x.numpy(), next(iter(tf.data.Dataset.from_tensors(arrays).map(function))))


def twin_plan(u, config, size):
    """One point at a time: the map is known by where it sends three points."""
    height, width = size
    u = 2 * u.astype("f8") - 1
    angle, tan_x, tan_y = np.radians(u[1] * config.rotate), *np.tan(np.radians(u[2:4] * config.shear))

    def send(x, y):
        x, y = x - width / 2, y - height / 2
        x, y = x + tan_x * y, tan_y * x + y
        x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
        return np.array(
            [x + width / 2 + u[4] * config.translate * width, y + height / 2 + u[5] * config.translate * height]
        )

    zero = send(0, 0)
    return np.stack([send(1, 0) - zero, send(0, 1) - zero, zero], 1)


def twin_image(image, matrix):
    """Every pixel of the result asks where it comes from; gray from outside, blended at the border."""
    height, width, _ = image.shape
    padded = np.full([height + 2, width + 2, 3], 128.0)
    padded[1:-1, 1:-1] = image
    y, x = np.mgrid[:height, :width] + 0.5
    inverse = np.linalg.inv(matrix[:, :2])
    place = np.stack([x, y], -1) - matrix[:, 2]
    place = place @ inverse.T - 0.5
    low = np.floor(place).astype(int)
    share = place - low
    total = 0
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = low[..., 0] + dx, low[..., 1] + dy
            weight = np.abs(1 - dx - share[..., 0]) * np.abs(1 - dy - share[..., 1])
            total += weight[..., None] * padded[np.clip(row + 1, 0, height + 1), np.clip(column + 1, 0, width + 1)]
    return total


@pytest.mark.parametrize("size", [(60, 90), (300, 300), (200, 40)])
@pytest.mark.parametrize(
    "config", [ALL, AugmentConfig(rotate=180.0), AugmentConfig(shear=44.0), AugmentConfig(translate=1.0)]
)
def test_the_map_equals_its_twin(draws, size, config):
    u = draws(20, affine.NUM_DRAWS)
    result = in_map(lambda u: affine.plan(u, config, size), u)
    np.testing.assert_allclose(result, affine.plan(tf.constant(u), config, size), atol=1e-4)
    for row, matrix in zip(u, result):
        np.testing.assert_allclose(matrix, twin_plan(row, config, size), atol=2e-3)


def test_a_quarter_turn_by_hand():
    """Draws .75 of +-180 degrees: 90 degrees clockwise. On 60 x 90 the middle of the right side goes to the bottom."""
    u = np.float32([[0, 0.75, 0.5, 0.5, 0.5, 0.5]])
    matrix = affine.plan(tf.constant(u), AugmentConfig(rotate=180.0), SIZE).numpy()[0]
    np.testing.assert_allclose(matrix @ [75, 30, 1], [45, 60], atol=1e-4)  # 30 right of (45, 30) -> 30 below
    box = np.float32([[[75 / 90, 20 / 60, 80 / 90, 40 / 60]]])  # x 75 to 80, y 20 to 40 -> x 35 to 55, y 60 to 65: out
    boxes, labels = affine.map_boxes(box, np.int32([[1]]), matrix[None], SIZE)
    assert labels.numpy().tolist() == [[-1]]
    box = np.float32([[[60 / 90, 20 / 60, 70 / 90, 40 / 60]]])  # -> x 35 to 55, y 45 to 55
    boxes, labels = affine.map_boxes(box, np.int32([[1]]), matrix[None], SIZE)
    np.testing.assert_allclose(boxes.numpy()[0, 0] * [90, 60, 90, 60], [35, 45, 55, 55], atol=1e-3)


def test_a_share_of_images_is_left_alone(draws, rng):
    config = AugmentConfig(rotate=30.0, affine_probability=0.4)
    matrices = affine.plan(draws(300, affine.NUM_DRAWS), config, SIZE).numpy()
    same = (matrices == np.eye(2, 3)).all((1, 2))
    assert 0.5 < same.mean() < 0.7
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    for turn in (affine.map_images, affine.compiled_map_images):
        np.testing.assert_array_equal(turn(tf.constant(image)[None], tf.eye(2, 3)[None])[0], image)


@pytest.mark.parametrize("size", [(60, 90), (40, 40), (1, 1)])
def test_pixels_equal_their_twin(draws, rng, size):
    images = rng.integers(0, 256, (6, *size, 3), np.uint8)
    matrices = affine.plan(draws(6, affine.NUM_DRAWS), ALL, size).numpy()
    for turn in (affine.map_images, affine.compiled_map_images):
        result = in_map(turn, images, matrices)
        eager = turn(tf.constant(images), tf.constant(matrices)).numpy()
        np.testing.assert_allclose(eager.astype(int), result, atol=1)  # a rare .5
        for image, matrix, found in zip(images, matrices, result):
            assert np.abs(found - twin_image(image, matrix)).max() <= 0.8  # a place near a border: .001 of 255 more


@pytest.mark.parametrize("number", [0, 1, 100])
@pytest.mark.parametrize("min_visible", [0.0, 0.5])
def test_boxes_equal_their_twin(draws, rng, number, min_visible):
    corners = np.sort(rng.uniform(size=(8, number, 2, 2)), axis=2).astype("f4")
    boxes, labels = np.zeros([8, 128, 4], "f4"), np.full([8, 128], -1, "i4")
    boxes[:, :number], labels[:, :number] = corners.reshape(8, number, 4), np.arange(number)
    matrix = affine.plan(draws(8, affine.NUM_DRAWS), ALL, SIZE).numpy()
    new_boxes, new_labels = in_map(lambda *a: affine.map_boxes(*a, SIZE, min_visible), boxes, labels, matrix)
    different = 0
    for row in range(8):
        for k in range(number):
            x0, y0, x1, y1 = boxes[row, k].astype("f8") * [90, 60, 90, 60]
            moved = np.array([matrix[row] @ [x, y, 1] for x in (x0, x1) for y in (y0, y1)])
            around = np.concatenate([moved.min(0), moved.max(0)])
            cut = np.clip(around, 0, [90, 60, 90, 60])
            sides = cut[2:] - cut[:2]
            keep = sides.min() >= 1 and sides.prod() >= min_visible * (around[2:] - around[:2]).prod()
            different += keep != (new_labels[row, k] == k)
            if keep and new_labels[row, k] >= 0:
                np.testing.assert_allclose(new_boxes[row, k] * [90, 60, 90, 60], cut, atol=1e-3)
    assert different <= 2  # at the very limit
    assert (new_labels[:, number:] == -1).all()
    assert (new_boxes[new_labels == -1] == 0).all()
    real = new_boxes[new_labels >= 0]
    assert (real[:, 2:] > real[:, :2]).all()
    assert new_boxes.min() >= 0
    assert new_boxes.max() <= 1


def test_boxes_frame_what_they_framed(draws):
    """A white rectangle on black, turned: the box is the frame of the white."""
    image, box = np.zeros([*SIZE, 3], np.uint8), np.float32([[[30 / 90, 20 / 60, 55 / 90, 38 / 60]]])
    image[20:38, 30:55] = 255
    config = AugmentConfig(rotate=40.0, shear=10.0, translate=0.05)
    for matrix in affine.plan(draws(10, affine.NUM_DRAWS), config, SIZE):
        found = affine.map_images(tf.constant(image)[None], matrix[None]).numpy()[0].min(-1) > 150
        rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
        boxes, _ = affine.map_boxes(box, np.int32([[0]]), matrix[None], SIZE)
        frame = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(boxes.numpy()[0, 0] * [90, 60, 90, 60] - frame).max() <= 2


@pytest.mark.parametrize("options", [{"rotate": 200.0}, {"shear": 45.0}, {"translate": -0.1}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ConfigError, match=f"augment.{next(iter(options))}"):
        AugmentConfig(**options)
