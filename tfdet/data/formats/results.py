"""Detections in COCO's result format, and as annotations in whole pixels. Boxes are [N, 4] xyxy in pixels."""

from pathlib import PurePath

import numpy as np


def coco_image_ids(image_ids) -> list:
    """The ids that COCO's files give images: the number in "000000000139.jpg" if all are named so, else the names."""
    stems = [PurePath(name).stem for name in image_ids]
    numbered = all(stem.isascii() and stem.isdigit() for stem in stems)
    numbers = [int(stem) for stem in stems] if numbered else []
    return numbers if len(set(numbers)) == len(stems) else list(image_ids)


def coco_results(image_id, boxes, labels, scores) -> list[dict]:
    """Detections of one image as COCO's results: image_id, category_id (from 1), bbox x, y, width, height, score."""
    return [
        {"image_id": image_id, "category_id": int(label) + 1, "bbox": coco_box(box), "score": round(float(score), 6)}
        for box, label, score in zip(boxes, labels, scores)
    ]


def coco_box(box) -> list[float]:
    """xyxy -> x, y, width, height, to a thousandth of a pixel."""
    return [round(float(value), 3) for value in (*box[:2], *(box[2:] - box[:2]))]


def whole_pixels(boxes, size):
    """Rounded boxes, as many readers of annotations expect them: int [N, 4], inside the image, a pixel wide at least.

    Args:
        size: (height, width) of the image.
    """
    boxes, limits = np.asarray(boxes), np.array([size[1], size[0]])
    low = np.clip(np.rint(boxes[:, :2]).astype(int), 0, limits - 1)
    high = np.clip(np.rint(boxes[:, 2:]).astype(int), low + 1, limits)
    return np.concatenate([low, high], 1)
