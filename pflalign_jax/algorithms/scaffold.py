"""SCAFFOLD: control variates against client drift."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from pflalign_jax.federated import (
    MEAN_BY_CLIENTS,
    Algorithm,
    ClientOutput,
    Loss,
    add_drift,
    local_sgd,
    local_training,
)
from pflalign_jax.federated.validation import nonnegative, positive, sgd_only
from pflalign_jax.models import Model, cross_entropy


class ServerState(NamedTuple):
    """The global model ``w`` and control variate ``c``."""

    params: Any
    control: Any


class ClientState(NamedTuple):
    """The client's control variate ``c_i``."""

    control: Any


def scaffold(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    server_learning_rate: float = 1.0,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return SCAFFOLD with control variates of option II.

    A round of one client: T steps ``w_i -= η (g - c_i + c)`` from ``w``, then
    ``c_i' = c_i - c + (w - w_i) / (T η)``; the message is ``(w_i - w, c_i' - c_i)``. The server:
    ``w += η_g mean(w_i - w)``, ``c += Σ (c_i' - c_i) / K``, clients counted equally. With one
    client it is FedAvg. ``personal / adapted`` is scored after these steps, which lead away from
    the client's own optimum: it is not fine-tuned.

    Args:
      model, loss, local_epochs, batch_size: as in `fedavg`.
      learning_rate: ``η`` > 0, the step size of a client's SGD.
      local_optimizer: "sgd" alone: from its steps the control variates are told.
      num_clients: K, the number of all clients.
      server_learning_rate: ``η_g``, the step size of the server; the paper takes 1.

    References:
      Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
      arXiv:1910.06378, Algorithm 1. Departure: T is a client's own number of steps, not the same
      for all.
    """
    positive("scaffold", learning_rate=learning_rate, num_clients=num_clients)
    nonnegative("scaffold", server_learning_rate=server_learning_rate)
    sgd_only("scaffold", local_optimizer)
    tx = optax.chain(add_drift(), local_sgd(learning_rate))
    loss = loss or cross_entropy(model)
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def init(params, key):
        zeros = optax.tree.zeros_like(params)
        return ServerState(params, zeros), ClientState(zeros)

    def client_update(server, client, data, key):
        w, drift = server.params, optax.tree.sub(server.control, client.control)
        result = local.train(w, tx.init(w), data, key, drift=drift)
        delta = optax.tree.sub(result.params, w)
        # A padded row of the cohort takes no step; what it divides by 1 counts nowhere.
        steps = jnp.maximum(result.steps, 1).astype(jnp.float32)
        # (w - w_i) / (T η) is the mean gradient of the round, c_i its next estimate.
        change = optax.tree.add_scale(
            optax.tree.scale(-1, server.control), -1 / (steps * learning_rate), delta
        )
        state = ClientState(optax.tree.add(client.control, change))
        return ClientOutput((delta, change), state, result.params, result.steps, result.metrics)

    def server_update(server, aggregate):
        delta, change = aggregate.value
        # The changes of those that answered, as a mean over all K clients.
        share = aggregate.weight / num_clients
        return ServerState(
            optax.tree.add_scale(server.params, server_learning_rate, delta),
            optax.tree.add_scale(server.control, share, change),
        )

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda server, client, data: server.params,
        global_params=lambda server: server.params,
        aggregation=MEAN_BY_CLIENTS,
    )
