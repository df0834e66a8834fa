"""A loss that is not finite: the batch it came from, written to a file that can be looked at.

The file is a .npz of the batch's arrays under their own names, with `step` and the losses as `loss/NAME`.
"""

import os
from pathlib import Path

import numpy as np

from tfdet import schema

LOSS = "loss/"


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
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as the dump of a batch: {error}") from error
    if "step" not in found or schema.IMAGE not in found:
        raise ValueError(f"{path}: holds no batch; training writes such dumps to nan/ in the run folder")
    losses = {name.removeprefix(LOSS): float(found.pop(name)) for name in list(found) if name.startswith(LOSS)}
    return {"step": int(found.pop("step")), "losses": losses, "batch": found}


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
