"""Average precision of detections, in float64: Pascal VOC (2007's 11 points, or the area), and COCO by pycocotools.

Boxes come as flat arrays over all images, so VOC's is vectorised over images and classes.
"""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_FIGURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


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
    """COCO's twelve figures as pycocotools computes them; a figure nothing is known about is NaN, where it has -1.

    Returns:
        dict: ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100, ar_small, ar_medium, ar_large: float;
        per_class, per_class50: float64 [C], AP over all thresholds and at IoU 0.5.
    """
    images = [{"id": int(image)} for image in np.union1d(truth.image, detections.image)]
    annotated = _coco_set(images, truth, num_classes, iscrowd=np.asarray(truth.ignore, int))
    found = _coco_set(images, detections, num_classes, score=np.asarray(detections.scores, np.float64))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables
        run = COCOeval(annotated, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = np.where(run.eval["precision"] < 0, np.nan, run.eval["precision"])[:, :, :, 0, -1]  # [T, recall, C]
    return {
        **{name: float("nan" if value < 0 else value) for name, value in zip(COCO_FIGURES, run.stats)},
        "per_class": precision.mean((0, 1)),
        "per_class50": precision[0].mean(0),
    }


def _coco_set(images, boxes, num_classes, **columns):
    """Flat arrays as the data set object that COCOeval takes; `columns` are added to every annotation."""
    sizes = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    names, values = list(columns), [column.tolist() for column in columns.values()]
    rows = zip(boxes.image.tolist(), boxes.label.tolist(), boxes.boxes[:, :2].tolist(), sizes.tolist(), *values)
    result = COCO()
    result.dataset = {"info": {}, "images": images, "categories": [{"id": label} for label in range(num_classes)]}
    result.dataset["annotations"] = [
        {"id": number, "image_id": image, "category_id": label, "bbox": low + size, "area": size[0] * size[1],
         "iscrowd": 0, **dict(zip(names, rest))}
        for number, (image, label, low, size, *rest) in enumerate(rows, 1)
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        result.createIndex()
    return result


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


def _first_best(owner, values):
    """Index of the first largest value of each run of equal `owner`: int64 [P], float64 [P] -> int64 [R]."""
    order = np.lexsort((np.arange(len(values)), -values, owner))
    return order[_starts(owner[order])]


def _iou(a, b, extra):
    """IoU pair by pair, float64 [P, 4] xyxy each; `extra` is added to every width and height."""
    size = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra, 0.0)
    shared = np.prod(size, -1)
    union = np.prod(a[:, 2:] - a[:, :2] + extra, -1) + np.prod(b[:, 2:] - b[:, :2] + extra, -1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
