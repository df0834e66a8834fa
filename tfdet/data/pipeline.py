"""Records to batches, in graph mode. The tf.data calls of training are here and in reading.py; the order is the point.

    steps      0, 1, 2, ...                      a step's number decides everything that follows
    order      which records                     index_shuffle: a permutation without a buffer
    read       one record at its byte offset     parallel, per record
    parse      and plan: windows, flips, boxes   per batch, vectorised: small work, paid once
    decode     the window's pixels only, resize  parallel, per record: nearly all of the cost
    stage      colour, match and encode          per batch, ONE function compiled by XLA

A batch is a pure function of (seed, step): the same for any parallelism, and training resumes at any step at no cost.
"""

from functools import partial

import tensorflow as tf

from tfdet import schema
from tfdet.config import NO_AUGMENT, Config, ConfigError
from tfdet.data.multiscale import ScaledStages, at_sides
from tfdet.data.reading import (
    all_records,
    hold,
    map_in_graph,
    map_rows,
    read_in_order,
    read_sequentially,
    steps_per_epoch,
)
from tfdet.data.records import RecordSet
from tfdet.data.stages import Stages, without_boxes

__all__ = ["box_dataset", "eval_dataset", "image_dataset", "ladder", "steps_per_epoch", "train_dataset"]

# --- the data sets ------------------------------------------------------------------------------


def train_dataset(
    record_set: RecordSet,
    config: Config,
    encode=None,
    start_step: int = 0,
    shard: tuple[int, int] = (0, 1),
    numbered=False,
) -> tf.data.Dataset:
    """Endless, shuffled, augmented batches from the global step `start_step` on.

    Args:
        encode: (boxes [B, M, 4], labels [B, M]) -> dict of targets, see detectors/base.py; None: no targets.
        shard: (i, n): the i-th of n equal slices of every global batch, for input pipelines of n workers.
        numbered: adds "step" int64 [B], the number of the step each row is for.
    Returns:
        Dicts with the keys of schema.py. Every batch has batch_size / n rows; rows that fill up the last batch of
        an epoch, or stand for a record that is left out, have an empty image_id, and only -2 as labels and targets.
    Raises:
        ConfigError: records are to be left out in sequential mode, which cannot step over damaged ones; or there is
            no such slice.
    """
    rows = _rows_of(shard, config.train.batch_size)
    shuffled = config.data.shuffle == "global"
    held = hold(record_set, config.data.ram_budget_mb) if shuffled else None
    stages = _make_train_stages(record_set, config, encode, rows, numbered=numbered, held=held)
    if config.data.shuffle == "sequential":
        return _run(read_sequentially(record_set, config, start_step, shard), stages)
    steps = tf.data.Dataset.range(start_step, tf.int64.max)
    return _run(read_in_order(steps, record_set, config, shuffled, shard, held), stages)


def eval_dataset(record_set: RecordSet, config: Config, encode=None) -> tf.data.Dataset:
    """One pass in the order of the records, not augmented; keys and filling as `train_dataset`, and besides the
    annotations as they are: true_boxes float32 [B, M, 4] relative to the photo, true_labels int32 [B, M],
    true_difficult bool [B, M]."""
    stages = _make_stages(record_set, config, NO_AUGMENT, encode, config.train.batch_size, truth=True)
    steps = tf.data.Dataset.range(steps_per_epoch(record_set, config.train.batch_size))
    return _run(read_in_order(steps, record_set, config, False, (0, 1)), stages)


def box_dataset(record_set: RecordSet, config: Config) -> tf.data.Dataset:
    """One pass over the boxes, as training without augmentation has them; no image is decoded.

    Returns:
        Batches: image_id string [B], empty in rows that fill up; boxes float32 [B, M, 4] relative to the network
        input, labels int32 [B, M] of those that are a pixel large there; true_boxes, true_labels and true_difficult
        as `eval_dataset`.
    """
    stages = _make_stages(record_set, config, NO_AUGMENT, None, config.train.batch_size, truth=True)
    steps = tf.data.Dataset.range(steps_per_epoch(record_set, config.train.batch_size))
    planned = _run(read_in_order(steps, record_set, config, False, (0, 1)), stages, last="plan")
    keys = (
        schema.IMAGE_ID, schema.BOXES, schema.LABELS, schema.TRUE_BOXES, schema.TRUE_LABELS, schema.TRUE_DIFFICULT,
    )  # fmt: skip
    return map_in_graph(planned, lambda batch: {key: batch[key] for key in keys})


