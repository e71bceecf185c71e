"""From what nodes say of their data to a dataset without examples, which the server works with."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.datasets import SPLITS, FederatedDataset, Owned
from pflalign_jax.datasets.base import TASK_NAMES
from pflalign_jax.deploy.packets import REFUSED, Packet, RefusedError, list_of, value_of

SAME: dict[str, type] = {
    "name": str,
    "task": str,
    "num_classes": int,
    "features": list,
    "targets": list,
    "frozen": str,
}
"""Of what a node says: what must be the same for all, and its types."""


class Introduction(NamedTuple):
    """What a node says of itself, checked.

    Attributes:
      client, client_id: name and identity of its client.
      sizes: examples of each split.
      about: what must be the same for all nodes.
      mean, std: normalisation, float32.
    """

    client: str
    client_id: int
    sizes: tuple[int, ...]
    about: Mapping[str, Any]
    mean: np.ndarray
    std: np.ndarray


def introduction(answer: Packet) -> Introduction:
    """Return what a node says of itself.

    Raises:
      RefusedError: if it refused, or says what cannot be.
    """
    if REFUSED in answer.values:
        raise RefusedError(str(answer.values[REFUSED]))
    about = {name: value_of(answer, name, kind) for name, kind in SAME.items()}
    sizes = tuple(list_of(answer, "sizes", int))
    client, client_id = value_of(answer, "client", str), value_of(answer, "client_id", int)
    if len(sizes) != len(SPLITS) or not all(0 <= size < 2**31 for size in sizes):
        raise RefusedError(f"client {client}: sizes={sizes} are not examples of {SPLITS}")
    if not sizes[0]:
        raise RefusedError(f"client {client} has no training examples")
    if not 0 <= client_id < 2**31:
        raise RefusedError(f"client {client}: client_id={client_id} is not allowed")
    if about["task"] not in TASK_NAMES:
        raise RefusedError(f"client {client}: task={about['task']!r} is unknown")
    for name in ("features", "targets"):
        _checked_shape(client, name, about[name])
    moments = []
    for name in ("mean", "std"):
        array = answer.arrays.get(name)
        if array is None or array.dtype != np.float32 or not np.isfinite(array).all():
            raise RefusedError(f"client {client}: {name} must be finite numbers of float32")
        moments.append(array)
    return Introduction(client, client_id, sizes, about, *moments)


def dataset_of(introductions: Sequence[Introduction]) -> FederatedDataset:
    """Return a dataset of all clients, by ascending id, whose examples are elsewhere.

    Raises:
      RefusedError: for two clients with one name or id, or nodes whose data differ in what all must
        have in common.
    """
    everyone = sorted(introductions, key=lambda one: one.client_id)
    first = everyone[0]
    for one in everyone[1:]:
        for name in SAME:
            if one.about[name] != first.about[name]:
                raise RefusedError(
                    f"client {one.client} has {name}={one.about[name]!r}, client {first.client} "
                    f"has {first.about[name]!r}; all nodes must load the same kind of data"
                )
        for name in ("mean", "std"):
            if not np.array_equal(getattr(one, name), getattr(first, name)):
                raise RefusedError(
                    f"clients {one.client} and {first.client} normalise with another {name}; set "
                    "config.dataset.mean and std"
                )
    for name in ("client", "client_id"):
        found = [getattr(one, name) for one in everyone]
        twice = next((value for value in found if found.count(value) > 1), None)
        if twice is not None:
            raise RefusedError(
                f"two nodes have {name}={twice!r}; give each a client of its own in --node-config"
            )
    return _without_examples(everyone)


def _without_examples(everyone: Sequence[Introduction]) -> FederatedDataset:
    sizes = np.array([one.sizes for one in everyone], np.int64)
    splits, start = {}, 0
    for split, counts in zip(SPLITS, sizes.T, strict=True):
        offsets = np.concatenate([[0], np.cumsum(counts)])
        splits[split] = Owned(start + np.arange(offsets[-1]), offsets)
        start += int(offsets[-1])
    about = everyone[0].about
    # Of one element in memory, however many there seem to be.
    x, y = (
        np.broadcast_to(np.zeros((), dtype), (start, *shape))
        for dtype, shape in (
            _checked_shape("", name, about[name]) for name in ("features", "targets")
        )
    )
    return FederatedDataset(
        about["name"],
        x,
        y,
        about["num_classes"],
        splits,
        client_names=np.array([one.client for one in everyone]),
        client_ids=np.array([one.client_id for one in everyone], np.int32),
        mean=everyone[0].mean,
        std=everyone[0].std,
        task=about["task"],
        elsewhere=True,
    )


def _checked_shape(client: str, name: str, found: list[Any]) -> tuple[np.dtype, tuple[int, ...]]:
    """Return type and shape of one example, from ``[type, length, ...]``."""
    try:
        dtype, shape = np.dtype(found[0]), tuple(int(length) for length in found[1:])
        if dtype.hasobject or any(not 0 < length < 2**31 for length in shape):
            raise ValueError
    except (TypeError, ValueError, IndexError) as error:
        raise RefusedError(
            f"client {client}: {name}={found!r} are no type and shape of examples"
        ) from error
    return dtype, shape
