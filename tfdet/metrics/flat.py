"""Boxes of all images as flat arrays, and which of them belong together."""

from dataclasses import dataclass

import numpy as np


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


def pair_up(detection_groups, truth_groups):
    """Every detection with every annotated box of its group, by detection, then box.

    Args:
        detection_groups: int [N], truth_groups: int [M], e.g. the number of the image.
    Returns:
        int64 [P], int64 [P]: rows of the detections and of the annotated boxes.
    """
    by_group = np.argsort(truth_groups, kind="stable")
    sorted_groups = np.asarray(truth_groups)[by_group]
    start = np.searchsorted(sorted_groups, detection_groups, side="left")
    count = np.searchsorted(sorted_groups, detection_groups, side="right") - start
    d = np.repeat(np.arange(len(detection_groups)), count)
    within = np.arange(len(d)) - np.repeat(np.cumsum(count) - count, count)
    return d, by_group[start[d] + within]


def starts(sorted_values):
    """Where runs of equal values begin: int64 [R]."""
    return np.flatnonzero(np.diff(sorted_values, prepend=np.nan))


def first_best(owner, values):
    """Index of the first largest value of each run of equal `owner`: int64 [P], float64 [P] -> int64 [R]."""
    order = np.lexsort((np.arange(len(values)), -values, owner))
    return order[starts(owner[order])]


def iou(a, b, extra=0.0):
    """IoU pair by pair, float64 [P, 4] xyxy each; `extra` is added to every width and height."""
    size = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra, 0.0)
    shared = np.prod(size, -1)
    union = np.prod(a[:, 2:] - a[:, :2] + extra, -1) + np.prod(b[:, 2:] - b[:, :2] + extra, -1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
