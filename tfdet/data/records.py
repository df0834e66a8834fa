"""Reading records: opening a split through its manifest, and parsing one serialized record in graph mode.

The form on disk is described in tfrecords/README.md; convert.py writes it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdet import schema
from tfdet.data.errors import RecordError
from tfdet.data.publish import MANIFEST
from tfdet.data.tfrecord import FRAME_BYTES

__all__ = ["RecordError", "RecordSet", "open_split", "parse", "read_index"]

_CONVERT = "convert the data set again with tools/make_tfrecords.py"


@dataclass(frozen=True)
class RecordSet:
    """One split of a converted data set.

    Attributes:
        directory, name, split: where it is and what it is called.
        class_names: in the order of the labels.
        shard_paths: the TFRecord files.
        index: int64 [N, 3] shard number, byte offset of the record's frame, length of its payload; in the
            order of the shards and of the records in them.
        num_images, num_boxes: counts over the split.
        max_boxes: the largest count of boxes in one image.
        store: "jpeg" or "raw" (uint8 [H, W, 3] as bytes).
    """

    directory: str
    name: str
    split: str
    class_names: tuple[str, ...]
    shard_paths: tuple[str, ...]
    index: np.ndarray
    num_images: int
    num_boxes: int
    max_boxes: int
    store: str


def open_split(directory, split: str) -> RecordSet:
    """Opens one split of a converted data set and checks that its files belong together.

    Raises:
        RecordError: no manifest (the conversion did not end), no such split, a shard that is missing or of
            another size than written, an index that does not fit its shards.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory)
    try:
        if split not in manifest["splits"]:
            found = ", ".join(manifest["splits"])
            raise RecordError(directory, f"there is no split {split!r}", f"choose one of {found}")
        entry = manifest["splits"][split]
        shards = entry["shards"]
        return RecordSet(
            directory=str(directory),
            name=manifest["name"],
            split=split,
            class_names=tuple(manifest["class_names"]),
            shard_paths=tuple(str(directory / shard["file"]) for shard in shards),
            index=read_index(directory / entry["index"], directory, shards),
            num_images=entry["num_images"],
            num_boxes=entry["num_boxes"],
            max_boxes=entry["max_boxes"],
            store=manifest["store"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(directory / MANIFEST, f"the manifest lacks {error}", _CONVERT) from error


def _read_manifest(directory) -> dict:
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except OSError as error:
        reason = f"there is no {MANIFEST} in this folder, so it holds no finished records"
        raise RecordError(directory, reason, "name the folder that tools/make_tfrecords.py wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(path, f"the manifest is damaged ({error})", _CONVERT) from error
    if version != schema.SCHEMA_VERSION:
        reason = f"the records have schema version {version}, this tfdet reads {schema.SCHEMA_VERSION}"
        raise RecordError(path, reason, _CONVERT)
    return manifest


def read_index(path, directory, shards) -> np.ndarray:
    """The offset index of a split, checked against its shards' sizes.

    Args:
        shards: the manifest's entries, dicts with `file`, `num_images` and `bytes`.
    Returns:
        int64 [N, 3], see `RecordSet`.
    Raises:
        RecordError: naming the shard that does not fit.
    """
    try:
        index = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RecordError(path, f"the offset index cannot be read ({error})", _CONVERT) from error
    if index.dtype != np.int64 or index.ndim != 2 or index.shape[1] != 3:
        raise RecordError(path, f"the offset index is {index.dtype} {index.shape}, not int64 [N, 3]", _CONVERT)
    bounds = np.searchsorted(index[:, 0], np.arange(len(shards) + 1))
    for number, shard in enumerate(shards):
        _check_shard(directory / shard["file"], shard, index[bounds[number] : bounds[number + 1]])
    if len(index) != sum(shard["num_images"] for shard in shards):
        raise RecordError(path, "the offset index names records of no shard", _CONVERT)
    return index


def _check_shard(path, shard, rows):
    """Records follow one another without a gap, from the first byte of the shard to its last."""
    if not path.is_file():
        raise RecordError(path, "the shard is missing", _CONVERT)
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise RecordError(path, f"the shard has {size} bytes, the manifest says {shard['bytes']}", _CONVERT)
    ends = rows[:, 1] + rows[:, 2] + FRAME_BYTES
    starts = np.concatenate([[0], ends[:-1]])
    if len(rows) != shard["num_images"] or not len(rows) or ends[-1] != size or (rows[:, 1] != starts).any():
        raise RecordError(path, "the offset index does not fit the shard", _CONVERT)


def parse(serialized) -> dict:
    """One serialized record as a dict; TensorFlow ops only, for `Dataset.map`.

    Args:
        serialized: string [], a tf.train.Example in the TensorFlow detection schema.
    Returns:
        image/encoded string [] (JPEG, or uint8 [H, W, 3] as bytes where the records are stored raw),
        boxes float32 [N, 4] xyxy relative, labels int32 [N] in [0, C) or -2 for difficult objects,
        image_id string [], image_size int32 [2] height and width in pixels of what is stored.
    """
    fields = tf.io.parse_single_example(serialized, schema.record_features())
    corners = [fields[key] for key in (schema.XMIN, schema.YMIN, schema.XMAX, schema.YMAX)]
    labels = tf.cast(fields[schema.CLASS_LABEL], tf.int32) - 1
    size = tf.stack([fields[schema.HEIGHT], fields[schema.WIDTH]])
    return {
        schema.ENCODED: fields[schema.ENCODED],
        schema.BOXES: tf.stack(corners, axis=-1),
        schema.LABELS: tf.where(fields[schema.DIFFICULT] > 0, schema.IGNORE, labels),
        schema.IMAGE_ID: fields[schema.SOURCE_ID],
        schema.IMAGE_SIZE: tf.cast(size, tf.int32),
    }
