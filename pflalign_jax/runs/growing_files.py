"""What a checkpoint remembers of the files that rounds append to: their lengths and checksums."""

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from pflalign_jax.runs.files import GROWING, WorkdirError, named_write_errors

SIZES = "files"
CHECKSUMS = "file_checksums"
"""Keys of what a checkpoint says: bytes of each file, and their CRC-32; earlier versions wrote no
checksums."""

BLOCK = 2**20
"""Bytes that are read at a time."""


@dataclasses.dataclass
class GrowingFiles:
    """Follows the files that rounds append to, so that each byte is read once for its checksum.

    Attributes:
      workdir: the run's directory.
      seen: of every file the bytes that were there last time, and their checksum.
    """

    workdir: pathlib.Path
    seen: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def sync(self) -> dict[str, dict[str, int]]:
        """Push what was appended to disk; return what a checkpoint says about it.

        Raises:
          WorkdirError: naming a file that became shorter, or cannot be written.
        """
        for name in GROWING:
            path, (before, checksum) = self.workdir / name, self.seen.get(name, (0, 0))
            size = path.stat().st_size if path.exists() else 0
            if size < before:
                raise WorkdirError(
                    f"{path} has {size} bytes, {before} at the last checkpoint; it was changed "
                    "while the run appends to it. Put it back and give the same command"
                )
            if path.exists():
                with named_write_errors(path), path.open("rb+") as file:
                    os.fsync(file.fileno())
            self.seen[name] = size, _checksum(path, before, size, checksum)
        return {
            SIZES: {name: size for name, (size, _) in self.seen.items()},
            CHECKSUMS: {name: checksum for name, (_, checksum) in self.seen.items()},
        }


def size_at(workdir: pathlib.Path, name: str, about: Mapping[str, Any]) -> int:
    """Return how long a file was when a checkpoint was saved, if it still begins with that.

    Args:
      workdir: the run's directory.
      name: of the file.
      about: what the checkpoint says.

    Raises:
      WorkdirError: naming the file, if what it held then was changed.
    """
    path, size = workdir / name, about[SIZES].get(name, 0)
    found = path.stat().st_size if path.exists() else 0
    # Longer is expected: rounds after the checkpoint. Shorter means that rows are lost.
    what = f"{path} has {found} bytes, {size} when the checkpoint was saved"
    if found >= size:
        wanted = about.get(CHECKSUMS, {}).get(name)
        if wanted is None or _checksum(path, 0, size) == wanted:
            return size
        what = f"the first {size} bytes of {path} differ from when the checkpoint was saved"
    raise WorkdirError(f"{what}; it was changed since. Put it back, or choose another --workdir")


def cut_back(workdir: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Take back what was appended after a checkpoint: whole lines or parts of one.

    Raises:
      WorkdirError: naming a file that was changed, before any is.
    """
    sizes = {name: size_at(workdir, name, about) for name in about[SIZES]}
    _truncate(workdir, sizes)


def empty(workdir: pathlib.Path) -> None:
    """Take back everything."""
    _truncate(workdir, dict.fromkeys(GROWING, 0))


def _truncate(workdir: pathlib.Path, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if (workdir / name).exists():
            with named_write_errors(workdir / name):
                os.truncate(workdir / name, size)


def _checksum(path: pathlib.Path, start: int, end: int, checksum: int = 0) -> int:
    """Return the CRC-32 of a file up to ``end``, from that up to ``start``."""
    if start == end:
        return checksum
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (block := file.read(min(BLOCK, end - start))):
            checksum, start = zlib.crc32(block, checksum), start + len(block)
    return checksum
