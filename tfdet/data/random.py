"""Random numbers that are a pure function of (seed, epoch, element, op).

Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a
counter-based generator of 32-bit adds, rotations and xors. Written in TensorFlow ops so that one call draws for
a whole batch whose elements each have a key of their own; the result does not depend on batch size, order,
parallelism, device or on whether XLA compiled it.
"""

import math

import tensorflow as tf

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

# What a draw is for; the numbers are part of the stream's definition.
WINDOW, FLIP, COLOUR, LIGHTING, AFFINE, MOSAIC, MIXUP, CUTOUT, EQUALIZE, SHARPNESS, SCALE = range(1, 12)


def _rotate_left(x, bits):
    return tf.bitwise.left_shift(x, tf.constant(bits, tf.uint32)) | tf.bitwise.right_shift(
        x, tf.constant(32 - bits, tf.uint32)
    )


def threefry(key, counter):
    """The block function: two pairs of broadcastable uint32 tensors -> a pair of uint32 tensors."""
    schedule = (*key, key[0] ^ key[1] ^ tf.constant(_PARITY, tf.uint32))
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x = x + y
            y = _rotate_left(y, bits) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + tf.constant(group + 1, tf.uint32)
    return x, y


def uniform(seed: int, op: int, epoch, element, count: int):
    """Independent draws for every element of a batch.

    Args:
        seed: the run's seed; `op`: one of the constants of this module.
        epoch, element: int64 [B].
        count: draws an element.
    Returns:
        float32 [B, count] in [0, 1), multiples of 2**-24.
    """
    key = tf.constant((seed * 0x9E3779B1 + op) % 2**32, tf.uint32), tf.cast(epoch, tf.uint32)[:, None]
    pair = tf.range((count + 1) // 2)[None, :]
    counter = tf.cast(element, tf.uint32)[:, None], tf.cast(pair, tf.uint32)
    bits = tf.stack(threefry(key, counter), -1)
    bits = tf.reshape(bits, [tf.shape(bits)[0], 2 * ((count + 1) // 2)])[:, :count]
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def normal(seed: int, op: int, epoch, element, count: int):
    """Standard normal draws by Box and Muller's transform; arguments and shape as `uniform`."""
    u = uniform(seed, op, epoch, element, 2 * count)
    radius = tf.sqrt(-2.0 * tf.math.log(1.0 - u[:, :count]))
    return radius * tf.cos(2.0 * math.pi * u[:, count:])
