"""Checks of config values, whose errors name the field, the value and what to do."""

import difflib
import types
import typing
from collections.abc import Iterable, Sequence

from pflalign_jax.errors import UserError


class ConfigError(UserError, ValueError):
    """A config that cannot be run; the message names the field, its value and what to do."""


def checked(name: str, value: object, kind: object) -> object:
    """Return ``value`` as ``kind``, a type or a union of types.

    Raises:
      ConfigError: if it is of another type.
    """
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is object or (value is None and origin is types.NoneType):
            return value
        if origin is float and (type(value) is int or type(value) is float):
            return float(value)
        if origin in (tuple, Sequence) and isinstance(value, list | tuple):
            items = set(typing.get_args(option)) - {...}
            if all(type(item) in items for item in value):
                return tuple(value)
        if type(value) is origin:
            return value
    wanted = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    raise ConfigError(f"config.{name}={value!r} is not allowed; it must be {wanted}")


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is not among ``choices``, with the nearest that is."""
    if value not in choices:
        raise ConfigError(f"config.{name}={value!r} is unknown{nearest(value, choices)}")


def nearest(name: object, choices: Iterable[str]) -> str:
    """Return the end of an error message: the nearest right name, and all of them."""
    choices = sorted(choices)
    close = difflib.get_close_matches(str(name), choices, n=1)
    return (f"; did you mean {close[0]!r}?" if close else ";") + f" choose from {choices}"


def _is_union(kind: object) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
