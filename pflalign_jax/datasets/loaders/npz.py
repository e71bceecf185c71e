"""Your own arrays: npz or npy files with ``x``, ``y`` and ``client``."""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.datasets.array_files import ArrayFileError, open_npz, read_npy
from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.checks import check_lengths, with_image_axes
from pflalign_jax.datasets.loaders.labels import WITHOUT_CLASSES, Targets, targets
from pflalign_jax.datasets.loaders.table_files import ending as table_ending
from pflalign_jax.datasets.values import MISSING_OPTIONS, is_missing

ADVICE = (
    "data are one npz file with arrays x, y and client; or a directory with x.npy, y.npy and "
    "client.npy; both may have an array split with values 'train', 'validation' and 'test'; or a "
    "directory with train.npz and test.npz. A folder of PFLlib, with train/0.npz and test/0.npz, "
    "is read by pflalign_jax.datasets.pfllib, dataset.name=pfllib; tables (csv, parquet) by "
    "pflalign_jax.datasets.tables, dataset.name=tables"
)


class _Arrays(NamedTuple):
    """Contents of files, of equal lengths."""

    x: np.ndarray
    y: np.ndarray
    client: np.ndarray
    split: np.ndarray | None


def load_npz(
    path: str | os.PathLike,
    num_classes: int | None = None,
    missing: str = "refuse",
    task: str | None = None,
) -> Examples:
    """Read examples with owners; nothing in the files is executed.

    If ``y`` has two axes like ``x``, both are sequences of tokens: ``y[:, t]`` is predicted from
    ``x[:, :t + 1]``, and the number of classes is the size of their common vocabulary. Values are
    checked where examples are partitioned (`checked_examples`).

    Args:
      path: one file, with a ``split`` array or without; or a directory with ``train.npz`` and
        ``test.npz``; or a directory with ``x.npy``, ``y.npy``, ``client.npy`` and optionally
        ``split.npy``; there ``x`` is memory-mapped, so it may be larger than memory.
      num_classes: number of labels; None: as many as occur; labels that are not ``0..C-1`` are then
        mapped to these, and a note says how.
      missing: what to do with examples whose owner or label is missing (NaN, an empty string,
        ``"NA"``): ``"refuse"`` the file, or ``"leave_out"`` these examples, with a note.
      task: what ``y`` is: ``"classification"`` or ``"next_token"`` (also None); ``"binary"``, two
        labels; ``"regression"``, numbers ``[N]`` or ``[N, M]``; ``"multilabel"``, 0 and 1
        ``[N, L]``. See `targets`.

    Raises:
      DatasetError: naming the file, the bad value and what to do, for a missing or damaged file, a
        missing array, lengths or shapes that differ, labels that are no classes, a client without
        training examples.
    """
    if missing not in MISSING_OPTIONS:
        raise DatasetError(f"missing={missing!r} is unknown; choose from {MISSING_OPTIONS}")
    path = pathlib.Path(path)
    if not path.exists():
        raise DatasetError(f"{path} does not exist; {ADVICE}")
    if table_ending(path) is not None and path.is_file():
        raise DatasetError(f"{path} is a table and no npz file; {ADVICE}")
    # A directory of npy files first: it is the one form in which x is not loaded as a whole.
    several = task in WITHOUT_CLASSES
    if (path / "x.npy").is_file():
        arrays = _read_mapped(path, several)
    elif path.is_dir():
        arrays = _read_train_and_test(path, several)
    else:
        arrays = _read(path, None, several)
    notes: tuple[str, ...] = ()
    if missing == "leave_out":
        arrays, notes = _without_missing(arrays)
    _check_owners(path, arrays)
    examples = _with_labels(path, arrays, num_classes, task)
    return with_image_axes(examples._replace(notes=notes + examples.notes))


def _read_train_and_test(path: pathlib.Path, several: bool) -> _Arrays:
    """Return the checked arrays of ``train.npz`` and ``test.npz`` in a directory."""
    train, test = (_read(path / f"{split}.npz", split, several) for split in ("train", "test"))
    # NumPy would join any two dtypes silently: floats with bytes, or numbers with strings.
    if train.x.shape[1:] != test.x.shape[1:] or train.x.dtype != test.x.dtype:
        raise DatasetError(
            f"{path}: x is {train.x.dtype} of shape {train.x.shape[1:]} in train.npz and "
            f"{test.x.dtype} of shape {test.x.shape[1:]} in test.npz; they must be equal"
        )
    if train.client.dtype.kind != test.client.dtype.kind:
        raise DatasetError(
            f"{path}: client is {train.client.dtype} in train.npz and {test.client.dtype} in "
            "test.npz; use ints or strings in both"
        )
    assert train.split is not None and test.split is not None  # _read was given them
    return _Arrays(
        np.concatenate([train.x, test.x]),
        np.concatenate([train.y, test.y]),
        np.concatenate([train.client, test.client]),
        np.concatenate([train.split, test.split]),
    )


