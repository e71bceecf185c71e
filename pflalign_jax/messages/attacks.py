"""Simulated attacks: some clients, stated in advance, send rubbish."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.federated import Algorithm


def corrupted_clients(dataset: FederatedDataset, count: int, seed: int = 0) -> np.ndarray:
    """Draw the corrupted clients.

    Args:
      dataset: of K clients.
      count: how many, in 0..K.
      seed: of the draw; the order of clients does not matter.

    Returns:
      ``[count]`` int32 identities (`FederatedDataset.client_ids`), ascending.
    """
    if not 0 <= count <= dataset.num_clients:
        raise ValueError(
            f"corrupted={count!r} is not possible: {dataset.name} has {dataset.num_clients} clients"
        )
    ids = np.sort(dataset.client_ids)
    return np.sort(np.random.default_rng(seed).permutation(ids)[:count]).astype(np.int32)


def label_flip(dataset: FederatedDataset, corrupted: np.ndarray) -> FederatedDataset:
    """Return the dataset with labels c turned into ``num_classes - 1 - c`` where it is attacked.

    Only training examples of corrupted clients change; what is scored does not.

    Args:
      dataset: honest.
      corrupted: identities of clients.
    """
    train = dataset.splits["train"]
    owners = np.repeat(dataset.client_ids, train.sizes)
    flipped = train.indices[np.isin(owners, corrupted)]
    y = dataset.y.copy()
    y[flipped] = dataset.num_classes - 1 - y[flipped]
    return dataset._replace(y=y)


def sign_flip(algorithm: Algorithm, corrupted: np.ndarray, factor: float = 1.0) -> Algorithm:
    """Return the algorithm with corrupted clients sending ``-factor`` times their message."""
    return attack(algorithm, corrupted, lambda m: optax.tree.scale(-factor, m))


def scaled_update(algorithm: Algorithm, corrupted: np.ndarray, factor: float = 10.0) -> Algorithm:
    """Return the algorithm with corrupted clients sending ``factor`` times their message."""
    return attack(algorithm, corrupted, lambda m: optax.tree.scale(factor, m))


def attack(algorithm: Algorithm, corrupted: np.ndarray, change: Callable[[Any], Any]) -> Algorithm:
    """Return the algorithm with corrupted clients changing what they send.

    Wrap clients' own transforms first and the server's defences last: an attacker need not clip.

    Args:
      algorithm: of honest clients.
      corrupted: identities of clients.
      change: ``message -> message``.
    """
    ids = jnp.asarray(corrupted, jnp.int32)

    def client_update(received, client, data, key):
        output = algorithm.client_update(received, client, data, key)
        bad = jnp.any(data.client_id == ids)
        message = jax.tree.map(
            lambda a, b: jnp.where(bad, a, b), change(output.message), output.message
        )
        return output._replace(message=message)

    return algorithm._replace(client_update=client_update)