def image_dataset(images, config: Config) -> tf.data.Dataset:
    """Images without annotations, for prediction: one pass, keys and filling as `eval_dataset`.

    Args:
        images: iterable of (image_id, bytes of an upright JPEG), see images.read_image.
    """

    def rows():
        count = 0
        for image_id, encoded in images:
            count += 1
            yield image_id, encoded, True
        for _ in range(-count % config.train.batch_size):
            yield "", encoded, False

    kinds = (tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.bool))
    data = tf.data.Dataset.from_generator(rows, output_signature=kinds)
    data = map_in_graph(data, without_boxes).batch(config.train.batch_size, drop_remainder=True)
    return _run(data, Stages("jpeg", 0, config, NO_AUGMENT, None, config.train.batch_size), first="plan")


# --- the order of the stages --------------------------------------------------------------------


def _rows_of(shard, batch_size):
    """Rows of a batch in one slice (i, n) of it."""
    number, count = shard
    if not 0 <= number < count or batch_size % count:
        raise ConfigError(
            f"shard {number} of {count}: train.batch_size {batch_size} cannot be cut so; choose a multiple"
        )
    return batch_size // count


def _make_stages(record_set, config, augment, encode, rows, **options):
    return Stages(record_set.store, record_set.max_boxes, config, augment, encode, rows, **options)


def _make_train_stages(record_set, config, encode, rows, **options):
    stages = _make_stages(record_set, config, config.augment, encode, rows, **options)
    sides = getattr(config.detector, "multi_scale", ())
    return at_sides(stages, sides) if sides else stages


def _chain(stages: Stages | ScaledStages) -> dict:
    """The stages after reading, in order: name -> data set in, data set out."""
    data_config = stages.config.data
    parallel = data_config.num_parallel_calls or tf.data.AUTOTUNE
    return {
        # small work a batch at a time: an op costs microseconds, whatever it works on
        "parse": lambda data: map_in_graph(data.batch(stages.rows, drop_remainder=True), stages.parse, parallel),
        "plan": lambda data: map_in_graph(data, stages.plan, parallel),
        # decoding is per image again, and takes all the cores there are
        "decode": lambda data: map_rows(data.unbatch(), stages.decode, parallel),
        # by now shapes are static, which XLA needs
        "batch": lambda data: data.batch(stages.rows, drop_remainder=True),
        "batch_stage": lambda data: map_in_graph(data, stages.batch_stage(), parallel),
        # the training step and the pipeline work at the same time
        "prefetch": lambda data: data.prefetch(data_config.prefetch),
    }


def _run(data, stages, first="parse", last="prefetch"):
    chain = _chain(stages)
    names = list(chain)
    for name in names[names.index(first) : names.index(last) + 1]:
        data = chain[name](data)
    return data.with_options(_options(stages.config.data))


def _options(data_config):
    options = tf.data.Options()
    options.deterministic = data_config.deterministic
    options.autotune.enabled = not data_config.num_parallel_calls
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    if data_config.private_threads:
        options.threading.private_threadpool_size = data_config.private_threads
    return options


def ladder(record_set: RecordSet, config: Config, encode=None) -> dict:
    """Endless data sets that stop after each stage of training, for measuring what a stage costs.

    Returns:
        name -> (data set, images an element holds), in the order of the stages. "decode_only" is what all is measured
        against: every record read in file order, and its whole image decoded by `tf.io.decode_jpeg` in parallel.
        "batch_stage_alone" gives the batch stage a few batches that are held, over and over.
    """
    parallel = config.data.num_parallel_calls or tf.data.AUTOTUNE
    rows, options = config.train.batch_size, _options(config.data)
    held = hold(record_set, config.data.ram_budget_mb)
    stages = _make_train_stages(record_set, config, encode, rows, held=held)
    data = read_in_order(tf.data.Dataset.range(tf.int64.max), record_set, config, True, (0, 1), held)
    whole = map_in_graph(all_records(record_set).repeat(), partial(_decode_whole, store=stages.store), parallel)
    steps = {"decode_only": (whole, 1), "read": (data, 1)}
    chain = _chain(stages)
    for name in chain:
        if name == "decode" and stages.store == "jpeg":
            crops = map_in_graph(data.unbatch(), stages.decode_crop, parallel)
            steps["decode_crop"] = (crops, 1)
        if name == "batch_stage":
            steps["batch_stage_alone"] = (chain[name](data.take(4).cache().repeat()), rows)
        data = chain[name](data)
        steps["resize" if name == "decode" else name] = (data, 1 if name == "decode" else rows)
    return {name: (data.with_options(options), count) for name, (data, count) in steps.items()}


def _decode_whole(serialized, store):
    fields = {schema.ENCODED: tf.io.FixedLenFeature([], tf.string)}
    encoded = tf.io.parse_single_example(serialized, fields)[schema.ENCODED]
    return tf.io.decode_jpeg(encoded, channels=3) if store == "jpeg" else tf.io.decode_raw(encoded, tf.uint8)
