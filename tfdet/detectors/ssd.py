"""SSD (https://arxiv.org/abs/1512.02325): priors, targets, loss and decoding.

All boxes here are relative to the network input, not to the photo.
"""

import numpy as np
import tensorflow as tf

from tfdet import schema
from tfdet.boxes import decode_deltas, to_cxcywh
from tfdet.config import PRIOR_LAYOUTS, ConfigError, SsdConfig
from tfdet.detectors import losses, matching
from tfdet.detectors.priors import count_priors, load_priors, make_priors, to_xyxy


class Ssd:
    """SSD behind the protocol of `detectors.base.Detector`.

    Args:
        config: SsdConfig; its `priors` name a layout or a pickle (see `priors.save_priors`).
        num_classes: C, background not counted.
    Raises:
        AnnotationError: the pickle cannot be read.
    """

    def __init__(self, config: SsdConfig, num_classes: int):
        self.config = config
        self.num_classes = num_classes
        anchors, variances = _load_or_make(config)
        self.anchors = tf.constant(anchors, tf.float32)  # [A, 4] cxcywh, relative
        self.variances = tf.constant(variances, tf.float32)  # [A, 4]
        self._corners = tf.constant(to_xyxy(anchors), tf.float32)  # [A, 4] xyxy
        # what `encode` subtracts from the features of a box and then multiplies by
        sizes = anchors[:, 2:]
        self._offsets = tf.constant(np.concatenate([anchors[:, :2], np.log(sizes)], 1), tf.float32)
        self._scales = tf.constant(1.0 / (np.concatenate([sizes, np.ones_like(sizes)], 1) * variances), tf.float32)

    def build_model(self):
        """The network: uint8 images [B, H, W, 3] -> the dict of predictions.

        Raises:
            ConfigError: the priors come from a pickle and no layout has as many.
        """
        from tfdet.models import mobilenet, ssd_vgg  # targets, loss and decoding need no network

        build = {"vgg16": ssd_vgg.build, "mobilenetv2": mobilenet.build}[self.config.backbone]
        return build(self.config, self.num_classes, _find_layout(self.config, len(self.anchors)))

    def require_possible(self):
        """Raises ConfigError where the loss is tensorflow-addons', which are missing."""
        if self.config.class_loss == "sigmoid_focal":
            losses.sigmoid_focal()

    # --- encode -----------------------------------------------------------------------------

    def encode(self, boxes, labels) -> dict:
        """Training targets; static shapes, compiles under XLA.

        Every prior learns the box that `matching.match` gives it by `config.matching` and `config.match_iou`.
        The deltas are those of `boxes.encode_deltas`, with the logarithms taken of the boxes, before they are
        spread over the priors.

        Args:
            boxes: float32 [B, M, 4] xyxy, relative to the network input, M > 0; degenerate ones are never matched.
            labels: int32 [B, M] in [0, C); -1 padding, -2 ignore.
        Returns:
            `target_boxes` float32 [B, A, 4] deltas (0 where there is no object) and `target_labels` int32 [B, A]
            in [0, C), -1 background, -2 ignore.
        """
        config = self.config
        rows = matching.match(boxes, labels, self._corners, rule=config.matching, threshold=config.match_iou)
        matched, rows = rows >= 0, tf.maximum(rows, 0)
        target_labels = tf.where(matched, tf.gather(labels, rows, batch_dims=1), schema.BACKGROUND)
        deltas = (tf.gather(_features(to_cxcywh(boxes)), rows, batch_dims=1) - self._offsets) * self._scales
        target_boxes = tf.where((target_labels >= 0)[..., None], deltas, 0.0)
        return {schema.TARGET_BOXES: target_boxes, schema.TARGET_LABELS: target_labels}

    def count_degenerate(self, boxes, labels):
        """How many boxes of each image are not padding and yet never matched: as `encode` -> int32 [B]."""
        return matching.count_degenerate(boxes, labels)

    def count_collisions(self, boxes, labels):
        """How many objects of each image have no prior, others having all they overlap: as `encode` -> int32 [B]."""
        config = self.config
        rows = matching.match(boxes, labels, self._corners, rule=config.matching, threshold=config.match_iou)
        image = tf.broadcast_to(tf.range(tf.shape(rows)[0])[:, None], tf.shape(rows))
        place = tf.stack([image, rows + 1], -1)  # 0: of no box
        priors = tf.scatter_nd(place, tf.ones_like(rows), tf.stack([tf.shape(boxes)[0], tf.shape(boxes)[1] + 1]))
        lost = (priors[:, 1:] == 0) & (labels >= 0) & matching.is_matchable(boxes)
        return tf.math.count_nonzero(lost, 1, dtype=tf.int32)

    # --- loss -------------------------------------------------------------------------------

    def loss(self, batch, predictions) -> dict:
        """The loss that `config.class_loss` names, every part summed over an image; computed in float32.

        See `losses.multibox_loss` and `losses.focal_loss`.

        Args:
            batch: `target_boxes` and `target_labels`, what `encode` made.
            predictions: the model's dict, any float type.
        Returns:
            float32 [B] each: `box_loss`, `class_loss`, and `normalizer`, the number of positives.
        """
        config = self.config
        targets = batch[schema.TARGET_BOXES], batch[schema.TARGET_LABELS]
        predicted = predictions[schema.BOX_DELTAS], predictions[schema.CLASS_LOGITS]
        if config.class_loss == "sigmoid_focal":
            return losses.focal_loss(*targets, *predicted, alpha=config.alpha)
        mining = {"neg_pos_ratio": config.neg_pos_ratio, "min_negatives": config.min_negatives}
        return losses.multibox_loss(*targets, *predicted, **mining, alpha=config.alpha)

    # --- decode -----------------------------------------------------------------------------

    def decode(self, predictions) -> tuple:
        """Boxes and scores of every prior, in float32.

        A score is the class's share of the softmax over the classes and background, or with the focal loss, which
        knows no background, its own sigmoid.

        Args:
            predictions: the model's dict, any float type.
        Returns:
            boxes float32 [B, A, 4] xyxy relative to the network input (not clipped), scores float32 [B, A, C].
        """
        deltas = tf.cast(predictions[schema.BOX_DELTAS], tf.float32)
        score = tf.nn.sigmoid if self.config.class_loss == "sigmoid_focal" else tf.nn.softmax
        scores = score(tf.cast(predictions[schema.CLASS_LOGITS], tf.float32))
        return decode_deltas(deltas, self.anchors, self.variances), scores[..., 1:]


