"""The losses of SSD: smooth L1 for boxes; for classes softmax cross-entropy with hard negative mining, or focal loss.

Everything is computed in float32 from logits, per image; nothing is averaged.
"""

import tensorflow as tf

from tfdet import addons, schema
from tfdet.config import ConfigError

FROM_ADDONS = {"detector.class_loss=sigmoid_focal": "sigmoid_focal_crossentropy"}


def smooth_l1(difference):
    """0.5 x^2 where |x| < 1, else |x| - 0.5 (Fast R-CNN, eq. 3).

    Written without a choice between the two, so that no square can overflow.

    Args:
        difference: float32 [...].
    Returns:
        float32 [...].
    """
    size = tf.abs(difference)
    inner = tf.minimum(size, 1.0)
    return inner * (size - 0.5 * inner)


def hard_negatives(losses, candidates, counts):
    """The candidates with the largest losses of each image; equal losses go to the first.

    The smallest loss that is still taken is found bit by bit, each bit by counting the losses above: cheaper
    than a sort on a CPU and, unlike sorts and cumulative sums, cheap everywhere under XLA.

    Args:
        losses: float32 [B, A], not negative; A static.
        candidates: bool [B, A].
        counts: int32 [B]; an image with fewer candidates gives all of them.
    Returns:
        bool [B, A].
    """
    bits = tf.bitcast(tf.abs(losses), tf.int32)  # in the order of the losses
    bits = tf.where(candidates, bits, -1)
    smallest = _reached_by(counts, bits, 31)
    above, tied = bits > smallest, bits == smallest
    missing = counts - tf.math.count_nonzero(above, 1, dtype=tf.int32)
    places_from_last = tf.range(losses.shape[1] - 1, -1, -1)
    places_from_last = tf.where(tied, places_from_last, -1)
    return above | (places_from_last >= _reached_by(missing, places_from_last, (losses.shape[1] - 1).bit_length()))


def _reached_by(counts, values, num_bits):
    """The largest number that `counts` of the values reach, 0 if fewer do: int32 [B], [B, A] -> int32 [B, 1]."""
    found = tf.zeros_like(values[:, :1])
    for bit in reversed(range(num_bits)):
        trial = found + 2**bit
        enough = tf.math.count_nonzero(values >= trial, 1, dtype=tf.int32) >= counts
        found = tf.where(enough[:, None], trial, found)
    return found


def multibox_loss(
    target_boxes, target_labels, box_deltas, class_logits, *, neg_pos_ratio=3.0, min_negatives=3, alpha=1.0
):
    """The MultiBox objective (SSD paper, eq. 1 to 3), summed over an image and not yet divided by its positives.

    Positives give smooth L1 of their deltas and cross-entropy. Of the background, an image gives the cross-entropy
    of its `neg_pos_ratio` priors a positive with the largest loss, or of `min_negatives` if it has no positive.
    Ignored priors give nothing. Differs from rykov8's MultiboxLoss, which ranks negatives by their best class
    score, takes the same number in all images and divides the class loss by positives and negatives together.

    Args:
        target_boxes: float32 [B, A, 4] deltas.
        target_labels: int32 [B, A] in [0, C); -1 background, -2 ignore.
        box_deltas: float [B, A, 4], any precision.
        class_logits: float [B, A, C + 1], any precision, background first.
        alpha: weight of the box loss.
    Returns:
        dict of float32 [B]: "box_loss", "class_loss", and "normalizer", the number of positives.
    """
    positive = target_labels >= 0
    num_positive = tf.math.count_nonzero(positive, 1, dtype=tf.float32)
    classes = tf.maximum(target_labels + 1, 0)  # background is class 0
    class_loss = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, tf.cast(class_logits, tf.float32))
    wanted = tf.where(num_positive > 0.0, neg_pos_ratio * num_positive, tf.cast(min_negatives, tf.float32))
    background = target_labels == schema.BACKGROUND
    negative = hard_negatives(tf.stop_gradient(class_loss), background, tf.cast(wanted, tf.int32))
    return {
        "box_loss": alpha * _box_loss(positive, target_boxes, box_deltas),
        "class_loss": tf.reduce_sum(tf.where(positive | negative, class_loss, 0.0), 1),
        schema.NORMALIZER: num_positive,
    }


def focal_loss(target_boxes, target_labels, box_deltas, class_logits, *, alpha=1.0):
    """Boxes as in `multibox_loss`; for classes the sigmoid focal loss (https://arxiv.org/abs/1708.02002, eq. 5).

    Each class is a question of its own: a positive of class c wants 1 for c and 0 for the others, background wants 0
    for all. Every prior counts, easy ones little: the weights are the paper's 0.25 and gamma 2. Ignored priors give
    nothing. The column of background is not read and gets no gradient, so models and their files are those of softmax.

    Args, Returns:
        as `multibox_loss`.
    Raises:
        ConfigError: tensorflow-addons, whose loss it is, is not installed.
    """
    focal = sigmoid_focal()
    positive = target_labels >= 0
    logits = tf.cast(class_logits, tf.float32)[..., 1:]
    wanted = tf.one_hot(target_labels, logits.shape[-1])  # zeros for negative labels
    class_loss = focal(wanted, logits, from_logits=True)  # [B, A], summed over classes
    counted = target_labels != schema.IGNORE
    return {
        "box_loss": alpha * _box_loss(positive, target_boxes, box_deltas),
        "class_loss": tf.reduce_sum(tf.where(counted, class_loss, 0.0), 1),
        schema.NORMALIZER: tf.math.count_nonzero(positive, 1, dtype=tf.float32),
    }


def _box_loss(positive, target_boxes, box_deltas):
    """Smooth L1 of the positives' deltas: bool [B, A], float [B, A, 4] twice -> float32 [B]."""
    difference = tf.cast(box_deltas, tf.float32) - target_boxes
    return tf.reduce_sum(smooth_l1(tf.where(positive[..., None], difference, 0.0)), [1, 2])


def sigmoid_focal():
    """tensorflow-addons' function of wanted and predicted, float [..., C] -> float [...].

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        return addons.get("losses.sigmoid_focal_crossentropy")
    except ImportError as error:
        raise ConfigError(f"detector.class_loss=sigmoid_focal needs {error}") from error
