"""Records to batches, in graph mode. All tf.data calls of training are here; their order is the point.

    steps      0, 1, 2, ...                      a step's number decides everything that follows
    order      which records                     index_shuffle: a permutation without a buffer
    read       one record at its byte offset     parallel, per record
    parse      and plan: windows, flips, boxes   per batch, vectorised: small work, paid once
    decode     the window's pixels only, resize  parallel, per record: nearly all of the cost
    stage      colour, match and encode          per batch, ONE function compiled by XLA

A batch is a pure function of (seed, step): the same for any parallelism, and training resumes at any step at no cost.
"""

import math
from functools import partial

import numpy as np
import tensorflow as tf

from tfdet import schema
from tfdet.config import NO_AUGMENT, Config, ConfigError
from tfdet.data.multiscale import ScaledStages, at_sides
from tfdet.data.records import RecordSet
from tfdet.data.stages import Stages, without_boxes

_READ_BUFFER = 16384  # bytes; smaller than a record, so that little is read beyond it
_FILES_AT_ONCE = 8  # sequential mode


def steps_per_epoch(record_set: RecordSet, batch_size: int) -> int:
    """Batches in one pass over the records; the last one is filled up, never dropped."""
    return math.ceil(record_set.num_images / batch_size)


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
    stages = _make_train_stages(record_set, config, encode, rows, numbered)
    if config.data.shuffle == "sequential":
        return _run(_read_sequentially(record_set, config, start_step, shard), stages)
    steps = tf.data.Dataset.range(start_step, tf.int64.max)
    return _run(_read_in_order(steps, record_set, config, config.data.shuffle == "global", shard), stages)


def eval_dataset(record_set: RecordSet, config: Config, encode=None) -> tf.data.Dataset:
    """One pass in the order of the records, not augmented; keys and filling as `train_dataset`, and besides the
    annotations as they are: true_boxes float32 [B, M, 4] relative to the photo, true_labels int32 [B, M],
    true_difficult bool [B, M]."""
    stages = _make_stages(record_set, config, NO_AUGMENT, encode, config.train.batch_size, truth=True)
    steps = tf.data.Dataset.range(steps_per_epoch(record_set, config.train.batch_size))
    return _run(_read_in_order(steps, record_set, config, False, (0, 1)), stages)


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
    data = _map(data, without_boxes).batch(config.train.batch_size, drop_remainder=True)
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


def _make_train_stages(record_set, config, encode, rows, numbered=False):
    stages = _make_stages(record_set, config, config.augment, encode, rows, numbered=numbered)
    sides = getattr(config.detector, "multi_scale", ())
    return at_sides(stages, sides) if sides else stages


def _chain(stages: Stages | ScaledStages) -> dict:
    """The stages after reading, in order: name -> data set in, data set out."""
    data_config = stages.config.data
    parallel = data_config.num_parallel_calls or tf.data.AUTOTUNE
    return {
        # small work a batch at a time: an op costs microseconds, whatever it works on
        "parse": lambda data: _map(data.batch(stages.rows, drop_remainder=True), stages.parse, parallel),
        "plan": lambda data: _map(data, stages.plan, parallel),
        # decoding is per image again, and takes all the cores there are
        "decode": lambda data: _map_rows(data.unbatch(), stages.decode, parallel),
        # by now shapes are static, which XLA needs
        "batch": lambda data: data.batch(stages.rows, drop_remainder=True),
        "batch_stage": lambda data: _map(data, stages.batch_stage(), parallel),
        # the training step and the pipeline work at the same time
        "prefetch": lambda data: data.prefetch(data_config.prefetch),
    }


def _map(data, function, parallel=None):
    return data.map(_as_written(function), parallel)


def _map_rows(data, function, parallel):
    """Never out of order, whatever the options: rows belong to batches, which alone may overtake each other."""
    return data.map(_as_written(function), parallel, deterministic=True)


# AutoGraph has nothing to do here, and took four fifths of the time to the first batch
_as_written = tf.autograph.experimental.do_not_convert


