"""Images: which pixels to decode, decoding only those, resizing, placing, flipping and colour.

The first half works on one image of any size (the record stage), the second on a batch of static shape
(the batch stage, compiled by XLA).
"""

import numpy as np
import tensorflow as tf

DCT_RATIOS = (1, 2, 4, 8)  # libjpeg decodes at these fractions of the size for less than the whole price
GRAY = (128, 128, 128)
MEAN_RGB = (124, 117, 104)  # ImageNet, rounded
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
THUMBNAIL = 32


# --- from a window to pixels --------------------------------------------------------------------


def place(window, image_size, output_size, allow_ratio=True):
    """Turns a window into whole pixels: what to decode, and where it goes.

    Pixels cannot be cut, so the window that is shown differs from the asked one by less than a source pixel
    (times the DCT ratio); the returned window is the exact one, and boxes must be mapped through it.

    Args:
        window: float32 [B, 4] xyxy, relative to the image, may reach beyond it.
        image_size: int32 [B, 2] height, width in pixels.
        output_size: (height, width) in pixels.
        allow_ratio: whether the image may be decoded at a fraction of its size, where that is still at least the
            size it is shown at.
    Returns:
        crop int32 [B, 4]: y, x, height, width in pixels of the image decoded at 1 / ratio;
        target int32 [B, 4]: y, x, height, width in output pixels;
        ratio int32 [B], one of DCT_RATIOS; window float32 [B, 4], the one that is shown.
    """
    size = tf.cast(tf.reverse(image_size, [1]), tf.float32)  # w, h
    output = tf.constant(output_size[::-1], tf.float32)
    low, high = window[:, :2], window[:, 2:]
    seen_low, seen_high = tf.clip_by_value(low, 0.0, 1.0), tf.clip_by_value(high, 0.0, 1.0)

    start = tf.minimum(tf.round(seen_low * size), size - 1.0)
    stop = tf.minimum(tf.maximum(tf.round(seen_high * size), start + 1.0), size)
    put = tf.clip_by_value(tf.round((seen_low - low) / (high - low) * output), 0.0, output - 1.0)
    put_stop = tf.minimum(tf.maximum(tf.round((seen_high - low) / (high - low) * output), put + 1.0), output)

    shrink = tf.reduce_min((stop - start) / (put_stop - put), -1)
    fits = [shrink >= float(r) for r in DCT_RATIOS[1:]] if allow_ratio else []
    ratio = 2.0 ** tf.add_n([tf.cast(f, tf.float32) for f in fits]) if fits else tf.ones_like(shrink)
    r = ratio[:, None]
    start, stop = tf.floor(start / r) * r, tf.minimum(tf.math.ceil(stop / r) * r, size)

    scale = (stop - start) / (put_stop - put)  # source pixels an output pixel
    origin = start - put * scale
    shown = tf.concat([origin, origin + output * scale], -1) / tf.concat([size, size], -1)
    crop = tf.concat([start / r, tf.math.ceil(stop / r) - start / r], -1)
    target = tf.concat([put, put_stop - put], -1)
    to_yxhw = [1, 0, 3, 2]
    as_pixels = lambda rows: tf.cast(tf.gather(rows, to_yxhw, axis=1), tf.int32)  # noqa: E731
    return as_pixels(crop), as_pixels(target), tf.cast(ratio, tf.int32), shown


def decode_crop(encoded, crop, ratio, store="jpeg", image_size=None):
    """Decodes one crop of one image.

    Args:
        encoded: string [], a JPEG, or H*W*3 raw bytes where `store` is "raw" (then `image_size` int32 [2]).
        crop: int32 [4] y, x, height, width in pixels of the image at 1 / `ratio`; ratio: int32 [].
    Returns:
        uint8 [H, W, 3].
    """
    if store == "raw":
        pixels = tf.reshape(tf.io.decode_raw(encoded, tf.uint8), tf.concat([image_size, [3]], 0))
        return pixels[crop[0] : crop[0] + crop[2], crop[1] : crop[1] + crop[3]]

    def at(fixed_ratio):
        return lambda: tf.raw_ops.DecodeAndCropJpeg(contents=encoded, crop_window=crop, channels=3, ratio=fixed_ratio)

    number = tf.cast(tf.round(tf.math.log(tf.cast(ratio, tf.float32)) / tf.math.log(2.0)), tf.int32)
    return tf.switch_case(number, [at(r) for r in DCT_RATIOS])


def crop_raw(pixels, start, crop, image_size):
    """The crop, as `decode_crop`, of the image whose H*W*3 values stand in `pixels`, uint8, from `start`, int64, on."""
    row = tf.cast(image_size[1] * 3, tf.int64)
    y, height = tf.cast(crop[0], tf.int64), tf.cast(crop[2], tf.int64)
    rows = pixels[start + y * row : start + (y + height) * row]
    return tf.reshape(rows, [crop[2], image_size[1], 3])[:, crop[1] : crop[1] + crop[3]]


def resize_into(image, target, output_size, fill=None):
    """Resizes (bilinear, half-pixel centres) and places one image on a canvas.

    Args:
        image: uint8 [H, W, 3]; target: int32 [4] y, x, height, width in output pixels.
        output_size: (height, width).
        fill: colour of the canvas, three values 0-255; None promises that the target is the whole output.
    Returns:
        uint8 [*output_size, 3].
    """
    size = tf.constant(output_size, tf.int32) if fill is None else target[2:]
    image = tf.cast(image[None], tf.float32)  # for this type the kernel has vector instructions
    pixels = tf.raw_ops.ResizeBilinear(images=image, size=size, half_pixel_centers=True)[0]
    pixels = tf.cast(pixels + 0.5, tf.uint8)  # rounds: values are not negative
    if fill is not None:
        canvas = tf.constant(np.full([*output_size, 3], fill, np.uint8))
        pixels = _put(pixels, canvas, *tf.unstack(target))
    return tf.ensure_shape(pixels, [*output_size, 3])


