"""FedPer: a shared body, a head that stays with every client; and what else is partly local."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

from pflalign_jax.federated.algorithm import Algorithm, ClientOutput
from pflalign_jax.federated.local import Loss, local_sgd, local_training
from pflalign_jax.federated.paths import cut, joined, part_mask


class ServerState(NamedTuple):
    """The shared part of the model."""

    shared: Any


class ClientState(NamedTuple):
    """The client's own part."""

    own: Any


def fedper(
    loss: Loss,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str],
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedPer.

    A client joins the received body and its own head, takes T steps of SGD on both, keeps the
    head and sends what the body has moved. The server averages bodies as FedAvg does models. With
    an empty head it is FedAvg.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      learning_rate: of SGD.
      head: names of the layers that stay local, see `pflalign_jax.federated.part_mask`.
      local_epochs, batch_size: local work per round.

    References:
      Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv:1912.00818,
      Algorithm 1. Departure: all heads start equal, as in PFLlib; there each is drawn at random.
    """
    tx = local_sgd(learning_rate)
    return partly_local(
        loss, tx, lambda p: part_mask(p, head), local_epochs=local_epochs, batch_size=batch_size
    )


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

    def init(params):
        own, shared = cut(params, own_mask(params))
        return ServerState(shared), ClientState(own)

    def personal_params(server, client):
        return joined(client.own, server.shared)

    def client_update(server, client, data, key):
        start = personal_params(server, client)
        result = local.train(start, tx.init(start), data, key)
        own, shared = cut(result.params, own_mask(start))
        message = optax.tree.sub(shared, server.shared)
        return ClientOutput(message, ClientState(own), result.params, result.steps, result.metrics)

    def server_update(server, mean):
        return ServerState(optax.tree.add(server.shared, mean))

    return Algorithm(init, client_update, server_update, personal_params, global_params=None)
