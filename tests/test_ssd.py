"""SSD: priors by hand and as files, the protocol, and the laws between encode and decode."""

import dataclasses
import pickle

import numpy as np
import pytest
import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import detectors, schema
from tfdet.config import PRIOR_LAYOUTS, ConfigError, PriorLayout, SsdConfig
from tfdet.data.errors import AnnotationError
from tfdet.detectors import priors as prior_ops
from tfdet.detectors.priors import count_priors, load_priors, make_priors, save_priors
from tfdet.detectors.ssd import Ssd, detection_rows

# --- priors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout, count",
    [
        ("ssd300", 8732), ("ssd300_coco", 8732), ("ssd300_7308", 7308),
        ("ssd512", 24564), ("ssd512_coco", 24564), ("ssd512_caffe", 24564),
    ],
)  # fmt: skip
def test_number_of_priors(layout, count):
    assert make_priors(PRIOR_LAYOUTS[layout]).shape == (count, 4)
    assert count_priors(PRIOR_LAYOUTS[layout]) == count


TINY = PriorLayout(
    image_side=100, feature_maps=(2, 1), min_sizes=(16.5, 64.0), max_sizes=(0.0, 100.0), aspect_ratios=((4.0,), ()),
    steps=(0.0, 90.0),
)  # fmt: skip


def test_priors_by_hand():
    # level 0: step 100 / 2, so centres at 25 and 75; 16.5 x 16.5, then 16.5 * 2 x 16.5 / 2 and the reverse.
    # level 1: step 90, so the centre is at 45; 64 x 64, then sqrt(64 * 100) = 80
    shapes = [[0.165, 0.165], [0.33, 0.0825], [0.0825, 0.33]]
    expected = [[x, y, *shape] for y in (0.25, 0.75) for x in (0.25, 0.75) for shape in shapes]
    expected += [[0.45, 0.45, 0.64, 0.64], [0.45, 0.45, 0.8, 0.8]]
    np.testing.assert_allclose(make_priors(TINY), expected)


def test_truncated_priors_by_hand():
    # Caffe keeps sizes as whole pixels: 16.5 becomes 16
    priors = make_priors(dataclasses.replace(TINY, truncate_sizes=True))
    np.testing.assert_allclose(priors[:3, 2:], [[0.16, 0.16], [0.32, 0.08], [0.08, 0.32]])


def test_clipping_cuts_corners():
    # 80 around 45 is 5 to 85, inside; with an offset of 0.1 the centre is at 9: -31 to 49, cut to 0 to 49
    priors = make_priors(dataclasses.replace(TINY, clip=True, offset=0.1))
    np.testing.assert_allclose(priors[-1], [0.245, 0.245, 0.49, 0.49])


def test_numpy_conversions_are_those_of_boxes(rng):
    boxes = np.concatenate([rng.uniform(0, 0.5, (9, 2)), rng.uniform(0.5, 1, (9, 2))], 1).astype(np.float32)
    np.testing.assert_allclose(prior_ops.to_cxcywh(boxes), box_ops.to_cxcywh(boxes))
    np.testing.assert_allclose(prior_ops.to_xyxy(boxes), box_ops.to_xyxy(boxes))


# --- priors as files ----------------------------------------------------------------------------


def test_saved_priors_come_back(tmp_path, rng):
    priors = make_priors(TINY)
    variances = rng.uniform(0.1, 0.3, priors.shape)
    save_priors(tmp_path / "priors.pkl", priors, variances)
    loaded, loaded_variances = load_priors(tmp_path / "priors.pkl")
    np.testing.assert_allclose(loaded, priors, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(loaded_variances, variances.astype(np.float32))


def test_a_saved_file_is_a_plain_pickle_of_the_seeds_form(tmp_path):
    save_priors(tmp_path / "priors.pkl", make_priors(TINY))
    rows = pickle.loads((tmp_path / "priors.pkl").read_bytes())
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[-1], [0.05, 0.05, 0.85, 0.85, 0.1, 0.1, 0.2, 0.2])


def bad_priors():
    good = np.array([[0, 0, 1, 1, 0.1, 0.1, 0.2, 0.2]] * 2, np.float32)
    nan, empty, variance = good.copy(), good.copy(), good.copy()
    nan[1, 0], empty[1, 2], variance[1, 7] = np.nan, 0, 0
    return {"nan": nan, "empty": empty, "variance": variance, "columns": good[:, :7], "none": good[:0], "list": [1, 2]}


@pytest.mark.parametrize("name", bad_priors())
def test_wrong_pickles_are_explained(tmp_path, name):
    path = tmp_path / "priors.pkl"
    path.write_bytes(pickle.dumps(bad_priors()[name]))
    with pytest.raises(AnnotationError, match=r"priors\.pkl: .*detector\.priors"):
        Ssd(SsdConfig(priors=str(path)), 2)


