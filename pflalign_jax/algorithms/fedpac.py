"""FedPAC: features aligned to global centroids, heads combined for each client by a small QP."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pflalign_jax import models
from pflalign_jax.algorithms.fedproto import new_means
from pflalign_jax.algorithms.per_client import own_row, repeated, weighted_sum, with_answers
from pflalign_jax.federated import (
    GATHERED,
    Aggregate,
    Algorithm,
    ClassFeatures,
    ClientOutput,
    class_features,
    combine_params,
    local_training,
    local_tx,
    part_mask,
    partition_params,
)
from pflalign_jax.federated.validation import at_least_one, head_layers, nonnegative
from pflalign_jax.models.base import dense, labelled_features, mean_of_real, single_head


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


class Statistics(NamedTuple):
    """What the clients last said of their features, in the order of their ids.

    Attributes:
      h: ``[K, C, F]`` class means of features times class shares.
      variance: ``[K]`` their variances over the number of examples.
      weights: ``[K]`` examples of who took part in the last round, 0 of others.
    """

    h: jax.Array
    variance: jax.Array
    weights: jax.Array


class ServerState(NamedTuple):
    """What the server keeps; after a round's program ``shared`` has the heads as they were sent."""

    shared: Shared
    statistics: Statistics


class Message(NamedTuple):
    """What a client sends.

    Attributes:
      delta: what the body has moved.
      head: the client's own, fitted.
      h, variance: as in `Statistics`.
      sums, counts: ``[C, F]`` and ``[C]``, of its features and examples after training.
    """

    delta: Any
    head: Any
    h: jax.Array
    variance: jax.Array
    sums: jax.Array
    counts: jax.Array


