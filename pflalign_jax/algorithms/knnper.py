"""kNN-Per: the global model beside what a client remembers of its own examples' features."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pflalign_jax.algorithms.averaging import averaging
from pflalign_jax.federated import Algorithm, client_features, local_tx
from pflalign_jax.federated.validation import at_least_one, at_most_one, positive
from pflalign_jax.models import Model, cross_entropy
from pflalign_jax.models.base import single_head

LEAST = 1e-30
"""Probability of a class that nobody predicts, so that a loss stays finite."""


class Remembering(NamedTuple):
    """A personal model.

    Attributes:
      params: of the model.
      features: ``[N, F]``, those of the client's training examples.
      labels: ``[N]``.
      mask: ``[N]`` float32, 0 for padding.
    """

    params: Any
    features: jax.Array
    labels: jax.Array
    mask: jax.Array


def knnper(
    model: Model,
    learning_rate: float = 0.1,
    *,
    lam: float = 0.5,
    num_neighbours: int = 10,
    sigma: float = 1.0,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return kNN-Per.

    Models are trained as in FedAvg. A personal model predicts ``λ p_kNN + (1 - λ) p``, with the
    model's p(y | x) and ``p_kNN(y | x) ∝ Σ exp(-‖z - z_j‖² / (F σ))`` over those with the label y
    of the k training examples of the client that are nearest by their F features z_j. λ = 0 is
    FedAvg.

    Args:
      model: what is trained, with a single dense head.
      learning_rate, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      lam: ``λ`` in [0, 1], the share of the neighbours; the paper tunes it for each client.
      num_neighbours: k, how many neighbours count; the paper takes 10.
      sigma: ``σ`` > 0, the scale of squared distances; the authors' code takes 1.

    References:
      Marfoq et al., "Personalized Federated Learning through Local Memorization",
      arXiv:2111.09360, Algorithm 1; squared distances over Fσ from the authors'
      code. Departures: λ is the same for all clients; all training examples are remembered.
    """
    at_most_one("knnper", lam=lam)
    at_least_one("knnper", num_neighbours=num_neighbours)
    positive("knnper", sigma=sigma)
    single_head("knnper", model)
    assert model.features is not None
    features = model.features
    plain = averaging(
        cross_entropy(model),
        local_tx(learning_rate, local_optimizer),
        local_epochs=local_epochs,
        batch_size=batch_size,
    )

    def remembering(params, data):
        return Remembering(params, *client_features(model, params, data))

    def client_update(server, client, data, key):
        output = plain.client_update(server, client, data, key)
        return output._replace(params=remembering(output.params, data))

    def predict(memory, x):
        logits = model.apply(memory.params, x)
        num_classes, width = logits.shape[-1], memory.features.shape[1]
        z = features(memory.params, x).reshape(-1, width)
        squares = jnp.sum(z**2, 1)[:, None] + jnp.sum(memory.features**2, 1)[None]
        distances = jnp.maximum(squares - 2 * z @ memory.features.T, 0)
        scores = jnp.where(memory.mask[None] > 0, -distances / (width * sigma), -jnp.inf)
        nearest, which = jax.lax.top_k(scores, min(num_neighbours, scores.shape[1]))
        # A softmax has the same shares as the exponentials, and never none at all.
        shares = jax.nn.softmax(jnp.maximum(nearest, jnp.finfo(nearest.dtype).min))
        votes = shares[..., None] * jax.nn.one_hot(memory.labels[which], num_classes)
        # Who remembers nothing is left with the model.
        share = lam * (memory.mask.sum() > 0)
        p = share * votes.sum(1).reshape(logits.shape) + (1 - share) * jax.nn.softmax(logits)
        return jnp.log(jnp.maximum(p, LEAST))

    return plain._replace(
        client_update=client_update,
        personal_params=lambda server, client, data: remembering(server.params, data),
        predict=predict,
        classes_only="knnper",
    )
