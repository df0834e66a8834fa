"""A pickled dict {file name: float [N, 4 + C]}: relative corners, then one column a class with a single 1.

The form that rykov8/ssd_keras trains on.
"""

import pickle

import numpy as np

from tfdet.data import files, unpickle
from tfdet.data.address import below
from tfdet.data.annotations import Problem
from tfdet.data.errors import AnnotationError
from tfdet.data.formats.common import Source, box_problem, locate, make_listing


def read(path, images, class_names, allow_outside) -> Source:
    """See `formats.read`."""
    entries = {_text(key): value for key, value in _load_dict(path).items()}
    columns = 4 + len(class_names) if class_names else _usual_columns(entries)
    class_names = class_names or tuple(f"class_{i}" for i in range(columns - 4))
    root = images or path.parent
    listings, problems = [], []
    for key in sorted(entries):
        where = f"{path}: key {key!r}"
        image, problem = locate(where, key, [below(root, key)], () if allow_outside else (root,))
        array, fault = _build(entries[key], columns)
        if problem or fault:
            problems.append(problem or Problem(fault[0], where, fault[1]))
            continue
        classes = array[:, 4:]
        good = np.isin(classes, (0.0, 1.0)).all(axis=1) & (classes.sum(axis=1) == 1.0)
        problems += [box_problem(where, i + 1, _class_fault(classes[i]), image) for i in np.flatnonzero(~good)]
        rows = np.column_stack([array[good, :4], array[good, 4:].argmax(axis=1)])
        listings.append(make_listing(where, image, key, rows, np.flatnonzero(good) + 1, in_pixels=False))
    return Source("pickle", tuple(class_names), listings, problems)


def _load_dict(path) -> dict:
    advice = "pickle a dict {file name: numpy array [N, 4 + number of classes]}"
    try:
        with files.opened(path) as file:
            content = unpickle.load(file)
    except OSError as error:
        raise AnnotationError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except unpickle.UnpickleError as error:
        raise AnnotationError(path, str(error), advice) from error
    if not isinstance(content, dict):
        raise AnnotationError(path, f"the pickle holds a {type(content).__name__}, not a dict", advice)
    return content


def _text(key) -> str:
    if not isinstance(key, bytes):
        return str(key)
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        return key.decode("latin-1")


def _usual_columns(entries) -> int:
    """The commonest width of the arrays, the larger of two equally common ones."""
    built = [_build(value, None)[0] for value in entries.values()]
    widths = [array.shape[1] for array in built if len(array) and array.shape[1] > 4]
    return max(set(widths), key=lambda width: (widths.count(width), width), default=5)


def _build(value, columns):
    """float64 [N, columns] (any number of columns for None), and what is wrong with it: (kind, text) or None."""
    nothing = np.zeros((0, columns or 5))
    if not isinstance(value, unpickle.StoredArray):
        return nothing, ("bad_entry", f"the entry is of type {type(value).__name__}, not a numpy array")
    try:
        array = value.build().astype(np.float64)
    except unpickle.UnpickleError as error:
        return nothing, ("bad_entry", f"the entry is {error}")
    if array.size == 0:
        return nothing, None
    if array.ndim != 2 or columns not in (None, array.shape[1]):
        due = f"4 corners and {(columns or 5) - 4} classes make [N, {columns or 5}]"
        return nothing, ("wrong_shape", f"the array has the shape {array.shape}; {due}")
    return array, None


def _class_fault(values):
    """What is wrong with the class columns of a box that is not one-hot."""
    if not np.isin(values, (0.0, 1.0)).all():
        return "not_one_hot", f"has the class columns {values.tolist()}: other values than 0 and 1"
    count = int(values.sum())
    return "not_one_hot", f"has {count or 'no'} classes: {values.tolist()}"


def write(path, class_names, entries):
    """See `formats.save`."""
    one_hot = np.eye(len(class_names))
    content = {item.image_id: np.column_stack([item.boxes, one_hot[item.labels]]) for item, _ in entries}
    # Protocol 2 and numpy's older name for itself, which Python 2 and numpy 1 know; numpy 2 reads it as well.
    path.write_bytes(
        pickle.dumps(content, protocol=2).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    )
