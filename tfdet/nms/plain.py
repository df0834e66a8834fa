"""Greedy suppression of one image in the one operation that TFLite and ONNX have for it, instead of loops."""

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
    marked = tf.fill([candidates + max_detections + 1], -1.0)
    for label in range(num_classes):
        kept, count = tf.raw_ops.NonMaxSuppressionV4(
            boxes=own,
            scores=tf.where(classes == label, ranked, -1.0),
            max_output_size=max_per_class,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            pad_to_max_output_size=True,
        )
        real = tf.range(max_per_class) < count
        place = tf.where(real, kept, candidates + max_detections)  # a last slot takes what only fills up
        marked = tf.tensor_scatter_nd_update(marked, place[:, None], tf.where(real, tf.gather(ranked, kept), -1.0))
    values, place = tf.math.top_k(marked, k=max_detections)
    found, place = values > score_threshold, tf.minimum(place, candidates - 1)
    labels = tf.gather(classes if best_class is None else tf.gather(best_class, pairs), place)
    return {
        schema.BOXES: tf.where(found[:, None], tf.gather(own, place), 0.0)[None],
        schema.SCORES: tf.where(found, values, 0.0)[None],
        schema.LABELS: tf.where(found, labels, schema.BACKGROUND)[None],
        schema.NUM_DETECTIONS: tf.reduce_sum(tf.cast(found, tf.int32))[None],
    }
