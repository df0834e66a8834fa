"""Histogram equalisation and sharpness, from tensorflow-addons: where that is not installed, asking for them is an
error that says how to get it."""

import tensorflow as tf

from tfdet import addons
from tfdet.config import AugmentConfig, ConfigError
from tfdet.data import random

FILTERS = ("equalize", "sharpness")


def is_on(config: AugmentConfig) -> bool:
    """Whether the config asks for either."""
    return any(getattr(config, name) for name in FILTERS)


def require_possible(config: AugmentConfig):
    """Raises ConfigError if the config asks for one, and tensorflow-addons is missing."""
    for name in FILTERS:
        if getattr(config, name):
            try:
                addons.get(f"image.{name}")
            except ImportError as error:
                raise ConfigError(f"augment.{name} needs {error}") from error


def plan(seed: int, keys, config: AugmentConfig) -> dict:
    """Which images are equalised, bool [B], and by how much each is sharpened, float32 [B].

    Args:
        keys: epoch, element int64 [B], the keys of the draws.
    """
    planned = {}
    if config.equalize:
        planned["equalize"] = random.uniform(seed, random.EQUALIZE, *keys, 1)[:, 0] < config.equalize
    if config.sharpness:
        u = random.uniform(seed, random.SHARPNESS, *keys, 1)[:, 0]
        planned["sharpness"] = 1.0 + config.sharpness * (2.0 * u - 1.0)
    return planned


def equalize(image):
    """uint8 [H, W, 3] -> uint8 [H, W, 3], the histogram of each channel spread evenly."""
    return tf.ensure_shape(addons.get("image.equalize")(image), image.shape)


def sharpness(image, factor):
    """uint8 [H, W, 3], float32 []: 0 smooths, 1 changes nothing, 2 sharpens as much -> uint8 [H, W, 3].

    In graphs the package's own factor must be a Python number, so it smooths here, and the blend is done after it.
    """
    smooth = tf.cast(addons.get("image.sharpness")(image, 0.0), tf.float32)
    pixels = smooth + factor * (tf.cast(image, tf.float32) - smooth)
    return tf.ensure_shape(tf.cast(tf.clip_by_value(pixels, 0.0, 255.0) + 0.5, tf.uint8), image.shape)


def change(image, planned: dict):
    """One image, uint8 [H, W, 3], and its row of `plan` -> uint8 [H, W, 3]."""
    if "equalize" in planned:
        image = tf.cond(planned["equalize"], lambda: equalize(image), lambda: image)
    return sharpness(image, planned["sharpness"]) if "sharpness" in planned else image
