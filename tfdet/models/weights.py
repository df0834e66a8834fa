"""Weights from Keras hdf5 files, by layer name, with an account of what was loaded and what was not."""

from dataclasses import dataclass

import h5py
import numpy as np

from tfdet.compat import keras


class WeightsError(ValueError):
    """A file that holds no weights for this model."""


@dataclass(frozen=True)
class Audit:
    """Where each layer's weights came from; names of layers, in the order of the model or of the file.

    Attributes:
        loaded: layers that now have the file's weights.
        mismatched: layers of other shapes in the file, e.g. class heads; "name: (file's shapes), not (model's)".
        missing: layers of the model that are not in the file.
        unused: layers of the file that are not in the model.
    """

    loaded: tuple[str, ...]
    mismatched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self):
        parts = [f"{len(self.loaded)} layers loaded"]
        for title in ("mismatched", "missing", "unused"):
            names = getattr(self, title)
            if names:
                parts.append(f"{len(names)} {title}: {', '.join(names)}")
        return "\n  ".join(parts)


def load_by_name(model, path) -> Audit:
    """Copies weights into the layers of `model` that have a namesake of the same shapes in the file.

    Call it before layers are frozen. Reads what `Model.save_weights` and `Model.save` of Keras 1 and 2 write as hdf5.

    Args:
        model: keras.Model.
        path: of the .h5 file.
    Raises:
        WeightsError: the file cannot be read, is of another kind, or fits no layer at all.
    """
    stored = _read(path)
    layers = {layer.name: layer.trainable_weights + layer.non_trainable_weights for layer in model.layers}
    layers = {name: weights for name, weights in layers.items() if weights}
    loaded, mismatched = [], []
    for name, weights in layers.items():
        if name not in stored:
            continue
        here, there = [tuple(weight.shape) for weight in weights], [value.shape for value in stored[name]]
        if here == there:
            keras.backend.batch_set_value(list(zip(weights, stored[name])))
            loaded.append(name)
        else:
            mismatched.append(f"{name}: {_shapes(there)}, not {_shapes(here)}")
    if not loaded:
        raise WeightsError(f"{path}: no layer of it fits this model; it has {', '.join(list(stored)[:5])}, ...")
    missing = tuple(name for name in layers if name not in stored)
    unused = tuple(name for name in stored if name not in layers)
    return Audit(tuple(loaded), tuple(mismatched), missing, unused)


def _read(path):
    """Layer name -> its arrays in order; layers without weights are left out."""
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            layers = {name: [root[name][weight] for weight in _names(root[name], "weight_names")]
                      for name in _names(root, "layer_names")}  # fmt: skip
            return {name: [np.asarray(value) for value in values] for name, values in layers.items() if values}
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read as hdf5 ({error})") from error
    except KeyError as error:
        raise WeightsError(f"{path}: is not a file of Keras weights by layer name ({error})") from error


def _names(group, key):
    """A list of names among the attributes; Keras cuts long lists into key0, key1, ..."""
    if key in group.attrs:
        parts = [group.attrs[key]]
    else:
        parts, number = [group.attrs[f"{key}0"]], 1
        while f"{key}{number}" in group.attrs:
            parts.append(group.attrs[f"{key}{number}"])
            number += 1
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def _shapes(shapes):
    return " ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
