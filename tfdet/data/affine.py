"""Rotation, shear and translation of images at the size of the network input, and of their boxes.

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


def map_images(images, matrix):
    """uint8 [B, H, W, 3], float32 [B, 2, 3] of `plan` -> uint8 [B, H, W, 3], bilinear; meant for XLA.

    On lines of interleaved colours, as `image_ops.apply_colour`, so that XLA's loops run over contiguous memory: a
    third of what ImageProjectiveTransformV3 costs. A ring of gray around the image is what lies outside.
    """
    batch, height, width, _ = images.shape
    ring = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=image_ops.GRAY[0])
    flat, line = tf.reshape(ring, [-1]), 3 * (width + 2)
    position = tf.range(3 * width)[None]
    x, y = tf.cast(position // 3, tf.float32) + 0.5, tf.range(height, dtype=tf.float32)[:, None] + 0.5
    (a, b, c), (d, e, f) = (tf.unstack(row[:, None, None], axis=-1) for row in tf.unstack(_inverse(matrix), axis=1))
    # counted in pixel centres of the ring; whatever is farther out is as gray as the ring
    column = tf.clip_by_value(a * x + b * y + c + 0.5, 0.0, width + 0.999)
    row = tf.clip_by_value(d * x + e * y + f + 0.5, 0.0, height + 0.999)
    left, top = tf.cast(column, tf.int32), tf.cast(row, tf.int32)
    to_right, to_bottom = column - tf.cast(left, tf.float32), row - tf.cast(top, tf.float32)
    first = (tf.range(batch)[:, None, None] * (height + 2) + top) * line + left * 3 + position % 3

    def between(start):
        one, other = (tf.cast(tf.gather(flat, start + step), tf.float32) for step in (0, 3))
        return one + (other - one) * to_right

    upper, lower = between(first), between(first + line)
    return tf.reshape(tf.cast(upper + (lower - upper) * to_bottom + 0.5, tf.uint8), images.shape)


compiled_map_images = tf.function(map_images, jit_compile=True)


def _inverse(matrix):
    """float32 [B, 2, 3] -> float32 [B, 2, 3]: from new coordinates to old ones."""
    linear, offset = matrix[..., :2], matrix[..., 2]
    (a, b), (c, d) = (tf.unstack(row, axis=-1) for row in tf.unstack(linear, axis=1))
    turned = tf.stack([tf.stack([d, -b], -1), tf.stack([-c, a], -1)], 1) / (a * d - b * c)[:, None, None]
    return tf.concat([turned, -tf.linalg.matvec(turned, offset)[..., None]], -1)
