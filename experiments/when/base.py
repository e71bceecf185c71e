"""The setting that the maps of `experiments.when` begin with, and its data; for --config.

20 clients with 50 training examples each, Dir(0.1), MLP, everybody in every round, 50 rounds.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import numpy as np
from ml_collections import ConfigDict

from pflalign_jax.datasets import (
    DatasetError,
    Examples,
    FederatedDataset,
    partition_examples,
)
from pflalign_jax.datasets.array_files import ArrayFileError, open_npz
from pflalign_jax.datasets.loaders.digits import load_digits
from pflalign_jax.datasets.loaders.mnist import load_fashion_mnist, load_mnist
from pflalign_jax.datasets.partition_examples import PartitionOptions
from pflalign_jax.runs import default_config
from pflalign_jax.runs.factories import factory

DEALT = "experiments.when.base:dealt"


def load_arrays(path: str | None) -> Examples:
    """Read ``train.npz`` and ``test.npz`` of a folder, each with ``x [N, ...]`` and ``y [N]``.

    Raises:
      DatasetError: naming what is missing.
    """
    if path is None:
        raise DatasetError("when: source='npz' needs a folder; pass --config.dataset.path=PATH")
    parts = []
    for split in ("train", "test"):
        file = pathlib.Path(path) / f"{split}.npz"
        try:
            with open_npz(file) as arrays:
                parts.append((arrays["x"], arrays["y"]))
        except (ArrayFileError, KeyError) as error:
            raise DatasetError(
                f"when: {file} cannot be read as npz with x and y: {error}"
            ) from error
    x, y = map(np.concatenate, zip(*parts, strict=True))
    return Examples(pathlib.Path(path).name, x, y.astype(np.int32), int(y.max()) + 1)


SOURCES: Mapping[str, Callable[[Any], Examples]] = {
    "fashion_mnist": load_fashion_mnist,
    "mnist": load_mnist,
    "npz": load_arrays,
    "digits": lambda path: load_digits(),
}

NOISE = 1001
"""What the draws of wrong labels are for, beside the dataset's seed."""

VARIANTS: dict[str, dict[str, Any]] = {
    "extended": {"name": "pflalign", "server_tx": 0.9, "staleness": 0.5},
    "p_alone": {"name": "pflalign", "realignment": False},
    "realignment_alone": {"name": "pflalign", "precondition": False},
}
"""pFLAlign with our extensions, and each of its two mechanisms without the other."""

RIVALS = ("local", "fedavg", "fedavgm", "ditto")
"""What a user would take instead; all are scored after their last adaptation."""


def dealt(
    source: str = "fashion_mnist",
    path: str | None = None,
    examples_per_client: int = 50,
    label_noise: float = 0.0,
    **options: Unpack[PartitionOptions],
) -> FederatedDataset:
    """Return as many examples of a dataset as clients are to have, some with wrong labels.

    Args:
      source: whose examples: fashion_mnist, mnist, npz or digits.
      path: where its files are, of npz a folder with train.npz and test.npz, each with x and y;
        None: as the source finds them.
      examples_per_client: training examples of each client, >= 1.
      label_noise: share of training and validation examples whose label is replaced by another one,
        drawn uniformly, in [0, 1]. Test examples keep theirs.
      options: keyword arguments of `partition_examples`; with a partition into equal parts.

    Raises:
      DatasetError: for a value that is not possible, or more examples than the source has.
    """
    if source not in SOURCES:
        raise DatasetError(f"when: source={source!r} is unknown; choose from {sorted(SOURCES)}")
    if not (examples_per_client >= 1 and 0 <= label_noise <= 1):
        raise DatasetError(
            f"when: examples_per_client={examples_per_client} and label_noise={label_noise} are "
            "not allowed; they must be >= 1 and in [0, 1]"
        )
    examples = SOURCES[source](path)
    held_out = (options.get("validation_count") or 0) + (options.get("test_count") or 0)
    count = (options.get("num_clients") or 1) * (examples_per_client + held_out)
    if count > len(examples.y):
        raise DatasetError(
            f"when: {count} examples are needed, and {source} has {len(examples.y)}; use fewer "
            "clients or examples_per_client"
        )
    rng = np.random.default_rng([options.get("seed", 0), NOISE])
    kept = np.sort(rng.permutation(len(examples.y))[:count])
    # Whoever owned or split them before: they are dealt anew.
    examples = examples._replace(x=examples.x[kept], y=examples.y[kept], owner=None, split=None)
    data = partition_examples(examples, **options)
    return data._replace(y=_with_wrong_labels(data, label_noise, rng))


def _with_wrong_labels(
    data: FederatedDataset, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the labels of all examples, of which a share in training and validation is wrong."""
    y = data.y.copy()
    for split in ("train", "validation"):
        indices = data.splits[split].indices
        wrong = indices[rng.random(len(indices)) < share]
        y[wrong] = (y[wrong] + rng.integers(1, data.num_classes, len(wrong))) % data.num_classes
    return y


def get_config() -> ConfigDict:
    """Return the config."""
    factory("dataset", DEALT)  # so that its arguments are fields
    config = default_config()
    config.rounds = config.eval_every = 50
    config.cohort_size = config.dataset.num_clients = 20
    config.dataset.name = DEALT
    config.dataset.examples_per_client, config.dataset.label_noise = 50, 0.0
    config.dataset.partition, config.dataset.alpha = "dirichlet_balanced", 0.1
    config.dataset.validation_count, config.dataset.test_count = 30, 100
    config.dataset.split_by = "random"
    config.model.name, config.model.hidden = "mlp", (50,)
    config.checkpoint_every = 0  # a trial takes seconds
    config.compare.algorithms = ("pflalign", *VARIANTS, *RIVALS)
    config.compare.adapt = True
    config.compare.grids.pflalign = (0.3, 1.0, 3.0, 10.0)
    with config.unlocked():
        config.compare.variants.update(VARIANTS)
        config.compare.grids.p_alone = config.compare.grids.pflalign
        config.compare.grids.extended = (0.1, 0.3, 1.0, 3.0)
        config.compare.grids.realignment_alone = config.compare.grid
    return config
