"""FL-bench's partitions: ``partition.pkl`` says which examples of its data a client has."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pflalign_jax.datasets.array_files import ArrayFileError, read_npy
from pflalign_jax.datasets.base import DatasetError, Examples
from pflalign_jax.datasets.loaders.cifar import load_cifar10, load_cifar100
from pflalign_jax.datasets.loaders.labels import Targets, mapped_labels
from pflalign_jax.datasets.loaders.mnist import load_fashion_mnist, load_mnist
from pflalign_jax.datasets.loaders.plain_pickle import load_plain_file

ADVICE = (
    "FL-bench's data are a folder data/NAME where its generate_data.py wrote partition.pkl, with "
    "data.npy and targets.npy (or raw/xdata.npy and raw/ydata.npy); for images of torchvision say "
    "which, data='cifar10'"
)

TORCHVISION: Mapping[str, Callable[[str | None], Examples]] = {
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}
"""Datasets whose training and then test examples FL-bench numbers as torchvision orders them."""

ARRAYS = (("data.npy", "targets.npy"), ("raw/xdata.npy", "raw/ydata.npy"))
"""Where FL-bench keeps the features and labels of its other data."""

SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
"""FL-bench's words for splits, and those used here."""


def load_fl_bench(
    path: str,
    data: str | None = None,
    data_path: str | None = None,
    shape: tuple[int, ...] | None = None,
) -> Examples:
    """Read a dataset with the clients and splits of FL-bench; nothing in its pickle is run.

    If ``all_stats.json`` is beside the partition, it is checked that every client has the labels
    which are counted there: the data are then those that the partition was made for.

    Args:
      path: FL-bench's folder ``data/NAME`` with ``partition.pkl``.
      data: mnist, fashion_mnist, cifar10 or cifar100, whose training and test examples together
        were partitioned; None: arrays in the folder.
      data_path: directory of the files of ``data``; None: ``~/.cache/pflalign_jax/data/NAME``,
        downloaded if they are not there.
      shape: of one example of arrays in the folder, e.g. ``(28, 28, 1)``; None: as in the file.

    Raises:
      DatasetError: naming the file, the client and what to do, for missing or damaged files and
        for a partition that does not fit the data.
    """
    folder = pathlib.Path(path)
    clients = _partition(folder)
    if data is None:
        examples = _arrays(folder, shape)
    elif data in TORCHVISION:
        examples = TORCHVISION[data](data_path)
    else:
        raise DatasetError(f"data={data!r} is unknown; choose from {tuple(TORCHVISION)}, or None")
    parts = [client[name] for client in clients for name in SPLIT_NAMES]
    indices = np.concatenate(parts)
    _check_indices(folder, indices, len(examples.y))
    _check_counts(folder, clients, examples.y)
    sizes = [len(part) for part in parts]
    owner = np.repeat(np.repeat(np.arange(len(clients)), len(SPLIT_NAMES)), sizes)
    split = np.repeat(list(SPLIT_NAMES.values()) * len(clients), sizes)
    found = Targets(examples.y[indices], examples.num_classes, examples.notes, examples.class_names)
    if data is None:
        found = mapped_labels(found.y, folder)
    return examples._replace(
        name=folder.resolve().name,
        x=examples.x[indices],
        **found._asdict(),
        owner=owner,
        split=split,
        split_is_final=True,
    )


