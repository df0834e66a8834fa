import dataclasses

import numpy as np
import pytest
from datasets import make_records

from tfdet import contact_sheet, schema
from tfdet.config import NO_AUGMENT, TINY_ANCHORS, Config, SsdConfig, TrainConfig, YoloConfig
from tfdet.data.synthetic import SHAPE_CLASSES
from tfdet.draw import class_colour


@pytest.fixture(scope="module")
def record_set(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("sheet"), 6)


def make_config(detector):
    return Config(detector, augment=NO_AUGMENT, train=TrainConfig(batch_size=4), class_names=SHAPE_CLASSES)


MULTI_SCALE = YoloConfig(
    backbone="tiny", strides=(32, 16), multi_scale=(64, 96), image_size=(64, 64),
    anchors=TINY_ANCHORS, anchor_masks=((3, 4, 5), (0, 1, 2)),
)  # fmt: skip


@pytest.mark.parametrize(
    "detector, height",
    [(SsdConfig(), 416), (YoloConfig(image_size=(64, 128)), 208), (MULTI_SCALE, 416)],
)
def test_tiles_of_the_images_there_are(record_set, detector, height):
    sheet = contact_sheet.augmented_sheet(record_set, make_config(detector), num_images=16)
    assert sheet.mode == "RGB"
    # 6 images, though the second batch of 4 is filled up: three columns, two rows
    assert sheet.size == (3 * (416 + 8) + 8, 2 * (height + 8) + 8)
    last = np.asarray(sheet)[-height - 8 : -8, -416 - 8 : -8]
    assert last.std() > 5


def test_fewer_than_asked_for(record_set):
    config = make_config(YoloConfig(image_size=(64, 64)))
    assert contact_sheet.augmented_sheet(record_set, config, num_images=1).size == (432, 432)


def test_what_is_drawn():
    """One object with one anchor, an ignored one, and padding, on black."""
    image = np.zeros([100, 200, 3], np.uint8)
    row = {
        schema.IMAGE: image,
        schema.BOXES: np.float32([[0.5, 0.5, 0.75, 0.75], [0.1, 0.5, 0.2, 0.9], [0, 0, 0, 0]]),
        schema.LABELS: np.int32([2, -2, -1]),
        schema.TARGET_LABELS: np.int32([-1, 2, -2]),
    }
    anchors = np.float32([[0.0, 0.0, 0.1, 0.1], [0.4, 0.4, 0.9, 0.9], [0.3, 0.0, 0.4, 0.1]])
    pixels = np.asarray(contact_sheet._tile(row, anchors, ("a", "b", "c")))
    assert pixels.shape == (208, 416, 3)
    assert tuple(pixels[140, 209]) == class_colour(2)  # x .5 of 416 = 208: thick
    assert tuple(pixels[140, 211]) == class_colour(2)
    thin = tuple((part + 255) // 2 for part in class_colour(2))
    assert tuple(pixels[100, 166]) == thin  # .4 of 416 = 166.4
    assert not pixels[100, 168].any()
    assert tuple(pixels[150, 42]) == (128, 128, 128)  # ignored, .1 of 416 = 41.6
    assert not pixels[:20, :30].any()  # neither padding nor the anchors of background
    assert not pixels[:20, 120:160].any()


def test_an_image_without_objects():
    row = {
        schema.IMAGE: np.zeros([10, 10, 3], np.uint8),
        schema.BOXES: np.zeros([8, 4], "f4"),
        schema.LABELS: np.full([8], -1, "i4"),
        schema.TARGET_LABELS: np.full([1], -1, "i4"),
    }
    assert not np.asarray(contact_sheet._tile(row, np.zeros([1, 4]), ())).any()


def test_settings_are_those_of_training(record_set):
    config = make_config(YoloConfig(image_size=(64, 64)))
    flipped = dataclasses.replace(config, augment=dataclasses.replace(NO_AUGMENT, vertical_flip=1.0))
    one, other = (np.asarray(contact_sheet.augmented_sheet(record_set, c, 1)) for c in (config, flipped))
    assert (one != other).mean() > 0.2
