"""Federated averaging with any optimisers, and what else averages whole models."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.federated import Algorithm, ClientData, ClientOutput, Loss, local_training
from pflalign_jax.federated.validation import below_one


class ServerState(NamedTuple):
    """What the server keeps.

    Attributes:
      params: the global model ``w``.
      opt_state: of the server's optimiser, never sent; () without.
      rounds: int32 scalar, rounds done in which somebody answered; () where nobody asks for it.
    """

    params: Any
    opt_state: Any = ()
    rounds: Any = ()


def heavy_ball(momentum: float) -> optax.GradientTransformation:
    """Return heavy-ball momentum for a server: steps of size 1, as in FedAvgM.

    Args:
      momentum: ``β`` in [0, 1).
    """
    below_one("heavy_ball", momentum=momentum)
    return optax.sgd(1.0, momentum=momentum)


def update_of_received(
    loss: Loss, tx: optax.GradientTransformation, local_epochs: int, batch_size: int
) -> Callable[[Any, Any, ClientData, jax.Array], ClientOutput]:
    """Return the ``client_update`` of who receives a model ``w`` alone, and has a state that stays.

    The client trains ``w`` to ``w_i``, its personal model, and sends ``w_i - w``.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      tx: the local optimiser, elementwise, new in every round; its ``update`` gets w as ``centre``.
      local_epochs, batch_size: as in `fedavg`.
    """
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def client_update(w, client, data, key):
        # Optimisers without a proximal term ignore the centre.
        result = local.train(w, tx.init(w), data, key, centre=w)
        delta = optax.tree.sub(result.params, w)
        return ClientOutput(delta, client, result.params, result.steps, result.metrics)

    return client_update


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
    update = update_of_received(loss, tx, local_epochs, batch_size)

    def client_update(server, client, data, key):
        return update(server.params, client, data, key)

    def personal_params(server, client, data):
        return server.params

    return averaged(client_update, personal_params, server_tx=server_tx)


def averaged(
    client_update: Callable[[Any, Any, ClientData, Any], ClientOutput],
    personal_params: Callable[[Any, Any, ClientData], Any],
    first_state: Callable[[Any], Any] = lambda params: (),
    server_tx: optax.GradientTransformation | None = None,
    count_rounds: bool = False,
    **fields: Any,
) -> Algorithm:
    """Return an algorithm whose server averages models as FedAvg does, by messages ``w_i - w``.

    Args:
      client_update, personal_params: of `Algorithm`; what they receive has the global model as
        ``params``.
      first_state: from the first global model to a client's first state; by default it has none.
      server_tx: as in `averaging`.
      count_rounds: whether what clients receive tells the ``rounds`` done.
      fields: further fields of `Algorithm`, or others in place of those that are made here.
    """

    def init(params, key):
        opt_state = () if server_tx is None else server_tx.init(params)
        rounds = jnp.int32(0) if count_rounds else ()
        return ServerState(params, opt_state, rounds), first_state(params)

    def server_update(server, aggregate):
        updates, opt_state = aggregate.value, ()
        if server_tx is not None:
            # What the clients moved on average points downhill, a gradient points uphill.
            gradient = optax.tree.scale(-1, updates)
            updates, opt_state = server_tx.update(gradient, server.opt_state, server.params)
        params = optax.apply_updates(server.params, updates)
        rounds = optax.safe_increment(server.rounds) if count_rounds else ()
        return ServerState(params, opt_state, rounds)

    made: dict[str, Any] = {
        "init": init,
        "client_update": client_update,
        "server_update": server_update,
        "personal_params": personal_params,
        "global_params": lambda server: server.params,
        # Clients have no use for the state of the server's optimiser.
        "broadcast": lambda server: server._replace(opt_state=()),
    }
    return Algorithm(**made | fields)
