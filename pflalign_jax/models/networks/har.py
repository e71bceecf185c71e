"""A convolutional network over time, for human activity recognition from inertial sensors."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pflalign_jax.models.base import Model, check_sizes, from_flax
from pflalign_jax.models.conv import patch_conv


class ConvPool1D(nn.Module):
    """Convolution over time, maximum of 2 neighbours, bias, ReLU; no padding.

    The bias is added after the maximum, which gives the same numbers with half of the work.

    Attributes:
      features: channels out.
      size: size of the kernel, in time steps.
    """

    features: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[B, T, C]`` to ``[B, (T - size + 1) // 2, features]``."""
        shape = (self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # As images of one row. The pooling below drops a last step that has no neighbour.
        x = patch_conv(x[:, None], kernel[None], (1, 1), "VALID")[:, 0]
        x = x[:, : x.shape[1] // 2 * 2].reshape(x.shape[0], -1, 2, self.features)
        return nn.relu(jnp.maximum(x[:, :, 0], x[:, :, 1]) + bias[None, None])


class HARCNN(nn.Module):
    """Two convolutions over time with pooling, a dense layer, dense ``num_classes``; ReLU.

    256,070 parameters for windows of 128 steps and 9 channels, and 6 classes. Attributes: as of
    `har_cnn`.
    """

    num_classes: int
    channels: int = 64
    kernel: int = 9
    dense: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[B, T, C]`` windows to ``[B, num_classes]`` logits."""
        # Two convolutions, each halved, must leave one step: ((T - k + 1) / 2 - k + 1) / 2 >= 1.
        least = 3 * self.kernel + 1
        if x.ndim != 3 or x.shape[1] < least:
            raise ValueError(
                f"har_cnn takes windows [B, T, C] of T >= {least} steps for kernel={self.kernel}; "
                f"got features of shape {x.shape}"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.float32)
        for i in range(2):
            x = ConvPool1D(self.channels, self.kernel, name=f"Conv_{i}")(x)
        x = nn.relu(nn.Dense(self.dense)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


def har_cnn(num_classes: int, channels: int = 64, kernel: int = 9, dense: int = 128) -> Model:
    """Return a network for windows of inertial signals, e.g. ``[B, 128, 9]``.

    It has the form of PFLlib's HARCNN: two convolutions of size 9 without padding, each with
    pooling by 2, so that 64 x 26 features go into the dense layers. The widths are ours; PFLlib has
    32 and 64 channels, then dense layers of 1,024 and 512.

    Args:
      num_classes: width of the last layer.
      channels: channels of both convolutions.
      kernel: size of both convolutions, in time steps.
      dense: width of the dense layer before the last.

    Raises:
      ValueError: if a size is below 1; and, from the model's ``init``, for windows too short.

    References:
      Zhang et al., PFLlib, arXiv:2312.04992.
    """
    check_sizes("har_cnn", num_classes=num_classes, channels=channels, kernel=kernel, dense=dense)
    return from_flax(HARCNN(num_classes, channels, kernel, dense), head="Dense_1")
