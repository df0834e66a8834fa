"""Non-maximum suppression for a whole batch and all classes at once, with static output shapes.

Two steps, each vectorised over images: list the candidates (candidates.py), then select among them by greedy
(greedy.py), soft or matrix NMS (rescoring.py).
"""

import tensorflow as tf

from tfdet import schema
from tfdet.nms.candidates import NOTHING, all_above, best_above, best_class_of, count, in_order, look_up_pairs, take
from tfdet.nms.greedy import greedy
from tfdet.nms.rescoring import matrix, soft

METHODS = ("hard", "soft", "matrix")
KERNELS = ("gaussian", "linear")
MATRIX_CANDIDATES = 500  # of an image, as in SOLOv2


def non_max_suppression(
    boxes,
    scores,
    *,
    score_threshold=0.01,
    iou_threshold=0.45,
    max_per_class=100,
    max_detections=200,
    class_agnostic=False,
    method="hard",
    kernel="gaussian",
    sigma=0.5,
    max_candidates=None,
    compiled=True,
):
    """The detections of a batch, best first.

    "hard" is greedy and exact: within a class the best box is kept, boxes whose IoU with it exceeds
    `iou_threshold` go, and so on; an image keeps its `max_detections` best over all classes.
    "soft" (https://arxiv.org/abs/1704.04503) lowers the scores of overlapping boxes instead of removing them.
    "matrix" (SOLOv2, https://arxiv.org/abs/2003.10152) lowers all scores in one step, without a loop.

    Comparisons are strict (score > threshold, IoU > threshold). NaN scores and boxes with a coordinate that is
    not finite are dropped. Equal scores keep their input order: lower box index, then lower class. Boxes may
    reach beyond the image; nothing is clipped. Works eagerly, in a tf.function and in a SavedModel.

    Args:
        boxes: float32 [B, A, 4] xyxy, any unit; A static.
        scores: float32 [B, A, C]; C static.
        max_per_class: detections kept of one class in an image; not applied when `class_agnostic`.
        max_detections: detections kept in an image, K.
        class_agnostic: each box stands for its best class only and competes with the boxes of every class.
        kernel, sigma: "soft" and "matrix" scale scores by exp(-iou^2 / sigma) ("gaussian") or by 1 - iou ("linear";
            "soft" only where the IoU exceeds `iou_threshold`). Nothing else of them uses `iou_threshold`.
        max_candidates: None: every pair above the threshold takes part ("matrix": the 500 best of an image).
            N: only the N best pairs of an image take part. The result is the same wherever no more than N pass the
            threshold, and all inner shapes are static, so that the caller may compile everything with XLA.
        compiled: XLA compiles the inner arithmetic (several times faster); False for exports that cannot carry it.
    Returns:
        dict: boxes float32 [B, K, 4], scores float32 [B, K], labels int32 [B, K], num_detections int32 [B];
        unused slots hold zeros and label -1.
    Raises:
        ValueError: no such method or kernel.
    """
    _require("method", method, METHODS)
    _require("kernel", kernel, KERNELS)
    boxes, scores = tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32)
    # as tensors, so that a new value is not a new graph
    score_threshold = tf.convert_to_tensor(score_threshold, tf.float32)
    iou_threshold = tf.convert_to_tensor(iou_threshold, tf.float32)
    best_class = None
    if class_agnostic:  # one class that is all
        scores, best_class = best_class_of(scores)
        max_per_class = max_detections
    limits = (tf.convert_to_tensor(max_per_class), max_detections)

    def look_up(scores, pairs):
        return look_up_pairs(boxes, num_classes, scores, pairs)

    num_classes = scores.shape[2]
    if max_candidates is None:
        listed = all_above(scores, score_threshold, compiled)
    else:
        listed = best_above(boxes, scores, score_threshold, max_candidates)
    if method == "soft":
        filled = tf.reduce_max(count(listed[0] > NOTHING))
        candidates = look_up(*in_order(listed[0].shape[1] or filled, *listed))
        kept = soft(candidates, kernel, sigma, iou_threshold, score_threshold, *limits)
    elif method == "matrix":
        candidates = look_up(*in_order(max_candidates or MATRIX_CANDIDATES, *listed))
        kept = matrix(candidates, kernel, sigma, score_threshold, *limits)
    else:
        kept = greedy(look_up, *listed, iou_threshold, *limits, compiled)
    return _detections(look_up(*kept), best_class)


def _require(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")


def _detections(kept, best_class):
    """Kept candidates [B, K] -> the dict of detections; `best_class` int32 [B, A, 1] names the labels if given."""
    found = kept.scores > NOTHING
    labels = kept.classes if best_class is None else take(best_class[..., 0], kept.pairs)
    return {
        schema.BOXES: tf.where(found[..., None], kept.boxes, 0.0),
        schema.SCORES: tf.where(found, kept.scores, 0.0),
        schema.LABELS: tf.where(found, labels, schema.BACKGROUND),
        schema.NUM_DETECTIONS: count(found),
    }
