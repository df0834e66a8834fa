"""Suppression that lowers scores instead of removing boxes: soft-NMS and matrix NMS."""

import tensorflow as tf

from tfdet import boxes as boxlib
from tfdet.nms.candidates import NOTHING, count, in_order, padded, rivals_among, take


def soft(candidates, kernel, sigma, iou_threshold, threshold, max_per_class, max_detections):
    """Picks the best candidate of every image, lowers its rivals' scores, and again, K times.

    Returns:
        the scores they were picked with float32 [B, K] and their pairs int32 [B, K].
    """
    scores, pairs, boxes, classes = candidates
    batch, steps, places = tf.shape(scores)[0], tf.range(max_detections), tf.range(tf.shape(scores)[1])

    def unfinished(step, scores, *_):
        return (step < max_detections) & tf.reduce_any(scores > NOTHING)

    def pick(step, scores, kept_scores, kept):
        score, best = tf.math.top_k(scores, k=1)
        kept_scores, kept = tf.where(steps == step, score, kept_scores), tf.where(steps == step, best, kept)
        kept_classes = tf.where(kept_scores > NOTHING, take(classes, kept), -1)
        rival = (classes == take(classes, best)) & (score > NOTHING)
        full = count(kept_classes == take(classes, best)) >= max_per_class
        lowered = scores * _soft_decay(boxlib.iou(boxes, take(boxes, best)), kernel, sigma, iou_threshold)
        lowered = tf.where((lowered > threshold) & ~full[:, None], lowered, NOTHING)
        scores = tf.where(places == best, NOTHING, tf.where(rival, lowered, scores))
        return step + 1, scores, kept_scores, kept

    empty = tf.fill([batch, max_detections], NOTHING), tf.zeros([batch, max_detections], tf.int32)
    _, _, kept_scores, kept = tf.while_loop(unfinished, pick, (0, scores, *empty))
    return kept_scores, take(padded(pairs, 1), kept)


def _soft_decay(iou, kernel, sigma, iou_threshold):
    """Soft-NMS, section 3: the linear and the gaussian penalty."""
    if kernel == "gaussian":
        return tf.exp(-iou * iou / sigma)
    return tf.where(iou > iou_threshold, 1.0 - iou, 1.0)


def matrix(candidates, kernel, sigma, threshold, max_per_class, max_detections):
    """SOLOv2, section 3.3: each score falls by its worst rival, less what that rival itself suffers from others.

    Returns:
        the lowered scores float32 [B, K], falling, and their pairs int32 [B, K].
    """
    scores, pairs, boxes, classes = candidates
    rivals = rivals_among(classes)
    iou = tf.where(rivals, boxlib.iou(boxes[:, :, None], boxes[:, None]), 0.0)
    suffered = tf.reduce_max(iou, 1)[..., None]
    if kernel == "gaussian":
        factor = tf.exp((suffered * suffered - iou * iou) / sigma)
    else:
        factor = tf.where(suffered < 1.0, (1.0 - iou) / (1.0 - suffered), 1.0)
    lowered = scores * tf.reduce_min(tf.where(rivals, factor, 1.0), 1)
    lowered = tf.where(lowered > threshold, lowered, NOTHING)

    lowered, pairs, classes = in_order(scores.shape[1], lowered, pairs, classes)
    lowered = tf.where(count(rivals_among(classes)) < max_per_class, lowered, NOTHING)
    return in_order(max_detections, lowered, pairs)
