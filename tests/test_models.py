"""The models: sizes of the references, order of the predictions, weights through .h5, mixed precision."""

import dataclasses
import json
import re

import numpy as np
import pytest
import tensorflow as tf

from tfdet import configs
from tfdet.compat import keras
from tfdet.config import PRIOR_LAYOUTS, ConfigError, SsdConfig, YoloConfig
from tfdet.models import darknet, layers, mobilenet, ssd_vgg

TINY = configs.load("yolov3_tiny").detector
# small ones: a part of the width, and for YOLO a non-square input
SMALL_SSD = SsdConfig(backbone="mobilenetv2", width_multiplier=0.35)
SMALL_TINY = dataclasses.replace(TINY, image_size=(64, 96), width_multiplier=0.25)


@pytest.fixture(scope="module")
def ssd300():
    return ssd_vgg.build(SsdConfig(), num_classes=3)


@pytest.fixture(scope="module")
def yolov3():
    return darknet.build(YoloConfig(), num_classes=80)


@pytest.fixture(scope="module")
def yolov3_tiny():
    return darknet.build(TINY, num_classes=80)


@pytest.fixture(scope="module")
def small_ssd():
    return mobilenet.build(SMALL_SSD, num_classes=3)


@pytest.fixture(scope="module")
def small_tiny():
    return darknet.build(SMALL_TINY, num_classes=2)


def images(rng, config, count=1):
    return rng.integers(0, 256, (count, *config.image_size, 3), dtype=np.uint8)


def num_priors(layout):
    return sum(side * side * layout.boxes_per_cell(level) for level, side in enumerate(layout.feature_maps))


def output_shapes(model):
    return {key: tuple(value.shape) for key, value in model.output.items()}


# --- sizes --------------------------------------------------------------------------------------


def test_ssd_of_the_7308_layout_has_the_seeds_parameters():
    model = ssd_vgg.build(SsdConfig(priors="ssd300_7308"), num_classes=20)
    assert model.count_params() == 25_765_497
    assert output_shapes(model) == {"box_deltas": (None, 7308, 4), "class_logits": (None, 7308, 21)}


def test_ssd_of_the_7308_layout_has_the_seeds_layers(shared):
    rows = json.loads((shared / "golden" / "model_structure.json").read_text())["rykov8_SSD300_21c"]["layers"]
    model = ssd_vgg.build(SsdConfig(priors="/somewhere/prior_boxes_ssd300.pkl"), num_classes=20)
    for row in rows:
        if row["weights"]:
            layer = model.get_layer(row["name"])
            assert [list(weight.shape) for weight in layer.weights] == row["weights"], row["name"]
            assert list(layer.output_shape) == row["out"][0], row["name"]


def test_ssd300_of_the_paper(ssd300):
    assert output_shapes(ssd300) == {"box_deltas": (None, 8732, 4), "class_logits": (None, 8732, 4)}
    shapes = [ssd300.get_layer(name).output_shape for name in ("conv4_3", "fc7", "conv6_2", "conv7_2")]
    assert shapes == [(None, 38, 38, 512), (None, 19, 19, 1024), (None, 10, 10, 512), (None, 5, 5, 256)]
    assert ssd300.get_layer("conv8_2").output_shape == (None, 3, 3, 256)
    assert ssd300.get_layer("conv9_2").output_shape == (None, 1, 1, 256)


# Caffe's models/VGGNet/VOC0712/SSD_512x512: kernel, channels in, filters, side of the map
VGG_512 = {
    "conv1_1": (3, 3, 64, 512), "conv1_2": (3, 64, 64, 512), "conv2_1": (3, 64, 128, 256),
    "conv2_2": (3, 128, 128, 256), "conv3_1": (3, 128, 256, 128), "conv3_2": (3, 256, 256, 128),
    "conv3_3": (3, 256, 256, 128), "conv4_1": (3, 256, 512, 64), "conv4_2": (3, 512, 512, 64),
    "conv4_3": (3, 512, 512, 64), "conv5_1": (3, 512, 512, 32), "conv5_2": (3, 512, 512, 32),
    "conv5_3": (3, 512, 512, 32), "fc6": (3, 512, 1024, 32), "fc7": (1, 1024, 1024, 32),
    "conv6_1": (1, 1024, 256, 32), "conv6_2": (3, 256, 512, 16), "conv7_1": (1, 512, 128, 16),
    "conv7_2": (3, 128, 256, 8), "conv8_1": (1, 256, 128, 8), "conv8_2": (3, 128, 256, 4),
    "conv9_1": (1, 256, 128, 4), "conv9_2": (3, 128, 256, 2), "conv10_1": (1, 256, 128, 2),
    "conv10_2": (4, 128, 256, 1),
}  # fmt: skip
SOURCES_512 = {  # boxes a cell
    "conv4_3_norm": 4, "fc7": 6, "conv6_2": 6, "conv7_2": 6, "conv8_2": 6, "conv9_2": 4, "conv10_2": 4,
}  # fmt: skip


