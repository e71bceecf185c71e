"""Compressed messages on the wire: as few bytes as the compression leaves, and no value changed.

A transform of messages yields what the server decodes (`MessageTransform.update`). After ``top_k``
most of its values are 0, after ``int8`` there are at most 255 different ones. Both are sent so:

    NAME!index, NAME!value   positions (int32) and values of what is not 0
    NAME!code, NAME!table    for every value its number (uint8) in a table of all values

What ``low_rank`` yields has no such form here; it is sent as it is.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pflalign_jax.deploy.packets import RefusedError

MOST_VALUES = 256
"""Values that one byte tells apart."""


def compact(arrays: Mapping[str, np.ndarray], compression: str | None) -> dict[str, np.ndarray]:
    """Return arrays in the shortest form that this compression allows.

    Args:
      arrays: of a message, by name.
      compression: ``config.messages.compression``.
    """
    sent: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        parts = {"": array}
        if array.dtype == np.float32 and compression == "top_k":
            parts = _sparse(array)
        elif array.dtype == np.float32 and compression == "int8":
            parts = _coded(array)
        if sum(part.nbytes for part in parts.values()) >= array.nbytes:
            parts = {"": array}
        sent |= {name + suffix: part for suffix, part in parts.items()}
    return sent


def expanded(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays that `compact` was given.

    Args:
      arrays: by name, as they were sent.
      shapes: of those that may be compact, by name.

    Raises:
      RefusedError: for positions or numbers that are out of range.
    """
    found = dict(arrays)
    for name, shape in shapes.items():
        for first, second, expand in (
            ("!index", "!value", _of_sparse),
            ("!code", "!table", _of_coded),
        ):
            if name + first in found and name + second in found:
                parts = found.pop(name + first), found.pop(name + second)
                found[name] = expand(name, *parts, shape)
    return found


def _sparse(array: np.ndarray) -> dict[str, np.ndarray]:
    flat = array.reshape(-1)
    # By bits: -0.0 stays what it is.
    index = np.flatnonzero(flat.view(np.uint32)).astype(np.int32)
    return {"!index": index, "!value": flat[index]}


def _coded(array: np.ndarray) -> dict[str, np.ndarray]:
    table, code = np.unique(array.reshape(-1).view(np.uint32), return_inverse=True)
    if len(table) > MOST_VALUES:
        return {"": array}
    return {"!code": code.astype(np.uint8), "!table": table.view(np.float32)}


def _of_sparse(name: str, index: np.ndarray, value: np.ndarray, shape: Any) -> np.ndarray:
    size = int(np.prod(shape.shape))
    if index.dtype != np.int32 or index.ndim != 1 or value.shape != index.shape:
        raise RefusedError(f"{name}: {index.dtype}{list(index.shape)} are no positions of values")
    if len(index) and not (0 <= index[0] and index[-1] < size and (np.diff(index) > 0).all()):
        raise RefusedError(f"{name}: positions must ascend in 0..{size - 1}")
    flat = np.zeros(size, value.dtype)
    flat[index] = value
    return flat.reshape(shape.shape)


def _of_coded(name: str, code: np.ndarray, table: np.ndarray, shape: Any) -> np.ndarray:
    size = int(np.prod(shape.shape))
    if code.dtype != np.uint8 or code.shape != (size,) or table.ndim != 1:
        raise RefusedError(f"{name}: {code.dtype}{list(code.shape)} are no codes of {size} values")
    if size and int(code.max()) >= len(table):
        raise RefusedError(f"{name}: code {code.max()} is not in a table of {len(table)} values")
    return table[code].reshape(shape.shape)
