"""Checks of an algorithm's arguments, before anything is traced.

An error names the function, the argument, its value and what is allowed. Values that are traced
cannot be looked at and pass.
"""

import math
from collections.abc import Sequence

import jax

from pflalign_jax.models import Model


def nonnegative(function: str, **values: float) -> None:
    """Raise ValueError unless all values are finite and >= 0.

    >>> nonnegative("fedprox", mu=-1.0)
    Traceback (most recent call last):
    ValueError: fedprox: mu=-1.0 is not allowed; it must be finite and >= 0
    """
    _check(function, values, lambda value: 0 <= value < math.inf, "finite and >= 0")


def positive(function: str, **values: float) -> None:
    """Raise ValueError unless all values are finite and > 0."""
    _check(function, values, lambda value: 0 < value < math.inf, "finite and > 0")


def at_least_one(function: str, **values: int) -> None:
    """Raise ValueError unless all values are >= 1."""
    _check(function, values, lambda value: value >= 1, ">= 1")


def below_one(function: str, **values: float) -> None:
    """Raise ValueError unless all values are in [0, 1)."""
    _check(function, values, lambda value: 0 <= value < 1, "in [0, 1)")


def at_most_one(function: str, **values: float) -> None:
    """Raise ValueError unless all values are in [0, 1]."""
    _check(function, values, lambda value: 0 <= value <= 1, "in [0, 1]")


def head_layers(function: str, model: Model, head: Sequence[str] | None) -> Sequence[str]:
    """Return ``head``, or the names of the model's own head where that is None.

    An explicit ``()`` means that no layer is the head.

    Raises:
      ValueError: if ``head`` is None and the model does not say which layers its head is.
    """
    if head is None and not model.head:
        raise ValueError(
            f"{function}: head=None is not allowed with a model that has no head of its own; name "
            "the layers, or () for none. Models of flax get a head by "
            "models.from_flax(module, head=NAME)"
        )
    return model.head if head is None else head


def has_adapters(function: str, model: Model) -> None:
    """Raise ValueError unless a model has low-rank adapters."""
    if model.adapters is None:
        raise ValueError(
            f"{function} trains low-rank adapters, and this model has none; use "
            "pretrained_encoder, pretrained_decoder or models.lora with rank >= 1"
        )


def sgd_only(function: str, local_optimizer: str) -> None:
    """Raise ValueError unless the local optimiser is SGD."""
    if local_optimizer != "sgd":
        raise ValueError(
            f"{function}: local_optimizer={local_optimizer!r} is not allowed; its formulas hold "
            "for steps of 'sgd' only"
        )


def is_concrete(value: object) -> bool:
    """Tell whether a value can be looked at, because it is not traced."""
    return not isinstance(value, jax.core.Tracer)


def _check(function, values, is_allowed, text):
    for name, value in values.items():
        if is_concrete(value) and not is_allowed(value):
            raise ValueError(f"{function}: {name}={value!r} is not allowed; it must be {text}")
