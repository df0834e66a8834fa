"""What callbacks remember, such as patience and best values, as data that a checkpoint can hold.

Only attributes that changed since the training began are taken: what the user set when making a callback is never
overwritten by an older run.
"""

import base64

import numpy as np


class Memory:
    """The state of a list of callbacks; made right after their `on_train_begin`."""

    def __init__(self, callbacks):
        self._callbacks = list(callbacks)
        self._fresh = [_plain(callback) for callback in self._callbacks]

    def take(self) -> list:
        """A list that JSON can hold: for each callback its class and the attributes that have changed."""
        return [
            [type(callback).__name__, {name: v for name, v in _plain(callback).items() if fresh.get(name, _NONE) != v}]
            for callback, fresh in zip(self._callbacks, self._fresh)
        ]

    def give_back(self, stored):
        """Sets what `take` gave. The n-th callback of a class gets what the n-th of that class had."""
        waiting = list(stored)
        for callback in self._callbacks:
            match = next((entry for entry in waiting if entry[0] == type(callback).__name__), None)
            if match is None:
                continue
            waiting.remove(match)
            for name, value in match[1].items():
                setattr(callback, name, _decode(value))


_NONE = object()
_SKIPPED = {"params", "model"}  # set by Keras anew


def _plain(callback) -> dict:
    """The attributes that are plain data, encoded."""
    found = {name: _encode(v) for name, v in vars(callback).items() if name not in _SKIPPED}
    return {name: value for name, value in found.items() if value is not _NONE}


def _encode(value):
    """JSON for numbers, text, arrays and lists of these; `_NONE` for anything else."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        array = np.asarray(value)
        text = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        return {"array": text, "dtype": array.dtype.str, "shape": list(array.shape)}
    if isinstance(value, list):
        items = [_encode(item) for item in value]
        return items if all(item is not _NONE for item in items) else _NONE
    return _NONE


def _decode(value):
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    array = np.frombuffer(base64.b64decode(value["array"]), value["dtype"]).reshape(value["shape"]).copy()
    return array if array.shape else array[()]
