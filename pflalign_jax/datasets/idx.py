"""Reader of idx files, the format of MNIST and Fashion-MNIST."""

import gzip
import pathlib
import zlib

import numpy as np

from pflalign_jax.datasets.base import DatasetError


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Read an idx file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Args:
      path: of a file: two zero bytes, type 8, the number of dimensions, the big-endian sizes,
        the bytes.

    Returns:
      uint8 array of the shape that the file states.

    Raises:
      DatasetError: naming the file, for another type, or fewer or more bytes than stated.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}; fetch it again") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DatasetError(f"{path} is not an idx file of unsigned bytes; it begins {raw[:4]!r}")
    header = 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:header], ">u4").astype(int)) if len(raw) >= header else ()
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected or len(shape) != raw[3]:
        raise DatasetError(
            f"{path} has {len(raw)} bytes, its header of shape {shape} asks for {expected}; "
            "the file is truncated or damaged, fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
