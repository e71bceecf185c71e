"""Values as files have them: which are missing, which are numbers, which are names."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from pflalign_jax.datasets.base import DatasetError

MISSING = (
    "", "#N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a",
    "nan", "null",
)  # fmt: skip
"""Texts that mean "no value" in an owner or a label: what R, pandas and databases write."""

MISSING_OPTIONS = ("refuse", "leave_out")
"""What a loader can do with examples without owner or label."""


def is_missing(values: np.ndarray) -> np.ndarray:
    """Tell which owners or labels are no value: ``[N]`` bool.

    None, NaN, and the texts of `MISSING` with or without spaces around them.

    >>> is_missing(np.array(["a", " NA ", ""])).tolist()
    [False, True, True]
    """
    if values.dtype.kind in "fc":
        return np.isnan(values)
    if values.dtype.kind == "O":
        return np.array([v is None or v != v or str(v).strip() in MISSING for v in values], bool)
    if values.dtype.kind == "S":
        return np.isin(np.char.strip(values), [text.encode() for text in MISSING])
    if values.dtype.kind == "U":
        return np.isin(np.char.strip(values), MISSING)
    return np.zeros(len(values), bool)


def refuse_missing(
    where: object,
    values: np.ndarray,
    what: str,
    place: Callable[[int], str] = "example {}".format,
) -> None:
    """Raise an error if an owner or a label is no value.

    Args:
      where: the file or the dataset, for messages.
      values: ``[N]``.
      what: what the values are, ``"client"`` or ``"label"``.
      place: from a position to its words.
    """
    missing = is_missing(values)
    if missing.any():
        i = int(np.argmax(missing))
        raise DatasetError(
            f"{where}: no {what} at {place(i)} but {values.tolist()[i]!r} ({missing.sum()} of "
            f"{len(values)}); fill it in, or leave such examples out (missing='leave_out' where "
            "files are read)"
        )


def numbers_or_names(values: np.ndarray) -> np.ndarray:
    """Return integers where all values are whole numbers, floats for other numbers, else names.

    ``"1"``, ``" 1.0"`` and ``1.0`` are the same number. ``"007"`` is a name: two clients ``"7"``
    and ``"007"`` must stay two.

    Args:
      values: ``[N]`` owners or labels, none missing, of any type.

    Returns:
      ``[N]`` int64, float64, or strings without spaces around them.

    >>> numbers_or_names(np.array(["0", "1.0", " 1"])).tolist()
    [0, 1, 1]
    """
    if values.dtype.kind in "iub":
        return values.astype(np.int64) if values.dtype.kind == "b" else values
    if values.dtype.kind == "f":
        return _as_whole(values)
    texts = as_text(values)
    names, position = np.unique(texts, return_inverse=True)  # few names, even of many values
    if any(re.match(r"[+-]?0\d", name) for name in names.tolist()):
        return texts
    try:
        numbers = names.astype(np.int64)
    except (ValueError, OverflowError):
        try:
            numbers = _as_whole(names.astype(np.float64))
        except ValueError:
            return texts
    # Beyond 2^53 floats are no longer exact: two long numbers could become one.
    if numbers.dtype.kind == "f" or np.abs(numbers).max() >= 2**53:
        if not np.isfinite(numbers).all() or np.abs(numbers).max() >= 2**53:
            return texts
    return numbers[position.reshape(texts.shape)]


def as_text(values: np.ndarray) -> np.ndarray:
    """Return values as strings without spaces around them."""
    if values.dtype.kind == "S":
        return np.char.strip(np.char.decode(values, "utf-8", "replace"))
    return np.char.strip(values.astype(str))


def _as_whole(numbers: np.ndarray) -> np.ndarray:
    """Return floats as int64 where all of them are whole and exact, else as they are."""
    with np.errstate(invalid="ignore"):
        whole = (np.abs(numbers) < 2**53) & (numbers == np.round(numbers))
    return numbers.astype(np.int64) if whole.all() else numbers


def finite_numbers(
    values: np.ndarray, where: object, place: Callable[[int], str] = "example {}".format
) -> np.ndarray:
    """Return ``[N]`` numbers, strings or objects as float32.

    Raises:
      DatasetError: naming the place and the value of one that is no finite number in float32.
    """
    with np.errstate(over="ignore"):  # numbers above float32 become infinite: refused below
        try:
            numbers = values.astype(np.float32)
        except (ValueError, TypeError):
            # One by one, so that the message can name the row that is not a number.
            numbers = np.array([_number(value) for value in values.tolist()], np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        value = values.tolist()[bad[0]]
        decimal = isinstance(value, str) and np.isfinite(_number(value.replace(",", ".")))
        hint = "write decimals with a point" if decimal and "," in value else (
            "impute it, encode it, remove the row, or ignore the column (ignore=(NAME,) of tables)"
        )  # fmt: skip
        raise DatasetError(
            f"{where} has {value!r} in {place(int(bad[0]))} ({len(bad)} of {len(numbers)} rows), "
            f"which is not a finite number in float32; {hint}"
        )
    return numbers


def _number(value: Any) -> float:
    """Return a value as a float; NaN if it is not a number."""
    try:
        return float(value)
    except (ValueError, TypeError):
        return np.nan
