"""YOLOv3 trained on images of several sizes: the same weights, other anchors and targets for each size."""

from dataclasses import replace

import tensorflow as tf

from tfdet import schema
from tfdet.config import YoloConfig
from tfdet.detectors.yolo import Yolo


class MultiScaleYolo(Yolo):
    """As `Yolo`, whose `image_size` all but training keeps to; training takes the sides of `config.multi_scale`."""

    def __init__(self, config: YoloConfig, num_classes: int):
        super().__init__(config, num_classes)
        sizes = dict.fromkeys([config.image_size, *((side, side) for side in config.multi_scale)])
        self._at = {size: Yolo(replace(config, image_size=size, multi_scale=()), num_classes) for size in sizes}

    def at(self, image_size) -> Yolo:
        """The detector for images of (height, width), one of the config's."""
        return self._at[tuple(image_size)]

    def encode(self, boxes, labels, image_size=None) -> dict:
        """As `Yolo.encode`, for images of `image_size`; None: the config's."""
        return self.at(image_size or self.config.image_size).encode(boxes, labels)

    def loss(self, batch, predictions) -> dict:
        """As `Yolo.loss`; the size is that of `batch["image"]`, and need not be known before it runs."""
        shape = batch[schema.IMAGE].shape[1:3]
        if shape.is_fully_defined():
            return self.at(shape).loss(batch, predictions)
        is_size = tf.reduce_all(tf.shape(batch[schema.IMAGE])[1:3] == list(self._at), -1)
        known = tf.debugging.assert_equal(tf.reduce_any(is_size), True, "images of a size that is not in multi_scale")
        with tf.control_dependencies([known] if known is not None else []):
            number = tf.argmax(tf.cast(is_size, tf.int32), output_type=tf.int32)
        return tf.switch_case(number, [lambda one=one: one.loss(batch, predictions) for one in self._at.values()])
