"""Which ground truth each prior learns: SSD's bipartite rule and the per-box rule of rykov8's BBoxUtility.

Static shapes, made for XLA. All overlaps of a batch, [B, M, A], would go to main memory and back for each maximum
taken over them; those of a few boxes of one image at a time stay in the cache. A maximum is needed together with
its place, and XLA's argmax is slow on a CPU; so the two travel in one int64, a "bid". The larger bid has the
larger value or, for equal values, the earlier place.
"""

import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import schema

# Sides outside of this range are degenerate: below, float32 corners are mostly rounding (a thousandth of a
# pixel in an image of 1,000 pixels); above, areas and encodings leave the range of float32.
MIN_SIDE, MAX_SIDE = 1e-6, 1e6

_TOGETHER = 32  # boxes of an image whose overlaps are held at once: 1.1 MB with 8,732 priors


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
        priors: float32 [A, 4] xyxy, relative. Not centres and sizes: corners made of those carry their own
            rounding, which decides between the many priors that overlap a small object equally.
        rule: one of config.MATCHING_RULES.
        threshold: IoU in (0, 1].
    Returns:
        int32 [B, A]: the place in `boxes` of the box each prior belongs to, ignore boxes included; -1 for none.
    """
    if boxes.shape[1] == 0:
        return tf.fill([tf.shape(boxes)[0], tf.shape(priors)[0]], -1)
    usable = (is_matchable(boxes) & (labels != schema.BACKGROUND))[..., None]  # an empty box overlaps nothing
    objects = tf.where(usable & (labels != schema.IGNORE)[..., None], boxes, 0.0)
    is_enough = (lambda share: share > threshold) if rule == "per_box" else (lambda share: share >= threshold)
    bids, best, prior = _search(objects, priors, exact=rule == "per_box")
    offers = tf.where(is_enough(_value(bids)), bids, 0)
    if rule == "per_box":
        forced, _ = _reserve(tf.where(best <= threshold, best, 0.0), prior, priors)
        bids = tf.maximum(offers, forced[:, :-1])
    else:
        pairs = _pair(objects, priors, *_reserve(best, prior, priors))
        bids = tf.where(_value(pairs) > 0.0, pairs, offers)
    matched = tf.where(_value(bids) > 0.0, _place(bids, tf.shape(boxes)[1]), -1)
    ignored = tf.where(usable & (labels == schema.IGNORE)[..., None], boxes, 0.0)
    return _ignore(matched, ignored, priors, is_enough)


def _search(boxes, priors, exact):
    """What both rules start from. With `exact` objects choose by overlaps in float64.

    Returns:
        the highest bid for each prior, int64 [B, A];
        the largest IoU of each object, float32 [B, M], and the first prior it has it with, int32.
    """
    batch, count = tf.shape(boxes)[0], tf.shape(boxes)[1]
    parts = tf.maximum(-(-count // _TOGETHER), 1)
    together = -(-count // parts)
    split = lambda x, *dims: tf.reshape(x, [batch * parts, together, *dims])  # noqa: E731
    place = split(tf.broadcast_to(tf.range(parts * together), [batch, parts * together]))

    def search_part(part):
        boxes, place = part
        overlap = _overlap(boxes, priors)
        bids = tf.reduce_max(_bid(overlap, place[:, None], count), 0)
        # a small object has nearly the same IoU with many priors; old runs told them apart in float64
        best, prior = _first_best(_overlap(tf.cast(boxes, tf.float64), priors) if exact else overlap)
        return bids, tf.cast(best, tf.float32), prior

    boxes = tf.pad(boxes, [[0, 0], [0, parts * together - count], [0, 0]])
    outputs = tf.map_fn(search_part, (split(boxes, 4), place), fn_output_signature=(tf.int64, tf.float32, tf.int32))
    bids, best, prior = outputs
    bids = tf.reduce_max(tf.reshape(bids, [batch, parts, tf.shape(priors)[0]]), 1)
    return bids, tf.reshape(best, [batch, -1])[:, :count], tf.reshape(prior, [batch, -1])[:, :count]


def _ignore(matched, ignored, priors, is_enough):
    """Gives the priors that no object has to the first ignore box that covers enough of them.

    Args:
        matched: int32 [B, A], -1 for none; ignored: float32 [B, M, 4] xyxy, empty for all but ignore boxes.
    """
    count = tf.shape(ignored)[1]

    def first_cover(boxes):
        covered = is_enough(_intersection(boxes, priors) / tf.maximum(box_ops.area(priors), 1e-30))  # [M, A]
        bids = tf.where(covered, count - tf.range(count)[:, None], 0)
        return count - tf.reduce_max(bids, 0)

    def first_covers():
        first = tf.map_fn(first_cover, ignored, fn_output_signature=tf.int32)
        return tf.where((matched < 0) & (first < count), first, matched)

    return tf.cond(tf.reduce_any(ignored != 0.0), first_covers, lambda: matched)  # most batches have none


def _first_best(overlap):
    """The maximum of each row and its first place: [M, A] -> [M], int32 [M]."""
    count, best = tf.shape(overlap)[1], tf.reduce_max(overlap, 1)
    from_end = tf.range(tf.cast(count, overlap.dtype), 0, -1, overlap.dtype)  # XLA has no fast integer maximum
    places = tf.where(overlap >= best[:, None], from_end, tf.zeros_like(from_end))
    return best, count - tf.cast(tf.reduce_max(places, 1), tf.int32)


# --- greedy pairs -------------------------------------------------------------------------------


def _reserve(best, prior, priors):
    """Lets every object bid for its best prior.

    Args:
        best, prior: float32 and int32 [B, M]; 0 bids for nothing.
    Returns:
        int64 [B, A + 1], the highest bid for each prior; the last column gathers those for nothing.
        bool [B, M]: objects that were outbid.
    """
    nowhere, count = tf.shape(priors)[0], tf.shape(best)[1]
    prior = tf.where(best > 0.0, prior, nowhere)
    bid = _bid(best, tf.range(count), count)
    image = tf.broadcast_to(tf.range(tf.shape(best)[0])[:, None], tf.shape(prior))
    empty = tf.zeros((tf.shape(best)[0], nowhere + 1), tf.int64)
    highest = tf.tensor_scatter_nd_max(empty, tf.stack([image, prior], -1), bid)
    return highest, (best > 0.0) & (tf.gather(highest, prior, batch_dims=1) != bid)


def _pair(objects, priors, highest, waiting):
    """Pairs the objects that were outbid: each goes on to the best prior where its bid is the highest.

    Whoever is outbid there waits in turn, as in Gale and Shapley's deferred acceptance. Objects and priors rank
    each other by the same bids, so the outcome is the one of taking the largest of all overlaps first. One object
    of an image moves at a time; hardly any has to, for boxes seldom share their best prior.
    """
    count, nowhere = tf.shape(objects)[1], tf.shape(priors)[0]
    places = tf.range(count)

    def move_one(objects, highest, waiting):
        _, mover = _first_best(tf.cast(waiting, tf.float32)[None])
        overlap = _overlap(tf.gather(objects, mover), priors)
        outbids = _bid(overlap, mover, count) > highest[:-1]
        best, prior = _first_best(tf.where(outbids, overlap, 0.0))
        prior = tf.where(best > 0.0, prior, nowhere)
        outbid = tf.gather(highest, prior)
        loser = tf.where(_value(outbid) > 0.0, _place(outbid, count), -1)
        highest = tf.tensor_scatter_nd_update(highest, prior[:, None], _bid(best, mover, count))
        return objects, highest, waiting & (places != mover) | (places == loser)

    def pair_image(image):
        return tf.while_loop(lambda *state: tf.reduce_any(state[-1]), move_one, image)[1]

    return tf.map_fn(pair_image, (objects, highest, waiting), fn_output_signature=tf.int64)[:, :-1]


# --- overlaps and bids --------------------------------------------------------------------------


def _overlap(boxes, priors):
    """IoU: float32 or float64 [..., 4] xyxy, float32 [..., A, 4] xyxy -> [..., A], the type of `boxes`.

    The priors broadcast against boxes[..., None, :].
    """
    shared = _intersection(boxes, priors)
    # in float32 first, as in rykov8's float64 code; a prior without area overlaps nothing
    prior_area = tf.cast(tf.maximum(box_ops.area(priors), 1e-30), boxes.dtype)
    return shared / (box_ops.area(boxes)[..., None] + prior_area - shared)


def _intersection(boxes, priors):
    """The areas that both cover, as `_overlap`; coordinates apart, for vector instructions."""
    left, top, right, bottom = tf.unstack(boxes[..., None, :], axis=-1)
    prior_left, prior_top, prior_right, prior_bottom = tf.unstack(tf.cast(priors, boxes.dtype), axis=-1)
    width = tf.maximum(tf.minimum(right, prior_right) - tf.maximum(left, prior_left), 0.0)
    height = tf.maximum(tf.minimum(bottom, prior_bottom) - tf.maximum(top, prior_top), 0.0)
    return width * height


def _bid(value, place, count):
    """float32 >= 0 and int32 in [0, count) -> int64."""
    bits = tf.bitcast(value, tf.int32)  # of floats that are not negative, in their order
    return tf.bitwise.left_shift(tf.cast(bits, tf.int64), 32) + tf.cast(count - 1 - place, tf.int64)


def _value(bid):
    return tf.bitcast(tf.cast(tf.bitwise.right_shift(bid, 32), tf.int32), tf.float32)


def _place(bid, count):
    return count - 1 - tf.cast(tf.bitwise.bitwise_and(bid, 2**32 - 1), tf.int32)
