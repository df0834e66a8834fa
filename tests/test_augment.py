import numpy as np
import pytest
import tensorflow as tf

from tfdet.config import SSD_PAPER_AUGMENT, YOLO_AUGMENT, AugmentConfig
from tfdet.data import augment, image_ops


@pytest.fixture
def draws(rng):
    return lambda *shape: rng.uniform(size=shape).astype("f4")


def in_map(function, *arrays):
    """The function inside Dataset.map, as the pipeline calls it."""
    return next(iter(tf.data.Dataset.from_tensors(arrays).map(function)))


# --- slow twins: one image at a time, plain Python ------------------------------------------------


def twin_random_size_crop(u, height, width, config):
    area = height * width * (config.crop_area[0] + (config.crop_area[1] - config.crop_area[0]) * u[0])
    aspect = config.crop_aspect[0] + (config.crop_aspect[1] - config.crop_aspect[0]) * u[1]
    w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
    if u[2] < 0.5:
        w, h = h, w
    w, h = min(w, width), min(h, height)
    x, y = int(u[3] * (width - w)), int(u[4] * (height - h))
    return np.array([x / width, y / height, (x + w) / width, (y + h) / height])


def twin_yolo_jitter(u, config, height, width):
    low, span = 1 - config.jitter, 2 * config.jitter
    aspect = width / height * (low + span * u[0]) / (low + span * u[1])
    scale = config.scale[0] + (config.scale[1] - config.scale[0]) * u[2]
    if aspect < 1:
        h = int(scale * height)
        w = int(h * aspect)
    else:
        w = int(scale * width)
        h = int(w / aspect)
    dx, dy = int(u[3] * (width - w)), int(u[4] * (height - h))
    return np.array([-dx / w, -dy / h, (width - dx) / w, (height - dy) / h])


