"""Random changes of images and their boxes, for a whole batch at once.

Geometry is the choice of a window (see boxes.py) and of flips, and is settled before anything is decoded; colour
changes in the batch stage. Every function is pure: the draws come in as an argument, uniform in [0, 1).
"""

import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import schema
from tfdet.config import AugmentConfig
from tfdet.data import image_ops, random

WHOLE = (0.0, 0.0, 1.0, 1.0)
SSD_MIN_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # and, as a seventh choice, the whole image
SSD_TRIES = 50
_SSD_SCALE = (0.3, 1.0)
_SSD_ASPECT = (0.5, 2.0)

# draws that choose_window takes: four for `expand`, then those of the geometry
NUM_WINDOW_DRAWS = {"none": 4, "random_size_crop": 4 + 6, "ssd_crop": 4 + 1 + 4 * SSD_TRIES, "yolo_jitter": 4 + 5}


def _between(u, limits):
    return limits[0] + (limits[1] - limits[0]) * u


# --- windows ------------------------------------------------------------------------------------


def flip_boxes(boxes, labels, flips):
    """boxes float32 [B, M, 4], labels int32 [B, M], flips bool [B, 2] horizontal, vertical; padding stays zeros."""
    boxes = tf.where(flips[:, :1, None], box_ops.flip_horizontally(boxes), boxes)
    boxes = tf.where(flips[:, 1:, None], box_ops.flip_vertically(boxes), boxes)
    return tf.where((labels == schema.BACKGROUND)[..., None], 0.0, boxes)


def choose_window(u, image_size, boxes, labels, config: AugmentConfig, output_size):
    """The window of every image of a batch that training sees.

    Args:
        u: float32 [B, NUM_WINDOW_DRAWS[geometry]] draws; image_size: int32 [B, 2] height, width.
        boxes: float32 [B, M, 4] xyxy relative; labels: int32 [B, M].
        output_size: (height, width) of the network input.
    Returns:
        float32 [B, 4] xyxy, relative to the image.
    """
    whole = tf.ones_like(u[:, :1]) * tf.constant(WHOLE)
    canvas = expand(u[:, :4], whole, config) if config.expand_probability > 0 else whole
    rest = u[:, 4:]
    if config.geometry == "yolo_jitter":
        return yolo_jitter(rest, config, output_size)
    if config.geometry == "random_size_crop":
        window = random_size_crop(rest, image_size, config)
    elif config.geometry == "ssd_crop":
        window = ssd_crop(rest, box_ops.to_window(boxes, canvas[:, None]), labels)
    else:
        return canvas
    return box_ops.from_window(window, canvas)


def expand(u, whole, config: AugmentConfig):
    """Zoom-out of the SSD paper: the image somewhere on a canvas up to `expand_ratio` times its sides.

    u: float32 [B, 4]: whether, ratio, x, y.
    """
    ratio = _between(u[:, 1:2], (1.0, config.expand_ratio))
    low = -u[:, 2:4] * (ratio - 1.0)
    return tf.where(u[:, :1] < config.expand_probability, tf.concat([low, low + ratio], -1), whole)


def random_size_crop(u, image_size, config: AugmentConfig):
    """rykov8/ssd_keras' crop: a share of the area and an aspect are drawn, sides swapped half of the time.

    u: float32 [B, >= 6]: area, aspect, swap, x, y, whether to crop at all.
    """
    size = tf.cast(tf.reverse(image_size, [1]), tf.float32)  # w, h
    area = size[:, 0] * size[:, 1] * _between(u[:, 0], config.crop_area)
    aspect = _between(u[:, 1], config.crop_aspect)
    sides = tf.round(tf.sqrt(tf.stack([area * aspect, area / aspect], -1)))
    sides = tf.where(u[:, 2:3] < 0.5, tf.reverse(sides, [1]), sides)
    sides = tf.clip_by_value(sides, 1.0, size)
    low = tf.floor(u[:, 3:5] * (size - sides))
    window = tf.concat([low, low + sides], -1) / tf.concat([size, size], -1)
    return tf.where(u[:, 5:6] < config.crop_probability, window, tf.constant(WHOLE))


