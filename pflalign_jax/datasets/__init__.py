"""Federated datasets: loaders, partitions, splits, shifts."""

from pflalign_jax.datasets import partition
from pflalign_jax.datasets.base import SPLITS, DatasetError, Examples, FederatedDataset, Owned
from pflalign_jax.datasets.deal import PARTITIONS, deal
from pflalign_jax.datasets.federated import describe, features_of, label_counts, select_clients
from pflalign_jax.datasets.named import digits
from pflalign_jax.datasets.partition_file import partition_hash, save_partition
NAMES = ("digits",)
