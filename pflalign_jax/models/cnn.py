"""The convolutional network of the FedAvg paper."""

import flax.linen as nn
from jax import lax

from pflalign_jax.models.base import Model, from_flax
from pflalign_jax.models.conv import max_pool, patch_conv

CONVOLUTIONS = {"patches": patch_conv, "lax": lax.conv_general_dilated}


class CNN(nn.Module):
    """conv5x5-32, pool, conv5x5-64, pool, dense 512, dense ``num_classes``; ReLU, no padding.

    582,026 parameters for 28x28x1 images and 10 classes.

    Attributes:
      num_classes: width of the last layer.
      conv: ``"patches"`` (fast inside loops on a CPU) or ``"lax"``; the same parameters and
        outputs.
      features: channels of the two convolutions.
      dense: width of the dense layer before the last.
    """

    num_classes: int
    conv: str = "patches"
    features: tuple[int, int] = (32, 64)
    dense: int = 512

    @nn.compact
    def __call__(self, x):
        """Map ``[B, H, W, C]`` images to ``[B, num_classes]`` logits."""
        for channels in self.features:
            x = nn.Conv(
                channels,
                (5, 5),
                padding="VALID",
                conv_general_dilated=CONVOLUTIONS[self.conv],
            )(x)
            x = nn.relu(max_pool(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.dense)(x))
        return nn.Dense(self.num_classes)(x)


def cnn(
    num_classes: int,
    conv: str = "patches",
    features: tuple[int, int] = (32, 64),
    dense: int = 512,
) -> Model:
    """Return the FedAvg paper's network; see `CNN`.

    The layer sizes follow PFLlib's FedAvgCNN, a variant without padding of the network in
    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    AISTATS 2017.

    Raises:
      ValueError: for an unknown ``conv``.
    """
    if conv not in CONVOLUTIONS:
        raise ValueError(f"cnn: conv={conv!r} is unknown; use one of {sorted(CONVOLUTIONS)}")
    return from_flax(CNN(num_classes, conv, tuple(features), dense))
