"""Federated datasets: loaders, partitions, splits, shifts."""

from pflalign_jax.datasets import partition
from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples, FederatedDataset, Owned
from pflalign_jax.datasets.partition_examples import PARTITIONS, partition_examples
from pflalign_jax.datasets.partition_file import partition_hash, save_partition
from pflalign_jax.datasets.queries import (
    dataset_summary,
    features_of,
    select_clients,
)
from pflalign_jax.datasets.registry import (
    SOURCES,
    ag_news,
    cifar10,
    cifar100,
    digits,
    emnist,
    fashion_mnist,
    femnist,
    leaf,
    mnist,
    nist_writers,
    npz,
    pfllib,
    shakespeare,
    synthetic,
    tables,
    tiny_imagenet,
    uci_har,
)

NAMES = (
    "digits",
    "mnist",
    "fashion_mnist",
    "emnist",
    "femnist",
    "nist_writers",
    "cifar10",
    "cifar100",
    "tiny_imagenet",
    "shakespeare",
    "ag_news",
    "uci_har",
    "synthetic",
    "leaf",
    "npz",
    "tables",
    "pfllib",
)
"""What a config's ``dataset.name`` can be: functions of this module."""

__all__ = [
    "NAMES",
    "PARTITIONS",
    "SOURCES",
    "SPLITS",
    "DatasetError",
    "Examples",
    "FederatedDataset",
    "Owned",
    "ag_news",
    "cifar10",
    "cifar100",
    "dataset_summary",
    "digits",
    "emnist",
    "fashion_mnist",
    "features_of",
    "femnist",
    "leaf",
    "mnist",
    "nist_writers",
    "npz",
    "partition",
    "partition_examples",
    "partition_hash",
    "pfllib",
    "save_partition",
    "select_clients",
    "shakespeare",
    "synthetic",
    "tables",
    "tiny_imagenet",
    "uci_har",
]
