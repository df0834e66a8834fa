"""Detections in image files: `predict.load("runs/mine").predict(["a.jpg"])`."""

import collections
import io
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import tensorflow as tf
from PIL import Image

from tfdet import schema
from tfdet.config import Config, ConfigError
from tfdet.data import embedded
from tfdet.data.annotations import Annotation
from tfdet.data.errors import ImageError
from tfdet.data.formats.results import whole_pixels
from tfdet.data.images import read_image
from tfdet.data.inputs import Photo, find_images, listed
from tfdet.data.pipeline import image_dataset
from tfdet.detectors import postprocess, runs
from tfdet.detectors.ssd import detection_rows
from tfdet.draw import draw_boxes

__all__ = ["Photo", "Prediction", "Predictor", "find_images", "load"]

_READERS, _AHEAD = max(4, os.cpu_count() or 1), 64  # threads that read image files, and how many files ahead


@dataclass(frozen=True)
class Prediction:
    """What was found in one image, best first.

    Attributes:
        path: the file; an image inside of a record file as `data.embedded` names it.
        name: the same, or the image's id in its record.
        size: (height, width) in pixels, upright.
        boxes: float32 [N, 4] xyxy in pixels of the upright image, inside it.
        scores: float32 [N]. labels: int32 [N]. names: the class of each box.
        encoded: the upright JPEG, where `Predictor.stream` was asked to keep it.
    """

    path: str
    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    encoded: bytes | None = field(default=None, repr=False)

    def to_dict(self) -> dict:
        """As JSON has it: file, image_id (in records), height, width, and a list of {class, label, score, box} with
        corners in pixels."""
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist())
        found = [
            {"class": name, "label": label, "score": round(score, 4), "box": [round(v, 2) for v in box]}
            for name, label, score, box in rows
        ]
        place = {"file": str(embedded.file_of(self.path))}
        if embedded.is_embedded(self.path):
            place["image_id"] = self.name
        return {**place, "height": self.size[0], "width": self.size[1], "detections": found}

    def to_rows(self) -> np.ndarray:
        """As rykov8's `detection_out` has it: float32 [N, 6] label (from 1), score, x_min, y_min, x_max, y_max, the
        corners relative to the image."""
        boxes = self.boxes / np.tile(np.float32(self.size[::-1]), 2)
        columns = {schema.LABELS: self.labels, schema.SCORES: self.scores, schema.BOXES: boxes}
        return detection_rows({key: value[None] for key, value in columns.items()})[0]

    def to_annotation(self, image_path, image_id) -> Annotation:
        """As if someone had drawn the boxes, in whole pixels."""
        boxes = whole_pixels(self.boxes, self.size) / np.tile(self.size[::-1], 2)
        difficult = np.zeros(len(boxes), bool)
        return Annotation(str(image_path), str(image_id), boxes.astype(np.float32), self.labels, difficult)


def load(run, weights=None, *, nms=None, max_detections=None, batch_size=None) -> "Predictor":
    """The detector of a run folder.

    Args:
        weights: a file; default: best.h5 of the run if it is there, else weights.h5.
        nms: "hard", "soft" or "matrix", see `tfdet.nms`, or a dict of the fields of NmsConfig to change;
            max_detections: of an image; batch_size: images that the model sees together; None: as the run was trained.
    Raises:
        ConfigError, WeightsError: see `detectors.runs.load`.
    """
    config, detector, model = runs.load(run, weights)
    limits = config.detector.nms
    if nms is not None:
        limits = replace(limits, **({"method": nms} if isinstance(nms, str) else nms))
    if max_detections is not None:
        limits = replace(limits, max_detections=max_detections, max_per_class=max(max_detections, limits.max_per_class))
    config = replace(config, detector=replace(config.detector, nms=limits))
    if batch_size is not None:
        config = replace(config, train=replace(config.train, batch_size=batch_size))
    return Predictor(config, detector, model)


