"""FedBABU: the head is never trained in the federation, only when a client personalises."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from pflalign_jax.federated import Algorithm, ClientOutput, Loss, local_sgd, local_training
from pflalign_jax.federated.param_parts import combine_params, part_mask, partition_params
from pflalign_jax.federated.validation import at_least_one


class ServerState(NamedTuple):
    """The shared body, and the head as it was drawn, the same for all and never changed."""

    body: Any
    head: Any


def fedbabu(
    loss: Loss,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str],
    fine_tune_learning_rate: float = 0.01,
    fine_tune_epochs: int = 1,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedBABU.

    A client trains the body under the first, fixed head and sends what it has moved; the server
    averages bodies. The adapted model has had ``fine_tune_epochs`` of SGD on body and head.

    Args:
      loss, learning_rate, local_epochs, batch_size: as in `fedavg`.
      head: names of the head's layers, see `pflalign_jax.federated.part_mask`.
      fine_tune_learning_rate: of SGD in the personalisation; the authors' code takes 0.001.
      fine_tune_epochs: of the personalisation, not counted as local work; the paper takes 1 to 5.

    References:
      Oh, Kim and Yun, "FedBABU: Toward Enhanced Representation for Federated Image
      Classification", arXiv:2106.06042, Algorithm 1. Departure: SGD has no momentum.
    """
    at_least_one("fedbabu", fine_tune_epochs=fine_tune_epochs)
    tx = local_sgd(learning_rate)
    fine_tx = local_sgd(fine_tune_learning_rate, "fine_tune_learning_rate")
    tuning = local_training(loss, fine_tx, fine_tune_epochs, batch_size, elementwise=True)

    def init(params, key):
        del key
        fixed, body = partition_params(params, part_mask(params, head))
        return ServerState(body, fixed), ()

    def whole(server, client=(), data=None):
        del client, data
        return combine_params(server.head, server.body)

    def client_update(server, client, data, key):
        def body_loss(body, batch, key):
            return loss(combine_params(server.head, body), batch, key)

        training = local_training(body_loss, tx, local_epochs, batch_size, elementwise=True)
        result = training.train(server.body, tx.init(server.body), data, key)
        start, again = whole(server), jax.random.fold_in(key, 1)
        tuned = tuning.train(start, fine_tx.init(start), data, again)
        message = optax.tree.sub(result.params, server.body)
        return ClientOutput(message, client, tuned.params, result.steps, result.metrics)

    def server_update(server, aggregate):
        mean = aggregate.value
        return server._replace(body=optax.tree.add(server.body, mean))

    return Algorithm(init, client_update, server_update, whole, whole)