def test_ssd512_has_caffes_layers_and_parameters():
    model = ssd_vgg.build(configs.load("ssd512_vgg16").detector, num_classes=20)
    # 64^2 * 4 + 32^2 * 6 + 16^2 * 6 + 8^2 * 6 + 4^2 * 6 + 2^2 * 4 + 1 * 4 = 24,564
    assert output_shapes(model) == {"box_deltas": (None, 24564, 4), "class_logits": (None, 24564, 21)}
    total = 512  # of the norm
    for name, (kernel, channels, filters, side) in VGG_512.items():
        layer = model.get_layer(name)
        assert tuple(layer.kernel.shape) == (kernel, kernel, channels, filters), name
        assert layer.output_shape == (None, side, side, filters), name
        total += (kernel**2 * channels + 1) * filters
    for name, boxes in SOURCES_512.items():
        channels = VGG_512[name.removesuffix("_norm")][2]
        for kind, columns in (("loc", 4), ("conf", 21)):
            shape = tuple(model.get_layer(f"{name}_mbox_{kind}").kernel.shape)
            assert shape == (3, 3, channels, boxes * columns), name
            total += (9 * channels + 1) * boxes * columns
    assert model.count_params() == total
    assert len([layer for layer in model.layers if layer.weights]) == 25 + 1 + 14


