"""PFLlib's datasets: ``train/0.npz``, ``test/0.npz``, ... with one client each, split as there."""

import json
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.labels import Targets, mapped_labels
from pflalign_jax.datasets.loaders.plain_pickle import load_plain
from pflalign_jax.datasets.values import held_by

ADVICE = (
    "PFLlib's data are a folder that its generate_*.py wrote, dataset/NAME, with config.json, "
    "train/0.npz, train/1.npz, ... and test/0.npz, test/1.npz, ..."
)

CHANNELS = (1, 3)
"""Numbers of channels of images; PFLlib's have them in front, as PyTorch does."""


def load_pfllib(path: str) -> Examples:
    """Read a dataset of PFLlib with its clients and its split; nothing in its pickles is run.

    Client ``k`` has the examples of ``train/k.npz`` and ``test/k.npz``. Images ``[C, H, W]`` become
    ``[H, W, C]``, sensor signals ``[C, 1, T]`` become ``[T, C]``; values stay as they are. Texts
    are lists of tokens with their lengths, which are dropped: padding is token 0.

    Args:
      path: PFLlib's folder ``dataset/NAME``, with ``train``, ``test`` and ``config.json``, without
        which the numbers of clients and classes are those that the files have.

    Raises:
      DatasetError: naming the file, the value and what to do, for missing or damaged files, for
        those of another run, and for pickles that hold more than numbers and strings.
    """
    folder = pathlib.Path(path)
    files = _client_files(folder)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    owners, splits = [], []
    for split, paths in files.items():
        for client, file in paths.items():
            x, y = _read(file)
            if parts and x.shape[1:] != parts[0][0].shape[1:]:
                raise DatasetError(
                    f"{file} has examples of shape {x.shape[1:]}, others {parts[0][0].shape[1:]}; "
                    "they must be equal"
                )
            parts.append((x, y))
            owners.append(np.full(len(y), client))
            splits.append(np.full(len(y), split))
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    found = _labels(folder, y, len(files["train"]))
    name = folder.resolve().name
    return Examples(
        name,
        _channels_last(x),
        found.y,
        found.num_classes,
        np.concatenate(owners),
        np.concatenate(splits),
        notes=found.notes,
        split_is_final=True,
        class_names=found.class_names,
    )


def _client_files(folder: pathlib.Path) -> dict[str, dict[int, pathlib.Path]]:
    """Return the files of ``train`` and ``test`` by client; the same clients in both."""
    files: dict[str, dict[int, pathlib.Path]] = {}
    for split in ("train", "test"):
        found = [file for file in (folder / split).glob("*.npz") if file.stem.isdecimal()]
        if not found:
            raise DatasetError(f"{folder / split} has no file 0.npz, 1.npz, ...; {ADVICE}")
        files[split] = {int(f.stem): f for f in sorted(found, key=lambda f: int(f.stem))}
    odd = sorted(set(files["train"]) ^ set(files["test"]))
    if odd:
        has, lacks = ("train", "test") if odd[0] in files["train"] else ("test", "train")
        raise DatasetError(
            f"{folder}: client {odd[0]} is in {has} and not in {lacks} ({len(odd)} such clients); "
            "files are missing, or are left of an earlier run: generate the data anew"
        )
    return files


def _read(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Return ``x`` ``[n, ...]`` and ``y`` ``[n]`` of one client's file."""
    data = _pickled_dict(file)
    try:
        x, y = _features(data["x"]), np.asarray(data["y"])
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(
            f"{file}: x is not an array of numbers ({error}); all examples must have one shape"
        ) from error
    if len(x) != len(y) or y.ndim != 1:
        raise DatasetError(
            f"{file}: x has shape {x.shape} and y {y.shape}; there must be one label per example"
        )
    if y.dtype.kind not in "iu":
        raise DatasetError(f"{file}: y is {y.dtype}; labels must be integers")
    if x.dtype.kind == "f":
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
        if bad.any():
            raise DatasetError(
                f"{file}: example {int(np.argmax(bad))} has {_first_bad(x[np.argmax(bad)])} among "
                "its features; remove or impute it"
            )
    return x, y


def _pickled_dict(file: pathlib.Path) -> Mapping[str, Any]:
    """Return the dict under key ``data`` of a file of ``numpy.savez(file, data={"x", "y"})``."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open("data.npy") as array:
            version = np.lib.format.read_magic(array)
            if version == (1, 0):
                _, _, dtype = np.lib.format.read_array_header_1_0(array)
            if version != (1, 0) or dtype != np.dtype(object):
                raise DatasetError(f"{file}: data is no pickled dict; {ADVICE}")
            value = load_plain(array.read(), file)
    except DatasetError:  # a ValueError too: it must not be told as a damaged file
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(
            f"{file} cannot be read as PFLlib's npz ({error}); it is truncated or damaged. {ADVICE}"
        ) from error
    value = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    if not isinstance(value, dict) or not {"x", "y"} <= value.keys():
        held = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise DatasetError(f"{file}: data holds {held}; it must be a dict with x and y")
    return value


def _features(x: Any) -> np.ndarray:
    """Return float32 features as stored, or int32 tokens."""
    # Texts are pairs of a list of tokens and its length.
    if isinstance(x, np.ndarray) and x.dtype == object and x.ndim == 2 and x.shape[1] == 2:
        x = x[:, 0].tolist()
    x = np.array(x.tolist()) if isinstance(x, np.ndarray) and x.dtype == object else np.asarray(x)
    if x.dtype.kind not in "biuf":
        raise ValueError(f"it is {x.dtype}")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind in "iu":
        return held_by(x, np.int32, "x")
    with np.errstate(over="ignore"):  # numbers above float32 become infinite: refused later
        return x.astype(np.float32)


def _first_bad(example: np.ndarray) -> Any:
    return example[~np.isfinite(example)].flat[0].item()


def _channels_last(x: np.ndarray) -> np.ndarray:
    """Return PyTorch's images as ``[N, H, W, C]`` and signals ``[N, C, 1, T]`` as ``[N, T, C]``."""
    if x.ndim != 4 or (x.shape[-1] in CHANNELS and x.shape[1] not in CHANNELS):
        return x
    x = np.moveaxis(x, 1, -1)
    # Of a row of height 1, PFLlib's convolutions over time make use of the width alone.
    return np.ascontiguousarray(x[:, 0] if x.shape[1] == 1 else x)


def _labels(folder: pathlib.Path, y: np.ndarray, num_clients: int) -> Targets:
    """Return the labels; their number is as ``config.json`` says, if it is there."""
    file = folder / "config.json"
    if not file.is_file():
        return mapped_labels(y, folder)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        clients = int(config["num_clients"])
        # Early versions of PFLlib did not write it.
        classes = int(config["num_classes"]) if "num_classes" in config else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{file} does not say num_clients ({error!r}); it is not PFLlib's. {ADVICE}"
        ) from error
    if clients != num_clients:
        raise DatasetError(
            f"{file} says {clients} clients, train has files of {num_clients}; files are missing, "
            "or are left of an earlier run: generate the data anew"
        )
    if classes is None:
        return mapped_labels(y, folder)
    if y.min() < 0 or y.max() >= classes:
        bad = y.min() if y.min() < 0 else y.max()
        raise DatasetError(f"{folder}: label {bad} is outside 0..{classes - 1}, as {file} says")
    return Targets(y.astype(np.int32), classes)
