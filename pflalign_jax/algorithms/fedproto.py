"""FedProto: clients share the means of their features of each class, and no parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pflalign_jax import models
from pflalign_jax.federated import (
    Algorithm,
    ClientOutput,
    class_features,
    local_training,
    local_tx,
)
from pflalign_jax.federated.validation import nonnegative
from pflalign_jax.models.base import dense, labelled_features, mean_of_real, single_head

UNKNOWN = -1e9
"""Bias of a class without a prototype in a personal head: below any real class, and finite."""

MARGIN = 10.0
"""Nats by which the logit of such a class is below the least of the others."""


class ServerState(NamedTuple):
    """Global prototypes.

    Attributes:
      mean: ``[C, F]`` mean features of each class.
      known: ``[C]`` float32, 1 for a class that has been seen.
    """

    mean: jax.Array
    known: jax.Array


class ClientState(NamedTuple):
    """The client's own model."""

    params: Any


def fedproto(
    model: models.Model,
    learning_rate: float = 0.1,
    *,
    num_classes: int,
    lam: float = 1.0,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedProto.

    A client descends from its own model on ``F_i + λ mean (z - c_y)²`` with features z and the
    global prototype c_y of their class; the message is its own mean features of each class,
    weighted by examples of the class. A client's model predicts the class of the nearest
    prototype; that is a dense head with kernel 2 c and bias -‖c‖².

    Args:
      model: what is trained, with a single dense head.
      learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_classes: C, the number of labels.
      lam: ``λ``, the pull of features to their prototypes; the paper takes 0.1 to 1 by dataset.

    References:
      Tan et al., "FedProto: Federated Prototype Learning across Heterogeneous Clients",
      arXiv:2105.00243, Algorithm 1. Departures: the distance is squared and averaged over features,
      as in the authors' code; prototypes are weighted by
      examples, in the authors' code clients count equally;
      all known classes are candidates, there the client's own only; before any prototype is known a
      model predicts with its own head.
    """
    nonnegative("fedproto", lam=lam)
    head = single_head("fedproto", model)
    tx = local_tx(learning_rate, local_optimizer)

    def personal_model(server, params):
        """Return the model with prototypes for a head, where some are known."""
        # ‖z - c‖² is ‖z‖² - (2 c z - ‖c‖²), and ‖z‖² is the same for all classes.
        unknown = UNKNOWN * (1 - server.known)
        nearest = {"kernel": 2 * server.mean.T, "bias": unknown - (server.mean**2).sum(1)}
        some_known = server.known.sum() > 0
        layer = jax.tree.map(lambda a, b: jnp.where(some_known, a, b), nearest, params[head])
        return {**params, head: layer}

    def predict(params, x):
        """Return logits; those of unknown classes are the least, but of the others' size.

        Such a class is never predicted. The paper gives it no probability, with which one example
        of it would make the mean loss of its client infinite.
        """
        logits = model.apply(params, x)
        unknown = logits < UNKNOWN / 2
        least = jnp.min(jnp.where(unknown, jnp.inf, logits), axis=-1, keepdims=True)
        return jnp.where(unknown, least - MARGIN, logits)

    def client_update(server, client, data, key):
        def loss(params, batch, key):
            z, y, mask = labelled_features(model, params, batch)
            distances = ((z - server.mean[y]) ** 2).mean(-1) * server.known[y]
            losses = models.example_losses(dense(params[head], z), y)
            return mean_of_real(losses + lam * distances, mask)

        local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)
        result = local.train(client.params, tx.init(client.params), data, key)
        features = class_features(model, result.params, data, num_classes, batch_size)
        # The server weights messages by examples, which undoes this division.
        examples = jnp.maximum(data.size, 1).astype(jnp.float32)
        return ClientOutput(
            message=(features.sums / examples, features.counts / examples),
            state=ClientState(result.params),
            params=personal_model(server, result.params),
            steps=result.steps,
            metrics=result.metrics,
        )

    def init(params, key):
        width = params[head]["kernel"].shape[0]
        nothing_known = ServerState(jnp.zeros((num_classes, width)), jnp.zeros(num_classes))
        return nothing_known, ClientState(params)

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=lambda server, aggregate: ServerState(
            *new_means(server.mean, server.known, *aggregate.value)
        ),
        personal_params=lambda server, client, data: personal_model(server, client.params),
        global_params=None,
        predict=predict,
        classes_only="fedproto",
    )


def new_means(
    mean: jax.Array, known: jax.Array, sums: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return a round's means of features by class, and which classes are known.

    A class of which nobody had examples in this round keeps its last mean.

    Args:
      mean, known: as in `ServerState`, so far.
      sums: ``[C, F]`` of features.
      counts: ``[C]`` of examples, in any unit, the same as that of ``sums``.
    """
    seen = counts > 0
    new = sums / jnp.where(seen, counts, 1)[:, None]
    return jnp.where(seen[:, None], new, mean), jnp.maximum(known, seen)
