"""COCO's twelve figures, by pycocotools or by faster-coco-eval, which computes the same several times faster."""

import contextlib
import io

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

try:
    import faster_coco_eval
except ImportError:  # an extra
    faster_coco_eval = None

COCO_FIGURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


def coco_ap(truth, detections, num_classes, *, fast=faster_coco_eval is not None) -> dict:
    """COCO's twelve figures; a figure nothing is known about is NaN, where pycocotools has -1.

    Args:
        truth: GroundTruth. detections: Detections.
        fast: whether faster-coco-eval computes them; default: where it is installed.
    Returns:
        dict: ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100, ar_small, ar_medium, ar_large: float;
        per_class, per_class50: float64 [C], AP over all thresholds and at IoU 0.5.
    """
    coco, coco_eval = _fast_library() if fast else (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval)
    images = [{"id": int(image)} for image in np.union1d(truth.image, detections.image)]
    with contextlib.redirect_stdout(io.StringIO()):  # they print tables
        annotated = _data_set(coco(), images, truth, num_classes, iscrowd=np.asarray(truth.ignore, int))
        found = _data_set(coco(), images, detections, num_classes, score=np.asarray(detections.scores, np.float64))
        run = coco_eval(annotated, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = np.where(run.eval["precision"] < 0, np.nan, run.eval["precision"])[:, :, :, 0, -1]  # [T, recall, C]
    return {
        **{name: float("nan" if value < 0 else value) for name, value in zip(COCO_FIGURES, run.stats)},
        "per_class": precision.mean((0, 1)),
        "per_class50": precision[0].mean(0),
    }


def _fast_library():
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _data_set(result, images, boxes, num_classes, **columns):
    """Flat arrays in the object that COCOeval takes, `result`; `columns` are added to every annotation."""
    sizes = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    names, values = list(columns), [column.tolist() for column in columns.values()]
    rows = zip(boxes.image.tolist(), boxes.label.tolist(), boxes.boxes[:, :2].tolist(), sizes.tolist(), *values)
    result.dataset = {"info": {}, "images": images, "categories": [{"id": label} for label in range(num_classes)]}
    result.dataset["annotations"] = [
        {"id": number, "image_id": image, "category_id": label, "bbox": low + size, "area": size[0] * size[1],
         "iscrowd": 0, **dict(zip(names, rest))}
        for number, (image, label, low, size, *rest) in enumerate(rows, 1)
    ]  # fmt: skip
    result.createIndex()
    return result
