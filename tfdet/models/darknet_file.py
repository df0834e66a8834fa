"""Weights out of Darknet's .weights files.

A file is a header, three int32 (major, minor, revision) and the images seen (int64 from version 0.2 on, int32
before), then float32 to the end. Each convolution in the order of the .cfg has: biases; or, with batch
normalisation, its shifts, scales, means and variances; then the kernel [out, in, height, width].
Source: `load_weights_upto` and `load_convolutional_weights` in parser.c of pjreddie/darknet.

Values are taken as they are, as keras-yolo3 does: Keras divides by sqrt(variance + 0.001) where Darknet divides by
sqrt(variance) + 0.000001.
"""

import numpy as np

from tfdet.compat import keras
from tfdet.models import class_heads
from tfdet.models.errors import WeightsError


def read(model, path) -> dict:
    """{layer: [(tensor, array), ...]} of the layers that are in the file: all of them, or the first ones.

    A file of other classes is recognised by its length.

    Raises:
        WeightsError: the file cannot be read, the model is not of Darknet's, or the file has another length than
            any beginning of it.
    """
    convs = sorted((layer for layer in model.layers if layer.name.startswith("conv2d_")), key=_number)
    if not convs:
        raise WeightsError(f"{path}: is not hdf5, and Darknet's files fit YOLOv3 and YOLOv3-tiny only")
    values = _floats(path)
    heads = class_heads.find(model)
    sizes = _sizes(convs, heads, values.size)
    if values.size not in np.cumsum(list(sizes.values())):
        raise WeightsError(
            f"{path}: holds {values.size:,} floats; this model has {sum(_own_sizes(convs).values()):,}, and neither "
            "its first layers nor another number of classes give that length. Is it the file of another network?"
        )
    return _cut(convs, _norms(model), sizes, heads, values)


def _floats(path):
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    if len(data) < 16:
        raise WeightsError(f"{path}: {len(data)} bytes are no file of weights")
    major, minor = np.frombuffer(data, "<i4", 2).tolist()
    start = 20 if major * 10 + minor >= 2 else 16
    if not 0 <= major < 1000 or not 0 <= minor < 1000 or (len(data) - start) % 4:
        raise WeightsError(f"{path}: is neither hdf5 nor a Darknet .weights file, or it was cut short")
    return np.frombuffer(data, "<f4", offset=start)


def _number(layer):
    return int(layer.name.rpartition("_")[2])


def _norms(model):
    """The batch normalisations, in the order of the convolutions that they follow."""
    kind = keras.layers.BatchNormalization
    return iter(sorted((layer for layer in model.layers if isinstance(layer, kind)), key=_number))


def _own_sizes(convs):
    """{layer: floats} with those of the batch normalisation that follows: 4 a filter instead of 1 bias."""
    rows = {layer.name: (layer, int(layer.kernel.shape[-1])) for layer in convs}
    return {name: (1 if layer.use_bias else 4) * out + int(np.prod(layer.kernel.shape))
            for name, (layer, out) in rows.items()}  # fmt: skip


def _sizes(convs, heads, total):
    """`_own_sizes`, with heads of as many classes as give the file's length, if any number does."""
    own = _own_sizes(convs)
    if total == sum(own.values()):
        return own
    # floats of a head = K (5 + C) (in + 1): linear in 5 + C
    per_column = {name: own[name] // (head.before + head.classes) for name, head in heads.items()}
    body = sum(size for name, size in own.items() if name not in heads)
    columns, rest = divmod(total - body, sum(per_column.values()))
    if rest or columns < 6:
        return own
    return {name: per_column[name] * columns if name in heads else size for name, size in own.items()}


def _cut(convs, norms, sizes, heads, values):
    stored, at = {}, 0
    for layer in convs:
        if at == values.size:
            break
        part, at = values[at : at + sizes[layer.name]], at + sizes[layer.name]
        height, width, channels, filters = layer.kernel.shape
        if layer.name in heads:
            filters = part.size // (height * width * channels + 1)
        count = filters if layer.use_bias else 4 * filters
        kernel = part[count:].reshape(filters, channels, height, width).transpose(2, 3, 1, 0)
        if layer.use_bias:
            stored[layer.name] = [("kernel", kernel), ("bias", part[:count])]
            continue
        beta, gamma, mean, variance = part[:count].reshape(4, filters)
        stored[layer.name] = [("kernel", kernel)]
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        stored[next(norms).name] = list(zip(names, (gamma, beta, mean, variance)))
    return stored
