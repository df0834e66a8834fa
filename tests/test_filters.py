import numpy as np
import pytest
import tensorflow as tf
from datasets import make_records

from tfdet import addons, schema
from tfdet.config import NO_AUGMENT, AugmentConfig, Config, ConfigError, SsdConfig, TrainConfig
from tfdet.data import filters, pipeline

needs_addons = pytest.mark.skipif(not addons.available(), reason="tensorflow-addons is not installed")
SIZES = [(40, 60), (60, 40), (1, 1), (3, 3)]


def twin_equalize(image):
    """Per channel: each level goes to its place in the running count, the darkest one to 0."""
    result = image.copy()
    for c in range(3):
        counts = np.bincount(image[..., c].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        if step == 0:
            continue
        before = np.concatenate([[0], np.cumsum(counts)[:-1]])
        result[..., c] = np.clip((before + step // 2) // step, 0, 255)[image[..., c]]
    return result


def twin_sharpness(image, factor):
    """A blend with the image smoothed by the kernel (1 1 1, 1 5 1, 1 1 1) / 13, which leaves the border alone."""
    image = image.astype("f8")
    smooth = image.copy()
    height, width, _ = image.shape
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            smooth[y, x] = (image[y - 1 : y + 2, x - 1 : x + 2].sum((0, 1)) + 4 * image[y, x]) / 13
    smooth = np.floor(smooth + 1e-9)  # the op cuts fractions off
    return np.clip(smooth + factor * (image - smooth), 0, 255)


def in_map(function, *arrays):
    return next(iter(tf.data.Dataset.from_tensors(arrays).map(function))).numpy()


@needs_addons
@pytest.mark.parametrize("size", SIZES)
def test_equalize_equals_its_twin(rng, size):
    image = (rng.integers(0, 256, (*size, 3)) ** 2 // 700 + 20).astype("u1")  # dark, 20 to 112
    result = in_map(filters.equalize, image)
    np.testing.assert_array_equal(result, twin_equalize(image))
    np.testing.assert_array_equal(result, filters.equalize(tf.constant(image)))


@needs_addons
@pytest.mark.parametrize("size", [(40, 60), (60, 40), (3, 3)])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0])
def test_sharpness_equals_its_twin(rng, size, factor):
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    result = in_map(filters.sharpness, image, np.float32(factor))
    difference = np.abs(result - twin_sharpness(image, factor))
    assert difference.max() <= 1.5  # single precision decides a rare whole number otherwise
    assert np.mean(difference > 0.5) < 0.01
    np.testing.assert_array_equal(result, filters.sharpness(tf.constant(image), tf.constant(factor)))


def test_the_plan_follows_the_draws():
    keys = tf.zeros([400], tf.int64), tf.range(400, dtype=tf.int64)
    planned = filters.plan(0, keys, AugmentConfig(equalize=0.3, sharpness=0.8))
    assert 0.2 < planned["equalize"].numpy().mean() < 0.4
    factor = planned["sharpness"].numpy()
    assert 0.2 <= factor.min() < 0.25
    assert 1.75 < factor.max() <= 1.8
    assert filters.plan(0, keys, NO_AUGMENT) == {}


def make_config(**options):
    augment = AugmentConfig(geometry="none", **options)
    return Config(detector=SsdConfig(image_size=(30, 50)), augment=augment, train=TrainConfig(batch_size=4))


@needs_addons
def test_in_the_pipeline(tmp_path):
    record_set = make_records(tmp_path, 4)
    plain, changed = (
        next(iter(pipeline.train_dataset(record_set, make_config(**options))))
        for options in ({}, {"equalize": 1.0, "sharpness": 0.5})
    )
    np.testing.assert_array_equal(plain[schema.BOXES], changed[schema.BOXES])
    assert (plain[schema.IMAGE].numpy() != changed[schema.IMAGE].numpy()).mean() > 0.2


@pytest.mark.skipif(addons.available(), reason="tensorflow-addons is installed")
@pytest.mark.parametrize("name", ["equalize", "sharpness"])
def test_without_the_package_the_error_says_how_to_get_it(tmp_path, name):
    record_set = make_records(tmp_path, 2)
    with pytest.raises(ConfigError, match=rf"augment.{name} needs .*tensorflow-addons is not installed.*pip install"):
        pipeline.train_dataset(record_set, make_config(**{name: 0.5}))
    assert not filters.is_on(NO_AUGMENT)
