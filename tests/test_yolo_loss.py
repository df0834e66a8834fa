"""YOLOv3's loss against hand-computed values, the numpy twin, and laws; GIoU and CIoU."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from yolo_twin import (
    ANCHORS,
    CLASSES,
    COMPAT,
    CONFIGS,
    encoded,
    gradients,
    naive_loss,
    naive_overlap,
    perfect_predictions,
    random_predictions,
    random_truth,
)

from tfdet.boxes import to_cxcywh, to_xyxy
from tfdet.config import YoloConfig
from tfdet.detectors import yolo_loss
from tfdet.detectors.yolo import Yolo

BOX_LOSSES = ("l2", "giou", "ciou")


def test_loss_by_hand():
    config = YoloConfig(image_size=(32, 32), anchors=((16.0, 16.0),), anchor_masks=((0,),), strides=(16,))
    detector = Yolo(config, CLASSES)
    # a box twice the anchor in width, in the first cell at its middle; raw predictions all 0
    batch = encoded(detector, [[[-0.25, 0.0, 0.75, 0.5]]], [[1]])
    predictions = {name: tf.zeros_like(value) for name, value in perfect_predictions(detector, batch).items()}
    losses = detector.loss(batch, predictions)
    scale = 2 - 1.0 * 0.5
    np.testing.assert_allclose(losses["xy_loss"], [scale * 2 * math.log(2)], rtol=1e-6)  # both offsets .5
    np.testing.assert_allclose(losses["wh_loss"], [scale * 0.5 * math.log(2) ** 2], rtol=1e-6)
    # the object and three background anchors; of these the right neighbour, at x .5 to 1 and y 0 to .5, shares
    # .125 with the box: .125 / (.5 + .25 - .125) = .2, below the threshold
    np.testing.assert_allclose(losses["objectness_loss"], [4 * math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(losses["class_loss"], [3 * math.log(2)], rtol=1e-6)
    assert losses["normalizer"].numpy().tolist() == [1.0]
    sparing = Yolo(replace(config, ignore_thresh=0.19), CLASSES)
    np.testing.assert_allclose(sparing.loss(batch, predictions)["objectness_loss"], [3 * math.log(2)], rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "box_loss"),
    [
        *((config, "l2") for config in CONFIGS.values()),
        (CONFIGS["non-square"], "giou"),
        (COMPAT, "ciou"),
        (COMPAT, "l2"),
    ],
)
def test_loss_matches_its_twin(rng, config, box_loss):
    config = replace(config, box_loss=box_loss, ignore_thresh=0.3)
    detector = Yolo(config, CLASSES)
    boxes, labels = random_truth(rng, 2, 12)
    batch, predictions = encoded(detector, boxes, labels), random_predictions(rng, detector, 2)
    batch["target_labels"] = tf.where(tf.range(detector.anchors.shape[0]) % 7 == 3, -2, batch["target_labels"])
    losses = tf.function(detector.loss)(batch, predictions)
    for b in range(2):
        raw, objectness, classes = (np.asarray(predictions[k][b]) for k in predictions)
        expected = naive_loss(config, boxes[b], labels[b], batch["target_labels"][b].numpy(), raw, objectness, classes)
        for name, value in expected.items():
            assert losses[name][b].numpy() == pytest.approx(value, rel=2e-5), name


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_perfect_predictions_decode_to_the_boxes_and_cost_nothing(rng, box_loss):
    detector = Yolo(replace(CONFIGS["non-square"], box_loss=box_loss), CLASSES)
    batch = encoded(detector, *random_truth(rng, 3, 8))
    predictions = perfect_predictions(detector, batch)
    boxes, scores = detector.decode(predictions)
    found = batch["target_labels"] >= 0
    np.testing.assert_allclose(boxes[found], to_xyxy(batch["target_boxes"])[found], atol=1e-5)
    np.testing.assert_array_equal(tf.argmax(scores, -1)[found], batch["target_labels"][found])
    losses = detector.loss(batch, predictions)
    for name in set(losses) - {"xy_loss", "normalizer"}:  # the entropy of a fractional offset is not 0
        np.testing.assert_allclose(losses[name], 0, atol=1e-4)
    _, slopes = gradients(detector, batch, predictions)
    np.testing.assert_allclose(slopes["objectness_logits"], 0, atol=1e-6)


def test_any_ground_truth_spares_an_anchor_and_compat_only_its_level():
    config = YoloConfig(image_size=(64, 64), anchors=ANCHORS, anchor_masks=((3, 4, 5), (0, 1, 2)), strides=(32, 16))
    box = np.float32([[[8 / 64, 4 / 64, 40 / 64, 36 / 64]]])  # 32 x 32 at (24, 20): anchor 1, of the fine level
    losses = {}
    for compat in ("none", "keras_yolo3"):
        detector = Yolo(replace(config, compat=compat), CLASSES)
        batch = encoded(detector, box, [[0]])
        predictions = {name: tf.zeros_like(value) for name, value in perfect_predictions(detector, batch).items()}
        # the coarse anchor 60 x 30 of the first cell is made to predict that very box
        coarse = [math.log(0.75 / 0.25), math.log(0.625 / 0.375), math.log(32 / 60), math.log(32 / 30)]
        deltas = predictions["box_deltas"].numpy()
        deltas[0, 1] = coarse
        predictions["box_deltas"] = tf.constant(deltas)
        _, slopes = gradients(detector, batch, predictions)
        losses[compat] = slopes["objectness_logits"][0, 1].numpy()
    assert losses == {"none": 0.0, "keras_yolo3": pytest.approx(0.5)}


@pytest.mark.parametrize("compat", ["none", "keras_yolo3"])
def test_an_ignored_box_spares_what_overlaps_it(compat):
    detector = Yolo(replace(CONFIGS["non-square"], compat=compat), CLASSES)
    box = to_xyxy(detector.anchors)[None, 19:20]
    predictions = random_predictions(np.random.default_rng(1), detector, 1, spread=0.01)
    slopes = [gradients(detector, encoded(detector, box, [[label]]), predictions)[1] for label in (-2, -1)]
    assert slopes[0]["objectness_logits"][0, 19] == 0.0
    assert slopes[1]["objectness_logits"][0, 19] > 0.4


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_a_filler_image_adds_nothing(rng, box_loss):
    detector = Yolo(replace(CONFIGS["three levels"], box_loss=box_loss), CLASSES)
    boxes, labels = random_truth(rng, 2, 5)
    labels[1] = -2
    batch, predictions = encoded(detector, boxes, labels), random_predictions(rng, detector, 2)
    batch["target_labels"] = tf.concat([batch["target_labels"][:1], tf.fill(batch["target_labels"][1:].shape, -2)], 0)
    losses = detector.loss(batch, predictions)
    assert {name: value[1].numpy() for name, value in losses.items()} == dict.fromkeys(losses, 0.0)
    assert losses["normalizer"][0] == 1.0
    _, slopes = gradients(detector, batch, predictions)
    assert all(not np.any(slope[1]) for slope in slopes.values())


def test_images_and_padding_do_not_mix(rng):
    detector = Yolo(CONFIGS["three levels"], CLASSES)
    boxes, labels = random_truth(rng, 3, 6)
    predictions = random_predictions(rng, detector, 3)
    together = detector.loss(encoded(detector, boxes, labels), predictions)
    padded = (
        np.concatenate([boxes, np.zeros((3, 30, 4), np.float32)], 1),
        np.pad(labels, ((0, 0), (0, 30)), constant_values=-1),
    )
    for name, value in detector.loss(encoded(detector, *padded), predictions).items():
        np.testing.assert_allclose(value, together[name], rtol=1e-6)
    for b in range(3):
        one = {name: value[b : b + 1] for name, value in predictions.items()}
        alone = detector.loss(encoded(detector, boxes[b : b + 1], labels[b : b + 1]), one)
        for name, value in alone.items():
            np.testing.assert_allclose(value, together[name][b : b + 1], rtol=1e-5)


def test_loss_and_gradient_under_xla_are_the_eager_ones(rng):
    detector = Yolo(replace(CONFIGS["non-square"], box_loss="ciou"), CLASSES)
    batch, predictions = encoded(detector, *random_truth(rng, 2, 9)), random_predictions(rng, detector, 2)
    loss, slopes = gradients(detector, batch, predictions)
    compiled_loss, compiled = tf.function(lambda b, p: gradients(detector, b, p), jit_compile=True)(batch, predictions)
    np.testing.assert_allclose(compiled_loss, loss, rtol=1e-5)
    for name, slope in slopes.items():
        np.testing.assert_allclose(compiled[name], slope, atol=1e-4)


def test_half_precision_predictions_are_summed_in_float32(rng):
    detector = Yolo(CONFIGS["three levels"], CLASSES)
    batch, predictions = encoded(detector, *random_truth(rng, 2, 6)), random_predictions(rng, detector, 2)
    half = {name: tf.cast(value, tf.float16) for name, value in predictions.items()}
    exact = {name: tf.cast(value, tf.float32) for name, value in half.items()}
    for name, value in detector.loss(batch, half).items():
        assert value.dtype == tf.float32
        np.testing.assert_array_equal(value, detector.loss(batch, exact)[name])


coordinate = st.floats(-2, 3, width=32) | st.sampled_from([0.0, 0.5, 1.0, 1e30, -1e30, 1e-30, np.nan, np.inf, -np.inf])
truth = st.tuples(st.tuples(*[coordinate] * 4), st.integers(-2, CLASSES - 1))


@pytest.fixture(scope="module")
def traced():
    """Encode, loss and gradient in one graph, by box loss."""
    detectors = {kind: Yolo(replace(CONFIGS["shared anchor"], box_loss=kind), CLASSES) for kind in BOX_LOSSES}

    def run(detector, boxes, labels, predictions):
        batch = encoded(detector, boxes, labels)
        return batch["target_boxes"], *gradients(detector, batch, predictions)

    return {kind: (detector, tf.function(partial(run, detector))) for kind, detector in detectors.items()}


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(truths=st.lists(truth, min_size=6, max_size=6), spread=st.sampled_from([0.0, 1.0, 30.0, 1e4]))
def test_no_box_makes_a_nan(traced, box_loss, truths, spread):
    detector, run = traced[box_loss]
    boxes, labels = (np.array([part], dtype) for part, dtype in zip(zip(*truths), (np.float32, np.int32)))
    targets, loss, slopes = run(boxes, labels, random_predictions(np.random.default_rng(2), detector, 1, spread))
    assert np.all(np.isfinite(targets))
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(slope)) for slope in slopes.values())


# --- box losses ---------------------------------------------------------------------------------


def test_giou_and_ciou_by_hand():
    a = tf.constant([0.0, 0.0, 2.0, 2.0])
    b = tf.constant([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [3.0, 0.0, 5.0, 2.0], [0.0, 0.0, 2.0, 1.0]])
    # same: 1; shifted: 1/7 - (9 - 7) / 9; apart: 0 - (10 - 8) / 10; half: 1/2, the enclosing box is the larger one
    np.testing.assert_allclose(yolo_loss.giou(a, b), [1, 1 / 7 - 2 / 9, -0.2, 0.5], atol=1e-6)
    # centres: 2 / 18, 9 / 29, .25 / 8; only the last differs in aspect: atan 1 and atan 2
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    expected = [1, 1 / 7 - 1 / 9, -9 / 29, 0.5 - 0.25 / 8 - v * v / (0.5 + v)]
    np.testing.assert_allclose(yolo_loss.ciou(a, b), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["giou", "ciou"])
def test_giou_and_ciou_match_their_twins(rng, kind):
    a, b = (np.concatenate([rng.uniform(0, 1, (40, 2)), rng.uniform(0.01, 1, (40, 2))], -1) for _ in range(2))
    expected = [naive_overlap(x, y, kind) for x, y in zip(a, b)]
    boxes = [to_xyxy(tf.constant(x, tf.float32)) for x in (a, b)]
    np.testing.assert_allclose(getattr(yolo_loss, kind)(*boxes), expected, atol=2e-6)


@pytest.mark.parametrize("kind", ["giou", "ciou"])
def test_giou_and_ciou_pull_a_box_towards_one_it_does_not_touch(kind):
    box, other = tf.Variable([0.0, 0.0, 0.1, 0.1]), tf.constant([0.5, 0.5, 0.6, 0.6])
    before = getattr(yolo_loss, kind)(box, other)
    for _ in range(30):
        with tf.GradientTape() as tape:
            similarity = getattr(yolo_loss, kind)(box, other)
        box.assign_add(0.01 * tape.gradient(similarity, box))
    assert getattr(yolo_loss, kind)(box, other) > before + 0.05


def test_overlaps_any_matches_all_pairs(rng):
    boxes, others = (np.sort(rng.uniform(0, 1, (2, n, 2, 2)), 2).reshape(2, n, 4).astype(np.float32) for n in (50, 7))
    wanted = rng.uniform(size=(2, 7)) < 0.5
    wanted[:, -2:] = False
    expected = np.zeros((2, 50), bool)
    for b, a, m in np.ndindex(2, 50, 7):
        overlap = naive_overlap(to_cxcywh(boxes[b, a]).numpy(), to_cxcywh(others[b, m]).numpy())
        expected[b, a] |= wanted[b, m] and overlap >= 0.3
    np.testing.assert_array_equal(yolo_loss.overlaps_any(boxes, others, wanted, 0.3), expected)
    assert 0 < expected.sum() < expected.size
