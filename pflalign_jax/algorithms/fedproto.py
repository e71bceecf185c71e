"""FedProto: clients share the means of their features of each class, and no parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pflalign_jax import models
from pflalign_jax.federated.algorithm import Algorithm, ClientOutput
from pflalign_jax.federated.class_statistics import class_features
from pflalign_jax.federated.local import local_sgd, local_training
from pflalign_jax.federated.validation import nonnegative


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
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedProto.

    A client descends from its own model on ``F_i + λ mean (z - c_y)²`` with features z and the
    global prototype c_y of their class; the message is its own mean features of each class,
    weighted by examples of the class. A client's model predicts the class of the nearest
    prototype; that is a dense head with kernel 2 c and bias -‖c‖².

    Args:
      model: one with a single dense head.
      learning_rate, local_epochs, batch_size: as in `fedavg`.
      num_classes: C.
      lam: ``λ``; the paper takes 0.1 to 1 by dataset.

    References:
      Tan et al., "FedProto: Federated Prototype Learning across Heterogeneous Clients",
      arXiv:2105.00243, Algorithm 1. Departures: the distance is squared and averaged over features,
      as in the authors' code; prototypes are weighted by
      examples, in the authors' code clients count equally;
      all known classes are candidates, there the client's own only; before any prototype is known a
      model predicts with its own head.
    """
    nonnegative("fedproto", lam=lam)
    head = models.single_head("fedproto", model)
    tx = local_sgd(learning_rate)

    def personal(server, params):
        """Return the model with prototypes for a head, where some are known."""
        unknown = -1e9 * (1 - server.known)
        nearest = {"kernel": 2 * server.mean.T, "bias": unknown - (server.mean**2).sum(1)}
        some = server.known.sum() > 0
        layer = jax.tree.map(lambda a, b: jnp.where(some, a, b), nearest, params[head])
        return {**params, head: layer}

    def client_update(server, client, data, key):
        def loss(params, batch, key):
            del key
            z, y, mask = models.labelled_features(model, params, batch)
            apart = ((z - server.mean[y]) ** 2).mean(-1) * server.known[y]
            losses = models.example_losses(models.dense(params[head], z), y)
            return models.mean_of_real(losses + lam * apart, mask)

        local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)
        result = local.train(client.params, tx.init(client.params), data, key)
        found = class_features(model, result.params, data, num_classes, batch_size)
        examples = jnp.maximum(data.size, 1).astype(jnp.float32)
        message = (found.sums / examples, found.counts / examples)
        params = personal(server, result.params)
        return ClientOutput(
            message, ClientState(result.params), params, result.steps, result.metrics
        )

    def server_update(server, aggregate):
        mean = aggregate.value
        sums, counts = mean
        seen = counts > 0
        fresh = sums / jnp.where(seen, counts, 1)[:, None]
        return ServerState(
            jnp.where(seen[:, None], fresh, server.mean), jnp.maximum(server.known, seen)
        )

    def init(params, key):
        del key
        width = params[head]["kernel"].shape[0]
        none = ServerState(jnp.zeros((num_classes, width)), jnp.zeros(num_classes))
        return none, ClientState(params)

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda server, client, data: personal(server, client.params),
        global_params=None,
    )
