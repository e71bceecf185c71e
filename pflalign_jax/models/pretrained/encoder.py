"""The encoder of the BERT family, in a lower part that is frozen and a top part to adapt."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from pflalign_jax.models.pretrained.configs import EncoderConfig
from pflalign_jax.models.pretrained.split import (
    cast_weights,
    check_length,
    real_tokens,
    split_weights,
)


def _norm(config: EncoderConfig, dtype: str, name: str) -> nn.LayerNorm:
    # The fast variance, a difference of large numbers, is less exact than the rest.
    return nn.LayerNorm(config.norm_eps, dtype=dtype, use_fast_variance=False, name=name)


class EncoderEmbeddings(nn.Module):
    """The sum of the embeddings of token, position and token type 0, then a layer norm."""

    config: EncoderConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map ``[B, L]`` tokens to ``[B, L, D]``."""
        width = self.config.hidden
        check_length(tokens.shape[1], self.config.context)

        def embed(rows: int, name: str, ids: jax.Array) -> jax.Array:
            return nn.Embed(rows, width, dtype=self.dtype, name=name)(ids)

        positions = jnp.arange(tokens.shape[1])[None]
        x = embed(self.config.vocabulary, "word", tokens)
        x += embed(self.config.context, "position", positions)
        x += embed(self.config.token_types, "token_type", jnp.zeros_like(positions))
        return _norm(self.config, self.dtype, "norm")(x)


class EncoderLayer(nn.Module):
    """Self-attention and a network of one hidden layer, each with residual and layer norm after."""

    config: EncoderConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Map ``[B, L, D]`` to the same shape; ``mask`` ``[B, L]`` is True for real tokens."""
        config = self.config
        heads = (*x.shape[:2], config.heads, config.hidden // config.heads)

        def dense(width: int, name: str, x: jax.Array) -> jax.Array:
            return nn.Dense(width, dtype=self.dtype, name=name)(x)

        q, k, v = (
            dense(config.hidden, name, x).reshape(heads) for name in ("query", "key", "value")
        )
        z = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :]).reshape(x.shape)
        x = _norm(config, self.dtype, "attention_norm")(
            x + dense(config.hidden, "attention_output", z)
        )
        z = nn.gelu(dense(config.intermediate, "intermediate", x), approximate=False)
        return _norm(config, self.dtype, "output_norm")(x + dense(config.hidden, "output", z))


class EncoderTop(nn.Module):
    """The top layers, each under a name of its own, ``layer_<i>``, and the mean over real tokens.

    Attributes:
      config: sizes of the whole model.
      adapt_layers: how many layers there are here.
      dtype: of computing.
    """

    config: EncoderConfig
    adapt_layers: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Map hidden states ``[B, L, D]`` and mask ``[B, L]`` to ``[B, D]`` float32."""
        for i in range(self.config.layers - self.adapt_layers, self.config.layers):
            x = EncoderLayer(self.config, self.dtype, name=f"layer_{i}")(x, mask)
        return mean_pool(x, mask)


def mean_pool(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean of ``[B, L, D]`` over the positions of ``[B, L]`` that are True, float32.

    A text without a token has zeros.
    """
    weights = mask.astype(jnp.float32)[:, :, None]
    total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
    return total / jnp.maximum(jnp.sum(weights, axis=1), 1)


class EncoderParts(NamedTuple):
    """An encoder as functions of its weights. All can be traced: jit, vmap and differentiate them.

    Attributes:
      config: sizes of the whole model.
      mask: ``tokens -> mask``, ``[B, L]``: True for tokens before the padding.
      lower: ``(lower_weights, tokens) -> hidden``: ``[B, L]`` to ``[B, L, D]`` in the dtype of
        computing, the embeddings and the lower layers. It has nothing to train, so that its
        outputs can be kept.
      top: ``(top_weights, hidden, mask) -> pooled``, ``[B, D]`` float32, the mean over real tokens,
        which sentence-transformers scales to length 1 after that. Its dense layers are
        ``layer_<i>/NAME``, with the names query, key, value, attention_output, intermediate and
        output.
      lower_weights: ``{"embeddings": ..., "layers": ...}``, layers stacked.
      top_weights: ``{"layer_<i>": ...}``, the parameters of `EncoderTop`.
    """

    config: EncoderConfig
    mask: Callable[[jax.Array], jax.Array]
    lower: Callable[[Any, jax.Array], jax.Array]
    top: Callable[[Any, jax.Array, jax.Array], jax.Array]
    lower_weights: Any
    top_weights: Any


def encoder_parts(
    config: EncoderConfig, weights: dict[str, Any], adapt_layers: int, dtype: str = "float32"
) -> EncoderParts:
    """Return an encoder in two parts.

    Args:
      config: sizes.
      weights: as `load` returns them.
      adapt_layers: how many layers, from the top, belong to the top part; the others are run in
        one loop over stacked weights.
      dtype: in which it computes, ``"float32"`` or ``"bfloat16"``, and which matrices have.

    Raises:
      PretrainedError: if ``adapt_layers`` is not between 0 and the number of layers; for another
        dtype; from ``lower``, for texts longer than the context.
    """
    lower_weights, top_weights = split_weights(weights, config.layers, adapt_layers, dtype)
    lower_weights["embeddings"] = cast_weights(weights["embeddings"], dtype)

    def mask(tokens: jax.Array) -> jax.Array:
        return real_tokens(tokens, config.pad_id)

    def lower(weights: Any, tokens: jax.Array) -> jax.Array:
        real = mask(tokens)
        embeddings = EncoderEmbeddings(config, dtype)
        x = cast(jax.Array, embeddings.apply({"params": weights["embeddings"]}, tokens))
        layer = EncoderLayer(config, dtype)

        def step(x: jax.Array, params: Any) -> Any:
            return layer.apply({"params": params}, x, real), None

        return lax.scan(step, x, weights["layers"])[0] if "layers" in weights else x

    def top(weights: Any, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        layers = EncoderTop(config, adapt_layers, dtype)
        return cast(jax.Array, layers.apply({"params": weights}, hidden, mask))

    return EncoderParts(config, mask, lower, top, lower_weights, top_weights)
