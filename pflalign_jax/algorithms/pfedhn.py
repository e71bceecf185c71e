"""pFedHN: a hypernetwork on the server makes every client's model from an embedding of it."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import update_of_received
from pflalign_jax.algorithms.per_client import own_row
from pflalign_jax.federated import GATHERED, Algorithm, Loss, local_sgd, local_tx
from pflalign_jax.federated.validation import at_least_one
from pflalign_jax.models import Model, cross_entropy
from pflalign_jax.models.base import dense


class ServerState(NamedTuple):
    """What the server keeps.

    Attributes:
      layers: of the hypernetwork: hidden ones, each with a ReLU, and at last one from the hidden
        width H to the parameters of a model.
      embeddings: ``[K, E]``, in the order of the clients' ids.
    """

    layers: Any
    embeddings: jax.Array


def pfedhn(
    model: Model,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    server_learning_rate: float = 0.1,
    embedding_size: int | None = None,
    hidden_size: int = 100,
    hidden_layers: int = 3,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return pFedHN, for a few clients of small models: the hypernetwork has H times their size.

    A client downloads ``θ_i = h(e_i; φ)``, takes T steps to θ̃_i and sends ``Δ_i = θ̃_i - θ_i``. The
    server: ``φ += η mean of (∂θ_i/∂φ)ᵀ Δ_i``, ``e_i += η (∂θ_i/∂e_i)ᵀ Δ_i``. A client that never
    trained is given the model of the mean embedding.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      num_clients: K, the number of all clients, whose identities are ``0..K-1``.
      server_learning_rate: ``η``, the step size of hypernetwork and embeddings; the authors take
        0.01, with momentum 0.9. From about 1 on it diverges.
      embedding_size: E; None: 1 + K/4 rounded down, as in the authors' code.
      hidden_size: H, the width of the hidden layers; 100 in the authors' code.
      hidden_layers: how many there are, >= 1; 3 in the authors' code.

    References:
      Shamsian et al., "Personalized Federated Learning using Hypernetworks", arXiv:2103.04628,
      Algorithm 1. Departures: a step of the server is the mean over the round's clients, there one
      client's; it is plain SGD, the authors' has momentum, weight decay and clipping; the last
      layer starts with a kernel of 0 and the first model for its bias, so that all models start
      there.
    """
    size = 1 + num_clients // 4 if embedding_size is None else embedding_size
    sizes = {"hidden_size": hidden_size, "hidden_layers": hidden_layers}
    at_least_one("pfedhn", num_clients=num_clients, embedding_size=size, **sizes)
    loss, tx = loss or cross_entropy(model), local_tx(learning_rate, local_optimizer)
    server_tx = local_sgd(server_learning_rate, "server_learning_rate")

    def init(params, key):
        *keys, embedding_key = jax.random.split(key, hidden_layers + 1)
        widths = [size, *[hidden_size] * hidden_layers]
        kernels = [
            jax.nn.initializers.he_normal()(k, shape)
            for k, shape in zip(keys, itertools.pairwise(widths), strict=True)
        ]
        layers = [{"kernel": a, "bias": jnp.zeros(hidden_size)} for a in kernels]
        last = {
            "kernel": jax.tree.map(lambda a: jnp.zeros((hidden_size, *a.shape)), params),
            "bias": params,
        }
        embeddings = jax.random.normal(embedding_key, (num_clients, size))
        return ServerState((*layers, last), embeddings), ()

    def generated(layers, embedding):
        """Return the model of an embedding, ``[E]``."""
        *hidden, last = layers
        z = embedding[None]
        for layer in hidden:
            z = jax.nn.relu(dense(layer, z))
        return jax.tree.map(
            lambda kernel, bias: jnp.tensordot(z[0], kernel, 1) + bias, last["kernel"], last["bias"]
        )

    def server_update(server, aggregate):
        inbox = aggregate.value
        present = (inbox.weights > 0).astype(jnp.float32)

        def models(layers, embeddings):
            return jax.vmap(generated, (None, 0))(layers, embeddings[inbox.ids])

        # What clients moved along is a descent of their losses: minus that for a gradient.
        gradient = jax.vmap(optax.tree.scale)(-present, inbox.messages)
        _, transposed = jax.vjp(models, server.layers, server.embeddings)
        of_layers, of_embeddings = transposed(gradient)
        mean = optax.tree.scale(1 / jnp.maximum(present.sum(), 1), of_layers)
        updates, _ = server_tx.update((mean, of_embeddings), server_tx.init(server))
        return ServerState(*optax.apply_updates(tuple(server), updates))

    return Algorithm(
        init=init,
        client_update=update_of_received(loss, tx, local_epochs, batch_size),
        server_update=server_update,
        personal_params=lambda w, client, data: w,
        global_params=None,
        deliver=lambda server, client_id: generated(
            server.layers, own_row(server.embeddings, client_id)
        ),
        aggregation=GATHERED,
    )
