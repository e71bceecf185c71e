"""FedRep: the head is fitted first, then the shared representation."""

from collections.abc import Sequence

import jax
import optax

from pflalign_jax.algorithms.partly_local import ClientState, shared_in_part
from pflalign_jax.federated import (
    Algorithm,
    ClientOutput,
    Loss,
    combine_params,
    local_training,
    local_tx,
    part_mask,
)
from pflalign_jax.federated.validation import at_least_one, head_layers
from pflalign_jax.models import Model, cross_entropy


def fedrep(
    model: Model,
    learning_rate: float = 0.1,
    *,
    head: Sequence[str] | None = None,
    head_epochs: int = 1,
    body_tx: optax.GradientTransformation | None = None,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedRep.

    A round of one client: ``head_epochs`` of SGD on its own head with the received body fixed,
    then ``local_epochs`` on the body with the head fixed. It sends what the body has moved, the
    server averages bodies.

    Args:
      model, learning_rate, loss, local_optimizer, batch_size: as in `fedavg`.
      head: as in `fedper`.
      head_epochs: passes over the data for the head; the paper takes 10 or more, PFLlib 1.
      body_tx: elementwise optimiser of the body, new in every round; None: ``local_optimizer``. In
        a config it is the step size of `pflalign_jax.align_transform`.
      local_epochs: passes over the data for the body.

    References:
      Collins et al., "Exploiting Shared Representations for Personalized Federated Learning",
      arXiv:2102.07078, Algorithm 1. Departure: means are weighted by examples, there clients count
      equally. The paper scores the averaged body under the client's own head,
      which is nearer to ``personal / received`` than to ``personal / adapted``.
    """
    at_least_one("fedrep", head_epochs=head_epochs)
    layers = head_layers("fedrep", model, head)
    loss = loss or cross_entropy(model)
    tx = local_tx(learning_rate, local_optimizer)
    body_tx = tx if body_tx is None else body_tx
    work = {"batch_size": batch_size, "elementwise": True}

    def client_update(server, client, data, key):
        def head_loss(own, batch, key):
            return loss(combine_params(own, server.shared), batch, key)

        def body_loss(shared, batch, key):
            # `fitted` is the head's result below: bodies are trained under the new heads.
            return loss(combine_params(fitted.params, shared), batch, key)

        head_key, body_key = jax.random.split(key)
        train_head = local_training(head_loss, tx, local_epochs=head_epochs, **work).train
        train_body = local_training(body_loss, body_tx, local_epochs=local_epochs, **work).train
        # The order of the paper: the body learns under a head that suits it.
        fitted = train_head(client.own, tx.init(client.own), data, head_key)
        result = train_body(server.shared, body_tx.init(server.shared), data, body_key)
        message = optax.tree.sub(result.params, server.shared)
        state, params = ClientState(fitted.params), combine_params(fitted.params, result.params)
        return ClientOutput(message, state, params, fitted.steps + result.steps, result.metrics)

    return shared_in_part(client_update, own_mask=lambda params: part_mask(params, layers))
