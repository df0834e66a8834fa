"""NMS against an obvious numpy twin, TensorFlow's own op, hand-computed cases, XLA and SavedModel."""

import numpy as np
import pytest
import tensorflow as tf

from tfdet import nms

A_BOX = [0.0, 0.0, 0.4, 0.4]
OVERLAPPING = [0.0, 0.0, 0.4, 0.3]  # IoU with A_BOX 0.12 / 0.16 = 0.75
APART = [0.6, 0.6, 0.9, 0.9]


# --- the numpy twin -----------------------------------------------------------------------------


def numpy_iou(a, b):
    """float32 [N, 4], [M, 4] -> float32 [N, M]."""
    with np.errstate(invalid="ignore"):  # boxes that are not finite, which take no part
        low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
        shared = np.prod(np.maximum(high - low, 0), -1)
        area_a, area_b = (np.prod(np.maximum(x[:, 2:] - x[:, :2], 0), -1) for x in (a, b))
        union = area_a[:, None] + area_b - shared
        return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def numpy_nms(boxes, scores, score_threshold, iou_threshold, max_per_class, max_detections, class_agnostic=False):
    """Greedy NMS of one image, pair by pair: list of (score, label, box index)."""
    pairs = [(a, c) for a in range(len(boxes)) for c in range(scores.shape[1]) if np.isfinite(boxes[a]).all()]
    pairs = [(a, c) for a, c in pairs if scores[a, c] > score_threshold]  # False for NaN
    if class_agnostic:
        pairs = [(a, c) for a, c in pairs if c == np.nanargmax(scores[a])]
        max_per_class = max_detections
    iou = numpy_iou(boxes, boxes)
    kept = []
    for a, c in sorted(pairs, key=lambda pair: -scores[pair]):  # stable
        rivals = [b for b, other in kept if class_agnostic or other == c]
        if len(rivals) < max_per_class and all(iou[a, b] <= iou_threshold for b in rivals):
            kept.append((a, c))
    return [(scores[a, c], c, a) for a, c in kept[:max_detections]]


def random_cases(rng, count, num_boxes, num_classes):
    """Half on a coarse grid, where IoUs and scores tie; some NaN, some boxes outside, inverted or not finite."""
    low = rng.random((count, num_boxes, 2)) * 1.2 - 0.2
    boxes = np.concatenate([low, low + rng.random((count, num_boxes, 2)) * 0.6 - 0.02], -1)
    scores = rng.random((count, num_boxes, num_classes))
    half = count // 2
    boxes[:half], scores[:half] = np.round(boxes[:half] * 4) / 4, np.round(scores[:half] * 8) / 8
    scores[rng.random(scores.shape) < 0.02] = np.nan
    boxes[rng.random(boxes.shape) < 0.002] = np.inf
    return boxes.astype(np.float32), scores.astype(np.float32)


def assert_equals_twin(boxes, scores, **options):
    compiled = options.pop("compiled", False)
    found = {k: v.numpy() for k, v in nms.non_max_suppression(boxes, scores, compiled=compiled, **options).items()}
    for i in range(len(boxes)):
        want = numpy_nms(boxes[i], scores[i], **options)
        n = found["num_detections"][i]
        assert n == len(want), i
        assert found["scores"][i, :n].tolist() == [score for score, _, _ in want]
        assert found["labels"][i, :n].tolist() == [label for _, label, _ in want]
        np.testing.assert_array_equal(found["boxes"][i, :n], boxes[i, [a for _, _, a in want]].reshape(-1, 4))
        assert not found["scores"][i, n:].any()
        assert not found["boxes"][i, n:].any()
        assert (found["labels"][i, n:] == -1).all()


# --- greedy -------------------------------------------------------------------------------------

