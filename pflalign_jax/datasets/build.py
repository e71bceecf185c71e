"""Build a federated dataset from examples and from who owns them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pflalign_jax.datasets import checks, shift
from pflalign_jax.datasets.base import (
    DatasetError,
    Examples,
    FeatureShift,
    FederatedDataset,
    Owned,
)
from pflalign_jax.models.base import IGNORED

MOMENTS_BLOCK = 4096
"""Examples that are read at a time to form mean and standard deviation."""


class Group(NamedTuple):
    """Clients with what they own: either those that train, or the new ones.

    Attributes:
      names: ``[K]`` str.
      splits: split to `Owned`.
      bound: as in `FederatedDataset`.
    """

    names: np.ndarray
    splits: Mapping[str, Owned]
    bound: Owned | None = None

    def owned(self) -> list[Owned]:
        """Return all that the clients own: the splits, and what is kept for bounds."""
        return [*self.splits.values(), *([] if self.bound is None else [self.bound])]


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
    """Return the checked dataset of the clients that train; it holds the new ones, if any.

    Args:
      examples: of all clients.
      groups: the clients that train, and the new ones.
      seed: of the shifts.
      normalise, mean, std, feature_shift, strength, label_shift, shift_groups: see
        `partition_examples`; checked by `check_options`.

    Raises:
      DatasetError: for a client without training examples; for a bad argument, with its value.
    """
    trained, new = groups
    empty = np.flatnonzero(trained.splits["train"].sizes == 0)
    if len(empty):
        raise DatasetError(
            f"{examples.name}: {len(empty)} clients have no training example, the first is "
            f"{str(trained.names[empty[0]])!r}; give them some, raise min_examples or remove them"
        )
    if len(new.names) and not new.splits["test"].sizes.any():
        raise DatasetError(
            f"{examples.name}: none of the {len(new.names)} new clients has a test example to be "
            "scored on; raise test_fraction, min_examples or num_new_clients"
        )
    train = trained.splits["train"]
    # Over clients that train alone: new ones must not be seen before they are scored.
    mean_array, std_array = _normalisation(examples, train, normalise, mean, std)
    notes = examples.notes
    if np.all(mean_array == 0) and np.all(std_array == 1):
        notes += checks.scale_note(examples.x, train.indices)
    # New clients are shifted like the others, so shifts are drawn for all of them together.
    num_trained, num_all = len(trained.names), len(trained.names) + len(new.names)
    y = examples.y
    if label_shift is not None:
        maps = shift.label_shift(examples.num_classes, num_all, label_shift, shift_groups, seed)
        y = _relabelled(y, maps, groups)
    drawn = _feature_shift(examples.x, groups, feature_shift, strength, shift_groups, seed)

    # Ids of new clients follow those of the others, so that no two clients share their draws.
    def dataset(
        group: Group, ids: np.ndarray, new_clients: FederatedDataset | None
    ) -> FederatedDataset:
        return FederatedDataset(
            name=examples.name,
            x=examples.x,
            y=y,
            num_classes=examples.num_classes,
            splits=group.splits,
            client_names=group.names,
            client_ids=ids.astype(np.int32),
            mean=mean_array,
            std=std_array,
            shift=None if drawn is None else drawn._replace(amounts=drawn.amounts[ids]),
            new_clients=new_clients,
            notes=notes,
            task=examples.task,
            bound=group.bound,
            class_names=examples.class_names,
            feature_names=examples.feature_names,
        )

    new_clients = dataset(new, np.arange(num_trained, num_all), None) if len(new.names) else None
    return dataset(trained, np.arange(num_trained), new_clients)


def _feature_shift(
    x: np.ndarray,
    clients: Sequence[Group],
    kind: str | None,
    strength: float | None,
    groups: int | None,
    seed: int,
) -> FeatureShift | None:
    """Draw the clients' feature shift; None without one."""
    if kind is None or strength is None:
        return None
    kept = [group.bound.indices for group in clients if group.bound is not None]
    if kept:  # their range of features must not depend on what is kept for bounds
        x = np.delete(x, np.concatenate(kept), axis=0)
    num_clients = sum(len(group.names) for group in clients)
    return shift.feature_shift(x, num_clients, kind, strength, groups, seed)


def _normalisation(
    examples: Examples,
    train: Owned,
    normalise: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation, float32: scalars, or one for each channel.

    The user's own constants come first, then those of the training examples if asked for, then
    those that the loader states, then [-1, 1] for images of bytes.
    """
    values: tuple[ArrayLike, ArrayLike]
    if mean is not None and std is not None:
        _check_constants(examples.x, mean, std)
        values = mean, std
    elif normalise == "train":
        values = _moments(examples.x, train.indices)
    elif examples.mean is not None and examples.std is not None:
        values = examples.mean, examples.std
    else:
        # Bytes without axes of an image are flags or counts, which 127.5 would make all alike.
        pixels = examples.x.dtype == np.uint8 and examples.x.ndim >= 4
        values = (127.5, 127.5) if pixels else (0.0, 1.0)
    # float32, as the arithmetic on devices. Two scalars if both have one value, since scalars
    # broadcast against features of any shape.
    if all(np.size(value) == 1 for value in values):
        values = np.squeeze(values[0]), np.squeeze(values[1])
    return np.asarray(values[0], np.float32), np.asarray(values[1], np.float32)


def _check_constants(x: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise an error if a user's own mean and standard deviation do not fit the features."""
    channels = x.shape[-1]
    for name, value in (("mean", mean), ("std", std)):
        if np.size(value) not in (1, channels):
            raise DatasetError(
                f"{name}={value} has {np.size(value)} values; x of shape {x.shape} needs 1 or "
                f"{channels}"
            )


def _moments(x: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of every channel; 1 for a constant channel."""
    if x.dtype.kind in "iu" and x.dtype.itemsize > 1:
        raise DatasetError(
            f"normalise='train' does not go with tokens, and x is {x.dtype}; use 'fixed'. Numbers "
            "that are no tokens must be floats: store x.astype(np.float32)"
        )
    channels = x.shape[-1]
    total, square, count = np.zeros(channels), np.zeros(channels), 0
    # In blocks, since x may be memory-mapped and larger than memory; in float64, since the
    # variance is a small difference of large sums.
    for start in range(0, len(indices), MOMENTS_BLOCK):
        block = x[indices[start : start + MOMENTS_BLOCK]]
        values = np.asarray(block, np.float64).reshape(-1, channels)
        total, square = total + values.sum(0), square + (values**2).sum(0)
        count += len(values)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    return mean, np.where(std > 1e-6, std, 1.0)


def _relabelled(y: np.ndarray, maps: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """Return labels after each client's permutation; those without an owner or a meaning stay.

    Args:
      y: ``[N]`` or ``[N, L]`` labels.
      maps: ``[K, num_classes]``, one permutation of each client, the clients of the first group
        first.
      groups: of clients.
    """
    y, first = y.copy(), 0  # a copy: the loader's labels may be used for another dataset
    for group in groups:
        for owned in group.owned():
            client = first + np.repeat(np.arange(len(group.names)), owned.sizes)
            # For sequences, one client against all positions of its example.
            client = client.reshape(-1, *[1] * (y.ndim - 1))
            labels = y[owned.indices]
            y[owned.indices] = np.where(labels == IGNORED, labels, maps[client, labels])
        first += len(group.names)
    return y
