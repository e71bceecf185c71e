"""The error of pretrained models, and the optional packages that read them."""

import importlib
from types import ModuleType

from pflalign_jax.errors import UserError


class PretrainedError(UserError, ValueError):
    """Pretrained weights, their config or their tokeniser cannot be used; the message says why."""


def optional_package(name: str, what_for: str) -> ModuleType:
    """Import an optional package, or say who needs it and how to get it.

    Raises:
      PretrainedError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PretrainedError(
            f"{what_for} needs the package {name!r}; pip install 'pflalign-jax[lm]'"
        ) from error
