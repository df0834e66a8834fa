"""Non-maximum suppression for a whole batch and all classes at once, with static output shapes.

Two steps, each vectorised over images: list the candidates, every (box, class) pair whose score exceeds
the threshold; then select among them by greedy, soft or matrix NMS. The greedy selection settles the best
256 candidates of every image, and goes on to the next best only while an image is neither full nor
exhausted: its cost follows the number of detections, not the number of boxes.
"""

import functools
import math
from typing import NamedTuple

import tensorflow as tf

from tfdet import boxes as boxlib
from tfdet import schema

METHODS = ("hard", "soft", "matrix")
KERNELS = ("gaussian", "linear")

POOL = 256  # greedy: the candidates of an image that are looked at together
CHUNK = 32  # greedy: the candidates of a pool that are settled together
MATRIX_CANDIDATES = 500  # of an image, as in SOLOv2
NOTHING = -math.inf  # the score of an empty slot


class Candidates(NamedTuple):
    """(box, class) pairs of each image, N slots."""

    scores: tf.Tensor  # float32 [B, N], NOTHING in an empty slot
    pairs: tf.Tensor  # int32 [B, N], box index * C + class
    boxes: tf.Tensor  # float32 [B, N, 4] xyxy
    classes: tf.Tensor  # int32 [B, N], -1 in an empty slot; only pairs of one class compete


def non_max_suppression(
    boxes,
    scores,
    *,
    score_threshold=0.01,
    iou_threshold=0.45,
    max_per_class=100,
    max_detections=200,
    class_agnostic=False,
    method="hard",
    kernel="gaussian",
    sigma=0.5,
    max_candidates=None,
    compiled=True,
):
    """The detections of a batch, best first.

    "hard" is greedy and exact: within a class the best box is kept, boxes whose IoU with it exceeds
    `iou_threshold` go, and so on; an image keeps its `max_detections` best over all classes.
    "soft" (https://arxiv.org/abs/1704.04503) lowers the scores of overlapping boxes instead of removing them.
    "matrix" (SOLOv2, https://arxiv.org/abs/2003.10152) lowers all scores in one step, without a loop.

    Comparisons are strict (score > threshold, IoU > threshold). NaN scores and boxes with a coordinate that is
    not finite are dropped. Equal scores keep their input order: lower box index, then lower class. Boxes may
    reach beyond the image; nothing is clipped. Works eagerly, in a tf.function and in a SavedModel.

    Args:
        boxes: float32 [B, A, 4] xyxy, any unit; A static.
        scores: float32 [B, A, C]; C static.
        max_per_class: detections kept of one class in an image; not applied when `class_agnostic`.
        max_detections: detections kept in an image, K.
        class_agnostic: each box stands for its best class only and competes with the boxes of every class.
        kernel, sigma: "soft" and "matrix" scale scores by exp(-iou^2 / sigma) ("gaussian") or by 1 - iou ("linear";
            "soft" only where the IoU exceeds `iou_threshold`). Nothing else of them uses `iou_threshold`.
        max_candidates: None: every pair above the threshold takes part ("matrix": the 500 best of an image).
            N: only the N best pairs of an image take part. The result is the same wherever no more than N pass the
            threshold, and all inner shapes are static, so that the caller may compile everything with XLA.
        compiled: XLA compiles the inner arithmetic (several times faster); False for exports that cannot carry it.
    Returns:
        dict: boxes float32 [B, K, 4], scores float32 [B, K], labels int32 [B, K], num_detections int32 [B];
        unused slots hold zeros and label -1.
    Raises:
        ValueError: no such method or kernel.
    """
    _require("method", method, METHODS)
    _require("kernel", kernel, KERNELS)
    boxes, scores = tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32)
    # as tensors, so that a new value is not a new graph
    score_threshold = tf.convert_to_tensor(score_threshold, tf.float32)
    iou_threshold = tf.convert_to_tensor(iou_threshold, tf.float32)
    best_class = None
    if class_agnostic:  # one class that is all
        scores, best_class = _best_class(scores)
        max_per_class = max_detections
    limits = (tf.convert_to_tensor(max_per_class), max_detections)

    def look_up(scores, pairs):
        return _look_up(boxes, num_classes, scores, pairs)

    num_classes = scores.shape[2]
    if max_candidates is None:
        listed = _all_above(scores, score_threshold, compiled)
    else:
        listed = _best_above(boxes, scores, score_threshold, max_candidates)
    if method == "soft":
        filled = tf.reduce_max(_count(listed[0] > NOTHING))
        candidates = look_up(*_in_order(listed[0].shape[1] or filled, *listed))
        kept = _soft(candidates, kernel, sigma, iou_threshold, score_threshold, *limits)
    elif method == "matrix":
        candidates = look_up(*_in_order(max_candidates or MATRIX_CANDIDATES, *listed))
        kept = _matrix(candidates, kernel, sigma, score_threshold, *limits)
    else:
        kept = _greedy(look_up, *listed, iou_threshold, *limits, compiled)
    return _detections(look_up(*kept), best_class)


