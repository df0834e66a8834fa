"""The parts of the YOLOv3 loss that are plain box geometry: overlap tests, GIoU, CIoU."""

import math

import tensorflow as tf

from tfdet.boxes import area, iou, to_cxcywh, union


def overlaps_any(boxes, others, wanted, threshold):
    """Which boxes have an IoU of at least `threshold` with any wanted other box of their image.

    One other box of every image at a time, up to the last wanted one: no tensor is larger than [B, A, 4],
    where all pairs at once would be [B, A, M]. No gradient flows through the answer.

    Args:
        boxes: float32 [B, A, 4] xyxy, not inverted.
        others: float32 [B, M, 4] xyxy, same unit.
        wanted: bool [B, M]; the others that count.
        threshold: IoU in [0, 1].
    Returns:
        bool [B, A].
    """
    # [B, A] a coordinate: four times as fast as slicing [B, A, 4] at every step
    left, top, right, bottom = tf.unstack(tf.stop_gradient(boxes), axis=-1)
    areas = (right - left) * (bottom - top)
    columns = tf.range(tf.shape(others)[1])
    stop = tf.reduce_max(tf.concat([tf.where(tf.reduce_any(wanted, 0), columns + 1, 0), [0]], 0))

    def visit(m, found):
        x_min, y_min, x_max, y_max = tf.unstack(others[:, m, :, None], axis=1)  # [B, 1]
        width = tf.maximum(tf.minimum(right, x_max) - tf.maximum(left, x_min), 0.0)
        height = tf.maximum(tf.minimum(bottom, y_max) - tf.maximum(top, y_min), 0.0)
        shared = width * height
        both = areas + (x_max - x_min) * (y_max - y_min) - shared
        # the same as shared / both >= threshold
        return m + 1, found | (wanted[:, m, None] & (shared >= threshold * both))

    start = (tf.constant(0), tf.zeros_like(areas, tf.bool))
    return tf.while_loop(lambda m, _: m < stop, visit, start)[1]


def _sizes(boxes):
    return tf.unstack(boxes[..., 2:] - boxes[..., :2], axis=-1)


def _enclosing(boxes_a, boxes_b):
    """The smallest boxes around two broadcastable sets: float32 [..., 4] xyxy."""
    low = tf.minimum(boxes_a[..., :2], boxes_b[..., :2])
    high = tf.maximum(boxes_a[..., 2:], boxes_b[..., 2:])
    return tf.concat([low, high], -1)


def giou(boxes_a, boxes_b):
    """Generalised IoU: IoU less the share of the enclosing box that neither covers.

    Source: Rezatofighi et al., https://arxiv.org/abs/1902.09630, algorithm 1.

    Args:
        boxes_a, boxes_b: float32 [..., 4] xyxy, broadcastable, same unit.
    Returns:
        float32 [...] in [-1, 1].
    """
    around = area(_enclosing(boxes_a, boxes_b))
    return iou(boxes_a, boxes_b) - tf.math.divide_no_nan(around - union(boxes_a, boxes_b), around)


def ciou(boxes_a, boxes_b):
    """Complete IoU: IoU less a distance of the centres less a difference of the aspects.

    Source: Zheng et al., https://arxiv.org/abs/1911.08287, eq. 7 to 11; alpha takes no gradient.

    Args:
        boxes_a, boxes_b: float32 [..., 4] xyxy, broadcastable, same unit.
    Returns:
        float32 [...], at most 1.
    """
    overlap = iou(boxes_a, boxes_b)
    shift = to_cxcywh(boxes_a)[..., :2] - to_cxcywh(boxes_b)[..., :2]
    around = to_cxcywh(_enclosing(boxes_a, boxes_b))[..., 2:]
    distance = tf.math.divide_no_nan(tf.reduce_sum(shift**2, -1), tf.reduce_sum(around**2, -1))
    aspect = tf.atan2(*_sizes(boxes_a)) - tf.atan2(*_sizes(boxes_b))
    v = (2.0 / math.pi * aspect) ** 2
    alpha = tf.stop_gradient(tf.math.divide_no_nan(v, 1.0 - overlap + v))
    return overlap - distance - alpha * v
