"""Checks of config values, whose errors name the field, the value and what to do."""

import contextlib
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Sequence
from operator import or_

from pflalign_jax.errors import UserError


class ConfigError(UserError, ValueError):
    """A config that cannot be run; the message names the field, its value and what to do."""


LARGEST = 2**31 - 1
"""The largest whole number of a config: programs and random keys count in 32 bits."""

LARGEST_FLOAT = 3.4e38
"""The largest number of a config that is finite in programs: they compute in float32."""

INFINITIES = ("inf", "-inf", "Infinity", "-Infinity")
"""What a config has for infinity from the command line and from json, which have no word for it."""


def checked(name: str, value: object, kind: object) -> object:
    """Return ``value`` as ``kind``, a type or a union of types.

    Infinity may be one of the texts `INFINITIES`; whether it is allowed is for the function to say
    that takes it.

    Raises:
      ConfigError: if it is of another type, or of no use to any function: NaN, an empty text, a
        whole number that programs cannot hold.
    """
    _refuse_useless(name, value)
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is object or (value is None and origin is types.NoneType):
            return value
        if origin is float and str not in options and isinstance(value, str):
            if value in INFINITIES:
                return float(value)
        if origin is float and (type(value) is int or type(value) is float):
            return float(value)
        if origin in (tuple, Sequence) and isinstance(value, list | tuple):
            kinds = [item for item in typing.get_args(option) if item is not ...]
            one = functools.reduce(or_, kinds) if kinds else object
            with contextlib.suppress(ConfigError):  # the message below has the whole list
                return tuple(checked(name, item, one) for item in value)
        elif type(value) is origin:
            return value
    wanted = " or ".join(map(_words, options))
    raise ConfigError(f"config.{name}={value!r} is not allowed; it must be {wanted}")


def in_range(name: str, value: int, least: int) -> None:
    """Refuse a whole number below ``least``."""
    if value < least:
        raise ConfigError(f"config.{name}={value} is not allowed; it must be >= {least}")


def _refuse_useless(name: str, value: object) -> None:
    """Raise an error for what no function can use, alone or in a list."""
    for item in value if isinstance(value, list | tuple) else (value,):
        reason = None
        if isinstance(item, float) and math.isnan(item):
            reason = "it must be a number"
        elif isinstance(item, float) and LARGEST_FLOAT < abs(item) < math.inf:
            reason = f"numbers go up to {LARGEST_FLOAT}, as in programs, which compute in float32"
        elif isinstance(item, str) and not item.strip():
            reason = "it must not be empty; None stands for the default"
        elif type(item) is int and abs(item) > LARGEST:
            reason = f"whole numbers go up to {LARGEST}"
        if reason is not None:
            raise ConfigError(f"config.{name}={value!r} is not allowed; {reason}")


def _words(option: object) -> str:
    """Return what a type is called in messages."""
    if option is types.NoneType:
        return "None"
    if (typing.get_origin(option) or option) in (tuple, Sequence):
        kinds = [item for item in typing.get_args(option) if item is not ...]
        of = " or ".join(map(_words, kinds))
        example = {"int": ", such as (8,)", "float": ", such as (0.5,)"}.get(of, "")
        return f"a list of {of}{example}"
    return getattr(option, "__name__", str(option))


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
