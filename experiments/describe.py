"""What a run's directory says about the run: its config, its data, who owns what."""

import pathlib
import zlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import workdir as files
from pflalign_jax import datasets
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.datasets.queries import client_label_counts


def describe_run(workdir: pathlib.Path, config: ConfigDict, dataset: FederatedDataset) -> None:
    """Write what the run is: ``config.json``, ``partition.npz``, ``data.json``."""
    files.write_json(workdir / "config.json", config.to_dict())
    with files.explained(workdir / "partition.npz"):
        datasets.save_partition(workdir / "partition.npz", dataset)
    files.write_json(workdir / "data.json", describe_data(dataset))


def describe_data(dataset: FederatedDataset) -> dict[str, Any]:
    """Return what ``data.json`` holds: what models need of the data, and what tells data apart.

    ``features_crc32`` is over some 4,000 examples, evenly spread; ``label_counts`` has a row for
    every client, over all splits.
    """
    some = np.ascontiguousarray(dataset.x[:: max(1, len(dataset.x) // 4096)])
    return {
        "name": dataset.name,
        "num_classes": dataset.num_classes,
        "features_shape": list(dataset.x.shape[1:]),
        "features_dtype": str(dataset.x.dtype),
        "mean": np.asarray(dataset.mean, np.float64).tolist(),
        "std": np.asarray(dataset.std, np.float64).tolist(),
        "client_names": dataset.client_names.tolist(),
        "client_ids": dataset.client_ids.tolist(),
        "partition_hash": datasets.partition_hash(dataset),
        "label_counts": client_label_counts(dataset).tolist(),
        "features_crc32": zlib.crc32(some.tobytes()),
    }
