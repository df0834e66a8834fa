"""Which records a step is made of, and reading them; the first tf.data calls of the pipeline.

The order of an epoch is a permutation without a buffer (`index_shuffle`), and every record is read at its byte offset
or held in memory, so that any step can be the first. Sequential mode reads whole shards instead.
"""

import contextlib
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from tfdet import schema
from tfdet.config import ConfigError
from tfdet.data.records import RecordSet

_READ_BUFFER = 16384  # bytes; smaller than a record, so that little is read beyond it
_FILES_AT_ONCE = 8  # sequential mode


def steps_per_epoch(record_set: RecordSet, batch_size: int) -> int:
    """Batches in one pass over the records; the last one is filled up, never dropped."""
    return math.ceil(record_set.num_images / batch_size)


# AutoGraph has nothing to do here, and took four fifths of the time to the first batch
_as_written = tf.autograph.experimental.do_not_convert


def map_in_graph(data, function, parallel=None):
    """`Dataset.map` of a function that is written in TensorFlow's ops."""
    return data.map(_as_written(function), parallel)


def map_rows(data, function, parallel):
    """Never out of order, whatever the options: rows belong to batches, which alone may overtake each other."""
    return data.map(_as_written(function), parallel, deterministic=True)


# --- in the order of steps ----------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """Records in memory.

    Attributes:
        serialized: string [N]; empty for those that are left out, without their images where `pixels` has them.
        pixels: uint8, the raw images of all records one behind the other; None where images are JPEGs.
        starts: int64 [N], where the pixels of each record begin.
    """

    serialized: tf.Tensor
    pixels: tf.Tensor | None = None
    starts: tf.Tensor | None = None


def hold(record_set: RecordSet, ram_budget_mb: int) -> Held | None:
    """All records, where they fit in so many megabytes, else None. Raw images take twice as much while they load."""
    if not 0 < record_set.index[:, 2].sum() <= ram_budget_mb * 1e6:
        return None
    if record_set.store == "raw":
        return _part_pixels(_read_all(record_set), record_set)
    return Held(tf.constant(list(_read_all(record_set))))


def _read_all(record_set):
    """Yields the bytes of every record; none of those that are left out."""
    if not record_set.left_out:
        yield from map(bytes, all_records(record_set).as_numpy_iterator())
        return
    used = _is_used(record_set)
    rows = tf.data.Dataset.from_tensor_slices({"index": np.flatnonzero(used)})
    rows = map_in_graph(rows, read_by_number(record_set), tf.data.AUTOTUNE).as_numpy_iterator()
    for is_used in used:
        yield next(rows)["serialized"] if is_used else b""


def _part_pixels(serialized, record_set) -> Held:
    """Takes the pixels out of the records: as strings they would be copied at every stage up to decoding."""
    pixels, starts, end, rest = np.empty(record_set.index[:, 2].sum(), np.uint8), [], 0, []
    for record in serialized:
        record, image = _without_pixels(record)
        rest.append(record)
        starts.append(end if image else len(pixels))  # beyond the last image: no crop fits there
        pixels[end : end + len(image)] = np.frombuffer(image, np.uint8)
        end += len(image)
    return Held(tf.constant(rest), tf.constant(pixels[:end]), tf.constant(starts, tf.int64))


def _without_pixels(record):
    """The record without its raw image, and that. One that is left out, or whose image is not as large as it says,
    stays as it is and gives nothing: parsing or decoding will name it."""
    with contextlib.suppress(DecodeError):
        example = tf.train.Example.FromString(record)
        entries = dict(example.features.feature)
        if {schema.ENCODED, schema.HEIGHT, schema.WIDTH} <= entries.keys():
            image = entries[schema.ENCODED].bytes_list.value
            sides = [*entries[schema.HEIGHT].int64_list.value, *entries[schema.WIDTH].int64_list.value]
            if [len(value) for value in image] == [3 * math.prod(sides)]:
                (pixels,) = image
                image[:] = [b""]
                return example.SerializeToString(), pixels
    return record, b""


def read_in_order(steps, record_set, config, shuffled, shard, held=None):
    """Rows of the given steps: out of `held`, or read one by one at their byte offsets.

    Args:
        steps: data set of int64 [], the numbers of steps.
        shuffled: whether every epoch has an order of its own; shard: (i, n), see `pipeline.train_dataset`.
    Returns:
        A data set of dicts: `serialized` string [], `index`, `epoch` and `step` int64 [], `valid` bool [].
    """
    parallel = config.data.num_parallel_calls or tf.data.AUTOTUNE
    order = partial(_order, record_set=record_set, config=config, shuffled=shuffled, shard=shard)
    data = map_in_graph(steps, order).unbatch()
    if held:
        return map_in_graph(data, lambda row: {**row, "serialized": tf.gather(held.serialized, row["index"])})
    return map_rows(data, read_by_number(record_set), parallel)


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


# --- in the order of the files ------------------------------------------------------------------


def all_records(record_set):
    """Every serialized record, string [], in the order of the shards."""
    return tf.data.TFRecordDataset(list(record_set.shard_paths))


def read_sequentially(record_set, config, start_step, shard):
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
        return map_in_graph(data, partial(row, epoch))

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