def fedpac(
    model: models.Model,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    num_classes: int,
    head: Sequence[str] | None = None,
    lam: float = 1.0,
    head_epochs: int = 1,
    local_optimizer: str = "sgd",
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
      model: what is trained, with a single dense head.
      learning_rate: step size, for head and body.
      num_clients: K, the number of all clients, whose identities are ``0..K-1``.
      num_classes: C, the number of labels.
      head: names of the layers that are combined (`pflalign_jax.federated.part_mask`); None: the
        model's head.
      lam: ``λ``, the pull of features to the global centroids; the authors' code takes 1.
      head_epochs: passes over the data for the head; the paper takes 1.
      local_epochs: passes over the data for the body; the paper takes 5.
      local_optimizer, batch_size: as in `fedavg`; the optimiser of head and body.

    References:
      Xu, Tong and Huang, "Personalized Federated Learning with Feature Alignment and Classifier
      Collaboration", arXiv:2212.01776, Algorithm 1. Departures: one step size and neither momentum
      nor weight decay for head and body; small α are kept; a class without a centroid is not
      aligned, and one that is absent in a round keeps its last. A client that never trained gets
      the mean of all heads.
    """
    nonnegative("fedpac", lam=lam)
    layer = single_head("fedpac", model)
    head_names = head_layers("fedpac", model, head)
    at_least_one("fedpac", num_clients=num_clients, head_epochs=head_epochs)
    tx, objective = local_tx(learning_rate, local_optimizer), models.cross_entropy(model)
    work = {"batch_size": batch_size, "elementwise": True}

    def client_update(received, client, data, key):
        received_head = received.heads  # its own: `deliver` has taken the client's row

        def head_loss(own_head, batch, key):
            return objective(combine_params(own_head, received.body), batch, key)

        def body_loss(body, batch, key):
            params = combine_params(fitted.params, body)
            z, y, mask = labelled_features(model, params, batch)
            distances = ((z - received.mean[y]) ** 2).mean(-1) * received.known[y]
            losses = models.example_losses(dense(params[layer], z), y)
            return mean_of_real(losses + lam * distances, mask)

        def features(params):
            return class_features(model, params, data, num_classes, batch_size)

        h, variance = shares_and_variance(features(combine_params(received_head, received.body)))
        head_key, body_key = jax.random.split(key)
        train_head = local_training(head_loss, tx, local_epochs=head_epochs, **work).train
        train_body = local_training(body_loss, tx, local_epochs=local_epochs, **work).train
        fitted = train_head(received_head, tx.init(received_head), data, head_key)
        result = train_body(received.body, tx.init(received.body), data, body_key)
        params = combine_params(fitted.params, result.params)

        after = features(params)  # the centroids are of the trained model, h is of the received
        delta = optax.tree.sub(result.params, received.body)
        message = Message(delta, fitted.params, h, variance, after.sums, after.counts)
        steps = fitted.steps + result.steps
        return ClientOutput(message, client, params, steps, result.metrics)

    def init(params, key):
        first_head, body = partition_params(params, part_mask(params, head_names))
        mean = jnp.zeros((num_classes, params[layer]["kernel"].shape[0]))
        # Weights of 0: before the first round there is nobody to combine.
        zeros = jnp.zeros(num_clients)
        heads = repeated(first_head, num_clients)
        return ServerState(
            Shared(body, heads, mean, known=jnp.zeros(num_classes)),
            Statistics(repeated(mean, num_clients), variance=zeros, weights=zeros),
        ), ()

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda shared, client, data: combine_params(shared.heads, shared.body),
        global_params=None,
        broadcast=lambda server: server.shared,
        deliver=deliver,
        between_rounds=combine_heads,  # on the host: SciPy solves the QP
        aggregation=GATHERED,
        classes_only="fedpac",
    )


def shares_and_variance(features: ClassFeatures) -> tuple[jax.Array, jax.Array]:
    """Return a client's ``h`` ``[C, F]`` and its variance, a scalar, as in `Statistics`."""
    examples = jnp.maximum(features.counts.sum(), 1)
    h = features.sums / examples
    return h, (features.squares / examples - jnp.sum(h * h)) / examples


def server_update(server: ServerState, aggregate: Aggregate) -> ServerState:
    """Average bodies and centroids; heads and statistics of those that answered replace theirs."""
    inbox, last = aggregate.value, server.shared
    sent, weights = inbox.messages, inbox.weights
    moved = weighted_sum(inbox.shares, sent.delta)
    # Who is absent keeps its head and statistics, but lends its head to none: weight 0.
    absent = server.statistics._replace(weights=jnp.zeros_like(server.statistics.weights))
    heads, statistics = with_answers(
        (last.heads, absent), (sent.head, Statistics(sent.h, sent.variance, weights)), inbox
    )
    answered = (weights > 0).astype(jnp.float32)
    sums, counts = (jnp.tensordot(answered, a, 1) for a in (sent.sums, sent.counts))
    mean, known = new_means(last.mean, last.known, sums, counts)
    return ServerState(Shared(optax.tree.add(last.body, moved), heads, mean, known), statistics)


def deliver(shared: Shared, client_id: jax.Array) -> Shared:
    """Return what a client downloads: of the heads its own."""
    return shared._replace(heads=own_row(shared.heads, client_id))


def combine_heads(server: ServerState) -> ServerState:
    """Return the server's state with every client's combined head in place of the one it sent."""
    alpha = combinations(*jax.tree.map(np.asarray, server.statistics))
    heads = jax.tree.map(lambda a: np.tensordot(alpha, a, 1), server.shared.heads)
    return server._replace(shared=server.shared._replace(heads=heads))


def combinations(h: np.ndarray, variance: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``[K, K]`` float32 whose row i has client i's α, on the simplex.

    With ``αᵀ Q α = ‖L α‖²`` the minimum over the simplex is that of ``‖L β‖² + (1ᵀβ - 1)²`` over
    ``β >= 0``, scaled to the sum 1: a non-negative least squares problem, SciPy's.

    Args:
      h, variance, weights: as in `Statistics`; who is absent keeps its head, and lends it to none.
    """
    # SciPy takes a while to start, and nothing else needs it.
    from scipy.optimize import nnls

    present = np.flatnonzero(weights > 0)
    points = h[present].reshape(len(present), -1).astype(float)
    # A variance is a difference of sums, which rounding can make negative.
    noise = np.diag(np.maximum(variance[present].astype(float), 0))
    alpha = np.diag((weights == 0).astype(np.float32))
    for i, point in zip(present, points, strict=True):
        values, vectors = np.linalg.eigh(noise + (point - points) @ (point - points).T)
        factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        target = np.append(np.zeros(len(present)), 1)
        beta, _ = nnls(np.vstack([factor, np.ones(len(present))]), target)
        alpha[i, present] = beta / beta.sum()
    return alpha
