"""Federated averaging with any optimisers, and what else averages whole models."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from pflalign_jax.federated import Algorithm, ClientData, ClientOutput, Loss, local_training


class ServerState(NamedTuple):
    """The global model ``w``, and the state of the server's optimiser, which is never sent."""

    params: Any
    opt_state: Any = ()


def averaging(
    loss: Loss,
    tx: optax.GradientTransformation,
    server_tx: optax.GradientTransformation | None = None,
    *,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return federated averaging with any local and any server optimiser.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      tx: the local optimiser, elementwise, new in every round; its ``update`` gets the global
        model as ``centre``.
      server_tx: takes minus the mean of ``w_i - w`` for its gradient; None adds the mean.
      local_epochs, batch_size: as in `fedavg`.
    """
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def client_update(server, client, data, key):
        w = server.params
        # Optimisers without a proximal term ignore the centre.
        result = local.train(w, tx.init(w), data, key, centre=w)
        delta = optax.tree.sub(result.params, w)
        return ClientOutput(delta, client, result.params, result.steps, result.metrics)

    def personal_params(server, client, data):
        return server.params

    if server_tx is None:
        return averaged(client_update, personal_params)

    def init(params, key):
        return ServerState(params, server_tx.init(params)), ()

    def server_update(server, aggregate):
        # What the clients moved on average points downhill, a gradient points uphill.
        gradient = optax.tree.scale(-1, aggregate.value)
        updates, opt_state = server_tx.update(gradient, server.opt_state, server.params)
        return ServerState(optax.apply_updates(server.params, updates), opt_state)

    return averaged(
        client_update,
        personal_params,
        init=init,
        server_update=server_update,
        # Clients have no use for the state of the server's optimiser.
        broadcast=lambda server: ServerState(server.params),
    )


def averaged(
    client_update: Callable[[Any, Any, ClientData, Any], ClientOutput],
    personal_params: Callable[[Any, Any, ClientData], Any],
    first_state: Callable[[Any], Any] = lambda params: (),
    **fields: Any,
) -> Algorithm:
    """Return an algorithm whose server averages models as FedAvg does, by messages ``w_i - w``.

    Args:
      client_update, personal_params: of `Algorithm`; what they receive has the global model as
        ``params``.
      first_state: from the first global model to a client's first state; by default it has none.
      fields: further fields of `Algorithm`, or others in place of those that are made here.
    """
    made: dict[str, Any] = {
        "init": lambda params, key: (ServerState(params), first_state(params)),
        "client_update": client_update,
        "server_update": lambda server, aggregate: ServerState(
            optax.apply_updates(server.params, aggregate.value)
        ),
        "personal_params": personal_params,
        "global_params": lambda server: server.params,
    }
    return Algorithm(**made | fields)
