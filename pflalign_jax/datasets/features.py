"""From stored features to a model's input: numbers are normalised, tokens are left unchanged."""

import jax
import jax.numpy as jnp

from pflalign_jax.datasets.base import FederatedDataset


def normalise(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Return ``(x - mean) / std`` of ``[B, ...]`` examples in float32; tokens unchanged."""
    if are_tokens(x.dtype):
        return x
    # Times 1 / std: one division per channel instead of one per feature.
    shift = jnp.broadcast_to(mean, x.shape[1:])[None]
    scale = jnp.broadcast_to(1 / std, x.shape[1:])[None]
    return (x.astype(jnp.float32) - shift) * scale


def are_tokens(dtype: jnp.dtype) -> bool:
    """Tell whether features of ``dtype`` are tokens: integers of more than 8 bits.

    Integers of 8 bits are the pixels of images, or flags and small counts.
    """
    return jnp.issubdtype(dtype, jnp.integer) and jnp.dtype(dtype).itemsize > 1


def input_dtype(dataset: FederatedDataset) -> jnp.dtype:
    """Return the dtype of a model's input: int32 for tokens, float32 for everything else."""
    return jnp.dtype(jnp.int32 if are_tokens(dataset.x.dtype) else jnp.float32)
