"""What a detector does wrong: the confusion of classes, and its worst mistakes one by one."""

from dataclasses import dataclass

import numpy as np

from tfdet.metrics.flat import iou, pair_up
from tfdet.metrics.voc import verdicts


@dataclass(frozen=True)
class Mistake:
    """A detection that is wrong, or an annotated box that was missed.

    Attributes:
        image, label: as in GroundTruth.
        box: float64 [4] xyxy in pixels.
        score: of the detection; NaN for a box that nothing found.
        reason: in a few words.
    """

    image: int
    label: int
    box: np.ndarray
    score: float
    reason: str


def confusion(truth, detections, num_classes, min_score=0.0, iou_threshold=0.5):
    """How often each class was taken for each other one.

    Detections whose score exceeds `min_score` and annotated boxes of an image are paired one to one whatever their
    class, the largest overlap first, equal ones by score. A detection left over that overlaps an ignored box of its
    class does not count.

    Returns:
        int64 [C + 1, C + 1]: rows the annotated class, columns the detected one; the last row counts detections
        where nothing is annotated, the last column boxes that were missed.
    """
    rows = np.flatnonzero(detections.scores > min_score)
    rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
    d, t = pair_up(detections.image[rows], truth.image)
    overlap = iou(detections.boxes[rows[d]], truth.boxes[t])
    near = overlap >= iou_threshold
    d, t, overlap = rows[d[near]], t[near], overlap[near]
    order = np.argsort(-overlap, kind="stable")  # pairs come by falling score
    paired = _one_to_one(d[order], t[order], ~truth.ignore[t[order]])
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(counts, (truth.label[paired[:, 1]], detections.label[paired[:, 0]]), 1)
    excused = d[truth.ignore[t] & (truth.label[t] == detections.label[d])]
    left = np.setdiff1d(np.setdiff1d(rows, paired[:, 0]), excused)
    missed = np.setdiff1d(np.flatnonzero(~truth.ignore), paired[:, 1])
    counts[-1, :-1] = np.bincount(detections.label[left], minlength=num_classes)
    counts[:-1, -1] = np.bincount(truth.label[missed], minlength=num_classes)
    return counts


def _one_to_one(d, t, usable):
    """The pairs (d, t) that greedy pairing in the given order keeps: int64 [P, 2]."""
    used_d, used_t, kept = set(), set(), []
    for pair in zip(d[usable].tolist(), t[usable].tolist()):
        if pair[0] not in used_d and pair[1] not in used_t:
            used_d.add(pair[0])
            used_t.add(pair[1])
            kept.append(pair)
    return np.array(kept, np.int64).reshape(-1, 2)


def wrong_detections(truth, detections, class_names, count, iou_threshold=0.5) -> list[Mistake]:
    """The `count` best-scored wrong detections by VOC's rule, best score first.

    The reason is the first that holds: "again" where a better-scored detection has that box, "is NAME" where it
    overlaps a box of another class, "IoU 0.42" where it overlaps one of its class too little, else "nothing there".
    """
    _, wrong, _ = verdicts(truth, detections, len(class_names), iou_threshold)
    rows = np.flatnonzero(wrong)
    rows = rows[np.argsort(-detections.scores[rows], kind="stable")][:count]
    return [
        Mistake(int(detections.image[row]), int(detections.label[row]), detections.boxes[row],
                float(detections.scores[row]), _why_wrong(truth, detections, row, class_names, iou_threshold))
        for row in rows
    ]  # fmt: skip


def _why_wrong(truth, detections, row, class_names, iou_threshold):
    there = np.flatnonzero(truth.image == detections.image[row])
    overlap = iou(np.broadcast_to(detections.boxes[row], (len(there), 4)), truth.boxes[there])
    own = truth.label[there] == detections.label[row]
    best_own, best_other = overlap[own].max(initial=0.0), overlap[~own].max(initial=0.0)
    if best_own >= iou_threshold:
        return "again"
    if best_other >= iou_threshold:
        return f"is {class_names[truth.label[there[~own]][overlap[~own].argmax()]]}"
    return f"IoU {best_own:.2f}" if best_own > 0.1 else "nothing there"


def misses(truth, detections, num_classes, count, min_score=0.0, iou_threshold=0.5) -> list[Mistake]:
    """The `count` worst of the boxes that no right detection with a score over `min_score` found.

    Those that none found at all come first, then by rising score; of equal ones the largest first.
    """
    right, _, owner = verdicts(truth, detections, num_classes, iou_threshold)
    found = np.full(len(truth.image), -np.inf)
    found[owner[right]] = detections.scores[right]
    area = np.prod(truth.boxes[:, 2:] - truth.boxes[:, :2], -1)
    rows = np.flatnonzero(~truth.ignore & (found <= min_score))
    rows = rows[np.lexsort((-area[rows], found[rows]))][:count]
    return [
        Mistake(int(truth.image[row]), int(truth.label[row]), truth.boxes[row], *_how_found(float(found[row])))
        for row in rows
    ]


def _how_found(score):
    return (score, f"found with {score:.2f}") if np.isfinite(score) else (float("nan"), "not found")
