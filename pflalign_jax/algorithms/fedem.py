"""FedEM: every client's data are a mixture of the same few distributions, with its own weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax import federated
from pflalign_jax.algorithms.averaging import ServerState, averaged
from pflalign_jax.federated import Algorithm, ClientOutput
from pflalign_jax.federated.validation import at_least_one
from pflalign_jax.models import Model, example_losses
from pflalign_jax.models.base import labelled_logits, mean_of_real


class ClientState(NamedTuple):
    """The client's weights ``π_i``, ``[M]``, of sum 1."""

    weights: jax.Array


class Mixture(NamedTuple):
    """A personal model: M models, leaves ``[M, ...]``, and their weights ``[M]``."""

    models: Any
    weights: jax.Array


def fedem(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_models: int = 3,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedEM.

    A personal model predicts ``Σ_m π_im p_m(y | x)``. A round of one client: with the losses ℓ_m of
    the received models, ``q_m(s) ∝ π_im exp(-ℓ_m(s))`` for each of its examples s; its new π_im is
    the mean of q_m; model m descends on the mean of ``q_m ℓ_m``, with q fixed. The server averages
    each of the models as FedAvg does. M = 1 is FedAvg.

    Args:
      model, learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_models: M, how many models there are; the paper takes 3.

    References:
      Marfoq et al., "Federated Multi-Task Learning under a Mixture of Distributions",
      arXiv:2108.10252, Algorithm 1. A client that never trained takes π from one
      step with its examples, as in the paper. Departure: the first models are shuffles of one.
    """
    at_least_one("fedem", num_models=num_models)
    tx = federated.local_tx(learning_rate, local_optimizer)

    def losses_of(models, batch, key):
        """Return ``[M, N]`` losses of N labels, and their mask."""

        def of_model(params):
            logits, y, mask = labelled_logits(model, params, batch, key)
            return example_losses(logits, y), mask

        losses, masks = jax.vmap(of_model)(models)
        return losses, masks[0]

    def responsibilities(mixture, batch, key):
        """Return q, ``[M, N]``, and the mask."""
        losses, mask = losses_of(mixture.models, batch, key)
        return jax.nn.softmax(jnp.log(mixture.weights)[:, None] - losses, axis=0), mask

    def new_weights(mixture, data):
        def mean_share(mixture, batch, key):
            q, mask = responsibilities(mixture, batch, key)
            return jax.vmap(mean_of_real, (0, None))(q, mask)

        shares = federated.client_loss(mean_share, mixture, data)
        # Without examples nothing is learnt of the weights.
        return jnp.where(data.size > 0, shares / shares.sum(), mixture.weights)

    def client_update(server, client, data, key):
        received = Mixture(server.params, client.weights)

        def loss(models, batch, key):
            q, mask = responsibilities(received, batch, key)
            losses, _ = losses_of(models, batch, key)
            return mean_of_real(jnp.sum(q * losses, axis=0), mask)

        local = federated.local_training(loss, tx, local_epochs, batch_size, elementwise=True)
        result = local.train(received.models, tx.init(received.models), data, key)
        weights = new_weights(received, data)
        message = optax.tree.sub(result.params, received.models)
        mixture = Mixture(result.params, weights)
        return ClientOutput(message, ClientState(weights), mixture, result.steps, result.metrics)

    def predict(mixture, x):
        logits = jax.vmap(model.apply, (0, None))(mixture.models, x)
        weights = mixture.weights.reshape(num_models, *[1] * (logits.ndim - 1))
        return jax.nn.logsumexp(jnp.log(weights) + jax.nn.log_softmax(logits), axis=0)

    equal = jnp.full(num_models, 1 / num_models)
    return averaged(
        client_update,
        personal_params=lambda server, client, data: Mixture(server.params, client.weights),
        init=lambda params, key: (
            ServerState(federated.first_models(params, key, num_models)),
            ClientState(equal),
        ),
        newcomer=lambda server, data: ClientState(new_weights(Mixture(server.params, equal), data)),
        global_params=None,
        predict=predict,
        classes_only="fedem",
    )
