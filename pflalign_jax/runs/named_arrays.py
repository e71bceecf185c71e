"""Trees as arrays by name, and back; what is read is compared with what must be there."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pflalign_jax.errors import UserError


class NamedArraysError(UserError):
    """Arrays that are not those of a tree; the message names the first of them."""


def named_arrays(prefix: str, tree: Any) -> dict[str, Any]:
    """Return ``{prefix.path: leaf}``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        ".".join((prefix, jax.tree_util.keystr(path, simple=True, separator="."))): leaf
        for path, leaf in leaves
    }


def tree_of_named(arrays: Mapping[str, np.ndarray], prefix: str, shapes: Any, lead: int = 0) -> Any:
    """Return the arrays under ``prefix`` as the tree of ``shapes``, after ``lead`` axes.

    Raises:
      NamedArraysError: for an array that is missing, too much, or of another shape or type.
    """
    wanted = named_arrays(prefix, shapes)
    found = {k: a for k, a in arrays.items() if k == prefix or k.startswith(prefix + ".")}
    # First what is missing or too much, then what has another shape or type.
    different = sorted(set(wanted) ^ set(found)) or [
        name
        for name, leaf in wanted.items()
        if found[name].shape[lead:] != leaf.shape or found[name].dtype != leaf.dtype
    ]
    if different:
        name = different[0]
        here = (
            f"{found[name].dtype}{list(found[name].shape[lead:])}" if name in found else "missing"
        )
        there = f"{wanted[name].dtype}{list(wanted[name].shape)}" if name in wanted else "nothing"
        raise NamedArraysError(f"{name} is {here} there, expected is {there}")
    return jax.tree.unflatten(jax.tree.structure(shapes), [found[name] for name in wanted])
