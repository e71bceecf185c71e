"""Put a federated dataset together from examples and from who owns them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pflalign_jax.datasets import shift
from pflalign_jax.datasets.base import DatasetError, Examples, FederatedDataset, Owned
from pflalign_jax.datasets.split import own

NORMALISE = ("fixed", "train")


class Group(NamedTuple):
    """Clients with what they own: those that train, or the new ones.

    Attributes:
      names: ``[K]`` str.
      splits: split to `Owned`.
    """

    names: np.ndarray
    splits: Mapping[str, Owned]


def group_of(names: np.ndarray, splits: Mapping[str, Owned], positions: np.ndarray) -> Group:
    """Return the `Group` of the clients at ``positions``."""
    return Group(names[positions], {s: _of(owned, positions) for s, owned in splits.items()})


def _of(owned, positions):
    return own([owned.indices[owned.offsets[k] : owned.offsets[k + 1]] for k in positions])


def assemble(
    examples: Examples,
    groups: Sequence[Group],
    seed: int,
    *,
    normalise: str = "fixed",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    feature_shift: str | None = None,
    strength: float | None = None,
    label_shift: str | None = None,
    shift_groups: int | None = None,
) -> FederatedDataset:
    """Return the checked dataset of clients that train, with new ones if there are some.

    Args:
      examples: of all clients.
      groups: the clients that train, and the new ones.
      seed: of the shifts.
      normalise, mean, std, feature_shift, strength, label_shift, shift_groups: see
        `partition_examples`.

    Raises:
      DatasetError: for a client without training examples; naming a bad argument and its value.
    """
    trained, new = groups
    empty = np.flatnonzero(trained.splits["train"].sizes == 0)
    if len(empty):
        raise DatasetError(
            f"{examples.name}: {len(empty)} clients have no training example, the first is "
            f"{str(trained.names[empty[0]])!r}; give them some, raise min_examples or remove them"
        )
    mean, std = _normalisation(examples, trained.splits["train"], normalise, mean, std)
    num_old, num_all = len(trained.names), len(trained.names) + len(new.names)
    y, shifted = examples.y, None
    if label_shift is not None:
        maps = shift.label_shift(examples.num_classes, num_all, label_shift, shift_groups, seed)
        y = _relabelled(y, maps, groups)
    if feature_shift is not None:
        if strength is None:
            raise DatasetError(
                f"feature_shift={feature_shift!r} needs feature_shift_strength, e.g. 45 degrees "
                "for a rotation, 1 for contrast, 0.2 for brightness or noise"
            )
        shifted = shift.feature_shift(
            examples.x, num_all, feature_shift, strength, shift_groups, seed
        )
    elif strength is not None:
        raise DatasetError(f"feature_shift_strength={strength} does nothing without feature_shift")
    if shift_groups is not None and feature_shift is None and label_shift is None:
        raise DatasetError(
            f"shift_groups={shift_groups} does nothing without feature_shift or label_shift"
        )

    def dataset(group, ids, newcomers):
        return FederatedDataset(
            examples.name, examples.x, y, examples.num_classes, group.splits, group.names,
            ids.astype(np.int32), mean, std,
            None if shifted is None else shifted._replace(amounts=shifted.amounts[ids]),
            newcomers, examples.notes,
        )  # fmt: skip

    newcomers = dataset(new, np.arange(num_old, num_all), None) if len(new.names) else None
    return dataset(trained, np.arange(num_old), newcomers)


def _normalisation(examples, train, normalise, mean, std):
    """Return mean and standard deviation, float32."""
    if normalise not in NORMALISE:
        raise DatasetError(f"normalise={normalise!r} is unknown; choose from {NORMALISE}")
    if (mean is None) != (std is None):
        raise DatasetError(f"mean={mean} and std={std}: give both or none")
    channels = examples.x.shape[-1]
    if mean is not None:
        if normalise == "train":
            raise DatasetError(f"mean={mean} does not go with normalise='train'; drop one of them")
        for name, value in (("mean", mean), ("std", std)):
            if np.size(value) not in (1, channels):
                raise DatasetError(
                    f"{name}={value} has {np.size(value)} values; x of shape {examples.x.shape} "
                    f"needs 1 or {channels}"
                )
        if not np.min(std) > 0:
            raise DatasetError(f"std={std} is not allowed; it must be > 0")
    elif normalise == "train":
        mean, std = _moments(examples.x, train.indices)
    elif examples.mean is not None:
        mean, std = examples.mean, examples.std
    else:
        mean, std = (127.5, 127.5) if examples.x.dtype == np.uint8 else (0.0, 1.0)
    scalar = np.size(mean) == 1 and np.size(std) == 1
    return tuple(np.float32(np.squeeze(a) if scalar else a) for a in (mean, std))


def _moments(x, indices):
    """Return mean and standard deviation of every channel, in blocks, 1 where it is constant."""
    if x.dtype.kind in "iu" and x.dtype.itemsize > 1:
        raise DatasetError("normalise='train' does not go with tokens; use 'fixed'")
    channels = x.shape[-1]
    total, square, count = np.zeros(channels), np.zeros(channels), 0
    for i in range(0, len(indices), 4096):
        block = np.asarray(x[indices[i : i + 4096]], np.float64).reshape(-1, channels)
        total, square = total + block.sum(0), square + (block**2).sum(0)
        count += len(block)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    return mean, np.where(std > 1e-6, std, 1.0)


def _relabelled(y, maps, groups):
    """Return labels after each client's permutation; examples without an owner stay."""
    y, first = y.copy(), 0
    for group in groups:
        for owned in group.splits.values():
            client = first + np.repeat(np.arange(len(group.names)), owned.sizes)
            mine = y[owned.indices]
            y[owned.indices] = maps[client.reshape(-1, *[1] * (y.ndim - 1)), mine]
        first += len(group.names)
    return y
