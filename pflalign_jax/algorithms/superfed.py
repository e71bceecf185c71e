"""SuPerFed: a client's own model and the shared one are joined by a line of good models."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import averaged
from pflalign_jax.federated import (
    Algorithm,
    ClientOutput,
    Loss,
    first_models,
    local_training,
    local_tx,
)
from pflalign_jax.federated.validation import at_most_one, nonnegative
from pflalign_jax.models import Model, cross_entropy


class ClientState(NamedTuple):
    """The client's own model ``v_i``."""

    params: Any


class Pair(NamedTuple):
    """What a client trains: its copy of the shared model, and its own."""

    shared: Any
    own: Any


def superfed(
    model: Model,
    learning_rate: float = 0.1,
    *,
    lam: float = 0.5,
    mu: float = 0.01,
    nu: float = 2.0,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return SuPerFed, its version for whole models.

    A local step draws λ uniformly from [0, 1]; the copy w_i of the shared model and the client's
    own v_i descend on ``F_i((1 - λ) w_i + λ v_i) + μ ‖w_i - w‖² + ν cos²(w_i, v_i)``. The server
    averages w_i as FedAvg does. The personal model is the mixture with a fixed λ.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      lam: ``λ`` in [0, 1] of the personal model that is scored; in training it is drawn.
      mu: ``μ`` >= 0, the pull of w_i to the shared model; the paper takes 0.01.
      nu: ``ν`` >= 0, the weight of the squared cosine of both models; the paper takes 2.

    References:
      Hahn, Jeong and Lee, "Connecting Low-Loss Subspace for Personalized Federated Learning",
      arXiv:2109.07628, Algorithm 1 and equation 5. Departures: own models are mixed in from the
      first round on, there after 40 % of them; they start as a shuffle of the first model, the
      same for all clients.
    """
    at_most_one("superfed", lam=lam)
    nonnegative("superfed", mu=mu, nu=nu)
    task_loss, tx = loss or cross_entropy(model), local_tx(learning_rate, local_optimizer)

    def mixed(share, w, v):
        return jax.tree.map(lambda w, v: (1 - share) * w + share * v, w, v)

    def client_update(server, client, data, key):
        def loss(pair, batch, key):
            share_key, loss_key = jax.random.split(key)
            w, v = pair
            value = task_loss(mixed(jax.random.uniform(share_key), w, v), batch, loss_key)
            pull = optax.tree.norm(optax.tree.sub(w, server.params), squared=True)
            squares = optax.tree.norm(w, squared=True) * optax.tree.norm(v, squared=True)
            # Models of zeros have no angle.
            cosine = optax.tree.vdot(w, v) ** 2 / jnp.maximum(squares, 1e-12)
            return value + mu * pull + nu * cosine

        local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)
        start = Pair(server.params, client.params)
        result = local.train(start, tx.init(start), data, key)
        w, v = result.params
        message = optax.tree.sub(w, server.params)
        return ClientOutput(message, ClientState(v), mixed(lam, w, v), result.steps, result.metrics)

    plain = averaged(
        client_update,
        personal_params=lambda server, client, data: mixed(lam, server.params, client.params),
    )

    def init(params, key):
        server, _ = plain.init(params, key)
        # Another first model: from the same one the two could only be parallel.
        return server, ClientState(jax.tree.map(lambda a: a[1], first_models(params, key, 2)))

    return plain._replace(init=init)
