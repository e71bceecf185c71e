"""What a server keeps for each client: tables, leaves ``[K, ...]`` in the order of clients' ids."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pflalign_jax.federated import GATHERED, Algorithm, ClientData, ClientOutput, Gathered


def model_each(
    client_update: Callable[[Any, Any, ClientData, Any], ClientOutput],
    server_update: Callable[..., Any],
    init: Callable[..., Any],
    models: Callable[[Any], Any],
    **fields: Any,
) -> Algorithm:
    """Return an algorithm whose server has a model for each client, which downloads that alone.

    Who is not among the clients gets the mean of all.

    Args:
      client_update, server_update, init: of `Algorithm`.
      models: from the server's state to the clients' models, leaves ``[K, ...]``.
      fields: further fields of `Algorithm`.
    """
    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda model, client, data: model,
        global_params=None,
        broadcast=models,
        deliver=own_row,
        aggregation=GATHERED,
        **fields,
    )


def repeated(tree: Any, num_clients: int) -> Any:
    """Return a table with the same row for each of ``num_clients``."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (num_clients, *a.shape)), tree)


def weighted_sum(weights: jax.Array, table: Any) -> Any:
    """Return the sum of a table's rows, each times its weight.

    Args:
      weights: ``[K]``, or ``[N, K]`` for N sums.
      table: leaves ``[K, ...]``; those of the sum are ``[...]``, or ``[N, ...]``.
    """
    return jax.tree.map(lambda a: jnp.tensordot(weights, a, 1), table)


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
    """Return a table whose rows have moved by the messages of the clients that answered.

    Args:
      table: leaves ``[K, ...]``.
      inbox: the round's messages, leaves ``[N, ...]``: what each client's row moves by.
    """
    rows = jax.tree.map(lambda a, moved: a[inbox.ids] + moved, table, inbox.messages)
    return with_answers(table, rows, inbox)


def own_row(table: Any, client_id: jax.Array) -> Any:
    """Return a client's row; of a client that is not among the K the mean of all rows.

    Args:
      table: leaves ``[K, ...]``; those of the row are ``[...]``.
      client_id: int32 scalar.
    """

    def read(leaf):
        has_row = client_id < len(leaf)
        return jnp.where(has_row, leaf[jnp.where(has_row, client_id, 0)], leaf.mean(0))

    return jax.tree.map(read, table)
