"""How good a model is: VOC and COCO average precision of its detections on annotated images."""

import functools

import numpy as np
import tensorflow as tf

from tfdet import metrics, schema
from tfdet.config import Config
from tfdet.detectors import postprocess


def evaluate(model, detector, dataset, config: Config, class_names, progress=None) -> dict:
    """Detects on every image of a data set and compares with its boxes, in pixels of the photos.

    A difficult box (VOC; COCO's crowd) need not be found, and finding it as its class is no mistake. Every annotated
    box counts, however small it is at the network's size. Rows without an image_id fill up a batch and padding fills
    up the boxes; neither counts.

    Args:
        model: images uint8 [B, H, W, 3] -> predictions.
        dataset: batches with image, image_id, image_size, true_boxes, true_labels, true_difficult, as
            `pipeline.eval_dataset` gives.
        class_names: C names.
        progress: called with the number of rows after each batch.
    Returns:
        dict: map50 (VOC, area), map50_voc07 (VOC 2007, 11 points), coco_ap, coco_ap50, coco_ap75: float, NaN where
        nothing is annotated; per_class: {name: {ap50, ap50_voc07, coco_ap, boxes, detections}}; num_images: int;
        coco: all figures of `metrics.coco_ap`; detections: what `collect` gives for each image.
    """
    images = collect(model, detector, dataset, config, progress)
    return summarise(images, class_names) | {"detections": images}


def collect(model, detector, dataset, config: Config, progress=None) -> list[dict]:
    """Detections and annotations of every image, in the order of the data set.

    Returns:
        list of dicts: image_id str, size (height, width), boxes [N, 4] in pixels, scores [N], labels [N],
        and true_boxes [M, 4] in pixels, true_labels [M], true_difficult [M] without padding.
    """
    detect, images = _detector_function(model, detector, config), []
    for batch in dataset:
        found = detect(batch[schema.IMAGE], batch[schema.IMAGE_SIZE])
        images += _images(batch, found)
        if progress:
            progress(len(batch[schema.IMAGE_ID]))
    return images


@functools.lru_cache(maxsize=1)  # evaluated after every epoch, traced once
def _detector_function(model, detector, config):
    return tf.function(
        lambda images, size: postprocess.detect(detector, config, model(images, training=False), size), autograph=False
    )


def _images(batch, found):
    """One dict for each row of a batch that is an image."""
    batch = {key: value.numpy() for key, value in batch.items() if key != schema.IMAGE}
    found = {key: value.numpy() for key, value in found.items()}
    for row in np.flatnonzero(batch[schema.IMAGE_ID] != b""):
        size, count = batch[schema.IMAGE_SIZE][row], found[schema.NUM_DETECTIONS][row]
        real = batch[schema.TRUE_LABELS][row] != schema.BACKGROUND
        pixels = np.tile(size[::-1], 2).astype(np.float64)
        yield {
            "image_id": batch[schema.IMAGE_ID][row].decode(),
            "size": tuple(size.tolist()),
            "boxes": found[schema.BOXES][row, :count] * pixels,
            "scores": found[schema.SCORES][row, :count],
            "labels": found[schema.LABELS][row, :count],
            "true_boxes": batch[schema.TRUE_BOXES][row, real] * pixels,
            "true_labels": batch[schema.TRUE_LABELS][row, real],
            "true_difficult": batch[schema.TRUE_DIFFICULT][row, real],
        }


def summarise(images, class_names) -> dict:
    """The figures of `evaluate` for what `collect` gave."""
    number = len(class_names)
    truth, detections = _truth(images), _detections(images)
    area = metrics.voc_ap(truth, detections, number, method="area")
    points = metrics.voc_ap(truth, detections, number, method="11point")
    coco = metrics.coco_ap(truth, detections, number)
    boxes = np.bincount(truth.label[~truth.ignore], minlength=number)
    found = np.bincount(detections.label, minlength=number)
    columns = zip(class_names, area, points, coco.pop("per_class"), boxes, found)
    coco.pop("per_class50")
    return {
        "map50": metrics.mean_ap(area),
        "map50_voc07": metrics.mean_ap(points),
        "coco_ap": coco["ap"],
        "coco_ap50": coco["ap50"],
        "coco_ap75": coco["ap75"],
        "coco": coco,
        "per_class": {
            name: {"ap50": float(a), "ap50_voc07": float(p), "coco_ap": float(c), "boxes": int(b), "detections": int(d)}
            for name, a, p, c, b, d in columns
        },
        "num_images": len(images),
    }


def _detections(images):
    image = np.repeat(np.arange(len(images)), [len(item["labels"]) for item in images])
    labels, boxes, scores = (_joined(images, key, width) for key, width in (("labels", 0), ("boxes", 4), ("scores", 0)))
    return metrics.Detections(image, labels.astype(np.int64), boxes, scores)


def _truth(images):
    image = np.repeat(np.arange(len(images)), [len(item["true_labels"]) for item in images])
    labels, difficult = (_joined(images, key, 0) for key in ("true_labels", "true_difficult"))
    boxes = _joined(images, "true_boxes", 4)
    return metrics.GroundTruth(image, labels.astype(np.int64), boxes, difficult.astype(bool))


def _joined(images, key, width):
    empty = np.zeros((0, width) if width else 0)
    return np.concatenate([empty, *(item[key] for item in images)]).astype(np.float64)


# --- files --------------------------------------------------------------------------------------


def coco_results(images) -> list[dict]:
    """Detections as COCO's result format has them: image_id, category_id (from 1), bbox x, y, width, height, score."""
    return [
        {
            "image_id": item["image_id"],
            "category_id": int(label) + 1,
            "bbox": [round(float(v), 3) for v in (*box[:2], *(box[2:] - box[:2]))],
            "score": round(float(score), 6),
        }
        for item in images
        for box, label, score in zip(item["boxes"], item["labels"], item["scores"])
    ]
