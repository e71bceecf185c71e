"""FedAMP: similar clients attend to each other; the server keeps a cloud model for each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.per_client import model_each, repeated, weighted_sum, with_answers
from pflalign_jax.federated import (
    Algorithm,
    ClientOutput,
    Loss,
    local_training,
    local_tx,
    proximal,
)
from pflalign_jax.federated.validation import nonnegative, positive
from pflalign_jax.models import Model, cross_entropy


class ServerState(NamedTuple):
    """What the server keeps, leaves ``[K, ...]`` in the order of the clients' ids.

    Attributes:
      models: the clients' own models ``w_i`` as last sent.
      clouds: their cloud models ``u_i``.
    """

    models: Any
    clouds: Any


def fedamp(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    alpha: float = 1e4,
    sigma: float = 0.1,
    lam: float = 1.0,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedAMP, for a few clients (cross-silo): every device holds all clients' models.

    With attention ``ξ_ij = α A'(‖w_i - w_j‖²)`` and ``A(x) = 1 - exp(-x/σ)``, the cloud model of
    a client is ``u_i = w_i + Σ_j ξ_ij (w_j - w_i)``; the client takes T steps of SGD from u_i on
    ``F_i(w_i) + λ/2α ‖w_i - u_i‖²``. Its message is w_i. A client that never trained gets the mean
    of all cloud models.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_clients: K, the number of all clients, whose identities are ``0..K-1``.
      alpha: ``α`` > 0, the step size of the attention; the weights of all others together are kept
        at most 1, which the paper asks α to ensure. Where they are capped, as they mostly are with
        these defaults, the client's own model has weight 0.
      sigma: ``σ`` > 0, the scale of squared distances; a client's own model keeps some weight only
        where ``Σ_j ξ_ij < 1``, that is with σ above ``α`` times the number of clients.
      lam: ``λ``, the pull to the cloud model.

    References:
      Huang et al., "Personalized Cross-Silo Federated Learning on Non-IID Data", arXiv:2007.03797,
      Algorithm 1, equations 5 and 6. Departures: T steps of SGD, from u_i, instead of an exact
      minimum (PFLlib starts from w_i); the sum of weights is capped.
    """
    positive("fedamp", alpha=alpha, sigma=sigma, num_clients=num_clients)
    nonnegative("fedamp", lam=lam)
    tx = optax.chain(proximal(lam / alpha), local_tx(learning_rate, local_optimizer))
    loss = loss or cross_entropy(model)
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def cloud_models(models):
        vectors = jnp.concatenate([a.reshape(num_clients, -1) for a in jax.tree.leaves(models)], 1)
        # One client at a time: all differences at once would take K models for each of K clients.
        distances = jax.lax.map(lambda w: jnp.sum((vectors - w[None]) ** 2, axis=1), vectors)
        attention = alpha * jnp.exp(-distances / sigma) / sigma
        # Not to itself: what a model keeps of itself is what others leave, below.
        attention *= 1 - jnp.eye(num_clients)
        # Without the cap the own weight below could be negative, and models would run away.
        attention /= jnp.maximum(attention.sum(1, keepdims=True), 1)
        weights = attention + jnp.diag(1 - attention.sum(1))
        return weighted_sum(weights, models)

    def client_update(cloud, client, data, key):
        result = local.train(cloud, tx.init(cloud), data, key, centre=cloud)
        return ClientOutput(result.params, client, result.params, result.steps, result.metrics)

    def server_update(server, aggregate):
        inbox = aggregate.value
        # Who is absent keeps the model that it last sent, and still attracts others.
        models = with_answers(server.models, inbox.messages, inbox)
        return ServerState(models, cloud_models(models))

    def init(params, key):
        models = repeated(params, num_clients)
        return ServerState(models, clouds=models), ()

    return model_each(client_update, server_update, init, models=lambda server: server.clouds)
