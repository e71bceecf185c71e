"""Compression of a message: the largest coordinates, 8 bits per coordinate, factors of low rank."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pflalign_jax.messages.transform import (
    MessageTransform,
    Sent,
    dense,
    stateless,
    with_error_feedback,
)


def top_k(fraction: float, error_feedback: bool = False) -> MessageTransform:
    """Return a transform that sends the coordinates of largest magnitude only; others become 0.

    It sends ``k = ceil(fraction P)`` values with their int32 positions, out of all P coordinates of
    the message together.

    Args:
      fraction: share of coordinates that is sent, in (0, 1].
      error_feedback: True: clients keep what compression left out and add it to their next
        message (`with_error_feedback`); without it most coordinates may never be sent.

    References:
      Stich et al., "Sparsified SGD with Memory", arXiv:1809.07599.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"top_k: fraction={fraction!r} is not allowed; it must be in (0, 1]")

    def num_kept(size: int) -> int:
        # Rounded first: 0.07 * 100 is 7.000000000000001, whose ceiling is 8.
        return math.ceil(round(fraction * size, 6))

    def update(message: Any, key: jax.Array) -> Any:
        del key
        flat, unravel = ravel_pytree(message)
        if not flat.size:
            return message
        _, chosen = jax.lax.top_k(jnp.abs(flat), num_kept(flat.size))
        return unravel(jnp.zeros_like(flat).at[chosen].set(flat[chosen]))

    def sent(shapes: Any, before: Sent) -> Sent:
        k = num_kept(dense(shapes).values)
        return before._replace(values=k, indices=k, factored=False)

    transform = stateless(update, sent)
    return with_error_feedback(transform) if error_feedback else transform


def int8(error_feedback: bool = False) -> MessageTransform:
    """Return a transform that sends one byte per coordinate, rounded at random without bias.

    An array x is sent as integers ``floor(x / s + u)`` with u uniform in [0, 1) and one scale
    ``s = max|x| / 127``; the expected value of these integers is ``x / s``.

    Args:
      error_feedback: True: clients keep what rounding took away and add it to their next message
        (`with_error_feedback`).

    References:
      Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
      arXiv:1610.02132, section 3, with the maximum as the scale.
    """

    def rounded(x: jax.Array, key: jax.Array) -> jax.Array:
        if not x.size:
            return x
        scale = jnp.abs(x).max() / 127
        draws = jax.random.uniform(key, x.shape, x.dtype)
        levels = jnp.floor(x / jnp.where(scale > 0, scale, 1) + draws)
        # Rounding in x / scale can reach 128 for the largest coordinate.
        integers = jnp.clip(levels, -127, 127).astype(jnp.int8)
        return integers.astype(x.dtype) * scale

    def update(message: Any, key: jax.Array) -> Any:
        leaves, treedef = jax.tree.flatten(message)
        keys = jax.random.split(key, max(len(leaves), 1))  # `split` does not take 0
        return jax.tree.unflatten(treedef, map(rounded, leaves, keys))

    def sent(shapes: Any, before: Sent) -> Sent:
        # The rounded product of two factors has no factors of its own: all of it has to be sent.
        start = dense(shapes) if before.factored else before
        return start._replace(value_bytes=1, scales=len(jax.tree.leaves(shapes)))

    transform = stateless(update, sent)
    return with_error_feedback(transform) if error_feedback else transform


def low_rank(rank: int, error_feedback: bool = False, iterations: int = 2) -> MessageTransform:
    """Return a transform that sends every matrix as two factors of a given rank.

    An array ``[..., n]`` is seen as a matrix ``M [m, n]``. With a random start S, the columns of
    ``Q = orth(M (M^T M)^iterations S)`` approximate its range. ``Q`` and ``M^T Q`` are sent, and
    the decoded message is ``Q Q^T M``. Arrays that this would not make smaller, such as vectors,
    are sent unchanged.

    Args:
      rank: r >= 1, rank of the factors that are sent.
      error_feedback: True: clients keep what compression left out and add it to their next
        message (`with_error_feedback`).
      iterations: steps of the power method; more come closer to the best approximation.

    References:
      Halko et al., "Finding Structure with Randomness", arXiv:0909.4061, Algorithm 4.4; Vogels et
      al., "PowerSGD", arXiv:1905.13727.
    """
    if rank < 1:
        raise ValueError(f"low_rank: rank={rank!r} is not allowed; it must be >= 1")
    if iterations < 0:
        raise ValueError(f"low_rank: iterations={iterations!r} is not allowed; it must be >= 0")

    def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return m and n of an array whose factors are smaller than itself, else None."""
        if len(shape) < 2:
            return None
        m, n = math.prod(shape[:-1]), shape[-1]
        return (m, n) if rank * (m + n) < m * n else None

    def approximated(x: jax.Array, key: jax.Array) -> jax.Array:
        m_and_n = matrix_shape(x.shape)
        if m_and_n is None:
            return x
        matrix = x.reshape(m_and_n)
        q, _ = jnp.linalg.qr(matrix @ jax.random.normal(key, (matrix.shape[1], rank), x.dtype))
        # Orthonormal in between: powers of M alone would leave all columns nearly parallel.
        for _ in range(iterations):
            p, _ = jnp.linalg.qr(matrix.T @ q)
            q, _ = jnp.linalg.qr(matrix @ p)
        return (q @ (q.T @ matrix)).reshape(x.shape)

    def update(message: Any, key: jax.Array) -> Any:
        leaves, treedef = jax.tree.flatten(message)
        keys = jax.random.split(key, max(len(leaves), 1))
        return jax.tree.unflatten(treedef, map(approximated, leaves, keys))

    def sent(shapes: Any, before: Sent) -> Sent:
        # What was sparse before is dense again in the factors.
        values = 0
        for leaf in jax.tree.leaves(shapes):
            m_and_n = matrix_shape(leaf.shape)
            values += leaf.size if m_and_n is None else rank * sum(m_and_n)
        return dense(shapes)._replace(values=values, factored=True)

    transform = stateless(update, sent)
    return with_error_feedback(transform) if error_feedback else transform
