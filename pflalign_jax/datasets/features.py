"""What models are given of stored features: normalised numbers, or tokens as they are."""

import jax
import jax.numpy as jnp


def normalise(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Return ``(x - mean) / std`` of ``[B, ...]`` examples in float32; tokens as they are."""
    if are_tokens(x.dtype):
        return x
    shift = jnp.broadcast_to(mean, x.shape[1:])[None]
    scale = jnp.broadcast_to(1 / std, x.shape[1:])[None]
    return (x.astype(jnp.float32) - shift) * scale


def are_tokens(dtype: jnp.dtype) -> bool:
    """Tell whether features of ``dtype`` are tokens: integers of more than 8 bits."""
    return jnp.issubdtype(dtype, jnp.integer) and jnp.dtype(dtype).itemsize > 1
