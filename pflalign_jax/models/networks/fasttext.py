"""A bag of words, for classification of texts."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pflalign_jax.models.base import Model, check_sizes, from_flax


class FastText(nn.Module):
    """Mean of the embeddings of a text's words, dense ``num_classes``.

    Unigrams only: no n-grams of words or characters, and no hashing. 1,280,260 parameters for
    20,000 words and 4 classes. The gradient of the embeddings is dense, ``[vocabulary, width]``,
    also for a batch of few words. Attributes: as of `fasttext`.
    """

    num_classes: int
    vocabulary: int = 20000
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[B, L]`` tokens to ``[B, num_classes]`` logits; a text of padding has mean 0."""
        x = x.astype(jnp.int32)
        embedded = nn.Embed(self.vocabulary, self.width)(x)
        is_word = (x != 0).astype(embedded.dtype)
        total = jnp.sum(embedded * is_word[..., None], axis=1)
        # Counted in float32: bfloat16 cannot count above 256.
        num_words = jnp.sum(is_word, axis=1, dtype=jnp.float32)
        mean = total / jnp.maximum(num_words, 1).astype(total.dtype)[:, None]
        return nn.Dense(self.num_classes)(mean)


def fasttext(num_classes: int, vocabulary: int = 20000, width: int = 64) -> Model:
    """Return a bag-of-words classifier.

    Args:
      num_classes: width of the last layer.
      vocabulary: number of tokens, as many as the dataset's; 0 is padding and never learnt, a
        token of ``vocabulary`` or above turns its example's logits into NaN.
      width: width of the embeddings.

    Raises:
      ValueError: if ``vocabulary`` is below 2 (padding and a word) or another size below 1.

    References:
      Joulin et al., "Bag of Tricks for Efficient Text Classification", arXiv:1607.01759.
    """
    check_sizes("fasttext", num_classes=num_classes, width=width)
    check_sizes("fasttext", 2, vocabulary=vocabulary)
    return from_flax(FastText(num_classes, vocabulary, width), head="Dense_0")
