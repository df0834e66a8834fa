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


def colour_operands(images, matrix, bias):
    """What `apply_colour` takes, laid out so that XLA's loops run over contiguous memory without an index computed.

    On the flat interleaved pixels r g b r g b ..., channel d of the pixel that position p belongs to stands at
    p + (d - c), c being p's own channel. So the 3 x 3 matrix is a sum of five shifted copies of the image, each times
    a coefficient that repeats every three positions.

    Args:
        images: uint8 [B, H, W, 3]; matrix: float32 [B, 3, 3] out x in; bias: float32 [B, 3].
    Returns:
        flat uint8 [B, H*W*3 + 4], coefficients float32 [B, 5, W*3], bias float32 [B, W*3].
    """
    batch, height, width, _ = images.shape
    flat = tf.pad(tf.reshape(images, [batch, height * width * 3]), [[0, 0], [2, 2]])
    none = tf.zeros_like(bias[:, 0])
    shifts = [[matrix[:, c, c + k] if 0 <= c + k < 3 else none for c in range(3)] for k in range(-2, 3)]
    coefficients = tf.stack([tf.stack(row, -1) for row in shifts], 1)
    return flat, tf.tile(coefficients, [1, 1, width]), tf.tile(bias, [1, width])


def apply_colour(flat, coefficients, bias, shape):
    """The affine map of RGB of `colour_operands` -> float32 [B, H, W*3], not clipped; shape = (B, H, W, 3).

    Whoever wants a dimension of 3 reshapes the result outside of XLA, which would otherwise loop over the 3.
    """
    batch, height, width, _ = shape

    def shifted(k):
        pixels = tf.cast(flat[:, k : k + height * width * 3], tf.float32)
        return coefficients[:, k, None] * tf.reshape(pixels, [batch, height, width * 3])

    return tf.add_n([shifted(k) for k in range(5)]) + bias[:, None]


def shift_hsv(images, hue, saturation, value):
    """Changes hue, saturation and value, each an image: the colour change of keras-yolo3.

    Args:
        images: float32 [B, H, W, 3] in [0, 255]; hue: float32 [B] added, in turns of the circle;
        saturation, value: float32 [B] factors; results are clipped to [0, 1].
    Returns:
        float32 [B, H, W, 3] in [0, 255].
    """
    wide = lambda x: x[:, None, None]  # noqa: E731
    red, green, blue = tf.unstack(images * (1.0 / 255.0), axis=-1)
    high = tf.maximum(tf.maximum(red, green), blue)
    spread = high - tf.minimum(tf.minimum(red, green), blue)
    safe = tf.where(spread > 0.0, spread, 1.0)
    sixths = tf.where(
        high == red,
        (green - blue) / safe,
        tf.where(high == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    sixths = tf.where(spread > 0.0, sixths, 0.0) + wide(hue) * 6.0
    s = tf.minimum(spread / tf.where(high > 0.0, high, 1.0) * wide(saturation), 1.0)
    v = tf.minimum(high * wide(value), 1.0)

    def channel(n):  # HSV to RGB in the form without cases
        k = n + sixths
        k = k - 6.0 * tf.floor(k * (1.0 / 6.0))
        return v - v * s * tf.clip_by_value(tf.minimum(k, 4.0 - k), 0.0, 1.0)

    return tf.stack([channel(5.0), channel(3.0), channel(1.0)], -1) * 255.0
