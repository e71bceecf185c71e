"""Bring your own data: npz files with ``x``, ``y`` and ``client``."""

import os
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from pflalign_jax.datasets.base import SPLITS, DatasetError

ADVICE = (
    "data are a directory with train.npz and test.npz, each with arrays x, y and client, or one "
    "npz file with a further array `split` of 'train', 'validation' and 'test', or a directory "
    "with x.npy, y.npy, client.npy and split.npy"
)


class NpzExamples(NamedTuple):
    """Checked contents of npz files.

    Attributes:
      x: ``[N, ...]``; grey images ``[N, H, W]`` of uint8 have got a channel axis.
      y: ``[N]`` int32.
      client: ``[N]`` owners, ints or strings.
      split: ``[N]`` str, one of `SPLITS`.
    """

    x: np.ndarray
    y: np.ndarray
    client: np.ndarray
    split: np.ndarray


def load_npz(path: str | os.PathLike) -> NpzExamples:
    """Read and check examples with owners; nothing in the files is executed.

    Args:
      path: a directory with ``train.npz`` and ``test.npz``, or one file with a ``split`` array,
        or a directory with ``x.npy``, ``y.npy``, ``client.npy`` and ``split.npy``, of which ``x``
        is memory-mapped: it may be larger than memory.

    Raises:
      DatasetError: naming the file, the bad value and what to do, for a missing or damaged file, a
        missing array, lengths or shapes that differ, labels that are not integers or negative,
        NaN or infinite features, an unknown split, a client without training examples.
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
        examples = NpzExamples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    else:
        examples = _read(path, None)
    _check_owners(path, examples)
    return examples


def _read(path, split):
    """Return the checked `NpzExamples` of one file; ``split`` None reads them from the file."""
    if not path.is_file():
        raise DatasetError(f"{path} does not exist; {ADVICE}")
    required = ("x", "y", "client") + (("split",) if split is None else ())
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [name for name in required if name not in file.files]
            if missing:
                raise DatasetError(
                    f"{path} has no array {missing[0]!r}, only {file.files}; {ADVICE}"
                )
            x, y, client, *rest = (file[name] for name in required)
    except DatasetError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(
            f"{path} cannot be read as npz without pickle ({error}); write it with numpy.savez and "
            "arrays of numbers or strings"
        ) from error
    examples = _checked(path, x, y, client, rest[0] if rest else np.full(len(x), split))
    if examples.x.dtype.kind == "f":
        examples = examples._replace(x=examples.x.astype(np.float32))
    return examples


def _read_mapped(path):
    """Return the checked `NpzExamples` of a directory of npy files; ``x`` is memory-mapped."""
    arrays = []
    for name in ("x", "y", "client", "split"):
        file = path / f"{name}.npy"
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
    """Return `NpzExamples` of arrays that fit together, or refuse them."""
    split = split.astype(str)
    for name, array in (("y", y), ("client", client), ("split", split)):
        if array.ndim != 1:
            raise DatasetError(f"{path}: {name} has shape {array.shape}; it must have one axis")
        if len(array) != len(x):
            raise DatasetError(f"{path}: x has {len(x)} examples, {name} has {len(array)}")
    if len(x) == 0:
        raise DatasetError(f"{path} has no examples")
    unknown = sorted(set(split.tolist()) - set(SPLITS))
    if unknown:
        raise DatasetError(f"{path}: split has the value {unknown[0]!r}; use one of {SPLITS}")
    _check_values(path, x, y)
    if x.ndim == 3 and x.dtype == np.uint8:
        x = x[..., None]
    return NpzExamples(x, y, client, split)


def _check_values(path, x, y):
    if x.dtype.kind not in "fiub":
        raise DatasetError(f"{path}: x is {x.dtype}; it must be of numbers")
    if y.dtype.kind not in "iu":
        raise DatasetError(
            f"{path}: y is {y.dtype}; labels must be integers, convert them with y.astype(int)"
        )
    if y.min() < 0:
        bad = int(np.argmin(y))
        raise DatasetError(
            f"{path}: label {y[bad]} at example {bad} is negative; labels are 0, 1, ..."
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
    trained = np.unique(examples.client[examples.split == "train"])
    homeless = np.setdiff1d(examples.client[examples.split != "train"], trained)
    if len(homeless):
        names = ", ".join(map(str, homeless[:5])) + (", ..." if len(homeless) > 5 else "")
        raise DatasetError(
            f"{path}: {len(homeless)} clients have no training example: {names}; give them some "
            "or remove them"
        )
