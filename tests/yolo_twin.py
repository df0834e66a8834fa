"""Slow, obvious numpy twins of YOLOv3's targets and loss, and what its tests share."""

import math

import numpy as np
import tensorflow as tf

from tfdet.config import YoloConfig

ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0), (60.0, 30.0), (100.0, 60.0))
CONFIGS = {
    "three levels": YoloConfig(image_size=(96, 96)),
    "non-square": YoloConfig(
        image_size=(64, 128), anchors=ANCHORS, anchor_masks=((3, 4, 5), (0, 1, 2)), strides=(32, 16)
    ),
    "shared anchor": YoloConfig(
        image_size=(96, 64), anchors=ANCHORS, anchor_masks=((3, 4, 5), (1, 2, 3)), strides=(32, 16)
    ),
    "one level": YoloConfig(image_size=(64, 64), anchors=ANCHORS, anchor_masks=((0, 5),), strides=(8,)),
    "four ragged levels": YoloConfig(
        image_size=(64, 96), anchors=ANCHORS, anchor_masks=((5,), (3, 4), (2,), (0, 1)), strides=(32, 16, 8, 4)
    ),
}
COMPAT = YoloConfig(
    image_size=(96, 64), anchors=ANCHORS, anchor_masks=((3, 4, 5), (1, 2, 3)), strides=(32, 16), compat="keras_yolo3"
)
BOX_LOSSES = ("l2", "giou", "ciou")
CLASSES = 3


# --- numpy twins --------------------------------------------------------------------------------


