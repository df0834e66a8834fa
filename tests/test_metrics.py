"""Average precision against slow twins and hand-computed cases."""

import numpy as np
import pytest

from tfdet import metrics

COCO_KEYS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


def truth_of(rows):
    """(image, label, box, ignore) rows -> GroundTruth."""
    image, label, boxes, ignore = zip(*rows) if rows else ((), (), np.zeros((0, 4)), ())
    return metrics.GroundTruth(
        np.array(image, int), np.array(label, int), np.array(boxes, float), np.array(ignore, bool)
    )


def detections_of(rows):
    """(image, label, box, score) rows -> Detections."""
    image, label, boxes, scores = zip(*rows) if rows else ((), (), np.zeros((0, 4)), ())
    return metrics.Detections(
        np.array(image, int), np.array(label, int), np.array(boxes, float), np.array(scores, float)
    )


def random_case(rng, images=12, classes=3, boxes=40, found=120, crowded=0.1):
    """Detections near the boxes and elsewhere; integer corners and few different scores, so that much ties."""
    low = rng.integers(0, 150, (boxes, 2))
    corners = np.concatenate([low, low + rng.integers(5, 130, (boxes, 2))], 1).astype(float)
    image, label = rng.integers(0, images, boxes), rng.integers(0, classes, boxes)
    truth = metrics.GroundTruth(image, label, corners, rng.random(boxes) < crowded)
    source = rng.integers(0, boxes, found)
    shift = np.tile(rng.integers(-6, 7, (found, 2)), 2) + rng.integers(-3, 4, (found, 4))
    moved = rng.random(found) < 0.2
    return truth, metrics.Detections(
        np.where(moved, rng.integers(0, images, found), image[source]),
        np.where(moved, rng.integers(0, classes, found), label[source]),
        corners[source] + shift,
        rng.integers(0, 12, found) / 12,
    )


# --- COCO ---------------------------------------------------------------------------------------


def test_coco_of_a_hand_made_case():
    # one box found with IoU 0.8 (8 x 10 of 10 x 10), one missed: right at thresholds 0.5 to 0.8, 7 of 10, and recall
    # never passes a half: 51 of the 101 recall points have precision 1
    truth = truth_of([(0, 0, [0, 0, 10, 10], False), (1, 0, [0, 0, 10, 10], False)])
    ours = metrics.coco_ap(truth, detections_of([(0, 0, [0, 0, 8, 10], 0.9)]), 1)
    assert ours["ap50"] == pytest.approx(51 / 101)
    assert ours["ap"] == pytest.approx(0.7 * 51 / 101)
    assert ours["ar100"] == pytest.approx(0.7 * 0.5)
    assert ours["ap_small"] == ours["ap"]
    assert np.isnan(ours["ap_large"])


def test_coco_does_not_count_what_lies_in_a_crowd():
    truth = truth_of([(0, 0, [0, 0, 10, 10], False), (0, 0, [20, 20, 90, 90], True)])
    found = detections_of([(0, 0, [0, 0, 10, 10], 0.5), (0, 0, [30, 30, 40, 40], 0.9), (0, 0, [50, 50, 60, 60], 0.8)])
    assert metrics.coco_ap(truth, found, 1)["ap"] == pytest.approx(1.0)


@pytest.mark.parametrize("fast", [False, True])
def test_coco_of_nothing(fast):
    if fast:
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is an extra")
    empty = metrics.coco_ap(truth_of([]), detections_of([]), 2, fast=fast)
    assert all(np.isnan(empty[key]) for key in COCO_KEYS)
    missed = metrics.coco_ap(truth_of([(0, 1, [0, 0, 50, 50], False)]), detections_of([]), 2, fast=fast)
    assert missed["ap"] == 0
    assert missed["ar100"] == 0
    assert np.isnan(missed["per_class"][0])


@pytest.mark.parametrize("seed", range(4))
def test_both_libraries_give_the_same_figures(seed):
    """Ties, crowds, classes without boxes, images without either; more than a hundred detections an image."""
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is an extra")
    case = random_case(np.random.default_rng(seed), *((2, 2, 30, 400) if seed == 3 else ()))
    slow, fast = (metrics.coco_ap(*case, 4, fast=fast) for fast in (False, True))
    for key, value in slow.items():
        np.testing.assert_allclose(fast[key], value, rtol=0, atol=1e-12, err_msg=key)


# --- VOC ----------------------------------------------------------------------------------------