def trainable(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def test_darknet53_has_the_references_parameters(yolov3):
    assert yolov3.count_params() == 62_001_757
    # 13^2 * 3 + 26^2 * 3 + 52^2 * 3 = 507 + 2028 + 8112
    assert output_shapes(yolov3) == {
        "box_deltas": (None, 10647, 4),
        "objectness_logits": (None, 10647),
        "class_logits": (None, 10647, 80),
    }
    assert sum(isinstance(layer, keras.layers.Conv2D) for layer in yolov3.layers) == 75
    assert trainable(yolov3) == 61_949_149
    # Darknet's files: a header of 20 bytes, then float32; yolov3.weights and darknet53.conv.74 as they are published
    assert 20 + 4 * yolov3.count_params() == 248_007_048
    body = [f"{kind}_{n + 1}" for n in range(52) for kind in ("conv2d", "batch_normalization")]
    assert 20 + 4 * sum(yolov3.get_layer(name).count_params() for name in body) == 162_482_580


def test_tiny_has_the_references_parameters(yolov3_tiny):
    assert yolov3_tiny.count_params() == 8_858_734
    assert trainable(yolov3_tiny) == 8_852_366
    assert 20 + 4 * yolov3_tiny.count_params() == 35_434_956  # bytes of yolov3-tiny.weights


@pytest.mark.parametrize(
    "name, structure", [("yolov3", "yolo_body_416_80c"), ("yolov3_tiny", "tiny_yolo_body_416_80c")]
)
def test_yolo_layers_are_numbered_as_the_reference_makes_them(shared, request, name, structure):
    """Layer N of ours has the shapes of the reference's; its TensorFlow 2 names start without a number, ours at 1."""
    rows = json.loads((shared / "golden" / "model_structure.json").read_text())[structure]["layers"]
    model = request.getfixturevalue(name)
    for row in rows:
        if row["weights"]:
            kind, _, number = row["name"].rpartition("_")
            name = f"{kind}_{int(number) + 1}" if number.isdigit() else f"{row['name']}_1"
            layer = model.get_layer(name)
            assert [list(weight.shape) for weight in layer.weights] == row["weights"], name
            assert list(layer.output_shape) == row["out"][0], name


def test_yolo_at_any_multiple_of_32(small_tiny):
    # 2x3 and 4x6 cells of 3 anchors
    assert small_tiny.output["box_deltas"].shape[1] == (2 * 3 + 4 * 6) * 3
    # 3x2, 6x4 and 12x8
    model = darknet.build(YoloConfig(image_size=(96, 64), width_multiplier=0.1), num_classes=2)
    assert model.output["box_deltas"].shape[1] == (3 * 2 + 6 * 4 + 12 * 8) * 3


@pytest.mark.parametrize("priors", ["ssd300", "ssd300_7308"])
def test_mobilenet_serves_the_priors_of_vgg(priors, small_ssd):
    config = dataclasses.replace(SMALL_SSD, priors=priors)
    model = small_ssd if priors == "ssd300" else mobilenet.build(config, num_classes=3)
    count = num_priors(PRIOR_LAYOUTS[priors])
    assert output_shapes(model) == {"box_deltas": (None, count, 4), "class_logits": (None, count, 4)}


def test_mobilenet_at_512():
    model = mobilenet.build(dataclasses.replace(SMALL_SSD, image_size=(512, 512), priors="ssd512"), num_classes=1)
    assert output_shapes(model)["box_deltas"] == (None, 24564, 4)


def test_an_image_size_that_does_not_fit_the_priors_is_refused():
    with pytest.raises(ConfigError, match=r"gives feature maps of .*detector.priors needs sides of"):
        ssd_vgg.build(SsdConfig(image_size=(320, 300)), num_classes=3)


@pytest.mark.parametrize("build", [ssd_vgg.build, mobilenet.build])
def test_an_image_too_small_for_the_priors_is_refused(build):
    with pytest.raises(ConfigError, match=r"detector.image_size is 64x64, too small.*300x300"):
        build(SsdConfig(image_size=(64, 64)), num_classes=3)


# --- the order of predictions -------------------------------------------------------------------


def in_order(maps, columns):
    """Slow twin of the flattening: level, row, column, box of the cell."""
    rows = []
    for one in maps:
        height, width, depth = one.shape
        for y in range(height):
            for x in range(width):
                rows.extend(one[y, x, k * columns : (k + 1) * columns] for k in range(depth // columns))
    return np.stack(rows)


def test_ssd_predictions_run_from_the_finest_map_row_by_row(small_ssd, rng):
    batch = images(rng, SMALL_SSD)
    names = [f"head_{level}_{kind}" for kind in ("boxes", "classes") for level in range(6)]
    maps = keras.Model(small_ssd.input, [small_ssd.get_layer(name).output for name in names])(batch)
    maps = [one[0].numpy() for one in maps]
    predictions = small_ssd(batch)
    assert [one.shape[0] for one in maps[:6]] == [38, 19, 10, 5, 3, 1]
    np.testing.assert_array_equal(predictions["box_deltas"][0], in_order(maps[:6], 4))
    np.testing.assert_array_equal(predictions["class_logits"][0], in_order(maps[6:], 4))


def test_yolo_predictions_run_from_the_coarsest_map_row_by_row(small_tiny, rng):
    batch = images(rng, SMALL_TINY)
    maps = keras.Model(small_tiny.input, [small_tiny.get_layer(name).output for name in ("conv2d_10", "conv2d_13")])
    maps = [one[0].numpy() for one in maps(batch)]
    assert [one.shape for one in maps] == [(2, 3, 21), (4, 6, 21)]  # 3 anchors of 5 + 2 columns
    expected = in_order(maps, 7)
    predictions = small_tiny(batch)
    np.testing.assert_array_equal(predictions["box_deltas"][0], expected[:, :4])
    np.testing.assert_array_equal(predictions["objectness_logits"][0], expected[:, 4])
    np.testing.assert_array_equal(predictions["class_logits"][0], expected[:, 5:])


def test_an_untrained_yolo_sees_nothing(small_tiny):
    head = small_tiny.get_layer("conv2d_10")
    bias = head.bias.numpy().reshape(3, 7)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias[:, 4])), 0.01, rtol=1e-5)
    assert not bias[:, [0, 1, 2, 3, 5, 6]].any()


@pytest.mark.parametrize("config", [SMALL_SSD, SsdConfig(priors="ssd300_7308")], ids=["mobilenet", "vgg16"])
def test_a_model_for_the_focal_loss_sees_nothing_at_first(config):
    """In the last layer of 7,308 priors, too, which is dense. All else is as for softmax: files fit both."""
    config = dataclasses.replace(config, class_loss="sigmoid_focal")
    model = {"vgg16": ssd_vgg, "mobilenetv2": mobilenet}[config.backbone].build(config, num_classes=2)
    heads = [layer for layer in model.layers if re.search(r"_mbox_conf(_flat)?$|_classes$", layer.name)]
    assert len(heads) == 6
    for head in heads:
        bias = head.bias.numpy().reshape(-1, 3)
        np.testing.assert_allclose(1 / (1 + np.exp(-bias)), [[0.5, 0.01, 0.01]] * len(bias), rtol=1e-5)


# --- layers -------------------------------------------------------------------------------------


def test_caffe_preprocess_is_bgr_minus_the_mean():
    pixel = np.array([[[[10, 20, 30]]]], np.uint8)  # red 10, green 20, blue 30
    # 30 - 103.939, 20 - 116.779, 10 - 123.68
    np.testing.assert_allclose(layers.CaffePreprocess()(pixel)[0, 0, 0], [-73.939, -96.779, -113.68], rtol=1e-6)