SETTINGS = {
    "plain": {"score_threshold": 0.125, "iou_threshold": 0.5, "max_per_class": 5, "max_detections": 10},
    "everything": {"score_threshold": 0.0, "iou_threshold": 0.45, "max_per_class": 100, "max_detections": 10},
    "tight": {"score_threshold": 0.5, "iou_threshold": 0.25, "max_per_class": 1, "max_detections": 10},
    "agnostic": {
        "score_threshold": 0.1,
        "iou_threshold": 0.5,
        "max_per_class": 1,
        "max_detections": 10,
        "class_agnostic": True,
    },
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_equals_twin_on_10000_random_cases(setting, compiled):
    rng = np.random.default_rng([len(setting), compiled])
    assert_equals_twin(*random_cases(rng, 1250, 9, 3), **SETTINGS[setting], compiled=compiled)


@pytest.mark.parametrize("compiled", [False, True])
def test_many_pools(rng, compiled):
    """1,000 pairs an image, most of them suppressed: several pools of 256 are needed, not equally many per image."""
    boxes, scores = random_cases(rng, 6, 500, 2)
    boxes[:3] = boxes[:3] * 0.2 + 0.4
    options = {"score_threshold": 0.05, "iou_threshold": 0.3, "max_per_class": 60, "max_detections": 100}
    assert_equals_twin(boxes, scores, **options, compiled=compiled)


def test_equals_tensorflows_own_op(rng):
    boxes, scores = random_cases(rng, 4, 400, 6)
    boxes = np.sort(np.nan_to_num(boxes, posinf=1.0).reshape(4, 400, 2, 2), 2).reshape(4, 400, 4)
    scores = np.nan_to_num(scores) + rng.random(scores.shape).astype(np.float32) * 1e-3
    found = nms.non_max_suppression(boxes, scores, score_threshold=0.3, iou_threshold=0.5, max_per_class=40)
    want = tf.image.combined_non_max_suppression(
        boxes[:, :, None][..., [1, 0, 3, 2]], scores, 40, 200, 0.5, 0.3, clip_boxes=False
    )
    np.testing.assert_array_equal(found["scores"], want.nmsed_scores)
    np.testing.assert_array_equal(found["num_detections"], want.valid_detections)


def detections(boxes, scores, **options):
    options = {"score_threshold": 0.01, "iou_threshold": 0.5, "max_detections": 4} | options
    out = nms.non_max_suppression(np.float32([boxes]), np.float32([scores]), compiled=False, **options)
    n = int(out["num_detections"][0])
    return [(label, round(float(s), 4)) for label, s in zip(out["labels"][0, :n].numpy(), out["scores"][0, :n])]


@pytest.mark.parametrize("method", ["hard", "soft", "matrix"])
def test_no_images(method):
    found = nms.non_max_suppression(tf.zeros([0, 5, 4]), tf.zeros([0, 5, 2]), method=method, max_detections=3)
    assert found["boxes"].shape == (0, 3, 4)
    assert found["num_detections"].shape == (0,)


def test_the_best_of_overlapping_boxes_stays():
    assert detections([OVERLAPPING, A_BOX, APART], [[0.5], [0.75], [0.25]]) == [(0, 0.75), (0, 0.25)]


def test_classes_do_not_suppress_each_other_unless_asked():
    boxes, scores = [A_BOX, OVERLAPPING], [[0.75, 0.0], [0.0, 0.5]]
    assert detections(boxes, scores) == [(0, 0.75), (1, 0.5)]
    assert detections(boxes, scores, class_agnostic=True) == [(0, 0.75)]


def test_both_thresholds_are_strict():
    assert detections([A_BOX, APART], [[0.5], [0.25]], score_threshold=0.25) == [(0, 0.5)]
    whole, half = [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5]  # IoU exactly 0.5
    assert len(detections([whole, half], [[0.9], [0.8]], iou_threshold=0.5)) == 2
    assert len(detections([whole, half], [[0.9], [0.8]], iou_threshold=0.49)) == 1


def test_equal_scores_keep_input_order():
    assert detections([APART, A_BOX], [[0.5, 0.5], [0.5, 0.5]], max_detections=3) == [(0, 0.5), (1, 0.5), (0, 0.5)]


def test_nan_scores_and_infinite_boxes_are_dropped():
    boxes = [A_BOX, APART, [0.0, 0.0, np.inf, 1.0], [np.nan] * 4]
    assert detections(boxes, [[np.nan], [0.5], [0.9], [0.8]]) == [(0, 0.5)]


def test_boxes_outside_the_image_are_not_clipped():
    """Clipped to [0, 1] the two would be the same box; as they are, their IoU is 1/3."""
    outside = [[-1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0]]
    assert len(detections(outside, [[0.9], [0.8]], iou_threshold=0.4)) == 2
    far = [[5.0, 5.0, 6.0, 6.0], [5.0, 5.0, 6.0, 6.1]]
    assert len(detections(far, [[0.9], [0.8]])) == 1


def test_nothing_above_the_threshold():
    out = nms.non_max_suppression(np.zeros([2, 5, 4], np.float32), np.zeros([2, 5, 3], np.float32), max_detections=7)
    assert out["boxes"].shape == (2, 7, 4)
    assert out["num_detections"].numpy().tolist() == [0, 0]
    assert (out["labels"].numpy() == -1).all()


def test_wrong_method_is_named():
    with pytest.raises(ValueError, match="method is 'sotf'; choose one of hard, soft, matrix"):
        nms.non_max_suppression(np.zeros([1, 1, 4]), np.zeros([1, 1, 1]), method="sotf")


# --- soft and matrix ----------------------------------------------------------------------------


def numpy_soft(boxes, scores, kernel, sigma, iou_threshold, score_threshold, max_per_class, max_detections):
    """Soft-NMS of one image, float64: list of (score, label)."""
    iou, scores, kept = numpy_iou(boxes, boxes).astype(float), scores.astype(float), []
    while len(kept) < max_detections and np.nanmax(scores) > score_threshold:
        a, c = np.unravel_index(np.nanargmax(scores), scores.shape)
        kept.append((scores[a, c], c))
        scores[a, c] = -1
        decay = (
            np.exp(-(iou[a] ** 2) / sigma) if kernel == "gaussian" else np.where(iou[a] > iou_threshold, 1 - iou[a], 1)
        )
        scores[:, c] *= decay
        if sum(label == c for _, label in kept) == max_per_class:
            scores[:, c] = -1
    return kept


def numpy_matrix(boxes, scores, kernel, sigma, score_threshold, max_per_class, max_detections):
    """Matrix NMS of one image, rival by rival, float64: list of (score, label)."""
    iou, out = numpy_iou(boxes, boxes).astype(float), []
    for c in range(scores.shape[1]):
        order = [a for a in np.argsort(-scores[:, c], kind="stable") if scores[a, c] > score_threshold]
        suffered = [max([iou[b, a] for b in order[:i]], default=0.0) for i, a in enumerate(order)]
        lowered = []
        for j, a in enumerate(order):
            decays = [1.0]
            for i, b in enumerate(order[:j]):
                if kernel == "gaussian":
                    decays.append(np.exp((suffered[i] ** 2 - iou[a, b] ** 2) / sigma))
                elif suffered[i] < 1:
                    decays.append((1 - iou[a, b]) / (1 - suffered[i]))
            lowered.append(scores[a, c] * min(decays))
        out += [(s, c) for s in sorted((s for s in lowered if s > score_threshold), reverse=True)[:max_per_class]]
    return sorted(out, reverse=True)[:max_detections]


def tidy_cases(rng):
    low = rng.random((20, 12, 2))
    boxes = np.concatenate([low, low + rng.random((20, 12, 2)) * 0.6], -1).astype(np.float32)
    return boxes, rng.random((20, 12, 2)).astype(np.float32)


@pytest.mark.parametrize("max_candidates", [None, 24])
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("method", ["soft", "matrix"])
def test_soft_and_matrix_equal_their_twins(rng, method, kernel, max_candidates):
    boxes, scores = tidy_cases(rng)
    limits = {"score_threshold": 0.2, "max_per_class": 7, "max_detections": 11}
    options = dict(limits, kernel=kernel, sigma=0.4)
    found = nms.non_max_suppression(
        boxes, scores, method=method, iou_threshold=0.3, max_candidates=max_candidates, **options
    )
    for i in range(len(boxes)):
        twin = numpy_matrix(boxes[i], scores[i], **options) if method == "matrix" else None
        want = twin or numpy_soft(boxes[i], scores[i], iou_threshold=0.3, **options)
        n = int(found["num_detections"][i])
        assert n == len(want)
        np.testing.assert_allclose(found["scores"][i, :n], [score for score, _ in want], rtol=1e-5)
        assert found["labels"][i, :n].numpy().tolist() == [label for _, label in want]


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("method", ["soft", "matrix"])
def test_soft_and_matrix_of_ties_nan_and_boxes_outside(rng, method, kernel):
    """As for greedy: half on a coarse grid, NaN scores, boxes outside, inverted or infinite. Equal scores may be found
    in another order than in float64, so the scores of each class are compared, falling."""
    boxes, scores = random_cases(rng, 200, 9, 3)
    options = {"score_threshold": 0.07, "max_per_class": 9, "max_detections": 27, "kernel": kernel, "sigma": 0.3}
    found = nms.non_max_suppression(boxes, scores, method=method, iou_threshold=0.3, **options)
    for i in range(len(boxes)):
        finite = np.isfinite(boxes[i]).all(-1)
        own, known = boxes[i][finite], np.nan_to_num(scores[i][finite])
        if method == "matrix":
            want = numpy_matrix(own, known, **options)
        else:
            want = numpy_soft(own, known, iou_threshold=0.3, **options)
        n = int(found["num_detections"][i])
        assert n == len(want)
        rows = np.column_stack([found["labels"][i, :n], found["scores"][i, :n]])
        want = np.reshape([(label, score) for score, label in want], (-1, 2))
        rows, want = (x[np.lexsort((x[:, 1], x[:, 0]))] for x in (rows, want))
        np.testing.assert_array_equal(rows[:, 0], want[:, 0])
        np.testing.assert_allclose(rows[:, 1], want[:, 1], rtol=2e-5)


@pytest.mark.parametrize("method", ["soft", "matrix"])
def test_soft_and_matrix_lower_the_score_of_the_second_box(method):
    """IoU 0.75, gaussian: 0.5 * exp(-0.75^2 / 0.5) = 0.5 * exp(-1.125) = 0.1623; the box apart keeps its score."""
    found = detections([OVERLAPPING, A_BOX, APART], [[0.5], [0.75], [0.25]], method=method)
    assert found == [(0, 0.75), (0, 0.25), (0, 0.1623)]


@pytest.mark.parametrize("method", ["soft", "matrix"])
def test_soft_and_matrix_of_nothing(method):
    assert detections([A_BOX], [[0.0]], method=method) == []


# --- where it runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", nms.METHODS)
def test_static_candidates_compile_as_a_whole(rng, method):
    boxes, scores = random_cases(rng, 3, 40, 3)
    options = {"max_detections": 20, "max_per_class": 10, "method": method}
    whole = tf.function(jit_compile=True)(lambda b, s: nms.non_max_suppression(b, s, max_candidates=120, **options))(
        boxes, scores
    )
    want = nms.non_max_suppression(boxes, scores, **options)
    for key, value in want.items():
        np.testing.assert_allclose(whole[key], value, rtol=1e-5)


def test_fewer_candidates_cut_the_lowest_scores(rng):
    boxes, scores = [A_BOX, APART, OVERLAPPING], [[0.5], [0.25], [0.75]]
    assert detections(boxes, scores, max_candidates=2) == [(0, 0.75)]


@pytest.mark.parametrize("method", nms.METHODS)
def test_saved_model_with_any_batch_size(rng, tmp_path, method):
    boxes, scores = random_cases(rng, 3, 40, 3)
    options = {"max_detections": 20, "method": method, "kernel": "linear"}
    module = tf.Module()
    module.nms = tf.function(
        lambda b, s: nms.non_max_suppression(b, s, **options),
        input_signature=[tf.TensorSpec([None, 40, 4]), tf.TensorSpec([None, 40, 3])],
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for size in (2, 3):
        want = nms.non_max_suppression(boxes[:size], scores[:size], **options)
        for key, value in loaded.nms(boxes[:size], scores[:size]).items():
            np.testing.assert_array_equal(value, want[key])


def test_output_shapes_are_static():
    graph = tf.function(nms.non_max_suppression).get_concrete_function(
        tf.TensorSpec([2, 30, 4]), tf.TensorSpec([2, 30, 3]), max_detections=9
    )
    assert graph.structured_outputs["boxes"].shape == (2, 9, 4)
    assert graph.structured_outputs["labels"].shape == (2, 9)
