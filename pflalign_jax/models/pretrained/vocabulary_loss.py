"""Losses over a large vocabulary, without the logits of all positions at once."""

import jax
import jax.numpy as jnp
from jax import lax


def token_losses(
    hidden: jax.Array, vocabulary: jax.Array, labels: jax.Array, chunk: int = 128
) -> jax.Array:
    """Return the negative log-likelihood of each label, in nats.

    Logits are ``hidden @ vocabulary.T`` in float32. At most ``chunk`` positions have theirs at a
    time, and gradients compute them again, so that memory is ``chunk * V`` and not ``B * L * V``.

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

    @jax.checkpoint
    def losses(each: tuple[jax.Array, jax.Array]) -> jax.Array:
        h, y = each
        logits = jnp.einsum("nd,vd->nv", h, vocabulary, preferred_element_type=jnp.float32)
        of_label = jnp.take_along_axis(logits, jnp.maximum(y, 0)[:, None], axis=1)[:, 0]
        return jnp.where(y >= 0, jax.nn.logsumexp(logits, axis=1) - of_label, 0.0)

    chunks = (rows.reshape(num_chunks, chunk, width), targets.reshape(num_chunks, chunk))
    return lax.map(losses, chunks).reshape(-1)[:num_positions].reshape(labels.shape)


def vocabulary_loss(
    hidden: jax.Array, vocabulary: jax.Array, labels: jax.Array, chunk: int = 128
) -> jax.Array:
    """Return the mean of `token_losses` over labels that count, nats per token; 0 without any.

    Args: as of `token_losses`.
    """
    losses = token_losses(hidden, vocabulary, labels, chunk)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(labels >= 0), 1)
