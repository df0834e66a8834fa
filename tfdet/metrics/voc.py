"""Pascal VOC's average precision, vectorised over images and classes."""

from typing import NamedTuple

import numpy as np

from tfdet.metrics.flat import first_best, iou, pair_up, starts


def mean_ap(values) -> float:
    """The mean over the classes that have an AP; NaN where none has."""
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


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
    return np.array([curve_ap(curve, method) for curve in curves])


class Curve(NamedTuple):
    """Precision and recall of one class, by falling score.

    Attributes:
        recall, precision, scores: float64 [N], one for each detection of the class.
        known: whether the class has boxes that count.
    """

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray
    known: bool


def voc_curves(truth, detections, num_classes, iou_threshold=0.5, inclusive=True, plus_one=False) -> list[Curve]:
    """The curve of every class; arguments as `voc_ap`."""
    right, wrong, _ = verdicts(truth, detections, num_classes, iou_threshold, inclusive, plus_one)
    counted = np.bincount(truth.label[~truth.ignore], minlength=num_classes)
    order = np.argsort(-detections.scores, kind="stable")
    curves = []
    for label in range(num_classes):
        own = order[detections.label[order] == label]
        tp, fp = np.cumsum(right[own]), np.cumsum(wrong[own])
        precision = tp / np.maximum(tp + fp, np.finfo(np.float64).eps)
        recall = tp / max(counted[label], 1)
        curves.append(Curve(recall, precision, detections.scores[own], bool(counted[label] > 0)))
    return curves


def curve_ap(curve, method="area") -> float:
    """The average precision of one Curve, NaN where it is not known; `method` as `voc_ap`."""
    average = {"area": _area_ap, "11point": _eleven_point_ap}[method]
    return float(average(curve.recall, curve.precision)) if curve.known else float("nan")


def verdicts(truth, detections, num_classes, iou_threshold=0.5, inclusive=True, plus_one=False):
    """What each detection is worth by VOC's rule.

    Returns:
        bool [N], bool [N]: which are right, and which are wrong; those on ignored boxes are neither. int64 [N]: the
        annotated box that it belongs to, right or not; -1: none.
    """
    d, t = pair_up(_group(detections, num_classes), _group(truth, num_classes))
    overlap = iou(detections.boxes[d], truth.boxes[t], float(plus_one))
    best = first_best(d, overlap)
    d, t, overlap = d[best], t[best], overlap[best]
    hit = overlap >= iou_threshold if inclusive else overlap > iou_threshold
    d, t = d[hit], t[hit]
    owner = np.full(len(detections.scores), -1)
    owner[d] = t
    wrong = np.ones(len(owner), bool)
    wrong[d[truth.ignore[t]]] = False
    d, t = d[~truth.ignore[t]], t[~truth.ignore[t]]
    first = np.lexsort((d, -detections.scores[d], t))  # by box, then score, then input order
    right = np.zeros_like(wrong)
    right[d[first[starts(t[first])]]] = True
    return right, wrong & ~right, owner


def _area_ap(recall, precision):
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return np.sum(np.diff(recall) * envelope[1:])


def _eleven_point_ap(recall, precision):
    best = [precision[recall >= point].max(initial=0.0) for point in np.arange(0.0, 1.1, 0.1)]
    return sum(value / 11.0 for value in best)


def _group(boxes, num_classes):
    """int64 [N]: one number for each image and class."""
    return np.asarray(boxes.image, np.int64) * num_classes + boxes.label
