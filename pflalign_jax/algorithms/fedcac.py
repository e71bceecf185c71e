"""FedCAC: clients share all but their critical parameters, and those with clients like them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import federated
from pflalign_jax.algorithms.per_client import own_row, repeated, weighted_sum, with_answers
from pflalign_jax.federated import GATHERED, Algorithm, ClientOutput, Loss
from pflalign_jax.federated.validation import at_most_one, positive
from pflalign_jax.models import Model, cross_entropy


class ServerState(NamedTuple):
    """What the server keeps.

    Attributes:
      params: the global model ``w``.
      customised: the models ``u_i`` of each client's collaborators, leaves ``[K, ...]`` in the
        order of the clients' ids.
      rounds: int32 scalar, rounds done in which somebody answered; () in what clients receive.
    """

    params: Any
    customised: Any
    rounds: Any


class ClientState(NamedTuple):
    """1 for the client's critical parameters, 0 for others, like the parameters."""

    critical: Any


class Message(NamedTuple):
    """How far the client's model is from the received ``w``, and its critical parameters."""

    moved: Any
    critical: Any


def fedcac(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    tau: float = 0.5,
    beta: float = 100.0,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedCAC, for a few clients (cross-silo).

    A client starts with u_i at its critical parameters and with w at others. After T steps, from v
    to w_i, the share τ of each layer with the largest ``|(w_i - v) w_i|`` is critical. The server
    averages all w_i to w as FedAvg does, and to u_i client i's and those whose critical parameters
    overlap with its in a share of at least ``a + t/β (b - a)``, with the mean a and the largest
    overlap b of the round t, counted from 1. τ = 0 is FedAvg. New clients start at w.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_clients: K, the number of all clients, whose identities are ``0..K-1``.
      tau: ``τ`` in [0, 1], the share of critical parameters; half of them by default.
      beta: ``β`` > 0, the rounds after which only the largest overlap is enough.

    References:
      Wu et al., "Bold but Cautious: Unlocking the Potential of Personalized Federated Learning
      through Cautiously Aggressive Collaboration", arXiv:2309.11103; criterion and thresholds as in
      PFLlib. Departure: who is absent keeps its u_i, and is nobody's collaborator in the round.
    """
    at_most_one("fedcac", tau=tau)
    positive("fedcac", num_clients=num_clients, beta=beta)
    loss, tx = loss or cross_entropy(model), federated.local_tx(learning_rate, local_optimizer)
    local = federated.local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def personal_params(server, client, data):
        return jax.tree.map(
            lambda m, u, w: m * u + (1 - m) * w, client.critical, server.customised, server.params
        )

    def most_critical(start, end):
        """Return 1 for the share of a layer with the largest products, 0 for others."""
        importance = jnp.abs((end - start) * end)
        count = jnp.floor(tau * end.size).astype(jnp.int32)
        least = jnp.sort(importance.ravel())[jnp.minimum(end.size - count, end.size - 1)]
        # What has not moved is not critical, even if there is nothing else.
        chosen = jnp.logical_and(importance >= least, importance > 0)
        return jnp.where(count > 0, chosen, False).astype(end.dtype)

    def client_update(server, client, data, key):
        start = personal_params(server, client, data)
        result = local.train(start, tx.init(start), data, key)
        critical = jax.tree.map(most_critical, start, result.params)
        message = Message(optax.tree.sub(result.params, server.params), critical)
        state = ClientState(critical)
        return ClientOutput(message, state, result.params, result.steps, result.metrics)

    def server_update(server, aggregate):
        inbox, rounds = aggregate.value, optax.safe_increment(server.rounds)
        present = inbox.weights > 0
        joined = collaborators(inbox.messages.critical, present, rounds / beta)
        w, moved = server.params, inbox.messages.moved
        rows = jax.vmap(optax.tree.add, (None, 0))(w, weighted_sum(joined, moved))
        w = optax.tree.add(w, weighted_sum(inbox.shares, moved))
        return ServerState(w, with_answers(server.customised, rows, inbox), rounds)

    def init(params, key):
        server = ServerState(params, repeated(params, num_clients), jnp.int32(0))
        return server, ClientState(optax.tree.zeros_like(params))

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=personal_params,
        global_params=lambda server: server.params,
        broadcast=lambda server: server._replace(rounds=()),
        deliver=lambda server, client_id: server._replace(
            customised=own_row(server.customised, client_id)
        ),
        # Which parameters are critical takes a bit of each.
        aggregation=GATHERED._replace(
            message_bytes=lambda m: federated.num_bytes(m.moved) * 33 // 32
        ),
    )


def collaborators(critical: Any, present: jax.Array, progress: jax.Array) -> jax.Array:
    """Return ``[N, N]`` weights with which clients' models make each customised one; rows sum to 1.

    Args:
      critical: leaves ``[N, ...]``, 1 for critical parameters.
      present: ``[N]`` bool, who answered.
      progress: ``t/β``.
    """
    masks = jnp.concatenate([a.reshape(len(present), -1) for a in jax.tree.leaves(critical)], 1)
    sizes = masks.sum(1)
    differing = sizes[:, None] + sizes[None] - 2 * masks @ masks.T
    overlap = 1 - differing / (2 * jnp.maximum(sizes, 1)[:, None])
    others = jnp.logical_and(present[:, None] & present[None], ~jnp.eye(len(present), dtype=bool))
    mean = jnp.sum(overlap * others) / jnp.maximum(others.sum(), 1)
    largest = jnp.max(overlap, where=others, initial=-jnp.inf)
    threshold = mean + progress * (largest - mean)
    joined = jnp.logical_and(others, overlap >= threshold) + jnp.eye(len(present))
    return joined / joined.sum(1, keepdims=True)
