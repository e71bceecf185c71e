"""Arrays in anybody's npz and npy files: nothing in them is run, and none takes more than it has.

NumPy allocates what a header declares before it reads, and so a file of 1 kB can ask for terabytes.
Here what a header declares is compared with what the file can hold first.
"""

import contextlib
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from pflalign_jax.errors import UserError

MOST_PACKED = 1100
"""Bytes that one byte of a packed file can stand for: 1032 is deflate's most."""

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How NumPy packs arrays."""

DAMAGED = (
    OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""What reading a damaged or mislabelled file raises."""


class ArrayFileError(UserError, ValueError):
    """A file whose arrays cannot be read; the message says why, but not which file."""


class NpzFile(Mapping[str, np.ndarray]):
    """The arrays of an open npz file by name, each read when it is asked for."""

    def __init__(self, archive: zipfile.ZipFile, packed_bytes: int) -> None:
        self._archive, self._packed_bytes = archive, packed_bytes
        self._members = {
            member.filename.removesuffix(".npy"): member for member in archive.infolist()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._members[name]
        if member.flag_bits & 1:
            raise ArrayFileError(f"{name} is encrypted")
        if member.compress_type not in METHODS:
            raise ArrayFileError(
                f"{name} is packed by an unknown method, {member.compress_type}; NumPy writes "
                f"{METHODS}"
            )
        # A size in the archive is only what it says, too.
        room = min(member.compress_size, self._packed_bytes) * MOST_PACKED
        with self._archive.open(member) as file:
            check_header(name, file, min(member.file_size, room))
        with self._archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


@contextlib.contextmanager
def open_npz(path: str | os.PathLike) -> Iterator[NpzFile]:
    """Open an npz file; what its arrays raise when they are read is an `ArrayFileError` as well.

    Raises:
      ArrayFileError: for a file that is missing or damaged, for an array that declares more bytes
        than the file can hold, for Python objects.
    """
    path = pathlib.Path(path)
    with named(), zipfile.ZipFile(path) as archive:
        yield NpzFile(archive, path.stat().st_size)


def read_npy(path: str | os.PathLike, mapped: bool = False) -> np.ndarray:
    """Return the array of an npy file.

    Args:
      path: of the file.
      mapped: whether to map it into memory and not to read it.

    Raises:
      ArrayFileError: as `open_npz`.
    """
    path = pathlib.Path(path)
    with named():
        with path.open("rb") as file:
            check_header(path.stem, file, path.stat().st_size)
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def check_header(name: str, file: IO[bytes], room: int) -> None:
    """Refuse an array by its header.

    Args:
      name: of the array.
      file: at the beginning of its npy.
      room: bytes that there can be at most, with the header.

    Raises:
      ArrayFileError: for Python objects, or more bytes than there can be.
    """
    version = np.lib.format.read_magic(file)
    readers: dict[Any, Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ArrayFileError(f"{name} has npy's version {version}, which is for records only")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ArrayFileError(
            f"{name} holds Python objects, which are a pickle and could run code; write arrays of "
            "numbers or strings"
        )
    if any(length < 0 for length in shape):
        raise ArrayFileError(f"{name} has shape {shape}")
    declared = math.prod(shape) * dtype.itemsize
    if declared > room - file.tell():
        raise ArrayFileError(
            f"{name} is {dtype} of shape {shape}, which takes {declared} bytes; the file has at "
            f"most {max(room - file.tell(), 0)}: it is truncated or damaged"
        )


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Turn what reading raises into an `ArrayFileError`."""
    try:
        yield
    except DAMAGED as error:
        # Errors about what is in the arrays are ValueErrors as well, and have said all.
        if isinstance(error, ArrayFileError | UserError):
            raise
        raise ArrayFileError(str(error) or type(error).__name__) from error