def _partition(folder: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """Return each client's indices by FL-bench's name of the split."""
    file = folder / "partition.pkl"
    if not file.is_file():
        raise DatasetError(f"{file} does not exist; {ADVICE}")
    partition = load_plain_file(file)
    clients = partition.get("data_indices") if isinstance(partition, dict) else None
    if not isinstance(clients, Sequence) or not clients:
        raise DatasetError(f"{file} has no list data_indices; it is not FL-bench's. {ADVICE}")
    return [_indices(file, k, client) for k, client in enumerate(clients)]


def _indices(file: pathlib.Path, k: int, client: Any) -> dict[str, np.ndarray]:
    if not isinstance(client, dict) or not {"train", "test"} <= client.keys():
        raise DatasetError(
            f"{file}: client {k} has no indices of train and test; make the partition anew with a "
            "version of FL-bench that writes them"
        )
    found = {}
    for name in SPLIT_NAMES:
        indices = np.asarray(client.get(name, []))
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise DatasetError(
                f"{file}: client {k} has indices of {name} of type {indices.dtype} and shape "
                f"{indices.shape}; they must be a list of whole numbers"
            )
        found[name] = indices.astype(np.int64)
    return found


def _arrays(folder: pathlib.Path, shape: tuple[int, ...] | None) -> Examples:
    """Return the arrays in FL-bench's folder, with labels as they are."""
    names = next((pair for pair in ARRAYS if (folder / pair[0]).is_file()), None)
    if names is None:
        raise DatasetError(f"{folder} has neither {ARRAYS[0][0]} nor {ARRAYS[1][0]}; {ADVICE}")
    x, y = (_array(folder / name) for name in names)
    y = y.reshape(-1) if y.shape == (len(y), 1) else y  # as MedMNIST writes them
    if len(x) != len(y) or y.ndim != 1:
        raise DatasetError(
            f"{folder}: {names[0]} has shape {x.shape} and {names[1]} {y.shape}; there must be one "
            "label per example"
        )
    if x.dtype.kind not in "biuf":
        raise DatasetError(f"{folder / names[0]} is {x.dtype}; it must be of numbers")
    if shape is not None:
        if x[0].size != np.prod(shape):
            raise DatasetError(
                f"{folder / names[0]} has examples of {x[0].size} numbers; shape {tuple(shape)} "
                f"needs {np.prod(shape)}"
            )
        x = x.reshape(len(x), *shape)
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):  # numbers above float32 become infinite: refused below
            x = x.astype(np.float32)
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
        if bad.any():
            raise DatasetError(
                f"{folder / names[0]}: example {int(np.argmax(bad))} has NaN or infinite features; "
                "remove or impute them"
            )
    return Examples(folder.name, x, y, 0)


def _array(file: pathlib.Path) -> np.ndarray:
    try:
        return read_npy(file)
    except ArrayFileError as error:
        raise DatasetError(
            f"{file} cannot be read as npy without pickle ({error}); it is missing, truncated or "
            "damaged"
        ) from error


def _check_indices(folder: pathlib.Path, indices: np.ndarray, count: int) -> None:
    """Raise an error for examples that do not exist, or that two clients or splits have."""
    outside = indices[(indices < 0) | (indices >= count)]
    if len(outside):
        raise DatasetError(
            f"{folder}/partition.pkl has example {outside[0]}, the data have {count}; they are not "
            "those that the partition was made for"
        )
    seen, times = np.unique(indices, return_counts=True)
    if (times > 1).any():
        raise DatasetError(
            f"{folder}/partition.pkl gives example {seen[np.argmax(times > 1)]} to two clients or "
            f"splits ({int((times > 1).sum())} such examples); make the partition anew"
        )


def _check_counts(
    folder: pathlib.Path, clients: Sequence[Mapping[str, np.ndarray]], y: np.ndarray
) -> None:
    """Raise an error if a client's labels are not those that ``all_stats.json`` counts."""
    file = folder / "all_stats.json"
    if not file.is_file():
        return
    try:
        stats = json.loads(file.read_text(encoding="utf-8"))
        # Partitions by domain, and of users, are counted in other ways.
        counted = {k: stats[k]["y"] for k in stats if k.isdecimal() and stats[k].get("y")}
        expected = {int(k): {int(c): n for c, n in v.items() if n} for k, v in counted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{file} is not FL-bench's ({error!r}); remove it, or make the partition anew"
        ) from error
    for k, client in enumerate(clients):
        labels, counts = np.unique(y[np.concatenate(list(client.values()))], return_counts=True)
        actual = dict(zip(labels.tolist(), counts.tolist(), strict=True))
        if k in expected and actual != expected[k]:
            raise DatasetError(
                f"{folder}: client {k} has labels {actual} here and {expected[k]} in {file.name}; "
                "the data, or their order, are not those that the partition was made for"
            )
