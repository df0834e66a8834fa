"""YOLOv3 on Darknet-53 and YOLOv3-tiny (https://arxiv.org/abs/1804.02767), layer for layer as keras-yolo3 has them.

Convolutions are named conv2d_1, conv2d_2, ... and batch normalisations batch_normalization_1, ... in the
order in which Darknet's .cfg lists them; these are also the names in keras-yolo3's .h5 files. Each
convolution is followed by batch normalisation (Keras' epsilon, 1e-3, as there) and leaky ReLU, but the
last one of a level.
"""

import itertools

from tfdet import schema
from tfdet.compat import keras
from tfdet.config import YoloConfig
from tfdet.models import layers

_STAGES_53 = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))  # filters, residual blocks; each halves the map


def build(config: YoloConfig, num_classes: int) -> keras.Model:
    """YOLOv3 or YOLOv3-tiny for images of any multiples of 32.

    Args:
        config: `backbone`, `image_size` (left open with `multi_scale`), `anchor_masks` (boxes a cell, coarsest level
            first), `width_multiplier`.
        num_classes: C.
    Returns:
        A model from uint8 [B, H, W, 3] to `box_deltas` float32 [B, A, 4] (raw tx, ty, tw, th),
        `objectness_logits` float32 [B, A] and `class_logits` float32 [B, A, C]; A runs level by level
        (coarsest first), then row, column, anchor of the cell.
    """
    size = (None, None) if config.multi_scale else config.image_size
    images = keras.Input((*size, 3), dtype="uint8", name="image")
    pixels = keras.layers.Rescaling(1 / 255, dtype="float32", name="preprocess")(images)
    network = {"darknet53": _yolov3, "tiny": _yolov3_tiny}[config.backbone]
    rows = network(_Block(config, num_classes), pixels)
    rows = keras.layers.Concatenate(axis=1, dtype=layers.HEAD_DTYPE, name="predictions")(rows)
    return keras.Model(images, _outputs(rows, num_classes), name=f"yolov3_{config.backbone}")


class _Block:
    """Adds layers and counts them, so that names follow from the order."""

    def __init__(self, config, num_classes):
        self.width, self.masks, self.columns = config.width_multiplier, config.anchor_masks, 5 + num_classes
        self.convs, self.norms = itertools.count(1), itertools.count(1)

    def conv(self, x, filters, kernel, halve=False):
        """Convolution, batch normalisation, leaky ReLU; `halve` pads left and top only, as Darknet does."""
        if halve:
            x = keras.layers.ZeroPadding2D(((1, 0), (1, 0)))(x)
        filters = max(8, int(filters * self.width))
        stride, padding = (2, "valid") if halve else (1, "same")
        x = keras.layers.Conv2D(
            filters, kernel, stride, padding, use_bias=False, name=f"conv2d_{next(self.convs)}"
        )(x)  # fmt: skip
        x = layers.batch_norm(f"batch_normalization_{next(self.norms)}")(x)
        return keras.layers.LeakyReLU(0.1)(x)

    def predict(self, x, level):
        """The last, linear convolution of a level: float [B, h, w, N] -> float32 [B, h * w * K, 5 + C]."""
        boxes = len(self.masks[level])
        bias = [0.0] * 4 + [layers.RARE] + [0.0] * (self.columns - 5)
        x = keras.layers.Conv2D(
            boxes * self.columns,
            1,
            dtype=layers.HEAD_DTYPE,
            bias_initializer=keras.initializers.Constant(bias * boxes),
            name=f"conv2d_{next(self.convs)}",
        )(x)
        return keras.layers.Reshape((-1, self.columns), dtype=layers.HEAD_DTYPE)(x)


def _yolov3(block, x):
    x = block.conv(x, 32, 3)
    stages = []
    for filters, count in _STAGES_53:
        x = block.conv(x, filters, 3, halve=True)
        for _ in range(count):
            x = keras.layers.Add()([x, block.conv(block.conv(x, filters // 2, 1), filters, 3)])
        stages.append(x)
    rows = []
    for level, filters in enumerate((512, 256, 128)):
        if level:
            x = layers.Double()(block.conv(x, filters, 1))
            x = keras.layers.Concatenate()([x, stages[-1 - level]])
        for count, kernel in ((filters, 1), (filters * 2, 3), (filters, 1), (filters * 2, 3), (filters, 1)):
            x = block.conv(x, count, kernel)
        rows.append(block.predict(block.conv(x, filters * 2, 3), level))
    return rows


def _yolov3_tiny(block, x):
    for filters in (16, 32, 64, 128):
        x = keras.layers.MaxPooling2D(2, 2, "same")(block.conv(x, filters, 3))
    fine = block.conv(x, 256, 3)  # stride 16
    x = block.conv(keras.layers.MaxPooling2D(2, 2, "same")(fine), 512, 3)
    x = block.conv(keras.layers.MaxPooling2D(2, 1, "same")(x), 1024, 3)
    x = block.conv(x, 256, 1)
    coarse = block.predict(block.conv(x, 512, 3), 0)
    x = layers.Double()(block.conv(x, 128, 1))
    x = keras.layers.Concatenate()([x, fine])
    return [coarse, block.predict(block.conv(x, 256, 3), 1)]


def _outputs(rows, num_classes):
    """float32 [B, A, 5 + C] -> the dict of predictions."""

    def columns(begin, end, name):
        return layers.Columns(begin, end, dtype=layers.HEAD_DTYPE, name=name)(rows)

    objectness = keras.layers.Reshape((-1,), dtype=layers.HEAD_DTYPE, name="objectness_logits")
    return {
        schema.BOX_DELTAS: columns(0, 4, "box_deltas"),
        schema.OBJECTNESS_LOGITS: objectness(columns(4, 5, "objectness")),
        schema.CLASS_LOGITS: columns(5, 5 + num_classes, "class_logits"),
    }
