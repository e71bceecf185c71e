"""Values as files have them: which are missing, which are numbers, which are names."""

import re
import unicodedata
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


def numbers_or_names(values: np.ndarray, where: object) -> np.ndarray:
    """Return integers where all values are whole numbers, floats for other numbers, else names.

    ``"1"``, ``" 1.0"`` and ``1.0`` are the same number. ``"007"`` is a name: two clients ``"7"``
    and ``"007"`` must stay two.

    Args:
      values: ``[N]`` owners or labels, none missing, of any type.
      where: the file or the dataset, for messages.

    Returns:
      ``[N]`` int64, float64, or strings without spaces around them.

    Raises:
      DatasetError: see `as_text`.

    >>> numbers_or_names(np.array(["0", "1.0", " 1"]), "pets.csv").tolist()
    [0, 1, 1]
    """
    if values.dtype.kind in "iub":
        return values.astype(np.int64) if values.dtype.kind == "b" else values
    if values.dtype.kind == "f":
        return _as_whole(values)
    texts = as_text(values, where)
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


def as_text(values: np.ndarray, where: object) -> np.ndarray:
    """Return ``[N]`` values as strings without spaces around them.

    Raises:
      DatasetError: naming one that is bytes, but not of UTF-8, and as `refuse_unwritable`.
    """
    try:
        texts = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values.astype(str)
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{where} has the text {error.object!r}, which is not UTF-8; save texts as strings, or "
            "bytes as UTF-8"
        ) from error
    texts = np.char.strip(texts)
    refuse_unwritable(texts, where)
    return texts


def refuse_unwritable(texts: np.ndarray, where: object) -> None:
    """Refuse texts that cannot be written to a file or shown in a line.

    Args:
      texts: ``[N]`` strings.
      where: the file or the dataset, for messages.

    Raises:
      DatasetError: naming one with parts of characters, line breaks or other signs to terminals.
    """
    for text in dict.fromkeys(texts.tolist()):  # few, even of many values
        if not text.isprintable() and any(map(_is_control, text)):
            raise DatasetError(
                f"{where} has the text {text!r}, which has characters that cannot be written or "
                "shown; give it another name"
            )


def _is_control(character: str) -> bool:
    """Tell whether a character is a part of one, or moves cursors instead of being shown."""
    return unicodedata.category(character) in ("Cc", "Cs")


def _as_whole(numbers: np.ndarray) -> np.ndarray:
    """Return floats as int64 where all of them are whole and exact, else as they are."""
    with np.errstate(invalid="ignore"):
        whole = (np.abs(numbers) < 2**53) & (numbers == np.round(numbers))
    return numbers.astype(np.int64) if whole.all() else numbers


def held_by(values: np.ndarray, dtype: Any, where: object) -> np.ndarray:
    """Return numbers as ``dtype``; only digits beyond its precision are lost.

    Args:
      values: ``[N, ...]`` finite numbers.
      dtype: of integers or floats.
      where: the file or the dataset and what of it, for messages.

    Raises:
      DatasetError: naming one that ``dtype`` cannot hold. NumPy would return another number.

    >>> held_by(np.array([2**40 + 7]), np.int32, "a.npz: x")
    Traceback (most recent call last):
    ...
    pflalign_jax.datasets.base.DatasetError: a.npz: x has 1099511627783 at example 0, which int32 \
cannot hold; numbers go from -2147483648 to 2147483647
    """
    dtype = np.dtype(dtype)
    if values.dtype == dtype or not values.size:
        return values.astype(dtype, copy=False)
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    least, most = (float(limits.min), float(limits.max)) if dtype.kind == "f" else (
        int(limits.min), int(limits.max)
    )  # fmt: skip
    # Python's numbers: NumPy's own would be converted before they are compared.
    if not (values.min().item() >= least and values.max().item() <= most):
        bad = (values < least) | (values > most)
        first = int(np.argmax(bad.reshape(len(values), -1).any(1)))
        value = values[first][bad[first]].flat[0] if bad.ndim > 1 else values[first]
        raise DatasetError(
            f"{where} has {value} at example {first}, which {dtype} cannot hold; numbers go from "
            f"{least} to {most}"
        )
    return values.astype(dtype)


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
