"""Weights from files of others into a model, with an account of every tensor: loaded or not, and why.

    Keras hdf5     .h5, .hdf5: what Keras 1 and 2 write, by layer name (hdf5.py)
    Darknet        .weights: yolov3, yolov3-tiny, or their first layers alone, e.g. darknet53.conv.74 (darknet_file.py)
    "imagenet"     the backbones that keras.applications has (imagenet.py)

A reader gives `{layer: [(tensor, array), ...]}` with the names of the model's layers; the rest is common.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tfdet.compat import keras
from tfdet.models import class_heads, darknet_file, hdf5, imagenet
from tfdet.models.errors import WeightsError

__all__ = ["Audit", "Row", "WeightsError", "load"]

OUTCOMES = ("loaded", "mismatched", "missing", "unused")


@dataclass(frozen=True)
class Row:
    """What became of one tensor: `outcome` is one of OUTCOMES, `text` its shape, or why it was not loaded."""

    layer: str
    tensor: str
    outcome: str
    text: str


@dataclass(frozen=True)
class Audit:
    """Where a model's weights came from.

    Attributes:
        source: the file.
        rows: tuple of Row, one a tensor of the model, then those that only the file has.
        loaded: names of layers that now have the file's weights.
        mismatched: "layer: why", for layers that the file has in another shape, e.g. class heads.
        missing: layers of the model that are not in the file.
        unused: layers of the file that are not in the model.
    """

    source: str
    rows: tuple

    def _layers(self, outcome):
        return tuple(dict.fromkeys(row.layer for row in self.rows if row.outcome == outcome))

    @property
    def loaded(self):
        return self._layers("loaded")

    @property
    def mismatched(self):
        return tuple(dict.fromkeys(f"{row.layer}: {row.text}" for row in self.rows if row.outcome == "mismatched"))

    @property
    def missing(self):
        return self._layers("missing")

    @property
    def unused(self):
        return self._layers("unused")

    @property
    def summary(self) -> str:
        """One line: how many tensors had each outcome."""
        count = Counter(row.outcome for row in self.rows)
        return f"{self.source}: {', '.join(f'{count[one]} tensors {one}' for one in OUTCOMES if count[one])}"

    def __str__(self):
        """The summary, then a line a layer with its tensors."""
        lines = {}
        for row in self.rows:
            lines.setdefault((row.outcome, row.layer), {}).setdefault(row.text, []).append(row.tensor)
        return "\n".join([self.summary, *(_line(*key, texts) for key, texts in lines.items())])


def _line(outcome, layer, texts):
    return f"  {outcome:10} {layer}: " + ", ".join(f"{' '.join(names)} {text}" for text, names in texts.items())


def load(model, path, *, strict=False, keep=None) -> Audit:
    """Copies weights into the layers of `model` that have a namesake of the same shapes in the file.

    A layer is loaded whole or not at all. Call it before layers are frozen.

    Args:
        model: keras.Model, one of this package's, or for hdf5 any.
        path: of the file, or "imagenet".
        strict: fail, before anything is changed, unless every tensor of the model and of the file has its partner.
        keep: {class of the model: class of the file}, both from 0 without background: these classes' filters are
            taken from the file's class heads, of any number of classes; the filters of other classes stay as they are.
    Raises:
        WeightsError: the file cannot be read, is of another kind, fits no layer at all, or, with `strict`, not wholly.
    """
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    stored, heads = _read(model, path), class_heads.find(model)
    if keep is not None and not heads.keys() & stored.keys():
        raise WeightsError(f"{path}: has no layer with classes of which some could be kept")
    rows, values = [], []
    for name, layer in layers.items():
        variables = layer.trainable_weights + layer.non_trainable_weights
        found, reason = _fit(layer, variables, stored.get(name), heads.get(name), keep)
        outcome = "missing" if name not in stored else "loaded" if found else "mismatched"
        rows += [Row(name, hdf5.tensor_name(v.name), outcome, reason or hdf5.shape_text(v.shape)) for v in variables]
        values += zip(variables, found or ())
    for name in (name for name in stored if name not in layers):
        rows += [Row(name, tensor, "unused", "not in the model") for tensor, _ in stored[name]]
    audit = Audit(str(path), tuple(rows))
    _require_use(audit, stored, strict)
    keras.backend.batch_set_value(values)
    return audit


def _read(model, path):
    if str(path) == imagenet.NAME:
        return imagenet.read(model)
    if Path(path).suffix in (".h5", ".hdf5", ".keras") or hdf5.is_hdf5(path):
        return hdf5.read(model, path)
    return darknet_file.read(model, path)


def _fit(layer, variables, entries, head, keep):
    """The arrays for a layer's variables and a remark, or None and the reason why there are none."""
    if entries is None:
        return None, "not in the file"
    values = [value for _, value in entries]
    shapes = [tuple(variable.shape) for variable in variables]
    if head and keep is not None and len(values) == len(shapes):
        return class_heads.merge(head, [v.numpy() for v in variables], values, keep)
    if [value.shape for value in values] == shapes:
        return values, None
    there = " ".join(hdf5.shape_text(value.shape) for value in values)
    reason = f"{there} in the file, {' '.join(map(hdf5.shape_text, shapes))} in the model"
    reason += _other_priors(layer.name, shapes[-1], values[-1].shape)
    classes = head and class_heads.count_classes(head, values[-1])
    if classes and classes != head.classes:
        reason += f": {classes} classes there, {head.classes} here, so left out; --keep-classes takes a part of them"
    return None, reason


def _other_priors(name, here, there):
    """Of SSD's heads for boxes, 4 filters a box: a remark where they are of other boxes a cell."""
    if not name.endswith(("_mbox_loc", "_mbox_loc_flat")) or here[-1] == there[-1]:
        return ""
    there, here = (f"{shape[-1] / 4:g}" for shape in (there, here))
    return (
        f": {there} boxes a cell there, {here} here, so it was made for other priors; choose them by detector.priors "
        "(rykov8's weights_SSD300.hdf5: ssd300_7308, Caffe's: ssd300)"
    )


def _require_use(audit, stored, strict):
    if not audit.loaded:
        raise WeightsError(f"{audit.source}: no layer of it fits this model; it has {', '.join(list(stored)[:5])}, ...")
    unfit = [f"{row.layer} {row.tensor} ({row.outcome}: {row.text})" for row in audit.rows if row.outcome != "loaded"]
    if strict and unfit:
        more = f", and {len(unfit) - 3} more" if len(unfit) > 3 else ""
        raise WeightsError(f"{audit.source}: not all of it fits, as --strict asks: {'; '.join(unfit[:3])}{more}")