def _run(data, stages, first="parse"):
    chain = _chain(stages)
    for name in list(chain)[list(chain).index(first) :]:
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
    """
    parallel = config.data.num_parallel_calls or tf.data.AUTOTUNE
    rows, options = config.train.batch_size, _options(config.data)
    stages = _make_train_stages(record_set, config, encode, rows)
    data = _read_in_order(tf.data.Dataset.range(tf.int64.max), record_set, config, True, (0, 1))
    whole = _map(_all_records(record_set).repeat(), partial(_decode_whole, store=stages.store), parallel)
    steps = {"decode_only": (whole, 1), "read": (data, 1)}
    chain = _chain(stages)
    for name in chain:
        if name == "decode" and stages.store == "jpeg":
            crops = _map(data.unbatch(), stages.decode_only_crop, parallel)
            steps["decode_crop"] = (crops, 1)
        data = chain[name](data)
        steps["resize" if name == "decode" else name] = (data, 1 if name == "decode" else rows)
    return {name: (data.with_options(options), count) for name, (data, count) in steps.items()}


def _decode_whole(serialized, store):
    fields = {schema.ENCODED: tf.io.FixedLenFeature([], tf.string)}
    encoded = tf.io.parse_single_example(serialized, fields)[schema.ENCODED]
    return tf.io.decode_jpeg(encoded, channels=3) if store == "jpeg" else tf.io.decode_raw(encoded, tf.uint8)


# --- order and reading --------------------------------------------------------------------------


def _read_in_order(steps, record_set, config, shuffled, shard):
    """Rows of the given steps, read one by one at their byte offsets."""
    parallel = config.data.num_parallel_calls or tf.data.AUTOTUNE
    order = partial(_order, record_set=record_set, config=config, shuffled=shuffled, shard=shard)
    data = _map(steps, order).unbatch()
    if shuffled and 0 < record_set.index[:, 2].sum() <= config.data.ram_budget_mb * 1e6:
        held = _hold(record_set)
        return _map(data, lambda row: {**row, "serialized": tf.gather(held, row["index"])})
    return _map_rows(data, read_by_number(record_set), parallel)


def _hold(record_set):
    """All serialized records: string [N]; empty for those that are left out."""
    if not record_set.left_out:
        return tf.constant([bytes(record) for record in _all_records(record_set).as_numpy_iterator()])
    rows = tf.data.Dataset.from_tensor_slices({"index": np.flatnonzero(_is_used(record_set))})
    rows = _map(rows, read_by_number(record_set), tf.data.AUTOTUNE)
    held = [b""] * record_set.num_images
    for row in rows.as_numpy_iterator():
        held[row["index"]] = row["serialized"]
    return tf.constant(held)


def _is_used(record_set):
    """bool [N], False for the records that are left out."""
    used = np.ones(record_set.num_images, bool)
    used[list(record_set.left_out)] = False
    return used


def _order(step, record_set, config, shuffled, shard):
    """The record numbers of one step: int64 [B] `index`, `epoch` and `step`, and bool [B] `valid` (not filling)."""
    batch_size, last = config.train.batch_size, tf.constant(record_set.num_images - 1, tf.int64)
    rows = batch_size // shard[1]
    per_epoch = steps_per_epoch(record_set, batch_size)
    epoch = step // per_epoch
    position = (step % per_epoch) * batch_size + shard[0] * rows + tf.range(rows, dtype=tf.int64)
    index = position % (last + 1)
    if shuffled:
        index = tf.random.experimental.index_shuffle(index, tf.stack([config.data.seed, epoch]), last)
    valid = position <= last
    if record_set.left_out:  # another record is read in its place, and not looked at
        used = _is_used(record_set)
        usable = tf.gather(tf.constant(used), index)
        index, valid = tf.where(usable, index, used.argmax()), valid & usable
    return {"index": index, "epoch": tf.fill([rows], epoch), "step": tf.fill([rows], step), "valid": valid}


def read_by_number(record_set: RecordSet):
    """A function that reads one record, row["index"], at its byte offset into row["serialized"], without an iterator:
    open, seek, read."""
    places, paths = tf.constant(record_set.index), tf.constant(record_set.shard_paths)  # captured, not in the graph
    one = {"output_types": [tf.string], "output_shapes": [[]]}

    def read(row):
        place = tf.gather(places, row["index"])
        path = tf.gather(paths, place[0])[None]
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=path, compression_type="", buffer_size=_READ_BUFFER, byte_offsets=place[1][None]
        )
        variant = tf.raw_ops.TakeDataset(input_dataset=variant, count=1, **one)
        return {**row, "serialized": tf.raw_ops.DatasetToSingleElement(dataset=variant, **one)[0]}

    return read


def _all_records(record_set):
    return tf.data.TFRecordDataset(list(record_set.shard_paths))


def _read_sequentially(record_set, config, start_step, shard):
    """For storage where seeking is dear: shards in a drawn order, interleaved, through a buffer of serialized records.

    Resuming inside an epoch reads what it skips. The key of a record's draws is its position in the epoch.
    """
    if record_set.left_out:
        raise ConfigError("data.shuffle=sequential cannot step over damaged records; choose global, or repair them")
    batch_size, number = config.train.batch_size, record_set.num_images
    per_epoch = steps_per_epoch(record_set, batch_size)

    def row(epoch, i, record):
        step = epoch * per_epoch + i // batch_size
        return {"index": i % number, "epoch": epoch, "step": step, "valid": i < number, "serialized": record}

    def one_epoch(epoch):
        seed = tf.stack([tf.constant(config.data.seed, tf.int64), epoch])
        paths = tf.constant(record_set.shard_paths)
        order = tf.random.experimental.index_shuffle(
            tf.range(len(record_set.shard_paths)), seed, len(record_set.shard_paths) - 1
        )
        files = tf.data.Dataset.from_tensor_slices(tf.gather(paths, order))
        data = files.interleave(
            tf.data.TFRecordDataset, cycle_length=_FILES_AT_ONCE, num_parallel_calls=2, deterministic=True
        )
        data = _shuffle(data, config.data, epoch)
        data = data.repeat().take(per_epoch * batch_size).enumerate()  # the last batch is filled up
        return _map(data, partial(row, epoch))

    data = tf.data.Dataset.range(start_step // per_epoch, tf.int64.max).flat_map(_as_written(one_epoch))
    data = data.skip(start_step % per_epoch * batch_size)
    if shard[1] == 1:
        return data
    rows = batch_size // shard[1]
    return data.batch(rows, drop_remainder=True).shard(shard[1], shard[0]).unbatch()


def _shuffle(data, data_config, epoch):
    """`Dataset.shuffle` of strings by (seed, epoch) alone; that one mixes in TensorFlow's global seed. 0, 0 would mean
    a seed by chance."""
    variant = tf.raw_ops.ShuffleDataset(
        input_dataset=tf.data.experimental.to_variant(data),
        buffer_size=data_config.shuffle_buffer,
        seed=data_config.seed,
        seed2=epoch + 1,
        reshuffle_each_iteration=False,
        output_types=[tf.string],
        output_shapes=[[]],
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
