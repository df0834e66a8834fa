"""YOLOv3 against keras-yolo3's own outputs: targets, loss and gradients, decoded boxes.

Where the reference is wrong the difference itself is checked, so that nothing hides behind an exclusion.
"""

import numpy as np
import pytest
import tensorflow as tf

from tfdet.boxes import from_window, letterbox_window, to_cxcywh, to_xyxy
from tfdet.config import YoloConfig
from tfdet.detectors.yolo import Yolo

TARGET_CASES = (
    "rand416", "rand_320x608", "tiny_anchors416", "tie_equal_anchor_iou", "two_same_cell_anchor_diff_class",
    "same_center_diff_anchor", "all_zero", "T0", "full_image", "top_left", "center_on_cell_edge",
)  # fmt: skip
LOSS_CASES = [("rand_416_c3", 0.5)]
LOSS_CASES += [(case, t) for case in ("rand_96x128", "no_objects", "one_image_empty") for t in (0.2, 0.5, 0.7)]
PARTS = ("xy_loss", "wh_loss", "objectness_loss", "class_loss")


def load(golden, name):
    """All arrays of one file."""
    return golden(name)


def make_detector(size, anchors, num_classes, **options):
    """A detector for a golden case; six anchors mean the tiny network with the reference's own masks."""
    if len(anchors) == 6:
        options |= {"anchor_masks": ((3, 4, 5), (1, 2, 3)), "strides": (32, 16)}
    size, anchors = tuple(int(side) for side in size), tuple(map(tuple, np.asarray(anchors).tolist()))
    return Yolo(YoloConfig(image_size=size, anchors=anchors, **options), int(num_classes))


def flatten(levels, num_classes):
    """Arrays of the levels -> [B, A, 5 + C] in slot order."""
    return np.concatenate([level.reshape(len(level), -1, 5 + num_classes) for level in levels], 1)


# --- targets ------------------------------------------------------------------------------------


def target_case(data, case, compat):
    """A detector, its targets, and the reference's as ({(image, slot)}, values in the same order)."""
    height, width = data[f"{case}/input_hw"]
    detector = make_detector((height, width), data[f"{case}/anchors"], data[f"{case}/num_classes"], compat=compat)
    truth = data[f"{case}/true_boxes"].astype(np.float32)
    boxes = truth[..., :4] / np.float32([width, height, width, height])
    labels = np.where(truth[..., 2] > truth[..., 0], truth[..., 4], -1).astype(np.int32)
    grids = data[f"{case}/y_shapes"].tolist()  # images, rows, columns, anchors, 5 + C of every level
    firsts = np.cumsum([0] + [rows * columns * count for _, rows, columns, count, _ in grids])
    keys = [
        (image, firsts[level] + (row * grids[level][2] + column) * grids[level][3] + k)
        for level, image, row, column, k in data[f"{case}/y_idx_lbjik"]
    ]
    targets = {name: value.numpy() for name, value in detector.encode(boxes, labels).items()}
    return detector, targets, keys, data[f"{case}/y_val"]


def found(targets):
    return set(zip(*np.nonzero(targets["target_labels"] >= 0)))


@pytest.mark.parametrize("case", TARGET_CASES)
def test_compat_targets_are_the_references(golden, case):
    _, targets, keys, values = target_case(load(golden, "yolo_targets_qqwweee"), case, "keras_yolo3")
    assert found(targets) == set(keys)
    for key, value in zip(keys, values):
        np.testing.assert_allclose(targets["target_boxes"][key], value[:4], atol=1e-6)
        # two boxes in one slot: the reference keeps both classes, we keep the last box's
        classes = np.flatnonzero(value[5:])
        assert targets["target_labels"][key] == classes[-1]
        assert len(classes) == (2 if case == "two_same_cell_anchor_diff_class" else 1)


@pytest.mark.parametrize("case", TARGET_CASES)
def test_targets_differ_from_the_references_only_where_it_errs(golden, case):
    data = load(golden, "yolo_targets_qqwweee")
    detector, targets, keys, values = target_case(data, case, "none")
    size = data[f"{case}/input_hw"][::-1]
    added = found(targets) - set(keys)
    for key, value in zip(keys, values):
        if key in found(targets):
            # flooring moved the centre by less than a pixel; sizes are the same
            moved = (targets["target_boxes"][key] - value[:4]) * [*size, *size]
            assert np.all((moved[:2] > -1e-3) & (moved[:2] < 1))
            np.testing.assert_allclose(moved[2:], 0, atol=1e-3)
            continue
        # The centre lies on the edge of two cells, and rounding put it into the one before: ours is the next.
        pixels, cell = value[:2] * size, detector.cell_sizes[key[1]].numpy() * size
        assert np.min(np.abs(pixels / cell - np.round(pixels / cell))) < 1e-5
        partner = [slot for image, slot in added if image == key[0] and is_same(targets, image, slot, value, size)]
        assert len(partner) == 1
        steps = (detector.anchors.numpy()[partner[0]] - detector.anchors.numpy()[key[1]])[:2] * size / cell
        assert np.all(np.isclose(steps, 0, atol=1e-3) | np.isclose(steps, 1, atol=1e-3))
        added.remove((key[0], partner[0]))
    # what is left was lost by the reference, because no mask has anchor 0 of the tiny network
    assert len(added) == (9 if case == "tiny_anchors416" else 0)


