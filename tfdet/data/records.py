"""Reading records: opening a split through its manifest, and parsing one serialized record in graph mode.

The form on disk is described in tfrecords/README.md; convert.py writes it.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfdet import schema
from tfdet.data import files
from tfdet.data.errors import RecordError
from tfdet.data.manifest import CONVERT_AGAIN, MANIFEST, read_index, read_manifest

__all__ = ["RecordError", "RecordSet", "open_split", "parse", "read_index"]


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
        left_out: numbers of records that are not used, see faults.leave_out.
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
    left_out: tuple[int, ...] = ()


def open_split(directory, split: str) -> RecordSet:
    """Opens one split of a converted data set and checks that its files belong together.

    Raises:
        RecordError: no manifest (the conversion did not end), no such split, a shard that is missing or of
            another size than written, an index that does not fit its shards.
    """
    manifest = read_manifest(directory)
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
            shard_paths=tuple(files.join(directory, shard["file"]) for shard in shards),
            index=read_index(files.join(directory, entry["index"]), directory, shards),
            num_images=entry["num_images"],
            num_boxes=entry["num_boxes"],
            max_boxes=entry["max_boxes"],
            store=manifest["store"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(files.join(directory, MANIFEST), f"the manifest lacks {error}", CONVERT_AGAIN) from error


def parse(serialized) -> dict:
    """One serialized record as a dict; TensorFlow ops only, for `Dataset.map`.

    For looking at single records and for pipelines of other kinds; tfdet's own parses whole batches into dense tensors,
    see `stages.Stages.parse`.

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
