"""FedFomo: every client moves to those other clients' models that fit its own data better."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import federated
from pflalign_jax.algorithms.per_client import own_row, repeated, with_moves
from pflalign_jax.federated import GATHERED, Algorithm, ClientOutput, Loss
from pflalign_jax.federated.validation import at_least_one
from pflalign_jax.models import Model, cross_entropy


class ClientState(NamedTuple):
    """The client's model after its last round, ``w_i``."""

    params: Any


def fedfomo(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    held_out: int = 5,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedFomo, for a few clients (cross-silo): every client downloads all models.

    With the loss F_i on examples held out of its training data, a client weights the others by
    ``max(0, F_i(w_i) - F_i(w_j)) / ‖w_j - w_i‖``, scaled to the sum 1, moves by ``Σ_j weight_j
    (w_j - w_i)``, and takes T steps of SGD on the rest of its data. Its message is what its
    model has moved since the last one. It stays where no model is better than its own.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_clients: K, the number of all clients, whose identities are ``0..K-1``.
      held_out: every so many-th training example is held out, and not trained on; the paper's share
        is a fifth.

    References:
      Zhang et al., "Personalized Federated Learning with First Order Model Optimization",
      arXiv:2012.08565, section 3. Departures: clients download all models, not M that the
      server draws by how useful they were; who is absent stays in the list with its last model. A
      client that never trained starts at the mean of all models. PFLlib takes gains and moves from
      the model before the last T steps, with the trained one among the others.
    """
    at_least_one("fedfomo", num_clients=num_clients)
    if held_out < 2:
        raise ValueError(f"fedfomo: held_out={held_out!r} is not allowed; it must be >= 2")
    loss, tx = loss or cross_entropy(model), federated.local_tx(learning_rate, local_optimizer)
    local = federated.local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def mixed(models, client, data):
        """Return the model that a client starts its local steps with."""
        own, (_, held) = client.params, federated.hold_out(data, held_out)
        own_loss = federated.client_loss(loss, own, held)

        def usefulness(other):
            distance = optax.tree.norm(optax.tree.sub(other, own))
            gain = own_loss - federated.client_loss(loss, other, held)
            return jnp.where(distance > 0, jnp.maximum(gain, 0) / distance, 0)

        # One model at a time: a chunk of clients would hold K models for each of them.
        weights = jax.lax.map(usefulness, models)
        # The server's copy of the own model is a sum of moves, which rounding takes off the model:
        # a gain and a distance of nothing, whose ratio can be larger than all others.
        weights = jnp.where(jnp.arange(num_clients) == data.client_id, 0, weights)
        total = weights.sum()
        weights /= jnp.where(total > 0, total, 1)
        moved = jax.tree.map(lambda a, w: jnp.tensordot(weights, a - w[None], 1), models, own)
        return optax.tree.add(own, moved)

    def client_update(models, client, data, key):
        start, (rest, _) = mixed(models, client, data), federated.hold_out(data, held_out)
        result = local.train(start, tx.init(start), rest, key)
        state = ClientState(result.params)
        message = optax.tree.sub(result.params, own_row(models, data.client_id))
        return ClientOutput(message, state, result.params, result.steps, result.metrics)

    return Algorithm(
        init=lambda params, key: (repeated(params, num_clients), ClientState(params)),
        client_update=client_update,
        server_update=lambda models, aggregate: with_moves(models, aggregate.value),
        personal_params=mixed,
        global_params=None,
        # Everything; but where it is given, ids that are not 0..K-1 are refused.
        deliver=lambda models, client_id: models,
        newcomer=lambda models, data: ClientState(jax.tree.map(lambda a: a.mean(0), models)),
        aggregation=GATHERED,
    )
