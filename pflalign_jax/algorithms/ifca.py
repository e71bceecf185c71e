"""IFCA: k models on the server; every client trains the one that fits its data best."""

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import federated
from pflalign_jax.federated import Aggregation, Algorithm, ClientOutput, Loss, num_bytes
from pflalign_jax.models import Model, cross_entropy


def ifca(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_clusters: int = 2,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return IFCA; the server's state is its k models, leaves ``[k, ...]``.

    A client trains the model of lowest loss on its own examples and sends which, and what it has
    moved. Every model moves by the mean over the clients that chose it. k = 1 is FedAvg.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_clusters: k, the number of models; the paper takes 2 to 4.

    References:
      Ghosh et al., "An Efficient Framework for Clustered Federated Learning", arXiv:2006.04088,
      Algorithm 1, option II. Departure: means are weighted by examples, there by clients.
    """
    federated.validation.at_least_one("ifca", num_clusters=num_clusters)
    loss, tx = loss or cross_entropy(model), federated.local_tx(learning_rate, local_optimizer)
    local = federated.local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def choose(models, data):
        chosen = jax.vmap(lambda w: federated.client_loss(loss, w, data))(models).argmin()
        return jax.nn.one_hot(chosen, num_clusters), jax.tree.map(lambda a: a[chosen], models)

    def client_update(models, client, data, key):
        one_hot, w = choose(models, data)
        result = local.train(w, tx.init(w), data, key)
        delta = optax.tree.sub(result.params, w)
        message = jax.vmap(optax.tree.scale, (0, None))(one_hot, delta), one_hot
        return ClientOutput(message, (), result.params, result.steps, result.metrics)

    def server_update(models, aggregate):
        delta, share = aggregate.value  # a model's share of the examples: 0 if nobody chose it
        return jax.vmap(optax.tree.add_scale)(models, 1 / jnp.where(share > 0, share, 1), delta)

    return Algorithm(
        init=lambda params, key: (federated.first_models(params, key, num_clusters), ()),
        client_update=client_update,
        server_update=server_update,
        personal_params=lambda models, client, data: choose(models, data)[1],
        global_params=None,
        aggregation=Aggregation(message_bytes=lambda m: num_bytes(m) // num_clusters),
    )
