"""Federated averaging of a part of the model; the rest stays with every client."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from pflalign_jax.federated import (
    Algorithm,
    ClientData,
    ClientOutput,
    Loss,
    combine_params,
    local_training,
    partition_params,
)


class ServerState(NamedTuple):
    """The shared part of the model."""

    shared: Any


class ClientState(NamedTuple):
    """The client's own part."""

    own: Any


def partly_local(
    loss: Loss,
    tx: optax.GradientTransformation,
    own_mask: Callable[[Any], Any],
    *,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return federated averaging of a part of the model; the rest stays with every client.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      tx: the local optimiser of both parts, elementwise, new in every round.
      own_mask: from parameters to a tree of bools, True for what stays local.
      local_epochs, batch_size: as in `fedavg`.
    """
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def client_update(server, client, data, key):
        start = combine_params(client.own, server.shared)
        result = local.train(start, tx.init(start), data, key)
        own, shared = partition_params(result.params, own_mask(start))
        # The own part is None in these trees: it is neither sent nor counted.
        message = optax.tree.sub(shared, server.shared)
        return ClientOutput(message, ClientState(own), result.params, result.steps, result.metrics)

    return shared_in_part(client_update, own_mask)


def shared_in_part(
    client_update: Callable[[Any, Any, ClientData, Any], ClientOutput],
    own_mask: Callable[[Any], Any],
) -> Algorithm:
    """Return an algorithm whose server averages the shared parts, by what they have moved.

    Args:
      client_update: of `Algorithm`; what it receives has the shared part as ``shared``, the
        client's state its own part as ``own``, and the message is what the shared part has moved.
      own_mask: from parameters to a tree of bools, True for what stays local.
    """

    def init(params, key):
        own, shared = partition_params(params, own_mask(params))
        return ServerState(shared), ClientState(own)

    def server_update(server, aggregate):
        return ServerState(optax.tree.add(server.shared, aggregate.value))

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda server, client, data: combine_params(client.own, server.shared),
        global_params=None,
    )
