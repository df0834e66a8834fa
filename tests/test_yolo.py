"""YOLOv3's anchors, targets and decoding against hand-computed values, the numpy twin, and laws."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from yolo_twin import (
    ANCHORS,
    CLASSES,
    COMPAT,
    CONFIGS,
    encoded,
    naive_encode,
    naive_slots,
    perfect_predictions,
    random_predictions,
    random_truth,
)

from tfdet.boxes import to_cxcywh
from tfdet.config import ConfigError, YoloConfig
from tfdet.detectors.yolo import Yolo

# --- anchors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "count"), [(416, 10647), (608, 22743)])
def test_number_of_anchors(side, count):
    # 3 * (13^2 + 26^2 + 52^2) and 3 * (19^2 + 38^2 + 76^2)
    assert Yolo(YoloConfig(image_size=(side, side)), CLASSES).anchors.shape == (count, 4)


def test_anchors_by_hand():
    detector = Yolo(CONFIGS["non-square"], CLASSES)  # 64 rows of 128 pixels: 2 x 4 cells, then 4 x 8
    assert detector.anchors.shape[0] == 3 * 8 + 3 * 32
    # row 1, column 2, second anchor (60 x 30): cell 1 * 4 + 2 = 6, slot 6 * 3 + 1
    np.testing.assert_allclose(detector.anchors[19], [2.5 / 4, 1.5 / 2, 60 / 128, 30 / 64])
    np.testing.assert_allclose(detector.cell_sizes[19], [32 / 128, 32 / 64])
    # the fine level starts at 24; its first cell is 16 pixels wide
    np.testing.assert_allclose(detector.anchors[24], [8 / 128, 8 / 64, 10 / 128, 14 / 64])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_anchors_are_in_slot_order(config):
    height, width = config.image_size
    expected = [
        ((column + 0.5) * stride / width, (row + 0.5) * stride / height,
         config.anchors[k][0] / width, config.anchors[k][1] / height)
        for _, row, column, k, stride in naive_slots(config)
    ]  # fmt: skip
    np.testing.assert_allclose(Yolo(config, CLASSES).anchors, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (32, 16, 6)}, "divide"),
        ({"image_size": (0, 416)}, "multiples of 32"),
        ({"anchor_masks": ((6, 7, 8), (), (0, 1, 2))}, "every level"),
        ({"anchor_masks": ((6, 7, 9), (3, 4, 5), (0, 1, 2))}, "anchor 9 of 9"),
        ({"anchor_masks": ((6, 7, -1), (3, 4, 5), (0, 1, 2))}, "from 0"),
        ({"anchors": ((0.0, 1.0),) * 9}, "positive"),
        ({"ignore_thresh": 1.5}, "ignore_thresh"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        YoloConfig(**change)


def test_model_and_anchors_agree():
    config = YoloConfig(
        backbone="tiny", image_size=(64, 96), anchors=ANCHORS, anchor_masks=((3, 4, 5), (0, 1, 2)), strides=(32, 16),
        width_multiplier=0.125,
    )  # fmt: skip
    detector = Yolo(config, CLASSES)
    predictions = detector.build_model()(np.zeros((2, 64, 96, 3), np.uint8), training=False)
    boxes, scores = detector.decode(predictions)
    assert boxes.shape == (2, detector.anchors.shape[0], 4)
    assert scores.shape == (2, detector.anchors.shape[0], CLASSES)


# --- encode -------------------------------------------------------------------------------------


def test_encode_by_hand():
    detector = Yolo(YoloConfig(), CLASSES)
    # 100 x 100 pixels at (150, 250): best shape is 116 x 90 (9000 / 11440 = .79), the first anchor of stride 32;
    # column 150 / 32 = 4, row 250 / 32 = 7, so slot (7 * 13 + 4) * 3
    box = np.float32([[[100, 200, 200, 300]]]) / 416
    targets = detector.encode(box, np.int32([[2]]))
    assert np.flatnonzero(targets["target_labels"][0] >= 0).tolist() == [285]
    assert targets["target_labels"][0, 285] == 2
    np.testing.assert_allclose(targets["target_boxes"][0, 285], np.array([150, 250, 100, 100]) / 416, rtol=1e-6)
    assert np.count_nonzero(targets["target_boxes"]) == 4


@pytest.mark.parametrize("config", [*CONFIGS.values(), COMPAT], ids=[*CONFIGS, "compat"])
@pytest.mark.parametrize("jit", [False, True])
def test_encode_matches_its_twin(rng, config, jit):
    detector = Yolo(config, CLASSES)
    boxes, labels = random_truth(rng, 4, 25)
    targets = tf.function(detector.encode, jit_compile=jit)(boxes, labels)
    for b in range(4):
        target_boxes, target_labels, _ = naive_encode(config, boxes[b], labels[b])
        np.testing.assert_array_equal(targets["target_labels"][b], target_labels)
        np.testing.assert_allclose(targets["target_boxes"][b], target_boxes, atol=1e-6)


def test_encode_inside_a_dataset(rng):
    detector = Yolo(CONFIGS["three levels"], CLASSES)
    boxes, labels = random_truth(rng, 6, 10)
    compiled = tf.function(detector.encode, jit_compile=True)
    dataset = tf.data.Dataset.from_tensor_slices((boxes, labels)).batch(3, drop_remainder=True).map(compiled)
    assert dataset.element_spec["target_boxes"].shape == (3, detector.anchors.shape[0], 4)
    assert dataset.element_spec["target_labels"].shape == (3, detector.anchors.shape[0])
    expected = detector.encode(boxes, labels)
    for i, targets in enumerate(dataset):
        for key, value in targets.items():
            np.testing.assert_array_equal(value, expected[key][3 * i : 3 * i + 3])


def test_the_last_box_wins_a_shared_slot_and_the_loss_is_counted():
    detector = Yolo(CONFIGS["three levels"], CLASSES)
    box = [0.2, 0.2, 0.3, 0.35]
    boxes = np.float32([[box, [0.6, 0.6, 0.9, 0.9], np.add(box, 0.001), np.add(box, 0.002)], [box] * 4])
    labels = np.int32([[0, 1, 2, 1], [0, -2, -1, 2]])
    for jit in (False, True):
        targets = tf.function(detector.encode, jit_compile=jit)(boxes, labels)
        assert sorted(targets["target_labels"][0].numpy().tolist())[-2:] == [1, 1]
        slot = np.flatnonzero(targets["target_labels"][1] >= 0)
        assert targets["target_labels"].numpy()[:, slot].tolist() == [[1], [2]]
        np.testing.assert_allclose(targets["target_boxes"][0, slot[0]], to_cxcywh(boxes[0, 3]), atol=1e-6)
    # image 0: boxes 0 and 2 lost to box 3; image 1: box 0 to box 3, while ignored and padding claim nothing
    assert detector.count_collisions(boxes, labels).numpy().tolist() == [2, 1]


def test_a_hundred_boxes_in_one_slot():
    detector = Yolo(CONFIGS["three levels"], CLASSES)
    boxes = np.tile(np.float32([0.2, 0.2, 0.3, 0.35]), (1, 100, 1))
    targets = detector.encode(boxes, np.int32([[0] * 99 + [2]]))
    assert targets["target_labels"].numpy().max() == 2
    assert np.count_nonzero(targets["target_labels"].numpy() >= 0) == 1
    assert detector.count_collisions(boxes, np.zeros((1, 100), np.int32)).numpy().tolist() == [99]


@pytest.mark.parametrize(
    ("box", "cell"),
    [
        ([0.9, 0.9, 1.1, 1.1], (2, 2)),  # centre on the lower right corner
        ([1.05 - 0.1, 0.4, 1.15, 0.6], (2, 1)),  # centre right of the image
        ([-0.3, -0.3, 0.2, 0.2], (0, 0)),  # centre left of and above it
        ([0.0, 0.0, 1.0, 1.0], (1, 1)),
        ([1 / 3 - 0.1, 0.1, 1 / 3 + 0.1, 0.3], (1, 0)),  # centre on the edge of two cells
    ],
)
def test_borders_stay_in_the_grid(box, cell):
    config = YoloConfig(image_size=(96, 96), anchor_masks=((8,),), strides=(32,))
    targets = Yolo(config, CLASSES).encode(np.float32([[box]]), np.int32([[1]]))
    assert np.flatnonzero(targets["target_labels"][0] == 1).tolist() == [cell[1] * 3 + cell[0]]
    slot = cell[1] * 3 + cell[0]
    target = targets["target_boxes"][0, slot].numpy()
    np.testing.assert_allclose(target, np.clip(to_cxcywh(tf.constant(box)), [0, 0, 0, 0], [1, 1, 9, 9]), atol=1e-6)


def test_degenerate_ignored_and_padding_boxes_are_not_matched():
    detector = Yolo(CONFIGS["three levels"], CLASSES)
    nan, inf = np.nan, np.inf
    bad = [[0.1, 0.1, 0.1, 0.5], [0.5, 0.1, 0.1, 0.5], [nan, 0, 1, 1], [0, 0, inf, 1], [1.2, 0, 1.5, 1], [0, 0, 0, 0]]
    boxes = np.float32([[*bad, [0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.5]]])
    labels = np.int32([[0] * len(bad) + [-1, -2]])
    targets = detector.encode(boxes, labels)
    assert np.all(targets["target_labels"] == -1)
    assert not np.any(targets["target_boxes"])
    assert detector.count_degenerate(boxes, labels).numpy().tolist() == [len(bad)]


@pytest.mark.parametrize("count", [0, 3])
def test_an_image_without_boxes_is_background(count):
    detector = Yolo(CONFIGS["non-square"], CLASSES)
    batch = encoded(detector, np.zeros((2, count, 4)), np.full((2, count), -1))
    assert np.all(batch["target_labels"] == -1)
    predictions = {name: tf.zeros_like(value) for name, value in perfect_predictions(detector, batch).items()}
    # 120 anchors, each log 2
    np.testing.assert_allclose(detector.loss(batch, predictions)["objectness_loss"], [120 * math.log(2)] * 2, rtol=1e-6)
    assert detector.count_collisions(batch["boxes"], batch["labels"]).numpy().tolist() == [0, 0]


def test_an_anchor_of_two_masks_trains_both_and_of_none_is_not_chosen():
    config = CONFIGS["shared anchor"]
    shared = np.float32([[[0.1, 0.1, 0.1 + 81 / 64, 0.1 + 82 / 96]]])  # anchor 3, of both masks
    orphan = np.float32([[[0.1, 0.1, 0.1 + 10 / 64, 0.1 + 14 / 96]]])  # anchor 0, of neither
    for compat, counts in (("none", (2, 1)), ("keras_yolo3", (2, 0))):
        detector = Yolo(replace(config, compat=compat), CLASSES)
        found = [np.count_nonzero(detector.encode(b, np.int32([[1]]))["target_labels"] >= 0) for b in (shared, orphan)]
        assert tuple(found) == counts


def test_equal_shapes_go_to_the_first_anchor():
    config = YoloConfig(
        image_size=(64, 64), anchors=((16.0, 8.0), (8.0, 16.0), (8.0, 16.0)), anchor_masks=((2, 1, 0),), strides=(32,)
    )
    detector = Yolo(config, CLASSES)
    square = np.float32([[[0.05, 0.05, 0.15, 0.15]]])  # 6.4 x 6.4 pixels fit 16 x 8 and 8 x 16 alike
    assert np.flatnonzero(detector.encode(square, np.int32([[0]]))["target_labels"][0] == 0).tolist() == [2]
    tall = np.float32([[[0.05, 0.05, 0.15, 0.25]]])
    assert np.flatnonzero(detector.encode(tall, np.int32([[0]]))["target_labels"][0] == 0).tolist() == [1]


def test_compat_floors_centres_to_pixels():
    config = YoloConfig(image_size=(96, 64), anchors=ANCHORS[:3], anchor_masks=((0, 1, 2),), strides=(32,))
    box = np.float32([[[10 / 64, 20 / 96, 33.5 / 64, 51 / 96]]])  # centre (21.75, 35.5) pixels
    for compat, centre in (("none", (21.75, 35.5)), ("keras_yolo3", (21.0, 35.0))):
        detector = Yolo(replace(config, compat=compat), CLASSES)
        target = detector.encode(box, np.int32([[0]]))["target_boxes"].numpy().sum((0, 1))
        np.testing.assert_allclose(target[:2] * [64, 96], centre, atol=1e-4)


# --- decode -------------------------------------------------------------------------------------


def test_decode_by_hand():
    config = YoloConfig(image_size=(32, 64), anchors=((16.0, 8.0),), anchor_masks=((0,),), strides=(32,))
    detector = Yolo(config, 2)
    predictions = {
        "box_deltas": tf.constant([[[0.0, 0.0, 0.0, 0.0], [math.log(3), -math.log(3), math.log(2), 0.0]]]),
        "objectness_logits": tf.constant([[0.0, math.log(3)]]),
        "class_logits": tf.constant([[[0.0, 0.0], [math.log(4), -math.log(4)]]]),
    }
    boxes, scores = detector.decode(predictions)
    # cell 0: centre (16, 16) of 64 x 32, size 16 x 8; cell 1: centre (32 + .75 * 32, .25 * 32) = (56, 8), size 32 x 8
    expected = np.array([[8, 12, 24, 20], [40, 4, 72, 12]]) / [64, 32, 64, 32]
    np.testing.assert_allclose(boxes[0], expected, rtol=1e-5)
    np.testing.assert_allclose(scores[0], [[0.25, 0.25], [0.75 * 0.8, 0.75 * 0.2]], rtol=1e-5)


def test_decode_never_overflows():
    detector = Yolo(CONFIGS["non-square"], CLASSES)
    for value in (1e2, 1e4):
        boxes, scores = detector.decode(random_predictions(np.random.default_rng(0), detector, 1, spread=value))
        assert np.all(np.isfinite(boxes))
        assert np.all(np.isfinite(scores))
        assert np.all(boxes[..., 2:] > boxes[..., :2])
