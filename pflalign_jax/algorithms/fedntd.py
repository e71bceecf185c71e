"""FedNTD: what the global model says of the wrong classes is kept by distillation."""

import jax
import jax.numpy as jnp

from pflalign_jax.algorithms.averaging import averaged, update_of_received
from pflalign_jax.federated import Algorithm, local_tx
from pflalign_jax.federated.validation import nonnegative, positive
from pflalign_jax.models import Model, example_losses
from pflalign_jax.models.base import labelled_logits, mean_of_real

NO_CLASS = -1e9
"""Logit of the true class, which gets no probability among the others; finite, for gradients."""


def fedntd(
    model: Model,
    learning_rate: float = 0.1,
    *,
    beta: float = 1.0,
    tau: float = 1.0,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedNTD.

    A client descends on ``F_i(w_i) + β τ² KL(p ‖ p_i)``, with the probabilities of all classes but
    the true one, from logits divided by τ: p those of the received model, p_i the client's. The
    server averages as FedAvg does. β = 0 is FedAvg, and so is every β with two classes.

    Args:
      model, learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      beta: ``β`` >= 0, the weight of the distillation; the paper takes 1.
      tau: ``τ`` > 0, the temperature; the paper takes 1.

    References:
      Lee et al., "Preservation of the Global Knowledge by Not-True Distillation in Federated
      Learning", arXiv:2106.03097, equations 6 and 7; the factor τ² from the authors' code.
      Departure: the received model is asked as it is scored, without dropout, there in training
      mode.
    """
    nonnegative("fedntd", beta=beta)
    positive("fedntd", tau=tau)
    tx = local_tx(learning_rate, local_optimizer)

    def client_update(server, client, data, key):
        w = server.params

        def loss(params, batch, key):
            logits, y, mask = labelled_logits(model, params, batch, key)
            # The received model is asked as it is scored, without dropout.
            received, _, _ = labelled_logits(model._replace(train_apply=None), w, batch, key)

            def not_true(logits):
                is_true = jax.nn.one_hot(y, logits.shape[1], dtype=bool)
                return jax.nn.log_softmax(jnp.where(is_true, NO_CLASS, logits / tau))

            known = not_true(received)
            gap = jnp.sum(jnp.exp(known) * (known - not_true(logits)), axis=1)
            return mean_of_real(example_losses(logits, y) + beta * tau**2 * gap, mask)

        return update_of_received(loss, tx, local_epochs, batch_size)(w, client, data, key)

    return averaged(
        client_update,
        personal_params=lambda server, client, data: server.params,
        classes_only="fedntd",
    )
