"""FeSEM: k centres on the server; every client is given the one that is nearest to its model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import update_of_received
from pflalign_jax.algorithms.per_client import model_each, repeated, with_answers
from pflalign_jax.federated import Algorithm, Loss, local_tx
from pflalign_jax.federated.validation import at_least_one
from pflalign_jax.models import Model, cross_entropy


class ServerState(NamedTuple):
    """What the server keeps.

    Attributes:
      centres: leaves ``[k, ...]``.
      nearest: ``[K]`` int32, each client's centre, in the order of the clients' ids.
    """

    centres: Any
    nearest: jax.Array


def fesem(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    num_clusters: int = 3,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FeSEM, for a few clients (cross-silo): every device holds all clients' models.

    A client trains its centre to the model w_i and sends what this has moved. The server, as in
    k-means: every centre becomes the mean of the models of its clients, every client goes to the
    centre that is nearest to w_i, and centres become means once more. k = 1 is FedAvg. A client
    that never trained gets the mean of the centres of all clients.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_clients: K, the number of all clients, whose identities are ``0..K-1``.
      num_clusters: k, the number of centres, >= 1.

    References:
      Xie et al., "Multi-Center Federated Learning", arXiv:2005.01026, Algorithm 1. Departures:
      clients start in clusters drawn at random around one first model; who is absent stays in its
      cluster, whose centre is the mean of those that answered.
    """
    at_least_one("fesem", num_clients=num_clients, num_clusters=num_clusters)
    loss, tx = loss or cross_entropy(model), local_tx(learning_rate, local_optimizer)

    def means(centres, nearest, models, weights):
        """Return the centres' means, weighted by examples; a centre without clients stays."""
        weights = weights[:, None] * jax.nn.one_hot(nearest, num_clusters)
        total = weights.sum(0)
        shares = weights.T / jnp.maximum(total, 1)[:, None]

        def mean(old, models):
            has_clients = (total > 0).reshape(-1, *[1] * (old.ndim - 1))
            return jnp.where(has_clients, jnp.tensordot(shares, models, 1), old)

        return jax.tree.map(mean, centres, models)

    def server_update(server, aggregate):
        inbox = aggregate.value
        before = server.nearest[inbox.ids]
        models = jax.tree.map(lambda a, d: a[before] + d, server.centres, inbox.messages)
        centres = means(server.centres, before, models, inbox.weights)

        def nearest_to(model):
            def distance(centre):
                return optax.tree.norm(optax.tree.sub(model, centre), squared=True)

            return jax.vmap(distance)(centres).argmin().astype(jnp.int32)

        # One client at a time: all differences at once would take k models for each of them.
        now = jax.lax.map(nearest_to, models)
        nearest = with_answers(server.nearest, now, inbox)
        return ServerState(means(centres, now, models, inbox.weights), nearest)

    def init(params, key):
        drawn = jax.random.permutation(key, jnp.arange(num_clients, dtype=jnp.int32))
        return ServerState(repeated(params, num_clusters), drawn % num_clusters), ()

    def models(server):
        return jax.tree.map(lambda a: a[server.nearest], server.centres)

    update = update_of_received(loss, tx, local_epochs, batch_size)
    return model_each(update, server_update, init, models)
