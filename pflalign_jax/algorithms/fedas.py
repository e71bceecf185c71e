"""FedAS: a received body is first aligned to what the client's own one had learnt."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import federated
from pflalign_jax.algorithms.partly_local import shared_in_part
from pflalign_jax.federated import MEAN_BY_CLIENTS, Algorithm, ClientOutput
from pflalign_jax.models import Model, cross_entropy
from pflalign_jax.models.base import labelled_features, mean_of_real, single_head


class ClientState(NamedTuple):
    """What a client keeps.

    Attributes:
      own: its head.
      body: its body after its last round.
      trained: float32 scalar, 1 once there was one.
    """

    own: Any
    body: Any
    trained: jax.Array


def fedas(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_classes: int,
    align_learning_rate: float = 0.01,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedAS.

    A round of one client: with the mean features c_y of each class under its last body, an epoch of
    SGD on ``mean (z - c_y)²`` aligns the received body; then T steps on body and own head. The
    server averages what bodies have moved, weighted by ``Σ ‖∇F(batch)‖²`` over the client's
    batches, an estimate of the trace of the Fisher information.

    Args:
      model: what is trained, with a single dense head.
      learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_classes: C, the number of labels.
      align_learning_rate: step size of the alignment, which takes steps of SGD; 0.01 in PFLlib.

    References:
      Yang, Huang and Ye, "FedAS: Bridging Inconsistency in Personalized Federated Learning", CVPR
      2024; what the paper leaves open (one epoch of alignment, the trace by batches) is as in
      PFLlib. Departures: the alignment's loss is the mean over a batch, there the sum over labels
      of their means; a batch that is not full counts by its share; a client's first round has no
      alignment.
    """
    head, loss = single_head("fedas", model), cross_entropy(model)
    tx = federated.local_tx(learning_rate, local_optimizer)
    align_tx = federated.local_sgd(align_learning_rate, "align_learning_rate")
    training = federated.local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def own_mask(params):
        return federated.part_mask(params, (head,))

    def aligned(received, client, data, key):
        """Return the received body after its alignment."""
        last = federated.combine_params(client.own, client.body)
        means = federated.class_features(model, last, data, num_classes, batch_size).means

        def distance(body, batch, key):
            z, y, mask = labelled_features(model, federated.combine_params(client.own, body), batch)
            # Who never trained has nothing to align to.
            return client.trained * mean_of_real(jnp.mean((z - means[y]) ** 2, axis=1), mask)

        local = federated.local_training(distance, align_tx, 1, batch_size, elementwise=True)
        return local.train(received, align_tx.init(received), data, key)

    def client_update(server, client, data, key):
        align_key, local_key, fisher_key = jax.random.split(key, 3)
        start = aligned(server.shared, client, data, align_key)
        whole = federated.combine_params(client.own, start.params)
        result = training.train(whole, tx.init(whole), data, local_key)

        def squared_gradient(params, batch, key):
            return optax.tree.norm(jax.grad(loss)(params, batch, key), squared=True)

        # The mean over examples of their batch's value, times the number of batches.
        mean = federated.client_loss(squared_gradient, result.params, data, fisher_key, batch_size)
        trace = mean * data.size / batch_size
        own, body = federated.partition_params(result.params, own_mask(whole))
        moved = optax.tree.scale(trace, optax.tree.sub(body, server.shared))
        state = ClientState(own, body, jnp.ones(()))
        steps = start.steps + result.steps
        return ClientOutput((moved, trace), state, result.params, steps, result.metrics)

    def server_update(server, aggregate):
        moved, trace = aggregate.value  # means over clients, so that their number falls out
        weight = 1 / jnp.where(trace > 0, trace, 1)
        return server._replace(shared=optax.tree.add_scale(server.shared, weight, moved))

    parts = shared_in_part(client_update, own_mask)

    def init(params, key):
        server, client = parts.init(params, key)
        return server, ClientState(client.own, server.shared, jnp.zeros(()))

    return parts._replace(
        init=init,
        server_update=server_update,
        aggregation=MEAN_BY_CLIENTS,
        classes_only="fedas",
    )
