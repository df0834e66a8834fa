"""Images with boxes for looking at: annotated on the left, detected on the right."""

import numpy as np
import tensorflow as tf
from PIL import Image

from tfdet import schema
from tfdet.config import Config
from tfdet.detectors import postprocess
from tfdet.draw import draw_boxes

_SEAM = 4  # pixels between the two


class Samples:
    """The first images of a data set, drawn whenever asked with what a model detects on them.

    Args:
        dataset: batches as `pipeline.eval_dataset` gives them.
        detector: see detectors/base.py. config: Config with class_names. count: images. min_score: of what is drawn.
    """

    def __init__(self, dataset, detector, config: Config, count=4, min_score=0.3):
        self._dataset, self._detector, self._config = dataset, detector, config
        self._count, self._min_score, self._rows = count, min_score, None

    def draw(self, model):
        """uint8 [N, H, W, 3], each image twice, side by side; rows that fill up a batch and padding are not drawn."""
        if self._rows is None:  # read once
            self._rows = list(self._first())
        images = np.stack([row[schema.IMAGE] for row in self._rows])
        size = np.tile(images.shape[1:3], (len(images), 1))  # as if the network's input were the photo
        predictions = model(tf.constant(images), training=False)
        found = postprocess.detect(
            self._detector, self._config, predictions, size, score_threshold=self._min_score, compiled=False
        )
        found = {key: value.numpy() for key, value in found.items()}
        return np.stack([self._draw(row, found, number) for number, row in enumerate(self._rows)])

    def _first(self):
        left = self._count
        for batch in self._dataset:
            for row in np.flatnonzero(batch[schema.IMAGE_ID].numpy() != b"")[:left]:
                left -= 1
                yield {key: batch[key][row].numpy() for key in (schema.IMAGE, schema.BOXES, schema.LABELS)}
            if not left:
                return

    def _draw(self, row, found, number):
        image = row[schema.IMAGE]
        real = row[schema.LABELS] != schema.BACKGROUND
        count = found[schema.NUM_DETECTIONS][number]
        boxes, labels, scores = (found[key][number, :count] for key in (schema.BOXES, schema.LABELS, schema.SCORES))
        left = self._with_boxes(image, row[schema.BOXES][real], row[schema.LABELS][real])
        right = self._with_boxes(image, boxes, labels, scores)
        return np.concatenate([left, np.full_like(left[:, :_SEAM], 255), right], axis=1)

    def _with_boxes(self, image, boxes, labels, scores=None):
        pixels = np.tile(image.shape[1::-1], 2)
        return np.asarray(draw_boxes(Image.fromarray(image), boxes * pixels, labels, self._config.class_names, scores))
