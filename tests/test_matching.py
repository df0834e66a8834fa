"""Matching against slow twins. Corners lie on a grid of 1/16, so that every IoU, and every tie, is exact."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdet.config import PRIOR_LAYOUTS
from tfdet.detectors import matching
from tfdet.detectors.priors import make_priors, to_xyxy

NONE = -1
RULES = ("bipartite", "per_box")


# --- twins --------------------------------------------------------------------------------------


def is_usable(box):
    sides = box[2:] - box[:2]
    return np.isfinite(box).all() and (sides > 0).all() and (box[:2] < 1).all() and (box[2:] > 0).all()


def shared_area(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a, b):
    return shared_area(a, b) / (area(a) + area(b) - shared_area(a, b))


def slow_bipartite(boxes, labels, priors, threshold):
    """One image: float [M, 4], int [M], float [A, 4] -> list of A rows of `boxes`."""
    matches = [NONE] * len(priors)
    objects = [m for m, box in enumerate(boxes) if labels[m] >= 0 and is_usable(box)]
    unpaired = list(objects)
    while True:
        free = [a for a, row in enumerate(matches) if row == NONE]
        pairs = [(iou(boxes[m], priors[a]), -m, -a) for m in unpaired for a in free]
        best = max(pairs, default=(0, 0, 0))
        if best[0] == 0:
            break
        matches[-best[2]] = -best[1]
        unpaired.remove(-best[1])
    for a, row in enumerate(matches):
        overlap, m = max([(iou(boxes[m], priors[a]), -m) for m in objects], default=(0, 0))
        if row == NONE and overlap >= threshold:
            matches[a] = -m
    return with_ignored(matches, boxes, labels, priors, lambda share: share >= threshold)


def slow_per_box(boxes, labels, priors, threshold):
    """One image, as rykov8's assign_boxes goes about it."""
    taken = np.zeros((len(boxes), len(priors)))
    for m, box in enumerate(boxes):
        if labels[m] >= 0 and is_usable(box):
            overlaps = np.array([iou(box, prior) for prior in priors])
            takes = overlaps > threshold
            if not takes.any():
                takes[overlaps.argmax()] = True
            taken[m] = np.where(takes, overlaps, 0)
    matches = [int(column.argmax()) if column.max(initial=0) > 0 else NONE for column in taken.T]
    return with_ignored(matches, boxes, labels, priors, lambda share: share > threshold)


def with_ignored(matches, boxes, labels, priors, enough):
    """The first ignore box that covers enough of a prior that is nobody's takes it."""
    for a, prior in enumerate(priors):
        for m in reversed(range(len(boxes))):
            covers = labels[m] == -2 and is_usable(boxes[m]) and enough(shared_area(boxes[m], prior) / area(prior))
            if covers and (matches[a] == NONE or labels[matches[a]] == -2):
                matches[a] = m
    return matches


SLOW = {"bipartite": slow_bipartite, "per_box": slow_per_box}


# --- against the twins --------------------------------------------------------------------------

SIDE, IMAGES, BOXES, FEW, MANY = 16, 4, 6, 5, 40


@functools.cache
def compiled(rule):
    return tf.function(functools.partial(matching.match, rule=rule, threshold=0.5), jit_compile=True)


def grid_boxes(low, high):
    """A box with corners on the grid, now and then one that cannot be matched."""
    corner = st.integers(low, high)
    regular = st.tuples(corner, corner, st.integers(1, 8), st.integers(1, 8)).map(
        lambda b: [b[0] / SIDE, b[1] / SIDE, (b[0] + b[2]) / SIDE, (b[1] + b[3]) / SIDE]
    )
    nan, inf = float("nan"), float("inf")
    broken = [[0, 0, 0, 0], [0.5, 0.5, 0.25, 0.75], [0.25, 0.25, 0.25, 0.5], [1, 0, 2, 1], [0, -1, 1, 0]]
    broken += [[nan, 0, 1, 1], [0, 0, inf, 1], [-inf, 0, 1, 1]]
    return st.one_of(regular, regular, regular, regular, st.sampled_from(broken))