def test_missing_and_malicious_pickles_are_explained(tmp_path):
    with pytest.raises(AnnotationError, match="cannot be read"):
        Ssd(SsdConfig(priors=str(tmp_path / "nothing.pkl")), 2)
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(AnnotationError, match=r"os\.system"):
        Ssd(SsdConfig(priors=str(tmp_path / "evil.pkl")), 2)


def test_variances_of_the_pickle_are_used(tmp_path):
    save_priors(tmp_path / "priors.pkl", make_priors(TINY), (0.2, 0.2, 0.4, 0.4))
    boxes, labels = np.array([[[0.1, 0.1, 0.4, 0.3]]], np.float32), np.array([[0]], np.int32)
    save_priors(tmp_path / "usual.pkl", make_priors(TINY))
    halved, usual = (Ssd(SsdConfig(priors=str(tmp_path / name)), 1) for name in ("priors.pkl", "usual.pkl"))
    deltas = usual.encode(boxes, labels)["target_boxes"].numpy()
    np.testing.assert_allclose(halved.encode(boxes, labels)["target_boxes"], deltas / 2, rtol=1e-6)
    assert deltas.any()


# --- the protocol -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector():
    return detectors.build(SsdConfig(), 3)


def some_boxes(rng, images=3, boxes=5):
    centre, size = rng.uniform(0.2, 0.8, (images, boxes, 2)), rng.uniform(0.05, 0.5, (images, boxes, 2))
    labels = rng.integers(0, 3, (images, boxes)).astype(np.int32)
    return np.concatenate([centre - size / 2, centre + size / 2], -1).astype(np.float32), labels


def test_anchors(detector):
    assert detector.anchors.dtype == tf.float32
    np.testing.assert_allclose(detector.anchors, make_priors(PRIOR_LAYOUTS["ssd300"]), atol=1e-7)


def test_encode_has_static_shapes_and_types(detector, rng):
    encode = tf.function(detector.encode)
    boxes, labels = some_boxes(rng)
    targets = encode.get_concrete_function(tf.constant(boxes), tf.constant(labels)).structured_outputs
    assert targets["target_boxes"].shape == (3, 8732, 4)
    assert targets["target_boxes"].dtype == tf.float32
    assert targets["target_labels"].shape == (3, 8732)
    assert targets["target_labels"].dtype == tf.int32


@pytest.mark.parametrize("matching", ["bipartite", "per_box"])
def test_decode_undoes_encode(matching, rng):
    detector = Ssd(SsdConfig(matching=matching), 3)
    boxes, labels = some_boxes(rng)
    targets = detector.encode(boxes, labels)
    target_labels = targets["target_labels"].numpy()
    logits = tf.one_hot(target_labels + 1, 4) * 100.0
    decoded, scores = detector.decode({"box_deltas": targets["target_boxes"], "class_logits": logits})
    for image in range(3):
        for prior in np.flatnonzero(target_labels[image] >= 0):
            distance = np.abs(boxes[image] - decoded[image, prior]).max(-1)
            same = labels[image] == target_labels[image, prior]
            assert distance[same].min() < 1e-5
            assert scores[image, prior, target_labels[image, prior]] > 0.999
    background = target_labels == -1
    assert scores.numpy()[background].max() < 1e-6
    assert not targets["target_boxes"].numpy()[background].any()


def test_encode_gives_the_deltas_of_boxes(detector, rng):
    boxes, labels = some_boxes(rng, boxes=1)
    targets = detector.encode(boxes, labels)
    expected = box_ops.encode_deltas(boxes, detector.anchors[None])
    positive = targets["target_labels"].numpy() >= 0
    assert positive.any(1).all()
    np.testing.assert_allclose(targets["target_boxes"].numpy()[positive], expected.numpy()[positive], atol=2e-5)


def test_encode_by_hand(tmp_path):
    # one prior, 0.2 wide and 0.4 high around (0.5, 0.5). The box is centred 0.02 right of it and 0.04 below,
    # as wide and half as high: 0.02 / 0.2 / 0.1 = 1, 0.04 / 0.4 / 0.1 = 1, 0, ln(1/2) / 0.2 = -3.4657
    save_priors(tmp_path / "one.pkl", np.array([[0.5, 0.5, 0.2, 0.4]]))
    detector = Ssd(SsdConfig(priors=str(tmp_path / "one.pkl")), 5)
    targets = detector.encode(np.array([[[0.42, 0.44, 0.62, 0.64]]], np.float32), np.array([[4]], np.int32))
    np.testing.assert_allclose(targets["target_boxes"][0, 0], [1, 1, 0, -3.4657], atol=1e-4)
    assert targets["target_labels"].numpy().tolist() == [[4]]


