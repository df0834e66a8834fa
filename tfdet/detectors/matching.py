"""Which ground truth each prior learns: SSD's bipartite rule and the per-box rule of rykov8's BBoxUtility.

Static shapes, made for XLA. All overlaps of a batch, [B, M, A], would go to main memory and back for each maximum
taken over them; those of a few boxes of one image at a time stay in the cache, with all else of that image. Priors are
held as their four coordinates, [4, A], for vector instructions. A maximum is needed together with its place, and XLA's
argmax is slow on a CPU; so the two travel in one int64, a "bid". The larger bid has the larger value or, for equal
values, the earlier place.
"""

from functools import partial

import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import schema

# Sides outside of this range are degenerate: below, float32 corners are mostly rounding (a thousandth of a
# pixel in an image of 1,000 pixels); above, areas and encodings leave the range of float32.
MIN_SIDE, MAX_SIDE = 1e-6, 1e6

_TOGETHER = 16  # boxes of an image whose overlaps are held at once: 0.6 MB with 8,732 priors
_LANES = 128  # priors are filled up to a multiple


def is_matchable(boxes):
    """boxes: float32 [..., 4] xyxy, relative -> bool [...]: `boxes.is_valid`, and float32 can work with its sides."""
    size = boxes[..., 2:] - boxes[..., :2]
    return box_ops.is_valid(boxes) & tf.reduce_all((size > MIN_SIDE) & (size < MAX_SIDE), -1)


def count_degenerate(boxes, labels):
    """How many boxes of each image are not padding and yet can never be matched.

    Args:
        boxes: float32 [B, M, 4] xyxy, relative.
        labels: int32 [B, M]; -1 padding.
    Returns:
        int32 [B].
    """
    return tf.reduce_sum(tf.cast((labels != schema.BACKGROUND) & ~is_matchable(boxes), tf.int32), -1)


def match(boxes, labels, priors, *, rule="bipartite", threshold=0.5):
    """The ground truth of every prior.

    "bipartite" (SSD paper, section 2.2; Caffe's multibox layer): objects and priors are first paired greedily,
    the largest IoU of all first, so that every object keeps the prior it is paired with (one that overlaps no free
    prior goes without; with the layouts of config.py that takes dozens of boxes in one place). Then each prior
    without a pair takes the object it overlaps most, where IoU >= threshold.

    "per_box" (rykov8's `BBoxUtility.assign_boxes`): an object takes the priors with IoU > threshold or, where
    there is none, its single best one. Of two objects that take the same prior the one with the larger IoU
    gets it; the other can be left without any.

    Equal IoUs go to the first object, then to the first prior. In the end a prior that no object has and of
    whose area at least the share `threshold` lies in an ignore box becomes that box's. The share of the prior,
    not the IoU, because a crowd is one large box around many objects, and the small priors in it are not known
    to be background (COCO's evaluation measures crowds in this way). It is never below the IoU, so the priors
    that fit a single difficult object are ignored as well.

    Args:
        boxes: float32 [B, M, 4] xyxy, relative; those that are not `is_matchable` are left out.
        labels: int32 [B, M] in [0, C); -1 padding, -2 ignore.
        priors: float32 [A, 4] xyxy, relative; A known. Not centres and sizes: corners made of those carry their own
            rounding, which decides between the many priors that overlap a small object equally.
        rule: one of config.MATCHING_RULES.
        threshold: IoU in (0, 1].
    Returns:
        int32 [B, A]: the place in `boxes` of the box each prior belongs to, ignore boxes included; -1 for none.
    """
    if boxes.shape[1] == 0:
        return tf.fill([tf.shape(boxes)[0], tf.shape(priors)[0]], -1)
    usable = (is_matchable(boxes) & (labels != schema.BACKGROUND))[..., None]  # an empty box overlaps nothing
    to_ignore = (labels == schema.IGNORE)[..., None]
    objects, ignored = tf.where(usable & ~to_ignore, boxes, 0.0), tf.where(usable & to_ignore, boxes, 0.0)
    match_one = partial(_match_image, priors=_lay_out(priors), rule=rule, threshold=threshold)
    rows = tf.map_fn(lambda image: match_one(*image), (objects, ignored), fn_output_signature=tf.int32)
    return rows[:, : tf.shape(priors)[0]]