def _require(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")


def _take(values, places):
    """values [B, N, ...] at places int32 [B, M] -> [B, M, ...]."""
    return tf.gather(values, places, batch_dims=1)


def _count(mask):
    """bool [B, N, ...] -> int32 [B, ...]."""
    return tf.reduce_sum(tf.cast(mask, tf.int32), 1)


# --- candidates ---------------------------------------------------------------------------------


def _best_class(scores):
    """float32 [B, A, C] -> the best score of each box [B, A, 1] and its class int32 [B, A, 1]."""
    return tf.math.top_k(tf.where(tf.math.is_nan(scores), NOTHING, scores), k=1)


def _all_above(scores, threshold, compiled):
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
    slot = tf.range(tf.reduce_max(count))
    quad = tf.where(slot < count, tf.gather(hits, tf.where(slot < count, start + slot, 0)), first[:-1, None])
    values = tf.reshape(tf.gather(quads, quad), [batch, -1])
    real = (tf.range(tf.shape(values)[1]) < count * size) & (values > threshold)
    pairs = (quad - first[:-1, None])[..., None] * size + tf.range(size)
    return tf.where(real, values, NOTHING), tf.reshape(pairs, [batch, -1])


def _any_above(quads, threshold):
    return tf.reduce_any(quads > threshold, -1)


def _best_above(boxes, scores, threshold, count):
    """As `_all_above`, but sorted and the `count` best of an image at most; static shapes."""
    usable = (scores > threshold) & _finite(boxes)[..., None]
    flat = tf.reshape(tf.where(usable, scores, NOTHING), [-1, scores.shape[1] * scores.shape[2]])
    return tf.math.top_k(flat, k=min(count, flat.shape[1]))


def _in_order(count, scores, *others):
    """The `count` best scores of each image, falling, and what belongs to them: [B, N] each -> [B, count] each."""
    scores, order = tf.math.top_k(_padded(scores, count), k=count)
    return scores, *(_take(_padded(other, count), order) for other in others)


def _padded(values, count):
    """At least `count` columns: float32 or int32 [B, N]."""
    width = values.shape[1] or tf.shape(values)[1]
    missing = (
        max(0, count - width) if isinstance(width, int) and isinstance(count, int) else tf.maximum(0, count - width)
    )
    return tf.pad(values, [[0, 0], [0, missing]], constant_values=NOTHING if values.dtype.is_floating else 0)


def _look_up(boxes, num_classes, scores, pairs):
    """Scores and pairs [B, N] with what they refer to; a box that is not finite makes an empty slot."""
    own = _take(boxes, pairs // num_classes)
    usable = (scores > NOTHING) & _finite(own)
    scores, classes = tf.where(usable, scores, NOTHING), tf.where(usable, pairs % num_classes, -1)
    return Candidates(scores, pairs, own, classes)


def _finite(boxes):
    return tf.reduce_all(tf.math.is_finite(boxes), -1)


def _detections(kept, best_class):
    """Kept candidates [B, K] -> the dict of detections; `best_class` int32 [B, A, 1] names the labels if given."""
    found = kept.scores > NOTHING
    labels = kept.classes if best_class is None else _take(best_class[..., 0], kept.pairs)
    return {
        schema.BOXES: tf.where(found[..., None], kept.boxes, 0.0),
        schema.SCORES: tf.where(found, kept.scores, 0.0),
        schema.LABELS: tf.where(found, labels, schema.BACKGROUND),
        schema.NUM_DETECTIONS: _count(found),
    }


# --- greedy -------------------------------------------------------------------------------------


def _greedy(look_up, scores, pairs, iou_threshold, max_per_class, max_detections, compiled):
    """Exact greedy selection: scores float32 [B, K], falling, NOTHING where there are fewer, and pairs int32 [B, K]."""
    extend = functools.partial(_extend_compiled if compiled else _extend, iou_threshold, max_per_class)
    scores, pairs = _padded(scores, POOL), _padded(pairs, POOL)
    batch = tf.shape(scores)[0]

    def settle_pool(_, scores, kept_scores, kept_pairs):
        pool_scores, place = tf.math.top_k(scores, k=POOL)
        pool = look_up(pool_scores, _take(pairs, place))
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
    place = _count(kept.classes >= 0)[:, None] + tf.cumsum(tf.cast(keep, tf.int32), 1, exclusive=True)
    place = tf.where(keep, tf.minimum(place, capacity), capacity)  # a last column takes what does not fit
    old, new = (kept.scores, kept.pairs), (pool.scores, pool.pairs)
    return tuple(_scattered(_padded(a, capacity + 1), place, b)[:, :capacity] for a, b in zip(old, new))


def _scattered(values, place, updates):
    """values [B, N] with `updates` (a number, or [B, M]) at the slots `place` int32 [B, M]."""
    row = tf.broadcast_to(tf.range(tf.shape(place)[0])[:, None], tf.shape(place))
    return tf.tensor_scatter_nd_update(values, tf.stack([row, place], -1), tf.broadcast_to(updates, tf.shape(place)))


def _extend(iou_threshold, max_per_class, kept_boxes, kept_classes, boxes, classes):
    """bool [B, N]: which of boxes [B, N, 4], by falling score, greedy NMS keeps beside the K kept ones before them."""
    slots, width = tf.range(boxes.shape[1]), boxes.shape[1]
    num_kept = _count(kept_classes >= 0)

    def compare_with_kept():
        same = kept_classes[:, :, None] == classes[:, None]
        taken = same & (boxlib.iou(kept_boxes[:, :, None], boxes[:, None]) > iou_threshold)
        return (classes >= 0) & ~tf.reduce_any(taken, 1), _count(same)

    def settle_chunk(alive, keep, rank):
        first = _first(alive, CHUNK)
        place = tf.minimum(first, width - 1)
        chunk_boxes, chunk_classes = _take(boxes, place), tf.where(first < width, _take(classes, place), -1)
        kept_now = _settle(chunk_boxes, chunk_classes, _take(rank, place), iou_threshold, max_per_class)[:, :, None]
        chosen = first[:, :, None] == slots
        same = kept_now & (chunk_classes[:, :, None] == classes[:, None])
        beaten = same & (boxlib.iou(chunk_boxes[:, :, None], boxes[:, None]) > iou_threshold)
        keep |= tf.reduce_any(chosen & kept_now, 1)
        room = num_kept + _count(keep) < kept_boxes.shape[1]
        return alive & room[:, None] & ~tf.reduce_any(beaten | chosen, 1), keep, rank + _count(same)

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
    real, rivals = classes >= 0, _rivals(classes)
    beats = rivals & (boxlib.iou(boxes[:, :, None], boxes[:, None]) > iou_threshold)

    def apply_rule(keep, _):
        settled = real & ~tf.reduce_any(beats & keep[:, :, None], 1)
        return settled, tf.reduce_any(settled != keep)

    keep, _ = tf.while_loop(lambda _, changed: changed, apply_rule, (real, True))
    return keep & (rank + _count(rivals & keep[:, :, None]) < max_per_class)


def _rivals(classes):
    """bool [B, N, N]: is i before j and of its class? classes: int32 [B, N], by falling score."""
    order = tf.range(classes.shape[1])
    return (order[:, None] < order) & (classes[:, :, None] == classes[:, None])


_any_above_compiled = tf.function(_any_above, jit_compile=True, autograph=False)
_extend_compiled = tf.function(_extend, jit_compile=True, autograph=False)


# --- soft and matrix ----------------------------------------------------------------------------


def _soft(candidates, kernel, sigma, iou_threshold, threshold, max_per_class, max_detections):
    """Picks the best candidate of every image, lowers its rivals' scores, and again, K times.

    Returns:
        the scores they were picked with float32 [B, K] and their pairs int32 [B, K].
    """
    scores, pairs, boxes, classes = candidates
    batch, steps, places = tf.shape(scores)[0], tf.range(max_detections), tf.range(tf.shape(scores)[1])

    def unfinished(step, scores, *_):
        return (step < max_detections) & tf.reduce_any(scores > NOTHING)

    def pick(step, scores, kept_scores, kept):
        score, best = tf.math.top_k(scores, k=1)
        kept_scores, kept = tf.where(steps == step, score, kept_scores), tf.where(steps == step, best, kept)
        kept_classes = tf.where(kept_scores > NOTHING, _take(classes, kept), -1)
        rival = (classes == _take(classes, best)) & (score > NOTHING)
        full = _count(kept_classes == _take(classes, best)) >= max_per_class
        lowered = scores * _soft_decay(boxlib.iou(boxes, _take(boxes, best)), kernel, sigma, iou_threshold)
        lowered = tf.where((lowered > threshold) & ~full[:, None], lowered, NOTHING)
        scores = tf.where(places == best, NOTHING, tf.where(rival, lowered, scores))
        return step + 1, scores, kept_scores, kept

    empty = tf.fill([batch, max_detections], NOTHING), tf.zeros([batch, max_detections], tf.int32)
    _, _, kept_scores, kept = tf.while_loop(unfinished, pick, (0, scores, *empty))
    return kept_scores, _take(_padded(pairs, 1), kept)


def _soft_decay(iou, kernel, sigma, iou_threshold):
    """Soft-NMS, section 3: the linear and the gaussian penalty."""
    if kernel == "gaussian":
        return tf.exp(-iou * iou / sigma)
    return tf.where(iou > iou_threshold, 1.0 - iou, 1.0)


def _matrix(candidates, kernel, sigma, threshold, max_per_class, max_detections):
    """SOLOv2, section 3.3: each score falls by its worst rival, less what that rival itself suffers from others.

    Returns:
        the lowered scores float32 [B, K], falling, and their pairs int32 [B, K].
    """
    scores, pairs, boxes, classes = candidates
    rivals = _rivals(classes)
    iou = tf.where(rivals, boxlib.iou(boxes[:, :, None], boxes[:, None]), 0.0)
    suffered = tf.reduce_max(iou, 1)[..., None]
    if kernel == "gaussian":
        factor = tf.exp((suffered * suffered - iou * iou) / sigma)
    else:
        factor = tf.where(suffered < 1.0, (1.0 - iou) / (1.0 - suffered), 1.0)
    lowered = scores * tf.reduce_min(tf.where(rivals, factor, 1.0), 1)
    lowered = tf.where(lowered > threshold, lowered, NOTHING)

    lowered, pairs, classes = _in_order(scores.shape[1], lowered, pairs, classes)
    lowered = tf.where(_count(_rivals(classes)) < max_per_class, lowered, NOTHING)
    return _in_order(max_detections, lowered, pairs)
