"""A detector small enough to train in a test: one level of 4x4 anchors on 16x16 pixels, SSD-like losses.

`Toy` follows `tfdet.detectors.base.Detector`; `dataset` makes batches in which it has something to learn:
a bright rectangle on noise, labelled by its colour.
"""

import numpy as np
import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import schema
from tfdet.compat import keras

SIDE, CELLS, CLASSES = 16, 4, 2


class Toy:
    """Classes: 0 red, 1 green. `batch_norm`: None, "plain" or "sync"."""

    def __init__(self, batch_norm=None, regularizer=None):
        self.batch_norm, self.regularizer = batch_norm, regularizer
        centre = (np.arange(CELLS, dtype=np.float32) + 0.5) / CELLS
        y, x = np.meshgrid(centre, centre, indexing="ij")
        side = np.full_like(x, 2 / CELLS)
        self.anchors = tf.constant(np.stack([x, y, side, side], -1).reshape(-1, 4))

    def build_model(self):
        layers = keras.layers
        images = keras.Input((SIDE, SIDE, 3), dtype="uint8")
        x = layers.Rescaling(1 / 127.5, -1.0, name="rescale")(images)
        for number, width in enumerate((8, 16), 1):
            x = layers.Conv2D(
                width, 3, 2, "same", activation="relu", name=f"conv{number}", kernel_regularizer=self.regularizer
            )(x)
            if self.batch_norm:
                sync = {"synchronized": True} if self.batch_norm == "sync" else {}
                x = layers.BatchNormalization(momentum=0.9, name=f"norm{number}", **sync)(x)
        deltas = layers.Reshape((-1, 4), dtype="float32", name="box_deltas")(
            layers.Conv2D(4, 3, padding="same", name="box_head")(x)
        )
        logits = layers.Reshape((-1, CLASSES + 1), dtype="float32", name="class_logits")(
            layers.Conv2D(CLASSES + 1, 3, padding="same", name="class_head")(x)
        )
        return keras.Model(images, {schema.BOX_DELTAS: deltas, schema.CLASS_LOGITS: logits}, name="toy")

    def require_possible(self):
        """Trains anywhere."""

    def encode(self, boxes, labels):
        """Each box goes to the anchor of the cell that its centre lies in."""
        cell = tf.cast(tf.clip_by_value(box_ops.to_cxcywh(boxes)[..., :2] * CELLS, 0, CELLS - 1), tf.int32)
        index = tf.where(labels >= 0, cell[..., 1] * CELLS + cell[..., 0], -1)  # [B, M]
        hit = index[:, None, :] == tf.range(CELLS * CELLS)[None, :, None]  # [B, A, M]
        best = tf.argmax(hit, -1)
        return {
            schema.TARGET_BOXES: tf.gather(boxes, best, batch_dims=1),
            schema.TARGET_LABELS: tf.where(
                tf.reduce_any(hit, -1), tf.gather(labels, best, batch_dims=1), schema.BACKGROUND
            ),
        }

    def loss(self, batch, predictions):
        labels = batch[schema.TARGET_LABELS]
        positive = tf.cast(labels >= 0, tf.float32)
        counted = tf.cast(labels != schema.IGNORE, tf.float32)
        target = box_ops.encode_deltas(batch[schema.TARGET_BOXES], self.anchors)
        target = tf.where(positive[..., None] > 0, target, 0.0)
        box_loss = tf.reduce_sum(tf.square(target - predictions[schema.BOX_DELTAS]), -1)
        class_loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.maximum(labels, -1) + 1, predictions[schema.CLASS_LOGITS]
        )
        return {
            "box_loss": tf.reduce_sum(positive * box_loss, -1),
            "class_loss": tf.reduce_sum(counted * class_loss, -1),
            schema.NORMALIZER: tf.reduce_sum(positive, -1),
        }

    def decode(self, predictions):
        scores = tf.nn.softmax(predictions[schema.CLASS_LOGITS])[..., 1:]
        return box_ops.decode_deltas(predictions[schema.BOX_DELTAS], self.anchors), scores


def examples(count, seed=0):
    """`count` images with one rectangle each as one batch of numpy arrays, with the keys of a batch before encoding."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (count, SIDE, SIDE, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, (count, 1), dtype=np.int32)
    low = rng.integers(0, SIDE - 6, (count, 2))
    size = rng.integers(4, 7, (count, 2))
    for row in range(count):
        (x, y), (w, h) = low[row], size[row]
        image[row, y : y + h, x : x + w, labels[row, 0]] = 230
    boxes = (np.concatenate([low, low + size], -1) / SIDE).astype(np.float32)[:, None]
    return {
        schema.IMAGE: image,
        schema.BOXES: boxes,
        schema.LABELS: labels,
        schema.IMAGE_ID: np.array([f"toy-{row}" for row in range(count)]),
        schema.IMAGE_SIZE: np.full((count, 2), SIDE, np.int32),
    }


def batch(count, detector=None, seed=0):
    """`examples` with targets, as tensors."""
    tensors = {name: tf.constant(value) for name, value in examples(count, seed).items()}
    return {**tensors, **(detector or Toy()).encode(tensors[schema.BOXES], tensors[schema.LABELS])}


def dataset(count, batch_size, detector=None, seed=0, start_step=0, epochs=1):
    """`count` images in batches of `batch_size`, the last one smaller; `epochs` None repeats for ever."""
    rows = tf.data.Dataset.from_tensor_slices(batch(count, detector, seed))
    return rows.batch(batch_size).repeat(epochs).skip(start_step)
