"""Where the states of clients live between rounds when they do not stay on devices.

A store holds one state per client, in host memory or in files. A client that was never written
reads as the algorithm's first state, so opening a store for a million clients costs next to
nothing. `pflalign_jax.federated.disk_store` has the one in files.
"""

import math
import mmap
from collections.abc import Iterable
from typing import Any, Protocol

import jax
import numpy as np

from pflalign_jax.errors import UserError


class StoreError(UserError):
    """A store that cannot be used; the message names the directory and says what to do."""


class ClientStore(Protocol):
    """States of K clients outside of devices.

    Positions are ints of any shape ``S``; -1 stands for no client.
    """

    def read(self, positions: np.ndarray) -> Any:
        """Return states ``[S, ...]``, NumPy copies; the first state where there is no client."""

    def write(self, positions: np.ndarray, state: Any, round_index: int) -> None:
        """Write states ``[S, ...]`` after a round: of all clients or, after a crash, of none."""

    def last_round(self) -> int:
        """Return the round that was written last; 0 for a new store."""

    def written(self) -> np.ndarray:
        """Return ``[K]`` bool, who was ever written; others read as the first state."""

    def hold(self, rounds: Iterable[int]) -> None:
        """Keep the states of these rounds on disk for reopening; delete other past ones.

        Each is the last round or one that is held already. A store in memory holds nothing.
        """


class HostStore:
    """A `ClientStore` in host memory.

    Args:
      first: every client's first state, a tree of arrays.
      num_clients: K.
    """

    def __init__(self, first: Any, num_clients: int):
        self._first, treedef = jax.tree.flatten(jax.tree.map(np.asarray, first))
        self._treedef: Any = treedef
        self._arrays = [_anonymous((num_clients, *leaf.shape), leaf.dtype) for leaf in self._first]
        self._written = np.zeros(num_clients, bool)
        self._last_round = 0

    def read(self, positions: np.ndarray) -> Any:
        """See `ClientStore`."""
        rows = first_rows(self._first, (positions >= 0) & self._written[positions])
        for k, where in clients_of(positions):
            if self._written[k]:
                for row, array in zip(rows, self._arrays, strict=True):
                    row[where] = array[k]
        return self._treedef.unflatten(rows)

    def write(self, positions: np.ndarray, state: Any, round_index: int) -> None:
        """See `ClientStore`."""
        rows = self._treedef.flatten_up_to(state)
        for k, where in clients_of(positions):
            for row, array in zip(rows, self._arrays, strict=True):
                array[k] = row[where]
            self._written[k] = True
        self._last_round = round_index

    def last_round(self) -> int:
        """See `ClientStore`."""
        return self._last_round

    def written(self) -> np.ndarray:
        """See `ClientStore`."""
        return self._written.copy()

    def hold(self, rounds: Iterable[int]) -> None:
        """Do nothing: states in memory are of the last round only."""


def clients_of(positions: np.ndarray) -> list[tuple[int, tuple[int, ...]]]:
    """Return ``[(client, index into the table)]`` of the clients that a table of positions has."""
    return [(int(k), where) for where, k in np.ndenumerate(positions) if k >= 0]


def first_rows(first: list[np.ndarray], known: np.ndarray) -> list[np.ndarray]:
    """Return rows for a table of positions, to be filled where ``known``, else first states."""
    rows = [np.empty((*known.shape, *leaf.shape), leaf.dtype) for leaf in first]
    for where in zip(*np.nonzero(~known), strict=True):
        for row, leaf in zip(rows, first, strict=True):
            row[where] = leaf
    return rows


def _anonymous(shape, dtype):
    """Return zeros that take memory row by row.

    NumPy's own would ask for huge pages, which the first write of every small row pays for.
    """
    size = math.prod(shape)
    if size == 0:
        return np.zeros(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype, size).reshape(shape)