@st.composite
def batches(draw, num_priors):
    boxes = draw(st.lists(grid_boxes(-2, 15), min_size=IMAGES * BOXES, max_size=IMAGES * BOXES))
    label = st.sampled_from([0, 1, 2, 2, 1, 0, -1, -2])
    labels = draw(st.lists(label, min_size=IMAGES * BOXES, max_size=IMAGES * BOXES))
    corners = st.tuples(st.integers(-2, 14), st.integers(-2, 14), st.integers(1, 8), st.integers(1, 8))
    priors = np.array(draw(st.lists(corners, min_size=num_priors, max_size=num_priors)), np.float32)
    priors = np.concatenate([priors[:, :2], priors[:, :2] + priors[:, 2:]], 1) / SIDE
    shape = (IMAGES, BOXES)
    return np.reshape(boxes, (*shape, 4)).astype(np.float32), np.reshape(labels, shape).astype(np.int32), priors


def check(rule, boxes, labels, priors):
    found = compiled(rule)(boxes, labels, priors).numpy()
    for image in range(len(boxes)):
        expected = SLOW[rule](boxes[image].astype(np.float64), labels[image], priors.astype(np.float64), 0.5)
        np.testing.assert_array_equal(found[image], expected)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, deadline=None)
@given(batch=batches(MANY))
def test_equals_the_twin(rule, batch):
    check(rule, *batch)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(batch=batches(FEW))
def test_equals_the_twin_where_boxes_outnumber_priors(rule, batch):
    check(rule, *batch)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("objects", ["everywhere", "few", "at the end", "none"])
def test_equals_the_twin_where_an_image_has_many_boxes(rule, objects, rng):
    """More boxes than are searched at once, more priors than lanes; parts without a box before and behind."""
    low = rng.integers(0, 60, (2, 40, 2)) / 64
    boxes = np.concatenate([low, low + rng.integers(1, 16, (2, 40, 2)) / 64], 2).astype(np.float32)
    labels = rng.choice([0, 1, 2, -2], (2, 40)).astype(np.int32)
    absent = {"everywhere": slice(0), "few": slice(3, None), "at the end": slice(39), "none": slice(None)}[objects]
    labels[:, absent] = -1
    low = rng.integers(0, 56, (300, 2)) / 64
    priors = np.concatenate([low, low + rng.integers(4, 16, (300, 2)) / 64], 1).astype(np.float32)
    check(rule, boxes, labels, priors)


@pytest.mark.parametrize("rule", RULES)
def test_a_count_of_boxes_that_is_not_known(rule):
    spec = [tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, None], tf.int32)]
    run = tf.function(lambda *batch: matching.match(*batch, PRIORS, rule=rule), spec)
    for count in (0, 1, 17):
        boxes = np.tile(np.float32([0.25, 0, 0.5, 0.5]), [2, count, 1])
        found = run(boxes, np.zeros([2, count], np.int32)).numpy()
        np.testing.assert_array_equal(found, [[-1, 0 if count else -1, -1, -1]] * 2)


# --- by hand ------------------------------------------------------------------------------------

# four priors side by side, 0.25 wide and 0.5 high
PRIORS = np.array([[x / 4, 0, (x + 1) / 4, 0.5] for x in range(4)], np.float32)


def match(boxes, labels, rule="bipartite", priors=PRIORS, threshold=0.5):
    boxes, labels = np.array([boxes], np.float32), np.array([labels], np.int32)
    return matching.match(boxes, labels, priors, rule=rule, threshold=threshold).numpy()[0].tolist()


def test_bipartite_by_hand():
    # box 0 is prior 0 and prior 1 together: IoU 1/2 with both. Box 1 is prior 1: IoU 1.
    assert match([[0, 0, 0.5, 0.5], [0.25, 0, 0.5, 0.5]], [5, 6]) == [0, 1, -1, -1]
    # alone it keeps its best prior, the first of the two, and has the other by the threshold (IoU >= 1/2)
    assert match([[0, 0, 0.5, 0.5]], [5]) == [0, 0, -1, -1]
    # 0.25 x 0.125 in 0.25 x 0.5: IoU 1/4, below the threshold, and yet it keeps its best prior
    assert match([[0.5, 0, 0.75, 0.125]], [5]) == [-1, -1, 0, -1]


@pytest.mark.parametrize("rule", RULES)
def test_no_room_for_boxes(rule):
    assert (compiled(rule)(np.zeros([2, 0, 4], np.float32), np.zeros([2, 0], np.int32), PRIORS).numpy() == -1).all()


