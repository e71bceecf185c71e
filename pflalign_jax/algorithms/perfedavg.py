"""Per-FedAvg: a global model from which one gradient step makes a good personal one."""

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
)
from pflalign_jax.federated.validation import nonnegative, positive
from pflalign_jax.models import Batch, Model, cross_entropy


def perfedavg(
    model: Model,
    learning_rate: float = 0.1,
    *,
    alpha: float = 0.01,
    hessian_free: bool = False,
    delta: float = 1e-3,
    loss: Loss | None = None,
    local_optimizer: str = "sgd",
    local_epochs: int = 1,
    batch_size: int = 10,
) -> Algorithm:
    """Return Per-FedAvg, first order or Hessian-free.

    A local step with a batch cut into halves D and D' (every other example; a single example is
    both): ``w' = w_i - α ∇F(w_i; D)``, then ``w_i -= β ∇F(w'; D')`` (first order), or with
    d = ∇F(w'; D') along ``d - α (∇F(w_i + δ d; D) - ∇F(w_i - δ d; D)) / 2δ`` (Hessian-free). The
    server averages as FedAvg does. A client's adapted model is what one local epoch of SGD with
    step size α makes of the received one.

    Args:
      model, loss: as in `fedavg`.
      local_optimizer: of the meta-steps, as in `fedavg`; adaptation is SGD, which the method
        differentiates.
      learning_rate: ``β``, the step size of the meta-steps.
      alpha: ``α``, the step size of the adaptation; the paper takes 0.01.
      hessian_free: True adds the second-order term; False is the first-order variant.
      delta: ``δ`` > 0, the width of the finite difference in the second-order term; ours.
      local_epochs: passes over its data with meta-steps that a client makes in a round.
      batch_size: examples in a meta-step, both halves together; even.

    References:
      Fallah, Mokhtari and Ozdaglar, "Personalized Federated Learning: A Meta-Learning Approach",
      arXiv:2002.07948, Algorithm 1, section 5 for both variants. Departures: the Hessian is taken
      on D, not on a third batch; a round is epochs over all data, not a few batches; the adapted
      model takes an epoch of steps, not one; means are weighted by examples, not equal.
    """
    if batch_size % 2:
        raise ValueError(f"perfedavg: batch_size={batch_size} is not allowed; it must be even")
    nonnegative("perfedavg", alpha=alpha)
    positive("perfedavg", delta=delta)
    loss = loss or cross_entropy(model)
    grad = jax.grad(loss)

    def gradient(params, batch, key):
        first, second = _halves(batch)
        first_key, second_key = jax.random.split(key)
        value, g = jax.value_and_grad(loss)(params, first, first_key)
        d = grad(optax.tree.add_scale(params, -alpha, g), second, second_key)
        if not hessian_free:
            return value, d
        # The Hessian is that of the loss in the step above, draws included: hence its key again.
        up, down = (
            grad(optax.tree.add_scale(params, step, d), first, first_key)
            for step in (delta, -delta)
        )
        return value, optax.tree.add_scale(d, -alpha / (2 * delta), optax.tree.sub(up, down))

    tx, adapting = local_tx(learning_rate, local_optimizer), local_sgd(alpha)
    meta = local_training(loss, tx, local_epochs, batch_size, elementwise=True, gradient=gradient)
    adaptation = local_training(loss, adapting, 1, batch_size, elementwise=True)

    def client_update(server, client, data, key):
        w = server.params
        meta_key, adaptation_key = jax.random.split(key)
        result = meta.train(w, tx.init(w), data, meta_key)
        # From the received model, as a new client would: not from what the meta-steps made.
        adapted = adaptation.train(w, adapting.init(w), data, adaptation_key)
        message = optax.tree.sub(result.params, w)
        return ClientOutput(message, client, adapted.params, result.steps, result.metrics)

    return averaged(
        client_update,
        personal_params=lambda server, client, data: server.params,
        adapts_with="alpha",
    )


def _halves(batch):
    """Return every other example and the rest, or a single example twice."""
    first, second = (Batch(*(a[start::2] for a in batch)) for start in (0, 1))
    # A batch of one example would leave the second half without any.
    alone = jnp.sum(second.mask) == 0
    return first, jax.tree.map(lambda a, b: jnp.where(alone, a, b), first, second)
