"""Hyperparameters that a function refuses, by its name and the argument's.

Traced ones cannot be looked at and pass.
"""

import math

import jax


def nonnegative(function: str, **values: float) -> None:
    """Raise ValueError unless all values are finite and >= 0."""
    _allow(function, values, lambda value: 0 <= value < math.inf, "finite and >= 0")


def positive(function: str, **values: float) -> None:
    """Raise ValueError unless all values are finite and > 0."""
    _allow(function, values, lambda value: 0 < value < math.inf, "finite and > 0")


def at_least_one(function: str, **values: int) -> None:
    """Raise ValueError unless all values are >= 1."""
    _allow(function, values, lambda value: value >= 1, ">= 1")


def below_one(function: str, **values: float) -> None:
    """Raise ValueError unless all values are in [0, 1)."""
    _allow(function, values, lambda value: 0 <= value < 1, "in [0, 1)")


def at_most_one(function: str, **values: float) -> None:
    """Raise ValueError unless all values are in [0, 1]."""
    _allow(function, values, lambda value: 0 <= value <= 1, "in [0, 1]")


def known(value: object) -> bool:
    """Tell whether a value can be looked at."""
    return not isinstance(value, jax.core.Tracer)


def _allow(function, values, allowed, text):
    for name, value in values.items():
        if known(value) and not allowed(value):
            raise ValueError(f"{function}: {name}={value!r} is not allowed; it must be {text}")
