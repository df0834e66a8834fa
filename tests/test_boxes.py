"""Box arithmetic: hand-computed values, inverse laws, empty input, any leading shape, the reference's letterbox."""

import numpy as np
import pytest
import tensorflow as tf

from tfdet import boxes as box_ops

INF, NAN = float("inf"), float("nan")


def random_boxes(rng, *shape):
    """Proper boxes inside the image, float32 [*shape, 4] xyxy."""
    low = rng.uniform(0.0, 0.7, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(0.05, 0.3, (*shape, 2))], -1).astype(np.float32)


def close(actual, expected, atol=1e-6):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected, np.float32), rtol=1e-6, atol=atol)


# --- formats ------------------------------------------------------------------------------------


def test_formats_by_hand():
    box = tf.constant([0.1, 0.2, 0.5, 0.8])
    close(box_ops.to_cxcywh(box), [0.3, 0.5, 0.4, 0.6])  # centre (.1 + .5) / 2, (.2 + .8) / 2
    close(box_ops.to_xyxy(tf.constant([0.3, 0.5, 0.4, 0.6])), box)
    close(box_ops.to_yxyx(box), [0.2, 0.1, 0.8, 0.5])


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 0), (2, 5)])
def test_formats_are_inverses_for_any_leading_shape(rng, shape):
    boxes = random_boxes(rng, *shape)
    assert box_ops.to_cxcywh(boxes).shape == boxes.shape
    close(box_ops.to_xyxy(box_ops.to_cxcywh(boxes)), boxes)
    close(box_ops.to_yxyx(box_ops.to_yxyx(boxes)), boxes)
    close(box_ops.to_cxcywh(box_ops.to_xyxy(boxes)), boxes)


# --- area, validity, overlap --------------------------------------------------------------------


def test_area_by_hand():
    boxes = tf.constant([[0.1, 0.2, 0.5, 0.8], [0.5, 0.2, 0.1, 0.8], [0.1, 0.2, 0.1, 0.8], [0.5, 0.8, 0.1, 0.2]])
    close(box_ops.area(boxes), [0.24, 0.0, 0.0, 0.0])  # .4 * .6; inverted and flat boxes have none
    assert box_ops.area(tf.zeros([2, 0, 4])).shape == (2, 0)


@pytest.mark.parametrize(
    ("box", "valid"),
    [
        ([0.1, 0.2, 0.5, 0.8], True),
        ([-0.5, -0.5, 0.1, 0.1], True),  # a corner touches the image
        ([-5.0, -5.0, 5.0, 5.0], True),
        ([0.1, 0.2, 0.1, 0.8], False),  # no width
        ([0.1, 0.8, 0.5, 0.2], False),  # inverted
        ([0.0, 0.0, 0.0, 0.0], False),  # padding
        ([1.0, 0.2, 1.5, 0.8], False),  # right of the image
        ([-0.5, 0.2, 0.0, 0.8], False),  # left of it
        ([NAN, 0.2, 0.5, 0.8], False),
        ([0.1, 0.2, INF, 0.8], False),
        ([-INF, 0.2, 0.5, 0.8], False),
    ],
)
def test_is_valid(box, valid):
    assert bool(box_ops.is_valid(tf.constant(box))) is valid


def test_iou_by_hand():
    a = tf.constant([0.0, 0.0, 0.4, 0.4])
    b = tf.constant([[0.0, 0.0, 0.4, 0.4], [0.2, 0.2, 0.6, 0.6], [0.4, 0.0, 0.8, 0.4], [0.1, 0.1, 0.2, 0.2]])
    close(box_ops.intersection(a, b), [0.16, 0.04, 0.0, 0.01])
    # .04 / (.16 + .16 - .04) = 1/7;  .01 / .16 = 1/16
    close(box_ops.iou(a, b), [1.0, 1 / 7, 0.0, 1 / 16])
    close(box_ops.iou(tf.zeros(4), tf.zeros(4)), 0.0)  # an empty union


