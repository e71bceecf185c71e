"""Versions of the packages that a run is computed with, for the files that say so."""

import importlib.metadata
from collections.abc import Mapping

import pflalign_jax

OWN = "pflalign-jax"


def versions(*names: str) -> dict[str, str]:
    """Return the version of this package and of others, by name."""
    # A clone need not be installed, and what is installed need not be this one.
    others = {name: importlib.metadata.version(name) for name in names}
    return {OWN: pflalign_jax.__version__, **others}


def other_versions(written: Mapping[str, str]) -> str:
    """Return which versions in a file are not those here; "" if all are the same."""
    here = versions(*(written.keys() - {OWN}))
    differ = [name for name in written if written[name] != here[name]]
    return ", ".join(f"{name} was {written[name]}, is {here[name]}" for name in differ)
