"""Ditto: FedAvg, and next to it personal models that are pulled towards the global one."""

from typing import Any, NamedTuple

import optax

from pflalign_jax.algorithms.averaging import averaged
from pflalign_jax.align import new_round
from pflalign_jax.federated import (
    Algorithm,
    ClientOutput,
    Loss,
    local_training,
    local_tx,
    proximal,
)
from pflalign_jax.models import Model, cross_entropy


class ClientState(NamedTuple):
    """The personal model ``v_i``, and its optimiser's state across rounds."""

    params: Any
    opt_state: Any


def ditto(
    model: Model,
    learning_rate: float = 0.1,
    *,
    lam: float = 0.1,
    personal_tx: optax.GradientTransformation | None = None,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return Ditto.

    A round of one client: FedAvg's steps from ``w``, whose ``w_i - w`` is the message; and as many
    of ``v_i -= η (∇F(v_i) + λ (v_i - w))``, on the same batches. λ = 0 is local training.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      lam: ``λ`` >= 0, the pull of the personal to the global model; the paper chooses among 0.1, 1
        and 2.
      personal_tx: elementwise optimiser of the personal model, whose state stays with the client
        and starts its rounds; None: ``local_optimizer``. In a config it is the step size of
        `pflalign_jax.align_transform`.

    References:
      Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization",
      arXiv:2012.04221, Algorithm 1. Departure: the mean is weighted by examples with uniformly
      drawn clients; the authors' code draws by examples and weights equally.
    """
    loss = loss or cross_entropy(model)
    tx = local_tx(learning_rate, local_optimizer)
    adapts_with = "learning_rate" if personal_tx is None else "personal_tx"
    personal_tx = optax.chain(proximal(lam, "lam"), tx if personal_tx is None else personal_tx)
    shared = local_training(loss, tx, local_epochs, batch_size, elementwise=True)
    personal = local_training(loss, personal_tx, local_epochs, batch_size, elementwise=True)

    def client_update(server, client, data, key):
        w = server.params
        result = shared.train(w, tx.init(w), data, key)
        # Starts anew what an alignment keeps for one round only; other states stay.
        memory = new_round(client.opt_state, required=False)
        # The same key on purpose: both models take the same batches, as in the authors' code.
        fitted = personal.train(client.params, memory, data, key, centre=w)
        message = optax.tree.sub(result.params, w)
        state = ClientState(fitted.params, fitted.opt_state)
        # The work of both models counts; the loss that is told is the personal one.
        steps = result.steps + fitted.steps
        return ClientOutput(message, state, fitted.params, steps, fitted.metrics)

    return averaged(
        client_update,
        personal_params=lambda server, client, data: client.params,
        first_state=lambda params: ClientState(params, personal_tx.init(params)),
        adapts_with=adapts_with,
    )