class Predictor:
    """A model with all that it takes to use it on files.

    Args:
        config: Config with class_names. detector: see detectors/base.py. model: images -> predictions.
    """

    def __init__(self, config: Config, detector, model):
        self.config, self.class_names = config, config.class_names
        self._detector, self._model = detector, model
        self._detect = tf.function(self._detect_batch, autograph=False)

    def predict(self, inputs, min_score: float = 0.6, classes=None) -> list[Prediction]:
        """Detections whose score exceeds `min_score` in each of the images that `inputs` stand for.

        Args:
            inputs: paths of files, folders, patterns, record files, see `find_images`; or a single one.
            classes: names of the classes to look for; None: all.
        Raises:
            ImageError: an input that stands for nothing, or an image that cannot be read; `stream` goes on behind it.
            ConfigError: a class that the run does not have.
        """
        photos = [photo for item in listed(inputs) for photo in find_images(item)]
        return list(self.stream(photos, min_score, classes=classes))

    def stream(self, photos, min_score: float = 0.6, skip=None, classes=None, keep_images: bool = False):
        """Yields the Prediction of one image after the other, in their order.

        Args:
            photos: paths, or what `find_images` gives.
            skip: called with the ImageError of each image that cannot be read, which is then left out; None: raise.
            keep_images: hand the JPEGs on in the predictions.
        """
        photos = [photo if isinstance(photo, Photo) else Photo(str(photo), str(photo)) for photo in photos]
        labels = self._labels(classes)
        if not photos:
            return
        rows = min(self.config.train.batch_size, len(photos))
        config = replace(self.config, train=replace(self.config.train, batch_size=rows))
        problems, kept = [], {} if keep_images else None
        # an exception would cross tf.data as one of TensorFlow's
        encoded = _read_all(photos, kept, skip or problems.append, stop_at_error=skip is None)
        for batch in image_dataset(encoded, config):
            found = self.detect(batch[schema.IMAGE], batch[schema.IMAGE_SIZE], min_score, labels)
            yield from self._predictions(photos, kept, batch, found)
        if problems and skip is None:
            raise problems[0]

    def draw(self, prediction: Prediction) -> Image.Image:
        """The image, upright, with the boxes."""
        image = Image.open(io.BytesIO(prediction.encoded or read_image(prediction.path).encoded))
        return draw_boxes(image, prediction.boxes, prediction.labels, self.class_names, prediction.scores)

    def detect(self, images, image_size, min_score: float = 0.6, labels=None) -> dict:
        """The detections of a batch that is in memory.

        Args:
            images: uint8 [B, H, W, 3], as large as the network's input.
            image_size: int32 [B, 2] height, width of the photos that they show.
            labels: int32 [N] to look for; None: all.
        Returns:
            see `detectors.postprocess.detect`.
        """
        return self._detect(images, image_size, tf.constant(min_score, tf.float32), labels)

    def _labels(self, classes):
        """int32 [N] labels of the named classes, None for all."""
        if classes is None:
            return None
        unknown = [name for name in classes if name not in self.class_names]
        if unknown:
            raise ConfigError(f"there is no class {unknown[0]!r}; the run has {', '.join(self.class_names)}")
        return tf.constant([self.class_names.index(name) for name in classes], tf.int32)

    def _detect_batch(self, images, image_size, min_score, labels):
        predictions = self._model(images, training=False)
        return postprocess.detect(self._detector, self.config, predictions, image_size, min_score, labels)

    def _predictions(self, photos, kept, batch, found):
        found = {key: value.numpy() for key, value in found.items()}
        ids, sizes = batch[schema.IMAGE_ID].numpy(), batch[schema.IMAGE_SIZE].numpy()
        for row in np.flatnonzero(ids != b""):
            number, n = int(ids[row]), found[schema.NUM_DETECTIONS][row]
            boxes = found[schema.BOXES][row, :n] * np.tile(sizes[row][::-1], 2).astype(np.float32)
            labels = found[schema.LABELS][row, :n]
            names = tuple(self.class_names[label] for label in labels)
            encoded = kept.pop(number) if kept is not None else None
            yield Prediction(
                *photos[number],
                tuple(sizes[row].tolist()),
                boxes,
                found[schema.SCORES][row, :n],
                labels,
                names,
                encoded,
            )


def _read_all(photos, kept, report, stop_at_error):
    """Yields (number of the photo, encoded bytes) in order, read ahead by threads; ImageErrors are reported.

    Args:
        kept: number -> bytes, filled on the way, or None.
    """
    numbered, ahead = enumerate(photos), collections.deque()
    with ThreadPoolExecutor(_READERS) as pool:
        while True:
            for number, photo in itertools.islice(numbered, _AHEAD - len(ahead)):
                ahead.append((number, pool.submit(read_image, photo.path)))
            if not ahead:
                return
            number, reading = ahead.popleft()
            error = reading.exception()
            if error is None:
                encoded = reading.result().encoded
                if kept is not None:
                    kept[number] = encoded
                yield str(number), encoded
            elif isinstance(error, ImageError):
                report(error)
                if stop_at_error:
                    return
            else:
                raise error
