"""Client states in a store, from which each round stages its cohort on the devices."""

import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from pflalign_jax.datasets import select_clients
from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.federated.client_states import (
    FirstState,
    StagedClients,
    nonempty_splits,
    rows_to_visit,
)
from pflalign_jax.federated.client_store import ClientStore, StoreError
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
from pflalign_jax.federated.snapshot import ClientSnapshot

Room = Callable[[str, int], int]
"""From a split and its most examples on one device to the length of its arrays."""


class PlacedCohort(NamedTuple):
    """Where the clients of a cohort go, and what is on devices already: all but their states.

    Attributes:
      placement: of the cohort.
      table: ``[D_here, R]`` positions of the clients on this process's devices, -1 for none.
      data: the cohort's examples.
      visits: which rows each device visits.
    """

    placement: Placement
    table: np.ndarray
    data: PlacedData
    visits: Visits


class Prefetched(NamedTuple):
    """A cohort that was read while the round before it ran; ``states`` are NumPy arrays."""

    positions: np.ndarray
    placed: PlacedCohort
    states: Any


class StatesInStore:
    """Keeps clients in a store; only a cohort's states and data are on devices.

    While a round runs, a thread reads the next cohort's data and states; states that the running
    round still changes come from its result. A written round is on its way to the store while the
    next one runs, in the same thread, so that reads and writes keep their order.

    With several processes every client is at home in one of them, which stores its state and reads
    its data; devices are balanced within a process.

    Args:
      dataset: all clients; ``x`` may be memory-mapped.
      mesh, client_chunk, cohort_size: see `pflalign_jax.federated.federate`.
      open_store: ``(first, until=None, held=()) -> ClientStore`` of all clients, from a client's
        first state; see `DiskStore`.
      in_files: whether the store holds rounds by itself.
    """

    reads_ahead = True

    def __init__(
        self,
        dataset: FederatedDataset,
        mesh: Mesh,
        client_chunk: int,
        cohort_size: int,
        open_store: Callable[..., ClientStore],
        in_files: bool,
    ) -> None:
        self._dataset, self._mesh, self._client_chunk = dataset, mesh, client_chunk
        self._open_store, self._in_files = open_store, in_files
        self._sizes = dataset.splits["train"].sizes
        self._longest = int(self._sizes.max())
        process_of = np.array([device.process_index for device in mesh.devices.flat])
        self._mine = process_of == jax.process_index()
        self._hosts = [np.flatnonzero(process_of == p) for p in sorted(set(process_of.tolist()))]
        self._home = place_clients(self._sizes, len(self._hosts)).device
        # A quarter more clients than an even share: large clients leave room for more small ones.
        even = -(-cohort_size // mesh.size)
        one_device = mesh.size == 1
        self._most = cohort_size if one_device else min(cohort_size, even + even // 4 + 1)
        self._blocks = [
            np.arange(start, min(start + cohort_size, dataset.num_clients))
            for start in range(0, dataset.num_clients, cohort_size)
        ]
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="client-store")
        # The run in progress: the store, the round that it is after, and what is under way.
        self._store: ClientStore | None = None
        self._round = 0
        self._table: np.ndarray | None = None
        self._latest: tuple[np.ndarray, Any] | None = None
        self._reading: concurrent.futures.Future[Prefetched] | None = None
        self._writing: concurrent.futures.Future[None] | None = None

    def init(self, first: FirstState, given: Any) -> Any:
        """See `ClientStates`.

        Raises:
          StoreError: if the store holds another run's states.
        """
        store = self._open_store(jax.jit(first)(given))
        if store.last_round():
            raise StoreError(
                f"the store holds client states after round {store.last_round()}; a new run needs "
                "an empty one, choose another directory"
            )
        return self._start(store, 0)

    def _start(self, store: ClientStore, round_index: int) -> Any:
        self._store, self._round = store, round_index
        self._reading = self._latest = self._writing = None
        return ()

    def _settled_store(self) -> ClientStore:
        """Return the store when all that was written is in it; raises what went wrong there."""
        assert self._store is not None
        if self._writing is not None:
            self._writing.result()
            self._writing = None
        return self._store

    def stage(
        self,
        clients: Any,
        round_index: int,
        cohort: np.ndarray,
        next_cohort: np.ndarray | None,
        score: bool,
    ) -> StagedClients:
        """See `ClientStates`.

        Raises:
          StoreError: for clients of another round than the store's.
        """
        if round_index != self._round:
            raise StoreError(
                f"the store holds client states after round {self._round}, the state given is of "
                f"round {round_index}; client states in a store cannot go back"
            )
        ahead = self._reading.result() if self._reading is not None else None
        if ahead is None or not np.array_equal(ahead.positions, cohort):
            self._settled_store()
            ahead = self._read_ahead(cohort)
        elif self._latest is not None:
            _overwrite(ahead.placed.table, ahead.states, *self._latest)
        placed = ahead.placed
        if score:
            placed = self._place(cohort, nonempty_splits(self._dataset))
        self._table = placed.table
        self._reading = None
        if next_cohort is not None:
            self._reading = self._thread.submit(self._read_ahead, next_cohort)
        return self._put_on_devices(ahead.states, cohort, placed)

    def keep(self, staged: StagedClients, new_states: Any, round_index: int) -> Any:
        """See `ClientStates`."""
        states = jax.tree.map(_rows_of_this_process, new_states)
        store, table = self._settled_store(), self._table
        assert table is not None
        self._latest, self._round = (table, states), round_index
        self._writing = self._thread.submit(store.write, table, states, round_index)
        return ()

    def every(self, clients: Any) -> Iterator[StagedClients]:
        """See `ClientStates`."""
        store = self._settled_store()
        for positions in self._blocks:
            splits = nonempty_splits(self._dataset)
            placed = self._place(positions, splits, lambda split, examples: self._rooms[split])
            yield self._put_on_devices(store.read(placed.table), positions, placed)

    def one(self, clients: Any, k: int) -> Any:
        """See `ClientStates`."""
        state = jax.tree.map(lambda a: a[0], self._settled_store().read(np.array([k])))
        if len(self._hosts) > 1:
            first_device = self._hosts[self._home[k]][0]
            state = multihost_utils.broadcast_one_to_all(state, is_source=self._mine[first_device])
        return jax.tree.map(jnp.asarray, state)

    def save(self, clients: Any) -> ClientSnapshot:
        """See `ClientStates`.

        Raises:
          StoreError: for states in the memory of several processes.
        """
        store = self._settled_store()
        if self._in_files:
            return ClientSnapshot(None, ())
        if len(self._hosts) > 1:
            raise StoreError(
                "client states in the memory of several processes cannot be saved; keep them on "
                "devices or on disk, or save no checkpoints"
            )
        written = np.flatnonzero(store.written()).astype(np.int32)
        return ClientSnapshot(written, store.read(written))

    def restore(
        self,
        saved: ClientSnapshot,
        first: FirstState,
        given: Any,
        round_index: int,
        held: Iterable[int],
    ) -> Any:
        """See `ClientStates`.

        Raises:
          StoreError: for clients that were kept in another place.
        """
        if self._in_files != (saved.positions is None):
            kept = "in files" if saved.positions is None else "in memory"
            raise StoreError(f"client states were kept {kept}; federate with the same place")
        first_state = jax.jit(first)(given)
        if saved.positions is None:
            return self._start(self._open_store(first_state, round_index, held), round_index)
        store = self._open_store(first_state)
        store.write(saved.positions, saved.states, round_index)
        return self._start(store, round_index)

    def hold(self, rounds: Iterable[int]) -> None:
        """See `ClientStates`."""
        self._settled_store().hold(rounds)

    def _place(
        self, positions: np.ndarray, splits: list[str], room: Room | None = None
    ) -> PlacedCohort:
        """Return the `PlacedCohort` of the clients at ``positions``."""
        sizes = self._sizes[positions]
        placement = _place_within_hosts(sizes, self._home[positions], self._hosts, self._most)
        data = place_data(
            select_clients(self._dataset, positions),
            placement,
            self._mesh,
            splits=splits,
            longest=self._longest,
            room=room or _bucket,
        )
        order = np.arange(len(positions))
        visits = rows_to_visit(placement, order, sizes, placement.rows, self._client_chunk)
        table = by_device(placement, positions, -1)[self._mine]
        return PlacedCohort(placement, table, data, put_sharded(visits, self._mesh))

    def _read_ahead(self, positions: np.ndarray) -> Prefetched:
        assert self._store is not None
        placed = self._place(positions, ["train"])
        return Prefetched(positions, placed, self._store.read(placed.table))

    def _put_on_devices(
        self, states: Any, positions: np.ndarray, placed: PlacedCohort
    ) -> StagedClients:
        sharding, size = NamedSharding(self._mesh, SHARDED), self._mesh.size
        clients = jax.tree.map(
            lambda a: jax.make_array_from_process_local_data(sharding, a, (size, *a.shape[1:])),
            states,
        )
        placement = placed.placement
        return StagedClients(
            states=clients,
            data=placed.data,
            visits=placed.visits,
            positions=positions,
            device=placement.device,
            row=placement.row,
        )

    @functools.cached_property
    def _rooms(self) -> dict[str, int]:
        """By split, what has room for every block: one scoring program for all of them."""
        devices = [
            _place_within_hosts(
                self._sizes[block], self._home[block], self._hosts, self._most
            ).device
            for block in self._blocks
        ]
        return {
            split: max(
                int(np.bincount(device, self._dataset.splits[split].sizes[block]).max())
                for block, device in zip(self._blocks, devices, strict=True)
            )
            for split in nonempty_splits(self._dataset)
        }


def _place_within_hosts(
    work: np.ndarray, home: np.ndarray, hosts: list[np.ndarray], most: int
) -> Placement:
    """Return the `Placement` of a cohort, every client on a device of its host.

    Args:
      work: ``[C]`` cost of each client.
      home: ``[C]`` index into ``hosts``.
      hosts: the devices of each host.
      most: clients per device; more where a host's members of the cohort need more.
    """
    device, row = np.zeros(len(work), np.int64), np.zeros(len(work), np.int64)
    for host, devices in enumerate(hosts):
        members = np.flatnonzero(home == host)
        rows = max(most, -(-len(members) // len(devices)))
        placed = place_clients(work[members], len(devices), rows)
        device[members], row[members] = devices[placed.device], placed.row
    highest = max(most, int(row.max(initial=-1)) + 1)
    # Rounded up to eights: cohorts that differ a little in this share a program.
    rows = most if highest == most else -(-highest // 8) * 8
    return Placement(device, row, rows, sum(map(len, hosts)))


def _rows_of_this_process(array: jax.Array) -> np.ndarray:
    """Return the rows ``[D_here, ...]`` of this process's devices as a NumPy array."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _overwrite(table: np.ndarray, states: Any, done: np.ndarray, new_states: Any) -> None:
    """Put states of the round just done over those that were read before it ended.

    ``table`` and ``done`` are ``[D, R]`` positions, -1 where there is no client.
    """
    index_of = {int(k): index for index, k in np.ndenumerate(done) if k >= 0}
    for index, k in np.ndenumerate(table):
        if int(k) in index_of:
            for read, made in zip(
                jax.tree.leaves(states), jax.tree.leaves(new_states), strict=True
            ):
                read[index] = made[index_of[int(k)]]


def _bucket(split: str, examples: int) -> int:
    """Round up to one of few lengths: a multiple of 64, and at most a quarter more for many.

    Arrays of another length need another program, which takes seconds to compile.
    """
    step = max(64, 1 << max(int(examples).bit_length() - 3, 0))
    return -(-max(examples, 1) // step) * step
