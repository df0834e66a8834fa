"""Detections in image files: `predict.load("runs/mine").predict(["a.jpg"])`."""

import collections
import glob
import io
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from tfdet import schema
from tfdet.config import Config
from tfdet.data.errors import ImageError
from tfdet.data.images import read_image
from tfdet.data.pipeline import image_dataset
from tfdet.detectors import postprocess, runs
from tfdet.draw import draw_boxes

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_READERS, _AHEAD = 4, 64  # threads that read image files, and how many files ahead


@dataclass(frozen=True)
class Prediction:
    """What was found in one image, best first.

    Attributes:
        path: the file.
        size: (height, width) in pixels, upright.
        boxes: float32 [N, 4] xyxy in pixels of the upright image, inside it.
        scores: float32 [N]. labels: int32 [N]. names: the class of each box.
    """

    path: str
    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def to_dict(self) -> dict:
        """As JSON has it: file, height, width, and a list of {class, label, score, box} with corners in pixels."""
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist())
        found = [
            {"class": name, "label": label, "score": round(score, 4), "box": [round(v, 2) for v in box]}
            for name, label, score, box in rows
        ]
        return {"file": self.path, "height": self.size[0], "width": self.size[1], "detections": found}


def load(run, weights=None) -> "Predictor":
    """The detector of a run folder, with best.h5 if there is one, else weights.h5.

    Raises:
        ConfigError, WeightsError: see `detectors.runs.load`.
    """
    return Predictor(*runs.load(run, weights))


class Predictor:
    """A model with all that it takes to use it on files.

    Args:
        config: Config with class_names. detector: see detectors/base.py. model: images -> predictions.
    """

    def __init__(self, config: Config, detector, model):
        self.config, self.class_names = config, config.class_names
        self._detector, self._model = detector, model
        self._detect = tf.function(self._detect_batch)

    def predict(self, paths, min_score: float = 0.6) -> list[Prediction]:
        """Detections whose score exceeds `min_score` in each of the files.

        Raises:
            ImageError: a file that cannot be read; `stream` goes on behind it.
        """
        return list(self.stream(paths, min_score))

    def stream(self, paths, min_score: float = 0.6, skip=None):
        """Yields the Prediction of one file after the other, in the order of `paths`.

        Args:
            skip: called with the ImageError of each file that cannot be read, which is then left out; None: raise.
        """
        paths = [str(path) for path in paths]
        if not paths:
            return
        rows = min(self.config.train.batch_size, len(paths))
        config = replace(self.config, train=replace(self.config.train, batch_size=rows))
        problems = []
        # an exception would cross tf.data as one of TensorFlow's
        encoded = _read_all(paths, skip or problems.append, stop_at_error=skip is None)
        for batch in image_dataset(encoded, config):
            found = self._detect(batch[schema.IMAGE], batch[schema.IMAGE_SIZE], tf.constant(min_score, tf.float32))
            yield from self._predictions(paths, batch, found)
        if problems and skip is None:
            raise problems[0]

    def draw(self, prediction: Prediction) -> Image.Image:
        """The file's picture, upright, with the boxes."""
        image = Image.open(io.BytesIO(read_image(prediction.path).encoded))
        return draw_boxes(image, prediction.boxes, prediction.labels, self.class_names, prediction.scores)

    def _detect_batch(self, images, image_size, min_score):
        predictions = self._model(images, training=False)
        return postprocess.detect(self._detector, self.config, predictions, image_size, score_threshold=min_score)

    def _predictions(self, paths, batch, found):
        found = {key: value.numpy() for key, value in found.items()}
        ids, sizes = batch[schema.IMAGE_ID].numpy(), batch[schema.IMAGE_SIZE].numpy()
        for row in np.flatnonzero(ids != b""):
            n = found[schema.NUM_DETECTIONS][row]
            boxes = found[schema.BOXES][row, :n] * np.tile(sizes[row][::-1], 2).astype(np.float32)
            labels = found[schema.LABELS][row, :n]
            names = tuple(self.class_names[label] for label in labels)
            size = tuple(sizes[row].tolist())
            yield Prediction(paths[int(ids[row])], size, boxes, found[schema.SCORES][row, :n], labels, names)


# --- files --------------------------------------------------------------------------------------


def find_images(inputs) -> list[Path]:
    """The image files that paths, folders (searched with all below them) and patterns such as "photos/*.jpg" stand for.

    Files named as such are taken whatever their suffix; each file once.

    Raises:
        ImageError: an input that stands for nothing.
    """
    found = []
    for text in map(str, inputs):
        path = Path(text)
        if path.is_dir():
            matches = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        else:
            matches = [path] if path.exists() else sorted(map(Path, glob.glob(text, recursive=True)))
        if not matches:
            reason = "no image in this folder" if path.is_dir() else "no such file, folder or pattern"
            raise ImageError(text, reason, f"give image files or a folder with {', '.join(SUFFIXES)}", "missing_image")
        found += matches
    return list(dict.fromkeys(found))


def _read_all(paths, report, stop_at_error):
    """Yields (number of the path, encoded bytes) in order, read ahead by threads; ImageErrors are reported."""
    numbered, ahead = enumerate(paths), collections.deque()
    with ThreadPoolExecutor(_READERS) as pool:
        while True:
            for number, path in itertools.islice(numbered, _AHEAD - len(ahead)):
                ahead.append((number, pool.submit(read_image, path)))
            if not ahead:
                return
            number, reading = ahead.popleft()
            error = reading.exception()
            if error is None:
                yield str(number), reading.result().encoded
            elif isinstance(error, ImageError):
                report(error)
                if stop_at_error:
                    return
            else:
                raise error
