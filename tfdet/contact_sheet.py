"""A picture of what training sees: augmented images with their boxes and the anchors that learn them."""

import math
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw

from tfdet import detectors, schema
from tfdet.config import Config
from tfdet.data import pipeline
from tfdet.data.records import RecordSet
from tfdet.draw import class_colour, draw_boxes

TILE = 416  # pixels of the longer side of one image on the sheet
GAP = 8
THICK = 4


def augmented_sheet(record_set: RecordSet, config: Config, num_images: int = 16) -> Image.Image:
    """The first images of training, as the model gets them.

    Thick: boxes with their class names, gray where they are ignored. Thin: every anchor whose target is an object, in
    the colour of its class. Padding is not drawn, nor are rows that only fill up a batch.

    Args:
        record_set: a split; config: as training has it, with the class names of the split.
        num_images: tiles on the sheet; fewer where the split has fewer.
    Returns:
        RGB; tiles in rows of about as many as there are rows.
    """
    detector = detectors.build(config.detector, config.num_classes)
    dataset = pipeline.train_dataset(record_set, config, detector.encode)
    number = min(num_images, record_set.num_images)
    rows = (row for batch in dataset.as_numpy_iterator() for row in _rows(batch))
    return _arrange([_tile(row, _anchors(detector, row), config.class_names) for row in islice(rows, number)])


def _rows(batch):
    """The images of a batch, each a dict, without those that fill it up."""
    for i, image_id in enumerate(batch[schema.IMAGE_ID]):
        if image_id:
            yield {key: value[i] for key, value in batch.items()}


def _anchors(detector, row):
    """float32 [A, 4] xyxy, relative: the anchors that belong to an image of this size."""
    if hasattr(detector, "at"):  # trained at several sizes
        detector = detector.at(row[schema.IMAGE].shape[:2])
    centre, side = np.split(np.asarray(detector.anchors), 2, axis=-1)
    return np.concatenate([centre - side / 2, centre + side / 2], -1)


def _tile(row, anchors, class_names):
    """One image with its anchors, then its boxes on top, TILE pixels long."""
    image = Image.fromarray(row[schema.IMAGE])
    scale = TILE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    to_pixels = np.tile(image.size, 2)
    canvas = ImageDraw.Draw(image)
    for k in np.flatnonzero(row[schema.TARGET_LABELS] >= 0):
        canvas.rectangle(tuple(anchors[k] * to_pixels), outline=_pale(int(row[schema.TARGET_LABELS][k])))
    shown = row[schema.LABELS] != schema.BACKGROUND
    boxes, labels = row[schema.BOXES][shown] * to_pixels, row[schema.LABELS][shown]
    for box, label in zip(boxes, labels):
        colour = class_colour(int(label)) if label >= 0 else (128, 128, 128)
        canvas.rectangle(tuple(np.round(box)), outline=colour, width=THICK)
    return draw_boxes(image, boxes, labels, class_names)


def _pale(label):
    """The colour of a class, half-way to white: anchors are many, and the boxes must stand out."""
    return tuple((part + 255) // 2 for part in class_colour(label))


def _arrange(tiles):
    """Tiles of one size or several on a sheet, left to right, top to bottom."""
    columns = math.ceil(math.sqrt(len(tiles)))
    width, height = (max(tile.size[axis] for tile in tiles) + GAP for axis in (0, 1))
    sheet = Image.new("RGB", (columns * width + GAP, math.ceil(len(tiles) / columns) * height + GAP), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (GAP + number % columns * width, GAP + number // columns * height))
    return sheet