@pytest.mark.parametrize("matching", ["bipartite", "per_box"])
def test_an_image_without_objects_is_all_background(matching):
    detector = Ssd(SsdConfig(matching=matching), 3)
    targets = detector.encode(np.zeros((2, 4, 4), np.float32), np.full((2, 4), schema.BACKGROUND, np.int32))
    assert np.all(targets["target_labels"] == schema.BACKGROUND)
    assert not np.any(targets["target_boxes"])


def test_ignore_boxes_and_degenerate_ones(detector):
    boxes = np.array([[[0.2, 0.2, 0.6, 0.7], [0.3, 0.3, 0.3, 0.5], [np.nan, 0, 1, 1]]], np.float32)
    labels = np.array([[schema.IGNORE, 1, 2]], np.int32)
    targets = detector.encode(boxes, labels)
    assert set(np.unique(targets["target_labels"])) == {schema.IGNORE, schema.BACKGROUND}
    assert not np.any(targets["target_boxes"])
    assert detector.count_degenerate(boxes, labels).numpy().tolist() == [2]
    predictions = {"box_deltas": np.ones((1, 8732, 4)), "class_logits": np.zeros((1, 8732, 4))}
    assert not np.any(detector.loss(targets, predictions)["box_loss"])


def test_loss_reads_the_config(rng):
    boxes, labels = some_boxes(rng)
    predictions = {"box_deltas": rng.normal(size=(3, 8732, 4)), "class_logits": rng.normal(size=(3, 8732, 4))}
    usual, other = Ssd(SsdConfig(), 3), Ssd(SsdConfig(alpha=2.0, neg_pos_ratio=0.0), 3)
    targets = usual.encode(boxes, labels)
    losses, others = usual.loss(targets, predictions), other.loss(targets, predictions)
    assert set(losses) == {"box_loss", "class_loss", "normalizer"}
    assert all(value.shape == (3,) and value.dtype == tf.float32 for value in losses.values())
    np.testing.assert_allclose(others["box_loss"], 2 * losses["box_loss"], rtol=1e-6)
    assert np.all(others["class_loss"] < losses["class_loss"])
    np.testing.assert_array_equal(losses["normalizer"], np.sum(targets["target_labels"] >= 0, 1))


def test_scores_of_the_focal_loss_are_sigmoids_without_background(detector, rng):
    logits = rng.normal(size=(1, 8732, 4)).astype(np.float32)
    predictions = {"box_deltas": np.zeros((1, 8732, 4), np.float32), "class_logits": logits}
    _, scores = Ssd(SsdConfig(class_loss="sigmoid_focal"), 3).decode(predictions)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits[..., 1:])), rtol=1e-5)


def test_decode_of_half_precision_is_float32(detector, rng):
    predictions = {"box_deltas": rng.normal(size=(1, 8732, 4)), "class_logits": rng.normal(size=(1, 8732, 4))}
    boxes, scores = detector.decode({name: tf.cast(value, tf.float16) for name, value in predictions.items()})
    assert boxes.dtype == scores.dtype == tf.float32
    assert boxes.shape == (1, 8732, 4)
    assert scores.shape == (1, 8732, 3)


@pytest.mark.parametrize("priors", ["ssd300", "a pickle"])
def test_build_model_fits_the_priors(priors, tmp_path):
    if priors == "a pickle":
        priors = str(tmp_path / "priors.pkl")
        save_priors(priors, make_priors(PRIOR_LAYOUTS["ssd300_7308"]))
    detector = Ssd(SsdConfig(backbone="mobilenetv2", width_multiplier=0.35, priors=priors), 2)
    outputs = detector.build_model().output
    assert outputs["box_deltas"].shape == (None, len(detector.anchors), 4)
    assert outputs["class_logits"].shape == (None, len(detector.anchors), 3)


def test_build_model_refuses_an_unknown_number_of_priors(tmp_path):
    save_priors(tmp_path / "priors.pkl", make_priors(TINY))
    with pytest.raises(ConfigError, match="holds 14 priors"):
        Ssd(SsdConfig(priors=str(tmp_path / "priors.pkl")), 2).build_model()


# --- rows ---------------------------------------------------------------------------------------


def test_detection_rows():
    detections = {
        "boxes": tf.constant([[[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]], [[0.0] * 4, [0.0] * 4]]),
        "scores": tf.constant([[0.75, 0.0], [0.0, 0.0]]),
        "labels": tf.constant([[2, -1], [-1, -1]]),
        "num_detections": tf.constant([1, 0]),
    }
    first, second = detection_rows(detections)
    np.testing.assert_allclose(first, [[3, 0.75, 0.1, 0.2, 0.3, 0.4]])  # labels count from 1, as in the seed
    assert second.shape == (0, 6)
