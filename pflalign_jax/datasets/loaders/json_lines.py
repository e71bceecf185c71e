"""Files with one json object in each line."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from pflalign_jax.datasets.base import DatasetError


def read_json_lines(
    file: pathlib.Path, keys: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of every object, ``"FILE: line 3"``, and the object; blank lines are skipped.

    Args:
      file: its path.
      keys: that every object must have.

    Raises:
      DatasetError: naming file and line, for one that is no json object or lacks a key; for a file
        that cannot be read or has no line.
    """
    empty = True
    try:
        with file.open(encoding="utf8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    empty = False
                    place = f"{file}: line {number}"
                    yield place, _object(place, line, keys)
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} cannot be read as text ({error})") from error
    if empty:
        raise DatasetError(f"{file} is empty; it must have a json object in each line")


def text_of(place: str, row: dict[str, Any], key: str) -> str:
    """Return a text of an object; raise an error if it is none."""
    if not isinstance(row[key], str):
        raise DatasetError(f"{place} has {key}={row[key]!r}; it must be a text")
    return row[key]


def _object(place: str, line: str, keys: Sequence[str]) -> dict[str, Any]:
    """Return the object of a line, checked."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{place} is no json ({error}): {line.strip()[:60]!r}; correct or remove it"
        ) from error
    if not isinstance(row, dict):
        raise DatasetError(f"{place} is no json object but {line.strip()[:60]!r}")
    missing = [key for key in keys if key not in row]
    if missing:
        raise DatasetError(f"{place} has no {missing[0]!r}, only {sorted(row)}")
    return row
