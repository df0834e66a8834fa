"""The layers whose filters stand for classes, and the filters of some of a file's classes in them."""

import re
from dataclasses import dataclass

import numpy as np

from tfdet import schema
from tfdet.models.errors import WeightsError

_SSD_HEAD = re.compile(r".+_mbox_conf(_flat)?|head_\d+_classes")


@dataclass(frozen=True)
class Head:
    """Filters run box of the cell by box: `before` columns (background; or box and objectness), then the classes."""

    boxes: int
    before: int
    classes: int


def find(model) -> dict:
    """{layer: Head} of one of this package's models; empty for others."""
    if not isinstance(model.output, dict) or schema.CLASS_LOGITS not in model.output:
        return {}
    is_yolo = schema.OBJECTNESS_LOGITS in model.output
    before = 5 if is_yolo else 1
    classes = model.output[schema.CLASS_LOGITS].shape[-1] - (0 if is_yolo else 1)
    return {
        layer.name: Head(layer.bias.shape[0] // (before + classes), before, classes)
        for layer in model.layers
        if (getattr(layer, "bias", None) is not None if is_yolo else _SSD_HEAD.fullmatch(layer.name))
    }


def count_classes(head, bias) -> int | None:
    """The classes of a file's head, or None if it is no head with as many boxes a cell."""
    columns, rest = divmod(bias.shape[-1], head.boxes)
    return columns - head.before if not rest and columns > head.before else None


def merge(head, own, stored, keep):
    """A head's arrays with the filters of some classes from a file.

    Args:
        own: the model's arrays, float [..., K * (before + C)]; the filters of classes that `keep` does not name stay.
        stored: the file's, of another C.
        keep: {class here: class there}, from 0.
    Returns:
        list of arrays and a remark, or None and the reason why the file's do not fit.
    Raises:
        WeightsError: a class that the file does not have.
    """
    classes = count_classes(head, stored[-1])
    if classes is None or any(a.shape[:-1] != b.shape[:-1] for a, b in zip(own, stored)):
        return None, f"{stored[-1].shape[-1]} filters in the file are not those of {head.boxes} boxes a cell"
    for there in keep.values():
        if not 0 <= there < classes:
            raise WeightsError(f"class {there} is to be kept, but the file has {classes} classes, counted from 0")
    here, there = list(range(head.before)), list(range(head.before))
    here += [head.before + number for number in keep]
    there += [head.before + number for number in keep.values()]
    merged = []
    for mine, theirs in zip(own, stored):
        values = np.array(mine).reshape(*mine.shape[:-1], head.boxes, head.before + head.classes)
        values[..., here] = theirs.reshape(*theirs.shape[:-1], head.boxes, head.before + classes)[..., there]
        merged.append(values.reshape(mine.shape))
    return merged, f"with {len(keep)} of {classes} classes"


def parse_keep(text, class_names, source_names=None) -> dict:
    """What the user asks to keep as {class here: class there}.

    Args:
        text: "person,car,lorry=truck,dog=16": a class of the model, and where the file calls it otherwise that name,
            or its number from 0.
        class_names: of the model. source_names: of the file, in its order; None: not known.
    Raises:
        WeightsError: a class that is not there, or a name where the file's names are not known.
    """
    keep = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        here, _, there = (part.strip() for part in item.partition("="))
        there = there or here
        if here not in class_names:
            raise WeightsError(f"--keep-classes: {here!r} is no class here; there are {', '.join(class_names)}")
        keep[list(class_names).index(here)] = _number(there, source_names)
    if not keep:
        raise WeightsError("--keep-classes names no class")
    return keep


def _number(name, source_names):
    if name in (source_names or ()):
        return list(source_names).index(name)
    if name.isdigit():
        return int(name)
    if source_names is None:
        raise WeightsError(
            f"--keep-classes: which class of the file is {name!r}? Give the names of its classes with --source-classes "
            f"FILE, or a number: {name}=0"
        )
    raise WeightsError(f"--keep-classes: the file has no class {name!r}; it has {', '.join(source_names)}")