def test_two_objects_with_the_same_best_prior_both_keep_one():
    # in sixteenths of the width, all of the priors' height: box 0 is prior 0 (0 to 4); box 1 is 1 to 5, IoU
    # 3 / (4 + 4 - 3) = 3/5 with prior 0 and 1/7 with prior 1; box 2 is half of prior 0 and overlaps no other
    boxes = [[0, 0, 0.25, 0.5], [0.0625, 0, 0.3125, 0.5], [0, 0, 0.25, 0.25]]
    assert match(boxes[:2], [0, 0]) == [0, 1, -1, -1]
    assert match(boxes[1::-1], [0, 0]) == [1, 0, -1, -1]
    assert match(boxes, [0, 0, 0]) == [0, 1, -1, -1]  # for box 2 nothing is left that it overlaps
    # the seed's rule: box 1 has an IoU above 1/2 and forces nothing, box 0 has the larger one, box 1 ends without
    assert match(boxes[:2], [0, 0], "per_box") == [0, -1, -1, -1]


def test_a_chain_of_objects_that_are_outbid():
    # box 2 is prior 0. Box 1 (1 to 7 sixteenths): 3/7 with priors 0 and 1. Box 0 (6 to 10): 1/3 with 1 and 2.
    # So box 2 drives box 1 from prior 0 to prior 1, and box 1 drives box 0 from there to prior 2.
    boxes = [[0.375, 0, 0.625, 0.5], [0.0625, 0, 0.4375, 0.5], [0, 0, 0.25, 0.5]]
    assert match(boxes, [0, 0, 0]) == [2, 1, 0, -1]


def test_per_box_is_strict_and_a_larger_overlap_takes_the_prior_back():
    # IoU 1/2 with priors 0 and 1 is not more than 1/2: only the first is forced
    assert match([[0, 0, 0.5, 0.5]], [5], "per_box") == [0, -1, -1, -1]
    assert match([[0, 0, 0.5, 0.5], [0, 0, 0.25, 0.5]], [5, 6], "per_box") == [1, -1, -1, -1]
    # equal boxes: the first has it
    assert match([[0, 0, 0.25, 0.5]] * 2, [5, 6], "per_box") == [0, -1, -1, -1]


@pytest.mark.parametrize("rule", RULES)
def test_ignore_boxes(rule):
    crowd = [0.25, 0, 1, 1]  # covers priors 1 to 3; their IoU with it is 1/6
    assert match([crowd], [-2], rule) == [-1, 0, 0, 0]
    assert match([crowd, [0.5, 0, 0.75, 0.5]], [-2, 3], rule) == [-1, 0, 1, 0]  # the object comes first
    assert match([[0.5, 0, 0.75, 0.5], crowd], [3, -2], rule) == [-1, 1, 0, 1]
    assert match([[0.25, 0, 0.3125, 0.5]], [-2], rule) == [-1, -1, -1, -1]  # a quarter of prior 1


@pytest.mark.parametrize("rule", RULES)
def test_an_image_without_objects(rule):
    assert match([[0, 0, 0, 0], [0, 0, 1, 1]], [-1, -1], rule) == [-1] * 4


@pytest.mark.parametrize("rule", RULES)
def test_images_do_not_touch_each_other(rule, rng):
    boxes, labels = random_batch(rng, 8, 7)
    priors = to_xyxy(make_priors(PRIOR_LAYOUTS["ssd300"])).astype(np.float32)[::7]
    together = matching.match(boxes, labels, priors, rule=rule).numpy()
    for image in range(8):
        alone = matching.match(boxes[image : image + 1], labels[image : image + 1], priors, rule=rule).numpy()
        np.testing.assert_array_equal(alone[0], together[image])


def random_batch(rng, images, boxes):
    centre, size = rng.uniform(0, 1, (images, boxes, 2)), rng.uniform(0.05, 0.6, (images, boxes, 2))
    labels = rng.integers(-2, 3, (images, boxes)).astype(np.int32)
    return np.concatenate([centre - size / 2, centre + size / 2], -1).astype(np.float32), labels


