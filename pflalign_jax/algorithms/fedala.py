"""FedALA: every client learns, weight by weight, how much of the global model to take in."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from pflalign_jax.algorithms.averaging import averaged
from pflalign_jax.federated.algorithm import Algorithm, ClientOutput
from pflalign_jax.federated.local import Loss, local_sgd, local_training, projected
from pflalign_jax.federated.param_parts import combine_params, part_mask, partition_params
from pflalign_jax.federated.validation import at_least_one


class ClientState(NamedTuple):
    """The client's model after its last round, and its weights ``W_i`` in [0, 1]."""

    params: Any
    weights: Any


def fedala(
    loss: Loss,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str],
    weight_learning_rate: float = 1.0,
    weight_epochs: int = 1,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedALA.

    A round of one client with last model θ and received model w: lower layers start at w, the
    others at ``θ + W (w - θ)``, after W has taken ``weight_epochs`` of
    ``W = clip(W - η_W ∇F (w - θ), 0, 1)``; then T steps of SGD. The server averages as FedAvg does.

    Args:
      loss, learning_rate, local_epochs, batch_size: as in `fedavg`.
      head: names of the higher layers that are mixed, see `pflalign_jax.federated.part_mask`.
      weight_learning_rate: ``η_W``; the paper uses 1.
      weight_epochs: passes over the data for W in every round; the paper's later rounds take 1.

    References:
      Zhang et al., "FedALA: Adaptive Local Aggregation for Personalized Federated Learning",
      arXiv:2212.01197, Algorithm 1. Departures: W is learnt on all of the client's data, for
      ``weight_epochs`` in every round; the authors take a random 80 % and go on until W converges
      in the second round, then one epoch. They score the mixture after W has met the received
      model; here ``received`` mixes with the last W, ``adapted`` comes after the local steps, too.
    """
    at_least_one("fedala", weight_epochs=weight_epochs)
    tx = local_sgd(learning_rate)
    weight_tx = optax.chain(
        local_sgd(weight_learning_rate, "weight_learning_rate"), projected(0, 1)
    )
    work: dict[str, Any] = {"batch_size": batch_size, "elementwise": True}
    training = local_training(loss, tx, local_epochs=local_epochs, **work)

    def mixed(server, client, weights):
        mask = part_mask(server.params, head)
        (own, _), (received, lower) = (
            partition_params(client.params, mask),
            partition_params(server.params, mask),
        )
        top = jax.tree.map(lambda o, r, a: o + a * (r - o), own, received, weights)
        return combine_params(top, lower)

    def client_update(server, client, data, key):
        def weight_loss(weights, batch, key):
            return loss(mixed(server, client, weights), batch, key)

        learning = local_training(weight_loss, weight_tx, local_epochs=weight_epochs, **work)
        learnt = learning.train(
            client.weights, weight_tx.init(client.weights), data, jax.random.fold_in(key, 1)
        )
        start = mixed(server, client, learnt.params)
        result = training.train(start, tx.init(start), data, key)
        message = optax.tree.sub(result.params, server.params)
        state = ClientState(result.params, learnt.params)
        steps = learnt.steps + result.steps
        return ClientOutput(message, state, result.params, steps, result.metrics)

    def own(params):
        weights, _ = partition_params(optax.tree.ones_like(params), part_mask(params, head))
        return ClientState(params, weights)

    return averaged(
        client_update, own, lambda server, client, data: mixed(server, client, client.weights)
    )
