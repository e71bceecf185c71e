"""pFedMe: personal models from Moreau envelopes around a global one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import averaged
from pflalign_jax.federated import (
    MEAN_BY_CLIENTS,
    Algorithm,
    ClientOutput,
    Loss,
    local_sgd,
    local_training,
)
from pflalign_jax.federated.validation import at_least_one, is_concrete, nonnegative, sgd_only
from pflalign_jax.models import Model, cross_entropy


class ClientState(NamedTuple):
    """The personal model ``θ_i``."""

    params: Any


class Pair(NamedTuple):
    """What a client trains: its local copy of the global model, and the personal model."""

    w: Any
    theta: Any


def pfedme(
    model: Model,
    learning_rate: float = 0.01,
    *,
    personal_learning_rate: float = 0.01,
    lam: float = 15.0,
    inner_steps: int = 5,
    beta: float = 1.0,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return pFedMe.

    A local step with one batch: ``θ ≈ argmin F(θ; batch) + λ/2 ‖θ - w_i‖²`` by ``inner_steps``
    gradient steps from the last θ, then ``w_i -= η λ (w_i - θ)``. The server:
    ``w = (1 - β) w + β mean(w_i)``, clients counted equally.

    Args:
      model, loss, local_epochs, batch_size: as in `fedavg`.
      learning_rate: ``η`` of the local copy; ``η λ`` is how far it moves to θ in a step.
      local_optimizer: "sgd" alone: a local step is a share of the way to θ.
      personal_learning_rate: step size of the inner steps, below ``2 / λ``, or they diverge; the
        authors' commands have 0.01 for their CNN to 0.1 for their linear model.
      lam: ``λ``, the pull of the personal model to the local copy; the paper takes 15.
      inner_steps: gradient steps of the personal model on each batch; the paper takes 5.
      beta: ``β``, how far the server moves to the mean of the clients; the paper takes 1 to 4.

    References:
      Dinh, Tran and Nguyen, "Personalized Federated Learning with Moreau Envelopes",
      arXiv:2006.08848, Algorithm 1. Departures: a round is epochs over the client's data, not R
      batches drawn anew; only the cohort trains. The authors' code starts θ at the received model
      in every round, weights clients by examples and adds weight decay.

    Raises:
      ValueError: if ``personal_learning_rate`` is not below ``2 / λ``.
    """
    nonnegative("pfedme", personal_learning_rate=personal_learning_rate, lam=lam, beta=beta)
    at_least_one("pfedme", inner_steps=inner_steps)
    sgd_only("pfedme", local_optimizer)
    pull_per_step = personal_learning_rate * lam
    if is_concrete(pull_per_step) and pull_per_step >= 2:
        raise ValueError(
            f"pfedme: personal_learning_rate={personal_learning_rate!r} is not allowed with "
            f"lam={lam!r}; it must be < 2 / lam"
        )
    loss = loss or cross_entropy(model)
    value_and_grad = jax.value_and_grad(loss)

    def gradient(pair, batch, key):
        """Return the loss at the last inner step, and what a local step descends along."""

        def inner_step(i, value_and_theta):
            _, theta = value_and_theta
            value, grads = value_and_grad(theta, batch, jax.random.fold_in(key, i))
            pulled = jax.tree.map(lambda g, t, w: g + lam * (t - w), grads, theta, pair.w)
            return value, optax.tree.add_scale(theta, -personal_learning_rate, pulled)

        start = (jnp.zeros(()), pair.theta)
        value, theta = jax.lax.fori_loop(0, inner_steps, inner_step, start)
        to_theta = optax.tree.scale(lam, optax.tree.sub(pair.w, theta))
        # With a step size of 1 this takes the personal model exactly to θ.
        return value, Pair(to_theta, optax.tree.sub(pair.theta, theta))

    tx = optax.multi_transform(
        {"w": local_sgd(learning_rate), "theta": optax.sgd(1.0)}, Pair("w", "theta")
    )
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True, gradient=gradient)

    def client_update(server, client, data, key):
        pair = Pair(server.params, client.params)
        result = local.train(pair, tx.init(pair), data, key)
        w, theta = result.params
        message = optax.tree.sub(w, server.params)
        return ClientOutput(message, ClientState(theta), theta, result.steps, result.metrics)

    def server_update(server, aggregate):
        # Messages are w_i - w: so this is (1 - β) w + β mean(w_i).
        return server._replace(params=optax.tree.add_scale(server.params, beta, aggregate.value))

    return averaged(
        client_update,
        personal_params=lambda server, client, data: client.params,
        first_state=ClientState,
        server_update=server_update,
        aggregation=MEAN_BY_CLIENTS,
        adapts_with="personal_learning_rate",
    )
