"""What the files of a run may hold, so that whoever reads them need not look again.

Somebody else's run, or one that was edited, may hold anything. Only the fields that readers use are
listed: earlier versions wrote fewer, later ones may write more.
"""

import json
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any

from pflalign_jax.errors import UserError

Number = int | float
Numbers = Number | list[Any]

ROW = {"round": int}
"""A row of ``metrics.jsonl`` or ``diagnostics.jsonl``: of what every one has."""

CONFIG = {"seed": int, "algorithm": dict, "dataset": dict}
"""``config.json``: of what every one has."""

SUMMARY = {
    "diverged": bool,
    "dataset": dict,
    "last": dict[str, Any],
    "best_validation": dict | None,
    "headline": dict,
    "versions": dict,
    "device": dict,
}

DATA = {
    "name": str,
    "num_classes": int,
    "features_shape": list[int],
    "features_dtype": str,
    "mean": Numbers,
    "std": Numbers,
    "client_names": list[str],
    "client_ids": list[int],
    "partition_hash": str,
    "label_counts": list[list[int]],
    "class_names": list[str],
    "feature_names": list[str],
    "frozen": str | None,
    "task": dict,
}

HEADLINE = {"metric": str, "higher_is_better": bool, "percent": bool}


class ReadError(UserError):
    """A file whose content is not what a run writes; the message says what, but not which file."""


def object_of(text: str | bytes) -> dict[str, Any]:
    """Return the object that json holds.

    Raises:
      ReadError: for anything else, and for NaN and infinity, which no file of ours has.
    """
    try:
        found = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ReadError(f"it is no json: {error}") from error
    if not isinstance(found, dict):
        raise ReadError(f"it holds {_shown(found)} and not an object of fields")
    return found


def check_fields(
    found: Mapping[str, Any], kinds: Mapping[str, Any], required: bool = False
) -> None:
    """Refuse values of other types than a run writes.

    Args:
      found: an object of json.
      kinds: type of every field, as an annotation; other fields are not looked at.
      required: whether all of them must be there.

    Raises:
      ReadError: naming the field and its value.
    """
    for name, kind in kinds.items():
        if name not in found:
            if required:
                raise ReadError(f"it has no field {name!r}")
        elif not _is(found[name], kind):
            what = getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind)
            raise ReadError(f"{name} is {_shown(found[name])} and not {what}")


def _is(value: Any, kind: Any) -> bool:
    """Tell whether a value of json has a type, with the types of what it holds."""
    if kind is Any:
        return True
    inner = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(_is(value, one) for one in inner)
    origin = typing.get_origin(kind) or kind
    # In Python, but not in json, a bool is an int.
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        return False
    if origin is list and inner:
        return all(_is(item, inner[0]) for item in value)
    return True


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of json")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_object(path: pathlib.Path, kinds: Mapping[str, Any], required: bool = False) -> Any:
    """Return the object in a file, checked by `check_fields`.

    Raises:
      OSError: if the file is missing or cannot be read.
      ReadError: as `object_of` and `check_fields`.
    """
    found = object_of(path.read_bytes())
    check_fields(found, kinds, required)
    return found


def with_tuples(value: Any) -> Any:
    """Return lists as tuples, at any depth: json and the command line have no tuples."""
    if isinstance(value, Mapping):
        return {name: with_tuples(item) for name, item in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value
