"""A loss that is not finite: the batch it came from, written to a file that can be looked at.

The file is a .npz of the batch's arrays under their own names, with `step` and the losses as `loss/NAME`.
"""

import math
import os
import shlex
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tfdet import schema
from tfdet.train.errors import TrainingError
from tfdet.train.step import SKIPPED

LOSS = "loss/"
# what numpy raises where a file is damaged; RuntimeError where a byte makes it look encrypted or packed in another way
_DAMAGES = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Guard:
    """Stops a run at a loss that is not finite, or goes on where the step has left out its update.

    Args:
        make_dataset: see `loop.fit`; gives the batch once more. folder: `checkpoints.RunFolder`, gets the dump.
        warn: function of a text.
    """

    def __init__(self, make_dataset, folder, warn):
        self._make_dataset, self._folder, self._warn = make_dataset, folder, warn

    def check(self, number, metrics, skipped_before):
        """Says which batch a loss or a gradient that is not finite came from.

        Args:
            number: int, of the step, from 1. metrics: dict of floats, as the step returns them.
            skipped_before: int, updates of this epoch left out so far; the first is told in full.
        Raises:
            TrainingError: it came from an update that was made.
        """
        skipped = metrics.get(SKIPPED)
        if math.isfinite(metrics["loss"]) and not skipped:
            return
        text = _describe_step(number, metrics)
        if skipped and skipped_before:
            self._warn(f"{text}: skipped")
            return
        images, path = self._dump(number, metrics)
        text += f"; images: {images}"
        look = f"look at the batch: tfdet inspect {shlex.quote(str(path))}"
        if skipped:
            self._warn(f"{text}: skipped; {look}")
            return
        raise TrainingError(
            f"{text}. Try a lower train.learning_rate, a train.clip_norm or train.on_nan=skip, or {look}"
        )

    def _dump(self, number, metrics):
        """Writes the batch of a step, made once more: the ids of its images, and the path of the file."""
        batch = next(iter(self._make_dataset(number - 1)))
        path = self._folder.path / "nan" / f"step_{number:06d}.npz"
        if self._folder.writes:
            write_dump(path, number, metrics, batch)
        return image_ids(batch), path


def write_dump(path, step, losses, batch) -> Path:
    """Writes a batch and its losses in one go.

    Args:
        path: file to write, .npz; its folder is made.
        step: int, number of the update from 1. losses: dict of floats. batch: dict of arrays or tensors.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: _as_array(value) for name, value in batch.items()}
    unfinished = path.with_name(f"unfinished_{path.name}")
    with open(unfinished, "wb") as file:
        np.savez_compressed(file, step=step, **{LOSS + name: v for name, v in losses.items()}, **arrays)
    os.replace(unfinished, path)
    return path


def read_dump(path) -> dict:
    """What `write_dump` wrote: {"step": int, "losses": {name: float}, "batch": {name: array}}; image_id as str.

    Raises:
        ValueError: no such dump; the text says why.
    """
    try:
        with open(path, "rb") as file:  # numpy leaves a file open that is no zip
            found = _read_arrays(file)
    except _DAMAGES as error:
        raise ValueError(f"{path}: cannot be read as the dump of a batch: {error}; take it from nan/ again") from error
    if not _is_dump(found):
        raise ValueError(f"{path}: holds no batch; training writes such dumps to nan/ in the run folder")
    losses = {name.removeprefix(LOSS): float(found.pop(name)) for name in list(found) if name.startswith(LOSS)}
    return {"step": int(found.pop("step")), "losses": losses, "batch": found}


def _read_arrays(file):
    """The arrays of a .npz by name; none of a .npy, whose array has no name."""
    arrays = np.load(file, allow_pickle=False)
    if isinstance(arrays, np.ndarray):
        return {}
    with arrays:
        return {name: arrays[name] for name in arrays.files}


def _is_dump(arrays):
    """Whether there are a step, losses that are numbers, and a batch: arrays of as many rows as there are images."""
    if "step" not in arrays or schema.IMAGE not in arrays:
        return False
    losses = {name for name in arrays if name.startswith(LOSS)}
    numbers = arrays["step"].dtype.kind in "iu" and all(arrays[name].dtype.kind == "f" for name in losses)
    scalar = all(arrays[name].ndim == 0 for name in losses | {"step"})
    rows = {arrays[name].shape[:1] for name in arrays.keys() - losses - {"step"}}
    return numbers and scalar and len(rows) == 1 and () not in rows


def describe_dump(dump) -> str:
    """A dump in lines of text: step, losses, and each image with its boxes and what is not finite about it."""
    batch = dump["batch"]
    losses = ", ".join(f"{name} {value:g}" for name, value in dump["losses"].items())
    rows = [_describe_row(batch, row) for row in range(len(batch[schema.IMAGE]))]
    return "\n".join([f"step {dump['step']}: {losses}", *rows])


def image_ids(batch) -> str:
    """The ids of a batch's images, without the rows that fill it up, for a message."""
    ids = batch.get(schema.IMAGE_ID)
    return "unknown" if ids is None else ", ".join(name for name in _as_array(ids) if name)


def _describe_step(number, metrics):
    parts = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
    what = "the loss is" if not math.isfinite(metrics["loss"]) else "the gradients are"
    return f"{what} not finite at step {number} ({parts})"


def _describe_row(batch, row):
    name = batch[schema.IMAGE_ID][row] if schema.IMAGE_ID in batch else f"row {row}"
    if not name:
        return f"row {row}: fills up the batch"
    parts = []
    if schema.LABELS in batch:
        parts.append(f"{np.sum(batch[schema.LABELS][row] >= 0)} boxes")
    if schema.TARGET_LABELS in batch:
        parts.append(f"{np.sum(batch[schema.TARGET_LABELS][row] >= 0)} matched anchors")
    values = {key: batch[key][row] for key in batch if batch[key].dtype.kind == "f"}
    parts += [f"{key} not finite" for key, value in values.items() if not np.isfinite(value).all()]
    return f"{name}: {', '.join(parts)}"


def _as_array(value):
    """numpy, strings as str."""
    value = np.asarray(value)
    if value.dtype.kind not in "OS":
        return value
    return np.array([text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in value])
