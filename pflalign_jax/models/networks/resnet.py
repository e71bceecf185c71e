"""Residual networks for small images."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from pflalign_jax.models.base import Model, check_sizes, from_flax
from pflalign_jax.models.conv import check_images
from pflalign_jax.models.networks.batch_norm import BatchNorm
from pflalign_jax.models.networks.cnn import CONVOLUTIONS

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2)}
"""Depth to the number of blocks in each of the four stages."""

NORMS = ("group", "batch")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with normalisation, and a shortcut past them.

    The shortcut is a 1x1 convolution with normalisation where the shape changes.

    Attributes:
      features: channels out.
      stride: stride of the first convolution and of the shortcut.
      norm: ``"group"`` or ``"batch"``.
      convolution: like `lax.conv_general_dilated`.
    """

    features: int
    stride: int
    norm: str
    convolution: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Map ``[B, H, W, C]`` to ``[B, ceil(H / stride), ceil(W / stride), features]``."""
        shortcut = x
        x = _conv(x, self.features, 3, self.stride, self.convolution)
        x = nn.relu(_normalised(x, self.norm, mask))
        x = _conv(x, self.features, 3, 1, self.convolution)
        x = _normalised(x, self.norm, mask)
        if shortcut.shape != x.shape:
            shortcut = _conv(shortcut, self.features, 1, self.stride, self.convolution)
            shortcut = _normalised(shortcut, self.norm, mask)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """3x3 convolution, four stages of basic blocks, mean over the image, dense layer.

    The usual form for CIFAR, for images of up to 64x64: no pooling after the first convolution,
    and each of the later three stages halves the image. Padding and the initialisation of the
    convolutions are those of torchvision.

    For RGB images and 10 classes at depth 18 and width 64 there are 11,173,962 parameters, and
    9,600 more with ``norm="batch"``, the running statistics; at depth 10 there are 4,903,242.

    The layers ``GroupNorm_*`` or ``BatchNorm_*`` have all parameters of normalisation, and the last
    layer is ``Dense_0``: some algorithms choose parameters by these names.

    The number of groups of group normalisation is the largest that divides the channels, is at most
    32, and leaves four channels or more to a group. Attributes: as of `resnet`.
    """

    num_classes: int
    depth: int = 18
    width: int = 64
    norm: str = "group"
    conv: str = "patches"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Map ``[B, H, W, C]`` images to ``[B, num_classes]`` logits; ``mask`` in training."""
        check_images("resnet", x)
        # Images may come as stored, in uint8; bfloat16 must stay bfloat16.
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.float32)
        convolution = CONVOLUTIONS[self.conv]
        x = _conv(x, self.width, 3, 1, convolution)
        x = nn.relu(_normalised(x, self.norm, mask))
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(self.width * 2**stage, stride, self.norm, convolution)(x, mask)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


def _conv(
    x: jax.Array, features: int, size: int, stride: int, convolution: Callable[..., jax.Array]
) -> jax.Array:
    """Return a convolution without bias, which the normalisation after it would cancel."""
    layer = nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=convolution,
    )
    return layer(x)


def _normalised(x: jax.Array, norm: str, mask: jax.Array | None) -> jax.Array:
    if norm == "batch":
        return BatchNorm()(x, mask)
    return nn.GroupNorm(_groups(x.shape[-1]), epsilon=1e-5)(x)


def _groups(channels: int) -> int:
    """Return the largest divisor of ``channels`` that is at most 32 and ``channels // 4``.

    32 as in the paper. Four channels or more in a group, because a group of one channel would be
    normalised to 0 where the image is down to one pixel.
    """
    most = max(1, min(32, channels // 4))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def resnet(
    num_classes: int, depth: int = 18, width: int = 64, norm: str = "group", conv: str = "patches"
) -> Model:
    """Return a residual network for images of up to 64x64; see `ResNet`.

    With ``norm="group"`` an example's output depends on the parameters and this example alone, in
    training too. With ``norm="batch"`` the model has a ``train_apply`` that normalises with the
    batch's real examples; its running statistics are parameters and follow the batches by gradient
    descent. `BatchNorm` says what that means for local optimisers and for averaging.

    Args:
      num_classes: width of the last layer.
      depth: number of layers: 18 (two blocks a stage) or 10 (one).
      width: channels of the first stage; the stages have 1, 2, 4 and 8 times as many.
      norm: normalisation: ``"group"``, or ``"batch"``, whose running statistics are parameters.
      conv: how convolutions are computed: ``"patches"`` (fast inside loops on a CPU, but keeps
        nine copies of a layer's input for the backward pass) or ``"lax"`` (for accelerators); the
        same parameters and outputs.

    Raises:
      ValueError: for an unknown ``depth``, ``norm`` or ``conv``, or ``width`` below 1.

    References:
      He et al., arXiv:1512.03385. Group normalisation: Wu and He, arXiv:1803.08494; instead of
      batch normalisation if clients' data differ: Hsieh et al., arXiv:1910.00189.
    """
    for name, value, allowed in (
        ("depth", depth, sorted(BLOCKS)),
        ("norm", norm, list(NORMS)),
        ("conv", conv, sorted(CONVOLUTIONS)),
    ):
        if value not in allowed:
            raise ValueError(f"resnet: {name}={value!r} is unknown; use one of {allowed}")
    check_sizes("resnet", num_classes=num_classes, width=width)
    module = ResNet(num_classes, depth, width, norm, conv)
    model = from_flax(module, head="Dense_0")
    if norm == "group":
        return model
    # The module takes a mask as its last argument, which is how it knows that it is in training.
    return model._replace(train_apply=model.apply, train_features=model.features)
