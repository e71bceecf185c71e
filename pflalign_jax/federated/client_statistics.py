"""What a client knows of its own data: label counts, mean features, its loss."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pflalign_jax.federated.algorithm import ClientData
from pflalign_jax.federated.local import Loss, take
from pflalign_jax.models.base import IGNORED, Model, labelled_features


class ClassFeatures(NamedTuple):
    """Sums over a client's training examples.

    Attributes:
      sums: ``[num_classes, F]``, of the features of each label.
      counts: ``[num_classes]``, examples of each label.
      squares: scalar, of the squared norms of all features.
    """

    sums: jax.Array
    counts: jax.Array
    squares: jax.Array

    @property
    def means(self) -> jax.Array:
        """``[num_classes, F]``, the mean features of each label; 0 for labels without examples."""
        return self.sums / jnp.maximum(self.counts, 1)[:, None]


def class_counts(data: ClientData, num_classes: int) -> jax.Array:
    """Return ``[num_classes]`` float32: the client's training examples of each label.

    Every position of a sequence that counts is an example.
    """
    # `positions` is as long as the largest client, so a smaller one looks beyond its own examples.
    # These are clipped to the array and get a weight of 0.
    is_own = data.positions < data.size
    labels = data.y.at[data.start + data.positions].get(mode="clip")
    is_own = is_own.reshape(is_own.shape + (1,) * (labels.ndim - 1)).astype(jnp.float32)
    weights = jnp.where(labels == IGNORED, 0, jnp.broadcast_to(is_own, labels.shape))
    return jnp.zeros(num_classes).at[labels].add(weights)


def class_features(
    model: Model, params: Any, data: ClientData, num_classes: int, batch_size: int
) -> ClassFeatures:
    """Return sums of the features of each label, in one pass over the client's training examples.

    Every position of a sequence counts as an example.

    Args:
      model: one with ``features``.
      params: its parameters.
      data: the client's.
      num_classes: number of labels; 1 sums over all labels.
      batch_size: examples per step.
    """
    width = params[model.head[0]]["kernel"].shape[0]
    # Features as when a model is scored, for example with running statistics of batches.
    scored = model._replace(train_features=None)

    def step(i, carry):
        sums, counts, squares = carry
        batch = _batch(data, i, batch_size)
        z, labels, mask = labelled_features(scored, params, batch)
        labels = jnp.zeros_like(labels) if num_classes == 1 else labels
        one_hot = jax.nn.one_hot(labels, num_classes) * mask[:, None]
        squares += jnp.sum(z * z * mask[:, None])
        return ClassFeatures(sums + one_hot.T @ z, counts + one_hot.sum(0), squares)

    start = ClassFeatures(jnp.zeros((num_classes, width)), jnp.zeros(num_classes), jnp.zeros(()))
    return jax.lax.fori_loop(0, _num_batches(data, batch_size), step, start)


def client_loss(
    loss: Loss,
    params: Any,
    data: ClientData,
    key: jax.Array | None = None,
    batch_size: int = 100,
) -> jax.Array:
    """Return the mean of a loss over a client's training examples, float32.

    Without examples it is 0. It is for comparing models, not for descending: the loop over the
    client's batches has no gradient in reverse mode.

    Args:
      loss: ``(params, Batch, key) -> scalar``, the mean over the batch's real examples; or several
        such means in one array.
      params: what the loss takes.
      data: the client's.
      key: for a loss that draws at random, of which every batch is given another; it is consumed.
        None: the same draws in every call.
      batch_size: examples per step.
    """
    key = jax.random.key(0) if key is None else key

    def step(i, total):
        batch = _batch(data, i, batch_size)
        value = loss(params, batch, jax.random.fold_in(key, i)).astype(jnp.float32)
        return total + value * jnp.sum(batch.mask)  # the last batch may be smaller

    shape = jax.eval_shape(loss, params, _batch(data, 0, batch_size), key).shape
    total = jax.lax.fori_loop(0, _num_batches(data, batch_size), step, jnp.zeros(shape))
    return total / jnp.maximum(data.size, 1)


def client_features(
    model: Model, params: Any, data: ClientData, batch_size: int = 100
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return features, labels and mask of a client's training examples.

    They are ``[N, F]``, ``[N]`` and ``[N]``, N at least the largest client's examples, in the order
    in which they are stored; the mask is 0 for padding. Every position of a sequence is an example.

    Args:
      model: one with ``features``.
      params: its parameters.
      data: the client's.
      batch_size: examples per step.
    """
    scored = model._replace(train_features=None)
    # As many batches as the largest client has: the result has the same shape for all.
    count = -(-len(data.positions) // batch_size)
    batches = jax.lax.map(
        lambda i: labelled_features(scored, params, _batch(data, i, batch_size)),
        jnp.arange(count, dtype=jnp.int32),
    )
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batches)


def hold_out(data: ClientData, every: int) -> tuple[ClientData, ClientData]:
    """Return a client's training examples without every ``every``-th of them, and those.

    Both are windows on a copy of the client's examples. Of fewer than ``every`` examples none is
    held out.
    """
    is_held = (data.positions % every == every - 1).astype(jnp.int32)
    # Those to train on come first, then those held out, then what is not the client's.
    order = jnp.argsort(jnp.where(data.positions < data.size, is_held, 2), stable=True)
    rows = data.start + order.astype(jnp.int32)
    x, y = (a.at[rows].get(mode="clip") for a in (data.x, data.y))
    num_held = data.size // every
    rest = data._replace(x=x, y=y, start=jnp.int32(0), size=data.size - num_held)
    return rest, rest._replace(start=rest.size, size=num_held)


def _num_batches(data, batch_size):
    return (data.size + batch_size - 1) // batch_size


def _batch(data, i, batch_size):
    """Return the client's i-th batch in the order in which its examples are stored."""
    chosen = i * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    return take(data, chosen, chosen < data.size)
