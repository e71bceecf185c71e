"""What every dataset is checked for, whatever way it came in: arrays, npz, csv, parquet, LEAF.

`checked_examples` is called where examples are given to clients, so nothing goes around it. Loaders
call `check_lengths` while they read.
"""

from collections.abc import Callable

import numpy as np

from pflalign_jax.datasets.base import SPLITS, TASK_NAMES, DatasetError, Examples
from pflalign_jax.datasets.values import (
    as_text,
    held_by,
    numbers_or_names,
    refuse_missing,
    refuse_unwritable,
)
from pflalign_jax.models.base import IGNORED

ROWS_AT_ONCE = 8192
"""Examples whose features are checked together: ``x`` may be larger than memory."""

MOST_CHANNELS = 4
"""A first axis of images up to this, before two longer ones, is taken for their channels."""

SMALLEST_SIDE = 8
"""Shorter sides are no sign of an image."""

NUM_CLASSES = {"regression": 0, "multilabel": 0, "binary": 2}
"""Classes of `Examples` for tasks that leave no choice."""

QUANTITY = (
    "To predict numbers, say task='regression' (--config.task=regression; in Examples also "
    "num_classes=0). For classes, divide them into ranges (np.digitize) or give them names"
)
"""What to do with labels that are a quantity."""

LARGE = 100.0
"""Features above this, or whose largest values differ by more than this factor, are noted."""


def checked_examples(examples: Examples) -> Examples:
    """Return examples that can be trained on; raise an error for all others.

    Features become float32 where they were of another floating type, images get their channels
    last (``[N, 28, 28]`` of bytes one channel), labels become int32 ``[N]``, owners ints or names.

    Raises:
      DatasetError: naming the source, the example, its client, the value and what to do: for
        lengths that differ, no examples, features or labels of a wrong type or shape, features
        that are NaN, infinite or too large for float32, labels outside ``0..num_classes-1``, an
        example without an owner, an unknown split or task, names that do not fit.
    """
    where = examples.source or examples.name
    check_task(examples.task)
    x, y = (np.asanyarray(a) for a in (examples.x, examples.y))
    owner, split = (None if a is None else np.asarray(a) for a in (examples.owner, examples.split))
    check_lengths(where, x, y, owner, split, several=examples.num_classes == 0)
    if y.ndim == 2 and y.shape[1] == 1 and x.shape != y.shape:
        y = y[:, 0]  # a column of a table
    owner = None if owner is None else _checked_owners(where, owner)
    _check_features(where, x, owner)
    labels = _checked_labels(where, x, y, owner, examples)
    several = 0 if labels.dtype.kind == "f" or labels.ndim < 2 else labels.shape[1]
    _check_names(where, "class_names", examples.class_names, examples.num_classes or several)
    columns = x.shape[1] if x.ndim == 2 else 0
    _check_names(where, "feature_names", examples.feature_names, columns)
    return with_image_axes(
        examples._replace(
            x=_as_float32(where, x),
            y=labels,
            owner=owner,
            split=None if split is None else _checked_splits(where, split),
        )
    )


def check_task(task: str | None) -> None:
    """Raise an error for an unknown task; None is not said yet."""
    if task is not None and task not in TASK_NAMES:
        raise DatasetError(f"task={task!r} is unknown; choose from {TASK_NAMES}")


