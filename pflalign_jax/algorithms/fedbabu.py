"""FedBABU: the head is never trained in the federation, only when a client personalises."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from pflalign_jax.federated import (
    Algorithm,
    ClientOutput,
    Loss,
    combine_params,
    local_training,
    local_tx,
    part_mask,
    partition_params,
)
from pflalign_jax.federated.validation import at_least_one, head_layers
from pflalign_jax.models import Model, cross_entropy


class ServerState(NamedTuple):
    """The shared body, and the head as it was drawn, the same for all and never changed."""

    body: Any
    head: Any


def fedbabu(
    model: Model,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str] | None = None,
    fine_tune_learning_rate: float = 0.01,
    fine_tune_epochs: int = 1,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedBABU.

    A client trains the body under the first, fixed head and sends what it has moved; the server
    averages bodies. The adapted model has had ``fine_tune_epochs`` of SGD on body and head.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      head: names of the layers that are fixed (`pflalign_jax.federated.part_mask`); None: the
        model's head.
      fine_tune_learning_rate: step size of the personalisation; the authors' code takes 0.001.
      fine_tune_epochs: passes over the data in the personalisation, which are not counted as local
        work; the paper takes 1 to 5.

    References:
      Oh, Kim and Yun, "FedBABU: Toward Enhanced Representation for Federated Image
      Classification", arXiv:2106.06042, Algorithm 1. Departure: SGD has no momentum.
    """
    at_least_one("fedbabu", fine_tune_epochs=fine_tune_epochs)
    layers = head_layers("fedbabu", model, head)
    loss = loss or cross_entropy(model)
    tx = local_tx(learning_rate, local_optimizer)
    fine_tx = local_tx(fine_tune_learning_rate, local_optimizer, "fine_tune_learning_rate")
    tuning = local_training(loss, fine_tx, fine_tune_epochs, batch_size, elementwise=True)

    def init(params, key):
        fixed_head, body = partition_params(params, part_mask(params, layers))
        return ServerState(body, fixed_head), ()

    def whole_model(server):
        return combine_params(server.head, server.body)

    def client_update(server, client, data, key):
        def body_loss(body, batch, key):
            # The head is no argument, so no optimiser ever touches it.
            return loss(combine_params(server.head, body), batch, key)

        body_key, tuning_key = jax.random.split(key)
        training = local_training(body_loss, tx, local_epochs, batch_size, elementwise=True)
        result = training.train(server.body, tx.init(server.body), data, body_key)
        # What is tuned is the received model: the one that a client would use after training.
        start = whole_model(server)
        tuned = tuning.train(start, fine_tx.init(start), data, tuning_key)
        message = optax.tree.sub(result.params, server.body)
        return ClientOutput(message, client, tuned.params, result.steps, result.metrics)

    def server_update(server, aggregate):
        return server._replace(body=optax.tree.add(server.body, aggregate.value))

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda server, client, data: whole_model(server),
        global_params=whole_model,
        adapts_with="fine_tune_learning_rate",
    )
