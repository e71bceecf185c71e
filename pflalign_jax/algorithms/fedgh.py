"""FedGH: the server trains one head on the clients' mean features; bodies stay with clients."""

import operator

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import federated
from pflalign_jax.algorithms.partly_local import ClientState, shared_in_part
from pflalign_jax.federated import GATHERED, Algorithm, ClientOutput
from pflalign_jax.models import Model, cross_entropy, example_losses
from pflalign_jax.models.base import dense, mean_of_real, single_head


def fedgh(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_classes: int,
    server_learning_rate: float = 0.1,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedGH.

    A client takes T steps of SGD on its own body and the received head, and sends the mean features
    of each of its classes. The server takes a step of SGD for each client on the mean cross-entropy
    of the head on these; heads that clients trained are not sent.

    Args:
      model: what is trained, with a single dense head.
      learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_classes: C, the number of labels.
      server_learning_rate: step size of the server's SGD.

    References:
      Yi et al., "FedGH: Heterogeneous Federated Learning with Generalized Global Header",
      arXiv:2303.13137, Algorithm 1. Departures: all clients have the same architecture; a step of
      the server takes all classes of a client, and clients come in the order of their ids.
    """
    head, loss = single_head("fedgh", model), cross_entropy(model)
    tx = federated.local_tx(learning_rate, local_optimizer)
    server_tx = federated.local_sgd(server_learning_rate, "server_learning_rate")
    local = federated.local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def body_mask(params):
        return jax.tree.map(operator.not_, federated.part_mask(params, (head,)))

    def client_update(server, client, data, key):
        start = federated.combine_params(client.own, server.shared)
        result = local.train(start, tx.init(start), data, key)
        features = federated.class_features(model, result.params, data, num_classes, batch_size)
        known = (features.counts > 0).astype(jnp.float32)
        body, _ = federated.partition_params(result.params, body_mask(start))
        message, state = (features.means, known), ClientState(body)
        return ClientOutput(message, state, result.params, result.steps, result.metrics)

    def server_step(layer, message):
        def server_loss(layer, means, known):
            labels = jnp.arange(num_classes, dtype=jnp.int32)
            return mean_of_real(example_losses(dense(layer, means), labels), known)

        gradient = jax.grad(server_loss)(layer, *message)
        updates, _ = server_tx.update(gradient, server_tx.init(layer))
        return optax.apply_updates(layer, updates), None

    def server_update(server, aggregate):
        inbox = aggregate.value
        # In an order that does not depend on devices. Who is absent knows no class: no step.
        order = jnp.argsort(inbox.ids)
        ordered = jax.tree.map(lambda a: a[order], inbox.messages)
        layer, _ = jax.lax.scan(server_step, server.shared[head], ordered)
        return server._replace(shared={**server.shared, head: layer})

    return shared_in_part(client_update, body_mask)._replace(
        server_update=server_update, aggregation=GATHERED, classes_only="fedgh"
    )
