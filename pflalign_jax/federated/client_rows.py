"""Visit clients in chunks: read their rows, work on them, write their rows back in place.

States of the R clients of a device are arrays ``[R, ...]``, a row per client. A chunk is a few of
them, whose row numbers are ``[chunk]`` int32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def visit_rows(
    visit: Callable[[Any, Any], Any],
    carry: Any,
    rows: Any,
    count: jax.Array,
    chunk: int,
) -> Any:
    """Fold ``visit(carry, rows[i : i + chunk])`` over the first ``count`` rows.

    Args:
      visit: takes the carry and ``[chunk]`` row numbers, returns the carry.
      carry: any tree; updated in place by XLA where it can be.
      rows: ``[S]`` int32, S a multiple of ``chunk``; entries from ``count`` on are out of range
        and only fill the last chunk. Or a tree of such arrays.
      count: int32 scalar, how many rows are real.
      chunk: clients vmapped at a time.
    """

    def visit_chunk(i, carry):
        chunk_rows = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * chunk, chunk), rows)
        return visit(carry, chunk_rows)

    return lax.fori_loop(0, (count + chunk - 1) // chunk, visit_chunk, carry)


def map_clients(function: Callable, rows: jax.Array, *stacked: Any) -> Any:
    """Apply ``function`` to every client of a chunk: vmapped, or plainly if there is only one.

    Args:
      function: of one client.
      rows: ``[chunk]``.
      stacked: trees with leaves ``[chunk, ...]``.

    Returns:
      The results, leaves ``[chunk, ...]``.
    """
    if rows.shape[0] > 1:
        return jax.vmap(function, axis_size=rows.shape[0])(*stacked)
    # Without `jax.vmap` a loop inside keeps its own dynamic length and needs no masking, and its
    # matrix products stay unbatched, which is what a CPU runs fastest.
    only_client = jax.tree.map(lambda a: a[0], stacked)
    return jax.tree.map(lambda a: jnp.asarray(a)[None], function(*only_client))


def read_rows(tree: Any, rows: jax.Array) -> Any:
    """Return ``[chunk, ...]`` of every ``[R, ...]`` leaf; zeros where a row is out of range."""
    if rows.shape[0] == 1:
        return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, rows[0], 1), tree)
    return jax.tree.map(lambda a: a.at[rows].get(mode="fill", fill_value=0), tree)


def write_rows(tree: Any, rows: jax.Array, values: Any) -> Any:
    """Return ``tree`` with ``[chunk, ...]`` rows replaced; rows out of range are dropped."""
    if rows.shape[0] == 1:
        # A slice instead of a scatter: XLA updates it in place. It clamps a row out of range, but a
        # chunk of one is never filled up with such rows.
        return jax.tree.map(
            lambda a, b: lax.dynamic_update_slice_in_dim(a, b, rows[0], 0), tree, values
        )
    return jax.tree.map(lambda a, b: a.at[rows].set(b, mode="drop"), tree, values)


def finite_rows(rows: jax.Array, tree: Any) -> jax.Array:
    """Return ``[chunk]`` bool: whether every float of a client's row is finite.

    Args:
      rows: ``[chunk]``.
      tree: leaves ``[chunk, ...]``; those that are no floats do not count.
    """
    floats = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]

    def every_element():
        whole = [jnp.isfinite(a).all(axis=tuple(range(1, a.ndim))) for a in floats]
        return functools.reduce(jnp.logical_and, whole)

    # A finite sum of squares is proof, and two to three times as fast on a CPU. It may overflow
    # where all elements are finite: then, and only then, every element is looked at.
    squares = sum(map(_sum_of_squares, floats), jnp.zeros(rows.shape))
    finite_sum = jnp.isfinite(squares)
    return lax.cond(finite_sum.all(), lambda: finite_sum, every_element) if floats else finite_sum


def _sum_of_squares(a: jax.Array) -> jax.Array:
    """Return ``[chunk]``, of each row."""
    a = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    if a.shape[0] == 1:
        return jnp.vdot(a, a)[None]
    return jnp.sum(a * a, axis=tuple(range(1, a.ndim)))


def select_rows(chosen: jax.Array, new: Any, old: Any) -> Any:
    """Return the rows of ``new`` where ``chosen`` (``[chunk]`` bool), of ``old`` elsewhere.

    Both have leaves ``[chunk, ...]``.
    """
    return jax.tree.map(lambda a, b: jnp.where(_broadcast_to_rows(chosen, a), a, b), new, old)


def rows_or_zero(chosen: jax.Array, tree: Any) -> Any:
    """Return the rows of ``tree`` where ``chosen`` (``[chunk]`` bool), zeros elsewhere.

    Not by multiplication: zero times NaN is NaN.
    """

    def select(a: jax.Array) -> jax.Array:
        return jnp.where(_broadcast_to_rows(chosen, a), a, jnp.zeros((), a.dtype))

    return jax.tree.map(select, tree)


def _broadcast_to_rows(chosen: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.broadcast_to(chosen.reshape(-1, *[1] * (rows.ndim - 1)), rows.shape)
