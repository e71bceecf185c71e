"""Federated averaging with any optimisers, and what else averages whole models."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from pflalign_jax.federated import Algorithm, ClientOutput, Loss, local_training


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
      local_epochs, batch_size: local work per round.
    """
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def init(params, key):
        del key
        return ServerState(params, () if server_tx is None else server_tx.init(params)), ()

    def client_update(server, client, data, key):
        w = server.params
        result = local.train(w, tx.init(w), data, key, centre=w)
        delta = optax.tree.sub(result.params, w)
        return ClientOutput(delta, client, result.params, result.steps, result.metrics)

    def server_update(server, aggregate):
        mean_delta = aggregate.value
        if server_tx is None:
            return ServerState(optax.apply_updates(server.params, mean_delta))
        gradient = optax.tree.scale(-1, mean_delta)
        updates, opt_state = server_tx.update(gradient, server.opt_state, server.params)
        return ServerState(optax.apply_updates(server.params, updates), opt_state)

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda server, client, data: server.params,
        global_params=lambda server: server.params,
        broadcast=lambda server: ServerState(server.params),
    )


def averaged(
    client_update: Callable[..., ClientOutput],
    own: Callable[[Any], Any],
    personal_params: Callable[[ServerState, Any, Any], Any],
    **others: Any,
) -> Algorithm:
    """Return an algorithm whose server averages models as FedAvg does, by messages ``w_i - w``.

    Args:
      client_update, personal_params: of `Algorithm`; what is received is the `ServerState`.
      own: from the first parameters to a client's first state.
      others: further fields of `Algorithm`, or other values of its server's.
    """
    fields: dict[str, Any] = {
        "init": lambda params, key: (ServerState(params), own(params)),
        "client_update": client_update,
        "server_update": lambda s, aggregate: ServerState(
            optax.apply_updates(s.params, aggregate.value)
        ),
        "personal_params": personal_params,
        "global_params": lambda server: server.params,
    }
    return Algorithm(**fields | others)
