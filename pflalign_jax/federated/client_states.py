"""Where client states live between rounds, and how a cohort's come to the devices.

All on devices (`StatesOnDevices`, here), or in a store from which each round stages its cohort
(`pflalign_jax.federated.stored_states.StatesInStore`).
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.federated.device_program import Visits
from pflalign_jax.federated.sharding import (
    SHARDED,
    PlacedData,
    Placement,
    by_device,
    place_clients,
    place_data,
    put_sharded,
)
from pflalign_jax.federated.snapshot import ClientSnapshot, arranged

PLACES = ("device", "host", "disk")
"""Where client states can live."""

ON_NODES = "nodes"
"""Where they live in a run whose clients are not simulated: each on its client's own machine."""

FirstState = Callable[[Any], Any]
"""``given -> state``, one client's first; compiled once for each function."""


class StagedClients(NamedTuple):
    """Clients on devices, ready for a program.

    Attributes:
      states: leaves ``[D, R, ...]``.
      data: their examples.
      visits: which rows each device visits.
      positions: ``[C]`` int, which clients are visited.
      device, row: ``[C]`` int, where each of them is.
    """

    states: Any
    data: PlacedData
    visits: Visits
    positions: np.ndarray
    device: np.ndarray
    row: np.ndarray


class ClientStates(Protocol):
    """Where clients live between rounds. ``clients`` is what a `FederationState` has of them."""

    reads_ahead: bool
    """Whether ``stage`` wants to know the next cohort."""

    def init(self, first: FirstState, given: Any) -> Any:
        """Return the clients before round 1."""

    def stage(
        self,
        clients: Any,
        round_index: int,
        cohort: np.ndarray,
        next_cohort: np.ndarray | None,
        score: bool,
    ) -> StagedClients:
        """Return a cohort on devices with its training data.

        Args:
          clients: after round ``round_index``.
          round_index: rounds done.
          cohort: ``[C]`` positions.
          next_cohort: what to read ahead; None: nothing.
          score: whether evaluation data are to be there, too.
        """

    def keep(self, staged: StagedClients, new_states: Any, round_index: int) -> Any:
        """Return the clients after a round."""

    def every(self, clients: Any) -> Iterator[StagedClients]:
        """Yield all clients, in one or several blocks, with evaluation data."""

    def one(self, clients: Any, k: int) -> Any:
        """Return the state of the client at position ``k``."""

    def save(self, clients: Any) -> ClientSnapshot:
        """Return what `restore` needs."""

    def restore(
        self,
        saved: ClientSnapshot,
        first: FirstState,
        given: Any,
        round_index: int,
        held: Iterable[int],
    ) -> Any:
        """Return the clients as `save` found them after ``round_index``.

        ``held`` are rounds before it that a store in files still holds.
        """

    def hold(self, rounds: Iterable[int]) -> None:
        """See `ClientStore`; nothing where clients are on devices."""


