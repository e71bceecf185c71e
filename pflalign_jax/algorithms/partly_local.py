"""Federated averaging of a part of the model; the rest stays with every client."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from pflalign_jax.federated.algorithm import Algorithm, ClientOutput
from pflalign_jax.federated.local import Loss, local_training
from pflalign_jax.federated.param_parts import combine_params, partition_params


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
      local_epochs, batch_size: local work per round.
    """
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def client_update(server, client, data, key):
        start = combine_params(client.own, server.shared)
        result = local.train(start, tx.init(start), data, key)
        own, shared = partition_params(result.params, own_mask(start))
        message = optax.tree.sub(shared, server.shared)
        return ClientOutput(message, ClientState(own), result.params, result.steps, result.metrics)

    return shared_in_part(client_update, own_mask)


def shared_in_part(
    client_update: Callable[..., ClientOutput], own_mask: Callable[[Any], Any]
) -> Algorithm:
    """Return an algorithm whose server averages the shared parts, by what they have moved.

    Args:
      client_update: of `Algorithm`; it is given a `ServerState` and a `ClientState`.
      own_mask: as above.
    """

    def init(params, key):
        del key
        own, shared = partition_params(params, own_mask(params))
        return ServerState(shared), ClientState(own)

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=lambda s, aggregate: ServerState(optax.tree.add(s.shared, aggregate.value)),
        personal_params=lambda server, client, data: combine_params(client.own, server.shared),
        global_params=None,
    )
