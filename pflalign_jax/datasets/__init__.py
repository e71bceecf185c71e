"""Federated datasets: loaders, partitions, splits."""

from pflalign_jax.datasets import partition
from pflalign_jax.datasets.base import SPLITS, DatasetError, FederatedDataset, Owned
from pflalign_jax.datasets.federated import (
    describe,
    digits,
    fashion_mnist,
    npz,
    partition_hash,
    save_partition,
    select_clients,
)

__all__ = [
    "SPLITS",
    "DatasetError",
    "FederatedDataset",
    "Owned",
    "describe",
    "digits",
    "fashion_mnist",
    "npz",
    "partition",
    "partition_hash",
    "save_partition",
    "select_clients",
]
