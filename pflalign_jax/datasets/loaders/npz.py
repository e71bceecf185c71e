"""Bring your own data: npz files with ``x``, ``y`` and ``client``."""

import os
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples
from pflalign_jax.datasets.loaders.labels import mapped_labels

ADVICE = (
    "data are one npz file with arrays x, y and client, or a directory with x.npy, y.npy and "
    "client.npy, in both with split of 'train', 'validation' and 'test' where there is a split "
    "already, or a directory with train.npz and test.npz"
)


class _Arrays(NamedTuple):
    """Checked contents of files."""

    x: np.ndarray
    y: np.ndarray
    client: np.ndarray
    split: np.ndarray | None


def load_npz(path: str | os.PathLike, num_classes: int | None = None) -> Examples:
    """Read and check examples with owners; nothing in the files is executed.

    Grey images ``[N, H, W]`` of uint8 get a channel axis. If ``y`` has two axes like ``x``, both
    are sequences of tokens: ``y[:, t]`` is to be predicted from ``x[:, :t + 1]``, and the number of
    classes is the size of their common vocabulary.

    Args:
      path: one file, with a ``split`` array or without; or a directory with ``train.npz`` and
        ``test.npz``; or one with ``x.npy``, ``y.npy``, ``client.npy`` and, if wanted,
        ``split.npy``, of which ``x`` is memory-mapped: it may be larger than memory.
      num_classes: number of labels; None: as many as occur, and labels that are not ``0..C-1`` are
        mapped to it (which is noted).

    Raises:
      DatasetError: naming the file, the bad value and what to do, for a missing or damaged file, a
        missing array, lengths or shapes that differ, negative labels or labels outside
        ``num_classes``, NaN or infinite features, an unknown split, a client without training
        examples.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise DatasetError(f"{path} does not exist; {ADVICE}")
    if (path / "x.npy").is_file():
        examples = _read_mapped(path)
    elif path.is_dir():
        parts = [_read(path / f"{split}.npz", split) for split in ("train", "test")]
        first, second = (part.x for part in parts)
        if first.shape[1:] != second.shape[1:] or first.dtype != second.dtype:
            raise DatasetError(
                f"{path}: x is {first.dtype} of shape {first.shape[1:]} in train.npz and "
                f"{second.dtype} of shape {second.shape[1:]} in test.npz; they must be equal"
            )
        if parts[0].client.dtype.kind != parts[1].client.dtype.kind:
            raise DatasetError(
                f"{path}: client is {parts[0].client.dtype} in train.npz and "
                f"{parts[1].client.dtype} in test.npz; use ints or strings in both"
            )
        examples = _Arrays(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    else:
        examples = _read(path, None)
    _check_owners(path, examples)
    return _with_labels(path, examples, num_classes)


def _with_labels(path, arrays, num_classes):
    """Return `Examples` with labels in ``0..num_classes-1``."""
    x, y, client, split = arrays
    notes = ()
    if y.ndim == 2 or num_classes is not None:
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
        x = x.astype(np.uint16 if highest < 2**16 else np.int32)
    name = pathlib.Path(os.path.abspath(path)).stem
    return Examples(name, x, y.astype(np.int32), num_classes, client, split, notes=tuple(notes))


def _read(path, split):
    """Return the checked arrays of one file; ``split`` None reads it there, if it is there."""
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
            given = file["split"] if split is None and "split" in file.files else None
    except DatasetError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(
            f"{path} cannot be read as npz without pickle ({error}); write it with numpy.savez and "
            "arrays of numbers or strings"
        ) from error
    examples = _checked(path, x, y, client, given if split is None else np.full(len(x), split))
    if examples.x.dtype.kind == "f":
        examples = examples._replace(x=examples.x.astype(np.float32))
    return examples


def _read_mapped(path):
    """Return the checked arrays of a directory of npy files; ``x`` is memory-mapped."""
    arrays = []
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
            f"{path}/x.npy is {x.dtype}; it is not loaded as a whole and so not converted: write "
            "it as float32"
        )
    return _checked(path, *arrays)


def _checked(path, x, y, client, split):
    """Return the arrays if they fit together, or refuse them."""
    split = None if split is None else split.astype(str)
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


def _check_values(path, x, y):
    if x.dtype.kind not in "fiub":
        raise DatasetError(f"{path}: x is {x.dtype}; it must be of numbers")
    if y.dtype.kind not in "iuU":
        raise DatasetError(
            f"{path}: y is {y.dtype}; labels must be integers or strings, convert them with "
            "y.astype(int)"
        )
    if y.dtype.kind == "i" and y.min() < 0:
        bad = int(np.argmin(y.reshape(len(y), -1).min(1)))
        raise DatasetError(
            f"{path}: label {y.min()} at example {bad} is negative; labels are 0, 1, ..."
        )
    if x.dtype.kind != "f":
        return
    blocks = [x[i : i + 8192].reshape(len(x[i : i + 8192]), -1) for i in range(0, len(x), 8192)]
    bad = np.concatenate([~np.isfinite(block).all(axis=1) for block in blocks])
    if bad.any():
        raise DatasetError(
            f"{path}: {bad.sum()} examples have NaN or infinite features, the first is example "
            f"{int(np.argmax(bad))}; remove or impute them"
        )


def _check_owners(path, examples):
    if examples.split is None:
        return
    trained = np.unique(examples.client[examples.split == "train"])
    homeless = np.setdiff1d(examples.client[examples.split != "train"], trained)
    if len(homeless):
        names = ", ".join(map(str, homeless[:5])) + (", ..." if len(homeless) > 5 else "")
        raise DatasetError(
            f"{path}: {len(homeless)} clients have no training example: {names}; give them some "
            "or remove them"
        )
