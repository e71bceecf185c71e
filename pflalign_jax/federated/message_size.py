"""What one client receives and sends, as shapes: nothing is trained."""

from typing import Any

import jax
import jax.numpy as jnp

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.federated.algorithm import Aggregation, Algorithm, ClientData


def imaginary_client(dataset: FederatedDataset) -> ClientData:
    """Return the `ClientData` of an imaginary client of a dataset, without examples."""
    longest = int(dataset.splits["train"].sizes.max())
    x, y = (jnp.zeros((1, *a.shape[1:]), a.dtype) for a in (dataset.x, dataset.y))
    none, mean, std = jnp.zeros((), jnp.int32), *map(jnp.float32, (dataset.mean, dataset.std))
    positions = jnp.zeros(longest, jnp.int32)
    return ClientData(x, y, none, none, positions, mean, std, client_id=none)


def message_shapes(
    algorithm: Algorithm, received: Any, client: Any, dataset: FederatedDataset
) -> Any:
    """Return the shapes of one client's message.

    Args:
      algorithm: any.
      received, client: what the client has downloaded, and its state, or their shapes.
      dataset: whose clients.
    """
    update = algorithm.client_update
    output = jax.eval_shape(update, received, client, imaginary_client(dataset), jax.random.key(0))
    return output.message


def num_bytes(shapes: Any) -> int:
    """Return the bytes of a tree of arrays or of their shapes."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(shapes))


def sent_bytes(aggregation: Aggregation, message: Any) -> int:
    """Return the bytes that are sent for a message of these shapes."""
    return (aggregation.message_bytes or num_bytes)(message)
