"""What a run is: the files of its directory that are written when it begins or goes on."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pflalign_jax import datasets
from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.datasets.checksum import describe_features
from pflalign_jax.datasets.queries import client_label_counts, has_labels
from pflalign_jax.models import Model
from pflalign_jax.runs import files
from pflalign_jax.runs.headline import headline_of
from pflalign_jax.tasks import Task, target_moments


def write_description(
    workdir: pathlib.Path, config: ConfigDict, dataset: FederatedDataset, task: Task, model: Model
) -> None:
    """Write what a run is: ``config.json``, ``partition.npz``, ``data.json``."""
    files.write_json(workdir / files.CONFIG, files.infinities_as_text(config.to_dict()))
    with files.named_write_errors(workdir / files.PARTITION):
        datasets.save_partition(workdir / files.PARTITION, dataset)
    # What was read of large files another time need not be read again.
    before = files.read_data(workdir, default={})
    about = {**describe_data(dataset, before), "task": _describe_task(task, dataset)}
    if model.frozen is not None:
        about["frozen"] = model.frozen.digest
    files.write_json(workdir / files.DATA, about)


def describe_data(dataset: FederatedDataset, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``data.json`` holds: what models need of the data, and what tells data apart.

    ``label_counts`` has a row for every client, over all splits, and is missing where there are no
    labels to count; ``class_names`` and ``feature_names`` are missing where they are not known. Of
    examples that are with their owners nothing is described but their shapes.

    Args:
      dataset: the data.
      before: ``data.json`` of the run so far; see `describe_features`.
    """
    known: dict[str, Any] = {}
    if has_labels(dataset) and not dataset.elsewhere:
        known["label_counts"] = client_label_counts(dataset).tolist()
    for name in ("class_names", "feature_names"):
        if (names := getattr(dataset, name)) is not None:
            known[name] = list(names)
    if not dataset.elsewhere:
        known |= describe_features(dataset.x, before)
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
        **known,
    }


def _describe_task(task: Task, dataset: FederatedDataset) -> dict[str, Any]:
    """Return what models and reports must know of a task."""
    # The numbers that standardised targets are turned back with, when the data are not at hand.
    moments = target_moments(dataset) if task.outputs is not None else None
    return {
        "name": task.name,
        "num_outputs": task.num_outputs(dataset),
        "target_moments": moments and [part.tolist() for part in moments],
        "headline": headline_of(task)._asdict(),
    }
