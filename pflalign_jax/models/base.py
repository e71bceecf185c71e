"""What the library asks of a model: two pure functions and a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class Batch(NamedTuple):
    """Examples of one local step.

    Attributes:
      x: ``[B, ...]`` normalised features (float32), or tokens as stored.
      y: ``[B]`` int32 labels (``[B, L]`` for sequences).
      mask: ``[B]`` float32, 1 for a real example, 0 for padding.
    """

    x: jax.Array
    y: jax.Array
    mask: jax.Array


class Model(NamedTuple):
    """A model as pure functions; works with flax, Haiku, Equinox or plain JAX alike.

    Attributes:
      init: ``(key, x) -> params`` for features ``x`` of shape ``[B, ...]``; consumes ``key``.
      apply: ``(params, x) -> logits``, ``[B, num_classes]`` (``[B, L, num_classes]``).
    """

    init: Callable[[jax.Array, jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]


def from_flax(module: nn.Module) -> Model:
    """Return the `Model` of a flax linen module that has parameters only (no mutable state).

    >>> model = from_flax(nn.Dense(3))
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 2)))
    >>> model.apply(params, jnp.ones((5, 2))).shape
    (5, 3)
    """

    def init(key, x):
        variables = module.init(key, x)
        extra = sorted(set(variables) - {"params"})
        if extra:
            raise ValueError(
                f"{type(module).__name__} has variable collections {extra} beside 'params'; "
                "only parameters are supported, use normalisation without running statistics"
            )
        return variables["params"]

    return Model(init, lambda params, x: module.apply({"params": params}, x))


def with_compute_dtype(model: Model, dtype: str) -> Model:
    """Return a model that computes in ``dtype``, e.g. ``"bfloat16"``.

    Parameters, their gradients and the logits that come out stay in float32: only a copy of the
    parameters and the features is cast, as is usual in mixed precision. Tokens are not cast.
    """

    def cast(a):
        return a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    def apply(params, x):
        return model.apply(jax.tree.map(cast, params), cast(x)).astype(jnp.float32)

    return Model(model.init, apply)


def example_losses(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross-entropy of each example in nats, ``[B]``, averaged over positions."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return losses.reshape(losses.shape[0], -1).mean(axis=1)


def example_hits(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the share of right predictions of each example, ``[B]`` float32 in [0, 1]."""
    hits = (jnp.argmax(logits, axis=-1) == y).astype(jnp.float32)
    return hits.reshape(hits.shape[0], -1).mean(axis=1)


def cross_entropy(model: Model) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """Return ``loss(params, batch, key)``, the mean cross-entropy of the batch's real examples.

    A mask of zeros gives a loss of 0. ``key`` is not used; models with dropout bring a loss of
    their own that does.
    """

    def loss(params, batch, key):
        del key
        losses = example_losses(model.apply(params, batch.x), batch.y)
        return jnp.sum(losses * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)

    return loss