def is_same(targets, image, slot, value, size):
    distance = np.abs(targets["target_boxes"][image, slot] - value[:4]) * [*size, *size]
    return np.all(distance < [1, 1, 1e-3, 1e-3])


# --- loss ---------------------------------------------------------------------------------------


def loss_case(data, case, threshold):
    """A detector, a batch made of the dense y_true, raw outputs [B, A, 5 + C], and y_true [B, A, 5 + C]."""
    num_classes = int(data[f"{case}/num_classes"])
    outputs = flatten([data[f"{case}/out{level}"] for level in range(3)], num_classes)
    y_true = flatten([data[f"{case}/y_true{level}"] for level in range(3)], num_classes)
    size = np.array(data[f"{case}/out0"].shape[1:3]) * 32
    detector = make_detector(size, data[f"{case}/anchors"], num_classes, compat="keras_yolo3", ignore_thresh=threshold)
    is_object = y_true[..., 4] > 0
    target_labels = np.where(is_object, y_true[..., 5:].argmax(-1), -1)
    boxes = np.zeros((len(y_true), 12, 4), np.float32)
    labels = np.full((len(y_true), 12), -1)
    for image, mask in enumerate(is_object):
        boxes[image, : mask.sum()] = to_xyxy(y_true[image, mask, :4])
        labels[image, : mask.sum()] = target_labels[image, mask]
    batch = {"boxes": boxes, "labels": labels, "target_boxes": y_true[..., :4], "target_labels": target_labels}
    return (
        detector,
        {key: tf.cast(value, tf.int32 if "labels" in key else tf.float32) for key, value in batch.items()},
        outputs,
        y_true,
    )


def unpack(outputs):
    return {"box_deltas": outputs[..., :4], "objectness_logits": outputs[..., 4], "class_logits": outputs[..., 5:]}


@pytest.mark.parametrize(("case", "threshold"), LOSS_CASES)
def test_compat_loss_and_gradients_are_the_references(golden, case, threshold):
    data = load(golden, "yolo_loss_qqwweee")
    prefix = f"{case}/t{threshold}"
    detector, batch, outputs, y_true = loss_case(data, case, threshold)
    images, outputs = len(outputs), tf.constant(outputs)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        losses = detector.loss(batch, unpack(outputs))
        loss = tf.add_n([tf.reduce_sum(losses[name]) for name in PARTS]) / images
    assert losses["normalizer"].numpy().tolist() == [1.0] * images
    # The first case has one anchor with two classes, which an int label cannot say: the class we drop is
    # a target of 1 instead of 0, and log(1 + e^-x) - log(1 + e^x) = -x. All else must agree as it is.
    dropped = y_true[..., 5:] - tf.one_hot(batch["target_labels"], detector.num_classes).numpy()
    assert np.count_nonzero(dropped) == (1 if case == "rand_96x128" else 0)
    correction = -np.sum(dropped * outputs[..., 5:].numpy()) / images
    components = data[f"{prefix}/components"].sum(0) - [0, 0, 0, correction]
    ours = [tf.reduce_sum(losses[name]).numpy() / images for name in PARTS]
    np.testing.assert_allclose(ours, components, rtol=1e-5)
    np.testing.assert_allclose(loss + correction, data[f"{prefix}/loss"], rtol=1e-5)
    if f"{prefix}/grad0" in data:
        slopes = flatten([data[f"{prefix}/grad{level}"] for level in range(3)], detector.num_classes)
        slopes[..., 5:] += dropped / images
        np.testing.assert_allclose(tape.gradient(loss, outputs), slopes, atol=1e-5)


def test_without_compat_only_background_objectness_changes(golden):
    data = load(golden, "yolo_loss_qqwweee")
    detector, batch, outputs, _ = loss_case(data, "rand_416_c3", 0.5)
    plain = make_detector((416, 416), data["rand_416_c3/anchors"], 3, ignore_thresh=0.5)
    compat, ours = (d.loss(batch, unpack(outputs)) for d in (detector, plain))
    for name in ("xy_loss", "wh_loss", "class_loss"):
        np.testing.assert_array_equal(ours[name], compat[name])
    # boxes of other levels spare anchors too, so less background is left
    assert 0.99 < ours["objectness_loss"] / compat["objectness_loss"] < 1


