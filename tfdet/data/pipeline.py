"""Records to batches, in graph mode. The only file with tf.data calls; their order is the point.

    steps      0, 1, 2, ...                      a step's number decides everything that follows
      order    which records                     index_shuffle: a permutation without a buffer
      read     one record at its byte offset     parallel, per record
      parse    and plan: choose windows          per batch, vectorised: small work, paid once
      decode   the window's pixels only, resize  parallel, per record: nearly all of the cost
      stage    fill, flip, colour, encode        per batch, ONE function compiled by XLA

A batch is a pure function of (seed, step): the same for any parallelism, and training resumes at any step at no cost.
"""

import dataclasses
import math
from functools import partial

import numpy as np
import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import schema
from tfdet.config import NO_AUGMENT, Config
from tfdet.data import augment, image_ops, random
from tfdet.data.records import RecordSet

SMALLEST_BUCKET = 8
_READ_BUFFER = 16384  # bytes; smaller than a record, so that little is read beyond it
_FILES_AT_ONCE = 8  # sequential mode


def steps_per_epoch(record_set: RecordSet, batch_size: int) -> int:
    """Batches in one pass over the records; the last one is filled up, never dropped."""
    return math.ceil(record_set.num_images / batch_size)


def buckets(max_boxes: int) -> list[int]:
    """Counts of boxes an image that a batch can be padded to: 8, 16, 32, ... up to the first that holds `max_boxes`.

    Every batch takes the smallest that fits it; XLA compiles one batch stage for each.
    """
    sizes = [SMALLEST_BUCKET]
    while sizes[-1] < max_boxes:
        sizes.append(2 * sizes[-1])
    return sizes


# --- the data sets ------------------------------------------------------------------------------


def train_dataset(
    record_set: RecordSet, config: Config, encode=None, start_step: int = 0, shard: tuple[int, int] = (0, 1)
) -> tf.data.Dataset:
    """Endless, shuffled, augmented batches from the global step `start_step` on.

    Args:
        encode: (boxes [B, M, 4], labels [B, M]) -> dict of targets, see detectors/base.py; None: no targets.
        shard: (i, n): the i-th of n equal slices of every global batch, for input pipelines of n workers.
    Returns:
        Dicts with the keys of schema.py. Every batch has batch_size / n rows; rows that fill up the last batch of
        an epoch have an empty image_id, and only -2 as labels and targets.
    """
    chain = _Chain(record_set, config, config.augment, encode, config.train.batch_size // shard[1])
    if config.data.shuffle == "sequential":
        return chain.batches(_read_sequentially(record_set, config, start_step, shard))
    steps = tf.data.Dataset.range(start_step, tf.int64.max)
    return chain.batches(_read_in_order(steps, record_set, config, config.data.shuffle == "global", shard))


def eval_dataset(record_set: RecordSet, config: Config, encode=None) -> tf.data.Dataset:
    """One pass in the order of the records, not augmented; keys and filling as `train_dataset`."""
    chain = _Chain(record_set, config, NO_AUGMENT, encode, config.train.batch_size)
    steps = tf.data.Dataset.range(steps_per_epoch(record_set, config.train.batch_size))
    return chain.batches(_read_in_order(steps, record_set, config, False, (0, 1)))


def image_dataset(images, config: Config) -> tf.data.Dataset:
    """Images without annotations, for prediction: one pass, keys and filling as `eval_dataset`.

    Args:
        images: iterable of (image_id, bytes of an upright JPEG), see images.read_image.
    """
    chain = _Chain(None, config, NO_AUGMENT, None, config.train.batch_size)

    def rows():
        count = 0
        for image_id, encoded in images:
            count += 1
            yield image_id, encoded, True
        for _ in range(-count % config.train.batch_size):
            yield "", encoded, False

    kinds = (tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.bool))
    data = tf.data.Dataset.from_generator(rows, output_signature=kinds)
    data = data.map(_without_boxes).batch(config.train.batch_size, drop_remainder=True)
    return chain.examples_to_batches(data)


