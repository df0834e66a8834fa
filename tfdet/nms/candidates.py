"""The candidates of suppression: every (box, class) pair of an image whose score exceeds the threshold."""

import math
from typing import NamedTuple

import tensorflow as tf

NOTHING = -math.inf  # the score of an empty slot


class Candidates(NamedTuple):
    """(box, class) pairs of each image, N slots."""

    scores: tf.Tensor  # float32 [B, N], NOTHING in an empty slot
    pairs: tf.Tensor  # int32 [B, N], box index * C + class
    boxes: tf.Tensor  # float32 [B, N, 4] xyxy
    classes: tf.Tensor  # int32 [B, N], -1 in an empty slot; only pairs of one class compete


def best_class_of(scores):
    """float32 [B, A, C] -> the best score of each box [B, A, 1] and its class int32 [B, A, 1]."""
    return tf.math.top_k(tf.where(tf.math.is_nan(scores), NOTHING, scores), k=1)


def all_above(scores, threshold, compiled):
    """Every pair whose score exceeds the threshold, by pair number: scores float32 [B, N], pairs int32 [B, N].

    Few scores pass, so they are tested four at a time first. N differs from call to call.
    """
    batch, per_image = tf.shape(scores)[0], scores.shape[1] * scores.shape[2]
    size = math.gcd(per_image, 4)
    quads = tf.reshape(scores, [-1, size])
    hits = tf.cast(tf.where((_any_above_compiled if compiled else _any_above)(quads, threshold))[:, 0], tf.int32)
    first = tf.range(batch + 1) * (per_image // size)  # the first quad of each image
    edges = tf.searchsorted(hits, first)
    start, count = edges[:-1, None], edges[1:, None] - edges[:-1, None]
    slot = tf.range(tf.maximum(tf.reduce_max(count), 0))  # no image: the least integer
    quad = tf.where(slot < count, tf.gather(hits, tf.where(slot < count, start + slot, 0)), first[:-1, None])
    values = tf.reshape(tf.gather(quads, quad), [batch, -1])
    real = (tf.range(tf.shape(values)[1]) < count * size) & (values > threshold)
    pairs = (quad - first[:-1, None])[..., None] * size + tf.range(size)
    return tf.where(real, values, NOTHING), tf.reshape(pairs, [batch, -1])


def _any_above(quads, threshold):
    return tf.reduce_any(quads > threshold, -1)


def best_above(boxes, scores, threshold, count):
    """As `all_above`, but sorted and the `count` best of an image at most; static shapes."""
    usable = (scores > threshold) & _finite(boxes)[..., None]
    flat = tf.reshape(tf.where(usable, scores, NOTHING), [-1, scores.shape[1] * scores.shape[2]])
    return tf.math.top_k(flat, k=min(count, flat.shape[1]))


def in_order(count, scores, *others):
    """The `count` best scores of each image, falling, and what belongs to them: [B, N] each -> [B, count] each."""
    scores, order = tf.math.top_k(padded(scores, count), k=count)
    return scores, *(take(padded(other, count), order) for other in others)


def padded(values, count):
    """At least `count` columns: float32 or int32 [B, N]."""
    known = values.shape[1] is not None and isinstance(count, int)
    missing = max(0, count - values.shape[1]) if known else tf.maximum(0, count - tf.shape(values)[1])
    return tf.pad(values, [[0, 0], [0, missing]], constant_values=NOTHING if values.dtype.is_floating else 0)


def look_up_pairs(boxes, num_classes, scores, pairs):
    """Scores and pairs [B, N] with what they refer to; a box that is not finite makes an empty slot."""
    own = take(boxes, pairs // num_classes)
    usable = (scores > NOTHING) & _finite(own)
    scores, classes = tf.where(usable, scores, NOTHING), tf.where(usable, pairs % num_classes, -1)
    return Candidates(scores, pairs, own, classes)


def _finite(boxes):
    return tf.reduce_all(tf.math.is_finite(boxes), -1)


# --- small tools --------------------------------------------------------------------------------


def take(values, places):
    """values [B, N, ...] at places int32 [B, M] -> [B, M, ...]."""
    return tf.gather(values, places, batch_dims=1)


def count(mask):
    """bool [B, N, ...] -> int32 [B, ...]."""
    return tf.reduce_sum(tf.cast(mask, tf.int32), 1)


def rivals_among(classes):
    """bool [B, N, N]: is i before j and of its class? classes: int32 [B, N], by falling score."""
    order = tf.range(classes.shape[1])
    return (order[:, None] < order) & (classes[:, :, None] == classes[:, None])


_any_above_compiled = tf.function(_any_above, jit_compile=True, autograph=False)
