"""Models as pure functions."""

import importlib
from typing import TYPE_CHECKING, Any

from pflalign_jax.models.base import (
    Batch,
    Model,
    cross_entropy,
    example_hits,
    example_losses,
    from_flax,
    with_compute_dtype,
)
from pflalign_jax.models.lora import lora, merge

if TYPE_CHECKING:
    from pflalign_jax.models.language import pretrained_decoder, pretrained_encoder
    from pflalign_jax.models.networks import (
        CNN,
        HARCNN,
        LSTM,
        MLP,
        BatchNorm,
        FastText,
        ResNet,
        Transformer,
        cnn,
        fasttext,
        har_cnn,
        logistic,
        lstm,
        mlp,
        resnet,
        transformer,
    )

NAMES = (
    "logistic",
    "mlp",
    "cnn",
    "resnet",
    "transformer",
    "lstm",
    "fasttext",
    "har_cnn",
    "pretrained_encoder",
    "pretrained_decoder",
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
    "lora",
    "lstm",
    "merge",
    "mlp",
    "pretrained_decoder",
    "pretrained_encoder",
    "resnet",
    "transformer",
    "with_compute_dtype",
]


def __getattr__(name: str) -> Any:
    """Return one of the networks, which are imported when the first of them is asked for.

    They need flax, which takes a third of JAX's time to start. Who brings a model of another
    library, or only uses `pflalign_jax.align_transform`, does not wait for it.
    """
    if name in ("pretrained_decoder", "pretrained_encoder"):
        return getattr(importlib.import_module(f"{__name__}.language"), name)
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.networks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return all public names, also of what is not imported yet."""
    return __all__