@dataclasses.dataclass(frozen=True)
class _Chain:
    """The stages that all data sets share."""

    record_set: RecordSet | None  # None: JPEGs without boxes
    config: Config
    augment: object
    encode: object
    rows: int  # in a batch

    def batches(self, data):
        """Single rows with `serialized` -> batches."""
        # small work a batch at a time: an op costs microseconds, whatever it works on
        data = data.batch(self.rows, drop_remainder=True).map(
            partial(_parse, chain=self), num_parallel_calls=self._parallel
        )
        return self.examples_to_batches(data)

    def examples_to_batches(self, data):
        data = data.map(partial(_plan, chain=self), num_parallel_calls=self._parallel)
        # decoding is per image again, and takes all the cores there are
        data = data.unbatch().map(partial(_decode, chain=self), num_parallel_calls=self._parallel)
        # by now shapes are static, which XLA needs
        data = data.batch(self.rows, drop_remainder=True)
        data = data.map(_stage(self), num_parallel_calls=self._parallel)
        # the training step and the pipeline work at the same time
        return data.prefetch(self.config.data.prefetch).with_options(self._options)

    @property
    def fill(self):
        """The colour of what lies outside of an image, None where no window reaches beyond its image."""
        if self.augment.expand_probability > 0:
            return image_ops.MEAN_RGB
        letterbox = self.augment.geometry == "none" and self.config.data.resize == "letterbox"
        return image_ops.GRAY if letterbox or self.augment.geometry == "yolo_jitter" else None

    @property
    def store(self) -> str:
        return self.record_set.store if self.record_set else "jpeg"

    @property
    def buckets(self) -> list[int]:
        return buckets(self.record_set.max_boxes if self.record_set else 0)

    @property
    def flips(self) -> bool:
        return bool(self.augment.horizontal_flip or self.augment.vertical_flip)

    @property
    def _parallel(self):
        return self.config.data.num_parallel_calls or tf.data.AUTOTUNE

    @property
    def _options(self):
        options = tf.data.Options()
        options.deterministic = self.config.data.deterministic
        options.autotune.enabled = not self.config.data.num_parallel_calls
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        if self.config.data.private_threads:
            options.threading.private_threadpool_size = self.config.data.private_threads
        return options


# --- order and reading --------------------------------------------------------------------------


def _read_in_order(steps, record_set, config, shuffled, shard):
    """Rows of the given steps, read one by one at their byte offsets."""
    parallel = config.data.num_parallel_calls or tf.data.AUTOTUNE
    data = steps.map(partial(_order, record_set=record_set, config=config, shuffled=shuffled, shard=shard)).unbatch()
    if 0 < record_set.index[:, 2].sum() <= config.data.ram_budget_mb * 1e6:
        held = tf.constant([bytes(record) for record in _all_records(record_set).as_numpy_iterator()])
        return data.map(lambda row: {**row, "serialized": tf.gather(held, row["index"])})
    return data.map(partial(_read, record_set=record_set), num_parallel_calls=parallel)


def _order(step, record_set, config, shuffled, shard):
    """The record numbers of one step: int64 [B] `index` and `epoch`, and bool [B] `valid` (not filling)."""
    batch_size, last = config.train.batch_size, tf.constant(record_set.num_images - 1, tf.int64)
    rows = batch_size // shard[1]
    per_epoch = steps_per_epoch(record_set, batch_size)
    epoch = step // per_epoch
    position = (step % per_epoch) * batch_size + shard[0] * rows + tf.range(rows, dtype=tf.int64)
    index = position % (last + 1)
    if shuffled:
        index = tf.random.experimental.index_shuffle(index, tf.stack([config.data.seed, epoch]), last)
    return {"index": index, "epoch": tf.fill([rows], epoch), "valid": position <= last}


def _read(row, record_set):
    """One record at its byte offset, without an iterator: open, seek, read."""
    place = tf.gather(tf.constant(record_set.index), row["index"])
    one = {"output_types": [tf.string], "output_shapes": [[]]}
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.gather(tf.constant(record_set.shard_paths), place[0])[None],
        compression_type="",
        buffer_size=_READ_BUFFER,
        byte_offsets=place[1][None],
    )
    variant = tf.raw_ops.TakeDataset(input_dataset=variant, count=1, **one)
    return {**row, "serialized": tf.raw_ops.DatasetToSingleElement(dataset=variant, **one)[0]}


def _all_records(record_set):
    return tf.data.TFRecordDataset(list(record_set.shard_paths))


