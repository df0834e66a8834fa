"""Reads a pickle of numpy arrays without running anything that the pickle asks for.

A pickle is a program: it names functions and calls them. Here the few names that numpy's own pickles need
(protocols 0 to 5, Python 2 and 3, numpy 1 and 2) stand for harmless stand-ins that only collect an array's
parts; numpy itself is never reached by the pickle, and arrays of plain numbers are built from the parts
afterwards. Every other name is refused the moment it is mentioned, before anything could be called.
"""

import math
import operator
import pickle
import re

import numpy as np

_NUMERIC = re.compile(r"[fiub]\d{1,2}")
_TEXT = re.compile(r"[US]\d+")


class UnpickleError(ValueError):
    """The file is no pickle, is damaged, or asks for more than numpy arrays."""


class _Dtype:
    """Stands for numpy.dtype: a type code such as f8, and a byte order."""

    __slots__ = ("byte_order", "code")

    def __init__(self, code, *_align_and_copy):
        self.code, self.byte_order = _text(code), "="

    def __setstate__(self, state):
        self.byte_order = _text(state[1])  # (version, byte order, ...); the rest describes other than numbers

    def numpy(self, admitted=_NUMERIC) -> np.dtype:
        if not admitted.fullmatch(self.code):
            raise UnpickleError(f"an array of type {self.code!r} instead of numbers")
        return np.dtype(self.code).newbyteorder(self.byte_order)


class StoredArray:
    """Stands for an array of the pickle; `build` makes it real."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self, shape=(0,), dtype=None, fortran=False, raw=b""):
        self.shape, self.dtype, self.fortran, self.raw = shape, dtype, fortran, raw

    def __setstate__(self, state):
        self.shape, self.dtype, self.fortran, self.raw = state[-4:]  # newer ones begin with a version

    def build(self, admitted=_NUMERIC) -> np.ndarray:
        """The array, always a copy.

        Raises:
            UnpickleError: it holds other things than numbers, or its parts do not fit together.
        """
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.raw, (bytes, bytearray)):
            raise UnpickleError("an array without its type or its bytes")
        try:
            dtype = self.dtype.numpy(admitted)
            shape = tuple(operator.index(side) for side in self.shape)
            if len(self.raw) != math.prod(shape) * dtype.itemsize:
                raise UnpickleError(f"an array of shape {shape} that holds {len(self.raw)} bytes")
            return np.frombuffer(self.raw, dtype).reshape(shape, order="F" if self.fortran else "C").copy()
        except UnpickleError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise UnpickleError(f"an array that cannot be ({error})") from error


class _Function:
    """A stand-in that the pickle may call and can do nothing else with."""

    __slots__ = ("_call",)

    def __init__(self, call):
        self._call = call

    def __call__(self, *args):
        return self._call(*args)

    def __setstate__(self, state):
        raise UnpickleError("a function with a state")


def _text(value):
    """Python 2 strings arrive as bytes."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _reconstruct(_ndarray, _shape, _typecode):
    return StoredArray()


def _frombuffer(raw, dtype, shape, order):
    return StoredArray(shape, dtype, _text(order) == "F", raw)


def _scalar(dtype, raw):
    admitted = _TEXT if _TEXT.fullmatch(dtype.code) else _NUMERIC
    return StoredArray((), dtype, raw=raw).build(admitted).item()


def _encode(text, encoding):
    if _text(encoding) not in ("latin1", "latin-1"):
        raise UnpickleError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin-1")


def _empty_bytes():
    return b""


_ADMITTED = {
    "numpy.ndarray": None,  # only ever an argument
    "numpy.dtype": _Function(_Dtype),
    "_codecs.encode": _Function(_encode),
    "__builtin__.bytes": _Function(_empty_bytes),
    "builtins.bytes": _Function(_empty_bytes),
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray._reconstruct"] = _Function(_reconstruct)
    _ADMITTED[f"{_core}.multiarray.scalar"] = _Function(_scalar)
    _ADMITTED[f"{_core}.numeric._frombuffer"] = _Function(_frombuffer)


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python: the one in C lets six bytes of a pickle claim all memory (LONG_BINPUT)."""

    def find_class(self, module, name):
        full_name = f"{module}.{name}"
        if full_name not in _ADMITTED:
            raise UnpickleError(f"it asks for {full_name}, which arrays do not need; refused, nothing was run")
        return _ADMITTED[full_name]


def load(file):
    """What the pickle in an open binary file holds: plain Python objects, with a `StoredArray` for each array.

    Strings of Python 2 come back as bytes.

    Raises:
        UnpickleError: the file is no pickle, is damaged, or names anything but numpy's arrays.
    """
    try:
        return _Unpickler(file, encoding="bytes").load()
    except UnpickleError:
        raise
    except EOFError as error:
        raise UnpickleError("the file is empty or ends before its pickle does") from error
    except Exception as error:  # damaged bytes can make any opcode fail in any way
        raise UnpickleError(f"it is not a whole pickle ({type(error).__name__}: {error})") from error
