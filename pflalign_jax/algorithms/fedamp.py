"""FedAMP: similar clients attend to each other; the server keeps a cloud model for each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.federated import Algorithm, ClientOutput, local_sgd, local_training, proximal


class ServerState(NamedTuple):
    """All clients' models, leaves ``[K, ...]`` in the order of their ids."""

    models: Any


class ClientState(NamedTuple):
    """The client's own model ``w_i``."""

    params: Any


def fedamp(
    loss,
    learning_rate: float = 0.1,
    *,
    num_clients: int,
    alpha: float = 1e4,
    sigma: float = 0.1,
    lam: float = 1.0,
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return FedAMP, for a few clients (cross-silo): every device holds all clients' models.

    With attention ``ξ_ij = α A'(‖w_i - w_j‖²)`` and ``A(x) = 1 - exp(-x/σ)``, the cloud model of
    a client is ``u_i = w_i + Σ_j ξ_ij (w_j - w_i)``; the client takes T steps of SGD from u_i on
    ``F_i(w_i) + λ/2α ‖w_i - u_i‖²``. Its message is w_i.

    Args:
      loss: ``(params, Batch, key) -> scalar``.
      learning_rate: of SGD.
      num_clients: K, the identities ``0..K-1`` of all clients.
      alpha: ``α``, the step size of the attention; the weights of all others together are kept at
        most 1, which the paper asks α to ensure.
      sigma: ``σ`` > 0.
      lam: ``λ``.
      local_epochs, batch_size: local work per round.

    References:
      Huang et al., "Personalized Cross-Silo Federated Learning on Non-IID Data", arXiv:2007.03797,
      Algorithm 1, equations 5 and 6. Departures: T steps of SGD instead of an exact minimum; the
      sum of weights is capped.
    """
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        if not value > 0:
            raise ValueError(f"fedamp: {name}={value!r} is not allowed; it must be > 0")
    tx = optax.chain(proximal(lam / alpha), local_sgd(learning_rate))
    local = local_training(
        loss, tx, local_epochs=local_epochs, batch_size=batch_size, elementwise=True
    )

    def cloud_model(server, client):
        def squares(models, own):
            return jnp.sum((models - own[None]) ** 2, axis=tuple(range(1, models.ndim)))

        distance = sum(jax.tree.leaves(jax.tree.map(squares, server.models, client.params)))
        attention = alpha * jnp.exp(-distance / sigma) / sigma
        attention = jnp.where(distance > 0, attention, 0)  # nothing to learn from oneself
        attention /= jnp.maximum(attention.sum(), 1)
        return jax.tree.map(
            lambda models, own: own + jnp.tensordot(attention, models - own[None], 1),
            server.models,
            client.params,
        )

    def client_update(server, client, data, key):
        u = cloud_model(server, client)
        result = local.train(u, tx.init(u), data, key, centre=u)
        state = ClientState(result.params)
        return ClientOutput(result.params, state, result.params, result.steps, result.metrics)

    def server_update(server, inbox):
        place = jnp.where(inbox.weights > 0, inbox.ids, num_clients)
        return ServerState(
            jax.tree.map(
                lambda a, b: a.at[place].set(b, mode="drop"), server.models, inbox.messages
            )
        )

    def init(params):
        stacked = jax.tree.map(lambda a: jnp.broadcast_to(a, (num_clients, *a.shape)), params)
        return ServerState(stacked), ClientState(params)

    return Algorithm(
        init=init,
        client_update=client_update,
        server_update=server_update,
        personal_params=cloud_model,
        global_params=None,
        gather=True,
    )
