"""Losses over a large vocabulary, without the logits of all positions at once."""

import jax
import jax.numpy as jnp
from jax import lax


def token_losses(
    hidden: jax.Array, vocabulary: jax.Array, labels: jax.Array, chunk: int = 128
) -> jax.Array:
    """Return the negative log-likelihood of each label, in nats.

    Logits are ``hidden @ vocabulary.T`` in float32. At most ``chunk`` positions have theirs at a
    time, so that memory is ``chunk * V`` and not ``B * L * V``. Gradients and gradients of
    gradients work; `jax.jvp` does not.

    Args:
      hidden: ``[B, L, D]``.
      vocabulary: ``[V, D]``.
      labels: ``[B, L]`` integers; -1 does not count.
      chunk: how many positions are computed at once.

    Returns:
      ``[B, L]`` float32, 0 where labels do not count.
    """
    num_positions, width = labels.size, hidden.shape[-1]
    chunk = max(1, min(chunk, num_positions))
    num_chunks = -(-num_positions // chunk)
    filler = num_chunks * chunk - num_positions
    rows = jnp.pad(hidden.reshape(num_positions, width), ((0, filler), (0, 0)))
    targets = jnp.pad(labels.reshape(num_positions), (0, filler), constant_values=-1)
    rows, targets = rows.reshape(num_chunks, chunk, width), targets.reshape(num_chunks, chunk)
    return _losses(rows, vocabulary, targets).reshape(-1)[:num_positions].reshape(labels.shape)


def vocabulary_loss(
    hidden: jax.Array, vocabulary: jax.Array, labels: jax.Array, chunk: int = 128
) -> jax.Array:
    """Return the mean of `token_losses` over labels that count, nats per token; 0 without any.

    Args: as of `token_losses`.
    """
    losses = token_losses(hidden, vocabulary, labels, chunk)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(labels >= 0), 1)


def _logits(rows: jax.Array, vocabulary: jax.Array) -> jax.Array:
    return jnp.einsum("nd,vd->nv", rows, vocabulary, preferred_element_type=jnp.float32)


def _losses_of_chunk(logits: jax.Array, targets: jax.Array) -> jax.Array:
    of_target = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, None], axis=1)[:, 0]
    return jnp.where(targets >= 0, jax.nn.logsumexp(logits, axis=1) - of_target, 0.0)


def _logits_grad(logits: jax.Array, targets: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return the gradient of each position's loss by its logits, ``[chunk, V]``."""
    is_target = jnp.arange(logits.shape[1])[None] == targets[:, None]
    counts = (targets >= 0).astype(jnp.float32)[:, None]
    return (counts * (jax.nn.softmax(logits, axis=1) - is_target)).astype(dtype)


# The gradient by hidden states is computed with the losses, while a chunk's logits are there. The
# automatic one would keep all logits, or compute them again: half as much work again.
@jax.custom_vjp
def _losses(rows: jax.Array, vocabulary: jax.Array, targets: jax.Array) -> jax.Array:
    """Return losses ``[chunks, chunk]`` of rows ``[chunks, chunk, D]``."""

    def losses(each: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _losses_of_chunk(_logits(each[0], vocabulary), each[1])

    return lax.map(losses, (rows, targets))


Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Gradients of the losses by their rows, and the arguments."""


def _losses_forward(
    rows: jax.Array, vocabulary: jax.Array, targets: jax.Array
) -> tuple[jax.Array, Residuals]:
    def losses(each: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = _logits(each[0], vocabulary)
        grad = _logits_grad(logits, each[1], vocabulary.dtype) @ vocabulary
        return _losses_of_chunk(logits, each[1]), grad.astype(rows.dtype)

    values, grads = lax.map(losses, (rows, targets))
    return values, (grads, rows, vocabulary, targets)


def _losses_backward(residuals: Residuals, grad: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    grads, rows, vocabulary, targets = residuals

    # XLA drops this loop where nobody trains the vocabulary.
    def add(total: jax.Array, each: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        rows, targets, grad = each
        by_logits = _logits_grad(_logits(rows, vocabulary), targets, rows.dtype)
        scaled = rows * grad.astype(rows.dtype)[:, None]
        return total + jnp.einsum(
            "nv,nd->vd", by_logits, scaled, preferred_element_type=jnp.float32
        ), None

    zero = jnp.zeros(vocabulary.shape, jnp.float32)
    by_vocabulary, _ = lax.scan(add, zero, (rows, targets, grad))
    by_rows = grads * grad.astype(grads.dtype)[:, :, None]
    return by_rows, by_vocabulary.astype(vocabulary.dtype), None


_losses.defvjp(_losses_forward, _losses_backward)