def test_l2_normalization_sets_the_length_of_each_pixel():
    features = np.array([[[[3.0, 4.0], [0.0, 0.0], [300.0, 400.0]]]], np.float32)  # lengths 5, 0, 500
    expected = [[12.0, 16.0], [0.0, 0.0], [12.0, 16.0]]  # 20 * 3/5, 20 * 4/5
    layer = layers.L2Normalization(20.0)
    np.testing.assert_allclose(layer(features)[0, 0], expected, rtol=1e-6)
    assert [weight.shape for weight in layer.weights] == [(2,)]


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_double_is_keras_up_sampling_and_xla_compiles_its_gradient(dtype, rng):
    features, upstream = (tf.cast(rng.normal(size=size), dtype) for size in ((2, 3, 5, 8), (2, 6, 10, 8)))

    def values(layer):
        with tf.GradientTape() as tape:
            tape.watch(features)
            doubled = layer(features)
        return doubled, tape.gradient(doubled, features, upstream)

    expected = values(keras.layers.UpSampling2D(2, dtype=dtype))
    found = tf.function(values, jit_compile=True)(layers.Double(dtype=dtype))
    np.testing.assert_array_equal(found[0], expected[0])
    tolerance = 1e-6 if dtype == tf.float32 else 0.1  # the sum of four, each of which bfloat16 rounds by 1/256
    np.testing.assert_allclose(*(tf.cast(each[1], tf.float32) for each in (found, expected)), atol=tolerance)


def test_l2_normalization_survives_float16():
    layer = layers.L2Normalization(20.0, dtype="mixed_float16")
    features = tf.fill([1, 1, 1, 512], tf.constant(200.0, tf.float16))  # sum of squares 2e7, float16 ends at 65504
    # 20 / sqrt(512) = 0.8839
    np.testing.assert_allclose(layer(features)[0, 0, 0], 0.8839, rtol=1e-3)


def norms(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def test_every_batch_norm_forgets_fast(small_ssd, small_tiny):
    assert {layer.momentum for layer in norms(small_ssd) + norms(small_tiny)} == {0.9}


# --- weights and precision ----------------------------------------------------------------------

BUILDERS = {
    "mobilenet": lambda classes: mobilenet.build(SMALL_SSD, classes),
    "tiny": lambda classes: darknet.build(SMALL_TINY, classes),
}


def jittered(model, rng):
    """The model with every weight moved, moving averages too, so that a weight left out shows."""
    model.set_weights([weight + rng.uniform(0, 0.1, weight.shape) for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("name", list(BUILDERS))
def test_h5_round_trip_by_name(name, rng, tmp_path):
    source, target = jittered(BUILDERS[name](2), rng), BUILDERS[name](2)
    source.save_weights(str(tmp_path / "weights.h5"))
    target.load_weights(str(tmp_path / "weights.h5"), by_name=True)
    for ours, theirs in zip(target.get_weights(), source.get_weights()):
        np.testing.assert_array_equal(ours, theirs)


def test_vgg_h5_round_trip_by_name(ssd300, rng, tmp_path):
    expected = [weight.sum() for weight in jittered(ssd300, rng).get_weights()]
    ssd300.save_weights(str(tmp_path / "weights.h5"))
    ssd300.set_weights([np.zeros_like(weight) for weight in ssd300.get_weights()])
    ssd300.load_weights(str(tmp_path / "weights.h5"), by_name=True)
    np.testing.assert_array_equal([weight.sum() for weight in ssd300.get_weights()], expected)


def test_a_body_serves_another_number_of_classes(rng, tmp_path):
    source, target = jittered(BUILDERS["tiny"](2), rng), BUILDERS["tiny"](5)
    source.save_weights(str(tmp_path / "weights.h5"))
    target.load_weights(str(tmp_path / "weights.h5"), by_name=True, skip_mismatch=True)
    np.testing.assert_array_equal(target.get_layer("conv2d_9").kernel, source.get_layer("conv2d_9").kernel)


def test_a_model_is_rebuilt_from_its_config(small_tiny, rng):
    rebuilt = keras.Model.from_config(small_tiny.get_config())
    rebuilt.set_weights(small_tiny.get_weights())
    batch = images(rng, SMALL_TINY)
    np.testing.assert_allclose(rebuilt(batch)["box_deltas"], small_tiny(batch)["box_deltas"], rtol=1e-6)


def test_predictions_are_float32_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        models = [BUILDERS["mobilenet"](2), BUILDERS["tiny"](2), ssd_vgg.build(SsdConfig(priors="ssd300_7308"), 2)]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for model in models:
        assert {value.dtype for value in model.output.values()} == {tf.float32}
    assert models[1].get_layer("conv2d_1").compute_dtype == "float16"
