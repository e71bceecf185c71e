"""Questions to a federated dataset, and the choice of some of its clients."""

import numpy as np

from pflalign_jax.datasets.base import SPLITS, DatasetError, FederatedDataset
from pflalign_jax.datasets.shift import shift_features
from pflalign_jax.models.base import IGNORED


def dataset_summary(dataset: FederatedDataset) -> dict[str, object]:
    """Return a dataset's name, numbers of clients, classes and examples of each split, and notes.

    ``train_per_client`` has the smallest, median and largest number of training examples of a
    client.
    """
    sizes = dataset.splits["train"].sizes
    return {
        "name": dataset.name,
        "clients": dataset.num_clients,
        "classes": dataset.num_classes,
        **{split: len(dataset.splits[split].indices) for split in SPLITS},
        **({} if dataset.bound is None else {"bound": len(dataset.bound.indices)}),
        "train_per_client": [int(sizes.min()), float(np.median(sizes)), int(sizes.max())],
        "new_clients": 0 if dataset.new_clients is None else dataset.new_clients.num_clients,
        "notes": list(dataset.notes),
    }


def has_labels(dataset: FederatedDataset) -> bool:
    """Tell whether ``y`` are labels, one or several of each example, and not numbers."""
    return bool(np.issubdtype(dataset.y.dtype, np.integer))


def client_label_counts(dataset: FederatedDataset) -> np.ndarray:
    """Return ``[K, num_classes]`` int64: each client's examples of each label, in all splits.

    Labels of sequences are counted at every position that counts. Of several labels, ``[K, L]``:
    the examples that have each of them.

    Raises:
      DatasetError: if ``y`` are numbers and no labels; see `has_labels`.
    """
    if not has_labels(dataset):
        raise DatasetError(f"{dataset.name}: y is {dataset.y.dtype}; there are no labels to count")
    if not dataset.num_classes:
        return _counts_of_several(dataset)
    counts = np.zeros((dataset.num_clients, dataset.num_classes), np.int64)
    for owned in dataset.splits.values():
        y = dataset.y[owned.indices]
        clients = np.repeat(np.arange(dataset.num_clients), owned.sizes)
        # `counts[clients, y] += 1` would count a repeated (client, label) only once.
        np.add.at(counts, (clients.reshape(-1, *[1] * (y.ndim - 1)), y), y != IGNORED)
    return counts


def _counts_of_several(dataset: FederatedDataset) -> np.ndarray:
    """Return ``[K, L]`` int64: how many of each client's examples have each of L labels."""
    counts = np.zeros((dataset.num_clients, dataset.y.shape[1]), np.int64)
    for owned in dataset.splits.values():
        clients = np.repeat(np.arange(dataset.num_clients), owned.sizes)
        np.add.at(counts, clients, dataset.y[owned.indices])
    return counts


def features_of(dataset: FederatedDataset, client: int, indices: np.ndarray) -> np.ndarray:
    """Return features ``[n, ...]`` of a client's examples, shifted, but not normalised.

    Args:
      dataset: with or without a feature shift.
      client: the client's position.
      indices: ``[n]``, examples that this client owns.
    """
    x = dataset.x[indices]
    if dataset.shift is None:
        return x
    # The same function as on devices, so that a plot shows what a model is given.
    kind, amounts, low, high, seed = dataset.shift
    amount, number = np.full(len(x), amounts[client]), indices.astype(np.int32)
    return np.asarray(
        shift_features(x, amount, number, np.int32(seed), kind=kind, low=low, high=high)
    )


def select_clients(dataset: FederatedDataset, positions: np.ndarray) -> FederatedDataset:
    """Return the dataset of some of the clients, or of all in another order; ``x`` is shared.

    Args:
      dataset: of K clients.
      positions: ``[C]`` different positions; client ``positions[i]`` moves to position ``i`` and
        keeps its name, its examples and its id.

    Raises:
      DatasetError: for a position outside ``0..K-1`` or one given twice.
    """
    positions = np.asarray(positions)
    if (
        len(np.unique(positions)) < len(positions)
        or not ((positions >= 0) & (positions < dataset.num_clients)).all()
    ):
        raise DatasetError(
            f"positions={positions} are not different clients out of {dataset.num_clients}"
        )
    # Ids move with their clients: draws keyed by them stay the same in another order.
    shift = dataset.shift
    return dataset._replace(
        splits={split: owned.of_clients(positions) for split, owned in dataset.splits.items()},
        bound=dataset.bound and dataset.bound.of_clients(positions),
        client_names=dataset.client_names[positions],
        client_ids=dataset.client_ids[positions],
        shift=shift and shift._replace(amounts=shift.amounts[positions]),
    )
