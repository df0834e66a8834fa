"""Weights out of Keras hdf5 files: those of Keras 2, and of Keras 1 on TensorFlow or Theano."""

import re

import h5py
import numpy as np

from tfdet.compat import keras
from tfdet.models.errors import WeightsError

# names of other programs' files -> those of this package's models
_RENAMED = (
    (re.compile(r"(.+_mbox_conf(?:_flat)?)_\d+"), r"\1"),  # rykov8/ssd_keras, where there are not 21 classes
    (re.compile(r"block(\d)_conv(\d)"), r"conv\1_\2"),  # VGG16 of keras.applications
)
_NUMBERED = re.compile(r"(conv2d|batch_normalization)(?:_(\d+))?")


def is_hdf5(path) -> bool:
    """Whether the file begins as hdf5 does; False where it cannot be read."""
    try:
        return h5py.is_hdf5(path)
    except OSError:
        return False


def shape_text(shape) -> str:
    """(3, 3, 64) -> "3x3x64"."""
    return "x".join(map(str, shape)) or "scalar"


def tensor_name(name):
    """ "conv1/kernel:0" -> "kernel"; Keras 1's "conv1_W" stays."""
    return name.rpartition("/")[2].partition(":")[0]


def read(model, path) -> dict:
    """{layer: [(tensor, array), ...]} in the file's order, under the names and in the layout of the model's layers.

    Layers without weights are left out. Kernels of Keras 1 in Theano's order of dimensions are turned, and flipped
    where the file says that Theano trained them, because its convolutions turn the kernel around.

    Raises:
        WeightsError: the file cannot be read, or is of another kind.
    """
    try:
        with h5py.File(path, "r") as file:
            layers, flips = _layers(file), _from_theano(file)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read as hdf5 ({error})") from error
    except KeyError as error:
        raise WeightsError(f"{path}: is not a file of Keras weights by layer name ({error})") from error
    known = {layer.name: layer for layer in model.layers}
    renamed = rename(layers, known)
    return {name: _laid_out(known.get(name), entries, flips) for name, entries in renamed.items()}


def rename(layers, known) -> dict:
    """The layers of a file under the names of a model's, where the file's program is known to name them otherwise."""
    first = {}  # Keras numbers from 1, that of TensorFlow 2 from "conv2d", and goes on where a program makes two models
    for kind, number in (match.groups() for match in map(_NUMBERED.fullmatch, layers) if match):
        first[kind] = min(first.get(kind, np.inf), int(number or 0))
    counts_from_1 = any(_NUMBERED.fullmatch(name) for name in known)

    def name_here(name):
        match = _NUMBERED.fullmatch(name)
        if match and counts_from_1:
            return f"{match[1]}_{int(match[2] or 0) - first[match[1]] + 1}"
        for pattern, replacement in _RENAMED:
            other = pattern.sub(replacement, name) if pattern.fullmatch(name) else name
            if name not in known and other in known:
                return other
        return name

    return {name_here(name): entries for name, entries in layers.items()}


def _layers(file):
    root = file.get("model_weights", file)
    layers = {
        layer: [(tensor_name(name), np.asarray(root[layer][name])) for name in _names(root[layer], "weight_names")]
        for layer in _names(root, "layer_names")
    }
    return {name: entries for name, entries in layers.items() if entries}


def _names(group, key):
    """A list of names among the attributes; Keras cuts long lists into key0, key1, ..."""
    if key in group.attrs:
        parts = [group.attrs[key]]
    else:
        parts, number = [group.attrs[f"{key}0"]], 1
        while f"{key}{number}" in group.attrs:
            parts.append(group.attrs[f"{key}{number}"])
            number += 1
    return [_text(name) for part in parts for name in part]


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def _from_theano(file):
    root = file.get("model_weights", file)
    return _text(root.attrs.get("backend", file.attrs.get("backend", ""))) == "theano"


def _laid_out(layer, entries, flips):
    """Kernels of ordinary convolutions as [height, width, in, out]."""
    if not isinstance(layer, keras.layers.Conv2D) or isinstance(layer, keras.layers.DepthwiseConv2D):
        return entries
    shape = tuple(layer.kernel.shape)

    def turn(kernel):
        if kernel.ndim != 4:
            return kernel
        turned = kernel.transpose(2, 3, 1, 0)  # [out, in, height, width]
        if kernel.shape != shape and (turned.shape[:3] == shape[:3]):
            kernel = turned
        return kernel[::-1, ::-1] if flips else kernel

    return [(name, turn(value)) for name, value in entries]
