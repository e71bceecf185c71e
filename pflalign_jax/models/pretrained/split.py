"""What both architectures share: the mask of real tokens, and weights in two parts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pflalign_jax.models.pretrained.errors import PretrainedError


def real_tokens(tokens: jax.Array, pad_id: int | None) -> jax.Array:
    """Return which of ``[B, L]`` tokens come before the padding on the right, bool ``[B, L]``.

    A token equal to ``pad_id`` inside a text is real: decoders often pad with their end token.
    """
    if pad_id is None:
        return jnp.ones(tokens.shape, bool)
    # Real is what has a token other than padding at it or to the right of it.
    return lax.cummax((tokens != pad_id).astype(jnp.int32), axis=1, reverse=True) > 0


def causal_mask(mask: jax.Array) -> jax.Array:
    """Return which keys each query may see, ``[B, 1, L, L]``, of real tokens ``[B, L]``."""
    length = mask.shape[1]
    return jnp.tril(jnp.ones((length, length), bool))[None, None] & mask[:, None, None, :]


def check_length(length: int, context: int) -> None:
    """Raise PretrainedError if texts of ``length`` tokens are longer than a model's context."""
    if length > context:
        raise PretrainedError(
            f"texts of {length} tokens are longer than the model's context, {context}; encode "
            "them with a smaller length"
        )


def split_weights(
    weights: dict[str, Any], layers: int, adapt_layers: int, dtype: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights of the lower and of the top layers, cast to the dtype of computing.

    Args:
      weights: with keys ``layer_<i>`` and others.
      layers: how many layers there are.
      adapt_layers: how many of them are top layers.
      dtype: of matrices, ``"float32"`` or ``"bfloat16"``; vectors stay in float32.

    Returns:
      ``{"layers": ...}`` with the lower layers' arrays stacked, ``[layers - adapt_layers, ...]``,
      absent if there are none; and ``{"layer_<i>": ...}``. Numpy arrays, those that need no cast
      and no stack being views.

    Raises:
      PretrainedError: if ``adapt_layers`` is not between 0 and ``layers``, or for another dtype.
    """
    if not 0 <= adapt_layers <= layers:
        raise PretrainedError(
            f"adapt_layers={adapt_layers} is not allowed; the model has {layers} layers, so it "
            f"must be between 0 and {layers}"
        )
    names = [f"layer_{i}" for i in range(layers)]
    cast = cast_weights({name: weights[name] for name in names}, dtype)
    split = layers - adapt_layers
    lower: dict[str, Any] = {}
    if split:
        rows = [cast[name] for name in names[:split]]
        lower["layers"] = jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
    return lower, {name: cast[name] for name in names[split:]}


def cast_weights(weights: Any, dtype: str) -> Any:
    """Return weights with matrices in the dtype of computing, and vectors in float32."""
    if dtype not in ("float32", "bfloat16"):
        raise PretrainedError(f"dtype={dtype!r} is not allowed; it is 'float32' or 'bfloat16'")

    def cast(array: np.ndarray) -> np.ndarray:
        kind = jnp.dtype(dtype if array.ndim > 1 else "float32")
        return array.astype(kind, copy=False)

    return jax.tree.map(cast, weights)
