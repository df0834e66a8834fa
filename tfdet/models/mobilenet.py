"""SSD on MobileNetV2 with SSDLite's thin heads: the same priors as on VGG16, for machines without a GPU."""

from tfdet.compat import keras
from tfdet.config import PriorLayout, SsdConfig
from tfdet.models import layers

# the last layers of MobileNetV2 (https://arxiv.org/abs/1801.04381) at stride 8, 16 and 32
_FEATURES = ("block_6_expand_relu", "block_13_expand_relu", "out_relu")
_EXTRA_FILTERS = (256, 256, 128, 128)  # of the maps after those, the coarsest last


def build(config: SsdConfig, num_classes: int, layout: PriorLayout | None = None) -> keras.Model:
    """SSD on `keras.applications.MobileNetV2` of width `config.width_multiplier`, without weights.

    Args:
        config: its `image_size`, `priors` and `width_multiplier` decide about the shape.
        num_classes: C, background not counted.
        layout: the priors' layout where `config.priors` does not name one.
    Returns:
        A model from uint8 [B, H, W, 3] to `box_deltas` float32 [B, A, 4] and `class_logits` float32 [B, A, C + 1].
    """
    layout = layout or layers.prior_layout(config)
    backbone = _backbone(config)
    features = list(backbone.outputs)
    with layers.size_named(config, layout):
        for index, side in enumerate(layout.feature_maps[len(features) :]):
            filters = max(16, int(_EXTRA_FILTERS[index] * config.width_multiplier))
            features.append(_extra(features[-1], filters, side, f"extra_{index + 1}"))
    return keras.Model(backbone.inputs, _heads(features, config, layout, num_classes), name="ssd_mobilenetv2")


def _backbone(config):
    images = keras.Input((*config.image_size, 3), dtype="uint8", name="image")
    pixels = keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="preprocess")(images)
    model = keras.applications.MobileNetV2(
        input_tensor=pixels, alpha=config.width_multiplier, include_top=False, weights=None
    )
    model = keras.Model(images, [model.get_layer(name).output for name in _FEATURES])
    return layers.clone_with_batch_norm(model)


def _bn_relu(x, name):
    x = layers.batch_norm(f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x)


def _extra(x, filters, side, name):
    """The next coarser map: 1x1 to half the filters, depthwise 3x3, 1x1. Halves the side, or takes two off it."""
    halves = -(-x.shape[1] // 2) == side
    x = keras.layers.Conv2D(filters // 2, 1, use_bias=False, name=f"{name}_reduce")(x)
    x = _bn_relu(x, f"{name}_reduce")
    x = keras.layers.DepthwiseConv2D(
        3, 2 if halves else 1, "same" if halves else "valid", use_bias=False, name=f"{name}_depthwise"
    )(x)
    x = _bn_relu(x, f"{name}_depthwise")
    x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_expand")(x)
    return _bn_relu(x, f"{name}_expand")


def _heads(features, config, layout, num_classes):
    box_maps, class_maps = [], []
    for level, feature in enumerate(features):
        boxes = layout.boxes_per_cell(level)
        box_maps.append(_head(feature, boxes * 4, f"head_{level}_boxes"))
        bias = layers.class_head_bias(config, boxes, num_classes)
        class_maps.append(_head(feature, boxes * (num_classes + 1), f"head_{level}_classes", bias))
    return layers.ssd_outputs(box_maps, class_maps, layout, num_classes)


def _head(x, filters, name, bias="zeros"):
    """SSDLite: a depthwise 3x3 and a 1x1 in place of a 3x3."""
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    x = _bn_relu(x, f"{name}_depthwise")
    return keras.layers.Conv2D(filters, 1, bias_initializer=bias, dtype=layers.HEAD_DTYPE, name=name)(x)
