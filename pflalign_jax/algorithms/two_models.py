"""A client's own model beside its copy of the shared one, trained together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from pflalign_jax.algorithms.averaging import averaged
from pflalign_jax.federated import Algorithm, ClientData, ClientOutput, Loss, local_training


class ClientState(NamedTuple):
    """The client's own model ``v_i``."""

    own: Any


class Pair(NamedTuple):
    """What a client trains: its copy ``w_i`` of the shared model, and its own ``v_i``."""

    shared: Any
    own: Any


def two_models(
    loss_of: Callable[[Any, ClientData], Loss],
    tx: optax.GradientTransformation,
    personal: Callable[[Pair], Any],
    *,
    local_epochs: int = 1,
    batch_size: int = 10,
    **fields: Any,
) -> Algorithm:
    """Return an algorithm whose server averages the copies ``w_i`` as FedAvg does.

    Args:
      loss_of: from the received model and a client's data to the loss of a `Pair`.
      tx: the local optimiser of pairs, elementwise, new in every round.
      personal: from a `Pair` to the client's personal model.
      local_epochs, batch_size: as in `fedavg`.
      fields: as in `averaged`.
    """

    def client_update(server, client, data, key):
        loss = loss_of(server.params, data)
        local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)
        start = Pair(server.params, client.own)
        result = local.train(start, tx.init(start), data, key)
        message = optax.tree.sub(result.params.shared, server.params)
        state, params = ClientState(result.params.own), personal(result.params)
        return ClientOutput(message, state, params, result.steps, result.metrics)

    return averaged(
        client_update,
        personal_params=lambda server, client, data: personal(Pair(server.params, client.own)),
        **{"first_state": ClientState} | fields,
    )
