"""Your own arrays: npz or npy files with ``x``, ``y`` and ``client``."""

import os
import pathlib
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples
from pflalign_jax.datasets.loaders.labels import mapped_labels

ADVICE = (
    "data are one npz file with arrays x, y and client; or a directory with x.npy, y.npy and "
    "client.npy; both may have an array split with values 'train', 'validation' and 'test'; or a "
    "directory with train.npz and test.npz. A folder of PFLlib, with train/0.npz and test/0.npz, "
    "is read by pflalign_jax.datasets.pfllib, dataset.name=pfllib"
)

ROWS_AT_ONCE = 8192
"""Examples whose features are checked together: ``x`` may be larger than memory."""


class _Arrays(NamedTuple):
    """Checked contents of files."""

    x: np.ndarray
    y: np.ndarray
    client: np.ndarray
    split: np.ndarray | None


def load_npz(path: str | os.PathLike, num_classes: int | None = None) -> Examples:
    """Read and check examples with owners; nothing in the files is executed.

    Grey images ``[N, H, W]`` of uint8 get a channel axis. If ``y`` has two axes like ``x``, both
    are sequences of tokens: ``y[:, t]`` is predicted from ``x[:, :t + 1]``, and the number of
    classes is the size of their common vocabulary.

    Args:
      path: one file, with a ``split`` array or without; or a directory with ``train.npz`` and
        ``test.npz``; or a directory with ``x.npy``, ``y.npy``, ``client.npy`` and optionally
        ``split.npy``; there ``x`` is memory-mapped, so it may be larger than memory.
      num_classes: number of labels; None: as many as occur; labels that are not ``0..C-1`` are then
        mapped to these, and a note says how.

    Raises:
      DatasetError: naming the file, the bad value and what to do, for a missing or damaged file, a
        missing array, lengths or shapes that differ, negative labels or labels outside
        ``num_classes``, NaN or infinite features, an unknown split, a client without training
        examples.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise DatasetError(f"{path} does not exist; {ADVICE}")
    # A directory of npy files first: it is the one form in which x is not loaded as a whole.
    if (path / "x.npy").is_file():
        arrays = _read_mapped(path)
    elif path.is_dir():
        arrays = _read_train_and_test(path)
    else:
        arrays = _read(path, None)
    _check_owners(path, arrays)
    return _with_labels(path, arrays, num_classes)


def _read_train_and_test(path: pathlib.Path) -> _Arrays:
    """Return the checked arrays of ``train.npz`` and ``test.npz`` in a directory."""
    train, test = (_read(path / f"{split}.npz", split) for split in ("train", "test"))
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


def _with_labels(path: pathlib.Path, arrays: _Arrays, num_classes: int | None) -> Examples:
    """Return `Examples` with labels in ``0..num_classes-1``."""
    x, y, client, split = arrays
    notes: tuple[str, ...] = ()
    if y.ndim == 2 or num_classes is not None:
        # Inputs and labels of a sequence are the same tokens.
        highest = int(max(y.max(), x.max() if y.ndim == 2 else 0))
        if num_classes is not None and highest >= num_classes:
            where = int(np.argmax(y.reshape(len(y), -1).max(1)))
            raise DatasetError(
                f"{path}: label {highest} at example {where} is outside 0..{num_classes - 1}; "
                f"correct it or num_classes={num_classes}"
            )
        num_classes = highest + 1 if num_classes is None else num_classes
    else:
        y, num_classes, notes = mapped_labels(y, path)
    if y.ndim == 2:
        # Not int64, which is what NumPy gives most users: a quarter of the memory on devices.
        x = x.astype(np.uint16 if highest < 2**16 else np.int32)
    name = pathlib.Path(os.path.abspath(path)).stem  # absolute, since "." has no stem
    return Examples(name, x, y.astype(np.int32), num_classes, client, split, notes=tuple(notes))


def _read(path: pathlib.Path, split: str | None) -> _Arrays:
    """Return the checked arrays of one file.

    Args:
      path: of an npz file.
      split: of all its examples; None: the file's own array ``split``, if it has one.
    """
    if not path.is_file():
        raise DatasetError(f"{path} does not exist; {ADVICE}")
    required = ("x", "y", "client")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [name for name in required if name not in file.files]
            if missing:
                raise DatasetError(
                    f"{path} has no array {missing[0]!r}, only {file.files}; {ADVICE}"
                )
            x, y, client = (file[name] for name in required)
            splits = file["split"] if split is None and "split" in file.files else None
    except DatasetError:  # a ValueError too: it must not be told as a damaged file
        raise
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(
            f"{path} cannot be read as npz without pickle ({error}); write it with numpy.savez and "
            "arrays of numbers or strings"
        ) from error
    if split is not None:
        splits = np.full(len(x), split)
    arrays = _checked(path, x, y, client, splits)
    if arrays.x.dtype.kind == "f":
        arrays = arrays._replace(x=arrays.x.astype(np.float32))
    return arrays


def _read_mapped(path: pathlib.Path) -> _Arrays:
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
            arrays.append(np.load(file, mmap_mode="r" if name == "x" else None))
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError(
                f"{file} cannot be read as npy without pickle ({error}); write it with numpy.save"
            ) from error
    x = arrays[0]
    if x.dtype.kind == "f" and x.dtype != np.float32:
        raise DatasetError(
            f"{path}/x.npy is {x.dtype}; it is memory-mapped and so cannot be converted: write it "
            "as float32"
        )
    return _checked(path, *arrays)


def _checked(
    path: pathlib.Path, x: np.ndarray, y: np.ndarray, client: np.ndarray, split: np.ndarray | None
) -> _Arrays:
    """Return the arrays if they fit together; raise an error otherwise."""
    split = None if split is None else split.astype(str)  # from fixed-width bytes, too
    # A second axis of y is allowed only where it is that of x: one label for each token.
    sequences = y.ndim == 2 and y.shape == x.shape and x.dtype.kind in "iu"
    others = [("y", y), ("client", client)] + ([] if split is None else [("split", split)])
    for name, array in others:
        if array.ndim != 1 and not (name == "y" and sequences):
            raise DatasetError(f"{path}: {name} has shape {array.shape}; it must have one axis")
        if len(array) != len(x):
            raise DatasetError(f"{path}: x has {len(x)} examples, {name} has {len(array)}")
    if len(x) == 0:
        raise DatasetError(f"{path} has no examples")
    unknown = [] if split is None else sorted(set(split.tolist()) - set(SPLITS))
    if unknown:
        raise DatasetError(f"{path}: split has the value {unknown[0]!r}; use one of {SPLITS}")
    _check_values(path, x, y)
    if x.ndim == 3 and x.dtype == np.uint8:
        x = x[..., None]
    return _Arrays(x, y, client, split)


def _check_values(path: pathlib.Path, x: np.ndarray, y: np.ndarray) -> None:
    """Raise an error for wrong types, negative labels and features that are not finite."""
    if x.dtype.kind not in "fiub":
        raise DatasetError(f"{path}: x is {x.dtype}; it must be of numbers")
    if y.dtype.kind not in "iuU":
        raise DatasetError(
            f"{path}: y is {y.dtype}; labels must be integers or strings, convert them with "
            "y.astype(int)"
        )
    if y.dtype.kind == "i" and y.min() < 0:
        example = int(np.argmin(y.reshape(len(y), -1).min(1)))
        raise DatasetError(
            f"{path}: label {y.min()} at example {example} is negative; labels are 0, 1, ..."
        )
    if x.dtype.kind != "f":
        return
    blocks = (x[start : start + ROWS_AT_ONCE] for start in range(0, len(x), ROWS_AT_ONCE))
    bad = np.concatenate([~np.isfinite(block.reshape(len(block), -1)).all(1) for block in blocks])
    if bad.any():
        raise DatasetError(
            f"{path}: {bad.sum()} examples have NaN or infinite features, the first is example "
            f"{int(np.argmax(bad))}; remove or impute them"
        )


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
