"""pFedBayes: Gaussian posteriors of all weights, a client's own and a shared one as its prior."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import ServerState
from pflalign_jax.algorithms.two_models import ClientState, Pair, two_models
from pflalign_jax.federated import MEAN_BY_CLIENTS, Algorithm, Loss, local_tx
from pflalign_jax.federated.validation import nonnegative
from pflalign_jax.models import Model, cross_entropy


class Gaussian(NamedTuple):
    """Independent Gaussians of all weights, like the parameters.

    Attributes:
      mean: μ.
      rho: ρ; standard deviations are ``log(1 + exp(ρ))``.
    """

    mean: Any
    rho: Any


def pfedbayes(
    model: Model,
    learning_rate: float = 0.01,
    *,
    personal_learning_rate: float = 0.01,
    zeta: float = 1.0,
    beta: float = 1.0,
    first_rho: float = -3.0,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return pFedBayes.

    A local step with one batch and one draw θ from q_i: q_i descends on ``F(θ; batch) +
    ζ/n KL(q_i ‖ s_i)``, with n examples of the client, and the copy s_i of the shared Gaussian on
    ``ζ/n KL(q_i ‖ s_i)`` with q_i fixed. The server: ``s = (1 - β) s + β mean(s_i)``, for μ and ρ,
    clients counted equally. Models are scored at the means.

    Args:
      model, loss, local_epochs, batch_size: as in `fedavg`.
      learning_rate: step size of the copy of the shared Gaussian.
      local_optimizer: of both Gaussians, as in `fedavg`; the authors take Adam.
      personal_learning_rate: step size of the posterior; with SGD below ``2 n σ² / ζ``, or it
        diverges.
      zeta: ``ζ`` >= 0, the weight of the prior; the authors' code takes 10.
      beta: ``β``, how far the server moves to the mean of the clients; 1 in the authors' code.
      first_rho: first ρ of all weights; -3, as in the authors' code, is a deviation σ of 0.049.

    References:
      Zhang et al., "Personalized Federated Learning via Variational Bayesian Inference",
      arXiv:2206.07977, Algorithm 1. Departures: posterior and copy step together, in the authors'
      code the copy once after five steps of the posterior; draws are of the posterior, where that
      code draws with a thousandth of its deviation.
    """
    nonnegative("pfedbayes", zeta=zeta, beta=beta)
    loss = loss or cross_entropy(model)
    transforms = {
        "shared": local_tx(learning_rate, local_optimizer),
        "own": local_tx(personal_learning_rate, local_optimizer, "personal_learning_rate"),
    }
    tx = optax.multi_transform(transforms, Pair("shared", "own"))

    def first(params):
        return Gaussian(params, optax.tree.full_like(params, first_rho))

    def loss_of(received, data):
        weight = zeta / jnp.maximum(data.size, 1)

        def free_energy(pair, batch, key):
            draw_key, loss_key = jax.random.split(key)
            noise = optax.tree.random_like(draw_key, pair.own.mean)
            drawn = jax.tree.map(lambda m, r, e: m + jax.nn.softplus(r) * e, *pair.own, noise)
            fixed = jax.lax.stop_gradient(pair)
            # The same value twice, for the gradient of each Gaussian with the other one fixed.
            kl = divergence(pair.own, fixed.shared) + divergence(fixed.own, pair.shared)
            told = kl - divergence(fixed.own, fixed.shared)
            return loss(drawn, batch, loss_key) + weight * told

        return free_energy

    def server_update(server, aggregate):
        return server._replace(params=optax.tree.add_scale(server.params, beta, aggregate.value))

    return two_models(
        loss_of,
        tx,
        personal=lambda pair: pair.own.mean,
        local_epochs=local_epochs,
        batch_size=batch_size,
        init=lambda params, key: (ServerState(first(params)), ClientState(first(params))),
        server_update=server_update,
        global_params=lambda server: server.params.mean,
        aggregation=MEAN_BY_CLIENTS,
        adapts_with="personal_learning_rate",
    )


def divergence(q: Gaussian, p: Gaussian) -> jax.Array:
    """Return ``KL(q ‖ p)`` in nats, summed over all weights."""

    def of_leaf(q_mean, q_rho, p_mean, p_rho):
        q_std, p_std = jax.nn.softplus(q_rho), jax.nn.softplus(p_rho)
        squares = (q_std**2 + (q_mean - p_mean) ** 2) / (2 * p_std**2)
        return jnp.sum(jnp.log(p_std / q_std) + squares - 0.5)

    return optax.tree.sum(jax.tree.map(of_leaf, *q, *p))
