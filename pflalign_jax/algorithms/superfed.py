"""SuPerFed: a client's own model and the shared one are joined by a line of good models."""

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import ServerState
from pflalign_jax.algorithms.two_models import ClientState, two_models
from pflalign_jax.federated import Algorithm, Loss, first_models, local_tx
from pflalign_jax.federated.validation import at_most_one, nonnegative
from pflalign_jax.models import Model, cross_entropy


def superfed(
    model: Model,
    learning_rate: float = 0.1,
    *,
    lam: float = 0.5,
    mu: float = 0.01,
    nu: float = 2.0,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return SuPerFed, its version for whole models.

    A local step draws λ uniformly from [0, 1]; the copy w_i of the shared model and the client's
    own v_i descend on ``F_i((1 - λ) w_i + λ v_i) + μ ‖w_i - w‖² + ν cos²(w_i, v_i)``. The server
    averages w_i as FedAvg does. The personal model is the mixture with a fixed λ.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      lam: ``λ`` in [0, 1] of the personal model that is scored; in training it is drawn.
      mu: ``μ`` >= 0, the pull of w_i to the shared model; the authors' code takes 0.01.
      nu: ``ν`` >= 0, the weight of the squared cosine of both models; the authors' code takes 2.

    References:
      Hahn, Jeong and Lee, "Connecting Low-Loss Subspace for Personalized Federated Learning",
      arXiv:2109.07628, Algorithm 1. Departures: the pull is by a square, in the authors' code by
      norms of layers; own models are mixed in from the first round on, there after some; they start
      as a shuffle of the first model, the same for all clients. A client that never trained starts
      with the shared model for its own.
    """
    at_most_one("superfed", lam=lam)
    nonnegative("superfed", mu=mu, nu=nu)
    task_loss = loss or cross_entropy(model)

    def mixed(pair, share=lam):
        return jax.tree.map(lambda w, v: (1 - share) * w + share * v, *pair)

    def loss_of(received, data):
        def loss(pair, batch, key):
            share_key, loss_key = jax.random.split(key)
            w, v = pair
            value = task_loss(mixed(pair, jax.random.uniform(share_key)), batch, loss_key)
            pull = optax.tree.norm(optax.tree.sub(w, received), squared=True)
            squares = optax.tree.norm(w, squared=True) * optax.tree.norm(v, squared=True)
            # Models of zeros have no angle.
            cosine = optax.tree.vdot(w, v) ** 2 / jnp.maximum(squares, 1e-12)
            return value + mu * pull + nu * cosine

        return loss

    def init(params, key):
        # Another first model: from the same one the two could only be parallel.
        own = jax.tree.map(lambda a: a[1], first_models(params, key, 2))
        return ServerState(params), ClientState(own)

    return two_models(
        loss_of,
        local_tx(learning_rate, local_optimizer),
        mixed,
        local_epochs=local_epochs,
        batch_size=batch_size,
        init=init,
        newcomer=lambda server, data: ClientState(server.params),
    )