def _read_sequentially(record_set, config, start_step, shard):
    """For storage where seeking is dear: shards in a drawn order, interleaved, through a buffer of serialized records.

    Resuming inside an epoch reads what it skips. The key of a record's draws is its position in the epoch.
    """
    batch_size, number = config.train.batch_size, record_set.num_images
    per_epoch = steps_per_epoch(record_set, batch_size)

    def one_epoch(epoch):
        seed = tf.stack([tf.constant(config.data.seed, tf.int64), epoch])
        paths = tf.constant(record_set.shard_paths)
        order = tf.random.experimental.index_shuffle(tf.range(len(record_set.shard_paths)), seed, len(paths) - 1)
        files = tf.data.Dataset.from_tensor_slices(tf.gather(paths, order))
        data = files.interleave(tf.data.TFRecordDataset, cycle_length=_FILES_AT_ONCE, num_parallel_calls=2)
        data = data.shuffle(config.data.shuffle_buffer, seed=epoch + config.data.seed)
        data = data.concatenate(data.take(per_epoch * batch_size - number)) if number % batch_size else data
        data = data.enumerate()
        return data.map(
            lambda i, record: {"index": i % number, "epoch": epoch, "valid": i < number, "serialized": record}
        )

    data = tf.data.Dataset.range(start_step // per_epoch, tf.int64.max).flat_map(one_epoch)
    data = data.skip(start_step % per_epoch * batch_size)
    if shard[1] == 1:
        return data
    rows = batch_size // shard[1]
    return data.batch(rows, drop_remainder=True).shard(shard[1], shard[0]).unbatch()


# --- the stages ---------------------------------------------------------------------------------


def _parse(rows, chain):
    """A batch of serialized records -> examples: boxes dense, padded with zeros and -1 to one of the buckets."""
    fields = tf.io.parse_example(rows.pop("serialized"), schema.record_features())
    corners = [fields[key] for key in (schema.XMIN, schema.YMIN, schema.XMAX, schema.YMAX)]
    label, difficult = fields[schema.CLASS_LABEL], fields[schema.DIFFICULT]
    labels = tf.where(difficult.values > 0, schema.IGNORE, tf.cast(label.values, tf.int32) - 1)  # 1-based on disk
    most = tf.cast(tf.reduce_max(label.row_lengths()), tf.int32)
    bucket = tf.gather(chain.buckets, tf.searchsorted(chain.buckets, most[None])[0])
    boxes = corners[0].with_values(tf.stack([corner.values for corner in corners], -1))
    size = tf.stack([fields[schema.HEIGHT], fields[schema.WIDTH]], -1)
    return {
        **rows,
        "encoded": fields[schema.ENCODED],
        schema.BOXES: boxes.to_tensor(0.0, shape=tf.stack([-1, bucket, 4])),
        schema.LABELS: label.with_values(labels).to_tensor(schema.BACKGROUND, shape=tf.stack([-1, bucket])),
        schema.IMAGE_ID: fields[schema.SOURCE_ID],
        schema.IMAGE_SIZE: tf.cast(size, tf.int32),
    }


def _without_boxes(image_id, encoded, valid):
    """An image of no record as an example."""
    return {
        "index": tf.constant(0, tf.int64), "epoch": tf.constant(0, tf.int64), "valid": valid, "encoded": encoded,
        schema.BOXES: tf.zeros([SMALLEST_BUCKET, 4]), schema.LABELS: tf.fill([SMALLEST_BUCKET], schema.BACKGROUND),
        schema.IMAGE_ID: image_id, schema.IMAGE_SIZE: tf.image.extract_jpeg_shape(encoded)[:2],
    }  # fmt: skip


def _plan(example, chain):
    """Chooses the window of each image, what to decode for it, and maps the boxes into it."""
    boxes, labels, size = (example[key] for key in (schema.BOXES, schema.LABELS, schema.IMAGE_SIZE))
    config, output = chain.config, chain.config.detector.image_size
    keys = example["epoch"], example["index"]
    if chain.augment.geometry == "none" and config.data.resize == "letterbox":
        window = box_ops.letterbox_window(size, output)
    else:
        u = random.uniform(config.data.seed, random.WINDOW, *keys, augment.NUM_WINDOW_DRAWS)
        window = augment.choose_window(u, size, boxes, labels, chain.augment, output)
    crop, target, ratio, window = image_ops.place(window, size, output, allow_ratio=chain.store == "jpeg")
    cropping = chain.augment.geometry in ("random_size_crop", "ssd_crop")
    boxes, labels = augment.boxes_in_window(boxes, labels, window, output, cropping, config.data.min_visible)
    planned = {"crop": crop, "target": target, "ratio": ratio}
    if chain.flips:
        u = random.uniform(config.data.seed, random.FLIP, *keys, 2)
        planned["flips"] = u < [chain.augment.horizontal_flip, chain.augment.vertical_flip]
        boxes = augment.flip_boxes(boxes, labels, planned["flips"])
    valid = example["valid"]
    labels = tf.where(valid[:, None], labels, schema.IGNORE)
    image_id = tf.where(valid, example[schema.IMAGE_ID], "")
    return {**example, **planned, schema.BOXES: boxes, schema.LABELS: labels, schema.IMAGE_ID: image_id}


def _decode(row, chain):
    """The costly half of the record stage: the crop's pixels, resized, placed and flipped."""
    crop, target, ratio = (row.pop(key) for key in ("crop", "target", "ratio"))
    image = image_ops.decode_crop(row.pop("encoded"), crop, ratio, chain.store, row[schema.IMAGE_SIZE])
    image = image_ops.resize_into(image, target, chain.config.detector.image_size, chain.fill)
    if chain.flips:
        image = image_ops.flip(image, *tf.unstack(row.pop("flips")))
    return {**row, schema.IMAGE: image}


def _stage(chain):
    """The batch stage: one XLA program for each bucket of boxes that turns up."""
    compiled = tf.function(lambda batch: _compute(batch, chain), jit_compile=True)

    def run(batch, bucket):
        boxes = tf.ensure_shape(batch[schema.BOXES], [chain.rows, bucket, 4])
        labels = tf.ensure_shape(batch[schema.LABELS], [chain.rows, bucket])
        return compiled({**batch, schema.BOXES: boxes, schema.LABELS: labels})

    def stage(batch):
        keys = batch.pop("epoch"), batch.pop("index")
        host = {key: batch.pop(key) for key in (schema.IMAGE_ID, schema.IMAGE_SIZE)}
        batch["draws"] = augment.draw_colour(batch[schema.IMAGE], *keys, chain.augment, chain.config.data.seed)
        if not batch["draws"] and chain.encode is None:  # nothing to compute
            return {key: batch[key] for key in (schema.IMAGE, schema.BOXES, schema.LABELS)} | host
        bucket = tf.searchsorted(chain.buckets, tf.shape(batch[schema.BOXES])[1:2])[0]
        return {**tf.switch_case(bucket, [partial(run, batch, size) for size in chain.buckets]), **host}

    return stage


def _compute(batch, chain):
    """Colour, matching and encoding; static shapes, no strings."""
    boxes, labels = batch[schema.BOXES], batch[schema.LABELS]
    image = augment.change_colour(batch[schema.IMAGE], batch["draws"])
    outputs = {schema.IMAGE: image, schema.BOXES: boxes, schema.LABELS: labels}
    if chain.encode is not None:
        targets = chain.encode(boxes, labels)
        target_labels = tf.where(batch["valid"][:, None], targets[schema.TARGET_LABELS], schema.IGNORE)
        outputs |= {**targets, schema.TARGET_LABELS: target_labels}
    return outputs


# --- faults -------------------------------------------------------------------------------------


def find_faults(record_set: RecordSet) -> list[tuple[int, str]]:
    """Reads, parses and decodes every record once, at the decoder's speed.

    Returns:
        (record number, text) of each that fails; the text names shard, record in the shard, and the reason.
    """
    check = partial(_check, record_set=record_set)

    def survives(row):  # nothing comes out of the inner data set if `check` raises
        inner = tf.data.Dataset.from_tensors(row).map(check).apply(tf.data.experimental.ignore_errors())
        return inner.concatenate(tf.data.Dataset.from_tensors(False)).take(1).get_single_element()

    rows = tf.data.Dataset.range(record_set.num_images).map(lambda i: {"index": i})
    good = np.fromiter(rows.map(survives, num_parallel_calls=tf.data.AUTOTUNE).as_numpy_iterator(), bool)
    return [(int(i), _fault(record_set, i)) for i in np.flatnonzero(~good)]


def _check(row, record_set):
    fields = tf.io.parse_single_example(_read(row, record_set)["serialized"], schema.record_features())
    pixels = 3 * fields[schema.HEIGHT] * fields[schema.WIDTH]
    if record_set.store == "jpeg":
        size = tf.size(tf.io.decode_jpeg(fields[schema.ENCODED], channels=3), tf.int64)
    else:
        size = tf.cast(tf.strings.length(fields[schema.ENCODED]), tf.int64)
    with tf.control_dependencies([tf.debugging.assert_equal(size, pixels, "the image has another size than recorded")]):
        return tf.constant(True)


def _fault(record_set, number):
    shard, offset, _ = record_set.index[number]
    in_shard = number - np.searchsorted(record_set.index[:, 0], shard)
    try:
        _check({"index": tf.constant(number)}, record_set)
        reason = "failed once, and reads well now"
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0].split("}} ")[-1]
    return f"{record_set.shard_paths[shard]}: record {in_shard} (byte {offset}): {reason}"


def without(record_set: RecordSet, numbers) -> RecordSet:
    """The record set less the records of the given numbers."""
    index = np.delete(record_set.index, list(numbers), axis=0)
    return dataclasses.replace(record_set, index=index, num_images=len(index))
