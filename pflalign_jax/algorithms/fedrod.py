"""FedRoD: a generic head trained for balanced classes, and a personal head on top of it."""

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import models
from pflalign_jax.algorithms.averaging import averaged
from pflalign_jax.algorithms.partly_local import ClientState
from pflalign_jax.federated import Algorithm, ClientOutput, class_counts, local_training, local_tx
from pflalign_jax.models.base import dense, labelled_features, mean_of_real, single_head


def fedrod(
    model: models.Model,
    learning_rate: float = 0.1,
    *,
    num_classes: int,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedRoD, its linear version.

    A local step with features z: body and generic head G descend on the balanced softmax loss of
    ``G(z) + log n_c``, with n_c the client's examples of class c; the personal head H_i, with z and
    G(z) fixed, on the cross-entropy of ``G(z) + H_i(z)``. The server averages body and G as FedAvg
    does. The personal model predicts with ``G + H_i``, one dense layer; H_i is the client's state.

    Args:
      model: what is trained, with a single dense head.
      learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_classes: C, the number of labels.

    References:
      Chen and Chao, "On Bridging Generic and Personalized Federated Learning for Image
      Classification", arXiv:2107.00778, Algorithm 1 with equation 6. Departure: H_i starts at 0.
    """
    head, tx = single_head("fedrod", model), local_tx(learning_rate, local_optimizer)

    def personal_model(params, own_head):
        return {**params, head: optax.tree.add(params[head], own_head)}

    def client_update(server, client, data, key):
        # The bound stands in for log 0: a class that is absent gets no probability.
        prior = jnp.log(jnp.maximum(class_counts(data, num_classes), 1e-6))

        def loss(trained, batch, key):
            params, own_head = trained
            z, y, mask = labelled_features(model, params, batch)
            generic = dense(params[head], z)
            # The personal head's loss must not move body and generic head, which are for all.
            fixed_z, fixed_generic = jax.lax.stop_gradient((z, generic))
            losses = models.example_losses(generic + prior[None], y)
            losses += models.example_losses(fixed_generic + dense(own_head, fixed_z), y)
            return mean_of_real(losses, mask)

        local = local_training(loss, tx, local_epochs, batch_size, elementwise=True)
        start = (server.params, client.own)
        result = local.train(start, tx.init(start), data, key)
        params, own_head = result.params
        return ClientOutput(
            message=optax.tree.sub(params, server.params),
            state=ClientState(own_head),
            params=personal_model(params, own_head),
            steps=result.steps,
            metrics=result.metrics,
        )

    return averaged(
        client_update,
        personal_params=lambda server, client, data: personal_model(server.params, client.own),
        first_state=lambda params: ClientState(optax.tree.zeros_like(params[head])),
        classes_only="fedrod",
    )
