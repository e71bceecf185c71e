"""Models as pure functions."""

from pflalign_jax.models.base import (
    Batch,
    Model,
    cross_entropy,
    example_hits,
    example_losses,
    from_flax,
    with_compute_dtype,
)
from pflalign_jax.models.cnn import CNN, cnn
from pflalign_jax.models.conv import max_pool, patch_conv
from pflalign_jax.models.mlp import MLP, logistic, mlp
from pflalign_jax.models.transformer import Transformer, transformer

__all__ = [
    "CNN",
    "MLP",
    "Batch",
    "Model",
    "Transformer",
    "cnn",
    "cross_entropy",
    "example_hits",
    "example_losses",
    "from_flax",
    "logistic",
    "max_pool",
    "mlp",
    "patch_conv",
    "transformer",
    "with_compute_dtype",
]
