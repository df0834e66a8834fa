"""Exact greedy suppression of a batch: pools of candidates, in them chunks that are settled by a fixed point.

The best 256 candidates of every image are settled first, and the next best only while an image is neither full
nor exhausted: the cost follows the number of detections, not the number of boxes.
"""

import functools

import tensorflow as tf

from tfdet import boxes as boxlib
from tfdet.nms.candidates import NOTHING, count, padded, rivals_among, take

POOL = 256  # candidates of an image that are looked at together
CHUNK = 32  # candidates of a pool that are settled together


def greedy(look_up, scores, pairs, iou_threshold, max_per_class, max_detections, compiled):
    """Exact greedy selection: scores float32 [B, K], falling, NOTHING where there are fewer, and pairs int32 [B, K]."""
    extend = functools.partial(_extend_compiled if compiled else _extend, iou_threshold, max_per_class)
    scores, pairs = padded(scores, POOL), padded(pairs, POOL)
    batch = tf.shape(scores)[0]

    def settle_pool(_, scores, kept_scores, kept_pairs):
        pool_scores, place = tf.math.top_k(scores, k=POOL)
        pool = look_up(pool_scores, take(pairs, place))
        kept = look_up(kept_scores, kept_pairs)
        keep = extend(kept.boxes, kept.classes, pool.boxes, pool.classes)
        kept_scores, kept_pairs = _appended(kept, pool, keep)
        unfinished = tf.reduce_any((pool_scores[:, -1] > NOTHING) & (kept_scores[:, -1] == NOTHING))
        scores = tf.cond(unfinished, lambda: _scattered(scores, place, NOTHING), lambda: scores)
        return unfinished, scores, kept_scores, kept_pairs

    start = (True, scores, tf.fill([batch, max_detections], NOTHING), tf.zeros([batch, max_detections], tf.int32))
    return tf.while_loop(lambda unfinished, *_: unfinished, settle_pool, start)[2:]


def _appended(kept, pool, keep):
    """Scores and pairs [B, K] of the kept candidates with those of the pool marked by `keep` bool [B, N] after them."""
    capacity = kept.scores.shape[1]
    place = count(kept.classes >= 0)[:, None] + tf.cumsum(tf.cast(keep, tf.int32), 1, exclusive=True)
    place = tf.where(keep, tf.minimum(place, capacity), capacity)  # a last column takes what does not fit
    old, new = (kept.scores, kept.pairs), (pool.scores, pool.pairs)
    return tuple(_scattered(padded(a, capacity + 1), place, b)[:, :capacity] for a, b in zip(old, new))


def _scattered(values, place, updates):
    """values [B, N] with `updates` (a number, or [B, M]) at the slots `place` int32 [B, M]."""
    row = tf.broadcast_to(tf.range(tf.shape(place)[0])[:, None], tf.shape(place))
    return tf.tensor_scatter_nd_update(values, tf.stack([row, place], -1), tf.broadcast_to(updates, tf.shape(place)))


def _extend(iou_threshold, max_per_class, kept_boxes, kept_classes, boxes, classes):
    """bool [B, N]: which of boxes [B, N, 4], by falling score, greedy NMS keeps beside the K kept ones before them."""
    slots, width = tf.range(boxes.shape[1]), boxes.shape[1]
    num_kept = count(kept_classes >= 0)

    def compare_with_kept():
        same = kept_classes[:, :, None] == classes[:, None]
        taken = same & (boxlib.iou(kept_boxes[:, :, None], boxes[:, None]) > iou_threshold)
        return (classes >= 0) & ~tf.reduce_any(taken, 1), count(same)

    def settle_chunk(alive, keep, rank):
        first = _first(alive, CHUNK)
        place = tf.minimum(first, width - 1)
        chunk_boxes, chunk_classes = take(boxes, place), tf.where(first < width, take(classes, place), -1)
        kept_now = _settle(chunk_boxes, chunk_classes, take(rank, place), iou_threshold, max_per_class)[:, :, None]
        chosen = first[:, :, None] == slots
        same = kept_now & (chunk_classes[:, :, None] == classes[:, None])
        beaten = same & (boxlib.iou(chunk_boxes[:, :, None], boxes[:, None]) > iou_threshold)
        keep |= tf.reduce_any(chosen & kept_now, 1)
        room = num_kept + count(keep) < kept_boxes.shape[1]
        return alive & room[:, None] & ~tf.reduce_any(beaten | chosen, 1), keep, rank + count(same)

    alone = (classes >= 0, tf.zeros_like(classes))
    alive, rank = tf.cond(tf.reduce_any(num_kept > 0), compare_with_kept, lambda: alone)
    start = (alive, tf.zeros_like(alive), rank)
    return tf.while_loop(lambda alive, *_: tf.reduce_any(alive), settle_chunk, start)[1]


def _first(mask, count):
    """The first `count` true places of each row, N where there are fewer: bool [B, N] -> int32 [B, count]."""
    width = mask.shape[1]
    from_end = tf.where(mask, tf.range(width, 0.0, -1.0), 0.0)  # float32, the only type XLA has a fast top_k for
    return width - tf.cast(tf.math.top_k(from_end, count)[0], tf.int32)


def _settle(boxes, classes, rank, iou_threshold, max_per_class):
    """bool [B, N]: what greedy NMS keeps of boxes [B, N, 4], by falling score, that no box kept so far beats.

    A box is kept if no kept box before it overlaps it. Starting from "all kept" and applying that rule
    to all boxes at once until nothing changes gives the greedy result: the first box is right at once,
    and each round makes at least one more right. `rank` int32 [B, N] counts the kept boxes of its class so far.
    """
    real, rivals = classes >= 0, rivals_among(classes)
    beats = rivals & (boxlib.iou(boxes[:, :, None], boxes[:, None]) > iou_threshold)

    def apply_rule(keep, _):
        settled = real & ~tf.reduce_any(beats & keep[:, :, None], 1)
        return settled, tf.reduce_any(settled != keep)

    keep, _ = tf.while_loop(lambda _, changed: changed, apply_rule, (real, True))
    return keep & (rank + count(rivals & keep[:, :, None]) < max_per_class)


_extend_compiled = tf.function(_extend, jit_compile=True, autograph=False)
