"""From features to a model's input: new ones as stored, numbers normalised, tokens unchanged."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.datasets.base import DatasetError, FederatedDataset
from pflalign_jax.datasets.values import held_by


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


def as_stored(x: np.ndarray, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Return new features as a dataset stores its own.

    Args:
      x: ``[N, ...]`` numbers of any type.
      shape, dtype: of an example of the dataset.

    Raises:
      DatasetError: for another shape, for what are no numbers or not finite, and for a number that
        ``dtype`` cannot hold; digits beyond the precision of floats may be lost.

    >>> as_stored(np.array([[0.0, 255.0]]), [2], "uint8").dtype
    dtype('uint8')
    """
    x, dtype = np.asarray(x), np.dtype(dtype)
    wanted = f"{dtype} of shape [N, {', '.join(map(str, shape))}]"
    if x.ndim == 0 or list(x.shape[1:]) != list(shape) or x.dtype.kind not in "fiub":
        raise DatasetError(f"x is {x.dtype}{list(x.shape)}; it must be {wanted}")
    if x.dtype == dtype and dtype.kind != "f":
        return x
    bad = ~np.isfinite(x) if dtype.kind == "f" else x != np.round(x)
    if bad.any():
        first = int(np.argmax(bad.reshape(len(x), -1).any(1)))
        raise DatasetError(
            f"x has {x[first][bad[first]].flat[0]} at example {first}; it must be {wanted}"
        )
    return held_by(x, dtype, "x")