def check_lengths(
    where: object,
    x: np.ndarray,
    y: np.ndarray,
    owner: np.ndarray | None = None,
    split: np.ndarray | None = None,
    several: bool = False,
) -> None:
    """Raise an error if arrays are not of one length, or have too few or too many axes.

    Args:
      where: the file or the dataset, for messages.
      x: features, ``[N, ...]``.
      y: labels, ``[N]``, ``[N, 1]`` or as ``x``.
      owner, split: ``[N]``.
      several: whether ``y`` may be ``[N, M]``, several numbers or labels of each example.
    """
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise DatasetError(
            f"{where}: x has shape {x.shape}; it must be [examples, features, ...] with at least "
            "one feature, x[:, None] for a single one"
        )
    if not len(x):
        raise DatasetError(f"{where} has no examples")
    # A second axis of y is one label for each token or position, or a column of a table.
    positions = y.shape == x.shape[:2] and (x.ndim > 2 or x.dtype.kind in "iu")
    if not (y.ndim == 1 or positions or (y.ndim == 2 and (several or y.shape[1] == 1))):
        raise DatasetError(
            f"{where}: y has shape {y.shape} and x {x.shape}; it must have one axis, or for tokens "
            "that of x; one-hot labels become numbers with y.argmax(axis=1), several numbers or "
            "labels of each example need task='regression' or 'multilabel' and num_classes=0"
        )
    for name, array in (("y", y), ("client", owner), ("split", split)):
        if array is None:
            continue
        if name != "y" and array.ndim != 1:
            raise DatasetError(f"{where}: {name} has shape {array.shape}; it must have one axis")
        if len(array) != len(x):
            raise DatasetError(
                f"{where}: x has {len(x)} examples, {name} has {len(array)}; every example needs "
                "one of each"
            )


def _check_names(where: object, what: str, names: tuple[str, ...] | None, count: int) -> None:
    """Raise an error for names that are not ``count`` different texts; None is not known."""
    if names is None:
        return
    texts = [name for name in names if isinstance(name, str)]
    if not len(texts) == len(names) == len(set(texts)) == count:
        some = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
        raise DatasetError(
            f"{where}: {what} has {len(names)} names ({some}); it must have {count} different "
            "strings, or be None"
        )


def _checked_owners(where: object, owner: np.ndarray) -> np.ndarray:
    """Return owners as ints or strings; raise an error if one is missing."""
    refuse_missing(where, owner, "client")
    if owner.dtype.kind in "iu":
        return owner
    if owner.dtype.kind == "U":  # names as they are, even if they are numbers
        refuse_unwritable(owner, f"{where}: client")
        return owner
    owner = numbers_or_names(owner, f"{where}: client")
    return owner if owner.dtype.kind in "iu" else owner.astype(str)


def _checked_splits(where: object, split: np.ndarray) -> np.ndarray:
    """Return splits as strings; raise an error for an unknown one."""
    split = as_text(split, f"{where}: split")
    unknown = ~np.isin(split, SPLITS)
    if unknown.any():
        i = int(np.argmax(unknown))
        raise DatasetError(
            f"{where}: split has the value {str(split[i])!r} at example {i}; use one of {SPLITS}"
        )
    return split


def _check_features(where: object, x: np.ndarray, owner: np.ndarray | None) -> None:
    """Raise an error for features that are no numbers, not finite in float32, or bad tokens."""
    if x.dtype.kind not in "fiub":
        raise DatasetError(
            f"{where}: x is {x.dtype}; it must be of numbers, float32 or uint8 for images, or "
            "int32 for tokens"
        )
    if x.dtype.kind in "iu" and x.dtype.itemsize > 1:
        _check_tokens(where, x, owner)
    if x.dtype.kind != "f":
        return
    count, first = 0, -1
    for start in range(0, len(x), ROWS_AT_ONCE):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: refused
            block = x[start : start + ROWS_AT_ONCE].astype(np.float32, copy=False)
        bad = ~np.isfinite(block.reshape(len(block), -1)).all(1)
        if bad.any() and first < 0:
            first = start + int(np.argmax(bad))
        count += int(bad.sum())
    if count:
        with np.errstate(over="ignore"):
            column = int(np.argmax(~np.isfinite(np.ravel(x[first]).astype(np.float32))))
        value = np.ravel(x[first])[column]
        size = ", which is too large for float32" if np.isfinite(value) else ""
        at = tuple(int(i) for i in np.unravel_index(column, x.shape[1:]))
        raise DatasetError(
            f"{where}: {count} examples have NaN or infinite features, the first is "
            f"{_example(first, owner)}: feature {at[0] if len(at) == 1 else at} is {value}{size}; "
            "remove or impute them"
        )


