"""Batches of several sizes, from the records to the training step; and the mixed batches of the whole pipeline."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from datasets import make_records

from tfdet import detectors, schema
from tfdet.compat import keras
from tfdet.config import (
    NO_AUGMENT,
    TINY_ANCHORS,
    AugmentConfig,
    Config,
    ConfigError,
    DataConfig,
    SsdConfig,
    TrainConfig,
    YoloConfig,
    from_json,
    override,
    to_json,
)  # fmt: skip
from tfdet.data import multiscale, pipeline
from tfdet.detectors.yolo import Yolo
from tfdet.train.step import distribute, make_train_step

BATCH = 8
SIDES = (64, 96, 128)  # with seed 0 the first three steps take one each
YOLO = YoloConfig(
    backbone="tiny", width_multiplier=0.125, image_size=(96, 96), multi_scale=SIDES, strides=(32, 16),
    anchors=TINY_ANCHORS, anchor_masks=((3, 4, 5), (0, 1, 2)),
)  # fmt: skip
# without colour, which XLA takes long to compile
EVERYTHING = dataclasses.replace(
    NO_AUGMENT, geometry="yolo_jitter", horizontal_flip=0.5, mosaic=0.7, mixup=0.5, cutout=0.5,
    rotate=10.0, shear=5.0, translate=0.1, affine_probability=0.7,
)  # fmt: skip


@pytest.fixture(scope="module")
def record_set(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("multiscale"), 20)


def make_config(detector=YOLO, augment=NO_AUGMENT, **data):
    return Config(detector, DataConfig(**data), augment, TrainConfig(batch_size=BATCH), ("a", "b", "c"))


def batches(record_set, config, number, encode=None, **options):
    data = pipeline.train_dataset(record_set, config, encode, **options)
    return list(data.take(number).as_numpy_iterator())


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


# --- sizes ----------------------------------------------------------------------------------------


def test_the_size_is_a_function_of_seed_and_step():
    steps = tf.range(3000, dtype=tf.int64)
    scales = multiscale.draw_scale(5, steps, 3).numpy()
    np.testing.assert_array_equal(scales[100:200], multiscale.draw_scale(5, steps[100:200], 3))
    assert (np.bincount(scales) > 900).all()  # all about as often
    assert (scales != multiscale.draw_scale(6, steps, 3).numpy()).mean() > 0.5


def test_every_batch_has_one_of_the_sizes_and_its_own_targets(record_set):
    config = make_config()
    detector = detectors.build(config.detector, 3)
    seen = set()
    for batch in batches(record_set, config, 3, detector.encode):
        side = batch[schema.IMAGE].shape[1]
        seen.add(side)
        alone = Yolo(dataclasses.replace(YOLO, image_size=(side, side), multi_scale=()), 3)
        expected = alone.encode(batch[schema.BOXES], batch[schema.LABELS])
        real = batch[schema.IMAGE_ID] != b""
        np.testing.assert_array_equal(batch[schema.TARGET_LABELS][real], expected[schema.TARGET_LABELS][real])
        np.testing.assert_allclose(batch[schema.TARGET_BOXES][real], expected[schema.TARGET_BOXES][real], atol=1e-6)
    assert seen == set(SIDES)


@pytest.mark.parametrize("shuffle", ["global", "sequential"])
def test_sizes_survive_resuming_and_slicing(record_set, shuffle):
    config = make_config(shuffle=shuffle)
    whole = batches(record_set, config, 4)
    assert_same(whole[2:], batches(record_set, config, 2, start_step=2))
    slices = [batches(record_set, config, 4, shard=(i, 2)) for i in range(2)]
    for batch, *parts in zip(whole, *slices, strict=True):
        np.testing.assert_array_equal(batch[schema.IMAGE], np.concatenate([part[schema.IMAGE] for part in parts]))


def test_evaluation_keeps_to_one_size(record_set):
    shapes = {batch[schema.IMAGE].shape for batch in pipeline.eval_dataset(record_set, make_config())}
    assert shapes == {(BATCH, 96, 96, 3)}


def test_the_loss_at_a_size_is_that_of_a_detector_for_this_size(record_set):
    config = make_config()
    detector = detectors.build(YOLO, 3)
    step = tf.function(
        detector.loss,
        input_signature=[
            pipeline.train_dataset(record_set, config, detector.encode).element_spec,
            {
                schema.BOX_DELTAS: tf.TensorSpec([BATCH, None, 4]),
                schema.OBJECTNESS_LOGITS: tf.TensorSpec([BATCH, None]),
                schema.CLASS_LOGITS: tf.TensorSpec([BATCH, None, 3]),
            },
        ],
    )
    for batch in batches(record_set, config, 3, detector.encode):
        batch = {key: tf.constant(value) for key, value in batch.items()}
        shape = batch[schema.TARGET_LABELS].shape
        random = tf.random.stateless_normal([*shape, 8], [1, 2])
        names = (schema.BOX_DELTAS, schema.CLASS_LOGITS)
        predictions = dict(zip(names, tf.split(random[..., :7], [4, 3], -1)))
        predictions[schema.OBJECTNESS_LOGITS] = random[..., 7]
        alone = Yolo(dataclasses.replace(YOLO, image_size=batch[schema.IMAGE].shape[1:3], multi_scale=()), 3)
        expected = alone.loss(batch, predictions)
        for result in (step(batch, predictions), detector.loss(batch, predictions)):
            assert result.keys() == expected.keys()
            for name in expected:
                np.testing.assert_allclose(result[name], expected[name], rtol=1e-4, err_msg=name)


def test_an_unknown_size_is_named(record_set):
    detector = detectors.build(YOLO, 3)

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8), tf.TensorSpec([], tf.int32)])
    def loss(images, anchors):
        fields = {schema.IMAGE: images, schema.BOXES: tf.zeros([1, 8, 4]), schema.LABELS: -tf.ones([1, 8], tf.int32)}
        labels = -tf.ones([1, anchors], tf.int32)
        targets = {schema.TARGET_BOXES: tf.zeros([1, anchors, 4]), schema.TARGET_LABELS: labels}
        numbers = {schema.BOX_DELTAS: tf.zeros([1, anchors, 4]), schema.OBJECTNESS_LOGITS: tf.zeros([1, anchors])}
        return detector.loss({**fields, **targets}, {**numbers, schema.CLASS_LOGITS: tf.zeros([1, anchors, 3])})

    assert loss(tf.zeros([1, 96, 96, 3], tf.uint8), 135)  # (3 * 3 + 6 * 6) * 3
    with pytest.raises(tf.errors.InvalidArgumentError, match="not in multi_scale"):
        loss(tf.zeros([1, 160, 160, 3], tf.uint8), 375)


def test_training_steps_of_all_sizes_share_one_graph(record_set):
    config = make_config()
    detector = detectors.build(YOLO, 3)
    model = detector.build_model()
    data = distribute(pipeline.train_dataset(record_set, config, detector.encode), model.distribute_strategy, BATCH)
    optimizer = keras.optimizers.Adam(1e-3)
    step = make_train_step(model, detector, optimizer, element_spec=data.element_spec)
    sides, traces = set(), set()
    for _, batch in zip(range(3), data):
        sides.add(batch[schema.IMAGE].shape[1])
        assert np.isfinite(step(batch)["loss"])
        traces.add(step.experimental_get_tracing_count())
    assert sides == set(SIDES)
    assert len(traces) == 1


def test_settings():
    config = override(make_config(), "detector.multi_scale=[320,352]")
    assert config.detector.multi_scale == (320, 352)
    assert from_json(to_json(config)) == config
    with pytest.raises(ConfigError, match="multi_scale has 100; YOLOv3 needs multiples of 32"):
        override(config, "detector.multi_scale=[100]")
    with pytest.raises(ConfigError, match=r"no field 'detector.multi_scale'"):
        override(make_config(SsdConfig()), "detector.multi_scale=[320]")
    assert type(detectors.build(dataclasses.replace(YOLO, multi_scale=()), 3)) is Yolo


# --- mixed batches --------------------------------------------------------------------------------

MIXED = dataclasses.replace(YOLO, multi_scale=())


def test_mixed_batches_do_not_depend_on_parallelism_or_resuming(record_set):
    config = make_config(MIXED, EVERYTHING)
    whole = batches(record_set, config, 4)  # 20 images in batches of 8: over the end of an epoch
    alone = make_config(MIXED, EVERYTHING, num_parallel_calls=1)
    assert_same(whole[1:], batches(record_set, alone, 3, start_step=1))


def test_slices_of_mixed_batches_make_up_the_batch(record_set):
    config = dataclasses.replace(make_config(MIXED, EVERYTHING), train=TrainConfig(batch_size=16))
    whole = batches(record_set, config, 2)
    slices = [batches(record_set, config, 2, shard=(i, 2)) for i in range(2)]
    for batch, *parts in zip(whole, *slices, strict=True):
        np.testing.assert_array_equal(batch[schema.IMAGE], np.concatenate([part[schema.IMAGE] for part in parts]))
        for row in np.flatnonzero(batch[schema.IMAGE_ID] != b""):  # parts are padded to other buckets
            labels, part = batch[schema.LABELS][row], parts[row // 8][schema.LABELS][row % 8]
            assert labels[labels != -1].tolist() == part[part != -1].tolist()


def test_rows_that_fill_up_a_mixed_batch_teach_nothing(record_set):
    encode = detectors.build(MIXED, 3).encode
    last = batches(record_set, make_config(MIXED, EVERYTHING), 3, encode)[2]
    filling = last[schema.IMAGE_ID] == b""
    assert filling.sum() == 4
    assert (last[schema.LABELS][filling] == -2).all()
    assert (last[schema.TARGET_LABELS][filling] == -2).all()
    assert (last[schema.LABELS][~filling] >= 0).any()


def test_too_few_rows_to_mix_are_refused(record_set):
    with pytest.raises(ConfigError, match=r"mix 8 rows .* 4 rows an input pipeline"):
        pipeline.train_dataset(record_set, make_config(MIXED, AugmentConfig(mosaic=1.0)), shard=(0, 2))
    assert batches(record_set, make_config(MIXED, AugmentConfig()), 1, shard=(0, 2))


def test_boxes_of_drawn_shapes_follow_their_pixels(record_set):
    """Shapes on a plain background: what a box frames differs from what lies just around it, mosaic or not."""
    config = make_config(MIXED, dataclasses.replace(NO_AUGMENT, mosaic=1.0), min_visible=0.9, resize="letterbox")
    inside, outside = [], []
    for batch in batches(record_set, config, 4):
        for image, boxes, labels in zip(batch[schema.IMAGE].astype("f4"), batch[schema.BOXES], batch[schema.LABELS]):
            for box in boxes[labels >= 0]:
                x0, y0, x1, y1 = np.round(box * 96).astype(int)
                if min(x1 - x0, y1 - y0) < 8 or max(x1, y1) > 93 or min(x0, y0) < 3:
                    continue
                centre = image[(y0 + y1) // 2, (x0 + x1) // 2]
                inside.append(np.abs(image[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3] - centre).mean())
                outside.append(np.abs(image[y0 - 3 : y1 + 3, [x0 - 3, x1 + 2]] - centre).mean())
    assert len(inside) > 20
    assert np.median(outside) > 2 * np.median(inside)
