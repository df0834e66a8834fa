"""The MultiBox loss and its parts, against slow twins, by hand, and over inputs of any size."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdet import addons
from tfdet.config import ConfigError, SsdConfig
from tfdet.detectors.losses import focal_loss, hard_negatives, multibox_loss, smooth_l1
from tfdet.detectors.ssd import Ssd

# --- twins --------------------------------------------------------------------------------------


def slow_hard_negatives(losses, candidates, counts):
    """One image at a time: candidates sorted by loss, then by place."""
    mask = np.zeros(losses.shape, bool)
    for image, count in enumerate(counts):
        order = sorted(np.flatnonzero(candidates[image]), key=lambda a: (-losses[image, a], a))
        mask[image, order[:count]] = True
    return mask


def slow_multibox(target_boxes, target_labels, box_deltas, class_logits, neg_pos_ratio, min_negatives, alpha):
    """One image: float64 box loss, class loss, positives."""
    box_loss, positive_loss, negative_losses, positives = 0.0, 0.0, [], 0
    for target, label, deltas, logits in zip(target_boxes, target_labels, box_deltas, class_logits):
        shares = np.exp(logits - logits.max())
        cross_entropy = -np.log(shares / shares.sum())
        if label >= 0:
            x = np.abs(deltas - target)
            box_loss += np.where(x < 1, 0.5 * x**2, x - 0.5).sum()
            positive_loss += cross_entropy[label + 1]
            positives += 1
        elif label == -1:
            negative_losses.append(cross_entropy[0])
    count = int(neg_pos_ratio * positives) if positives else min_negatives
    class_loss = positive_loss + sum(sorted(negative_losses, reverse=True)[:count])
    return alpha * box_loss, class_loss, positives


def slow_focal(target_labels, class_logits):
    """One image, float64: -alpha_t (1 - p_t)^2 log p_t over priors and classes, eq. 5 of the paper."""
    total = 0.0
    for label, logits in zip(target_labels, class_logits):
        for number, logit in enumerate(logits[1:] if label != -2 else ()):
            share = 1 / (1 + np.exp(-logit))
            share, alpha = (share, 0.25) if number == label else (1 - share, 0.75)
            total -= alpha * (1 - share) ** 2 * np.log(share)
    return total


# --- smooth L1 ----------------------------------------------------------------------------------


def test_smooth_l1_by_hand():
    # 0.5 * 0.5^2 = 0.125; 0.5 * 1^2 = 1 - 0.5; 3 - 0.5
    np.testing.assert_allclose(smooth_l1(tf.constant([0.0, 0.5, -0.5, 1.0, -3.0])), [0, 0.125, 0.125, 0.5, 2.5])


def test_the_slope_of_smooth_l1_is_the_difference_held_to_one():
    x = tf.constant([-1e30, -2.0, -1.0, -0.25, 0.0, 0.25, 1.0, 2.0, 1e30])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = smooth_l1(x)
    np.testing.assert_allclose(tape.gradient(loss, x), np.clip(x, -1, 1))


# --- mining -------------------------------------------------------------------------------------


def test_hard_negatives_by_hand():
    losses = np.array([[0.1, 0.9, 0.5, 0.9, 0.3], [0.0, 0.0, 0.0, 2.0, 0.0]], np.float32)
    candidates = np.array([[1, 1, 1, 0, 1], [1, 0, 1, 0, 1]], bool)
    found = hard_negatives(losses, candidates, tf.constant([2, 2])).numpy()
    np.testing.assert_array_equal(found, [[0, 1, 1, 0, 0], [1, 0, 1, 0, 0]])


LOSSES = st.sampled_from([0.0, 1e-40, 1e-6, 0.5, 0.5, 1.0, 7.0, 1e30, float("inf")])


@settings(max_examples=100, deadline=None)
@given(
    losses=st.lists(LOSSES, min_size=16, max_size=16),
    candidates=st.lists(st.booleans(), min_size=16, max_size=16),
    counts=st.tuples(st.integers(0, 10), st.integers(0, 10)),
)
def test_hard_negatives_equal_the_twin(losses, candidates, counts):
    losses = np.reshape(losses, (2, 8)).astype(np.float32)
    candidates = np.reshape(candidates, (2, 8))
    found = compiled_hard_negatives(losses, candidates, np.array(counts, np.int32)).numpy()
    np.testing.assert_array_equal(found, slow_hard_negatives(losses, candidates, counts))


compiled_hard_negatives = tf.function(hard_negatives, jit_compile=True)


@pytest.mark.parametrize("num_priors, compiled", [(1, False), (2, False), (64, False), (65, False), (500, True)])
def test_hard_negatives_of_any_number_of_priors(num_priors, compiled, rng):
    losses = rng.exponential(1, (3, num_priors)).astype(np.float32).round(1)  # many are equal
    candidates = rng.random((3, num_priors)) < 0.7
    counts = np.array([0, num_priors // 3, 2 * num_priors], np.int32)
    found = (compiled_hard_negatives if compiled else hard_negatives)(losses, candidates, counts).numpy()
    np.testing.assert_array_equal(found, slow_hard_negatives(losses, candidates, counts))


# --- MultiBox -----------------------------------------------------------------------------------


def random_targets(rng, images=3, priors=40, classes=4):
    labels = rng.choice([-2, -1, -1, -1, -1, 0, classes - 1], (images, priors)).astype(np.int32)
    boxes = np.where(labels[..., None] >= 0, rng.normal(size=(images, priors, 4)), 0.0).astype(np.float32)
    deltas = rng.normal(size=boxes.shape).astype(np.float32)
    logits = rng.normal(size=(images, priors, classes + 1)).astype(np.float32) * 3
    return boxes, labels, deltas, logits


@pytest.mark.parametrize(
    "neg_pos_ratio, min_negatives, alpha", [(3.0, 3, 1.0), (2.0, 0, 1.0), (0.5, 5, 2.0), (0, 0, 1)]
)
def test_multibox_equals_the_twin(neg_pos_ratio, min_negatives, alpha, rng):
    boxes, labels, deltas, logits = random_targets(rng)
    labels[1] = np.where(labels[1] >= 0, -1, labels[1])  # an image without objects
    options = {"neg_pos_ratio": neg_pos_ratio, "min_negatives": min_negatives, "alpha": alpha}
    losses = multibox_loss(boxes, labels, deltas, logits, **options)
    for image in range(3):
        arrays = [each[image].astype(np.float64) for each in (boxes, deltas, logits)]
        expected = slow_multibox(arrays[0], labels[image], *arrays[1:], **options)
        found = [losses[name].numpy()[image] for name in ("box_loss", "class_loss", "normalizer")]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_multibox_by_hand():
    # two classes and background. Prior 0 is class 1, off by 2 in x: 2 - 0.5 = 1.5. Equal logits: log 3 each.
    boxes, labels = np.zeros((1, 4, 4), np.float32), np.array([[1, -1, -1, -2]], np.int32)
    deltas, logits = np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 3), np.float32)
    deltas[0, 0, 0], deltas[0, 1:] = 2, 9  # background has no box loss
    logits[0, 2] = [0, 30, 0]  # a confident mistake: loss 30
    losses = multibox_loss(boxes, labels, deltas, logits, neg_pos_ratio=1.0)
    assert losses["box_loss"].numpy() == pytest.approx([1.5])
    assert losses["class_loss"].numpy() == pytest.approx([np.log(3) + 30])
    assert losses["normalizer"].numpy() == [1]


def test_an_ignored_image_adds_nothing(rng):
    boxes, labels, deltas, logits = random_targets(rng)
    labels[1] = -2
    losses, gradients = gradients_of(boxes, labels, deltas, logits)
    for values in (*losses.values(), *gradients):
        assert not np.any(values[1])
        assert np.any(values[0])


def test_an_image_without_objects_teaches_background(rng):
    boxes, labels, deltas, logits = random_targets(rng)
    labels[:] = -1
    cross_entropy = -tf.nn.log_softmax(logits)[..., 0].numpy()
    losses = multibox_loss(boxes, labels, deltas, logits, min_negatives=5)
    np.testing.assert_allclose(losses["class_loss"], np.sort(cross_entropy)[:, -5:].sum(1), rtol=1e-5)
    assert not np.any(losses["box_loss"])
    assert not np.any(losses["normalizer"])


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_predictions_are_summed_in_float32(dtype, rng):
    boxes, labels, deltas, logits = random_targets(rng)
    deltas, logits = tf.cast(deltas, dtype), tf.cast(logits, dtype)
    losses = multibox_loss(boxes, labels, deltas, logits)
    expected = multibox_loss(boxes, labels, tf.cast(deltas, tf.float32), tf.cast(logits, tf.float32))
    for name, value in losses.items():
        assert value.dtype == tf.float32
        np.testing.assert_array_equal(value, expected[name])


def gradients_of(boxes, labels, deltas, logits, loss=multibox_loss):
    deltas, logits = tf.convert_to_tensor(deltas), tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch([deltas, logits])
        losses = loss(boxes, labels, deltas, logits)
        total = tf.reduce_sum(losses["box_loss"]) + tf.reduce_sum(losses["class_loss"])
    return losses, tape.gradient(total, [deltas, logits])


def test_gradient_is_the_slope(rng):
    boxes, labels, deltas, logits = (each[:1, :6] for each in random_targets(rng))
    labels = np.array([[0, 2, -1, -1, -2, -1]], np.int32)  # more negatives are wanted than there are
    _, gradients = gradients_of(boxes, labels, deltas, logits)
    for which, gradient in zip((deltas, logits), gradients):
        for place in np.ndindex(*which.shape):
            ends = []
            for step in (0.01, -0.01):
                which[place] += step
                arrays = [each[0].astype(np.float64) for each in (boxes, deltas, logits)]
                ends.append(sum(slow_multibox(arrays[0], labels[0], *arrays[1:], 3.0, 3, 1.0)[:2]))
                which[place] -= step
            assert gradient.numpy()[place] == pytest.approx((ends[0] - ends[1]) / 0.02, abs=2e-3)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4, 1e10, 1e30])
def test_extreme_predictions_stay_finite(size, rng):
    boxes, labels, deltas, logits = random_targets(rng)
    assert_finite(*gradients_of(boxes, labels, deltas * np.float32(size), logits * np.float32(size)))


def assert_finite(losses, gradients):
    for values in (*losses.values(), *gradients):
        assert np.isfinite(values).all()


# --- focal --------------------------------------------------------------------------------------

needs_addons = pytest.mark.skipif(not addons.available(), reason="tensorflow-addons is not installed")


@needs_addons
def test_focal_equals_the_twin(rng):
    boxes, labels, deltas, logits = random_targets(rng)
    labels[1] = np.where(labels[1] >= 0, -1, labels[1])  # an image without objects
    losses = tf.function(focal_loss, jit_compile=True)(boxes, labels, deltas, logits, alpha=2.0)
    expected = [slow_focal(*rows) for rows in zip(labels, logits.astype(np.float64))]
    np.testing.assert_allclose(losses["class_loss"], expected, rtol=1e-5)
    mined = multibox_loss(boxes, labels, deltas, logits, alpha=2.0)
    for name in ("box_loss", "normalizer"):
        np.testing.assert_allclose(losses[name], mined[name], rtol=1e-6)


@needs_addons
def test_focal_by_hand():
    # two classes, all logits 0, so p = 1/2: a positive gives (0.25 + 0.75) / 4 log 2, background 2 * 0.75 / 4 log 2
    labels = np.array([[1, -1, -2]], np.int32)
    losses = focal_loss(np.zeros((1, 3, 4), np.float32), labels, np.zeros((1, 3, 4)), np.zeros((1, 3, 3)))
    assert losses["class_loss"].numpy() == pytest.approx([(0.25 + 0.375) * np.log(2)])
    assert losses["normalizer"].numpy() == [1]


@needs_addons
def test_an_ignored_image_and_the_column_of_background_have_no_focal_gradient(rng):
    boxes, labels, deltas, logits = random_targets(rng)
    labels[1] = -2
    losses, gradients = gradients_of(boxes, labels, deltas, logits, focal_loss)
    for values in (*losses.values(), *gradients):
        assert not np.any(values[1])
        assert np.any(values[0])
    assert not np.any(gradients[1][..., 0])


@needs_addons
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4, 1e30])
def test_extreme_predictions_stay_finite_in_focal(size, rng):
    boxes, labels, deltas, logits = random_targets(rng)
    deltas, logits = deltas * np.float32(size), tf.cast(logits * np.float32(size), tf.bfloat16)
    assert_finite(*gradients_of(boxes, labels, deltas, logits, focal_loss))


@pytest.mark.skipif(addons.available(), reason="tensorflow-addons is installed")
def test_focal_without_the_package_says_how_to_get_it(rng):
    arrays = random_targets(rng)
    with pytest.raises(ConfigError, match=r"class_loss=sigmoid_focal needs .*tensorflow-addons is not installed"):
        focal_loss(*arrays)


# --- any boxes, through the whole of SSD ---------------------------------------------------------

NUM_BOXES = 4
number = st.one_of(
    st.floats(-0.5, 1.5, width=32),
    st.sampled_from([0.0, 1.0, 1e-7, -1e-7, 1e30, -1e30, float("nan"), float("inf"), -float("inf")]),
)


@settings(max_examples=30, deadline=None)
@given(
    corners=st.lists(number, min_size=2 * NUM_BOXES * 4, max_size=2 * NUM_BOXES * 4),
    labels=st.lists(st.integers(-2, 2), min_size=2 * NUM_BOXES, max_size=2 * NUM_BOXES),
    logit=st.sampled_from([0.0, 1.0, -1.0, 100.0, 1e4, -1e30]),
)
def test_value_and_gradient_are_finite_for_any_boxes(corners, labels, logit):
    boxes = np.reshape(corners, (2, NUM_BOXES, 4)).astype(np.float32)
    labels = np.reshape(labels, (2, NUM_BOXES)).astype(np.int32)
    noise = np.random.default_rng(1).normal(size=(2, 7308, 8)).astype(np.float32)
    for values in ssd_step()(boxes, labels, noise[..., :4] * 5, noise[..., 4:] * np.float32(logit)):
        assert np.isfinite(values).all()


@functools.cache
def ssd_step():
    """Targets, losses and gradients by both rules in one compiled function, as a list."""
    detectors = [Ssd(SsdConfig(matching=rule, priors="ssd300_7308"), 3) for rule in ("bipartite", "per_box")]

    @tf.function(jit_compile=True)
    def step(boxes, labels, deltas, logits):
        found = []
        for detector in detectors:
            target_boxes, target_labels = detector.encode(boxes, labels).values()
            losses, gradients = gradients_of(target_boxes, target_labels, deltas, logits)
            found += [target_boxes, *losses.values(), *gradients]
        return found

    return step