def ssd_crop(u, boxes, labels):
    """The SSD paper's sampler (https://arxiv.org/abs/1512.02325, section 2.2; scales of its Caffe code).

    A minimum IoU with an object is drawn, or the whole image; of 50 candidate windows the first one is taken that
    overlaps an object at least so much and holds the centre of one; where none does, the whole image.

    Args:
        u: float32 [B, 1 + 4 * 50]; boxes: float32 [B, M, 4] relative to what is cropped; labels: int32 [B, M].
    """
    choice = tf.cast(u[:, 0] * (len(SSD_MIN_IOUS) + 1), tf.int32)
    min_iou = tf.gather(tf.constant((*SSD_MIN_IOUS, 2.0)), choice)  # 2: never met, so the whole image
    scale, aspect, x, y = tf.unstack(tf.reshape(u[:, 1 : 1 + 4 * SSD_TRIES], [-1, 4, SSD_TRIES]), axis=1)
    scale = _between(scale, _SSD_SCALE)
    least, most = tf.maximum(_SSD_ASPECT[0], scale**2), tf.minimum(_SSD_ASPECT[1], 1.0 / scale**2)
    aspect = tf.sqrt(least + (most - least) * aspect)
    sides = tf.stack([scale * aspect, scale / aspect], -1)
    low = tf.stack([x, y], -1) * (1.0 - sides)
    windows = tf.concat([low, low + sides], -1)  # [B, 50, 4]

    usable = box_ops.is_valid(boxes) & (labels != schema.BACKGROUND)
    enough = box_ops.iou(windows[:, :, None], boxes[:, None]) >= min_iou[:, None, None]
    fits = tf.reduce_any(enough & usable[:, None], -1)
    fits &= tf.reduce_any(_centre_inside(boxes[:, None], windows[:, :, None]) & usable[:, None], -1)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
    window = tf.gather(windows, first, batch_dims=1)
    return tf.where(tf.reduce_any(fits, -1)[:, None], window, tf.constant(WHOLE))


def yolo_jitter(u, config: AugmentConfig, output_size):
    """keras-yolo3's placement: the image stretched by a drawn aspect and scale, put at random on the input.

    u: float32 [B, >= 5]: two of the aspect, scale, x, y. Whole output pixels, as the reference.
    """
    h, w = (float(side) for side in output_size)
    sway = (1.0 - config.jitter, 1.0 + config.jitter)
    aspect = w / h * _between(u[:, 0], sway) / _between(u[:, 1], sway)
    scale = _between(u[:, 2], config.scale)
    tall = aspect < 1.0
    new_h = tf.where(tall, tf.floor(scale * h), 0.0)
    new_w = tf.where(tall, tf.floor(new_h * aspect), tf.floor(scale * w))
    new_h = tf.where(tall, new_h, tf.floor(new_w / aspect))
    shown = tf.maximum(tf.stack([new_w, new_h], -1), 1.0)
    output = tf.constant([w, h])
    free = u[:, 3:5] * (output - shown)
    start = tf.sign(free) * tf.floor(tf.abs(free))  # towards zero
    return tf.concat([-start, output - start], -1) / tf.concat([shown, shown], -1)


def _centre_inside(boxes, windows):
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    return tf.reduce_all((centre > windows[..., :2]) & (centre < windows[..., 2:]), -1)


def boxes_in_window(boxes, labels, window, output_size, by_centre: bool, min_visible: float = 0.0):
    """Boxes and labels as seen through a window; what cannot be seen becomes padding.

    Args:
        boxes: float32 [B, M, 4]; labels: int32 [B, M]; window: float32 [B, 4].
        by_centre: keep only boxes whose centre is seen (the SSD rule); else all of which at least a pixel is.
        min_visible: the least share of a box's area that must be left.
    Returns:
        boxes float32 [B, M, 4] inside [0, 1], labels int32 [B, M]; dropped ones are zeros and -1.
    """
    seen = box_ops.to_window(boxes, window[:, None])
    clipped = box_ops.clip(seen)
    pixels = (clipped[..., 2:] - clipped[..., :2]) * tf.constant(output_size[::-1], tf.float32)
    keep = tf.reduce_all(pixels >= 1.0, -1) & (labels != schema.BACKGROUND)
    if by_centre:
        keep &= _centre_inside(seen, tf.constant(WHOLE))
    if min_visible > 0:
        keep &= box_ops.area(clipped) >= min_visible * box_ops.area(seen)
    return tf.where(keep[..., None], clipped, 0.0), tf.where(keep, labels, schema.BACKGROUND)


# --- colour -------------------------------------------------------------------------------------

NUM_COLOUR_DRAWS = 7
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def has_matrix(config: AugmentConfig) -> bool:
    return bool(config.brightness or config.contrast or config.saturation or config.lighting)


def has_hsv(config: AugmentConfig) -> bool:
    return bool(config.hue) or config.hsv_saturation != 1.0 or config.hsv_value != 1.0