def _put(pixels, canvas, y, x, height, width):
    """The canvas with `pixels` at (y, x): copies of whole rows, several times faster than `tf.pad`."""
    beside = canvas[:height, :x], pixels, canvas[:height, x + width :]
    return tf.concat([canvas[:y], tf.concat(beside, 1), canvas[y + height :]], 0)


def flip(image, horizontal, vertical):
    """uint8 [H, W, 3], bool [], bool [] -> mirrored left to right, top to bottom, where asked."""
    axes = tf.boolean_mask([1, 0], tf.stack([horizontal, vertical]))
    flipped = tf.cond(horizontal | vertical, lambda: tf.reverse(image, axes), lambda: image)
    return tf.ensure_shape(flipped, image.shape)


# --- batches of static shape --------------------------------------------------------------------


def colour_statistics(images):
    """Mean and covariance of the colours of each image, from a thumbnail of 32 x 32 bilinear samples.

    Args:
        images: uint8 [B, H, W, 3].
    Returns:
        mean float32 [B, 3], covariance float32 [B, 3, 3], on the scale of [0, 255].
    """
    small = tf.raw_ops.ResizeBilinear(images=images, size=[THUMBNAIL, THUMBNAIL], half_pixel_centers=True)
    pixels = tf.reshape(small, [-1, THUMBNAIL * THUMBNAIL, 3])
    mean = tf.reduce_mean(pixels, 1)
    centred = pixels - mean[:, None]
    return mean, tf.matmul(centred, centred, transpose_a=True) / THUMBNAIL**2


def flatten(images):
    """Images as XLA's loops like them, over contiguous memory, without an index computed; do this outside of XLA.

    On the flat interleaved pixels r g b r g b ..., the other channels of a pixel stand at most two positions before
    or after each. So whatever mixes channels is arithmetic on five shifted copies, see `neighbours`.

    Args:
        images: uint8 or float32 [B, H, W, 3].
    Returns:
        [B, H*W*3 + 4], two zeros at both ends.
    """
    return tf.pad(tf.reshape(images, [images.shape[0], -1]), [[0, 0], [2, 2]])


def neighbours(flat, shape):
    """What stands two positions before each, one before, there, one and two after: five float32 [B, H, W*3].

    Results are to stay in that shape inside of XLA, which would otherwise loop over the 3 channels.

    Args:
        flat: see `flatten`; shape: (B, H, W, 3).
    """
    batch, height, width, _ = shape
    return [
        tf.reshape(tf.cast(flat[:, k : k + height * width * 3], tf.float32), [batch, height, width * 3])
        for k in range(5)
    ]


def colour_coefficients(matrix, bias, width):
    """An affine map of RGB, for `apply_colour`: what each neighbour of each position of a row counts.

    Channel d of the pixel that position p belongs to stands at p + (d - c), c being p's own channel.

    Args:
        matrix: float32 [B, 3, 3] out x in; bias: float32 [B, 3]; width: of the images.
    Returns:
        coefficients float32 [B, 5, W*3], bias float32 [B, W*3].
    """
    none = tf.zeros_like(bias[:, 0])
    shifts = [[matrix[:, c, c + k] if 0 <= c + k < 3 else none for c in range(3)] for k in range(-2, 3)]
    coefficients = tf.stack([tf.stack(row, -1) for row in shifts], 1)
    return tf.tile(coefficients, [1, 1, width]), tf.tile(bias, [1, width])


def apply_colour(pixels, coefficients, bias):
    """`neighbours` and `colour_coefficients` -> float32 [B, H, W*3], not clipped."""
    return tf.add_n([coefficients[:, k, None] * pixels[k] for k in range(5)]) + bias[:, None]


def shift_hsv(pixels, hue, saturation, value):
    """Changes hue, saturation and value, each an image: the colour change of keras-yolo3.

    A channel is v - v s clip(d - 1, 0, 1), d being its distance from the hue on the circle of 6: 0 for red, 2 for
    green, 4 for blue. The three are alike, so each position takes itself for the first of them.

    Args:
        pixels: `neighbours`, in [0, 255]; hue: float32 [B] added, in turns of the circle;
        saturation, value: float32 [B] factors; results are clipped to [0, 1].
    Returns:
        float32 [B, H, W*3] in [0, 255].
    """
    wide = lambda x: x[:, None, None]  # noqa: E731
    channel = np.arange(pixels[0].shape[-1]) % 3
    own = pixels[2]
    second = tf.where(channel == 2, pixels[0], pixels[3])
    third = tf.where(channel == 0, pixels[4], pixels[1])
    high = tf.maximum(tf.maximum(own, second), third)
    spread = high - tf.minimum(tf.minimum(own, second), third)
    per_spread = 1.0 / tf.maximum(spread, 1e-6)
    sixths = tf.where(
        own == high,
        (second - third) * per_spread,
        tf.where(second == high, 2.0 + (third - own) * per_spread, 4.0 + (own - second) * per_spread),
    )
    distance = tf.abs(sixths + 6.0 * wide(hue - tf.round(hue)))  # at most 8
    distance = tf.minimum(distance, tf.abs(distance - 6.0))
    v = tf.minimum(high * wide(value), 255.0)
    s = tf.minimum(spread / tf.maximum(high, 1e-6) * wide(saturation), 1.0)
    return v - v * s * tf.clip_by_value(distance - 1.0, 0.0, 1.0)
