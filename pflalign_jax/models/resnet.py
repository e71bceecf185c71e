"""Residual networks for small images."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from pflalign_jax.models.base import Model, from_flax
from pflalign_jax.models.batch_norm import BatchNorm
from pflalign_jax.models.cnn import CONVOLUTIONS

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2)}
NORMS = ("group", "batch")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with normalisation, and a shortcut past them.

    The shortcut is a 1x1 convolution with normalisation where the shape changes.

    Attributes:
      features: channels out.
      stride: of the first convolution and of the shortcut.
      norm: ``"group"`` or ``"batch"``.
      convolution: like `lax.conv_general_dilated`.
    """

    features: int
    stride: int
    norm: str
    convolution: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, x, mask=None):
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

    The form usual for CIFAR and meant for images of up to 64x64: no pooling after the first
    convolution, the later three stages halve the image. Padding and the convolutions'
    initialisation are torchvision's.

    For RGB images and 10 classes at depth 18 and width 64 there are 11,173,962 parameters, and
    9,600 more with ``norm="batch"``, the running statistics; at depth 10 there are 4,903,242.

    Layers ``GroupNorm_*`` or ``BatchNorm_*`` hold all that normalises, the last layer is
    ``Dense_0``, as algorithms need that split parameters by name.

    Attributes:
      num_classes: width of the last layer.
      depth: 18 (two blocks a stage) or 10 (one).
      width: channels of the first stage; the stages have 1, 2, 4 and 8 times as many.
      norm: ``"group"`` or ``"batch"`` (see `BatchNorm`). The groups are as many as divide the
        channels, at most 32 and of four channels or more.
      conv: ``"patches"`` (fast inside loops on a CPU, but keeps nine copies of a layer's input
        for the backward pass) or ``"lax"`` (for accelerators); the same parameters and outputs.
    """

    num_classes: int
    depth: int = 18
    width: int = 64
    norm: str = "group"
    conv: str = "patches"

    @nn.compact
    def __call__(self, x, mask=None):
        """Map ``[B, H, W, C]`` images to ``[B, num_classes]`` logits; ``mask`` in training."""
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


def _conv(x, features, size, stride, convolution):
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


def _normalised(x, norm, mask):
    if norm == "batch":
        return BatchNorm()(x, mask)
    return nn.GroupNorm(_groups(x.shape[-1]), epsilon=1e-5)(x)


def _groups(channels):
    """Return the largest divisor of ``channels`` that is at most 32 and ``channels // 4``."""
    most = max(1, min(32, channels // 4))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def resnet(
    num_classes: int, depth: int = 18, width: int = 64, norm: str = "group", conv: str = "patches"
) -> Model:
    """Return a residual network for images of up to 64x64; see `ResNet`.

    With ``norm="group"`` it is a function of parameters and example alone, in training too. With
    ``norm="batch"`` it has a ``train_apply`` that normalises with the batch's real examples, and
    running statistics that are parameters and follow the batches by gradient descent; `BatchNorm`
    says what that means for local optimisers and for averaging.

    Raises:
      ValueError: for an unknown ``depth``, ``norm`` or ``conv``, or ``width`` below 1.

    References:
      He et al., arXiv:1512.03385. Group normalisation: Wu and He, arXiv:1803.08494; in place of
      batch normalisation where clients' data differ: Hsieh et al., arXiv:1910.00189.
    """
    for name, value, known in (
        ("depth", depth, sorted(BLOCKS)),
        ("norm", norm, list(NORMS)),
        ("conv", conv, sorted(CONVOLUTIONS)),
    ):
        if value not in known:
            raise ValueError(f"resnet: {name}={value!r} is unknown; use one of {known}")
    if width < 1:
        raise ValueError(f"resnet: width={width!r} is not allowed; it must be >= 1")
    module = ResNet(num_classes, depth, width, norm, conv)
    model = from_flax(module, head="Dense_0")
    if norm == "group":
        return model
    return model._replace(train_apply=model.apply, train_features=model.features)
