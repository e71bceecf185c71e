"""APPLE: every client learns how much of each client's core model its personal model takes."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import federated
from pflalign_jax.algorithms.per_client import own_row, repeated, weighted_sum, with_moves
from pflalign_jax.federated import GATHERED, Algorithm, ClientOutput, Loss
from pflalign_jax.federated.validation import at_least_one, nonnegative
from pflalign_jax.models import Model, cross_entropy


class ServerState(NamedTuple):
    """What the server keeps.

    Attributes:
      cores: the clients' core models as last sent, leaves ``[K, ...]`` in the order of their ids.
      rounds: int32 scalar, rounds done in which somebody answered.
    """

    cores: Any
    rounds: jax.Array


class ClientState(NamedTuple):
    """The client's relationship vector ``p_i``, ``[K]``."""

    shares: jax.Array


class Pair(NamedTuple):
    """What a client trains: its core model, and its relationship vector."""

    core: Any
    shares: jax.Array


def apple(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    share_learning_rate: float = 0.01,
    mu: float = 0.1,
    pull_rounds: int = 20,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return APPLE, for a few clients (cross-silo): every client downloads all core models.

    A personal model is ``Σ_j p_ij w_j``. A client descends on ``F_i + λ(r) μ/2 ‖p_i - p_0‖²`` for
    its own core model w_i and for p_i, with the others fixed; ``λ(r) = (1 + cos(π r / L)) / 2`` up
    to round L and 0 from there on. Its message is what its core model has moved; p_i is its state.

    Args:
      model, loss, local_epochs, batch_size: as in `fedavg`.
      learning_rate: step size of the core model, whose gradient is p_ii times that of the personal
        model.
      num_clients: K, the number of all clients, whose identities are ``0..K-1``.
      share_learning_rate: step size of p_i, which takes steps of SGD.
      mu: ``μ`` >= 0, the pull of p_i to p_0.
      pull_rounds: L, the rounds after which there is no pull.
      local_optimizer: of the core model, as in `fedavg`.

    References:
      Luo and Wu, "Adapt to Adaptation: Learning Personalization for Cross-Silo Federated Learning",
      arXiv:2110.08394, Algorithm 1. Departures: p_0 is 1/K for all, there the shares of examples;
      all core models are downloaded in every round. A client that never trained, and has no core
      model, starts with p_0 and learns p alone.
    """
    at_least_one("apple", num_clients=num_clients, pull_rounds=pull_rounds)
    nonnegative("apple", mu=mu)
    loss = loss or cross_entropy(model)
    equal = jnp.full(num_clients, 1 / num_clients)

    transforms = {
        "core": federated.local_tx(learning_rate, local_optimizer),
        "shares": federated.local_sgd(share_learning_rate, "share_learning_rate"),
    }
    tx = optax.multi_transform(transforms, Pair("core", "shares"))  # type: ignore[arg-type]

    def client_update(server, client, data, key):
        own_id = data.client_id
        received, is_own = own_row(server.cores, own_id), jax.nn.one_hot(own_id, num_clients)
        progress = jnp.minimum(server.rounds / pull_rounds, 1)
        pull = mu * (1 + jnp.cos(math.pi * progress)) / 2

        def personal(pair):
            # The own core model moves; the others are constants.
            moved = optax.tree.sub(pair.core, received)
            own_share = jnp.vdot(is_own, pair.shares)
            return optax.tree.add_scale(weighted_sum(pair.shares, server.cores), own_share, moved)

        def gradient(pair, batch, key):
            value, grads = jax.value_and_grad(lambda pair: loss(personal(pair), batch, key))(pair)
            return value, grads._replace(shares=grads.shares + pull * (pair.shares - equal))

        local = federated.local_training(
            loss, tx, local_epochs, batch_size, elementwise=True, gradient=gradient
        )
        start = Pair(received, client.shares)
        result = local.train(start, tx.init(start), data, key)
        state, params = ClientState(result.params.shares), personal(result.params)
        message = optax.tree.sub(result.params.core, received)
        return ClientOutput(message, state, params, result.steps, result.metrics)

    def server_update(server, aggregate):
        cores = with_moves(server.cores, aggregate.value)
        return ServerState(cores, optax.safe_increment(server.rounds))

    return Algorithm(
        init=lambda params, key: (
            ServerState(repeated(params, num_clients), jnp.int32(0)),
            ClientState(equal),
        ),
        client_update=client_update,
        server_update=server_update,
        # Everything; but where it is given, ids that are not 0..K-1 are refused.
        deliver=lambda server, client_id: server,
        personal_params=lambda server, client, data: weighted_sum(client.shares, server.cores),
        global_params=None,
        aggregation=GATHERED,
    )
