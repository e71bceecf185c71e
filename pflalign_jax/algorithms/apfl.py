"""APFL: every client mixes its own model with the global one, in a share that it learns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.algorithms.averaging import averaged
from pflalign_jax.federated import (
    Algorithm,
    ClientOutput,
    Loss,
    local_sgd,
    local_training,
    local_tx,
    projected,
)
from pflalign_jax.federated.validation import at_most_one
from pflalign_jax.models import Model, cross_entropy


class ClientState(NamedTuple):
    """The client's own model ``v_i`` and its share ``α_i`` in [0, 1], float32 scalar."""

    params: Any
    alpha: jax.Array


class Triple(NamedTuple):
    """What a client trains."""

    w: Any
    v: Any
    alpha: jax.Array


def apfl(
    model: Model,
    learning_rate: float = 0.1,
    *,
    alpha: float = 0.5,
    adaptive: bool = True,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return APFL.

    The personal model is ``v̄ = α v_i + (1 - α) w_i``. A local step: ``w_i -= η ∇F(w_i)``,
    ``v_i -= η α ∇F(v̄)``, ``α -= η <v_i - w_i, ∇F(v̄)>``, kept in [0, 1]; a round starts with
    ``w_i = w``. The server averages w_i as FedAvg does. With a fixed α, 0 is FedAvg and 1 local
    training.

    Args:
      model, learning_rate, loss, local_optimizer, local_epochs, batch_size: as in `fedavg`.
      alpha: ``α`` in [0, 1], the first share of the own model; the paper tries 0.25, 0.5 and 0.75.
        It takes steps of SGD, whatever the local optimiser.
      adaptive: whether the share is learnt, as in the paper; False keeps it fixed.

    References:
      Deng, Kamani and Mahdavi, "Adaptive Personalized Federated Learning", arXiv:2003.13461,
      Algorithm 1 and equation 10. Departures: α moves at every local step, not once a round;
      means are weighted by examples, there clients count equally; the authors' code mixes logits,
      not parameters, and pulls α towards 0. PFLlib's ``v_i`` descends on ∇F(v_i), and becomes v̄
      after a round, so that the personal model is not verified against it; the global one is.
    """
    at_most_one("apfl", alpha=alpha)
    loss = loss or cross_entropy(model)
    value_and_grad = jax.value_and_grad(loss)

    def mixed(alpha, v, w):
        return jax.tree.map(lambda v, w: alpha * v + (1 - alpha) * w, v, w)

    def gradient(triple, batch, key):
        w, v, alpha = triple
        w_key, mixed_key = jax.random.split(key)
        # The global part descends on its own loss, as if there were no mixture.
        _, w_grad = value_and_grad(w, batch, w_key)
        value, mixed_grad = value_and_grad(mixed(alpha, v, w), batch, mixed_key)
        # By the chain rule: v̄ moves by v - w when α does.
        slope = optax.tree.vdot(optax.tree.sub(v, w), mixed_grad) if adaptive else jnp.zeros(())
        return value, Triple(w_grad, optax.tree.scale(alpha, mixed_grad), slope)

    # Only the share is kept in [0, 1], at every step: else it would wind up beyond its bounds.
    share_tx = optax.chain(local_sgd(learning_rate), projected(0, 1))
    transforms = {"model": local_tx(learning_rate, local_optimizer), "share": share_tx}
    tx = optax.multi_transform(transforms, Triple("model", "model", "share"))  # type: ignore[arg-type]
    local = local_training(loss, tx, local_epochs, batch_size, elementwise=True, gradient=gradient)

    def client_update(server, client, data, key):
        start = Triple(server.params, client.params, client.alpha)
        result = local.train(start, tx.init(start), data, key)
        w, v, alpha = result.params
        message = optax.tree.sub(w, server.params)
        state = ClientState(v, alpha)
        return ClientOutput(message, state, mixed(alpha, v, w), result.steps, result.metrics)

    return averaged(
        client_update,
        personal_params=lambda server, client, data: mixed(
            client.alpha, client.params, server.params
        ),
        first_state=lambda params: ClientState(params, jnp.float32(alpha)),
    )
