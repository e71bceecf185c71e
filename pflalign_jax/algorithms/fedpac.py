"""FedPAC: features aligned to global centroids, heads combined for each client by a small QP."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import nnls

from pflalign_jax import models
from pflalign_jax.federated.algorithm import GATHERED, Algorithm, ClientOutput
from pflalign_jax.federated.class_statistics import class_features
from pflalign_jax.federated.local import local_sgd, local_training
from pflalign_jax.federated.param_parts import combine_params, part_mask, partition_params
from pflalign_jax.federated.validation import at_least_one, nonnegative


class Shared(NamedTuple):
    """What clients download; of the heads each its own.

    Attributes:
      body: the shared part of the model.
      heads: the combined heads, leaves ``[K, ...]`` in the order of the clients' ids.
      mean: ``[C, F]`` global centroids of each class's features.
      known: ``[C]`` float32, 1 for a class that has been seen.
    """

    body: Any
    heads: Any
    mean: jax.Array
    known: jax.Array


class ServerState(NamedTuple):
    """What the server keeps.

    Attributes:
      shared: as above; after a round's program with the heads as they were sent.
      h: ``[K, C, F]`` the last round's class means of features times class shares.
      variance: ``[K]`` their variances over the number of examples.
      weights: ``[K]`` examples of who took part in the last round, 0 of others.
    """

    shared: Shared
    h: jax.Array
    variance: jax.Array
    weights: jax.Array


def fedpac(
    model: models.Model,
    learning_rate: float = 0.1,
    *,
    num_classes: int,
    num_clients: int,
    head: Sequence[str],
    lam: float = 1.0,
    head_epochs: int = 1,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedPAC, for a few clients (cross-silo): every device holds all clients' messages.

    A round of one client: the head is fitted with the body fixed, then the body with the head
    fixed on ``F_i + λ mean (z - c_y)²`` with the global centroid c_y of the features z. The server
    averages bodies and centroids, and gives client i the head ``Σ_j α_j head_j`` with α on the
    simplex minimising ``Σ_j α_j² V_j + ‖Σ_j α_j (H_i - H_j)‖²``; H_j are the features' class means
    times class shares, V_j their variance over n_j, both before training.

    Args:
      model: one with a single dense head.
      learning_rate: of SGD, for both.
      num_classes: C.
      num_clients: K, the identities ``0..K-1`` of all clients.
      head: names of the layers that are combined, see `pflalign_jax.federated.part_mask`.
      lam: ``λ``; the authors' code takes 1.
      head_epochs: passes over the data for the head.
      local_epochs: passes over the data for the body; the paper takes 5.
      batch_size: examples per step.

    References:
      Xu, Tong and Huang, "Personalized Federated Learning with Feature Alignment and Classifier
      Collaboration", arXiv:2212.01776, Algorithm 1. Departures: one step size and neither momentum
      nor weight decay for head and body; small α are kept; a class without a centroid is not
      aligned, and one that is absent in a round keeps its last. A client that never trained gets
      the mean of all heads.
    """
    nonnegative("fedpac", lam=lam)
    layer = models.single_head("fedpac", model)
    at_least_one("fedpac", num_clients=num_clients, head_epochs=head_epochs)
    tx, objective = local_sgd(learning_rate), models.cross_entropy(model)
    work = {"batch_size": batch_size, "elementwise": True}

    def client_update(received, client, data, key):
        def head_loss(own, batch, key):
            return objective(combine_params(own, received.body), batch, key)

        def body_loss(body, batch, key):
            del key
            params = combine_params(fitted.params, body)
            z, y, mask = models.labelled_features(model, params, batch)
            apart = ((z - received.mean[y]) ** 2).mean(-1) * received.known[y]
            losses = models.example_losses(models.dense(params[layer], z), y)
            return models.mean_of_real(losses + lam * apart, mask)

        def features(params):
            return class_features(model, params, data, num_classes, batch_size)

        before = features(combine_params(received.heads, received.body))
        examples = jnp.maximum(before.counts.sum(), 1)
        h = before.sums / examples
        variance = (before.squares / examples - jnp.sum(h * h)) / examples
        train_head = local_training(head_loss, tx, local_epochs=head_epochs, **work).train
        train_body = local_training(body_loss, tx, local_epochs=local_epochs, **work).train
        fitted = train_head(received.heads, tx.init(received.heads), data, key)
        again = jax.random.fold_in(key, 1)
        result = train_body(received.body, tx.init(received.body), data, again)
        params = combine_params(fitted.params, result.params)
        after = features(params)
        delta = optax.tree.sub(result.params, received.body)
        message = (delta, fitted.params, h, variance, after.sums, after.counts)
        steps = fitted.steps + result.steps
        return ClientOutput(message, client, params, steps, result.metrics)

    def personal_params(received, client, data):
        del client, data
        return combine_params(received.heads, received.body)

    def server_update(server, aggregate):
        inbox = aggregate.value
        last, weights = server.shared, inbox.weights
        delta, heads, h, variance, sums, counts = inbox.messages
        shares, here = weights / weights.sum(), (weights > 0).astype(jnp.float32)
        moved = jax.tree.map(lambda a: jnp.tensordot(shares, a, 1), delta)
        place = jnp.where(weights > 0, inbox.ids, num_clients)
        heads, h, variance, weights = jax.tree.map(
            lambda a, b: a.at[place].set(b, mode="drop"),
            (last.heads, server.h, server.variance, jnp.zeros(num_clients)),
            (heads, h, variance, weights),
        )
        sums, counts = (jnp.tensordot(here, a, 1) for a in (sums, counts))
        seen = counts > 0
        fresh = sums / jnp.where(seen, counts, 1)[:, None]
        mean = jnp.where(seen[:, None], fresh, last.mean)
        body = optax.tree.add(last.body, moved)
        shared = Shared(body, heads, mean, jnp.maximum(last.known, seen))
        return ServerState(shared, h, variance, weights)

    def between_rounds(server):
        alpha = combinations(*jax.tree.map(np.asarray, server[1:]))
        heads = jax.tree.map(lambda a: np.tensordot(alpha, a, 1), server.shared.heads)
        return server._replace(shared=server.shared._replace(heads=heads))

    def deliver(shared, client_id):
        known = client_id < num_clients
        heads = jax.tree.map(
            lambda a: jnp.where(known, a[jnp.where(known, client_id, 0)], a.mean(0)), shared.heads
        )
        return shared._replace(heads=heads)

    def init(params, key):
        del key
        own, body = partition_params(params, part_mask(params, head))
        heads = jax.tree.map(lambda a: jnp.broadcast_to(a, (num_clients, *a.shape)), own)
        mean = jnp.zeros((num_classes, params[layer]["kernel"].shape[0]))
        shared, none = Shared(body, heads, mean, jnp.zeros(num_classes)), jnp.zeros(num_clients)
        return ServerState(shared, jnp.zeros((num_clients, *mean.shape)), none, none), ()

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=personal_params,
        global_params=None,
        broadcast=lambda server: server.shared,
        deliver=deliver,
        between_rounds=between_rounds,
        aggregation=GATHERED,
    )


def combinations(h: np.ndarray, variance: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``[K, K]`` float32 whose row i has client i's α, on the simplex.

    With ``αᵀ Q α = ‖L α‖²`` the minimum over the simplex is that of ``‖L β‖² + (1ᵀβ - 1)²`` over
    ``β >= 0``, scaled to the sum 1: a non-negative least squares problem, SciPy's.

    Args:
      h, variance, weights: as in `ServerState`; who is absent keeps its head, and lends it to none.
    """
    there = np.flatnonzero(weights > 0)
    points = h[there].reshape(len(there), -1).astype(float)
    noise = np.diag(np.maximum(variance[there].astype(float), 0))
    alpha = np.diag((weights == 0).astype(np.float32))
    for i, own in zip(there, points, strict=True):
        values, vectors = np.linalg.eigh(noise + (own - points) @ (own - points).T)
        factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        target = np.append(np.zeros(len(there)), 1)
        beta, _ = nnls(np.vstack([factor, np.ones(len(there))]), target)
        alpha[i, there] = beta / beta.sum()
    return alpha
