"""Average precision of detections, in numpy float64: Pascal VOC (2007's 11 points, or the area) and COCO.

Boxes come as flat arrays over all images, so everything is vectorised over images and classes.
"""

from dataclasses import dataclass

import numpy as np

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_RECALLS = np.linspace(0.0, 1.0, 101)
COCO_AREAS = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
COCO_MAX_DETECTIONS = 100  # an image and class


@dataclass(frozen=True)
class GroundTruth:
    """Annotated boxes of all images.

    Attributes:
        image: int [N], any number that stands for an image.
        label: int [N] in [0, C).
        boxes: float64 [N, 4] xyxy in pixels of the image.
        ignore: bool [N], VOC's "difficult" and COCO's "crowd": need not be found, and finding it is no mistake.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    ignore: np.ndarray


@dataclass(frozen=True)
class Detections:
    """Detected boxes of all images; image, label, boxes as in GroundTruth, scores float64 [N]. Equal scores keep
    the order they have here."""

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def mean_ap(values) -> float:
    """The mean over the classes that have an AP; NaN where none has."""
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


# --- Pascal VOC ---------------------------------------------------------------------------------


def voc_ap(truth, detections, num_classes, *, method="area", iou_threshold=0.5, inclusive=True, plus_one=False):
    """Average precision per class as Pascal VOC computes it.

    A detection belongs to the box of its image and class that it overlaps most. The best-scored one of those above
    the threshold is right, the others are mistakes.

    Args:
        truth: GroundTruth. detections: Detections.
        method: "area" under the precision envelope (VOC 2010 and later), or "11point" (VOC 2007).
        inclusive: whether an IoU equal to the threshold is enough (the VOC devkit), or not (detectron2).
        plus_one: boxes end with the pixel x_max, y_max, as VOC's integer corners do; else at that coordinate.
    Returns:
        float64 [C]; NaN for a class without boxes that count.
    """
    curves = voc_curves(truth, detections, num_classes, iou_threshold, inclusive, plus_one)
    average = {"area": _area_ap, "11point": _eleven_point_ap}[method]
    return np.array([average(recall, precision) if known else np.nan for recall, precision, known in curves])


def voc_curves(truth, detections, num_classes, iou_threshold=0.5, inclusive=True, plus_one=False) -> list:
    """Per class: recall and precision float64 [N] by falling score, and whether the class has boxes that count."""
    right, wrong = _voc_verdicts(truth, detections, num_classes, iou_threshold, inclusive, plus_one)
    counted = np.bincount(truth.label[~truth.ignore], minlength=num_classes)
    order = np.argsort(-detections.scores, kind="stable")
    curves = []
    for label in range(num_classes):
        own = order[detections.label[order] == label]
        tp, fp = np.cumsum(right[own]), np.cumsum(wrong[own])
        precision = tp / np.maximum(tp + fp, np.finfo(np.float64).eps)
        curves.append((tp / max(counted[label], 1), precision, counted[label] > 0))
    return curves


def _voc_verdicts(truth, detections, num_classes, iou_threshold, inclusive, plus_one):
    """bool [N], bool [N]: which detections are right, and which are wrong; those on ignored boxes are neither."""
    d, t = _pairs(detections, truth, num_classes)
    iou = _iou(detections.boxes[d], truth.boxes[t], float(plus_one))
    best = _first_best(d, iou)
    d, t, iou = d[best], t[best], iou[best]
    hit = iou >= iou_threshold if inclusive else iou > iou_threshold
    d, t = d[hit], t[hit]
    wrong = np.ones(len(detections.scores), bool)
    wrong[d[truth.ignore[t]]] = False
    d, t = d[~truth.ignore[t]], t[~truth.ignore[t]]
    first = np.lexsort((d, -detections.scores[d], t))  # by box, then score, then input order
    right = np.zeros_like(wrong)
    right[d[first[_starts(t[first])]]] = True
    return right, wrong & ~right


def _area_ap(recall, precision):
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return np.sum(np.diff(recall) * envelope[1:])


def _eleven_point_ap(recall, precision):
    best = [precision[recall >= point].max(initial=0.0) for point in np.arange(0.0, 1.1, 0.1)]
    return sum(value / 11.0 for value in best)


# --- COCO ---------------------------------------------------------------------------------------


def coco_ap(truth, detections, num_classes) -> dict:
    """COCO's twelve figures, equal to pycocotools'; a figure nothing is known about is NaN where pycocotools has -1.

    Equal scores count in the order of the image numbers.

    Returns:
        dict: ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100, ar_small, ar_medium, ar_large: float;
        per_class, per_class50: float64 [C], AP over all thresholds and at IoU 0.5.
    """
    matcher = _CocoMatcher(truth, detections, num_classes)
    figures = {name: matcher.curves(limits) for name, limits in COCO_AREAS.items()}
    precision = {name: precision for name, (precision, _) in figures.items()}  # [C, T]
    recall = {name: recall for name, (_, recall) in figures.items()}
    few = {count: matcher.curves(COCO_AREAS["all"], count)[1] for count in (1, 10)}
    sizes = ("small", "medium", "large")
    return {
        "ap": mean_ap(precision["all"]),
        "ap50": mean_ap(precision["all"][:, 0]),
        "ap75": mean_ap(precision["all"][:, 5]),
        **{f"ap_{size}": mean_ap(precision[size]) for size in sizes},
        **{f"ar{count}": mean_ap(values) for count, values in few.items()},
        "ar100": mean_ap(recall["all"]),
        **{f"ar_{size}": mean_ap(recall[size]) for size in sizes},
        "per_class": precision["all"].mean(1),
        "per_class50": precision["all"][:, 0],
    }


class _CocoMatcher:
    """Detections and boxes prepared once for all area ranges: the pairs that overlap by at least 0.5."""

    def __init__(self, truth, detections, num_classes):
        self.truth, self.num_classes = truth, num_classes
        # from here on detections are sorted by score, those of one image and class cut after the best 100
        order = np.lexsort((detections.image, -detections.scores))
        rank = _rank(_group(detections, num_classes)[order])
        order, self.rank = order[rank < COCO_MAX_DETECTIONS], rank[rank < COCO_MAX_DETECTIONS]
        self.label, boxes = detections.label[order], detections.boxes[order]
        self.area = np.prod(boxes[:, 2:] - boxes[:, :2], -1)
        self.truth_area = np.prod(truth.boxes[:, 2:] - truth.boxes[:, :2], -1)

        kept = Detections(detections.image[order], self.label, boxes, detections.scores[order])
        d, t = _pairs(kept, truth, num_classes)
        iou = _coco_iou(boxes[d], truth.boxes[t], truth.ignore[t])
        near = iou >= COCO_THRESHOLDS[0]
        d, t, iou = d[near], t[near], iou[near]
        by_rank = np.lexsort((t, d, self.rank[d]))
        self.d, self.t, self.iou = d[by_rank], t[by_rank], iou[by_rank]
        self.rounds = np.searchsorted(self.rank[self.d], np.arange(COCO_MAX_DETECTIONS + 1))

    def curves(self, limits, max_detections=COCO_MAX_DETECTIONS):
        """Mean precision over 101 recalls and final recall, float64 [C, T] each, NaN for classes without boxes."""
        low, high = limits
        ignore = self.truth.ignore | (self.truth_area < low) | (self.truth_area > high)
        found, neutral = self._match(ignore)
        neutral |= ~found & ((self.area < low) | (self.area > high))
        right, wrong = found & ~neutral, ~found & ~neutral  # [T, N]
        precision = np.full((self.num_classes, len(COCO_THRESHOLDS)), np.nan)
        recall = precision.copy()
        for label in range(self.num_classes):
            counted = np.sum((self.truth.label == label) & ~ignore)
            own = (self.label == label) & (self.rank < max_detections)
            if counted:
                curve = _coco_curve(right[:, own], wrong[:, own], counted)
                precision[label], recall[label] = curve
        return precision, recall

    def _match(self, ignore):
        """bool [T, N], bool [T, N]: detections that got a box, and those whose box is ignored.

        All images and classes take turns together: first every best detection chooses, then every second best, ...
        A detection takes the free box it overlaps most, the last of equals; ignored boxes only if there is no
        other, and crowds stay free for ever.
        """
        thresholds = np.minimum(COCO_THRESHOLDS, 1 - 1e-10)[:, None]
        free = np.ones((len(thresholds), len(ignore)), bool)
        found = np.zeros((len(thresholds), len(self.label)), bool)
        neutral = found.copy()
        for start, end in zip(self.rounds[:-1], self.rounds[1:]):
            d, t, iou = self.d[start:end], self.t[start:end], self.iou[start:end]
            possible = (free[:, t] | self.truth.ignore[t]) & (iou >= thresholds)
            for candidates in (possible & ~ignore[t], possible & ignore[t]):
                row, choice = _last_best(d, np.where(candidates & ~found[:, d], iou, -1.0))
                found[row, d[choice]], free[row, t[choice]] = True, False
                neutral[row, d[choice]] = ignore[t[choice]]
        return found, neutral


def _coco_curve(right, wrong, counted):
    """Mean precision and final recall, float64 [T] each, of verdicts bool [T, N] by falling score."""
    tp, fp = np.cumsum(right, 1, dtype=np.float64), np.cumsum(wrong, 1, dtype=np.float64)
    recall, precision = tp / counted, tp / (fp + tp + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    envelope = np.concatenate([envelope, np.zeros((len(envelope), 1))], 1)
    places = [np.searchsorted(row, COCO_RECALLS, side="left") for row in recall]
    mean = np.array([row[place].mean() for row, place in zip(envelope, places)])
    return mean, recall[:, -1] if recall.shape[1] else np.zeros(len(recall))


# --- flat arrays --------------------------------------------------------------------------------


def _group(boxes, num_classes):
    """int64 [N]: one number for each image and class."""
    return np.asarray(boxes.image, np.int64) * num_classes + boxes.label


def _pairs(detections, truth, num_classes):
    """Every detection with every box of its image and class, by detection, then box: int64 [P], int64 [P]."""
    groups = _group(truth, num_classes)
    by_group = np.argsort(groups, kind="stable")
    wanted = _group(detections, num_classes)
    start = np.searchsorted(groups[by_group], wanted, side="left")
    count = np.searchsorted(groups[by_group], wanted, side="right") - start
    d = np.repeat(np.arange(len(wanted)), count)
    within = np.arange(len(d)) - np.repeat(np.cumsum(count) - count, count)
    return d, by_group[start[d] + within]


def _starts(sorted_values):
    """Where runs of equal values begin: int64 [R]."""
    return np.flatnonzero(np.diff(sorted_values, prepend=np.nan))


def _rank(groups):
    """How many of the same group come before: int64 [N] -> int64 [N]."""
    order = np.argsort(groups, kind="stable")
    starts = _starts(groups[order])
    lengths = np.diff(starts, append=len(groups))
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, lengths)
    return rank


def _first_best(owner, values):
    """Index of the first largest value of each run of equal `owner`: int64 [P], float64 [P] -> int64 [R]."""
    order = np.lexsort((np.arange(len(values)), -values, owner))
    return order[_starts(owner[order])]


def _last_best(owner, values):
    """Row and index of the last largest value, if not negative, of each run of `owner` [P] in values [T, P]."""
    starts = _starts(owner)
    if not len(starts):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    lengths = np.diff(starts, append=len(owner))
    best = np.repeat(np.maximum.reduceat(values, starts, axis=1), lengths, axis=1)
    index = np.where((values == best) & (values >= 0), np.arange(len(owner)), -1)
    index = np.maximum.reduceat(index, starts, axis=1)
    row, run = np.nonzero(index >= 0)
    return row, index[row, run]


def _iou(a, b, extra):
    """IoU pair by pair, float64 [P, 4] xyxy each; `extra` is added to every width and height."""
    size = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra, 0.0)
    shared = np.prod(size, -1)
    union = np.prod(a[:, 2:] - a[:, :2] + extra, -1) + np.prod(b[:, 2:] - b[:, :2] + extra, -1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _coco_iou(a, b, crowd):
    """As `_iou`, in COCO's x, y, width, height arithmetic; of a crowd, the share of the detection that lies in it."""
    size_a, size_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    shared = np.minimum(size_a + a[:, :2], size_b + b[:, :2]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.prod(np.maximum(shared, 0.0), -1)
    area_a = np.prod(size_a, -1)
    union = np.where(crowd, area_a, area_a + np.prod(size_b, -1) - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
