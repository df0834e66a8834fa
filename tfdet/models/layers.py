"""What the models share: the layers Keras lacks, the one place that makes batch normalisation, SSD's outputs.

Everything is an ordinary or a registered layer - no Lambda, no bare op on a Keras tensor - so that
weights load by name, and a saved model opens without a list of custom objects.
"""

import contextlib
import math

import tensorflow as tf

from tfdet import schema
from tfdet.compat import keras
from tfdet.config import PRIOR_LAYOUTS, ConfigError, PriorLayout, SsdConfig

# The share of the old moving average kept each step. Keras' .99 and MobileNetV2's .999 need thousands
# of steps before a model evaluates as it trains; .9 (the default of Caffe2 and PyTorch) needs fifty.
MOMENTUM = 0.9

# Of the last layer before a loss: under a mixed precision policy its results stay float32.
HEAD_DTYPE = "float32"

# The logit of 1 in 100. Where each class or object is a question of its own, the answers of an untrained model begin
# here, or the loss of thousands of empty places drowns the rest (https://arxiv.org/abs/1708.02002, section 3.3).
RARE = -math.log(1 / 0.01 - 1)


def batch_norm(name: str, epsilon=1e-3):
    """The batch normalisation of every model; epsilon is Keras' default, which keras-yolo3's weights were made with."""
    return keras.layers.BatchNormalization(momentum=MOMENTUM, epsilon=epsilon, name=name)


def clone_with_batch_norm(model):
    """A copy, with fresh weights, of a ready-made model (keras.applications) that uses `batch_norm`."""

    def clone(layer):
        if isinstance(layer, keras.layers.BatchNormalization):
            return batch_norm(layer.name, layer.epsilon)
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=clone)


@keras.utils.register_keras_serializable("tfdet")
class CaffePreprocess(keras.layers.Layer):
    """uint8 [B, H, W, 3] RGB -> float [B, H, W, 3] BGR minus ImageNet's mean, the input VGG16's weights expect."""

    MEAN_BGR = (103.939, 116.779, 123.68)

    def call(self, images):
        bgr = tf.reverse(tf.cast(images, tf.float32), [-1])
        return tf.cast(bgr - tf.constant(self.MEAN_BGR), self.compute_dtype)


@keras.utils.register_keras_serializable("tfdet")
class L2Normalization(keras.layers.Layer):
    """Scales each pixel's feature vector to length `scale`, learnt a channel (ParseNet, https://arxiv.org/abs/1506.04579).

    float [B, H, W, C] -> the same shape and dtype.
    """

    def __init__(self, scale=20.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def build(self, shape):
        self.gamma = self.add_weight(
            name="gamma", shape=(shape[-1],), initializer=keras.initializers.Constant(self.scale)
        )
        super().build(shape)

    def call(self, features):
        features = tf.cast(features, tf.float32)  # the sum of squares leaves float16's range
        return tf.cast(tf.nn.l2_normalize(features, -1) * tf.cast(self.gamma, tf.float32), self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@keras.utils.register_keras_serializable("tfdet")
class Columns(keras.layers.Layer):
    """float [B, A, N] -> [B, A, end - begin]: the columns from `begin` to before `end`."""

    def __init__(self, begin, end, **kwargs):
        super().__init__(**kwargs)
        self.begin, self.end = begin, end

    def call(self, values):
        return values[..., self.begin : self.end]

    def get_config(self):
        return {**super().get_config(), "begin": self.begin, "end": self.end}


@keras.utils.register_keras_serializable("tfdet")
class Double(keras.layers.Layer):
    """float [B, H, W, C] -> [B, 2H, 2W, C], each pixel four times: UpSampling2D with a gradient that XLA compiles."""

    def call(self, features):
        height, width, channels = features.shape[1:]
        doubled = tf.repeat(tf.repeat(features, 2, axis=1), 2, axis=2)
        return tf.ensure_shape(doubled, [None, height and 2 * height, width and 2 * width, channels])


def prior_layout(config: SsdConfig) -> PriorLayout:
    """The layout that says how many boxes each cell of each feature map has.

    Priors read from a pickle (`config.priors` is then a path) are rykov8's 7,308.
    """
    return PRIOR_LAYOUTS.get(config.priors, PRIOR_LAYOUTS["ssd300_7308"])


@contextlib.contextmanager
def size_named(config: SsdConfig, layout: PriorLayout):
    """Names the image size where a map of the model built inside would have no cells left."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        if "dimension" not in str(error):
            raise
        height, width = config.image_size
        raise ConfigError(
            f"detector.image_size is {height}x{width}, too small for detector.priors, which was made for images of "
            f"{layout.image_side}x{layout.image_side}"
        ) from error


def class_head_bias(config: SsdConfig, num_boxes: int, num_classes: int):
    """The initializer for the bias of an SSD's class head: [num_boxes * (C + 1)], background first."""
    if config.class_loss == "softmax":
        return "zeros"
    return keras.initializers.Constant([0.0, *[RARE] * num_classes] * num_boxes)


def ssd_outputs(box_maps, class_maps, layout: PriorLayout, num_classes: int) -> dict:
    """Flattens the head's maps to predictions, level by level (finest first), then row, column, box of the cell.

    Args:
        box_maps, class_maps: per level float32 [B, H, W, K * 4] and [B, H, W, K * (C + 1)], K boxes a cell.
        layout: what the maps have to fit.
        num_classes: C, background not counted.
    Returns:
        `box_deltas` [B, A, 4] and `class_logits` [B, A, C + 1], background first.
    Raises:
        ConfigError: the maps are not those of the layout.
    """
    sizes = tuple(tuple(box_map.shape[1:3]) for box_map in box_maps)
    if sizes != tuple((side, side) for side in layout.feature_maps):
        raise ConfigError(
            f"detector.image_size gives feature maps of {', '.join(f'{h}x{w}' for h, w in sizes)}, detector.priors "
            f"needs sides of {layout.feature_maps}; it was made for images of {layout.image_side}x{layout.image_side}"
        )
    return {
        schema.BOX_DELTAS: _flatten(box_maps, 4, "mbox_loc_final"),
        schema.CLASS_LOGITS: _flatten(class_maps, num_classes + 1, "mbox_conf_logits"),
    }


def _flatten(maps, columns, name):
    rows = [keras.layers.Reshape((-1, columns), dtype=HEAD_DTYPE)(one) for one in maps]
    return keras.layers.Concatenate(axis=1, dtype=HEAD_DTYPE, name=name)(rows)
