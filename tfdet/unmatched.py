"""Boxes of a data set that training cannot learn from: too small for the network's input, or taken by others."""

from dataclasses import dataclass
from itertools import islice

import tensorflow as tf

from tfdet import schema
from tfdet.config import Config
from tfdet.data import pipeline
from tfdet.data.records import RecordSet

SAMPLE = 1024  # images, which takes two seconds

_ANYWHERE = "have no target because of others"
_WHY = {
    "ssd": "have no prior, as others have all that they overlap",
    "yolo": "share a cell and an anchor with a later box, which has the target",
}


@dataclass(frozen=True)
class Counts:
    """Of images as validation shows them; augmentation moves and scales boxes, which changes the counts a little.

    Attributes:
        images: that were looked at; objects: boxes in them that are not ignored.
        degenerate: objects that are never matched: less than a pixel wide or high on the network's input, or no box.
        collisions: objects without a target because of others.
    """

    images: int = 0
    objects: int = 0
    degenerate: int = 0
    collisions: int = 0


def count(record_set: RecordSet, config: Config, detector, most: int | None = None) -> Counts:
    """Counts in one pass over the records, in which nothing is decoded.

    Args:
        most: images, of which the first are looked at; None: all.
    """
    collisions = tf.function(detector.count_collisions, jit_compile=True, autograph=False)
    batches = pipeline.box_dataset(record_set, config)
    if most is not None:
        batches = islice(batches, -(-most // config.train.batch_size))
    total = [0, 0, 0, 0]
    for batch in batches:
        used = batch[schema.IMAGE_ID] != ""
        # rows that fill up have only ignored boxes
        boxes, labels = batch[schema.BOXES], batch[schema.LABELS]
        objects = (batch[schema.TRUE_LABELS] >= 0) & ~batch[schema.TRUE_DIFFICULT] & used[:, None]
        gone = _sum(objects) - _sum(labels >= 0)
        degenerate = gone + _sum(detector.count_degenerate(boxes, tf.where(labels >= 0, labels, schema.BACKGROUND)))
        with tf.device("CPU:0"):  # where the input pipeline compiles it, too
            lost = _sum(collisions(boxes, labels))
        found = (_sum(used), _sum(objects), degenerate, lost)
        total = [a + b for a, b in zip(total, found)]
    return Counts(*total)


def _sum(values) -> int:
    return int(tf.reduce_sum(tf.cast(values, tf.int32)))


def describe(counts: Counts, config: Config) -> str:
    """One line."""
    height, width = config.detector.image_size
    return (
        f"of {counts.objects:,} boxes in {counts.images:,} images {counts.degenerate:,} are never matched, being less "
        f"than a pixel at {height}x{width}; {counts.collisions:,} {_WHY.get(config.detector.kind, _ANYWHERE)}"
    )