def test_iou_of_all_pairs_is_symmetric_and_matches_loops(rng):
    a, b = random_boxes(rng, 6), random_boxes(rng, 4)
    pairs = box_ops.iou(a[:, None], b[None, :]).numpy()
    for i, (ax1, ay1, ax2, ay2) in enumerate(a):
        for j, (bx1, by1, bx2, by2) in enumerate(b):
            shared = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
            union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
            assert pairs[i, j] == pytest.approx(shared / union, abs=1e-6)
    close(pairs.T, box_ops.iou(b[:, None], a[None, :]))
    assert box_ops.iou(a[:, None], np.zeros((1, 0, 4), np.float32)).shape == (6, 0)


def test_clip_by_hand():
    close(box_ops.clip(tf.constant([[-0.5, 0.2, 1.5, 0.8]])), [[0.0, 0.2, 1.0, 0.8]])


# --- flips and windows --------------------------------------------------------------------------


def test_flips_by_hand_and_twice(rng):
    box = tf.constant([0.1, 0.2, 0.5, 0.8])
    close(box_ops.flip_horizontally(box), [0.5, 0.2, 0.9, 0.8])  # 1 - .5, 1 - .1
    close(box_ops.flip_vertically(box), [0.1, 0.2, 0.5, 0.8])  # 1 - .8, 1 - .2
    boxes = random_boxes(rng, 3, 5)
    for flip in (box_ops.flip_horizontally, box_ops.flip_vertically):
        close(flip(flip(boxes)), boxes)
        close(box_ops.area(flip(boxes)), box_ops.area(boxes))


def test_windows_by_hand():
    crop = tf.constant([0.5, 0.0, 1.0, 0.5])  # the upper right quarter
    close(box_ops.to_window(tf.constant([0.5, 0.25, 0.75, 0.5]), crop), [0.0, 0.5, 0.5, 1.0])
    zoom_out = tf.constant([-1.0, -1.0, 2.0, 2.0])  # the image fills the middle ninth
    close(box_ops.to_window(tf.constant([0.0, 0.0, 1.0, 1.0]), zoom_out), [1 / 3, 1 / 3, 2 / 3, 2 / 3])
    close(box_ops.from_window(tf.constant([0.0, 0.0, 1.0, 1.0]), crop), crop)


def test_windows_are_inverses(rng):
    boxes, windows = random_boxes(rng, 3, 5), random_boxes(rng, 3, 1)
    close(box_ops.from_window(box_ops.to_window(boxes, windows), windows), boxes)
    assert box_ops.to_window(np.zeros((3, 0, 4), np.float32), windows).shape == (3, 0, 4)


# --- letterbox ----------------------------------------------------------------------------------


def shown_pixels(window, input_size):
    """The place of the image on the network input: (x, y, width, height) in pixels, from the window."""
    height, width = input_size
    x_min, y_min, x_max, y_max = np.asarray(box_ops.to_window(tf.constant([0.0, 0.0, 1.0, 1.0]), window), np.float64)
    return x_min * width, y_min * height, (x_max - x_min) * width, (y_max - y_min) * height


@pytest.mark.parametrize(
    ("image_size", "input_size", "shown"),
    [
        ((375, 500), (416, 416), (0, 52, 416, 312)),  # 375 * 416 / 500 = 312; (416 - 312) / 2 = 52
        ((500, 375), (416, 416), (52, 0, 312, 416)),
        ((375, 500), (320, 608), (91, 0, 426, 320)),  # 500 * 320 / 375 = 426.7; (608 - 426) / 2 = 91
        ((100, 100), (96, 128), (16, 0, 96, 96)),
        ((300, 301), (64, 64), (0, 0, 64, 63)),  # 300 * 64 / 301 = 63.8; (64 - 63) // 2 = 0
        ((10, 12000), (416, 416), (0, 207, 416, 1)),  # 0.35 pixels would be none: one, at (416 - 1) // 2
        ((416, 416), (416, 416), (0, 0, 416, 416)),
    ],
)
def test_letterbox_by_hand(image_size, input_size, shown):
    window = box_ops.letterbox_window(tf.constant(image_size), input_size)
    np.testing.assert_allclose(shown_pixels(window, input_size), shown, atol=2e-4)


def test_rectangles_of_pixels():
    # y 10, x 20, 30 high, 60 wide on 100 x 200: x .1 to .4, y .1 to .4
    close(box_ops.from_yxhw(tf.constant([[10, 20, 30, 60]]), (100, 200)), [[0.1, 0.1, 0.4, 0.4]])


