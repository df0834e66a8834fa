"""Mosaic and mixup, for a whole batch at once, with their boxes.

Decoding is nearly all that a batch costs, so images are mixed with images of their own batch: each is decoded once,
at the size of the network input, and may appear in its own row and, in parts, in others. Partners stand in the same
group of 8 consecutive rows of the global batch (of 4 where 8 does not divide it), so that input pipelines of several
workers make the same batches as one does.

Functions named `plan_*` turn draws, uniform in [0, 1), into whole pixels; boxes and pixels then follow the plan.
"""

import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import schema
from tfdet.config import MIXING_GROUPS, AugmentConfig, ConfigError
from tfdet.data import augment, cutout, random

MOSAIC_CENTRE = (0.3, 0.7)  # where the four tiles meet, shares of height and width
_ORDER = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))  # a row's own image is put in any of the corners


def group_size(batch_size: int) -> int:
    """How many consecutive rows of a global batch are mixed with each other; `Config` sees to it that there is one."""
    return next(size for size in MIXING_GROUPS if batch_size % size == 0)


def require_whole_groups(batch_size: int, rows: int):
    """Raises ConfigError if this input pipeline's share of a batch, so many rows, is not a whole number of groups."""
    size = group_size(batch_size)
    if rows % size:
        raise ConfigError(
            f"augment.mosaic and mixup mix {size} rows with each other, which {rows} rows an input pipeline cannot "
            f"hold; take a train.batch_size that is a multiple of {size} times the number of input pipelines"
        )


def is_mixing(config: AugmentConfig) -> bool:
    """Whether rows take pixels of other rows."""
    return bool(config.mosaic or config.mixup)


def most_boxes(max_boxes: int, config: AugmentConfig) -> int:
    """The largest count of boxes of an image after mixing."""
    return max_boxes * (4 if config.mosaic else 1) * (2 if config.mixup else 1)


def partners(u, group: int):
    """The rows that each row of a batch is mixed with, different ones of its group.

    Args:
        u: float32 [B, group - 1]; group: rows that are mixed, a divisor of B.
    Returns:
        int32 [B, group - 1], in a drawn order; never the row itself.
    """
    row = tf.range(tf.shape(u)[0])[:, None]
    first = row // group * group
    return first + (row - first + 1 + tf.argsort(u, stable=True)) % group


# --- mosaic -------------------------------------------------------------------------------------


def num_mosaic_draws(group: int) -> int:
    """Draws an image that `plan_mosaic` takes."""
    return 16 + group - 1


def plan_mosaic(u, output_size, group: int, probability: float) -> dict:
    """Four tiles that meet at a drawn point; each shows a part of another image.

    A tile's image is shrunk by a drawn factor between none and the one at which its longer side, relative to the
    tile's, just fits; the part that is shown is drawn among those that fill the tile. Aspects are kept, and no tile
    has an empty margin. Source of the idea: YOLOv4, https://arxiv.org/abs/2004.10934, section 3.3.

    Args:
        u: float32 [B, num_mosaic_draws(group)]: whether, centre y, x, corner of the row's own image, a scale and
            a place (y, x) for each tile, partners. output_size: (height, width) of the network input.
    Returns:
        drawn bool [B]; sources int32 [B, 4] rows; tiles and windows int32 [B, 4, 4] y, x, height, width in pixels:
        where a source goes, and what of it. Tiles: top left, top right, bottom left, bottom right.
    """
    size = tf.constant(output_size, tf.float32)
    low, high = MOSAIC_CENTRE
    centre = tf.round((low + (high - low) * u[:, 1:3]) * size)
    (top, left), (height, width) = tf.unstack(centre, axis=1), output_size
    zero, below, right = tf.zeros_like(top), height - top, width - left
    tiles = tf.stack(
        [
            tf.stack([zero, zero, top, left], -1), tf.stack([zero, left, top, right], -1),
            tf.stack([top, zero, below, left], -1), tf.stack([top, left, below, right], -1),
        ], 1,
    )  # fmt: skip
    tile = tiles[..., 2:]
    smallest = tf.reduce_max(tile / size, -1, keepdims=True)
    shown = tf.minimum(tf.round(tile / (smallest + (1.0 - smallest) * u[:, 4:8, None])), size)
    start = tf.floor(tf.reshape(u[:, 8:16], [-1, 4, 2]) * (size - shown + 1.0))
    windows = tf.concat([tf.minimum(start, size - shown), shown], -1)
    rows = tf.concat([tf.range(tf.shape(u)[0])[:, None], partners(u[:, 16:], group)[:, :3]], 1)
    order = tf.gather(tf.constant(_ORDER), tf.cast(u[:, 3] * 4.0, tf.int32))
    return {
        "drawn": u[:, 0] < probability,
        "sources": tf.gather(rows, order, batch_dims=1),
        "tiles": tf.cast(tiles, tf.int32),
        "windows": tf.cast(windows, tf.int32),
    }