class StatesOnDevices:
    """All clients and their data on devices, each at home on one of them.

    Args:
      dataset: all clients.
      mesh, client_chunk, cohort_size: see `pflalign_jax.federated.federate`.
    """

    reads_ahead = False

    def __init__(
        self, dataset: FederatedDataset, mesh: Mesh, client_chunk: int, cohort_size: int
    ) -> None:
        self._sizes = dataset.splits["train"].sizes
        self._mesh, self._client_chunk, self._cohort_size = mesh, client_chunk, cohort_size
        self._placement = place_clients(self._sizes, mesh.size)
        self._data = place_data(
            dataset,
            self._placement,
            mesh,
            splits=nonempty_splits(dataset),
            longest=int(self._sizes.max()),
        )
        everyone = np.arange(dataset.num_clients, dtype=np.int32)
        self._positions = by_device(self._placement, everyone, -1)
        self._everyone = self._visit(np.arange(dataset.num_clients), self._placement.rows)
        self._sharding = NamedSharding(mesh, SHARDED)
        # One program for each function that makes a first state, however often it is called.
        self._program = functools.cache(self._make_program)

    def _visit(self, positions: np.ndarray, room: int) -> StagedClients:
        placement = self._placement
        visits = rows_to_visit(placement, positions, self._sizes, room, self._client_chunk)
        return StagedClients(
            states=None,
            data=self._data,
            visits=put_sharded(visits, self._mesh),
            positions=positions,
            device=placement.device[positions],
            row=placement.row[positions],
        )

    def _make_program(self, first: FirstState) -> Callable[[Any], Any]:
        shape = (self._mesh.size, self._placement.rows)

        def stacked(given):
            return jax.tree.map(lambda a: jnp.broadcast_to(a, shape + a.shape), first(given))

        return jax.jit(stacked, out_shardings=self._sharding)

    def init(self, first: FirstState, given: Any) -> Any:
        """See `ClientStates`."""
        return self._program(first)(given)

    def stage(
        self,
        clients: Any,
        round_index: int,
        cohort: np.ndarray,
        next_cohort: np.ndarray | None,
        score: bool,
    ) -> StagedClients:
        """See `ClientStates`."""
        if len(cohort) == len(self._sizes):
            return self._everyone._replace(states=clients)
        room = min(self._cohort_size, self._placement.rows)
        return self._visit(cohort, room)._replace(states=clients)

    def keep(self, staged: StagedClients, new_states: Any, round_index: int) -> Any:
        """See `ClientStates`."""
        return new_states

    def every(self, clients: Any) -> Iterator[StagedClients]:
        """See `ClientStates`."""
        yield self._everyone._replace(states=clients)

    def one(self, clients: Any, k: int) -> Any:
        """See `ClientStates`."""
        device, row = self._placement.device[k], self._placement.row[k]

        def state_of(a):
            if not a.is_fully_addressable:
                return a[device, row]
            (shard,) = (s for s in a.addressable_shards if s.index[0].start in (device, None))
            return jnp.asarray(np.asarray(shard.data)[0, row])  # no program over all devices

        return jax.tree.map(state_of, clients)

    def save(self, clients: Any) -> ClientSnapshot:
        """See `ClientStates`."""
        return ClientSnapshot(self._positions, clients)

    def restore(
        self,
        saved: ClientSnapshot,
        first: FirstState,
        given: Any,
        round_index: int,
        held: Iterable[int],
    ) -> Any:
        """See `ClientStates`."""
        return arranged(saved, self._positions, self._sharding)

    def hold(self, rounds: Iterable[int]) -> None:
        """See `ClientStates`."""


def nonempty_splits(dataset: FederatedDataset) -> list[str]:
    """Return the names of the splits that have examples."""
    return [split for split, owned in dataset.splits.items() if len(owned.indices)]


def rows_to_visit(
    placement: Placement, positions: np.ndarray, sizes: np.ndarray, room: int, client_chunk: int
) -> Visits:
    """Return the `Visits` of clients, the largest first, as NumPy arrays.

    Clients of a chunk run as long as its longest: sorted by size, few steps of it are masked.

    Args:
      placement: where clients are.
      positions: ``[C]``, whom to visit.
      sizes: ``[K]`` training examples.
      room: the most clients of a device.
      client_chunk: clients vmapped at a time.
    """
    width = -(-room // client_chunk) * client_chunk
    rows = np.full((placement.num_devices, width), placement.rows, np.int32)
    counts = np.zeros(placement.num_devices, np.int32)
    for k in positions[np.argsort(-sizes[positions], kind="stable")]:
        d = placement.device[k]
        rows[d, counts[d]] = placement.row[k]
        counts[d] += 1
    return Visits(rows, counts)  # type: ignore[arg-type]  # put on devices by the caller


def choose_place(
    state_bytes: int, data_bytes: int, mesh: Mesh, state_dir: str | os.PathLike | None
) -> str:
    """Return the first of `PLACES` with room for all clients in two fifths of its memory.

    Devices must hold states and data, the host the states only. A CPU's devices are the host.
    All processes are taken to be as large as this one, on hosts of their own.

    Args:
      state_bytes: of all clients' states.
      data_bytes: of all examples.
      mesh: the devices.
      state_dir: for ``"disk"``.

    Raises:
      ValueError: if only the disk has room and there is no ``state_dir``.
    """
    processes = len({device.process_index for device in mesh.devices.flat})
    host = processes * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in mesh.local_devices]
    told = [limit for limit in limits if limit]
    on_devices = processes * sum(told) if len(told) == len(limits) else host
    if state_bytes + data_bytes <= 0.4 * on_devices:
        return "device"
    if state_bytes <= 0.4 * host:
        return "host"
    if state_dir is None:
        raise ValueError(
            f"the clients' states take {state_bytes / 1e9:.1f} GB, too much for devices and host; "
            "pass state_dir, a directory to keep them on disk"
        )
    return "disk"