def detection_rows(detections) -> list:
    """Detections as rykov8's `BBoxUtility.detection_out` gives them.

    Args:
        detections: `boxes` [B, K, 4], `scores` [B, K], `labels` [B, K] padded with -1.
    Returns:
        a list of B float32 [N, 6] arrays: label (from 1, background would be 0), score, x_min, y_min, x_max, y_max.
        An image without detections gives [0, 6], where the original gives an empty list.
    """
    labels, scores, boxes = (np.asarray(detections[key]) for key in (schema.LABELS, schema.SCORES, schema.BOXES))
    rows = np.concatenate([labels[..., None] + 1, scores[..., None], boxes], -1).astype(np.float32)
    return [image[image[:, 0] > 0] for image in rows]


def _load_or_make(config):
    """The priors, float64 [A, 4] cxcywh, and their variances, float [A, 4], that a config names."""
    if config.priors not in PRIOR_LAYOUTS:
        return load_priors(config.priors)
    layout = PRIOR_LAYOUTS[config.priors]
    anchors = make_priors(layout)
    return anchors, np.broadcast_to(layout.variances, anchors.shape)


def _find_layout(config, count):
    """The named layout or, for a pickle, the first that has as many priors: only the boxes of a cell are used of it."""
    if config.priors in PRIOR_LAYOUTS:
        return PRIOR_LAYOUTS[config.priors]
    for layout in PRIOR_LAYOUTS.values():
        if count_priors(layout) == count:
            return layout
    known = ", ".join(f"{count_priors(layout):,} ({name})" for name, layout in PRIOR_LAYOUTS.items())
    raise ConfigError(f"detector.priors: {config.priors} holds {count:,} priors; the models have {known}")


def _features(boxes_cxcywh):
    """float32 [..., 4] cxcywh -> centre x, centre y, log width, log height."""
    return tf.concat([boxes_cxcywh[..., :2], tf.math.log(boxes_cxcywh[..., 2:])], -1)
