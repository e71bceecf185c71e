"""Reader of idx files, the format of MNIST, EMNIST, Fashion-MNIST and QMNIST's labels."""

import gzip
import pathlib
import zlib

import numpy as np

from pflalign_jax.datasets.base import DatasetError

TYPES: dict[int, np.dtype] = {8: np.dtype(np.uint8), 12: np.dtype(">i4")}
"""The format's codes for types; of several, these two occur in the datasets here."""


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Read an idx file of unsigned bytes or 32-bit integers, gzipped if it ends in ``.gz``.

    Raises:
      DatasetError: naming the file, see `parse_idx`, or if it cannot be read.
    """
    try:
        return parse_idx(path.read_bytes(), path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}; fetch it again") from error


def parse_idx(raw: bytes, path: object) -> np.ndarray:
    """Return the array in the bytes of an idx file.

    Args:
      raw: two zero bytes, the type (8 or 12), the number of dimensions, the big-endian sizes, the
        values; gzipped if ``path`` ends in ``.gz``.
      path: the file's name in messages.

    Returns:
      uint8 or int32 array of the shape that the file states.

    Raises:
      DatasetError: naming the file, for another type, or fewer or more bytes than stated.
    """
    if str(path).endswith(".gz"):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DatasetError(f"{path} cannot be read: {error}; fetch it again") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in TYPES:
        raise DatasetError(
            f"{path} is not an idx file of bytes or 32-bit integers; it begins {raw[:4]!r}"
        )
    dtype, header = TYPES[raw[2]], 4 + 4 * raw[3]
    # A file may end inside its header: then the shape is empty and the check below tells it.
    shape = tuple(np.frombuffer(raw[4:header], ">u4").astype(int)) if len(raw) >= header else ()
    # int64, since a damaged header can state a product above 32 bits.
    expected = header + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(raw) != expected or len(shape) != raw[3]:
        raise DatasetError(
            f"{path} has {len(raw)} bytes, its header of shape {shape} asks for {expected}; "
            "the file is truncated or damaged, fetch it again"
        )
    values = np.frombuffer(raw, dtype, offset=header).reshape(shape)
    return values if dtype.itemsize == 1 else values.astype(np.int32)
