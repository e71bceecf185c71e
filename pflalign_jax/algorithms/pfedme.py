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
from pflalign_jax.federated.validation import at_least_one, known, nonnegative


class ClientState(NamedTuple):
    """The personal model ``θ_i``."""

    params: Any


class Pair(NamedTuple):
    """What a client trains: its local copy of the global model, and the personal model."""

    w: Any
    theta: Any


def pfedme(
    loss: Loss,
    learning_rate: float = 0.01,
    *,
    personal_learning_rate: float = 0.01,
    lam: float = 15.0,
    inner_steps: int = 5,
    beta: float = 1.0,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return pFedMe.

    A local step with one batch: ``θ ≈ argmin F(θ; batch) + λ/2 ‖θ - w_i‖²`` by ``inner_steps``
    gradient steps from the last θ, then ``w_i -= η λ (w_i - θ)``. The server:
    ``w = (1 - β) w + β mean(w_i)``, clients counted equally.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      learning_rate: ``η`` of the local copy; ``η λ`` is how far it moves to θ in a step.
      personal_learning_rate: of the inner steps; less than ``2 / λ``, or they diverge. The authors'
        commands choose it per model, 0.01 (CNN) to 0.1 (linear).
      lam: ``λ``; the paper uses 15.
      inner_steps: K; the paper uses 5.
      beta: ``β`` of the server; 1 to 4 in the paper.
      local_epochs, batch_size: local work per round.

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
    if known(personal_learning_rate * lam) and personal_learning_rate * lam >= 2:
        raise ValueError(
            f"pfedme: personal_learning_rate={personal_learning_rate!r} is not allowed with "
            f"lam={lam!r}; it must be < 2 / lam"
        )
    grad = jax.value_and_grad(loss)

    def gradient(params, batch, key):
        def inner(_, carry):
            _, theta = carry
            value, g = grad(theta, batch, key)
            pull = jax.tree.map(lambda g, t, w: g + lam * (t - w), g, theta, params.w)
            return value, optax.tree.add_scale(theta, -personal_learning_rate, pull)

        start = (jnp.zeros(()), params.theta)
        value, theta = jax.lax.fori_loop(0, inner_steps, inner, start)
        to_theta = optax.tree.scale(lam, optax.tree.sub(params.w, theta))
        return value, Pair(to_theta, optax.tree.sub(params.theta, theta))

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
        mean = aggregate.value
        return server._replace(params=optax.tree.add_scale(server.params, beta, mean))

    return averaged(
        client_update,
        ClientState,
        lambda server, client, data: client.params,
        server_update=server_update,
        aggregation=MEAN_BY_CLIENTS,
    )
