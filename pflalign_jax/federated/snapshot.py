"""The state of a federation as arrays that can be written, on whatever devices it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.federated.client_store import StoreError


class ClientSnapshot(NamedTuple):
    """Client states in the shape that they were kept in.

    Attributes:
      positions: ``[S]`` int32 of any shape S, which client is where; -1 for none. None: the states
        are in files of a store, which holds them for this round.
      states: leaves ``[S, ...]``; ``()`` where ``positions`` is None.
    """

    positions: np.ndarray | None
    states: Any


class Snapshot(NamedTuple):
    """All that a federation needs to go on from a round.

    Attributes:
      round: rounds done.
      key: uint32 data of the run's key.
      key_impl: name of the key's generator.
      server: the algorithm's server state.
      clients: the algorithm's client states.
    """

    round: int
    key: Any
    key_impl: str
    server: Any
    clients: ClientSnapshot


def arranged(saved: ClientSnapshot, table: np.ndarray, sharding: jax.sharding.Sharding) -> Any:
    """Return states ``[D, R, ...]`` on devices for a table ``[D, R]`` of positions, -1 for none.

    Raises:
      StoreError: if a client of the table was not saved.
    """
    if saved.positions is None:
        raise StoreError("client states were kept in files; federate with client_state_in='disk'")
    positions = np.asarray(saved.positions).reshape(-1)
    row_of = np.full(int(table.max()) + 1, -1)
    row_of[positions[positions >= 0]] = np.flatnonzero(positions >= 0)
    rows = row_of[table]
    if (rows[table >= 0] < 0).any():
        client = table[(table >= 0) & (rows < 0)][0]
        raise StoreError(f"no state was saved for the client at position {client}")
    rows = np.where(table >= 0, rows, 0)
    if np.array_equal(saved.positions, table):  # rows of nobody stay what they were, too
        rows = np.arange(table.size).reshape(table.shape)

    def on_devices(a):
        flat = np.asarray(a).reshape(-1, *a.shape[saved.positions.ndim :])
        return jax.make_array_from_callback(
            (*table.shape, *flat.shape[1:]), sharding, lambda index: flat[rows[index[:2]]]
        )

    return jax.tree.map(on_devices, saved.states)


def client_of(saved: ClientSnapshot, k: int, first: Any) -> Any:
    """Return the state of the client at position ``k``; ``first`` if it was never written."""
    where = np.argwhere(np.asarray(saved.positions) == k)
    if not len(where):
        return first
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[tuple(where[0])]), saved.states)
