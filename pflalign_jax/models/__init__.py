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
from pflalign_jax.models.batch_norm import BatchNorm
from pflalign_jax.models.cnn import CNN, cnn
from pflalign_jax.models.fasttext import FastText, fasttext
from pflalign_jax.models.har import HARCNN, har_cnn
from pflalign_jax.models.lstm import LSTM, lstm
from pflalign_jax.models.mlp import MLP, logistic, mlp
from pflalign_jax.models.resnet import ResNet, resnet
from pflalign_jax.models.transformer import Transformer, transformer

NAMES = (
    "logistic",
    "mlp",
    "cnn",
    "resnet",
    "transformer",
    "lstm",
    "fasttext",
    "har_cnn",
)
"""What a config's ``model.name`` can be: functions of this module."""

__all__ = [
    "CNN",
    "HARCNN",
    "LSTM",
    "MLP",
    "NAMES",
    "Batch",
    "BatchNorm",
    "FastText",
    "Model",
    "ResNet",
    "Transformer",
    "cnn",
    "cross_entropy",
    "example_hits",
    "example_losses",
    "fasttext",
    "from_flax",
    "har_cnn",
    "logistic",
    "lstm",
    "mlp",
    "resnet",
    "transformer",
    "with_compute_dtype",
]