def _check_tokens(where: object, x: np.ndarray, owner: np.ndarray | None) -> None:
    """Raise an error for integers that cannot be tokens."""
    lowest, highest = x.min(), x.max()
    if lowest < 0 or highest >= 2**31:
        bad = (x < 0) | (x >= 2**31)
        first = int(np.argmax(bad.reshape(len(x), -1).any(1)))
        raise DatasetError(
            f"{where}: x is {x.dtype}, so its numbers are tokens 0, 1, ..., but "
            f"{_example(first, owner)} has {lowest if lowest < 0 else highest}; numbers that are "
            "no tokens must be floats, x.astype(np.float32)"
        )


def _as_float32(where: object, x: np.ndarray) -> np.ndarray:
    """Return floats as float32 of this machine's byte order, everything else unchanged."""
    dtype = np.dtype(np.float32) if x.dtype.kind == "f" else x.dtype.newbyteorder("=")
    if x.dtype == dtype:
        return x
    if isinstance(x, np.memmap):
        raise DatasetError(
            f"{where}: x.npy is {x.dtype}; it is memory-mapped and so cannot be converted: write "
            f"it as {dtype}"
        )
    return x.astype(dtype)


def _checked_labels(
    where: object, x: np.ndarray, y: np.ndarray, owner: np.ndarray | None, examples: Examples
) -> np.ndarray:
    """Return labels as int32, or float32 for numbers; raise an error unless they fit the task."""
    num_classes, task = examples.num_classes, examples.task
    expected = NUM_CLASSES.get(str(task), num_classes)
    if num_classes != expected:
        raise DatasetError(
            f"{where}: num_classes={num_classes} does not go with task={task!r}; it must be "
            f"{expected}"
        )
    if y.dtype.kind not in "iubf":
        raise DatasetError(
            f"{where}: y is {y.dtype}; the labels of Examples are integers 0..{num_classes - 1}: "
            "names, y = np.unique(names, return_inverse=True)"
        )
    if num_classes == 0:  # no classes: numbers to predict, or several labels of each example
        if y.dtype.kind == "f":
            _check_finite_labels(where, y, lambda i: _example(i, owner))
        numbers = y.dtype.kind == "f" or task == "regression"
        return held_by(y, np.float32 if numbers else np.int32, f"{where}: y")
    if y.dtype.kind == "f":
        refuse_other_numbers(where, y, lambda i: _example(i, owner))
    _check_classes(where, x, y, owner, examples)
    if y.shape == x.shape and x.max() >= num_classes:  # one vocabulary for inputs and labels
        raise DatasetError(
            f"{where}: x has token {x.max()}, outside 0..{num_classes - 1}; tokens of x and y are "
            f"of one vocabulary: correct x or num_classes={num_classes}"
        )
    return held_by(y, np.int32, f"{where}: y")


def _check_classes(
    where: object, x: np.ndarray, y: np.ndarray, owner: np.ndarray | None, examples: Examples
) -> None:
    """Raise an error for labels outside ``0..num_classes-1``, but where tokens are `IGNORED`."""
    rows, num_classes = y.reshape(len(y), -1), examples.num_classes
    bad = (rows < 0) | (rows >= num_classes)
    # Sequences whose task is not said are next tokens if their x are tokens (`infer_task`).
    are_tokens = x.dtype.kind in "iu" and x.dtype.itemsize > 1
    next_token = examples.task == "next_token" or (examples.task is None and are_tokens)
    if y.ndim == 2 and next_token:
        bad &= rows != IGNORED
    if not bad.any():
        return
    first = int(np.argmax(bad.any(1)))
    values = rows[first][bad[first]]
    value = values.min() if values.min() < 0 else values.max()
    # -1 often means "no label", and would be taken for the last class.
    hint = ""
    if y.ndim == 2 and value == IGNORED:
        hint = f"; {IGNORED} marks positions without a label for task='next_token' only"
    raise DatasetError(
        f"{where}: label {value:g} at {_example(first, owner)} is outside 0..{num_classes - 1}"
        f" ({bad.any(1).sum()} such examples); correct it, remove examples without a label, or "
        f"correct num_classes={num_classes}{hint}"
    )


