"""pFedSim: heads stay with clients, and bodies are averaged by how alike the heads are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import update_of_received
from pflalign_jax.algorithms.per_client import model_each, repeated, weighted_sum, with_answers
from pflalign_jax.federated import Algorithm, Loss, local_tx
from pflalign_jax.federated.validation import at_least_one, nonnegative
from pflalign_jax.models import Model, cross_entropy
from pflalign_jax.models.base import single_head

OWN_LIKENESS = 0.9999
"""Likeness of a client to itself, below 1 so that its weight is finite."""


class ServerState(NamedTuple):
    """What the server keeps.

    Attributes:
      models: the clients' models as last sent, leaves ``[K, ...]`` in the order of their ids;
        the global model in every row while clients warm up.
      likeness: ``[K, K]`` float32 in [0, 1], 0 for clients that have not yet met in a round.
      rounds: int32 scalar, rounds done in which somebody answered.
    """

    models: Any
    likeness: jax.Array
    rounds: jax.Array


def pfedsim(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    warm_up_rounds: int = 10,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return pFedSim, for a few clients (cross-silo): every device holds all clients' models.

    After some rounds of FedAvg a client starts with its own last head and with the mean of all last
    bodies, weighted by ``-log(1 - s_ij)``. s_ij is the mean over classes of the cosines of two
    heads' kernels, at least 0, of the last round in which both took part. A client that never
    trained gets the mean of what the others do.

    Args:
      model: what is trained, with a single dense head.
      learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_clients: K, the number of all clients, whose identities are ``0..K-1``.
      warm_up_rounds: of FedAvg; the paper takes half of all rounds.

    References:
      Tan et al., "pFedSim: Similarity-Aware Model Aggregation Towards Personalized Federated
      Learning", arXiv:2305.15706; the likeness as in FL-bench. Departures: the warm-up is a number
      of rounds, not a share of all; a likeness is at most 0.9999, a client's to itself, as two
      heads that are the same would have an infinite weight; new clients get a mean.
    """
    at_least_one("pfedsim", num_clients=num_clients)
    nonnegative("pfedsim", warm_up_rounds=warm_up_rounds)
    head = single_head("pfedsim", model)
    loss, tx = loss or cross_entropy(model), local_tx(learning_rate, local_optimizer)

    def starts(server):
        """Return the models that clients start a round with, leaves ``[K, ...]``."""
        likeness = jnp.where(jnp.eye(num_clients, dtype=bool), OWN_LIKENESS, server.likeness)
        # Two heads that are the same are no more alike than a client is to itself.
        weights = -jnp.log(1 - jnp.minimum(likeness, OWN_LIKENESS))
        weights /= weights.sum(1, keepdims=True)
        mixed = weighted_sum(weights, server.models)
        return {**mixed, head: server.models[head]}

    def server_update(server, aggregate):
        inbox = aggregate.value
        received = jax.tree.map(lambda a: a[inbox.ids], starts(server))
        sent = optax.tree.add(received, inbox.messages)
        mean = weighted_sum(inbox.shares, sent)
        warm = server.rounds >= warm_up_rounds
        models = jax.tree.map(
            lambda own, shared: jnp.where(warm, own, shared),
            with_answers(server.models, sent, inbox),
            repeated(mean, num_clients),
        )
        kernels = models[head]["kernel"]
        kernels /= jnp.maximum(jnp.linalg.norm(kernels, axis=1, keepdims=True), 1e-12)
        cosines = jnp.einsum("ifc,jfc->ij", kernels, kernels) / kernels.shape[-1]
        here = with_answers(jnp.zeros(num_clients), inbox.weights > 0, inbox)
        met = jnp.logical_and(warm, here[:, None] * here[None] > 0)
        likeness = jnp.where(met, jnp.clip(cosines, 0, 1), server.likeness)
        return ServerState(models, likeness, optax.safe_increment(server.rounds))

    def init(params, key):
        nobody = jnp.zeros((num_clients, num_clients))
        return ServerState(repeated(params, num_clients), nobody, jnp.int32(0)), ()

    update = update_of_received(loss, tx, local_epochs, batch_size)
    return model_each(update, server_update, init, models=starts)
