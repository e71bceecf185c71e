"""The one local training loop that all algorithms share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.datasets.features import normalise
from pflalign_jax.federated.algorithm import ClientData, Mean
from pflalign_jax.federated.validation import at_least_one, nonnegative
from pflalign_jax.models import Batch

Loss = Callable[[Any, Batch, jax.Array], jax.Array]
"""``(params, Batch, key) -> scalar``, the mean over the batch's real examples."""


class LocalResult(NamedTuple):
    """Outcome of a client's local steps.

    Attributes:
      params, opt_state: after the last step.
      steps: int32 scalar, T, how many there were.
      metrics: ``{"loss": Mean}``, the training loss over the examples seen, in nats.
    """

    params: Any
    opt_state: Any
    steps: jax.Array
    metrics: dict[str, Mean]


class LocalTraining(NamedTuple):
    """A configured local loop.

    Attributes:
      num_steps: ``ClientData -> T``, int32 scalar: steps that ``train`` will take.
      train: ``(params, opt_state, ClientData, key, **extra) -> LocalResult``; ``extra`` goes to
        the optimiser's ``update`` in every step.
    """

    num_steps: Callable[[ClientData], jax.Array]
    train: Callable[..., LocalResult]


def local_training(
    loss: Loss,
    tx: optax.GradientTransformation,
    local_epochs: int = 1,
    batch_size: int = 10,
    *,
    elementwise: bool = False,
    gradient: Callable[..., tuple[jax.Array, Any]] | None = None,
) -> LocalTraining:
    """Return minibatch training of one client with a dynamic number of steps.

    Every epoch visits the client's ``n`` examples once, in a fresh permutation drawn on the
    device, in ``ceil(n / batch_size)`` steps. The last batch of an epoch may be smaller: its
    padding is masked. With ``ClientData.drop_last`` it is left out, unless it is the only one. A
    client with ``n = 0`` (padding) takes no step, and none takes more than
    ``ClientData.max_steps``.

    Args:
      loss: ``(params, Batch, key) -> scalar``, the mean over the batch's real examples.
      tx: optax transform; extra arguments of ``train`` are passed on to its ``update``.
      local_epochs: passes over the client's data per round, >= 1.
      batch_size: examples per step, B >= 1.
      elementwise: True says that ``tx`` treats every coordinate alone (SGD, Adam, alignment), so
        that it may see arrays with one axis instead of the parameters' shapes: the same numbers,
        much faster on a CPU where the last axis is short, like 10 classes.
      gradient: ``(params, Batch, key) -> (value, direction)``, what a step descends along, where
        that is not the loss's gradient; ``loss`` is then not used.

    Returns:
      A `LocalTraining`. ``train`` consumes its key: one draw for the permutations, one for each
      step's loss.

    Raises:
      ValueError: if ``local_epochs`` or ``batch_size`` is below 1.
    """
    at_least_one("local_training", local_epochs=local_epochs, batch_size=batch_size)
    tx = optax.with_extra_args_support(tx)
    gradient = jax.value_and_grad(loss) if gradient is None else gradient

    def steps_per_epoch(data):
        steps, full = (data.size + batch_size - 1) // batch_size, data.size // batch_size
        if data.drop_last is None:
            return steps
        return jnp.where(jnp.logical_and(data.drop_last, full > 0), full, steps)

    def num_steps(data):
        steps = local_epochs * steps_per_epoch(data)
        return steps if data.max_steps is None else jnp.minimum(steps, data.max_steps)

    def train(params, opt_state, data, key, **extra):
        order_key, loss_key = jax.random.split(key)
        # The orders of all epochs before the loop: a sort inside it would be done at every step.
        orders = jax.vmap(lambda k: epoch_order(k, data))(jax.random.split(order_key, local_epochs))
        # A client without data takes no step, but its program still divides by this.
        per_epoch = jnp.maximum(steps_per_epoch(data), 1)
        last = data.positions.shape[0] - 1

        def step(t, carry):
            params, opt_state, total = carry
            position = t % per_epoch * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
            chosen = orders[t // per_epoch, jnp.minimum(position, last)]
            batch = take(data, chosen, position < data.size)
            value, grads = gradient(
                _shaped(params, given_params), batch, jax.random.fold_in(loss_key, t)
            )
            grads = _flat(grads) if elementwise else grads
            updates, opt_state = tx.update(grads, opt_state, params, **extra)
            params = optax.apply_updates(params, updates)
            seen = jnp.sum(batch.mask)
            total = Mean(total.total + value.astype(jnp.float32) * seen, total.weight + seen)
            return params, opt_state, total

        given_params, given_state = params, opt_state
        if elementwise:
            params, opt_state, extra = _flat((params, opt_state, extra))
        zero = Mean(jnp.zeros(()), jnp.zeros(()))
        steps = num_steps(data)
        # The number of steps is a value, not a shape: a client costs in proportion to its data.
        params, opt_state, total = jax.lax.fori_loop(0, steps, step, (params, opt_state, zero))
        params, opt_state = _shaped((params, opt_state), (given_params, given_state))
        return LocalResult(params, opt_state, steps, {"loss": total})

    return LocalTraining(num_steps, train)


def _flat(tree):
    """Return a tree with one axis where there were more."""
    return jax.tree.map(lambda a: a.reshape(-1) if jnp.ndim(a) > 1 else a, tree)


def _shaped(tree, like):
    """Undo `_flat`."""
    return jax.tree.map(lambda a, b: a.reshape(jnp.shape(b)), tree, like)


DIRECTIONS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),
    "adamw": lambda: optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.01)),
}
"""What `local_tx` steps along, by the optimiser's name."""


