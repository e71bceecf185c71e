"""A small causal transformer for next-token prediction."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pflalign_jax.models.base import Model, check_sizes, from_flax


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each after a layer norm, with residuals."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[B, L, width]`` to the same shape."""
        width = x.shape[-1]
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        normed = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, deterministic=True)(normed, mask=mask)
        return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    """Token and position embeddings, blocks, layer norm, dense ``num_classes``.

    Attributes: as of `transformer`.
    """

    num_classes: int
    width: int = 128
    layers: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[B, L]`` tokens to ``[B, L, num_classes]`` logits of the next token."""
        # As many positions as the data have: texts of another length need another model.
        positions = self.param("positions", nn.initializers.normal(0.02), (x.shape[1], self.width))
        x = nn.Embed(self.num_classes, self.width)(x.astype(jnp.int32)) + positions[None]
        for _ in range(self.layers):
            x = Block(self.heads)(x)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x))


def transformer(num_classes: int, width: int = 128, layers: int = 2, heads: int = 4) -> Model:
    """Return a causal transformer, without dropout.

    Args:
      num_classes: size of the vocabulary, of inputs and outputs.
      width: width of the embeddings.
      layers: number of blocks.
      heads: number of attention heads; it must divide ``width``.

    Raises:
      ValueError: if ``heads`` does not divide ``width``, or a size is below 1.

    References:
      Vaswani et al., arXiv:1706.03762, with the layer norm first (Xiong et al., arXiv:2002.04745).
    """
    check_sizes("transformer", num_classes=num_classes, width=width, layers=layers, heads=heads)
    if width % heads:
        raise ValueError(f"transformer: heads={heads} does not divide width={width}")
    return from_flax(Transformer(num_classes, width, layers, heads), head="Dense_0")
