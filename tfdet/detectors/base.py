"""The protocol that every detector follows; SSD and YOLO differ behind it, nothing else does."""

from typing import Protocol

import tensorflow as tf

from tfdet.compat import keras


class Detector(Protocol):
    """What the pipeline, the train step, evaluation and export need of a detector.

    Shape letters: A anchors, B batch, C classes, H height, M boxes an image, W width.
    Predictions are a dict with the keys `schema.BOX_DELTAS` float32 [B, A, 4], `schema.CLASS_LOGITS`
    float32 [B, A, C'] (C' = C + 1 with background first for SSD, C for YOLO) and, for YOLO,
    `schema.OBJECTNESS_LOGITS` float32 [B, A].
    """

    anchors: tf.Tensor  # float32 [A, 4] cxcywh, relative

    def build_model(self) -> keras.Model:
        """A model from uint8 images [B, H, W, 3] to the dict of predictions."""

    def require_possible(self):
        """Raises ConfigError where this detector cannot be trained on this machine; asked before training starts."""

    def encode(self, boxes, labels) -> dict:
        """Training targets; static shapes, pure TensorFlow ops, compiles under XLA.

        Args:
            boxes: float32 [B, M, 4] xyxy, relative to the network input; degenerate ones are never matched.
            labels: int32 [B, M] in [0, C); -1 padding, -2 ignore.
        Returns:
            `target_boxes` float32 [B, A, 4] and `target_labels` int32 [B, A] in [0, C), -1 background, -2 ignore.
        """

    def count_degenerate(self, boxes, labels):
        """How many boxes of each image are not padding and yet never matched: as `encode` -> int32 [B]."""

    def count_collisions(self, boxes, labels):
        """How many objects of each image get no target, or lose one, to other objects: as `encode` -> int32 [B]."""

    def loss(self, batch, predictions) -> dict:
        """Named sums per image, float32 [B] each, and "normalizer" float32 [B]; nothing is averaged here.

        An image whose `target_labels` are all -2 adds nothing to any of them.
        """

    def decode(self, predictions) -> tuple:
        """boxes float32 [B, A, 4] xyxy relative to the network input (not clipped), scores float32 [B, A, C]."""
