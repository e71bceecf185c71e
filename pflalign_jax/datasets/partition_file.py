"""Partition files: who owns what in which split, with a hash of the data they belong to."""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pflalign_jax.datasets.array_files import open_npz
from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples, FederatedDataset, Owned
from pflalign_jax.datasets.build import Group

GROUP_PREFIXES = ("", "new_")
"""What the names of arrays begin with, for clients that train and for new clients."""


def partition_hash(dataset: FederatedDataset) -> str:
    """Return a sha256 over clients' names, all splits, labels and shifts, as hexadecimal digits.

    Features are not part of it: they may be larger than memory, and data with the same labels in
    the same order are most likely the same data.
    """
    digest = hashlib.sha256()
    for group in _groups(dataset):
        digest.update("\n".join(group.client_names.tolist()).encode())
        # Always little-endian, whatever the machine's order: the hash is the same everywhere.
        digest.update(np.ascontiguousarray(group.y, f"<{group.y.dtype.kind}8").tobytes())
        for array in (a for owned in _owned(group).values() for a in owned):
            digest.update(np.ascontiguousarray(array, "<i8").tobytes())
        if group.shift is not None:
            digest.update(f"{group.shift.kind} {group.shift.seed}".encode())
            digest.update(np.ascontiguousarray(group.shift.amounts, "<f4").tobytes())
    return digest.hexdigest()


def save_partition(path: str | os.PathLike, dataset: FederatedDataset) -> None:
    """Write who owns what to an npz file, whole or not at all.

    Arrays: ``client_names``, and for every split ``<split>_indices`` and ``<split>_offsets``, where
    ``bound`` is one more if examples are kept for bounds; the same for new clients, with names that
    begin with ``new_``; ``dataset``, ``num_examples`` and ``hash`` say which data the partition
    belongs to.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".partial")
    arrays: dict[str, Any] = {
        "dataset": np.array(dataset.name),
        "num_examples": np.array(len(dataset.y)),
        "hash": np.array(partition_hash(dataset)),
    }
    # Not strict: without new clients there is one group.
    for prefix, group in zip(GROUP_PREFIXES, _groups(dataset), strict=False):
        arrays[f"{prefix}client_names"] = group.client_names
        for split, owned in _owned(group).items():
            for field in Owned._fields:
                arrays[f"{prefix}{split}_{field}"] = getattr(owned, field)
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)  # readers find either the old file or the whole new one


def read_partition(path: str | os.PathLike, examples: Examples) -> list[Group]:
    """Read the clients that train and the new ones from a file of `save_partition`.

    Raises:
      DatasetError: naming the file, if it cannot be read, is not a partition, or was made for
        another number of examples.
    """
    path = pathlib.Path(path)
    try:
        with open_npz(path) as file:
            arrays = dict(file)
        # Before indices are used; whether labels agree is checked when the dataset is built.
        if int(arrays["num_examples"]) != len(examples.y):
            raise DatasetError(
                f"partition file {path} was made for {arrays['num_examples']} examples of "
                f"{arrays['dataset']}; {examples.name} has {len(examples.y)} here. Use the data "
                "that it was made for, or leave partition_file out"
            )
        groups = [_group(arrays, prefix) for prefix in GROUP_PREFIXES]
        for group in groups:
            _check_owned(group)
    except DatasetError:  # a ValueError too: it must not be told as a damaged file
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"partition file {path} cannot be read ({type(error).__name__}: {error}); it must be a "
            "partition.npz that a run or experiments.partition wrote"
        ) from error
    indices = np.concatenate([owned.indices for g in groups for owned in g.owned()])
    if len(np.unique(indices)) != len(indices) or not _inside(indices, len(examples.y)):
        raise DatasetError(
            f"partition file {path} is damaged: an example belongs to two clients or does not exist"
        )
    return groups


def _group(arrays: Mapping[str, np.ndarray], prefix: str) -> Group:
    """Return the clients whose arrays begin with ``prefix``; an empty group if there are none."""
    if f"{prefix}client_names" not in arrays:
        return Group(np.zeros(0, "U1"), dict.fromkeys(SPLITS, Owned.from_parts([])))

    def owned(split: str) -> Owned:
        return Owned(*(arrays[f"{prefix}{split}_{field}"] for field in Owned._fields))

    bound = owned("bound") if f"{prefix}bound_indices" in arrays else None
    return Group(arrays[f"{prefix}client_names"], {s: owned(s) for s in SPLITS}, bound)


def _check_owned(group: Group) -> None:
    """Refuse arrays that cannot say who owns what."""
    names = group.names
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"client_names is {names.dtype} of shape {names.shape}, not [K] strings")
    for split, (indices, offsets) in group.splits.items():
        for array in (indices, offsets):
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ValueError(f"{split} has {array.dtype} of shape {array.shape}, no positions")
        whole = len(offsets) == len(names) + 1 and offsets[0] == 0 and offsets[-1] == len(indices)
        if not whole or (np.diff(offsets.astype(np.int64)) < 0).any():
            raise ValueError(f"offsets of {split} do not divide its {len(indices)} examples")


def refuse_other_data(path: str | os.PathLike, dataset: FederatedDataset) -> None:
    """Raise an error if a dataset's hash is not the one in its partition file.

    Raises:
      DatasetError: naming the file and both hashes.
    """
    with open_npz(path) as file:
        expected = str(file["hash"])
    actual = partition_hash(dataset)
    if actual != expected:
        raise DatasetError(
            f"partition file {path} does not fit {dataset.name}: its hash is {expected[:12]}..., "
            f"that of these data is {actual[:12]}.... Labels, their order, or the shifts differ "
            "from those that it was made for"
        )


def _owned(dataset: FederatedDataset) -> dict[str, Owned]:
    """Return all that clients own, by split; ``bound`` last, and only if there is some."""
    owned = {split: dataset.splits[split] for split in SPLITS}
    return owned if dataset.bound is None else {**owned, "bound": dataset.bound}


def _groups(dataset: FederatedDataset) -> list[FederatedDataset]:
    """Return the clients that train, and the new clients if there are any."""
    return [dataset] + ([] if dataset.new_clients is None else [dataset.new_clients])


def _inside(indices: np.ndarray, count: int) -> bool:
    """Tell whether all indices are in ``0..count-1``."""
    return not len(indices) or (indices.min() >= 0 and indices.max() < count)
