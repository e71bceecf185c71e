"""Whether features are the ones that they were: a checksum over all of them."""

import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

BLOCK = 2**22
"""Bytes that are read at a time."""


def describe_features(x: np.ndarray, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells features apart, as json.

    ``features_crc32_all`` is over all bytes in their order. Memory-mapped features may be larger
    than memory: they are read once, and not again as long as their file has the same size and time
    of change, which are ``features_file``.

    Args:
      x: ``[N, ...]`` features.
      before: what this returned for them another time.
    """
    file = _file_of(x)
    known = before.get("features_crc32_all")
    if file is None or known is None or before.get("features_file") != file:
        known = features_checksum(x)
    return {"features_crc32_all": known, "features_file": file}


def features_checksum(x: np.ndarray) -> int:
    """Return the CRC-32 of all bytes of an array ``[N, ...]`` in the order of its elements."""
    rows = max(1, BLOCK // max(1, x[:1].nbytes))
    checksum = 0
    for start in range(0, len(x), rows):
        block = np.ascontiguousarray(x[start : start + rows])
        checksum = zlib.crc32(block.reshape(-1).view(np.uint8).data, checksum)
    return checksum


def sampled_checksum(x: np.ndarray) -> int:
    """Return what earlier versions wrote as ``features_crc32``: of some 4,000 examples."""
    return zlib.crc32(np.ascontiguousarray(x[:: max(1, len(x) // 4096)]).tobytes())


def _file_of(x: np.ndarray) -> list[int] | None:
    """Return size and time of change of the file that an array is mapped from, if it is."""
    if not isinstance(x, np.memmap) or x.filename is None:
        return None
    state = os.stat(x.filename)
    return [state.st_size, state.st_mtime_ns]