def mosaic_boxes(boxes, labels, plan: dict, output_size, min_visible: float = 0.0):
    """Boxes of the mosaics: float32 [B, M, 4], int32 [B, M] -> [B, 4 * M, 4], [B, 4 * M].

    As `augment.boxes_in_window`, for every tile. Rows without a mosaic keep theirs.
    """
    batch, count = tf.shape(labels)[0], tf.shape(labels)[1]
    tiles, windows = (tf.reshape(box_ops.from_yxhw(plan[key], output_size), [-1, 4]) for key in ("tiles", "windows"))
    sources = tf.reshape(plan["sources"], [-1])
    seen, seen_labels = augment.boxes_in_window(
        tf.gather(boxes, sources), tf.gather(labels, sources), windows, output_size, False, min_visible
    )
    placed = tf.reshape(box_ops.from_window(seen, tiles[:, None]), [batch, 4 * count, 4])
    whole = tf.tile(tf.constant([augment.WHOLE]), [batch, 1])
    placed, placed_labels = augment.boxes_in_window(
        placed, tf.reshape(seen_labels, [batch, 4 * count]), whole, output_size, False
    )  # a shrunk box may be less than a pixel now
    drawn = plan["drawn"][:, None]
    own = tf.pad(labels, [[0, 0], [0, 3 * count]], constant_values=schema.BACKGROUND)
    own_boxes = tf.pad(boxes, [[0, 0], [0, 3 * count], [0, 0]])
    return tf.where(drawn[..., None], placed, own_boxes), tf.where(drawn, placed_labels, own)


def mosaic_images(images, plan: dict):
    """uint8 [B, H, W, 3] and `plan_mosaic`'s dict -> uint8 [B, H, W, 3]; bilinear, half-pixel centres."""

    def compose(row):
        _, sources, tiles, windows = row
        parts = [_shrink(images[sources[k]], windows[k], tiles[k, 2:]) for k in range(4)]
        pixels = tf.concat([tf.concat(parts[:2], 1), tf.concat(parts[2:], 1)], 0)
        return tf.ensure_shape(pixels, images.shape[1:])

    def one(row):
        return tf.cond(row[0], lambda: compose(row[1:]), lambda: images[row[1]])

    rows = (plan["drawn"], tf.range(tf.shape(images)[0]), plan["sources"], plan["tiles"], plan["windows"])
    spec = tf.TensorSpec(images.shape[1:], tf.uint8)
    return tf.ensure_shape(tf.map_fn(one, rows, fn_output_signature=spec), images.shape)


def _shrink(image, window, size):
    y, x, height, width = tf.unstack(window)
    part = image[None, y : y + height, x : x + width]
    return tf.cast(tf.raw_ops.ResizeBilinear(images=part, size=size, half_pixel_centers=True)[0] + 0.5, tf.uint8)


# --- mixup --------------------------------------------------------------------------------------


def num_mixup_draws(group: int, config: AugmentConfig) -> int:
    """Draws an image that `plan_mixup` takes."""
    return group + 2 * config.mixup_alpha - 1


def plan_mixup(u, group: int, config: AugmentConfig) -> dict:
    """A partner and the row's own share, from Beta(a, a): the median of 2a - 1 uniform draws.

    Source: https://arxiv.org/abs/1902.04103 (for detection), https://arxiv.org/abs/1710.09412. Boxes carry no weight
    here, so that shares near a half are the sound ones: `mixup_alpha` is 8 and not 1.5 as there.

    Args:
        u: float32 [B, num_mixup_draws]: whether, partners, the share.
    Returns:
        partner int32 [B], the row itself where nothing is mixed; share float32 [B], then 1.
    """
    drawn = u[:, 0] < config.mixup
    share = tf.sort(u[:, group:])[:, config.mixup_alpha - 1]
    partner = tf.where(drawn, partners(u[:, 1:group], group)[:, 0], tf.range(tf.shape(u)[0]))
    return {"partner": partner, "share": tf.where(drawn, share, 1.0)}


