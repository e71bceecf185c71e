"""What a server keeps for each client: tables, leaves ``[K, ...]`` in the order of clients' ids."""

from typing import Any

import jax
import jax.numpy as jnp

from pflalign_jax.federated import Gathered


def repeated(tree: Any, num_clients: int) -> Any:
    """Return a table with the same row for every client."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (num_clients, *a.shape)), tree)


def with_answers(table: Any, inbox: Gathered, rows: Any, num_clients: int) -> Any:
    """Return a table with the rows of the clients that answered in a round.

    Args:
      table: leaves ``[K, ...]``.
      inbox: the round's messages, which say whose the rows are.
      rows: leaves ``[N, ...]`` in the order of the messages.
      num_clients: K.
    """
    # Rows of the padding would go to K, where there is none: they are dropped.
    places = jnp.where(inbox.weights > 0, inbox.ids, num_clients)
    return jax.tree.map(lambda a, b: a.at[places].set(b, mode="drop"), table, rows)


def own_row(table: Any, client_id: jax.Array, num_clients: int) -> Any:
    """Return a client's row; of a client that is not among the K the mean of all rows."""
    has_row = client_id < num_clients
    row = jnp.where(has_row, client_id, 0)
    return jax.tree.map(lambda a: jnp.where(has_row, a[row], a.mean(0)), table)