def naive_slots(config):
    """Every slot in order: (level, row, column, anchor, stride)."""
    for level, (mask, stride) in enumerate(zip(config.anchor_masks, config.strides)):
        for row in range(config.image_size[0] // stride):
            for column in range(config.image_size[1] // stride):
                for anchor in mask:
                    yield level, row, column, anchor, stride


def naive_box(config, box):
    """A box as its target, float64 cxcywh relative; None for a degenerate one."""
    x_min, y_min, x_max, y_max = (float(value) for value in box)
    if not all(map(math.isfinite, box)) or x_min >= 1 or y_min >= 1 or x_max <= 0 or y_max <= 0:
        return None
    if not (1e-6 < x_max - x_min < 1e6 and 1e-6 < y_max - y_min < 1e6):
        return None
    centre = []
    for low, high, pixels in ((x_min, x_max, config.image_size[1]), (y_min, y_max, config.image_size[0])):
        middle = float(np.float32((low + high) / 2))
        if config.compat == "keras_yolo3":
            middle = float(np.float32(math.floor(middle * pixels + 1 / 1024) / pixels))
        centre.append(min(max(middle, 0.0), 1.0))
    return (*centre, x_max - x_min, y_max - y_min)


def naive_best_anchor(config, width, height):
    """The anchor of the best shape IoU, the first of ties."""
    named = {k for mask in config.anchor_masks for k in mask}
    scores = {}
    for k, (anchor_w, anchor_h) in enumerate(config.anchors):
        w, h = width * config.image_size[1], height * config.image_size[0]
        shared = min(w, anchor_w) * min(h, anchor_h)
        if config.compat == "keras_yolo3" or k in named:
            scores[k] = shared / (w * h + anchor_w * anchor_h - shared)
    return next(k for k, score in scores.items() if score >= max(scores.values()) * (1 - 1e-5))


def naive_encode(config, boxes, labels):
    """Targets of one image: float64 [A, 4], int [A], and which box has each slot, a dict."""
    slots = {slot[:4]: index for index, slot in enumerate(naive_slots(config))}
    target_boxes, target_labels, owners = np.zeros((len(slots), 4)), np.full(len(slots), -1), {}
    tolerance = 0.0 if config.compat == "keras_yolo3" else 1 / 1024
    for m, (box, label) in enumerate(zip(boxes, labels)):
        truth = naive_box(config, box)
        if truth is None or label < 0:
            continue
        best = naive_best_anchor(config, *truth[2:])
        for level, (mask, stride) in enumerate(zip(config.anchor_masks, config.strides)):
            if best in mask:
                rows, columns = config.image_size[0] // stride, config.image_size[1] // stride
                column = min(math.floor((truth[0] * config.image_size[1] + tolerance) / stride), columns - 1)
                row = min(math.floor((truth[1] * config.image_size[0] + tolerance) / stride), rows - 1)
                slot = slots[level, row, column, best]
                target_boxes[slot], target_labels[slot], owners[slot] = truth, label, m
    return target_boxes, target_labels, owners


def corners(box):
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def naive_overlap(a, b, kind="iou"):
    """IoU, GIoU or CIoU of two boxes cxcywh."""
    ax1, ay1, ax2, ay2 = corners(a)
    bx1, by1, bx2, by2 = corners(b)
    shared = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = a[2] * a[3] + b[2] * b[3] - shared
    iou, width, height = shared / union, max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)
    if kind == "iou":
        return iou
    if kind == "giou":
        return iou - (width * height - union) / (width * height)
    distance = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (width**2 + height**2)
    v = 4 / math.pi**2 * (math.atan(a[2] / a[3]) - math.atan(b[2] / b[3])) ** 2
    return iou - distance - (v * v / (1 - iou + v) if v else 0.0)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def naive_cross_entropy(target, logit):
    p = sigmoid(logit)
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def naive_loss(config, boxes, labels, target_labels, raw, objectness, classes):
    """The parts of one image's loss, a dict of float."""
    height, width = config.image_size
    target_boxes, _, owners = naive_encode(config, boxes, labels)
    total = dict.fromkeys(("xy_loss", "wh_loss", "box_loss", "objectness_loss", "class_loss"), 0.0)
    levels = {m: {slot[0] for i, slot in enumerate(naive_slots(config)) if owners.get(i) == m} for m in owners.values()}
    for a, (level, row, column, k, stride) in enumerate(naive_slots(config)):
        tx, ty, tw, th = map(float, raw[a])
        anchor = (config.anchors[k][0] / width, config.anchors[k][1] / height)
        box = ((sigmoid(tx) + column) * stride / width, (sigmoid(ty) + row) * stride / height,
               math.exp(tw) * anchor[0], math.exp(th) * anchor[1])  # fmt: skip
        if target_labels[a] == -2:
            continue
        if target_labels[a] == -1:
            others = [
                naive_box(config, other)
                for m, (other, label) in enumerate(zip(boxes, labels))
                if label == -2 or (label >= 0 and (config.compat == "none" or level in levels.get(m, ())))
            ]
            if all(naive_overlap(box, other) < config.ignore_thresh for other in others if other):
                total["objectness_loss"] += naive_cross_entropy(0, objectness[a])
            continue
        x, y, w, h = target = target_boxes[a]
        scale = 2 - min(w * h, 1)
        for value, cell, logit in ((x * width / stride, column, tx), (y * height / stride, row, ty)):
            total["xy_loss"] += scale * naive_cross_entropy(min(max(value - cell, 0), 1), logit)
        for value, side, logit in ((w, anchor[0], tw), (h, anchor[1], th)):
            total["wh_loss"] += scale * 0.5 * (math.log(value / side) - logit) ** 2
        if config.box_loss != "l2":
            total["box_loss"] += scale * (1 - naive_overlap(box, target, config.box_loss))
        total["objectness_loss"] += naive_cross_entropy(1, objectness[a])
        total["class_loss"] += sum(
            naive_cross_entropy(int(c == target_labels[a]), classes[a, c]) for c in range(CLASSES)
        )
    for key in ("box_loss",) if config.box_loss == "l2" else ("xy_loss", "wh_loss"):
        del total[key]
    return total


# --- material -----------------------------------------------------------------------------------


def random_truth(rng, batch, count):
    """Boxes of all sizes, a few outside the image or degenerate, and labels with padding and ignore."""
    low, size = rng.uniform(-0.1, 0.9, (batch, count, 2)), rng.uniform(0.01, 1.0, (batch, count, 2)) ** 2
    boxes = np.concatenate([low, low + size], -1).astype(np.float32)
    boxes[:, ::11, 2] = boxes[:, ::11, 0]
    return boxes, rng.integers(-2, CLASSES, (batch, count)).astype(np.int32)


def random_predictions(rng, detector, batch, spread=1.0):
    count = detector.anchors.shape[0]
    shapes = {"box_deltas": [4], "objectness_logits": [], "class_logits": [CLASSES]}
    return {k: tf.constant(rng.normal(0, spread, (batch, count, *v)), tf.float32) for k, v in shapes.items()}


def encoded(detector, boxes, labels):
    boxes, labels = tf.cast(boxes, tf.float32), tf.cast(labels, tf.int32)
    return {"boxes": boxes, "labels": labels, **detector.encode(boxes, labels)}


def perfect_predictions(detector, batch):
    """What a network that has learnt the batch by heart says."""
    found = batch["target_labels"] >= 0
    target = tf.where(found[..., None], batch["target_boxes"], detector.anchors)
    offset = (target[..., :2] - detector.anchors[:, :2]) / detector.cell_sizes + 0.5
    offset = tf.clip_by_value(offset, 1e-6, 1 - 1e-6)
    logit = tf.math.log(offset / (1 - offset))
    return {
        "box_deltas": tf.concat([logit, tf.math.log(target[..., 2:] / detector.anchors[:, 2:])], -1),
        "objectness_logits": tf.where(found, 30.0, -30.0),
        "class_logits": tf.one_hot(batch["target_labels"], detector.num_classes) * 60 - 30,
    }


def gradients(detector, batch, predictions):
    with tf.GradientTape() as tape:
        tape.watch(predictions)
        losses = detector.loss(batch, predictions)
        loss = tf.add_n([tf.reduce_sum(value) for name, value in losses.items() if name != "normalizer"])
    return loss, tape.gradient(loss, predictions, unconnected_gradients="zero")
