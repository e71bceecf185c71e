"""From the labels of a file to labels ``0..C-1``."""

from collections.abc import Callable

import numpy as np

from pflalign_jax.datasets.base import DatasetError
from pflalign_jax.datasets.checks import is_missing, numbers_or_names, refuse_other_numbers

MANY_CLASSES = 20
"""Numbers with more different values than this may be no classes."""


def mapped_labels(
    labels: np.ndarray,
    where: object,
    num_classes: int | None = None,
    place: Callable[[int], str] = "example {}".format,
) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Return ``[N]`` int32 labels in ``0..C-1``, C, and notes.

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

    >>> mapped_labels(np.array(["dog", "cat"]), "pets.csv")[2]
    ("labels mapped: 'cat' -> 0, 'dog' -> 1.",)
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
    missing = is_missing(labels)
    if missing.any():
        i = int(np.argmax(missing))
        raise DatasetError(
            f"{where}: no label at {place(i)} but {labels.tolist()[i]!r} ({missing.sum()} of "
            f"{len(labels)}); fill it in, remove it, or use missing='leave_out'"
        )
    labels = numbers_or_names(labels)
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
            return labels.astype(np.int32), count, ()
        _refuse_quantity(where, names, len(labels))
    if num_classes is not None and len(names) > num_classes:
        raise DatasetError(
            f"{where} has {len(names)} different labels, more than num_classes={num_classes}; "
            f"correct one of them (the labels are {names[:10].tolist()}...)"
        )
    shown = ", ".join(f"{name!r} -> {i}" for i, name in enumerate(names[:10].tolist()))
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    note = f"labels mapped: {shown}{more}."
    return y.astype(np.int32), num_classes or len(names), (note,)


def _refuse_quantity(where: object, names: np.ndarray, count: int) -> None:
    """Raise an error for whole numbers that are a quantity: many values, few examples of each."""
    if len(names) > MANY_CLASSES and len(names) > count / 4:
        raise DatasetError(
            f"{where}: labels are {len(names)} different numbers from {names[0]} to {names[-1]} in "
            f"{count} examples: a quantity to predict (regression), not classes. For classes, "
            "divide it into ranges (np.digitize) or give them names"
        )