def _with_labels(
    path: pathlib.Path, arrays: _Arrays, num_classes: int | None, task: str | None
) -> Examples:
    """Return `Examples` with the ``y`` of the task."""
    x, y, client, split = arrays
    found = Targets(y, num_classes or 0)
    if y.shape == x.shape and y.ndim == 2 and task in (None, "classification", "next_token"):
        # Inputs and labels of a sequence are the same tokens.
        highest = int(max(y.max(), x.max()))
        found = Targets(y, highest + 1 if num_classes is None else num_classes)
        # Not int64, which is what NumPy gives most users: a quarter of the memory on devices.
        # Others are refused where all examples are checked.
        if x.min() >= 0 and highest < 2**31:
            x = x.astype(np.uint16 if highest < 2**16 else np.int32)
    else:
        found = targets(y, path, task, num_classes)
    name = pathlib.Path(os.path.abspath(path)).stem  # absolute, since "." has no stem
    examples = Examples(name, x, found.y, found.num_classes, client, split, task=task)
    return examples._replace(notes=found.notes, source=str(path), class_names=found.class_names)


def _without_missing(arrays: _Arrays) -> tuple[_Arrays, tuple[str, ...]]:
    """Return the examples with owner and label, and a note if there are others."""
    of_y = is_missing(arrays.y.ravel()).reshape(len(arrays.y), -1).any(1)
    missing = is_missing(arrays.client) | of_y
    if not missing.any():
        return arrays, ()
    x, y, client, split = arrays
    kept = ~missing
    arrays = _Arrays(x[kept], y[kept], client[kept], None if split is None else split[kept])
    return arrays, (f"{missing.sum()} examples without client or label are left out.",)


def _read(path: pathlib.Path, split: str | None, several: bool) -> _Arrays:
    """Return the checked arrays of one file.

    Args:
      path: of an npz file.
      split: of all its examples; None: the file's own array ``split``, if it has one.
      several: whether ``y`` may have several values of each example.
    """
    if not path.is_file():
        raise DatasetError(f"{path} does not exist; {ADVICE}")
    required = ("x", "y", "client")
    try:
        with open_npz(path) as file:
            missing = [name for name in required if name not in file]
            if missing:
                raise DatasetError(
                    f"{path} has no array {missing[0]!r}, only {list(file)}; {ADVICE}"
                )
            x, y, client = (file[name] for name in required)
            splits = file.get("split") if split is None else None
    except ArrayFileError as error:
        raise DatasetError(
            f"{path} cannot be read as npz without pickle ({error}); write it with numpy.savez and "
            "arrays of numbers or strings"
        ) from error
    check_lengths(path, x, y, client, splits, several)
    return _Arrays(x, y, client, splits if split is None else np.full(len(x), split))


def _read_mapped(path: pathlib.Path, several: bool) -> _Arrays:
    """Return the checked arrays of a directory of npy files; ``x`` is memory-mapped."""
    arrays: list[Any] = []
    for name in ("x", "y", "client", "split"):
        file = path / f"{name}.npy"
        if name == "split" and not file.exists():
            arrays.append(None)
            continue
        if not file.is_file():
            raise DatasetError(f"{file} does not exist; {ADVICE}")
        try:
            arrays.append(read_npy(file, mapped=name == "x"))
        except ArrayFileError as error:
            raise DatasetError(
                f"{file} cannot be read as npy without pickle ({error}); write it with numpy.save"
            ) from error
    x, y, client, split = arrays
    check_lengths(path, x, y, client, split, several)
    return _Arrays(x, y, client, split)


def _check_owners(path: pathlib.Path, arrays: _Arrays) -> None:
    """Raise an error for clients that have examples, but none to train on."""
    if arrays.split is None:
        return
    trained = np.unique(arrays.client[arrays.split == "train"])
    untrained = np.setdiff1d(arrays.client[arrays.split != "train"], trained)
    if len(untrained):
        names = ", ".join(map(str, untrained[:5])) + (", ..." if len(untrained) > 5 else "")
        raise DatasetError(
            f"{path}: {len(untrained)} clients have no training example: {names}; give them some "
            "or remove them"
        )
