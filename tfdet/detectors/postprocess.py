"""From predictions to detections: decode, suppress, and leave the network input for the photo."""

import tensorflow as tf

from tfdet import boxes as boxlib
from tfdet import nms, schema
from tfdet.config import Config


def detect(
    detector, config: Config, predictions, image_size, score_threshold=None, classes=None, compiled=True
) -> dict:
    """The detections of a batch, by `config.detector.nms`.

    Args:
        detector: decodes the predictions, see base.py.
        predictions: the model's dict.
        image_size: int32 [B, 2] height, width of the photos in pixels; how a letterbox was placed follows from it.
        score_threshold: None: the config's.
        classes: labels to look for, others count as never scored; None: all.
        compiled: whether XLA compiles the inner loops of the suppression, see nms.
    Returns:
        dict: boxes float32 [B, K, 4] xyxy relative to the PHOTO, clipped to it; scores float32 [B, K];
        labels int32 [B, K], padding -1; num_detections int32 [B].
    """
    limits = config.detector.nms
    boxes, scores = detector.decode(predictions)
    if classes is not None:
        wanted = tf.reduce_any(tf.range(scores.shape[2])[:, None] == classes, 1)
        scores = tf.where(wanted, scores, 0.0)
    detections = nms.non_max_suppression(
        boxes,
        scores,
        score_threshold=limits.score_threshold if score_threshold is None else score_threshold,
        iou_threshold=limits.iou_threshold,
        max_per_class=limits.max_per_class,
        max_detections=limits.max_detections,
        class_agnostic=limits.class_agnostic,
        method=limits.method,
        kernel=limits.kernel,
        sigma=limits.sigma,
        compiled=compiled,
    )
    return {**detections, schema.BOXES: boxlib.clip(to_photo(detections[schema.BOXES], config, image_size))}


def to_photo(boxes, config: Config, image_size):
    """Boxes float32 [B, N, 4] relative to the network input -> relative to the photo, not clipped.

    Args:
        image_size: int32 [B, 2] height, width of the photos in pixels.
    """
    if config.data.resize != "letterbox":
        return boxes
    window = boxlib.letterbox_window(tf.cast(image_size, tf.int32), config.detector.image_size)
    return boxlib.from_window(boxes, window[:, None])
