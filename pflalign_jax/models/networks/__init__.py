"""The models that are written with flax, one module for each; named in `pflalign_jax.models`."""

from pflalign_jax.models.networks.batch_norm import BatchNorm
from pflalign_jax.models.networks.cnn import CNN, cnn
from pflalign_jax.models.networks.fasttext import FastText, fasttext
from pflalign_jax.models.networks.har import HARCNN, har_cnn
from pflalign_jax.models.networks.lstm import LSTM, lstm
from pflalign_jax.models.networks.mlp import MLP, logistic, mlp
from pflalign_jax.models.networks.resnet import ResNet, resnet
from pflalign_jax.models.networks.transformer import Transformer, transformer

__all__ = [
    "CNN",
    "HARCNN",
    "LSTM",
    "MLP",
    "BatchNorm",
    "FastText",
    "ResNet",
    "Transformer",
    "cnn",
    "fasttext",
    "har_cnn",
    "logistic",
    "lstm",
    "mlp",
    "resnet",
    "transformer",
]