def refuse_other_numbers(where: object, y: np.ndarray, place: Callable[[int], str]) -> None:
    """Raise an error if labels in floating point are no classes: missing, or a target to regress.

    Args:
      where: the file or the dataset, for messages.
      y: ``[N]`` floats.
      place: from a position to its words, ``"example 3"``.
    """
    _check_finite_labels(where, y, place)
    fractions = y != np.round(y)
    if fractions.any():
        i = int(np.argmax(fractions.reshape(len(y), -1).any(1)))
        raise DatasetError(
            f"{where}: the label at {place(i)} is {np.ravel(y[i])[0]:g}, and there are "
            f"{len(np.unique(y))} different ones: these are {y.dtype} numbers, not classes. "
            f"{QUANTITY}"
        )


def _check_finite_labels(where: object, y: np.ndarray, place: Callable[[int], str]) -> None:
    """Raise an error for a label that is NaN or infinite; arguments as `refuse_other_numbers`."""
    missing = ~np.isfinite(y)
    if missing.any():
        i = int(np.argmax(missing.reshape(len(y), -1).any(1)))
        raise DatasetError(
            f"{where}: the label at {place(i)} is {np.ravel(y[i])[0]}; fill it in, or remove "
            f"examples without a label ({missing.sum()} of {len(y)})"
        )


def _example(i: int, owner: np.ndarray | None) -> str:
    """Return words for an example: its position, and its client if it has one."""
    return f"example {i}" + ("" if owner is None else f" (client {owner.tolist()[i]!r})")


def with_image_axes(examples: Examples) -> Examples:
    """Return images with their channels as the last axis, with a note if they were turned.

    Bytes ``[N, H, W]`` are grey images. Of four axes, channels are the first one if it is short and
    the last one is not. Three axes of floats can be signals ``[N, time, channels]`` and stay.
    """
    x = examples.x
    if x.ndim == 3 and x.dtype == np.uint8:
        return examples._replace(x=x[..., None])
    if x.ndim != 4 or x.shape[1] > MOST_CHANNELS or x.shape[3] <= MOST_CHANNELS:
        return examples
    if min(x.shape[2:]) < SMALLEST_SIDE:
        return examples
    note = (
        f"x of shape {list(x.shape[1:])} are images with channels first; they were turned to "
        f"{[*x.shape[2:], x.shape[1]]}."
    )
    return examples._replace(x=np.moveaxis(x, 1, -1), notes=(*examples.notes, note))


def scale_note(x: np.ndarray, indices: np.ndarray) -> tuple[str, ...]:
    """Return a note if features ``[N, F]`` that are not normalised differ much in size; else none.

    Args:
      x: ``[N, ...]``; nothing is said about images, signals and tokens.
      indices: of training examples, the first of which are looked at.
    """
    if x.ndim != 2 or (x.dtype.kind in "iu" and x.dtype.itemsize > 1):
        return ()
    rows = np.asarray(x[np.sort(indices[:ROWS_AT_ONCE])], np.float64)
    sizes = np.abs(rows).max(0)  # not the mean: a flag that is rarely 1 is not small
    used = sizes[sizes > 0]
    if not used.size:
        return ()
    least, most = used.min(), used.max()
    if most <= LARGE and most / least <= LARGE:
        return ()
    low, high = (int(np.flatnonzero(sizes == value)[0]) for value in (least, most))
    return (
        f"features are not normalised and differ in size: feature {low} is at most {least:.2g}, "
        f"feature {high} at most {most:.2g}; normalise='train' gives all the same scale.",
    )