# --- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["ssd300", "ssd300_7308", "ssd512"])
@pytest.mark.parametrize("kind", ["crowded", "identical", "tiny", "thin", "huge"])
def test_every_object_with_area_keeps_a_prior(layout, kind, rng):
    boxes = random_batch(rng, 2, 16)[0]
    low, high = boxes[..., :2].copy(), boxes[..., 2:].copy()
    if kind == "crowded":  # all in one corner
        boxes = boxes * 0.05
    elif kind == "identical":
        boxes = np.broadcast_to(boxes[:, :1], boxes.shape)
    elif kind == "tiny":
        boxes = np.concatenate([low, low + 2e-6], -1)
    elif kind == "thin":
        boxes = np.concatenate([low, np.stack([high[..., 0], low[..., 1] + 2e-6], -1)], -1)
    elif kind == "huge":
        boxes = np.concatenate([-1 - 1e5 * high, 2 + 1e5 * high], -1)
    boxes = boxes.astype(np.float32)
    usable = matching.is_matchable(boxes).numpy()
    assert usable.mean() > 0.5
    priors = to_xyxy(make_priors(PRIOR_LAYOUTS[layout])).astype(np.float32)
    found = matching.match(boxes, np.zeros(boxes.shape[:2], np.int32), priors).numpy()
    for image in range(len(boxes)):
        assert set(np.flatnonzero(usable[image])) == set(found[image]) - {NONE}


values = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=40, deadline=None)
@given(boxes=st.lists(st.tuples(values, values, values, values), min_size=24, max_size=24))
def test_degenerate_boxes_are_counted_and_never_matched(boxes):
    boxes = tf.constant(np.array(boxes, np.float32).reshape(IMAGES, BOXES, 4))
    labels = np.tile(np.array([0, 1, -2, -1, 2, -2], np.int32), (IMAGES, 1))
    usable = matching.is_matchable(boxes).numpy()
    counts = matching.count_degenerate(boxes, labels).numpy()
    np.testing.assert_array_equal(counts, ((labels != -1) & ~usable).sum(1))
    for rule in RULES:
        found = compiled(rule)(boxes, labels, np.concatenate([PRIORS] * (MANY // 4))).numpy()
        for image in range(IMAGES):
            matched = set(found[image]) - {NONE}
            assert all(usable[image, m] and labels[image, m] != -1 for m in matched)


def test_which_boxes_are_degenerate():
    nan, inf = np.nan, np.inf
    good = [[0, 0, 1, 1], [-0.1, 0, 0.1, 0.2], [0.5, 0.5, 2, 2], [0, 0, 0.001, 1]]
    bad = [[0.5, 0.5, 0.5, 0.6], [0.5, 0.5, 0.4, 0.6], [0.5, 0.6, 0.4, 0.5], [0.2, 0.2, 0.2, 0.2]]
    bad += [[nan, 0, 1, 1], [0, 0, 1, nan], [0, 0, inf, 1], [-inf, -inf, inf, inf], [1, 0, 1.5, 1], [-1, 0, 0, 1]]
    bad += [[0, 0, 1e-7, 1], [-1e30, -1e30, 1e30, 1e30]]
    boxes = np.array([good + bad], np.float32)
    np.testing.assert_array_equal(matching.is_matchable(boxes)[0], [True] * len(good) + [False] * len(bad))
    labels = np.zeros((1, len(good + bad)), np.int32)
    assert matching.count_degenerate(boxes, labels).numpy().tolist() == [len(bad)]


@pytest.mark.parametrize("rule", RULES)
def test_eager_graph_and_xla_agree(rule, rng):
    boxes, labels = random_batch(rng, 3, 5)
    priors = to_xyxy(make_priors(PRIOR_LAYOUTS["ssd300"])).astype(np.float32)
    boxes, priors = np.round(boxes * 64) / 64, np.round(priors * 64) / 64  # exact; else rounding breaks ties
    run = functools.partial(matching.match, rule=rule)
    expected = run(boxes, labels, priors).numpy()
    np.testing.assert_array_equal(tf.function(run)(boxes, labels, priors), expected)
    np.testing.assert_array_equal(tf.function(run, jit_compile=True)(boxes, labels, priors), expected)


def test_inside_a_dataset(rng):
    boxes, labels = random_batch(rng, 4, 5)
    expected = compiled("bipartite")(boxes[:2], labels[:2], PRIORS).numpy()
    dataset = tf.data.Dataset.from_tensor_slices((boxes, labels)).batch(2, drop_remainder=True)
    first = next(iter(dataset.map(lambda *batch: compiled("bipartite")(*batch, PRIORS))))
    np.testing.assert_array_equal(first, expected)


@pytest.mark.parametrize("rule", ["bipartite", "per_box"])
def test_room_for_no_box_at_all(rule):
    priors = tf.constant([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    rows = matching.match(tf.zeros([3, 0, 4]), tf.zeros([3, 0], tf.int32), priors, rule=rule)
    np.testing.assert_array_equal(rows, np.full([3, 2], -1))