def _lay_out(priors):
    """float32 [A, 4] -> [4, A'], filled up with priors of no area."""
    return tf.pad(tf.transpose(priors), [[0, 0], [0, -priors.shape[0] % _LANES]])


def _match_image(objects, ignored, priors, rule, threshold):
    """`match` for one image: float32 [M, 4], [M, 4] xyxy, empty where there is none, [4, A] -> int32 [A]."""
    is_enough = (lambda share: share > threshold) if rule == "per_box" else (lambda share: share >= threshold)
    bids, best, prior = _search(objects, priors, exact=rule == "per_box")
    offers = tf.where(is_enough(_value(bids)), bids, 0)
    if rule == "per_box":
        forced, _ = _reserve(tf.where(best <= threshold, best, 0.0), prior, priors)
        bids = tf.maximum(offers, forced[:-1])
    else:
        pairs = _pair(objects, priors, *_reserve(best, prior, priors))
        bids = tf.where(_value(pairs) > 0.0, pairs, offers)
    matched = tf.where(_value(bids) > 0.0, _place(bids, tf.shape(objects)[0]), -1)
    return _ignore(matched, ignored, priors, is_enough)


def _search(boxes, priors, exact):
    """What both rules start from. With `exact` objects choose by overlaps in float64.

    Args:
        boxes: float32 [M, 4] xyxy; empty ones overlap nothing, and those at the end cost nothing.
        priors: float32 [4, A].
    Returns:
        the highest bid for each prior, int64 [A];
        the largest IoU of each object, float32 [M], and the first prior it has it with, int32 [M].
    """
    count, num_priors = tf.shape(boxes)[0], tf.shape(priors)[1]
    parts = tf.maximum(-(-count // _TOGETHER), 1)
    together = -(-count // parts)
    boxes = tf.pad(boxes, [[0, parts * together - count], [0, 0]])
    in_use = tf.reduce_any(tf.reshape(boxes, [parts, -1]) != 0.0, 1)
    last = tf.reduce_max(tf.where(in_use, tf.range(parts) + 1, 0))

    def search_part(part, bids, best, prior):
        start = part * together
        some = tf.slice(boxes, [start, 0], [together, 4])
        overlap = _overlap(some, priors)
        bid = _bid(overlap, start + tf.range(together)[:, None], count)
        # a small object has nearly the same IoU with many priors; old runs told them apart in float64
        high, place = _first_best(_overlap(tf.cast(some, tf.float64), priors) if exact else overlap)
        best = tf.tensor_scatter_nd_update(best, [[part]], tf.cast(high, tf.float32)[None])
        prior = tf.tensor_scatter_nd_update(prior, [[part]], place[None])
        return part + 1, tf.maximum(bids, tf.reduce_max(bid, 0)), best, prior

    nothing = tf.zeros([num_priors], tf.int64), tf.zeros([parts, together]), tf.zeros([parts, together], tf.int32)
    _, bids, best, prior = tf.while_loop(lambda part, *_: part < last, search_part, (0, *nothing))
    return bids, tf.reshape(best, [-1])[:count], tf.reshape(prior, [-1])[:count]


def _ignore(matched, ignored, priors, is_enough):
    """Gives the priors that no object has to the first ignore box that covers enough of them.

    Args:
        matched: int32 [A], -1 for none; ignored: float32 [M, 4] xyxy, empty for all but ignore boxes.
    """
    count = tf.shape(ignored)[0]

    def first_cover():
        covered = is_enough(_intersection(ignored, priors) / _prior_area(priors))  # [M, A]
        first = count - tf.reduce_max(tf.where(covered, count - tf.range(count)[:, None], 0), 0)
        return tf.where((matched < 0) & (first < count), first, matched)

    return tf.cond(tf.reduce_any(ignored != 0.0), first_cover, lambda: matched)  # most images have none


def _first_best(overlap):
    """The maximum of each row and its first place: [M, A] -> [M], int32 [M]."""
    count, best = tf.shape(overlap)[1], tf.reduce_max(overlap, 1)
    from_end = tf.range(tf.cast(count, overlap.dtype), 0, -1, overlap.dtype)  # XLA has no fast integer maximum
    places = tf.where(overlap >= best[:, None], from_end, tf.zeros_like(from_end))
    # along the rows of a block first, all lanes at once
    places = tf.reduce_max(tf.reshape(places, [tf.shape(overlap)[0], -1, _LANES]), 1)
    return best, count - tf.cast(tf.reduce_max(places, 1), tf.int32)


# --- greedy pairs -------------------------------------------------------------------------------


def _reserve(best, prior, priors):
    """Lets every object bid for its best prior.

    Args:
        best, prior: float32 and int32 [M]; 0 bids for nothing.
    Returns:
        int64 [A + 1], the highest bid for each prior; the last column gathers those for nothing.
        bool [M]: objects that were outbid.
    """
    nowhere, count = tf.shape(priors)[1], tf.shape(best)[0]
    prior = tf.where(best > 0.0, prior, nowhere)
    bid = _bid(best, tf.range(count), count)
    highest = tf.tensor_scatter_nd_max(tf.zeros([nowhere + 1], tf.int64), prior[:, None], bid)
    return highest, (best > 0.0) & (tf.gather(highest, prior) != bid)


def _pair(objects, priors, highest, waiting):
    """Pairs the objects that were outbid: each goes on to the best prior where its bid is the highest.

    Whoever is outbid there waits in turn, as in Gale and Shapley's deferred acceptance. Objects and priors rank
    each other by the same bids, so the outcome is the one of taking the largest of all overlaps first. One object
    moves at a time; hardly any has to, for boxes seldom share their best prior.
    """
    count, nowhere = tf.shape(objects)[0], tf.shape(priors)[1]
    places = tf.range(count)

    def move_one(highest, waiting):
        mover = tf.argmax(waiting, output_type=tf.int32)[None]
        overlap = _overlap(tf.gather(objects, mover), priors)
        outbids = _bid(overlap, mover, count) > highest[:-1]
        best, prior = _first_best(tf.where(outbids, overlap, 0.0))
        prior = tf.where(best > 0.0, prior, nowhere)
        outbid = tf.gather(highest, prior)
        loser = tf.where(_value(outbid) > 0.0, _place(outbid, count), -1)
        highest = tf.tensor_scatter_nd_update(highest, prior[:, None], _bid(best, mover, count))
        return highest, waiting & (places != mover) | (places == loser)

    return tf.while_loop(lambda _, waiting: tf.reduce_any(waiting), move_one, (highest, waiting))[0][:-1]


# --- overlaps and bids --------------------------------------------------------------------------


def _overlap(boxes, priors):
    """IoU: float32 or float64 [..., 4] xyxy, float32 [4, A] -> [..., A], the type of `boxes`."""
    shared = _intersection(boxes, priors)
    # in float32 first, as in rykov8's float64 code
    return shared / (box_ops.area(boxes)[..., None] + tf.cast(_prior_area(priors), boxes.dtype) - shared)


def _intersection(boxes, priors):
    """The areas that both cover, as `_overlap`."""
    left, top, right, bottom = tf.unstack(boxes[..., None, :], axis=-1)
    prior_left, prior_top, prior_right, prior_bottom = tf.unstack(tf.cast(priors, boxes.dtype))
    width = tf.maximum(tf.minimum(right, prior_right) - tf.maximum(left, prior_left), 0.0)
    height = tf.maximum(tf.minimum(bottom, prior_bottom) - tf.maximum(top, prior_top), 0.0)
    return width * height


def _prior_area(priors):
    """float32 [4, A] -> [A], positive: a prior without area overlaps nothing."""
    width, height = tf.unstack(tf.maximum(priors[2:] - priors[:2], 0.0))
    return tf.maximum(width * height, 1e-30)


def _bid(value, place, count):
    """float32 >= 0 and int32 in [0, count) -> int64."""
    bits = tf.bitcast(value, tf.int32)  # of floats that are not negative, in their order
    return tf.bitwise.left_shift(tf.cast(bits, tf.int64), 32) + tf.cast(count - 1 - place, tf.int64)


def _value(bid):
    return tf.bitcast(tf.cast(tf.bitwise.right_shift(bid, 32), tf.int32), tf.float32)


def _place(bid, count):
    return count - 1 - tf.cast(tf.bitwise.bitwise_and(bid, 2**32 - 1), tf.int32)
