"""What a server keeps for each client: tables, leaves ``[K, ...]`` in the order of clients' ids."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.federated import ClientData, ClientOutput, Gathered, Loss, local_training


def repeated(tree: Any, num_clients: int) -> Any:
    """Return a table with the same row for each of ``num_clients``."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (num_clients, *a.shape)), tree)


def with_answers(table: Any, rows: Any, inbox: Gathered) -> Any:
    """Return a table with new rows of the clients that answered in a round.

    Args:
      table: leaves ``[K, ...]``.
      rows: leaves ``[N, ...]`` in the order of the messages.
      inbox: the round's messages, which say whose the rows are.
    """

    def write(old, new):
        # Rows of the padding would go to K, where there is none: they are dropped.
        places = jnp.where(inbox.weights > 0, inbox.ids, len(old))
        return old.at[places].set(new, mode="drop")

    return jax.tree.map(write, table, rows)


def with_moves(table: Any, inbox: Gathered) -> Any:
    """Return a table whose rows have moved by the messages of the clients that answered."""
    rows = jax.tree.map(lambda a, moved: a[inbox.ids] + moved, table, inbox.messages)
    return with_answers(table, rows, inbox)


def own_row(table: Any, client_id: jax.Array) -> Any:
    """Return a client's row; of a client that is not among the K the mean of all rows."""

    def read(leaf):
        has_row = client_id < len(leaf)
        return jnp.where(has_row, leaf[jnp.where(has_row, client_id, 0)], leaf.mean(0))

    return jax.tree.map(read, table)


def update_of_received(
    loss: Loss, tx: optax.GradientTransformation, local_epochs: int, batch_size: int
) -> Callable[[Any, Any, ClientData, jax.Array], ClientOutput]:
    """Return a ``client_update`` that trains the received model and sends what this has moved.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      tx: the local optimiser, elementwise, new in every round.
      local_epochs, batch_size: as in `fedavg`.
    """
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def client_update(w, client, data, key):
        result = local.train(w, tx.init(w), data, key)
        delta = optax.tree.sub(result.params, w)
        return ClientOutput(delta, client, result.params, result.steps, result.metrics)

    return client_update
