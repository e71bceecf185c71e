"""Whose code a run's directory may make this process call."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pflalign_jax.runs import files
from pflalign_jax.runs.factories import FACTORIES, factories, metrics_outside
from pflalign_jax.runs.files import RunError


def refuse_code(workdir: pathlib.Path, config: Mapping[str, Any], modules: Sequence[str]) -> None:
    """Refuse a run that names functions which nobody here has asked for: it may be anybody's.

    Args:
      workdir: the run's directory.
      config: its ``config.json``.
      modules: whose functions may be called, besides those that this process has named.

    Raises:
      RunError: naming the function.
    """
    named = [
        str(config[section]["name"])
        for section in FACTORIES
        if section in config and config[section]["name"] not in factories(section)
    ]
    named += [str(n) for n in config.get("metrics", ()) if n not in metrics_outside()]
    for name in named:
        module, colon, _ = name.partition(":")
        if colon and module not in modules:
            raise RunError(
                f"{workdir / files.CONFIG} names {name}, which is code outside of pFLAlign-JAX. If "
                f"you trust that module, load the run with modules=({module!r},), or pass "
                f"--modules={module}"
            )
