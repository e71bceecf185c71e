"""Parts of parameter trees, chosen by path: heads, bodies, normalisation layers."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any


def part_mask(params: Params, patterns: Sequence[str]) -> Any:
    """Return a tree of bools like ``params``: True where a part of a leaf's path matches.

    Args:
      params: parameters, or their shapes.
      patterns: names or shell patterns, e.g. ``("Dense_1",)`` or ``("*Norm*",)``, compared with
        every key on the way to a leaf.

    Raises:
      ValueError: if a pattern matches nothing, with the keys that there are.

    >>> part_mask({"body": {"w": 1, "b": 2}, "head": 3}, ["head"])
    {'body': {'b': False, 'w': False}, 'head': True}
    """
    paths = [_keys(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(key, pattern) for path in paths for key in path):
            raise ValueError(
                f"no parameter's path has a part like {pattern!r}; the parameters are "
                f"{sorted({'/'.join(path) for path in paths})}"
            )

    def chosen(path, leaf):
        del leaf
        keys = _keys(path)
        return any(fnmatch.fnmatchcase(key, pattern) for key in keys for pattern in patterns)

    return jax.tree_util.tree_map_with_path(chosen, params)


def partition_params(params: Params, mask: Any) -> tuple[Params, Params]:
    """Return the part that ``mask`` chooses and the rest, None in place of what is left out.

    None is no leaf: such trees are as small as they look, and `jax.tree.map` skips the holes.
    """
    chosen = jax.tree.map(lambda m, p: p if m else None, mask, params)
    return chosen, jax.tree.map(lambda m, p: None if m else p, mask, params)


def combine_params(part: Params, rest: Params) -> Params:
    """Undo `partition_params`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, part, rest, is_leaf=lambda leaf: leaf is None
    )


def first_models(params: Params, key: jax.Array, count: int) -> Params:
    """Return several different first models, leaves ``[count, ...]``, from one.

    The first is ``params``. The others have the entries of each leaf in another order: as good as a
    new draw wherever an initialiser draws entries independently, which most do. What it sets to a
    constant (biases, gains) stays.

    Args:
      params: the first model, of which `Algorithm.init` is given one only.
      key: is consumed.
      count: number of models.
    """

    def stacked(key, leaf):
        keys = jax.random.split(key, count - 1)
        shuffled = [jax.random.permutation(k, leaf.ravel()).reshape(leaf.shape) for k in keys]
        return jnp.stack([leaf, *shuffled])

    return jax.tree.map(stacked, optax.tree.split_key_like(key, params), params)


def _keys(path):
    return [
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    ]