def slow_voc(truth, detections, label, method):
    """VOC's procedure for one class, box by box."""
    counted = sum(1 for c, ignore in zip(truth.label, truth.ignore) if c == label and not ignore)
    if not counted:
        return np.nan
    taken, tp, fp, points = set(), 0, 0, []
    for d in np.argsort(-detections.scores, kind="stable"):
        if detections.label[d] != label:
            continue
        best, best_iou = None, -1.0
        for t in range(len(truth.label)):
            if truth.label[t] == label and truth.image[t] == detections.image[d]:
                a, b = detections.boxes[d], truth.boxes[t]
                w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                shared = max(w, 0) * max(h, 0)
                iou = shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
                if iou > best_iou:
                    best, best_iou = t, iou
        if best_iou < 0.5:
            fp += 1
        elif not truth.ignore[best]:
            tp, fp = (tp, fp + 1) if best in taken else (tp + 1, fp)
            taken.add(best)
        points.append((tp / counted, tp / (tp + fp) if tp + fp else 0.0))
    if method == "11point":
        return sum(max([p for r, p in points if r >= k], default=0) for k in np.arange(0, 1.1, 0.1)) / 11
    area, reached = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - reached) * max(p for _, p in points[i:])
        reached = recall
    return area


@pytest.mark.parametrize("method", ["area", "11point"])
@pytest.mark.parametrize("seed", range(4))
def test_voc_equals_its_twin(seed, method):
    truth, detections = random_case(np.random.default_rng(seed))
    ours = metrics.voc_ap(truth, detections, 4, method=method)
    twin = [slow_voc(truth, detections, label, method) for label in range(4)]
    np.testing.assert_allclose(ours, twin, rtol=0, atol=1e-12)


BOX, FAR = [10, 10, 50, 50], [60, 60, 90, 90]


def test_voc_by_hand():
    """Two boxes; found by the first and third of three detections: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.

    Area under the envelope: 1/2 * 1 + 1/2 * 2/3 = 5/6. Eleven points: 6 of them at 1, 5 at 2/3: (6 + 10/3) / 11.
    """
    truth = truth_of([(0, 0, BOX, False), (1, 0, FAR, False)])
    found = detections_of([(0, 0, BOX, 0.9), (0, 0, FAR, 0.8), (1, 0, FAR, 0.7)])
    assert metrics.voc_ap(truth, found, 1)[0] == pytest.approx(5 / 6)
    assert metrics.voc_ap(truth, found, 1, method="11point")[0] == pytest.approx((6 + 10 / 3) / 11)


def test_a_second_detection_of_one_box_is_a_mistake():
    truth = truth_of([(0, 0, BOX, False), (0, 0, FAR, False)])
    found = detections_of([(0, 0, BOX, 0.9), (0, 0, BOX, 0.8), (0, 0, FAR, 0.7)])
    assert metrics.voc_ap(truth, found, 1)[0] == pytest.approx(5 / 6)


def test_an_ignored_box_is_neither_missed_nor_mistaken():
    truth = truth_of([(0, 0, BOX, True), (0, 0, FAR, False)])
    found = detections_of([(0, 0, BOX, 0.9), (0, 0, BOX, 0.8), (0, 0, FAR, 0.7)])
    assert metrics.voc_ap(truth, found, 1)[0] == 1.0
    assert metrics.voc_ap(truth, detections_of([(0, 0, FAR, 0.7)]), 1)[0] == 1.0


def test_an_iou_at_the_threshold():
    truth = truth_of([(0, 0, [0, 0, 10, 10], False)])
    half = detections_of([(0, 0, [0, 0, 10, 5], 0.9)])
    assert metrics.voc_ap(truth, half, 1)[0] == 1.0
    assert metrics.voc_ap(truth, half, 1, inclusive=False)[0] == 0.0
    # with pixels that belong to the box: 11 * 6 / (11 * 11) = 0.545
    assert metrics.voc_ap(truth, half, 1, inclusive=False, plus_one=True)[0] == 1.0


def test_a_class_without_boxes_has_no_ap_and_is_left_out_of_the_mean():
    truth = truth_of([(0, 0, BOX, False), (0, 2, FAR, True)])
    found = detections_of([(0, 0, BOX, 0.9), (0, 1, FAR, 0.8)])
    ap = metrics.voc_ap(truth, found, 3)
    assert ap[0] == 1.0
    assert np.isnan(ap[1:]).all()
    assert metrics.mean_ap(ap) == 1.0


def test_nothing_at_all():
    ap = metrics.voc_ap(truth_of([]), detections_of([]), 2)
    assert np.isnan(ap).all()
    assert np.isnan(metrics.mean_ap(ap))


