"""Visit clients in chunks: read their rows, work on them, write their rows back in place."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def visit_rows(
    visit: Callable[[Any, jax.Array], Any],
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

    def body(i, carry):
        own = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * chunk, chunk), rows)
        return visit(carry, own)

    return lax.fori_loop(0, (count + chunk - 1) // chunk, body, carry)


def each(function: Callable, rows: jax.Array, *stacked: Any) -> Any:
    """Apply ``function`` to every client of a chunk: vmapped, or plainly if there is only one.

    Without `jax.vmap` a loop inside ``function`` keeps its own dynamic length and needs no
    masking, and its matrix products stay unbatched, which is what a CPU runs fastest.

    Args:
      function: of one client.
      rows: ``[chunk]``.
      stacked: trees with leaves ``[chunk, ...]``.
    """
    if rows.shape[0] > 1:
        return jax.vmap(function, axis_size=rows.shape[0])(*stacked)
    return jax.tree.map(
        lambda a: jnp.asarray(a)[None], function(*jax.tree.map(lambda a: a[0], stacked))
    )


def read_rows(tree: Any, rows: jax.Array) -> Any:
    """Return ``[chunk, ...]`` of every ``[R, ...]`` leaf; zeros where a row is out of range."""
    if rows.shape[0] == 1:
        return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, rows[0], 1), tree)
    return jax.tree.map(lambda a: a.at[rows].get(mode="fill", fill_value=0), tree)


def write_rows(tree: Any, rows: jax.Array, values: Any) -> Any:
    """Return ``tree`` with ``[chunk, ...]`` rows replaced; rows out of range are dropped."""
    if rows.shape[0] == 1:
        return jax.tree.map(
            lambda a, b: lax.dynamic_update_slice_in_dim(a, b, rows[0], 0), tree, values
        )
    return jax.tree.map(lambda a, b: a.at[rows].set(b, mode="drop"), tree, values)
