"""Cutout: gray holes in images, for a whole batch at once; objects that they hide are ignored."""

import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import schema
from tfdet.config import AugmentConfig
from tfdet.data import image_ops


def num_draws(config: AugmentConfig) -> int:
    """Draws an image that `plan` takes."""
    return 1 + 4 * config.cutout_holes


def plan(u, output_size, config: AugmentConfig):
    """Holes anywhere inside the image (https://arxiv.org/abs/1708.04552).

    Args:
        u: float32 [B, num_draws]: whether; height, width, y, x of each hole.
    Returns:
        int32 [B, K, 4] y, x, height, width in pixels; empty where none was drawn.
    """
    size = tf.constant(output_size, tf.float32)
    u, drawn = tf.reshape(u[:, 1:], [-1, config.cutout_holes, 4]), u[:, 0] < config.cutout
    low, high = config.cutout_side
    sides = tf.maximum(tf.round((low + (high - low) * u[..., :2]) * size), 1.0)
    start = tf.minimum(tf.floor(u[..., 2:] * (size - sides + 1.0)), size - sides)
    holes = tf.cast(tf.concat([start, sides], -1), tf.int32)
    return tf.where(drawn[:, None, None], holes, 0)


def labels_after(boxes, labels, holes, output_size, hidden: float):
    """Labels with objects ignored that the holes hide: int32 [B, M] -> int32 [B, M]; boxes stay as they are.

    Args:
        hidden: the share of a box's area from which on it is ignored; where holes overlap, both count.
    """
    shared = box_ops.intersection(boxes[:, :, None], box_ops.from_yxhw(holes, output_size)[:, None])
    gone = tf.reduce_sum(shared, -1) >= hidden * box_ops.area(boxes)
    return tf.where(gone & (labels >= 0), schema.IGNORE, labels)


def cut(images, holes):
    """uint8 [B, H, W, 3], int32 [B, K, 4] -> images with gray holes; meant for XLA."""
    batch, rows, columns, _ = images.shape
    row, column = tf.range(rows)[:, None], tf.range(columns * 3)[None] // 3  # a line of interleaved colours
    pixels = tf.reshape(images, [batch, rows, columns * 3])
    for hole in tf.unstack(holes, axis=1):
        y, x, height, width = (part[:, None, None] for part in tf.unstack(hole, axis=-1))
        inside = (row >= y) & (row < y + height) & (column >= x) & (column < x + width)
        pixels = tf.where(inside, tf.constant(image_ops.GRAY[0], tf.uint8), pixels)
    return tf.reshape(pixels, images.shape)