def test_union_by_hand():
    a, b = tf.constant([0.0, 0.0, 0.4, 0.5]), tf.constant([0.2, 0.0, 0.6, 0.5])
    close(box_ops.union(a, b), 0.3)  # .2 + .2 - .2 * .5
    close(box_ops.union(a, tf.zeros(4)), 0.2)


def test_letterbox_of_a_batch_and_back(rng):
    sizes = tf.constant([[375, 500], [500, 375], [64, 64]])
    windows = box_ops.letterbox_window(sizes, (320, 608))
    assert windows.shape == (3, 4)
    for size, window in zip(sizes, windows):
        close(box_ops.letterbox_window(size, (320, 608)), window)
    boxes = random_boxes(rng, 3, 6)
    close(box_ops.from_window(box_ops.to_window(boxes, windows[:, None]), windows[:, None]), boxes)


def test_letterbox_geometry_is_the_references(golden):
    data = golden("yolo_letterbox")
    geometry = data["geom_ih_iw_h_w_nw_nh_dx_dy"].tolist()
    for image_h, image_w, h, w, new_w, new_h, dx, dy in geometry:
        window = box_ops.letterbox_window(tf.constant([image_h, image_w]), (h, w))
        np.testing.assert_allclose(shown_pixels(window, (h, w)), (dx, dy, new_w, new_h), atol=5e-4)


def test_letterboxed_boxes_are_the_references(golden):
    data = golden("yolo_letterbox")
    cases = list(zip(data["geom_ih_iw_h_w_nw_nh_dx_dy"], data["boxes_in"], data["boxes_out"]))
    for (image_h, image_w, h, w, *_), before, after in cases:
        relative = (before / [image_w, image_h, image_w, image_h]).astype(np.float32)
        window = box_ops.letterbox_window(tf.constant([image_h, image_w], tf.int32), (int(h), int(w)))
        pixels = box_ops.to_window(relative, window).numpy() * [w, h, w, h]
        # The reference scales boxes by the exact ratio but pixels by the truncated size, so its boxes lie up to
        # a pixel right of or below what is drawn, and then it truncates them; ours follow the drawn pixels.
        assert np.all(np.abs(pixels - after) < 1 + 1e-3)


# --- box encoding -------------------------------------------------------------------------------


def test_deltas_by_hand():
    anchor = tf.constant([0.5, 0.5, 0.2, 0.4])
    box = tf.constant([0.42, 0.4, 0.62, 0.8])  # centre (.52, .6), size (.2, .4)
    # dx = .02 / .2 / .1 = 1, dy = .1 / .4 / .1 = 2.5, sizes equal: log 1 = 0
    close(box_ops.encode_deltas(box, anchor), [1.0, 2.5, 0.0, 0.0], atol=1e-5)
    twice = tf.constant([0.3, 0.1, 0.7, 0.9])  # the anchor doubled: log 2 / .2
    close(box_ops.encode_deltas(twice, anchor), [0.0, 0.0, np.log(2) / 0.2, np.log(2) / 0.2], atol=1e-5)
    close(box_ops.decode_deltas(tf.zeros(4), anchor), box_ops.to_xyxy(anchor))


@pytest.mark.parametrize("variances", [box_ops.VARIANCES, (1.0, 1.0, 1.0, 1.0)])
def test_deltas_are_inverses(rng, variances):
    boxes, anchors = random_boxes(rng, 3, 5), box_ops.to_cxcywh(random_boxes(rng, 5))
    deltas = box_ops.encode_deltas(boxes, anchors, variances)
    close(box_ops.decode_deltas(deltas, anchors, variances), boxes, atol=2e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_everything_compiles_and_agrees_with_eager(rng, jit):
    boxes, window = random_boxes(rng, 2, 4), tf.constant([-0.2, 0.1, 0.9, 1.3])

    def chain(boxes):
        seen = box_ops.to_window(box_ops.flip_horizontally(boxes), window)
        return box_ops.iou(box_ops.clip(seen), boxes), box_ops.encode_deltas(boxes, box_ops.to_cxcywh(boxes[::-1]))

    for expected, actual in zip(chain(tf.constant(boxes)), tf.function(chain, jit_compile=jit)(boxes)):
        close(actual, expected, atol=1e-5)