# --- decode -------------------------------------------------------------------------------------


def reference_correction(boxes_cxcywh, input_size, image_size):
    """keras-yolo3's way back from the letterbox, in the order y_min, x_min, y_max, x_max, pixels of the image.

    It rounds the size of the shown image, which its letterbox truncates, and assumes an exact half offset.
    """
    input_size, image_size = np.float32(input_size), np.float32(image_size)
    shown = np.round(image_size * np.min(input_size / image_size))
    scale = input_size / shown
    centre = (boxes_cxcywh[..., [1, 0]] - (input_size - shown) / 2 / input_size) * scale
    half = boxes_cxcywh[..., [3, 2]] * scale / 2
    return np.concatenate([centre - half, centre + half], -1) * np.tile(image_size, 2)


def our_correction(boxes_cxcywh, input_size, image_size):
    """The same box through `from_window`."""
    window = letterbox_window(tf.constant(image_size, tf.int32), tuple(int(side) for side in input_size))
    boxes = from_window(to_xyxy(tf.constant(boxes_cxcywh)), window).numpy()
    return boxes[:, [1, 0, 3, 2]] * np.tile(image_size, 2)


def greedy(boxes, scores, score_threshold, limit):
    """Plain greedy suppression at IoU .5: the kept rows in order of their scores."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] < score_threshold or len(kept) == limit:
            break
        shared = np.prod(
            np.maximum(np.minimum(boxes[i, 2:], boxes[kept, 2:]) - np.maximum(boxes[i, :2], boxes[kept, :2]), 0), -1
        )
        areas = [np.prod(box[..., 2:] - box[..., :2], -1) for box in (boxes[i], boxes[kept])]
        if np.all(shared / (areas[0] + areas[1] - shared) <= 0.5):
            kept.append(i)
    return kept


@pytest.mark.parametrize(
    ("case", "image_size", "score_threshold", "limit"),
    [
        ("sparse416", (375, 500), 0.5, 100),
        ("nonsquare_320x608", (375, 500), 0.6, 20),
        ("nonsquare_320x608", (608, 320), 0.6, 20),
        ("none", (100, 200), 0.3, 20),
    ],
)
def test_decoded_detections_are_the_references(golden, case, image_size, score_threshold, limit):
    data = load(golden, "yolo_eval_qqwweee")
    outputs = [data[f"{case}/out{level}"] for level in range(3)]
    input_size = tuple(32 * side for side in outputs[0].shape[1:3])
    detector = make_detector(input_size, data[f"{case}/anchors"], data[f"{case}/num_classes"])
    boxes, scores = detector.decode(unpack(flatten(outputs, 3)))
    boxes_cxcywh = to_cxcywh(boxes)[0].numpy()
    corrected = reference_correction(boxes_cxcywh, input_size, image_size)
    ours = our_correction(boxes_cxcywh, input_size, image_size)
    prefix = f"{case}/img{image_size[0]}x{image_size[1]}"
    for label in range(3):
        kept = greedy(corrected, scores[0, :, label].numpy(), score_threshold, limit)
        of_label = data[f"{prefix}/classes"] == label
        np.testing.assert_allclose(scores.numpy()[0, kept, label], data[f"{prefix}/scores"][of_label], atol=1e-6)
        expected = data[f"{prefix}/boxes_yxyx"][of_label]
        np.testing.assert_allclose(corrected[kept], expected, atol=1e-5 * max(image_size))
        scale = min(np.array(input_size) / image_size)
        assert np.all(np.abs(ours[kept] - expected) * scale < 1.5)  # pixels of the network input


def test_letterbox_is_undone_within_the_references_own_rounding(golden):
    data = load(golden, "yolo_eval_qqwweee")
    exact = 0
    for geometry, xy, wh, expected in zip(
        *(data[f"correct/{k}"] for k in ("geom_inHW_imgHW", "xy", "wh", "boxes_yxyx"))
    ):
        input_size, image_size = geometry[:2], geometry[2:]
        scale = min(input_size / image_size)
        ours = our_correction(np.concatenate([xy, wh], -1), input_size, image_size)
        assert np.all(np.isfinite(ours))
        finite = np.isfinite(expected)  # the reference divides by 0 where it rounds a side to none
        error = np.abs(ours - expected)[finite] * scale
        assert error.max() < 1.5
        shown = image_size * scale
        padding = input_size - np.round(shown)
        if np.all(np.abs(shown - np.round(shown)) < 1e-6) and not np.any(padding % 2):
            assert error.max() < 2e-4  # nothing to round: the same box
            exact += 1
    assert exact > 10
