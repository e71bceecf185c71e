"""The convolutional network of the FedAvg paper."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from pflalign_jax.models.base import Model, check_sizes, from_flax
from pflalign_jax.models.conv import check_images, max_pool, patch_conv

CONVOLUTIONS = {"patches": patch_conv, "lax": lax.conv_general_dilated}
"""What a model's ``conv`` can be."""


class ConvPool(nn.Module):
    """5x5 convolution, 2x2 maximum, bias, ReLU, with the parameters of `flax.linen.Conv`.

    The bias is added after the maximum, which gives the same numbers with a quarter of the work.

    Attributes:
      features: channels out.
      convolution: like `lax.conv_general_dilated`.
    """

    features: int
    convolution: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[B, H, W, C]`` to ``[B, (H - 4) // 2, (W - 4) // 2, features]``."""
        shape = (5, 5, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        layout = lax.conv_dimension_numbers(x.shape, shape, ("NHWC", "HWIO", "NHWC"))
        x = self.convolution(x, kernel, (1, 1), "VALID", dimension_numbers=layout)
        return nn.relu(max_pool(x) + bias[None, None, None])


class CNN(nn.Module):
    """conv5x5-32, pool, conv5x5-64, pool, dense 512, dense ``num_classes``; ReLU, no padding.

    582,026 parameters for 28x28x1 images and 10 classes. Attributes: as of `cnn`.
    """

    num_classes: int
    conv: str = "patches"
    features: tuple[int, ...] = (32, 64)
    dense: int = 512

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[B, H, W, C]`` images to ``[B, num_classes]`` logits."""
        check_images("cnn", x, smallest=16)
        # Images may come as stored, in uint8; bfloat16 must stay bfloat16.
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.float32)
        for i, channels in enumerate(self.features):
            # Flax's own names, so that parameters are those of a network of flax's layers.
            x = ConvPool(channels, CONVOLUTIONS[self.conv], name=f"Conv_{i}")(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.dense)(x))
        return nn.Dense(self.num_classes)(x)


def cnn(
    num_classes: int,
    conv: str = "patches",
    features: tuple[int, ...] = (32, 64),
    dense: int = 512,
) -> Model:
    """Return the FedAvg paper's network; see `CNN`.

    The layer sizes follow PFLlib's FedAvgCNN, a variant without padding of the network in
    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    AISTATS 2017.

    Args:
      num_classes: width of the last layer.
      conv: how convolutions are computed: ``"patches"`` (fast inside loops on a CPU) or ``"lax"``
        (for accelerators); the same parameters and outputs.
      features: channels of the two convolutions.
      dense: width of the dense layer before the last.

    Raises:
      ValueError: for an unknown ``conv``, or a size below 1.
    """
    if conv not in CONVOLUTIONS:
        raise ValueError(f"cnn: conv={conv!r} is unknown; use one of {sorted(CONVOLUTIONS)}")
    check_sizes("cnn", num_classes=num_classes, features=tuple(features), dense=dense)
    return from_flax(CNN(num_classes, conv, tuple(features), dense), head="Dense_1")
