"""The only file that imports tensorflow_addons, which ended with TensorFlow 2.15.

Ask for a part by its dotted name, `addons.get("optimizers.LAMB")`; where the package is missing
the error says how to get it. `available()` never raises.
"""

import functools
import importlib
import warnings

_HOW = (
    "tensorflow-addons is not installed. It ended with TensorFlow 2.15 and runs on Python 3.10 and 3.11: "
    'pip install -e ".[addons]" -c constraints-addons.txt  (or: make install STACK=addons)'
)


@functools.cache
def _load():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its end-of-life notice, which the user can do nothing about
        return importlib.import_module("tensorflow_addons")


def available() -> bool:
    """Whether tensorflow_addons can be imported."""
    try:
        _load()
    except ImportError:
        return False
    return True


def get(name: str):
    """The object at the dotted `name` inside tensorflow_addons.

    Raises:
        ImportError: the package is missing; the text says how to install it.
        AttributeError: the package has no such part.
    """
    try:
        part = _load()
    except ImportError as error:
        raise ImportError(f"{name}: {_HOW}") from error
    for attribute in name.split("."):
        part = getattr(part, attribute)
    return part