def test_the_order_of_images_does_not_matter(rng):
    truth, found = random_case(rng)
    found = metrics.Detections(found.image, found.label, found.boxes, rng.permutation(len(found.scores)) / 1e3)
    t, d = rng.permutation(len(truth.image)), rng.permutation(len(found.image))
    mixed_truth = metrics.GroundTruth(truth.image[t], truth.label[t], truth.boxes[t], truth.ignore[t])
    mixed = metrics.Detections(found.image[d], found.label[d], found.boxes[d], found.scores[d])
    np.testing.assert_array_equal(metrics.voc_ap(truth, found, 3), metrics.voc_ap(mixed_truth, mixed, 3))
    assert metrics.coco_ap(truth, found, 3)["ap"] == metrics.coco_ap(mixed_truth, mixed, 3)["ap"]


# --- mistakes -----------------------------------------------------------------------------------


def test_confusion_by_hand():
    """Image 0: a box of class 0 found as 1 and, worse placed, as 0; a difficult one of class 1 found as 1 and as 0.
    Image 1: a box of class 1 missed, since what overlaps it scores too little."""
    truth = truth_of([(0, 0, BOX, False), (0, 1, FAR, True), (1, 1, BOX, False)])
    found = detections_of(
        [(0, 1, BOX, 0.6), (0, 0, [10, 10, 50, 45], 0.9), (0, 1, FAR, 0.7), (0, 0, FAR, 0.8), (1, 1, BOX, 0.5)]
    )
    want = [[0, 1, 0], [0, 0, 1], [2, 0, 0]]
    np.testing.assert_array_equal(metrics.confusion(truth, found, 2, min_score=0.5), want)
    want = [[0, 1, 0], [0, 1, 0], [2, 0, 0]]
    np.testing.assert_array_equal(metrics.confusion(truth, found, 2, min_score=0.4), want)
    np.testing.assert_array_equal(metrics.confusion(truth, found, 2, min_score=0.95), [[0, 0, 1], [0, 0, 1], [0, 0, 0]])
    assert not metrics.confusion(truth_of([]), detections_of([]), 2).any()


@pytest.mark.parametrize("seed", range(3))
def test_confusion_counts_every_box_and_every_detection_once(seed):
    truth, found = random_case(np.random.default_rng(seed), crowded=0.0)
    counts = metrics.confusion(truth, found, 3, min_score=0.25)
    np.testing.assert_array_equal(counts[:-1].sum(1), np.bincount(truth.label, minlength=3))
    np.testing.assert_array_equal(counts[:, :-1].sum(0), np.bincount(found.label[found.scores > 0.25], minlength=3))


def test_wrong_detections_and_why():
    truth = truth_of([(0, 0, BOX, False), (0, 1, FAR, False), (1, 0, BOX, True)])
    third = [10, 10, 50, 23]  # 13 of 40 pixels high: IoU 0.325
    rows = [(0, 0, BOX, 0.9), (0, 0, BOX, 0.8), (0, 0, FAR, 0.7), (0, 0, third, 0.6), (1, 1, FAR, 0.5), (1, 0, BOX, 1)]
    wrong = metrics.wrong_detections(truth, detections_of(rows), ("cat", "dog"), count=10)
    assert [(m.image, m.label, m.score, m.reason) for m in wrong] == [
        (0, 0, 0.8, "again"), (0, 0, 0.7, "is dog"), (0, 0, 0.6, "IoU 0.33"), (1, 1, 0.5, "nothing there"),
    ]  # fmt: skip
    assert [m.score for m in metrics.wrong_detections(truth, detections_of(rows), ("cat", "dog"), count=1)] == [0.8]


def test_misses_the_worst_first():
    """Not found at all, the larger first; then found with 0.2; not the difficult one, nor what was found with 0.7."""
    truth = truth_of(
        [(0, 0, BOX, False), (0, 0, FAR, True), (1, 0, FAR, False), (2, 0, BOX, False), (3, 1, BOX, False)]
    )
    found = detections_of([(0, 0, BOX, 0.2), (2, 0, BOX, 0.7), (3, 0, BOX, 0.9)])
    missed = metrics.misses(truth, found, 2, count=10, min_score=0.5)
    assert [(m.image, m.reason) for m in missed] == [(3, "not found"), (1, "not found"), (0, "found with 0.20")]
    assert [m.image for m in metrics.misses(truth, found, 2, count=1)] == [3]
    assert np.isnan(missed[0].score)
    assert missed[2].score == 0.2
