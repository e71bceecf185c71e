"""FedDBE: what is peculiar to a client's features is kept in a vector of its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

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


class ServerState(NamedTuple):
    """The global model, and the consensus mean of features.

    Attributes:
      params: ``w``.
      mean: ``[F]``, mean features of the first round's local models over their examples.
      known: float32 scalar, 1 once it is.
    """

    params: Any
    mean: jax.Array
    known: jax.Array


class ClientState(NamedTuple):
    """The client's bias of features, ``[F]``."""

    bias: jax.Array


class Pair(NamedTuple):
    """What a client trains."""

    model: Any
    bias: jax.Array


def feddbe(
    model: models.Model,
    learning_rate: float = 0.1,
    *,
    kappa: float = 1.0,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedDBE: FedAvg with a domain bias eliminator.

    A client predicts from ``z + b_i``, its features plus its own bias, and descends on
    ``F_i + κ ‖mean of z over the batch - z̄‖²`` (mean over features) for model and bias together.
    z̄ is agreed upon once. The server averages models as FedAvg does. In a dense head the bias of
    features is a bias of logits.

    Args:
      model: what is trained, with a single dense head.
      learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      kappa: ``κ``, the pull of mean features to the consensus; the paper chooses among 0.001 to
        100. The authors' code halves the square: its 50 for the CNN is 25 here.

    References:
      Zhang et al., "Eliminating Domain Bias for Federated Learning in Representation Space",
      arXiv:2311.14975, Algorithm 1 with momentum 1. Departure: clients agree on z̄ with the first
      round's messages, so that the first round has no regularisation; the authors train all clients
      locally for that before the first round.
    """
    nonnegative("feddbe", kappa=kappa)
    head = single_head("feddbe", model)
    tx = local_tx(learning_rate, local_optimizer)

    def personal_model(params, bias):
        # W (z + b) is W z + W b: a bias of features is one of logits.
        layer = params[head]
        return {**params, head: {**layer, "bias": layer["bias"] + bias @ layer["kernel"]}}

    def client_update(server, client, data, key):
        def loss(pair, batch, key):
            z, y, mask = labelled_features(model, pair.model, batch)
            logits = dense(pair.model[head], z + pair.bias[None])
            examples = jnp.maximum(jnp.sum(mask), 1)
            gap = jnp.sum(z * mask[:, None], axis=0) / examples - server.mean
            prediction_loss = mean_of_real(models.example_losses(logits, y), mask)
            # `known` is 0 in the first round, when there is no consensus yet.
            return prediction_loss + kappa * server.known * jnp.mean(gap**2)

        local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)
        start = Pair(server.params, client.bias)
        result = local.train(start, tx.init(start), data, key)
        # One class for all labels: the sums are over all of the client's examples.
        features = class_features(model, result.params.model, data, 1, batch_size)
        return ClientOutput(
            message=(optax.tree.sub(result.params.model, server.params), features.means[0]),
            state=ClientState(result.params.bias),
            params=personal_model(*result.params),
            steps=result.steps,
            metrics=result.metrics,
        )

    def server_update(server, aggregate):
        delta, mean = aggregate.value
        agreed = jnp.where(server.known > 0, server.mean, mean)
        params = optax.apply_updates(server.params, delta)
        return ServerState(params, agreed, jnp.ones_like(server.known))

    def init(params, key):
        zeros = jnp.zeros(params[head]["kernel"].shape[0])
        return ServerState(params, mean=zeros, known=jnp.zeros(())), ClientState(zeros)

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda server, client, data: personal_model(server.params, client.bias),
        global_params=lambda server: server.params,
        classes_only="feddbe",
    )
