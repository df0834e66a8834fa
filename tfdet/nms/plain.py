"""Greedy suppression of one image in the one operation that ONNX has for it, instead of loops."""

import tensorflow as tf

from tfdet import schema


def plain_nms(
    boxes,
    scores,
    *,
    score_threshold,
    iou_threshold,
    max_per_class,
    max_detections,
    class_agnostic,
    max_candidates,
    **_,
):
    """As `nms.non_max_suppression` with method "hard" and `max_candidates`, for a batch of one image.

    Args:
        boxes: float32 [1, A, 4] xyxy; scores: float32 [1, A, C].
    Returns:
        dict: boxes float32 [1, K, 4], scores float32 [1, K], labels int32 [1, K], num_detections int32 [1].
    """
    boxes, scores, best_class = boxes[0], scores[0], None
    if class_agnostic:
        best_class = tf.argmax(scores, -1, output_type=tf.int32)
        scores, max_per_class = tf.reduce_max(scores, -1, keepdims=True), max_detections
    num_classes = scores.shape[1]
    candidates = min(max_candidates, boxes.shape[0] * num_classes)
    ranked, pairs = tf.math.top_k(tf.reshape(scores, [-1]), k=candidates)
    own, classes = tf.gather(boxes, pairs // num_classes), pairs % num_classes
    kept = [
        tf.raw_ops.NonMaxSuppressionV3(
            boxes=own,
            scores=tf.where(classes == label, ranked, -1.0),
            max_output_size=max_per_class,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
        )
        for label in range(num_classes)
    ]
    kept = tf.concat(kept, 0)
    marked = tf.tensor_scatter_nd_update(tf.fill([candidates], -1.0), kept[:, None], tf.gather(ranked, kept))
    marked = tf.concat([marked, tf.fill([max_detections], -1.0)], 0)
    values, place = tf.math.top_k(marked, k=max_detections)
    found, place = values > score_threshold, tf.minimum(place, candidates - 1)
    labels = tf.gather(classes if best_class is None else tf.gather(best_class, pairs), place)
    return {
        schema.BOXES: tf.where(found[:, None], tf.gather(own, place), 0.0)[None],
        schema.SCORES: tf.where(found, values, 0.0)[None],
        schema.LABELS: tf.where(found, labels, schema.BACKGROUND)[None],
        schema.NUM_DETECTIONS: tf.reduce_sum(tf.cast(found, tf.int32))[None],
    }
