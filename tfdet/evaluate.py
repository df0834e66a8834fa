"""How good a model is: VOC and COCO average precision of its detections on annotated images."""

import functools
import io
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from tfdet import metrics, schema
from tfdet.config import Config
from tfdet.data import records
from tfdet.data.formats import results
from tfdet.data.tfrecord import FRAME_BYTES
from tfdet.detectors import postprocess
from tfdet.draw import charts, sheet


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
        progress: called with the number of images after each batch.
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
        new = list(_images(batch, found))
        images += new
        if progress:
            progress(len(new))
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
    truth, detections = flat_arrays(images)
    curves = metrics.voc_curves(truth, detections, number)
    area, points = ([metrics.curve_ap(curve, method) for curve in curves] for method in ("area", "11point"))
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


def flat_arrays(images) -> tuple[metrics.GroundTruth, metrics.Detections]:
    """What `collect` gave as the arrays that metrics take; images are numbered in their order."""
    return _truth(images), _detections(images)


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


# --- pictures -----------------------------------------------------------------------------------


def save_plots(images, class_names, directory, photo, min_score: float = 0.6, count: int = 24) -> dict:
    """What the figures stand for, as three PNG files.

    Args:
        images: what `collect` gave.
        directory: an existing folder.
        photo: number of an image in `images` -> PIL.Image.
        min_score: confusion counts detections over it, and what is found by none over it is missed.
        count: of the worst mistakes of each kind on the contact sheet.
    Returns:
        dict: precision_recall, confusion, mistakes: path.
    """
    paths = {name: Path(directory) / f"{name}.png" for name in ("precision_recall", "confusion", "mistakes")}
    truth, detections = flat_arrays(images)
    curves = metrics.voc_curves(truth, detections, len(class_names))
    averages = [metrics.curve_ap(curve) for curve in curves]
    charts.save_precision_recall(paths["precision_recall"], curves, averages, class_names, min_score)
    counts = metrics.confusion(truth, detections, len(class_names), min_score)
    title = f"{len(images)} images, scores over {min_score:g}, IoU 0.5"
    charts.save_confusion(paths["confusion"], counts, class_names, title)
    wrong = metrics.wrong_detections(truth, detections, class_names, count)
    missed = metrics.misses(truth, detections, len(class_names), count, min_score)
    cell = functools.partial(_cell, images, photo)
    sections = {
        "wrong, best score first (white: annotated)": [
            cell(found, f"{class_names[found.label]} {found.score:.2f}: {found.reason}") for found in wrong
        ],
        f"missed with scores over {min_score:g}": [
            cell(box, f"{class_names[box.label]}: {box.reason}") for box in missed
        ],
    }
    sheet.contact_sheet(sections).save(paths["mistakes"])
    return {name: str(path) for name, path in paths.items()}


def _cell(images, photo, mistake, text):
    item = images[mistake.image]
    return sheet.Cell(photo(mistake.image), mistake.box, mistake.label, item["true_boxes"], (text, item["image_id"]))


def read_photo(record_set, number: int) -> Image.Image:
    """The picture of a record, the `number`-th in the order of the record set."""
    shard, offset, length = (int(value) for value in record_set.index[number])
    with tf.io.gfile.GFile(record_set.shard_paths[shard], "rb") as file:
        file.seek(offset + FRAME_BYTES - 4)  # the checksum of the payload stands behind it
        fields = records.parse(file.read(length))
    encoded = fields[schema.ENCODED].numpy()
    if record_set.store == "raw":
        height, width = fields[schema.IMAGE_SIZE].numpy().tolist()
        return Image.frombytes("RGB", (width, height), encoded)
    return Image.open(io.BytesIO(encoded)).convert("RGB")


# --- files --------------------------------------------------------------------------------------


def coco_results(images) -> list[dict]:
    """The detections of all images in COCO's result format."""
    ids = results.coco_image_ids([item["image_id"] for item in images])
    return [
        row
        for number, item in zip(ids, images)
        for row in results.coco_results(number, item["boxes"], item["labels"], item["scores"])
    ]


def coco_truth(images, class_names) -> dict:
    """The annotations of all images as a COCO data set, with the ids that `coco_results` uses."""
    ids = results.coco_image_ids([item["image_id"] for item in images])
    boxes = [
        (number, box, label, difficult)
        for number, item in zip(ids, images)
        for box, label, difficult in zip(item["true_boxes"], item["true_labels"], item["true_difficult"])
    ]
    return {
        "info": {},
        "images": [
            {"id": number, "file_name": item["image_id"], "height": item["size"][0], "width": item["size"][1]}
            for number, item in zip(ids, images)
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names, 1)],
        "annotations": [
            {"id": row, "image_id": number, "category_id": int(label) + 1, "bbox": results.coco_box(box),
             "area": round(float(np.prod(box[2:] - box[:2])), 3), "iscrowd": int(difficult)}
            for row, (number, box, label, difficult) in enumerate(boxes, 1)
        ],
    }  # fmt: skip
