"""The decoder of the Llama family, in a lower part that is frozen and a top part to adapt."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from pflalign_jax.models.base import check_sizes
from pflalign_jax.models.pretrained.configs import DecoderConfig
from pflalign_jax.models.pretrained.generation import greedy
from pflalign_jax.models.pretrained.split import (
    cast_weights,
    causal_mask,
    check_length,
    real_tokens,
    split_weights,
)

Cache = tuple[jax.Array, jax.Array]
"""Keys and values of one layer, each ``[B, S, key_value_heads, head width]``."""


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Turn pairs of features by angles that grow with the position (rotary embeddings).

    Feature i is paired with feature i + H / 2, as in transformers, and turned by
    ``position / theta ** (2 i / H)`` radians.

    Args:
      x: ``[B, T, heads, H]``.
      positions: ``[B, T]`` or ``[1, T]``.
      theta: base of the wavelengths.

    References:
      Su et al., arXiv:2104.09864.
    """
    half = x.shape[-1] // 2
    speeds = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None].astype(jnp.float32) * speeds[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class DecoderLayer(nn.Module):
    """Grouped-query attention and a gated network, each after an RMS norm, with residuals."""

    config: DecoderConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: Cache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, Cache]:
        """Return the hidden states and the keys and values.

        Args:
          x: ``[B, T, D]``.
          positions: ``[B, T]`` or ``[1, T]``.
          mask: ``[B, 1, T, S]``, True for keys that a query may see.
          cache: keys and values of S slots, of earlier calls; None: S is T.
          slot: the first of the T slots of the cache that these tokens are written to.
        """
        config = self.config
        head = config.hidden // config.heads
        narrow = head * config.key_value_heads

        def norm(name: str, x: jax.Array) -> jax.Array:
            return nn.RMSNorm(config.norm_eps, dtype=self.dtype, name=name)(x)

        def dense(width: int, name: str, x: jax.Array) -> jax.Array:
            return nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(x)

        z = norm("attention_norm", x)
        q, k, v = (
            dense(width, name, z).reshape(*x.shape[:2], -1, head)
            for name, width in (("q_proj", config.hidden), ("k_proj", narrow), ("v_proj", narrow))
        )
        q, k = (rotate(each, positions, config.rope_theta) for each in (q, k))
        if cache is not None:
            k, v = (
                lax.dynamic_update_slice_in_dim(old, new, slot, axis=1)
                for old, new in zip(cache, (k, v), strict=True)
            )
        z = jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape)
        x = x + dense(config.hidden, "o_proj", z)
        z = norm("mlp_norm", x)
        z = nn.silu(dense(config.intermediate, "gate_proj", z)) * dense(
            config.intermediate, "up_proj", z
        )
        return x + dense(config.hidden, "down_proj", z), (k, v)


class DecoderTop(nn.Module):
    """The top layers, each under a name of its own, ``layer_<i>``, and the last norm.

    Attributes:
      config: sizes of the whole model.
      adapt_layers: how many layers there are here.
      dtype: of computing.
    """

    config: DecoderConfig
    adapt_layers: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        caches: tuple[Cache, ...] | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple[Cache, ...]]:
        """Return hidden states ``[B, T, D]`` and caches; arguments as of `DecoderLayer`."""
        first = self.config.layers - self.adapt_layers
        kept = []
        for i in range(self.adapt_layers):
            layer = DecoderLayer(self.config, self.dtype, name=f"layer_{first + i}")
            x, cache = layer(x, positions, mask, None if caches is None else caches[i], slot)
            kept.append(cache)
        return nn.RMSNorm(self.config.norm_eps, dtype=self.dtype, name="norm")(x), tuple(kept)


class DecoderParts(NamedTuple):
    """A decoder as functions of its weights. All can be traced: jit, vmap and differentiate them.

    Attributes:
      config: sizes of the whole model.
      mask: ``tokens -> mask``, ``[B, L]``: True for tokens before the padding on the right.
      lower: ``(lower_weights, tokens) -> hidden``: ``[B, L]`` to ``[B, L, D]`` in the dtype of
        computing, the embedding and the lower layers. It has nothing to train, so that its outputs
        can be kept.
      top: ``(top_weights, hidden, mask) -> hidden``, ``[B, L, D]`` after the last norm. Its dense
        layers are ``layer_<i>/NAME``, with the names q_proj, k_proj, v_proj, o_proj, gate_proj,
        up_proj and down_proj.
      vocabulary: ``lower_weights -> [V, D]``, the rows whose products with hidden states are the
        logits; see `token_losses`.
      generate: ``(lower_weights, top_weights, prompts, new_tokens, end_id, prompt_mask) ->
        tokens``, see `greedy`; the mask may be left out, and is that of the prompts then.
      lower_weights: ``{"embedding": ..., "layers": ...}``, layers stacked, and ``"output"`` if the
        embedding is not tied.
      top_weights: ``{"layer_<i>": ..., "norm": ...}``, the parameters of `DecoderTop`.
    """

    config: DecoderConfig
    mask: Callable[[jax.Array], jax.Array]
    lower: Callable[[Any, jax.Array], jax.Array]
    top: Callable[[Any, jax.Array, jax.Array], jax.Array]
    vocabulary: Callable[[Any], jax.Array]
    generate: Callable[..., jax.Array]
    lower_weights: Any
    top_weights: Any


