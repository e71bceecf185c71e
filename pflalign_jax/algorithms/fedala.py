"""FedALA: every client learns, weight by weight, how much of the global model to take in."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from pflalign_jax.algorithms.averaging import averaged
from pflalign_jax.federated import (
    Algorithm,
    ClientOutput,
    Loss,
    combine_params,
    local_sgd,
    local_training,
    local_tx,
    part_mask,
    partition_params,
    projected,
)
from pflalign_jax.federated.validation import at_least_one, head_layers
from pflalign_jax.models import Model, cross_entropy


class ClientState(NamedTuple):
    """The client's model after its last round, and its weights ``W_i`` in [0, 1]."""

    params: Any
    weights: Any


def fedala(
    model: Model,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str] | None = None,
    weight_learning_rate: float = 1.0,
    weight_epochs: int = 1,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedALA.

    A round of one client with last model θ and received model w: lower layers start at w, the
    others at ``θ + W (w - θ)``, after W has taken ``weight_epochs`` of
    ``W = clip(W - η_W ∇F (w - θ), 0, 1)``; then T steps of SGD. The server averages as FedAvg does.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      head: names of the higher layers that are mixed (`pflalign_jax.federated.part_mask`); None:
        the model's head.
      weight_learning_rate: ``η_W``, the step size of the mixing weights; the paper takes 1.
      weight_epochs: passes over the data for the mixing weights in every round; the paper takes 1
        after its first rounds.

    References:
      Zhang et al., "FedALA: Adaptive Local Aggregation for Personalized Federated Learning",
      arXiv:2212.01197, Algorithm 1. Departures: W is learnt on all of the client's data, for
      ``weight_epochs`` in every round; the authors take a random 80 % and go on until W converges
      in the second round, then one epoch. They score the mixture after W has met the received
      model; here ``received`` mixes with the last W, ``adapted`` comes after the local steps, too.
    """
    at_least_one("fedala", weight_epochs=weight_epochs)
    layers = head_layers("fedala", model, head)
    loss = loss or cross_entropy(model)
    tx = local_tx(learning_rate, local_optimizer)
    weight_sgd = local_sgd(weight_learning_rate, "weight_learning_rate")
    weight_tx = optax.chain(weight_sgd, projected(0, 1))
    training = local_training(loss, tx, local_epochs, batch_size, elementwise=True)

    def mixed(server, client, weights):
        """Return the model that a client starts its local steps with."""
        mask = part_mask(server.params, layers)
        # Lower layers are taken as received: what they learn is of use to all.
        own_head, _ = partition_params(client.params, mask)
        received_head, lower_layers = partition_params(server.params, mask)
        start_head = jax.tree.map(
            lambda own, w, weight: own + weight * (w - own), own_head, received_head, weights
        )
        return combine_params(start_head, lower_layers)

    def client_update(server, client, data, key):
        def weight_loss(weights, batch, key):
            # Only the weights are trained: both models are constants here.
            return loss(mixed(server, client, weights), batch, key)

        weight_key, local_key = jax.random.split(key)
        learning = local_training(
            weight_loss, weight_tx, weight_epochs, batch_size, elementwise=True
        )
        learnt = learning.train(client.weights, weight_tx.init(client.weights), data, weight_key)
        start = mixed(server, client, learnt.params)
        result = training.train(start, tx.init(start), data, local_key)
        message = optax.tree.sub(result.params, server.params)
        state = ClientState(result.params, learnt.params)
        steps = learnt.steps + result.steps
        return ClientOutput(message, state, result.params, steps, result.metrics)

    def first_state(params):
        # With weights of 1 a client takes in the whole global model, as FedAvg's do.
        weights, _ = partition_params(optax.tree.ones_like(params), part_mask(params, layers))
        return ClientState(params, weights)

    return averaged(
        client_update,
        personal_params=lambda server, client, data: mixed(server, client, client.weights),
        first_state=first_state,
    )
