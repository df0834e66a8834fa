"""YOLOv3 (https://arxiv.org/abs/1804.02767): anchors, targets, loss and decoding.

All boxes here are relative to the network input, not to the photo.
"""

import tensorflow as tf

from tfdet import schema
from tfdet.boxes import to_xyxy
from tfdet.config import YoloConfig
from tfdet.detectors import matching, yolo_loss
from tfdet.detectors.yolo_matching import Matcher, is_overwritten, make_anchors

# A decoded side is between 1/22,026 and 22,026 = exp(10) of its anchor's: never 0, infinite or NaN.
MAX_LOG_SIZE = 10.0


class Yolo:
    """YOLOv3 behind the protocol of `detectors.base.Detector`.

    Args:
        config: YoloConfig.
        num_classes: C.
    """

    def __init__(self, config: YoloConfig, num_classes: int):
        self.config = config
        self.num_classes = num_classes
        self._matcher = Matcher(config)
        anchors, cell_sizes, self._level_sizes = make_anchors(config)
        self.anchors = tf.constant(anchors)  # float32 [A, 4] cxcywh, relative
        self.cell_sizes = tf.constant(cell_sizes)  # float32 [A, 2] width, height, relative

    def build_model(self):
        """The network: uint8 images [B, H, W, 3] -> the dict of predictions."""
        from tfdet.models import darknet  # targets, loss and decoding need no network

        return darknet.build(self.config, self.num_classes)

    def require_possible(self):
        """YOLO is trained wherever TensorFlow runs."""

    # --- encode -----------------------------------------------------------------------------

    def encode(self, boxes, labels) -> dict:
        """Training targets by one scatter; static shapes, compiles under XLA.

        Every box trains the anchor that fits its shape best (both centred, ties to the first in
        `config.anchors`) in the cell that holds its centre. A centre outside the input, or on its right or
        bottom border, goes to the nearest cell. An anchor that several masks name is trained at each of their
        levels, one that none names is never chosen. Of boxes that claim one slot the last wins. Ignored boxes
        are not matched: the loss spares what overlaps them.

        With `compat="keras_yolo3"` centres are floored to whole pixels and a box whose best anchor no mask
        names has no target. Its union of the classes of boxes in one slot is not kept: one slot, one label.

        Args:
            boxes: float32 [B, M, 4] xyxy, relative to the network input; degenerate ones are never matched.
            labels: int32 [B, M] in [0, C); -1 padding, -2 ignore.
        Returns:
            `target_boxes` float32 [B, A, 4] cxcywh (0 where there is none) and `target_labels` int32 [B, A]
            in [0, C) or -1 background.
        """
        boxes_cxcywh, _ = self._matcher.ground_truth(boxes)
        slots = self._matcher.slots(boxes, labels)  # [B, M, D]
        matched = slots >= 0
        images = tf.broadcast_to(tf.range(tf.shape(slots)[0])[:, None, None], tf.shape(slots))
        index = tf.stack([images, tf.maximum(slots, 0)], -1)
        shape = (tf.shape(slots)[0], self.anchors.shape[0])
        # scattered by adding: no two boxes share a slot, and a box without one adds 0 to slot 0
        values = tf.where(matched[..., None], boxes_cxcywh[:, :, None], 0.0)
        raised = tf.where(matched, labels[..., None] - schema.BACKGROUND, 0)
        background = tf.fill(shape, schema.BACKGROUND)
        return {
            schema.TARGET_BOXES: tf.scatter_nd(index, values, (*shape, 4)),
            schema.TARGET_LABELS: tf.tensor_scatter_nd_add(background, index, raised),
        }

    def count_degenerate(self, boxes, labels):
        """How many boxes of each image are not padding and yet never matched: as `encode` -> int32 [B]."""
        return matching.count_degenerate(boxes, labels)

    def count_collisions(self, boxes, labels):
        """How many boxes of each image lost a slot to a later one: as `encode` -> int32 [B]."""
        lost = is_overwritten(self._matcher.claims(boxes, labels))
        return tf.reduce_sum(tf.cast(tf.reduce_any(lost, -1), tf.int32), -1)

    # --- loss -------------------------------------------------------------------------------

    def loss(self, batch, predictions) -> dict:
        """The YOLOv3 loss, every part summed over an image; computed in float32.

        Objects: box loss (times 2 - w * h, so that small boxes count more), objectness towards 1, class.
        Background: objectness towards 0, except anchors whose decoded box has IoU >= ignore_thresh with any
        ground truth of the image, ignored ones included. Cross-entropies are binary, from logits.
        With `compat="keras_yolo3"` an object spares only anchors of its own level.
        Source: the paper, section 2; weights as in qqwweee/keras-yolo3.

        Args:
            batch: `boxes` [B, M, 4], `labels` [B, M], and what `encode` made of them.
            predictions: the model's dict, any float type.
        Returns:
            float32 [B] each: `xy_loss` and `wh_loss` (`box_loss` with GIoU or CIoU), `objectness_loss`,
            `class_loss`, and `normalizer`: 1 an image, 0 where all `target_labels` are -2.
        """
        deltas, objectness, class_logits = _as_float32(predictions)
        labels = batch[schema.TARGET_LABELS]
        is_object = labels >= 0
        is_background = (labels == schema.BACKGROUND) & ~self._is_spared(batch, deltas)
        cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits
        objectness_loss = cross_entropy(tf.cast(is_object, tf.float32), objectness)
        class_loss = tf.reduce_sum(cross_entropy(tf.one_hot(labels, self.num_classes), class_logits), -1)
        losses = self._box_losses(batch[schema.TARGET_BOXES], is_object, deltas)
        losses["objectness_loss"] = _masked_sum(objectness_loss, is_object | is_background)
        losses["class_loss"] = _masked_sum(class_loss, is_object)
        losses[schema.NORMALIZER] = tf.cast(tf.reduce_any(labels != schema.IGNORE, -1), tf.float32)
        return losses

    def _is_spared(self, batch, deltas):
        """Anchors that overlap a ground truth too well to be called background: raw [B, A, 4] -> bool [B, A]."""
        boxes, labels = batch[schema.BOXES], batch[schema.LABELS]
        boxes_cxcywh, usable = self._matcher.ground_truth(boxes)
        decoded, others = to_xyxy(self._decode_boxes(deltas)), to_xyxy(boxes_cxcywh)
        if self.config.compat != "keras_yolo3":
            wanted = usable & (labels != schema.BACKGROUND)
            return yolo_loss.overlaps_any(decoded, others, wanted, self.config.ignore_thresh)
        slots, ignored = self._matcher.slots(boxes, labels), usable & (labels == schema.IGNORE)
        spared, first = [], 0
        for level in tf.split(decoded, self._level_sizes, 1):
            last = first + level.shape[1]
            wanted = ignored | tf.reduce_any((slots >= first) & (slots < last), -1)
            spared.append(yolo_loss.overlaps_any(level, others, wanted, self.config.ignore_thresh))
            first = last
        return tf.concat(spared, 1)

    def _box_losses(self, targets, is_object, deltas):
        """[B, A, 4] cxcywh, bool [B, A], raw [B, A, 4] -> dict of float32 [B]."""
        # an anchor without an object is its own target, so nothing masked can be infinite or NaN
        targets = tf.where(is_object[..., None], targets, self.anchors)
        scale = 2.0 - tf.minimum(targets[..., 2] * targets[..., 3], 1.0)
        if self.config.box_loss != "l2":
            overlap = {"giou": yolo_loss.giou, "ciou": yolo_loss.ciou}[self.config.box_loss]
            similarity = overlap(to_xyxy(self._decode_boxes(deltas)), to_xyxy(targets))
            return {"box_loss": _masked_sum(scale * (1.0 - similarity), is_object)}
        offsets = (targets[..., :2] - self.anchors[..., :2]) / self.cell_sizes + 0.5
        log_sizes = tf.math.log(targets[..., 2:] / self.anchors[..., 2:])
        xy = tf.nn.sigmoid_cross_entropy_with_logits(tf.clip_by_value(offsets, 0.0, 1.0), deltas[..., :2])
        wh = 0.5 * (log_sizes - deltas[..., 2:]) ** 2
        return {
            "xy_loss": _masked_sum(scale * tf.reduce_sum(xy, -1), is_object),
            "wh_loss": _masked_sum(scale * tf.reduce_sum(wh, -1), is_object),
        }

    # --- decode -----------------------------------------------------------------------------

    def decode(self, predictions) -> tuple:
        """Boxes and scores of every anchor, in float32.

        A centre is sigmoid(tx, ty) of its cell, a size exp(tw, th) of its anchor, with the exponent held in
        [-10, 10]; a score is objectness times class probability.

        Args:
            predictions: the model's dict, any float type.
        Returns:
            boxes float32 [B, A, 4] xyxy relative to the network input (not clipped), scores float32 [B, A, C].
        """
        deltas, objectness, class_logits = _as_float32(predictions)
        return to_xyxy(self._decode_boxes(deltas)), tf.sigmoid(objectness)[..., None] * tf.sigmoid(class_logits)

    def _decode_boxes(self, deltas):
        """float32 [B, A, 4] raw tx, ty, tw, th -> float32 [B, A, 4] cxcywh, relative."""
        centres = self.anchors[..., :2] + (tf.sigmoid(deltas[..., :2]) - 0.5) * self.cell_sizes
        log_sizes = tf.clip_by_value(deltas[..., 2:], -MAX_LOG_SIZE, MAX_LOG_SIZE)
        return tf.concat([centres, self.anchors[..., 2:] * tf.exp(log_sizes)], -1)


def _as_float32(predictions):
    """The dict of predictions -> raw boxes [B, A, 4], objectness [B, A], classes [B, A, C], all float32."""
    keys = (schema.BOX_DELTAS, schema.OBJECTNESS_LOGITS, schema.CLASS_LOGITS)
    return [tf.cast(predictions[key], tf.float32) for key in keys]


def _masked_sum(values, mask):
    """float32 [B, A], bool [B, A] -> float32 [B]."""
    return tf.reduce_sum(tf.where(mask, values, 0.0), -1)