def twin_colour(u, normals, image, config):
    """The seed's steps one after the other on an image whose statistics are given by its pixels; clips at the end."""
    image = image.astype("f8")
    order = augment._ORDERS[int(u[3] * 6)]
    factors = [
        1 + amount * (2 * u[i] - 1) for i, amount in enumerate((config.saturation, config.brightness, config.contrast))
    ]
    for step in order:
        luma = image @ np.array(image_ops.LUMA)
        if step == 0:
            image = image * factors[0] + (1 - factors[0]) * luma[..., None]
        elif step == 1:
            image = image * factors[1]
        else:
            image = image * factors[2] + (1 - factors[2]) * luma.mean()
    covariance = np.cov(image.reshape(-1, 3) / 255, rowvar=False, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    noise = vectors @ (values * (vectors.T @ normals) * config.lighting)
    return np.clip(image + noise * 255, 0, 255)


# --- windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300, 300), (480, 640), (640, 200), (1, 1)])
def test_random_size_crop_equals_its_twin(draws, size):
    config, u = AugmentConfig(), draws(40, 6)
    sizes = tf.tile(tf.constant([size]), [40, 1])
    for result in (
        augment.random_size_crop(u, sizes, config),
        in_map(lambda u, s: augment.random_size_crop(u, s, config), u, sizes),
    ):
        for row, window in zip(u, result.numpy()):
            np.testing.assert_allclose(window, twin_random_size_crop(row, *size, config), atol=1.5 / min(size))
    exact = [np.abs(w - twin_random_size_crop(row, *size, config)).max() < 1e-6 for row, w in zip(u, result.numpy())]
    assert np.mean(exact) > 0.9  # single precision decides a rare .5 otherwise


def test_a_crop_has_a_pixel_at_least(draws):
    config = AugmentConfig(crop_area=(0.01, 0.05))  # of 4 x 4: up to 0.8 pixels
    window = augment.random_size_crop(draws(200, 6), tf.fill([200, 2], 4), config).numpy()
    assert np.isfinite(window).all()
    assert (window[:, 2:] - window[:, :2] >= 1 / 4 - 1e-6).all()


def test_random_size_crop_can_be_left_out(draws):
    window = augment.random_size_crop(draws(9, 6), tf.fill([9, 2], 100), AugmentConfig(crop_probability=0.0))
    np.testing.assert_array_equal(window, [[0, 0, 1, 1]] * 9)


@pytest.mark.parametrize("output", [(416, 416), (320, 608)])
def test_yolo_jitter_equals_its_twin(draws, output):
    u = draws(60, 5)
    result = in_map(lambda u: augment.yolo_jitter(u, YOLO_AUGMENT, output), u).numpy()
    close = [np.allclose(w, twin_yolo_jitter(row, YOLO_AUGMENT, *output), atol=1e-5) for row, w in zip(u, result)]
    assert np.mean(close) > 0.9  # single precision floors a rare side otherwise


class TestSsdCrop:
    boxes = np.float32([[[0.1, 0.1, 0.3, 0.4], [0.5, 0.5, 0.9, 0.9], [0, 0, 0, 0]]])
    labels = np.int32([[0, 1, -1]])

    def crop(self, u, boxes=None, labels=None):
        boxes, labels = (self.boxes, self.labels) if boxes is None else (boxes, labels)
        tile = lambda x: np.tile(x, [len(u)] + [1] * (x.ndim - 1))  # noqa: E731
        return augment.ssd_crop(tf.constant(u), tf.constant(tile(boxes)), tf.constant(tile(labels))).numpy()

    def test_windows_lie_inside_and_hold_the_centre_of_an_object(self, draws):
        windows = self.crop(draws(300, 201))
        assert windows.min() >= 0
        assert windows.max() <= 1
        centres = (self.boxes[0, :2, :2] + self.boxes[0, :2, 2:]) / 2
        holds = (centres > windows[:, None, :2]) & (centres < windows[:, None, 2:])
        assert holds.all(-1).any(-1).all()

    @pytest.mark.parametrize("choice, min_iou", list(enumerate(augment.SSD_MIN_IOUS)))
    def test_the_drawn_overlap_is_met_or_the_image_is_whole(self, draws, choice, min_iou):
        u = draws(200, 201)
        u[:, 0] = (choice + 0.5) / 7
        windows = self.crop(u)
        low = np.maximum(windows[:, None, :2], self.boxes[0, :2, :2])
        high = np.minimum(windows[:, None, 2:], self.boxes[0, :2, 2:])
        shared = np.prod(np.maximum(high - low, 0), -1)
        areas = (
            np.prod(windows[:, None, 2:] - windows[:, None, :2], -1),
            np.prod(self.boxes[0, :2, 2:] - self.boxes[0, :2, :2], -1),
        )
        best = (shared / (areas[0] + areas[1] - shared)).max(-1)
        whole = (windows == [0, 0, 1, 1]).all(-1)
        assert (whole | (best >= min_iou - 1e-6)).all()
        if min_iou < 0.5:
            assert not whole.all()

    def test_the_seventh_choice_is_the_whole_image(self, draws):
        u = draws(20, 201)
        u[:, 0] = 0.99
        assert (self.crop(u) == [0, 0, 1, 1]).all()

    def test_an_image_without_objects_stays_whole(self, draws):
        windows = self.crop(draws(20, 201), np.zeros([1, 8, 4], "f4"), np.full([1, 8], -1, "i4"))
        assert (windows == [0, 0, 1, 1]).all()

    def test_the_first_candidate_that_fits_is_taken(self):
        u = np.full([1, 201], 0.0, "f4")  # no minimum; all candidates alike but for their place
        scale, aspect, x, y = u[0, 1:].reshape(4, 50)
        scale[:], aspect[:] = 0.0, 0.5  # sides .3 * sqrt(1.25), .3 / sqrt(1.25)
        x[:], y[:] = 1.0, 0.0  # right top corner: no centre there
        x[7], y[7] = 0.9, 0.9  # over the second box's centre: (.7, .7) lies in [.6, .93] x [.66, .93]
        x[9], y[9] = 0.0, 0.0
        np.testing.assert_allclose(
            self.crop(u)[0, :2], [0.9 * (1 - 0.3 * 1.25**0.5), 0.9 * (1 - 0.3 / 1.25**0.5)], atol=1e-6
        )


def test_expand_holds_the_whole_image(draws):
    whole = tf.tile([[0.0, 0.0, 1.0, 1.0]], [100, 1])
    window = augment.expand(draws(100, 4), whole, SSD_PAPER_AUGMENT).numpy()
    side = window[:, 2:] - window[:, :2]
    assert (window[:, :2] <= 0).all()
    assert (window[:, 2:] >= 1 - 1e-6).all()
    assert side.max() <= 4
    np.testing.assert_allclose(side[:, 0], side[:, 1], rtol=1e-5)
    assert 0.3 < np.mean(side[:, 0] > 1) < 0.7


@pytest.mark.parametrize("geometry", ["none", "random_size_crop", "ssd_crop", "yolo_jitter"])
@pytest.mark.parametrize("number", [0, 1, 100])
def test_every_geometry_keeps_boxes_inside_and_upright(draws, rng, geometry, number):
    config = AugmentConfig(geometry=geometry, expand_probability=0.5 if geometry == "ssd_crop" else 0.0)
    corners = np.sort(rng.uniform(size=(16, number, 2, 2)), axis=2).astype("f4")
    boxes = np.zeros([16, 128, 4], "f4")
    boxes[:, :number] = corners.transpose(0, 1, 2, 3).reshape(16, number, 4)
    labels = np.full([16, 128], -1, "i4")
    labels[:, :number] = np.arange(number) % 5
    sizes = np.int32(rng.integers(1, 900, (16, 2)))

    def run(u, sizes, boxes, labels):
        window = augment.choose_window(u, sizes, boxes, labels, config, (300, 200))
        *_, window = image_ops.place(window, sizes, (300, 200))
        return augment.boxes_in_window(boxes, labels, window, (300, 200), by_centre=False)

    new_boxes, new_labels = (
        x.numpy() for x in in_map(run, draws(16, augment.NUM_WINDOW_DRAWS[geometry]), sizes, boxes, labels)
    )
    assert new_boxes.min() >= 0
    assert new_boxes.max() <= 1
    kept = new_labels >= 0
    assert (new_boxes[kept][:, 2:] > new_boxes[kept][:, :2]).all()
    assert (new_labels[kept] == labels[kept]).all()
    assert (new_boxes[~kept] == 0).all()
    assert not kept[:, number:].any()


class TestBoxesInWindow:
    window = tf.constant([[0.5, 0.0, 1.0, 1.0]])  # the right half

    def see(self, box, label=3, **options):
        boxes, labels = augment.boxes_in_window(
            tf.constant([[box]]), tf.constant([[label]]), self.window, (100, 100), **{"by_centre": False, **options}
        )
        return boxes[0, 0].numpy(), int(labels[0, 0])

    def test_a_box_is_moved_and_clipped(self):
        box, label = self.see([0.4, 0.2, 0.75, 0.6])  # (.4 - .5) / .5 = -.2, (.75 - .5) / .5 = .5
        np.testing.assert_allclose(box, [0, 0.2, 0.5, 0.6], atol=1e-6)
        assert label == 3

    def test_a_box_whose_centre_is_outside(self):
        assert self.see([0.2, 0.2, 0.6, 0.6])[1] == 3
        assert self.see([0.2, 0.2, 0.6, 0.6], by_centre=True)[1] == -1

    def test_a_box_that_is_not_seen_or_less_than_a_pixel(self):
        assert self.see([0.1, 0.1, 0.4, 0.4])[1] == -1
        assert self.see([0.1, 0.1, 0.504, 0.4])[1] == -1  # .8 of a pixel

    def test_a_box_of_which_too_little_is_seen(self):
        assert self.see([0.4, 0.2, 0.6, 0.6], min_visible=0.4)[1] == 3  # a half of it
        assert self.see([0.4, 0.2, 0.6, 0.6], min_visible=0.6)[1] == -1

    def test_ignored_boxes_stay_ignored(self):
        assert self.see([0.6, 0.2, 0.8, 0.6], label=-2)[1] == -2


def test_flip_boxes():
    boxes = tf.constant([[[0.1, 0.2, 0.3, 0.5], [0, 0, 0, 0]]] * 4)
    labels = tf.constant([[1, -1]] * 4)
    flips = tf.constant([[False, False], [True, False], [False, True], [True, True]])
    flipped = augment.flip_boxes(boxes, labels, flips).numpy()
    expected = [[0.1, 0.2, 0.3, 0.5], [0.7, 0.2, 0.9, 0.5], [0.1, 0.5, 0.3, 0.8], [0.7, 0.5, 0.9, 0.8]]
    np.testing.assert_allclose(flipped[:, 0], expected, atol=1e-6)
    assert (flipped[:, 1] == 0).all()


# --- colour -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_fused_colours_equal_the_steps_one_by_one(draws, rng, compiled):
    config = AugmentConfig(lighting=0.1)
    images = rng.integers(60, 200, (12, 32, 32, 3), np.uint8)  # 32 x 32: the statistics are those of the image itself
    u, normals = draws(12, 7), rng.normal(size=(12, 3)).astype("f4")

    def change(images, u, normals):
        matrix = augment.colour_matrix(u, normals, *image_ops.colour_statistics(images), config)
        draws = {"matrix": image_ops.colour_coefficients(*matrix, 32), "flat": image_ops.flatten(images)}
        return augment.change_colour(images, draws)

    result = tf.function(change, jit_compile=compiled)(*(tf.constant(x) for x in (images, u, normals))).numpy()
    expected = np.stack([twin_colour(*row, config) for row in zip(u, normals, images)])
    assert np.abs(result.reshape(expected.shape) - expected).max() <= 0.51


def test_no_change_is_no_change(draws, rng):
    config = AugmentConfig(brightness=0.0, contrast=0.0, saturation=0.0, lighting=0.0)
    images = tf.constant(rng.integers(0, 256, (3, 8, 8, 3), np.uint8))
    keys = tf.zeros([3], tf.int64), tf.range(3, dtype=tf.int64)
    assert augment.draw_colour(images, *keys, config, seed=0) == {}
    np.testing.assert_array_equal(augment.change_colour(images, {}), tf.reshape(images, [3, 8, 24]))


def test_hsv_factors_follow_the_reference(draws):
    u = tf.constant(draws(5000, 7))
    hue, saturation, value = (x.numpy() for x in augment.hsv_factors(u, YOLO_AUGMENT))
    assert np.abs(hue).max() <= 0.1
    for factor in (saturation, value):
        assert factor.min() >= 1 / 1.5 - 1e-6
        assert factor.max() <= 1.5 + 1e-6
        assert 0.45 < np.mean(factor > 1) < 0.55
    # uniform on [1, 1.5] half of the time: mean 1.25 of those
    assert abs(saturation[saturation > 1].mean() - 1.25) < 0.01


def test_colour_in_a_map(rng):
    images = rng.integers(0, 256, (4, 20, 30, 3), np.uint8)
    config = AugmentConfig(hue=0.1, hsv_saturation=1.5)

    def change(images):
        keys = tf.zeros([4], tf.int64), tf.range(4, dtype=tf.int64)
        return augment.change_colour(images, augment.draw_colour(images, *keys, config, seed=1))

    result = in_map(change, images)
    assert result.dtype == tf.uint8
    np.testing.assert_array_equal(result, change(tf.constant(images)))
