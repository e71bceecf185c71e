"""Pickles of numbers, strings, lists, dicts and arrays, read without running what they name.

A pickle is a program: `pickle.load` imports and calls any function that the file names. Here the
few names that NumPy's arrays need stand for functions of this module, and any other is refused
before it is imported.
"""

import io
import math
import pathlib
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from pflalign_jax.datasets.base import DatasetError

KINDS = "biufSU"
"""Kinds of dtypes whose bytes may be taken as they are: none of them holds a pointer."""


def load_plain(content: bytes, where: object) -> Any:
    """Return the one value in a pickle, of plain types and `numpy.ndarray` only.

    Args:
      content: the pickle.
      where: the file, for messages.

    Raises:
      DatasetError: for a pickle that needs anything else, which it names, or that is damaged.
    """
    try:
        _check_memo(content)
        value = _PlainUnpickler(io.BytesIO(content), where).load()
    except DatasetError:
        raise
    except Exception as error:  # damaged pickles raise almost anything, as the docs of pickle say
        raise DatasetError(
            f"{where} cannot be read as a pickle ({type(error).__name__}: {error}); it is "
            "truncated or damaged, write it again"
        ) from error
    return np.asarray(value) if isinstance(value, np.ndarray) else value


def load_plain_file(path: pathlib.Path) -> Any:
    """Return the value in a pickle file; see `load_plain`.

    Raises:
      DatasetError: naming the file; as `load_plain`, or if there is none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error})") from error
    return load_plain(content, path)


def _check_memo(content: bytes) -> None:
    """Raise an error for a number in the memo that no pickler writes.

    The unpickler allocates all places up to it: one damaged byte could take tens of gigabytes.
    """
    for count, (opcode, number, _) in enumerate(pickletools.genops(content)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(number or 0) <= count:
            raise ValueError(f"it has a place {number} after {count} steps")


class _PlainArray(np.ndarray):
    """An array that is filled from a pickle's state after the state has been checked."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        dtype = dtype.resolved()
        if dtype.hasobject and not isinstance(content, list):
            raise ValueError("an array of objects must come as a list")  # not bytes as pointers
        if isinstance(content, list) and len(content) != math.prod(shape):
            raise ValueError(f"{len(content)} objects do not fill an array of shape {shape}")
        filled: Any = (1, shape, dtype, bool(fortran), content)
        super().__setstate__(filled)


class _PlainDtype:
    """A dtype's code and byte order as a pickle states them.

    A class of its own, because NumPy believes the flags in a pickled dtype, also those that make
    it take bytes for pointers.
    """

    __slots__ = ("code", "order")

    def __init__(self, code: str):
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: Any) -> None:
        if any(part is not None for part in state[2:5]):  # subarray, names, fields
            raise ValueError("arrays of records are not allowed")
        self.order = state[1]

    def resolved(self) -> np.dtype:
        """Return NumPy's own dtype."""
        dtype = np.dtype(str(self.code))
        if dtype.kind not in KINDS + "O":
            raise ValueError(f"dtype {self.code!r} is not allowed")
        return dtype if dtype.kind == "O" else dtype.newbyteorder(self.order)


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler for which only the names of `ALLOWED` mean something."""

    def __init__(self, file: Any, where: object):
        super().__init__(file)
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; called by `pickle.Unpickler` for every one."""
        # NumPy 2 has renamed the module; files of both are read.
        key = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if key not in ALLOWED:
            raise DatasetError(
                f"{self._where} is a pickle that uses {module}.{name}; only arrays, dicts, lists, "
                "numbers and strings are read, since anything else could run code. If you trust "
                "the file, load it with its own library and save arrays with numpy.savez"
            )
        return ALLOWED[key]


def _empty(*_: Any) -> np.ndarray:
    """Stand for ``numpy.core.multiarray._reconstruct``: the state that follows fills the array."""
    return np.empty(0).view(_PlainArray)


def _from_buffer(content: Any, dtype: _PlainDtype, shape: Any, order: Any) -> np.ndarray:
    """Stand for ``numpy.core.numeric._frombuffer``, arrays of pickle's protocol 5."""
    return np.frombuffer(content, _of_bytes(dtype)).reshape(shape, order=order)


def _scalar(dtype: _PlainDtype, content: Any) -> Any:
    """Stand for ``numpy.core.multiarray.scalar``."""
    return np.frombuffer(content, _of_bytes(dtype), count=1)[0]


def _dtype(code: str, *_: Any) -> _PlainDtype:
    """Stand for ``numpy.dtype``."""
    return _PlainDtype(code)


def _encoded(text: str, encoding: str) -> bytes:
    """Stand for ``_codecs.encode``, by which protocols up to 2 write bytes."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand for ``bytes``, by which protocols up to 2 write those that are empty."""
    return b""


def _of_bytes(dtype: _PlainDtype) -> np.dtype:
    resolved = dtype.resolved()
    if resolved.hasobject:
        raise ValueError("bytes are no objects")
    return resolved


ALLOWED: dict[str, Callable | str] = {
    "numpy.core.multiarray._reconstruct": _empty,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy.dtype": _dtype,
    "numpy.ndarray": "numpy.ndarray",  # `_reconstruct` is given it and ignores it
    "_codecs.encode": _encoded,
    "__builtin__.bytes": _no_bytes,
}
"""What stands for the names that arrays in pickles use."""