def mixup_boxes(boxes, labels, plan: dict):
    """The boxes of both images: float32 [B, M, 4], int32 [B, M] -> [B, 2 * M, 4], [B, 2 * M]."""
    own = (plan["partner"] == tf.range(tf.shape(labels)[0]))[:, None]
    others = tf.where(own, schema.BACKGROUND, tf.gather(labels, plan["partner"]))
    other_boxes = tf.where(own[..., None], 0.0, tf.gather(boxes, plan["partner"]))
    return tf.concat([boxes, other_boxes], 1), tf.concat([labels, others], 1)


def mixup_images(images, others, share):
    """share * images + (1 - share) * others, rounded: uint8 [B, H, W, 3] twice, float32 [B]; meant for XLA."""
    share = share[:, None, None, None]
    pixels = share * tf.cast(images, tf.float32) + (1.0 - share) * tf.cast(others, tf.float32)
    return tf.cast(pixels + 0.5, tf.uint8)


# --- all of them --------------------------------------------------------------------------------


def plan(boxes, labels, seed: int, keys, config: AugmentConfig, output_size, group: int, min_visible: float):
    """What is mixed and cut in a batch, and its boxes after that.

    Args:
        boxes: float32 [B, M, 4]; labels: int32 [B, M]; keys: epoch, element int64 [B], the keys of the draws.
        group: see `group_size`; needed where `is_mixing`.
    Returns:
        dict for `mix` and `cutout.cut`; boxes float32 [B, N, 4], labels int32 [B, N], objects not yet in front.
    """
    planned = {}
    if config.mosaic:
        u = random.uniform(seed, random.MOSAIC, *keys, num_mosaic_draws(group))
        planned["mosaic"] = plan_mosaic(u, output_size, group, config.mosaic)
        boxes, labels = mosaic_boxes(boxes, labels, planned["mosaic"], output_size, min_visible)
    if config.mixup:
        u = random.uniform(seed, random.MIXUP, *keys, num_mixup_draws(group, config))
        planned["mixup"] = plan_mixup(u, group, config)
        boxes, labels = mixup_boxes(boxes, labels, planned["mixup"])
    if config.cutout:
        u = random.uniform(seed, random.CUTOUT, *keys, cutout.num_draws(config))
        planned["holes"] = cutout.plan(u, output_size, config)
        labels = cutout.labels_after(boxes, labels, planned["holes"], output_size, config.cutout_hidden)
    return planned, boxes, labels


def pack(boxes, labels, sizes):
    """Moves padding to the end and cuts it off, down to the smallest of `sizes` that every image's boxes fit in.

    Args:
        boxes: float32 [B, N, 4]; labels: int32 [B, N]; sizes: ascending ints, the last holds any image.
    """
    padding = labels == schema.BACKGROUND
    most = tf.reduce_max(tf.reduce_sum(tf.cast(~padding, tf.int32), -1))
    size = tf.gather(sizes, tf.searchsorted(sizes, most[None])[0])
    short = tf.maximum(size - tf.shape(labels)[1], 0)
    order = tf.argsort(tf.cast(padding, tf.int32), stable=True)[:, :size]
    boxes = tf.pad(tf.gather(boxes, order, batch_dims=1), [[0, 0], [0, short], [0, 0]])
    labels = tf.gather(labels, order, batch_dims=1)
    return boxes, tf.pad(labels, [[0, 0], [0, short]], constant_values=schema.BACKGROUND)


def mix(images, planned: dict):
    """uint8 [B, H, W, 3] and the dict of `plan` -> uint8 [B, H, W, 3], after mosaic and mixup."""
    if "mosaic" in planned:
        images = mosaic_images(images, planned["mosaic"])
    if "mixup" in planned:
        others = tf.ensure_shape(tf.gather(images, planned["mixup"]["partner"]), images.shape)
        images = _compiled_mixup(images, others, planned["mixup"]["share"])
    return images


_compiled_mixup = tf.function(mixup_images, jit_compile=True, autograph=False)
