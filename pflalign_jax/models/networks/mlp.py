"""Logistic regression and multilayer perceptrons."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from pflalign_jax.models.base import Model, check_sizes, from_flax


class MLP(nn.Module):
    """Dense layers with ReLU between them; features are flattened. Attributes: as of `mlp`."""

    num_classes: int
    hidden: Sequence[int] = (200,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[B, ...]`` features to ``[B, num_classes]`` logits."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


def mlp(num_classes: int, hidden: Sequence[int] = (200,)) -> Model:
    """Return a multilayer perceptron with ReLU.

    Args:
      num_classes: width of the last layer.
      hidden: widths of the layers before the last, e.g. ``(200,)``; empty is logistic regression.

    Raises:
      ValueError: if a width is below 1.
    """
    check_sizes("mlp", num_classes=num_classes, hidden=tuple(hidden))
    return from_flax(MLP(num_classes, tuple(hidden)), head=f"Dense_{len(hidden)}")


def logistic(num_classes: int) -> Model:
    """Return multinomial logistic regression.

    Args:
      num_classes: number of labels.
    """
    return mlp(num_classes, hidden=())
