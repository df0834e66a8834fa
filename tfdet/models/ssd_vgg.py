"""SSD on VGG16, with the layer names of rykov8/ssd_keras and Caffe, so that their weights load by name.

Three shapes of it: the paper's SSD300 and SSD512 (https://arxiv.org/abs/1512.02325, Caffe's ssd branch)
and, for the layout of 7,308 priors, the older SSD300 that ends in a global average.
"""

from tfdet.compat import keras
from tfdet.config import PRIOR_LAYOUTS, PriorLayout, SsdConfig
from tfdet.models import layers

# block: filters of its convolutions; a pooling by two follows each but the last
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# After fc7, one block a feature map: filters of the 1x1 and of the second convolution, then that one's
# kernel, stride and zero padding. Padding is explicit because Keras' "same" is lopsided on even sides.
_EXTRA_300 = ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0))
_EXTRA_512 = ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 4, 1, 1))
_EXTRA_7308 = ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 2, 1))


def build(config: SsdConfig, num_classes: int, layout: PriorLayout | None = None) -> keras.Model:
    """SSD on VGG16.

    Args:
        config: its `image_size` and `priors` decide about the shape.
        num_classes: C, background not counted.
        layout: the priors' layout where `config.priors` does not name one.
    Returns:
        A model from uint8 [B, H, W, 3] to `box_deltas` float32 [B, A, 4] and `class_logits` float32 [B, A, C + 1].
    """
    layout = layout or layers.prior_layout(config)
    images = keras.Input((*config.image_size, 3), dtype="uint8", name="image")
    with layers.size_named(config, layout):
        conv4_3, fc7 = _vgg16(layers.CaffePreprocess(name="preprocess")(images))
        norm = layers.L2Normalization(20.0, name="conv4_3_norm")(conv4_3)
        features = [norm, fc7, *_extra(fc7, layout)]
    return keras.Model(images, _heads(features, config, layout, num_classes), name="ssd_vgg16")


def _conv(filters, kernel, name, **options):
    # Glorot's variance halves a ReLU layer's power, which takes the pixels' +-128 to about 1 by fc7
    return keras.layers.Conv2D(filters, kernel, activation="relu", name=name, **{"padding": "same", **options})


def _vgg16(x):
    """VGG16 up to fc7, whose last two layers are convolutions: returns conv4_3 (stride 8) and fc7 (stride 16)."""
    for block, filters in enumerate(_VGG16, 1):
        for index, count in enumerate(filters, 1):
            x = _conv(count, 3, f"conv{block}_{index}")(x)
        if block == 4:
            conv4_3 = x
        pool = (2, 2) if block < 5 else (3, 1)  # pool5 keeps the map: fc6 sees the same area by dilation
        x = keras.layers.MaxPooling2D(*pool, padding="same", name=f"pool{block}")(x)
    x = _conv(1024, 3, "fc6", dilation_rate=6)(x)
    return conv4_3, _conv(1024, 1, "fc7")(x)


def _extra(x, layout):
    """The feature maps after fc7, each from the one before."""
    averaged = layout == PRIOR_LAYOUTS["ssd300_7308"]
    blocks = _EXTRA_7308 if averaged else _EXTRA_512 if layout.image_side == 512 else _EXTRA_300
    maps = []
    for number, (narrow, filters, kernel, stride, padding) in enumerate(blocks, 6):
        x = _conv(narrow, 1, f"conv{number}_1")(x)
        if padding:
            x = keras.layers.ZeroPadding2D(padding, name=f"conv{number}_2_padding")(x)
        x = _conv(filters, kernel, f"conv{number}_2", strides=stride, padding="valid")(x)
        maps.append(x)
    if averaged:
        maps.append(keras.layers.GlobalAveragePooling2D(name="pool6")(x))
    return maps


def _heads(features, config, layout, num_classes):
    box_maps, class_maps = [], []
    for level, feature in enumerate(features):
        boxes = layout.boxes_per_cell(level)
        name = feature.node.layer.name
        box_maps.append(_head(feature, boxes * 4, f"{name}_mbox_loc"))
        bias = layers.class_head_bias(config, boxes, num_classes)
        class_maps.append(_head(feature, boxes * (num_classes + 1), f"{name}_mbox_conf", bias))
    return layers.ssd_outputs(box_maps, class_maps, layout, num_classes)


def _head(feature, filters, name, bias="zeros"):
    options = {"bias_initializer": bias, "dtype": layers.HEAD_DTYPE}
    if len(feature.shape) == 2:  # the seed predicts from its average with dense layers, named so
        values = keras.layers.Dense(filters, name=f"{name}_flat", **options)(feature)
        return keras.layers.Reshape((1, 1, filters), dtype=layers.HEAD_DTYPE)(values)
    return keras.layers.Conv2D(filters, 3, padding="same", name=name, **options)(feature)
