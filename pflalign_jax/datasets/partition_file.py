"""A partition as a file: who owns what in which split, with a hash of the labels it belongs to."""

import hashlib
import os
import pathlib
import zipfile
import zlib

import numpy as np

from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples, FederatedDataset, Owned
from pflalign_jax.datasets.build import Group

GROUPS = ("", "new_")
"""Prefixes of the arrays of clients that train and of new clients."""


def partition_hash(dataset: FederatedDataset) -> str:
    """Return a sha256 over clients' names, all splits, labels and shifts, as hexadecimal digits."""
    digest = hashlib.sha256()
    for group in _datasets(dataset):
        digest.update("\n".join(group.client_names.tolist()).encode())
        arrays = [group.y] + [a for split in SPLITS for a in group.splits[split]]
        for array in arrays:
            digest.update(np.ascontiguousarray(array, "<i8").tobytes())
        if group.shift is not None:
            digest.update(f"{group.shift.kind} {group.shift.seed}".encode())
            digest.update(np.ascontiguousarray(group.shift.amounts, "<f4").tobytes())
    return digest.hexdigest()


def save_partition(path: str | os.PathLike, dataset: FederatedDataset) -> None:
    """Write who owns what to an npz file, whole or not at all.

    Arrays: ``client_names``, and for every split ``<split>_indices`` and ``<split>_offsets``; the
    same with ``new_`` before the name for new clients; ``dataset``, ``num_examples`` and ``hash``
    tell what they belong to.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".partial")
    arrays = {}
    for prefix, group in zip(GROUPS, _datasets(dataset), strict=False):
        arrays[f"{prefix}client_names"] = group.client_names
        for split in SPLITS:
            for field in Owned._fields:
                arrays[f"{prefix}{split}_{field}"] = getattr(group.splits[split], field)
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            dataset=np.array(dataset.name),
            num_examples=np.array(len(dataset.y)),
            hash=np.array(partition_hash(dataset)),
            **arrays,
        )
    temporary.replace(path)


def read_partition(path: str | os.PathLike, examples: Examples) -> list[Group]:
    """Read the clients that train and the new ones from a file of `save_partition`.

    Raises:
      DatasetError: naming the file, if it cannot be read, is not a partition, or was made for
        another number of examples.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if int(arrays["num_examples"]) != len(examples.y):
            raise DatasetError(
                f"partition file {path} was made for {arrays['num_examples']} examples of "
                f"{arrays['dataset']}; {examples.name} has {len(examples.y)} here. Use the data "
                "that it was made for, or leave partition_file out"
            )
        groups = []
        for prefix in GROUPS:
            if f"{prefix}client_names" not in arrays:
                none = Owned(np.zeros(0, np.int64), np.zeros(1, np.int64))
                groups.append(Group(np.zeros(0, "U1"), dict.fromkeys(SPLITS, none)))
                continue
            splits = {
                s: Owned(*(arrays[f"{prefix}{s}_{field}"] for field in Owned._fields))
                for s in SPLITS
            }
            groups.append(Group(arrays[f"{prefix}client_names"], splits))
    except DatasetError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(
            f"partition file {path} cannot be read ({type(error).__name__}: {error}); it must be a "
            "partition.npz that a run or experiments.partition wrote"
        ) from error
    owned = np.concatenate([o.indices for group in groups for o in group.splits.values()])
    if len(np.unique(owned)) != len(owned) or not _inside(owned, len(examples.y)):
        raise DatasetError(
            f"partition file {path} is damaged: an example belongs to two clients or does not exist"
        )
    return groups


def refuse_other_data(path: str | os.PathLike, dataset: FederatedDataset) -> None:
    """Refuse a dataset whose hash is not the one in its partition file.

    Raises:
      DatasetError: naming the file and both hashes.
    """
    with np.load(path, allow_pickle=False) as file:
        wanted = str(file["hash"])
    found = partition_hash(dataset)
    if found != wanted:
        raise DatasetError(
            f"partition file {path} does not fit {dataset.name}: its hash is {wanted[:12]}..., of "
            f"these data {found[:12]}.... Labels, their order, or the shifts differ from what it "
            "was made for"
        )


def _datasets(dataset):
    return [dataset] + ([] if dataset.new_clients is None else [dataset.new_clients])


def _inside(indices, count):
    return not len(indices) or (indices.min() >= 0 and indices.max() < count)
