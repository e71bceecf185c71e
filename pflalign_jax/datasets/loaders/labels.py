"""From the labels of a file to labels ``0..C-1``."""

import numpy as np

from pflalign_jax.datasets.base import DatasetError


def mapped_labels(labels: np.ndarray, where: object) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Return ``[N]`` int32 labels in ``0..C-1``, C, and notes.

    Integers that are exactly ``0..C-1`` stay as they are; any other integers, and strings, are
    numbered in sorted order, and the note says how.

    Args:
      labels: ``[N]`` integers or strings.
      where: the file, for messages.

    Raises:
      DatasetError: for negative labels, which often mean "missing", and for labels of other types.

    >>> mapped_labels(np.array(["dog", "cat"]), "pets.csv")[2]
    ("labels mapped: 'cat' -> 0, 'dog' -> 1.",)
    """
    if labels.dtype.kind not in "iuU":
        raise DatasetError(f"{where}: labels are {labels.dtype}; they must be integers or strings")
    if not labels.size:
        raise DatasetError(f"{where} has no labels; it is empty")
    names, y = np.unique(labels, return_inverse=True)
    y = y.reshape(labels.shape).astype(np.int32)
    if labels.dtype.kind in "iu":
        if names[0] < 0:
            bad = int(np.argmin(labels))
            raise DatasetError(
                f"{where}: label {names[0]} at example {bad} is negative; labels are 0, 1, ..., "
                "remove examples without a label"
            )
        # Sorted, different and not negative: if the last is C-1, they are exactly 0..C-1.
        if names[-1] == len(names) - 1:
            return y, len(names), ()
    shown = ", ".join(f"{name!r} -> {i}" for i, name in enumerate(names[:10].tolist()))
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return y, len(names), (f"labels mapped: {shown}{more}.",)
