"""Rotation, shear and translation of one image at the size of the network input, and of its boxes.

Angles are those seen on the network input, whatever its aspect: the map works on pixels. What comes from outside of
the image is gray.
"""

import math

import tensorflow as tf

from tfdet.config import AugmentConfig
from tfdet.data import augment, image_ops

NUM_DRAWS = 6


def is_on(config: AugmentConfig) -> bool:
    """Whether the config asks for any of the three."""
    return bool(config.affine_probability and (config.rotate or config.shear or config.translate))


def plan(u, config: AugmentConfig, output_size):
    """The map of every image of a batch, rotation after shear, about the centre, then translation.

    Args:
        u: float32 [B, NUM_DRAWS]: whether, angle, shear along x and y, translation along x and y.
        output_size: (height, width) in pixels.
    Returns:
        float32 [B, 2, 3], old pixel coordinates (x, y, 1) -> new ones, pixel k reaching from k to k + 1;
        the identity where nothing was drawn.
    """
    signed = 2.0 * u - 1.0
    angle = signed[:, 1] * math.radians(config.rotate)
    tan_x, tan_y = (tf.tan(signed[:, k] * math.radians(config.shear)) for k in (2, 3))
    cos, sin, one = tf.cos(angle), tf.sin(angle), tf.ones_like(angle)
    turn = tf.stack([tf.stack([cos, -sin], -1), tf.stack([sin, cos], -1)], 1)  # y points down: clockwise
    lean = tf.stack([tf.stack([one, tan_x], -1), tf.stack([tan_y, one], -1)], 1)
    linear = turn @ lean
    size = tf.constant(output_size[::-1], tf.float32)
    shift = signed[:, 4:6] * config.translate * size
    offset = size / 2.0 + shift - tf.linalg.matvec(linear, size / 2.0)
    drawn = (u[:, 0] < config.affine_probability)[:, None, None]
    return tf.where(drawn, tf.concat([linear, offset[..., None]], -1), tf.eye(2, 3))


def map_boxes(boxes, labels, matrix, output_size, min_visible: float = 0.0):
    """The upright boxes around the mapped corners, cut to the image; what cannot be seen becomes padding.

    Args:
        boxes: float32 [B, M, 4]; labels: int32 [B, M]; matrix: float32 [B, 2, 3], see `plan`.
    Returns:
        float32 [B, M, 4], int32 [B, M], as `augment.boxes_in_window`.
    """
    size = tf.constant(output_size[::-1], tf.float32)
    left, top, right, bottom = tf.unstack(boxes, axis=-1)
    corners = tf.stack([tf.stack(pair, -1) for pair in ((left, top), (right, top), (right, bottom), (left, bottom))], 2)
    moved = tf.einsum("bij,bmkj->bmki", matrix[..., :2], corners * size) + matrix[:, None, None, :, 2]
    around = tf.concat([tf.reduce_min(moved, 2), tf.reduce_max(moved, 2)], -1) / tf.concat([size, size], -1)
    whole = tf.tile(tf.constant([augment.WHOLE]), [tf.shape(boxes)[0], 1])
    untouched = tf.reduce_all(tf.equal(matrix, tf.eye(2, 3)), [1, 2])[:, None]
    new_boxes, new_labels = augment.boxes_in_window(around, labels, whole, output_size, False, min_visible)
    return tf.where(untouched[..., None], boxes, new_boxes), tf.where(untouched, labels, new_labels)


def map_image(image, matrix):
    """uint8 [H, W, 3], float32 [2, 3] of `plan` -> uint8 [H, W, 3], bilinear; an identity costs nothing."""
    untouched = tf.reduce_all(tf.equal(matrix, tf.eye(2, 3)))
    return tf.ensure_shape(tf.cond(untouched, lambda: image, lambda: _warp(image, matrix)), image.shape)


def _warp(image, matrix):
    """TensorFlow's op asks where a new pixel comes from, and counts pixel centres from 0."""
    linear, offset = matrix[:, :2], matrix[:, 2]
    (a, b), (c, d) = tf.unstack(linear[0]), tf.unstack(linear[1])
    inverse = tf.stack([tf.stack([d, -b]), tf.stack([-c, a])]) / (a * d - b * c)
    origin = tf.linalg.matvec(inverse, 0.5 - offset) - 0.5
    transform = tf.concat([tf.reshape(tf.concat([inverse, origin[:, None]], 1), [6]), [0.0, 0.0]], 0)
    pixels = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None], transforms=transform[None], output_shape=tf.shape(image)[:2],
        fill_value=float(image_ops.GRAY[0]), interpolation="BILINEAR", fill_mode="CONSTANT",
    )[0]  # fmt: skip
    return tf.cast(pixels + 0.5, tf.uint8)
