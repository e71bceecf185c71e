"""MOON: features are drawn to those of the global model, away from those of the last local one."""

from typing import Any, NamedTuple

import jax
import optax

from pflalign_jax.algorithms.averaging import averaged, update_of_received
from pflalign_jax.federated import Algorithm, Loss, local_tx
from pflalign_jax.federated.validation import nonnegative, positive
from pflalign_jax.models import Model, cross_entropy
from pflalign_jax.models.base import labelled_features, mean_of_real, single_head


class ClientState(NamedTuple):
    """The client's model after its last round, ``v_i``."""

    last: Any


def moon(
    model: Model,
    learning_rate: float = 0.1,
    *,
    mu: float = 1.0,
    tau: float = 0.5,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return MOON.

    A client descends on ``F_i(w_i) + μ mean of -log(e^(s_w/τ) / (e^(s_w/τ) + e^(s_v/τ)))`` with
    s_w, s_v the cosines of its features with those of the received model w and of its own last
    model v_i. The server averages as FedAvg does. μ = 0 is FedAvg.

    Args:
      model: what is trained, with a single dense head.
      learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      mu: ``μ`` >= 0, the weight of the contrast; the paper chooses among 0.1, 1, 5 and 10.
      tau: ``τ`` > 0, the temperature; the paper takes 0.5.

    References:
      Li, He and Song, "Model-Contrastive Federated Learning", arXiv:2103.16257, Algorithm 1 and
      equation 3. Departures: the contrast is of the input of the head, without a projection in
      front of it, as in PFLlib; the v_i of a client's first round is the first global model.
    """
    nonnegative("moon", mu=mu)
    positive("moon", tau=tau)
    single_head("moon", model)
    task_loss, tx = loss or cross_entropy(model), local_tx(learning_rate, local_optimizer)

    def client_update(server, client, data, key):
        w = server.params

        def contrasted(params, batch, key):
            z, _, mask = labelled_features(model, params, batch)

            def cosine(others):
                # Features of zeros have no direction: the bound keeps their gradient finite.
                same = labelled_features(model, others, batch)[0]
                return optax.cosine_similarity(z, same, epsilon=1e-6)

            contrast = jax.nn.softplus((cosine(client.last) - cosine(w)) / tau)
            return task_loss(params, batch, key) + mu * mean_of_real(contrast, mask)

        update = update_of_received(contrasted, tx, local_epochs, batch_size)
        output = update(w, client, data, key)
        return output._replace(state=ClientState(output.params))

    return averaged(
        client_update,
        personal_params=lambda server, client, data: server.params,
        first_state=ClientState,
    )