def local_tx(
    learning_rate: float, local_optimizer: str = "sgd", name: str = "learning_rate"
) -> optax.GradientTransformation:
    """Return the local optimiser of most algorithms; its state is new in every round.

    What an algorithm adds to a gradient (a pull to the global model, a drift) is part of the
    gradient that the optimiser is given. All three are elementwise.

    Args:
      learning_rate: step size, a number or a traced value.
      local_optimizer: what clients step with, in algorithms that do not say otherwise: "sgd";
        "momentum", SGD with momentum 0.9; or "adamw" with the values of PyTorch, β₁ 0.9, β₂ 0.999,
        ε 1e-8 and a weight decay of 0.01, which is multiplied by the step size.
      name: what errors call ``learning_rate``.

    Raises:
      ValueError: for another name, or unless ``learning_rate`` is finite and >= 0.

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
    """
    nonnegative("local_tx", **{name: learning_rate})
    return optax.chain(
        local_direction(local_optimizer), optax.scale_by_learning_rate(learning_rate)
    )


def local_direction(local_optimizer: str) -> optax.GradientTransformation:
    """Return what a local optimiser steps along, before it is scaled by ``-learning_rate``.

    Raises:
      ValueError: for a name that `local_tx` does not know.
    """
    if local_optimizer not in DIRECTIONS:
        raise ValueError(
            f"local_optimizer={local_optimizer!r} is unknown; choose from {', '.join(DIRECTIONS)}"
        )
    return DIRECTIONS[local_optimizer]()


def local_sgd(learning_rate: float, name: str = "learning_rate") -> optax.GradientTransformation:
    """Return plain SGD, whatever a config says of local optimisers.

    Raises:
      ValueError: unless ``learning_rate`` is finite and >= 0; it calls it ``name``.
    """
    nonnegative("local_sgd", **{name: learning_rate})
    return optax.sgd(learning_rate)


def proximal(mu: float, name: str = "mu") -> optax.GradientTransformationExtraArgs:
    """Return a transform that adds ``μ (params - centre)``, the gradient of ``μ/2 ‖w - centre‖²``.

    Its ``update`` takes ``centre``, a tree like the parameters.

    Raises:
      ValueError: unless ``mu`` is finite and >= 0; it calls it ``name``.
    """
    nonnegative("proximal", **{name: mu})

    def update(updates, state, params, *, centre, **extra):
        del extra
        pull = jax.tree.map(lambda g, w, c: g + mu * (w - c), updates, params, centre)
        return pull, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def add_drift() -> optax.GradientTransformationExtraArgs:
    """Return a transform that adds ``drift``, a tree like the parameters, to the gradient."""

    def update(updates, state, params=None, *, drift, **extra):
        del params, extra
        return optax.tree.add(updates, drift), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def projected(low: float, high: float) -> optax.GradientTransformation:
    """Return a transform after which parameters lie in ``[low, high]``; the last of a chain."""

    def update(updates, state, params):
        inside = jax.tree.map(lambda u, p: jnp.clip(p + u, low, high) - p, updates, params)
        return inside, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def epoch_order(key: jax.Array, data: ClientData) -> jax.Array:
    """Return ``[n_max]`` int32 whose first ``data.size`` entries permute ``0..size-1``.

    Real examples get random sort keys below 2**31, padding the largest one, so padding sorts
    last. Does not depend on ``n_max``.
    """
    keys = jax.random.bits(key, data.positions.shape, jnp.uint32) >> 1
    keys = jnp.where(data.positions < data.size, keys, jnp.uint32(2**32 - 1))
    _, order = jax.lax.sort_key_val(keys, data.positions)
    return order


def take(data: ClientData, chosen: jax.Array, mask: jax.Array) -> Batch:
    """Return the `Batch` of the client's examples at ``chosen`` (``[B]``), normalised."""
    rows = data.start + chosen
    x = data.x.at[rows].get(mode="clip")
    y = data.y.at[rows].get(mode="clip")
    return Batch(normalise(x, data.mean, data.std), y, mask.astype(jnp.float32))
