"""From the labels of a file to ``y``: classes ``0..C-1``, numbers, or several labels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pflalign_jax.datasets.base import DatasetError
from pflalign_jax.datasets.checks import QUANTITY, check_task, refuse_other_numbers
from pflalign_jax.datasets.values import finite_numbers, held_by, numbers_or_names, refuse_missing

MANY_CLASSES = 20
"""Numbers with more different values than this may be no classes."""

WITHOUT_CLASSES = ("regression", "multilabel")
"""Tasks whose ``y`` may be ``[N, M]``, several values of each example, and has no classes."""

TRUE, FALSE = ("True", "TRUE", "true"), ("False", "FALSE", "false")
"""How pandas, R and databases write the labels 1 and 0."""


class Targets(NamedTuple):
    """What a file's labels became.

    Attributes:
      y, num_classes, notes, class_names: as in `Examples`.
    """

    y: np.ndarray
    num_classes: int
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None


def targets(
    values: np.ndarray,
    where: object,
    task: str | None = None,
    num_classes: int | None = None,
    place: Callable[[int], str] = "example {}".format,
    names: Sequence[str] = (),
) -> Targets:
    """Return ``y`` for a task, and what its labels are called.

    Args:
      values: ``[N]`` or ``[N, M]`` as a file has them: numbers, strings or bytes.
      where: the file, for messages.
      task: None and ``"classification"``: `mapped_labels`. ``"binary"``: the same, but of exactly
        two labels. ``"regression"``: ``[N]`` or ``[N, M]`` finite numbers, as float32.
        ``"multilabel"``: ``[N, L]`` labels that are each 0 or 1, as int32.
      num_classes: for classification, see `mapped_labels`.
      place: from a position to its words, for messages.
      names: of the M columns that have the values; empty: they have none.

    Raises:
      DatasetError: naming the place, the value and what to do, for values that do not fit the task.

    >>> targets(np.array(["0.5", " 2"]), "doses.csv", "regression")[0].tolist()
    [0.5, 2.0]
    """
    check_task(task)
    one = f"{where}: column {names[0]!r}" if names else where
    several = values.ndim == 2 and values.shape[1] > 1
    if task == "next_token":
        raise DatasetError(
            f"{where}: task='next_token' needs x and y that are both tokens [N, L] (npz); choose "
            "another task"
        )
    if task in WITHOUT_CLASSES and num_classes is not None:
        raise DatasetError(
            f"num_classes={num_classes} does nothing with task={task!r}; leave it out"
        )
    if task == "regression":
        y = _columns(values, where, place, names)
        return Targets(y if several else y[:, 0], 0)
    if task == "multilabel":
        y = _zeros_and_ones(values, where, place, names)
        return Targets(y, 0, class_names=tuple(names) or None)
    if several:
        raise DatasetError(
            f"{where}: there are {values.shape[1]} labels of each example; they need "
            f"task='regression' or 'multilabel', not {task!r}, or choose one of them"
        )
    if task == "binary":
        return _two_labels(values, one, num_classes, place)
    return mapped_labels(values, one, num_classes, place)


def _columns(
    values: np.ndarray, where: object, place: Callable[[int], str], names: Sequence[str]
) -> np.ndarray:
    """Return ``[N]`` or ``[N, M]`` values as finite numbers ``[N, M]``, float32."""
    if values.ndim > 2 or not values.size:
        raise DatasetError(f"{where}: y has shape {values.shape}; it must be [N] or [N, M]")
    columns = values.reshape(len(values), -1)
    found = []
    for j in range(columns.shape[1]):
        column = columns[:, j]
        name = _column_words(names, j, values.ndim)
        refuse_missing(f"{where}: {name}", column, "label", place)
        found.append(finite_numbers(column, f"{where}: {name}", place))
    return np.stack(found, axis=1)


def _column_words(names: Sequence[str], j: int, num_axes: int) -> str:
    """Return words for column ``j``, for messages."""
    if names:
        return f"column {names[j]!r}"
    return "y" if num_axes == 1 else f"y[:, {j}]"


def _zeros_and_ones(
    values: np.ndarray, where: object, place: Callable[[int], str], names: Sequence[str]
) -> np.ndarray:
    """Return ``[N, L]`` labels that are each 0 or 1, int32."""
    if values.ndim != 2:
        raise DatasetError(
            f"{where}: task='multilabel' needs several labels of each example, y [N, L] or columns "
            f"label=('a', 'b'); y has shape {values.shape}. For one label, say task='binary'"
        )
    if values.dtype.kind in "USO":
        values = np.char.strip(values.astype(str))
        for number, texts in (("1", TRUE), ("0", FALSE)):
            values = np.where(np.isin(values, texts), number, values)
    y = _columns(values, where, place, names)
    bad = (y != 0) & (y != 1)
    if bad.any():
        i, j = (int(k) for k in np.argwhere(bad)[0])
        name = _column_words(names, j, values.ndim)
        raise DatasetError(
            f"{where}: {name} has {y[i, j]:g} in {place(i)} ({bad.any(1).sum()} of {len(y)} rows); "
            "labels of task='multilabel' are 0 or 1. For numbers, say task='regression'"
        )
    return y.astype(np.int32)


def _two_labels(
    values: np.ndarray, where: object, num_classes: int | None, place: Callable[[int], str]
) -> Targets:
    """Return `mapped_labels` of exactly two labels."""
    if num_classes not in (None, 2):
        raise DatasetError(
            f"num_classes={num_classes} does not go with task='binary', which has two labels; "
            "leave it out"
        )
    found = mapped_labels(values, where, None, place)
    if found.num_classes != 2:
        labels = np.unique(numbers_or_names(values, where))
        shown = ", ".join(repr(label) for label in labels[:5].tolist())
        raise DatasetError(
            f"{where}: task='binary' needs exactly two labels, and there are {len(labels)}: "
            f"{shown}{', ...' if len(labels) > 5 else ''}; correct them, or say "
            "task='classification'"
        )
    return found


def label_columns(label: str | tuple[str, ...], task: str | None) -> tuple[str, ...]:
    """Return the names of the columns of labels; raise an error if several do not fit the task."""
    if isinstance(label, str):
        return (label,)
    if task not in WITHOUT_CLASSES or not label:
        raise DatasetError(
            f"label={label} goes with task='regression' or 'multilabel', not with {task!r}; name "
            "one column"
        )
    return tuple(label)


def mapped_labels(
    labels: np.ndarray,
    where: object,
    num_classes: int | None = None,
    place: Callable[[int], str] = "example {}".format,
) -> Targets:
    """Return ``[N]`` int32 labels in ``0..C-1``, C, notes, and the names of mapped labels.

    Integers that are exactly ``0..C-1`` stay as they are; so do all integers if ``num_classes`` is
    given. Others, and strings, are numbered in sorted order, and the note says how. Labels that
    are the same number are the same class: ``"0"``, ``"0.0"`` and 0.

    Args:
      labels: ``[N]`` or ``[N, 1]`` integers, strings, bytes, or floats that are whole.
      where: the file, for messages.
      num_classes: number of labels; None: as many as occur.
      place: from a position to its words, for messages.

    Raises:
      DatasetError: for missing labels, negative ones, which often mean "missing" (-1 with 1 alone
        are two classes), numbers with fractions, whole numbers with so many values that they are
        no classes, labels of other types, more different names than ``num_classes``.

    >>> found = mapped_labels(np.array(["dog", "cat"]), "pets.csv")
    >>> found.class_names, found.notes
    (('cat', 'dog'), ("labels mapped: 'cat' -> 0, 'dog' -> 1.",))
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iubfUSO" or labels.ndim != 1:
        raise DatasetError(
            f"{where}: labels are {labels.dtype} of shape {labels.shape}; they must be integers or "
            "strings, one for each example"
        )
    if not labels.size:
        raise DatasetError(f"{where} has no labels; it is empty")
    refuse_missing(where, labels, "label", place)
    labels = numbers_or_names(labels, where)
    if labels.dtype.kind == "f":
        refuse_other_numbers(where, labels, place)
    names, y = np.unique(labels, return_inverse=True)
    if labels.dtype.kind in "iu":
        two = names.tolist() == [-1, 1]  # as in files of libsvm
        if names[0] < 0 and not two:
            i = int(np.argmin(labels))
            raise DatasetError(
                f"{where}: label {names[0]} at {place(i)} is negative; labels are 0, 1, ..., "
                "remove examples without a label"
            )
        # Sorted, different and not negative: if the last is C-1, they are exactly 0..C-1.
        if not two and (num_classes is not None or names[-1] == len(names) - 1):
            count = len(names) if num_classes is None else num_classes
            return Targets(held_by(labels, np.int32, f"{where}: y"), count)
        _refuse_quantity(where, names, len(labels))
    if num_classes is not None and len(names) > num_classes:
        raise DatasetError(
            f"{where} has {len(names)} different labels, more than num_classes={num_classes}; "
            f"correct one of them (the labels are {names[:10].tolist()}...)"
        )
    shown = ", ".join(f"{name!r} -> {i}" for i, name in enumerate(names[:10].tolist()))
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    note = f"labels mapped: {shown}{more}."
    count = num_classes or len(names)
    class_names = [str(name) for name in names.tolist()]
    # Classes that do not occur have no name in the file, but have to be called something.
    class_names += [f"class {i}" for i in range(len(names), count)]
    return Targets(y.astype(np.int32), count, (note,), tuple(class_names))


def _refuse_quantity(where: object, names: np.ndarray, count: int) -> None:
    """Raise an error for whole numbers that are a quantity: many values, few examples of each."""
    if len(names) > MANY_CLASSES and len(names) > count / 4:
        raise DatasetError(
            f"{where}: labels are {len(names)} different numbers from {names[0]} to {names[-1]} in "
            f"{count} examples: a quantity, not classes. {QUANTITY}"
        )
