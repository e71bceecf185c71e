"""Simulated attacks: some clients, chosen in advance, send harmful messages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import Algorithm, ClientData, ClientOutput
from pflalign_jax.models.base import IGNORED


def corrupted_clients(dataset: FederatedDataset, count: int, seed: int = 0) -> np.ndarray:
    """Draw the corrupted clients.

    Args:
      dataset: of K clients.
      count: how many clients are corrupted, in 0..K.
      seed: of the draw, which does not depend on the order of clients.

    Returns:
      ``[count]`` int32 identities (`FederatedDataset.client_ids`), ascending.
    """
    if not 0 <= count <= dataset.num_clients:
        raise ValueError(
            f"corrupted={count!r} is not possible: {dataset.name} has {dataset.num_clients} clients"
        )
    # Sorted ids and not positions: the same clients are drawn in any order of clients.
    ids = np.sort(dataset.client_ids)
    return np.sort(np.random.default_rng(seed).permutation(ids)[:count]).astype(np.int32)


def label_flip(dataset: FederatedDataset, corrupted: np.ndarray) -> FederatedDataset:
    """Return the dataset with labels ``num_classes - 1 - c`` in place of c at corrupted clients.

    Only their training examples change; the examples that are scored do not.

    Args:
      dataset: the honest one.
      corrupted: identities of clients.

    Raises:
      ValueError: if the data have numbers, or several labels of each example.
    """
    if not dataset.num_classes:
        raise ValueError(
            f"label_flip needs labels, one of several classes for each example, but y of "
            f"{dataset.name} is {dataset.y.dtype} {list(dataset.y.shape)}"
        )
    train = dataset.splits["train"]
    owners = np.repeat(dataset.client_ids, train.sizes)
    flipped = train.indices[np.isin(owners, corrupted)]
    y = dataset.y.copy()
    labels = y[flipped]
    y[flipped] = np.where(labels == IGNORED, labels, dataset.num_classes - 1 - labels)
    return dataset._replace(y=y)


def sign_flip(algorithm: Algorithm, corrupted: np.ndarray, factor: float = 1.0) -> Algorithm:
    """Return the algorithm in which corrupted clients send ``-factor`` times their message.

    Args:
      algorithm: of honest clients.
      corrupted: identities of clients.
      factor: corrupted clients send their message times minus this.
    """
    return attack(algorithm, corrupted, lambda m: optax.tree.scale(-factor, m))


def scaled_update(algorithm: Algorithm, corrupted: np.ndarray, factor: float = 10.0) -> Algorithm:
    """Return the algorithm in which corrupted clients send ``factor`` times their message.

    Args:
      algorithm: of honest clients.
      corrupted: identities of clients.
      factor: corrupted clients send their message times this.
    """
    return attack(algorithm, corrupted, lambda m: optax.tree.scale(factor, m))


def attack(algorithm: Algorithm, corrupted: np.ndarray, change: Callable[[Any], Any]) -> Algorithm:
    """Return the algorithm in which corrupted clients change what they send.

    Wrap the clients' transforms first and the server's defences last: an attacker does not clip.

    Args:
      algorithm: of honest clients.
      corrupted: identities of clients.
      change: ``message -> message``.
    """
    ids = jnp.asarray(corrupted, jnp.int32)

    def client_update(received: Any, client: Any, data: ClientData, key: jax.Array) -> ClientOutput:
        output = algorithm.client_update(received, client, data, key)
        # Chosen by value: all clients run the same program, vmapped.
        is_corrupted = jnp.any(data.client_id == ids)
        message = jax.tree.map(
            lambda changed, honest: jnp.where(is_corrupted, changed, honest),
            change(output.message),
            output.message,
        )
        return output._replace(message=message)

    return algorithm._replace(client_update=client_update)
