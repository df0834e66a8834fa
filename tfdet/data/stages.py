"""What the pipeline does to rows and batches, as functions of TensorFlow ops; pipeline.py puts them in order.

A row is one image on its way, a dict; what belongs to the records' order is in `index`, `epoch` (the keys of its
random draws) and `valid` (False where it only fills up a batch).
"""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import schema
from tfdet.config import AugmentConfig, Config
from tfdet.data import affine, augment, cutout, filters, image_ops, mixing, random
from tfdet.data.reading import Held

SMALLEST_BUCKET = 8
# what the batch stage hands through
_UNTOUCHED = (
    schema.IMAGE_ID, schema.IMAGE_SIZE, schema.TRUE_BOXES, schema.TRUE_LABELS, schema.TRUE_DIFFICULT,
)  # fmt: skip


def buckets(max_boxes: int) -> list[int]:
    """Counts of boxes an image that a batch can be padded to: 8, 16, 32, ... and `max_boxes`, as a multiple of 8.

    Every batch takes the smallest that fits it; XLA compiles one batch stage for each.
    """
    last = max(-(-max_boxes // SMALLEST_BUCKET), 1) * SMALLEST_BUCKET
    sizes = [SMALLEST_BUCKET]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes


@dataclass(frozen=True)
class Stages:
    """The stages for one data set.

    Attributes:
        store: "jpeg" or "raw", how the records hold images.
        max_boxes: the largest count of boxes in one image.
        augment: NO_AUGMENT for all but training.
        encode: (boxes [B, M, 4], labels [B, M]) -> dict of targets, or None.
        rows: images in a batch.
        truth: keep the annotations as they are, for evaluation: `schema.TRUE_BOXES` and its companions.
        numbered: batches keep "step", the number of the step each row is for.
        held: the records, where they are in memory.
    """

    store: str
    max_boxes: int
    config: Config
    augment: AugmentConfig
    encode: Callable | None
    rows: int
    truth: bool = False
    numbered: bool = False
    held: Held | None = None

    def __post_init__(self):
        filters.require_possible(self.augment)
        if mixing.is_mixing(self.augment):
            mixing.require_whole_groups(self.config.train.batch_size, self.rows)

    @property
    def buckets(self) -> list[int]:
        """Counts of boxes an image that the batch stage meets."""
        return buckets(mixing.most_boxes(self.max_boxes, self.augment))

    @property
    def fill(self):
        """The colour of what lies outside of an image, None where no window reaches beyond its image."""
        if self.letterboxed or self.augment.geometry == "yolo_jitter":
            return image_ops.GRAY
        return image_ops.MEAN_RGB if self.augment.expand_probability > 0 else None

    @property
    def letterboxed(self) -> bool:
        """Whether images keep their aspect; those that are cropped or jittered do not."""
        return self.augment.geometry == "none" and self.config.data.resize == "letterbox"

    @property
    def flips(self) -> bool:
        return bool(self.augment.horizontal_flip or self.augment.vertical_flip)

    def parse(self, rows):
        """A batch of serialized records -> examples: boxes dense, padded with zeros and -1 to one of the buckets."""
        fields = tf.io.parse_example(rows.pop("serialized"), schema.record_features())
        corners = [fields[key] for key in (schema.XMIN, schema.YMIN, schema.XMAX, schema.YMAX)]
        label, difficult = fields[schema.CLASS_LABEL], fields[schema.DIFFICULT]
        classes = tf.cast(label.values, tf.int32) - 1  # 1-based on disk
        labels = tf.where(difficult.values > 0, schema.IGNORE, classes)
        sizes = buckets(self.max_boxes)
        bucket = tf.gather(
            sizes, tf.searchsorted(sizes, tf.cast(tf.reduce_max(label.row_lengths()), tf.int32)[None])[0]
        )
        boxes = corners[0].with_values(tf.stack([corner.values for corner in corners], -1))
        size = tf.stack([fields[schema.HEIGHT], fields[schema.WIDTH]], -1)
        dense = lambda values, fill: label.with_values(values).to_tensor(fill, shape=tf.stack([-1, bucket]))  # noqa: E731
        example = {
            **rows,
            "encoded": fields[schema.ENCODED],
            schema.BOXES: boxes.to_tensor(0.0, shape=tf.stack([-1, bucket, 4])),
            schema.LABELS: dense(labels, schema.BACKGROUND),
            schema.IMAGE_ID: fields[schema.SOURCE_ID],
            schema.IMAGE_SIZE: tf.cast(size, tf.int32),
        }
        if self.truth:
            example[schema.TRUE_BOXES] = example[schema.BOXES]
            example[schema.TRUE_LABELS] = dense(classes, schema.BACKGROUND)
            example[schema.TRUE_DIFFICULT] = dense(difficult.values > 0, False)
        return example

    def plan(self, example):
        """Chooses the window of each image, what to decode for it, and maps the boxes into it."""
        boxes, labels, size = (example[key] for key in (schema.BOXES, schema.LABELS, schema.IMAGE_SIZE))
        data, output = self.config.data, self.config.detector.image_size
        keys = example["epoch"], example["index"]
        window = tf.tile(tf.constant([augment.WHOLE]), [self.rows, 1])
        if self.augment.geometry != "none" or self.augment.expand_probability > 0:
            u = random.uniform(data.seed, random.WINDOW, *keys, augment.NUM_WINDOW_DRAWS[self.augment.geometry])
            window = augment.choose_window(u, size, boxes, labels, self.augment, output)
        if self.letterboxed:  # a canvas to zoom out on has the aspect of its image
            window = box_ops.from_window(box_ops.letterbox_window(size, output), window)
        crop, target, ratio, window = image_ops.place(window, size, output, allow_ratio=self.store == "jpeg")
        cropping = self.augment.geometry in ("random_size_crop", "ssd_crop")
        boxes, labels = augment.boxes_in_window(boxes, labels, window, output, cropping, data.min_visible)
        planned = {"crop": crop, "target": target, "ratio": ratio}
        if self.flips:
            u = random.uniform(data.seed, random.FLIP, *keys, 2)
            planned["flips"] = u < [self.augment.horizontal_flip, self.augment.vertical_flip]
            boxes = augment.flip_boxes(boxes, labels, planned["flips"])
        further, boxes, labels = self._plan_further(keys, boxes, labels)
        labels = tf.where(example["valid"][:, None], labels, schema.IGNORE)
        image_id = tf.where(example["valid"], example[schema.IMAGE_ID], "")
        planned |= {**further, schema.BOXES: boxes, schema.LABELS: labels, schema.IMAGE_ID: image_id}
        return {**example, **planned}

    def _plan_further(self, keys, boxes, labels):
        """What changes images at the size of the network input; the plans, boxes and labels."""
        config, data, output = self.augment, self.config.data, self.config.detector.image_size
        planned = {}
        if affine.is_on(config):
            u = random.uniform(data.seed, random.AFFINE, *keys, affine.NUM_DRAWS)
            planned["affine"] = affine.plan(u, config, output)
            boxes, labels = affine.map_boxes(boxes, labels, planned["affine"], output, data.min_visible)
        if filters.is_on(config):
            planned["filters"] = filters.plan(data.seed, keys, config)
        group = mixing.group_size(self.config.train.batch_size) if mixing.is_mixing(config) else 1
        mix, boxes, labels = mixing.plan(boxes, labels, data.seed, keys, config, output, group, data.min_visible)
        if mix:
            planned["mix"] = mix
            boxes, labels = mixing.pack(boxes, labels, self.buckets)
        return planned, boxes, labels

    def decode(self, row):
        """The costly half of the record stage, one image: the crop's pixels, resized, placed and flipped."""
        image, target = self.decode_crop(row), row["target"]
        row = {key: value for key, value in row.items() if key not in ("encoded", "crop", "target", "ratio")}
        image = image_ops.resize_into(image, target, self.config.detector.image_size, self.fill)
        if self.flips:
            image = image_ops.flip(image, *tf.unstack(row.pop("flips")))
        if "filters" in row:
            image = filters.change(image, row.pop("filters"))
        return {**row, schema.IMAGE: image}

    def decode_crop(self, row):
        """The crop's pixels, as they are; by itself for measuring."""
        if self.held and self.held.pixels is not None:
            start = tf.gather(self.held.starts, row["index"])
            return image_ops.crop_raw(self.held.pixels, start, row["crop"], row[schema.IMAGE_SIZE])
        return image_ops.decode_crop(row["encoded"], row["crop"], row["ratio"], self.store, row[schema.IMAGE_SIZE])

    def batch_stage(self) -> Callable:
        """The batch stage: one XLA program for each bucket of boxes that turns up."""
        compiled = tf.function(self.compute, jit_compile=True, autograph=False)
        sizes = self.buckets

        def run(batch, bucket):
            boxes = tf.ensure_shape(batch[schema.BOXES], [self.rows, bucket, 4])
            labels = tf.ensure_shape(batch[schema.LABELS], [self.rows, bucket])
            return compiled({**batch, schema.BOXES: boxes, schema.LABELS: labels})

        def stage(batch):
            keys, step = (batch.pop("epoch"), batch.pop("index")), batch.pop("step")
            host = {key: batch.pop(key) for key in _UNTOUCHED if key in batch}
            host |= {"step": step} if self.numbered else {}
            if "affine" in batch:
                batch[schema.IMAGE] = affine.compiled_map_images(batch[schema.IMAGE], batch.pop("affine"))
            mix = batch.pop("mix", {})
            batch[schema.IMAGE] = mixing.mix(batch[schema.IMAGE], mix)
            batch |= {"holes": mix["holes"]} if "holes" in mix else {}
            batch["draws"] = augment.draw_colour(batch[schema.IMAGE], *keys, self.augment, self.config.data.seed)
            if not batch["draws"] and self.encode is None and "holes" not in batch:  # nothing to compute
                return {key: batch[key] for key in (schema.IMAGE, schema.BOXES, schema.LABELS)} | host
            number = tf.searchsorted(sizes, tf.shape(batch[schema.BOXES])[1:2])[0]
            branches = [lambda size=size: run(batch, size) for size in sizes]
            outputs = tf.switch_case(number, branches)
            outputs[schema.IMAGE] = tf.reshape(outputs[schema.IMAGE], batch[schema.IMAGE].shape)
            return {**outputs, **host}

        return stage

    def compute(self, batch):
        """Colour, holes, matching and encoding; static shapes, no strings. Images come out as [B, H, W*3]."""
        boxes, labels = batch[schema.BOXES], batch[schema.LABELS]
        image = augment.change_colour(batch[schema.IMAGE], batch["draws"])
        if "holes" in batch:
            holed = cutout.cut(tf.reshape(image, batch[schema.IMAGE].shape), batch["holes"])
            image = tf.reshape(holed, image.shape)
        outputs = {schema.IMAGE: image, schema.BOXES: boxes, schema.LABELS: labels}
        if self.encode is not None:
            targets = self.encode(boxes, labels)
            target_labels = tf.where(batch["valid"][:, None], targets[schema.TARGET_LABELS], schema.IGNORE)
            outputs |= {**targets, schema.TARGET_LABELS: target_labels}
        return outputs


def without_boxes(image_id, encoded, valid):
    """An image of no record as an example."""
    return {
        "index": tf.constant(0, tf.int64), "epoch": tf.constant(0, tf.int64), "step": tf.constant(0, tf.int64),
        "valid": valid, "encoded": encoded,
        schema.BOXES: tf.zeros([SMALLEST_BUCKET, 4]), schema.LABELS: tf.fill([SMALLEST_BUCKET], schema.BACKGROUND),
        schema.IMAGE_ID: image_id, schema.IMAGE_SIZE: tf.image.extract_jpeg_shape(encoded)[:2],
    }  # fmt: skip