def colour_matrix(u, normals, mean, covariance, config: AugmentConfig):
    """Saturation, brightness, contrast in a drawn order, then lighting, as ONE affine map of RGB (rykov8's set).

    Saturation blends with the pixel's luma, contrast with the image's mean luma, brightness scales; rykov8 clips
    after each, here the product of the matrices is clipped once. With rykov8's knobs a quarter of the values of
    photos differ by more than 1 of 255 for it, by 1.9 in the mean; taking the steps in another order changes a tenth,
    by 0.6 (`benchmarks/colour_clipping.py --photos DIR`, 200 photos).

    Lighting adds `lighting * C n`, C the covariance of the colours on the scale of [0, 1] and n standard normal: with
    C = V L V^T that is V L (V^T n), rykov8's noise along the eigenvectors, since V^T n is as normal as n. So nobody
    needs the eigenvectors.

    Args:
        u: float32 [B, >= 4] draws: saturation, brightness, contrast, their order; normals: float32 [B, 3].
        mean, covariance: float32 [B, 3], [B, 3, 3], see image_ops.colour_statistics.
    Returns:
        matrix float32 [B, 3, 3] out x in, bias float32 [B, 3], on the scale of [0, 255].
    """
    luma, eye = tf.constant(image_ops.LUMA), tf.eye(3)
    amounts = tf.constant([config.saturation, config.brightness, config.contrast])
    saturation, brightness, contrast = tf.unstack(1.0 + amounts * (2.0 * u[:, :3] - 1.0), axis=-1)
    wide = lambda factor: factor[:, None, None]  # noqa: E731
    to_luma = tf.ones([3, 1]) * luma
    steps = tf.stack(
        [wide(saturation) * eye + wide(1.0 - saturation) * to_luma, wide(brightness) * eye, wide(contrast) * eye], 1
    )
    order = tf.gather(_ORDERS, tf.cast(u[:, 3] * len(_ORDERS), tf.int32))
    matrix, bias = tf.eye(3, batch_shape=[tf.shape(u)[0]]), tf.zeros_like(mean)
    for turn in range(3):
        mean_luma = tf.reduce_sum((tf.linalg.matvec(matrix, mean) + bias) * luma, -1, keepdims=True)
        pull = tf.where(order[:, turn, None] == 2, (1.0 - contrast[:, None]) * mean_luma, 0.0)
        step = tf.gather(steps, order[:, turn], batch_dims=1)
        matrix, bias = step @ matrix, tf.linalg.matvec(step, bias) + pull
    changed = matrix @ covariance @ tf.linalg.matrix_transpose(matrix)
    return matrix, bias + config.lighting * tf.linalg.matvec(changed, normals) / 255.0


def hsv_factors(u, config: AugmentConfig):
    """keras-yolo3's colour draws: hue shift in turns, saturation and value factors; float32 [B] each.

    u: float32 [B, NUM_COLOUR_DRAWS]; the last three are used.
    """
    hue = _between(u[:, 4], (-config.hue, config.hue))
    return hue, _factor_or_inverse(u[:, 5], config.hsv_saturation), _factor_or_inverse(u[:, 6], config.hsv_value)


def _factor_or_inverse(u, limit):
    """A factor drawn from [1, limit], or its inverse, half of the time each. One draw decides both."""
    factor = 1.0 + (limit - 1.0) * tf.where(u < 0.5, 2.0 * u, 2.0 * u - 1.0)
    return tf.where(u < 0.5, factor, 1.0 / factor)


def draw_colour(images, epoch, element, config: AugmentConfig, seed: int) -> dict:
    """Everything `change_colour` takes besides the images, a batch at a time, outside of XLA: these are small ops
    of many kinds, costly to compile and cheap to run.

    Args:
        images: uint8 [B, H, W, 3]; epoch, element: int64 [B], the keys of the draws.
    """
    u = random.uniform(seed, random.COLOUR, epoch, element, NUM_COLOUR_DRAWS)
    draws = {}
    if has_matrix(config):
        normals = random.normal(seed, random.LIGHTING, epoch, element, 3)
        matrix = colour_matrix(u, normals, *image_ops.colour_statistics(images), config)
        draws["matrix"] = image_ops.colour_coefficients(*matrix, images.shape[2])
    if has_hsv(config):
        draws["hsv"] = hsv_factors(u, config)
    return {**draws, "flat": image_ops.flatten(images)} if draws else {}


def change_colour(images, draws: dict):
    """uint8 [B, H, W, 3] and what `draw_colour` returned -> uint8 [B, H, W*3], see `neighbours`; meant for XLA."""
    batch, height, width, _ = images.shape
    if not draws:
        return tf.reshape(images, [batch, height, width * 3])
    pixels = image_ops.neighbours(draws["flat"], images.shape)
    if "matrix" in draws:
        rows = tf.clip_by_value(image_ops.apply_colour(pixels, *draws["matrix"]), 0.0, 255.0)
        if "hsv" in draws:
            pixels = image_ops.neighbours(image_ops.flatten(rows), images.shape)
    if "hsv" in draws:
        rows = image_ops.shift_hsv(pixels, *draws["hsv"])
    return tf.cast(rows + 0.5, tf.uint8)
