"""Bounds and noise: clipping of a message, Gaussian noise on it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.messages.transform import MessageTransform, dense, stateless


def clip(max_norm: float) -> MessageTransform:
    """Return a transform that scales a message down to a Euclidean norm of at most ``max_norm``.

    Args:
      max_norm: Euclidean norm, > 0, that clients scale their messages down to; the norm is over
        all coordinates together.

    Raises:
      ValueError: unless ``max_norm`` is finite and > 0.
    """
    check_norm("clip", max_norm)
    return stateless(lambda m, key: clipped(m, max_norm), lambda shapes, before: before)


def clipped(message: Any, max_norm: float) -> Any:
    """Return a message times ``min(1, max_norm / norm)``; NaN where its norm is not finite."""
    norm = optax.tree.norm(message)
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-30))
    # An infinite norm would give a scale of 0, and with it a message that looks finite. NaN tells
    # the round to leave the client out.
    scale = jnp.where(jnp.isfinite(norm), scale, jnp.nan)
    return optax.tree.scale(scale, message)


def check_norm(name: str, max_norm: float) -> None:
    """Raise an error if a bound is not finite and > 0; ``name`` is the caller's."""
    if not 0 < max_norm < math.inf:
        raise ValueError(f"{name}: max_norm={max_norm!r} is not allowed; it must be finite and > 0")


def gaussian_noise(std: float) -> MessageTransform:
    """Return a transform that adds Gaussian noise to every coordinate of a message.

    After `clip`, and as the last transform of a chain, it gives local differential privacy: the
    server sees nothing else (`pflalign_jax.messages.local_epsilon`). A message that was compressed
    before is dense again.

    Args:
      std: standard deviation >= 0 of Gaussian noise that clients add to every coordinate of what
        they send, after clipping, in the units of the message (local differential privacy).
    """
    if not 0 <= std < math.inf:
        raise ValueError(f"gaussian_noise: std={std!r} is not allowed; it must be finite and >= 0")
    return stateless(lambda m, key: noisy(m, std, key), lambda shapes, before: dense(shapes))


def noisy(tree: Any, std: float, key: jax.Array) -> Any:
    """Return a tree of floats plus Gaussian noise; consumes ``key``."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))  # `split` does not take 0
    noise = (jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys, strict=False))
    return jax.tree.unflatten(treedef, [a + std * n for a, n in zip(leaves, noise, strict=True)])