def decoder_parts(
    config: DecoderConfig, weights: dict[str, Any], adapt_layers: int, dtype: str = "float32"
) -> DecoderParts:
    """Return a decoder in two parts.

    Args:
      config: sizes.
      weights: as `load` returns them.
      adapt_layers: how many layers, from the top, belong to the top part; the others are run in
        one loop over stacked weights.
      dtype: in which it computes, ``"float32"`` or ``"bfloat16"``, and which matrices have.

    Raises:
      PretrainedError: if ``adapt_layers`` is not between 0 and the number of layers; for another
        dtype; from ``lower`` and ``generate``, for texts longer than the context.
      ValueError: from ``generate``, for less than one new token.
    """
    lower_weights, top_weights = split_weights(weights, config.layers, adapt_layers, dtype)
    top_weights["norm"] = cast_weights(weights["norm"], dtype)
    for name in ("embedding", "output"):
        if name in weights:
            lower_weights[name] = cast_weights(weights[name], dtype)
    layer = DecoderLayer(config, dtype)

    def lower_pass(
        weights: Any,
        tokens: jax.Array,
        positions: Any,
        mask: Any,
        caches: Any = None,
        slot: Any = 0,
        keep: bool = False,
    ) -> tuple[jax.Array, Any]:
        # Tokens that are not in the vocabulary become NaN, not the last token.
        x = jnp.take(weights["embedding"], tokens, axis=0, mode="fill").astype(dtype)
        if "layers" not in weights:
            return x, None

        def step(x: Any, each: Any) -> Any:
            x, cache = layer.apply({"params": each[0]}, x, positions, mask, each[1], slot)
            return x, cache if keep else None

        return lax.scan(step, x, (weights["layers"], caches))

    def top_pass(weights: Any, *arguments: Any) -> Any:
        return DecoderTop(config, adapt_layers, dtype).apply({"params": weights}, *arguments)

    def mask(tokens: jax.Array) -> jax.Array:
        return real_tokens(tokens, config.pad_id)

    def lower(weights: Any, tokens: jax.Array) -> jax.Array:
        check_length(tokens.shape[1], config.context)
        positions = jnp.arange(tokens.shape[1])[None]
        return lower_pass(weights, tokens, positions, causal_mask(mask(tokens)))[0]

    def top(weights: Any, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        positions = jnp.arange(hidden.shape[1])[None]
        return top_pass(weights, hidden, positions, causal_mask(mask))[0]

    def vocabulary(weights: Any) -> jax.Array:
        return weights["embedding" if config.tied else "output"]

    def generate(
        lower_weights: Any,
        top_weights: Any,
        prompts: jax.Array,
        new_tokens: int,
        end_id: int,
        prompt_mask: jax.Array | None = None,
    ) -> jax.Array:
        check_sizes("generate", new_tokens=new_tokens)
        check_length(prompts.shape[1] + new_tokens, config.context)
        real = mask(prompts) if prompt_mask is None else prompt_mask
        rows = vocabulary(lower_weights)

        def forward(tokens: Any, positions: Any, mask: Any, caches: Any, slot: Any) -> Any:
            low, high = (None, None) if caches is None else caches
            x, low = lower_pass(lower_weights, tokens, positions, mask, low, slot, True)
            x, high = top_pass(top_weights, x, positions, mask, high, slot)
            return x, (low, high)

        def logits(hidden: jax.Array) -> jax.Array:
            return jnp.einsum("bd,vd->bv", hidden, rows, preferred_element_type=jnp.float32)

        pad_id = end_id if config.pad_id is None else config.pad_id
        return greedy(forward, logits, prompts, real, new_tokens, end_id, pad_id)

    return DecoderParts(config, mask, lower, top, vocabulary, generate, lower_weights, top_weights)
