"""Where clients live: all on devices, or in a store from which each round stages its cohort."""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from pflalign_jax.datasets import select_clients
from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.federated.client_store import ClientStore, StoreError
from pflalign_jax.federated.device_program import OWN
from pflalign_jax.federated.sharding import (
    PlacedData,
    Placement,
    by_device,
    over_devices,
    place_clients,
    place_data,
)
from pflalign_jax.federated.snapshot import ClientSnapshot, arranged

PLACES = ("device", "host", "disk")
"""Where client states can live."""


class Staged(NamedTuple):
    """Clients on devices, ready for a program.

    Attributes:
      clients: states, leaves ``[D, R, ...]``.
      data: their examples.
      rows: ``[D, S]`` int32, the rows to visit, largest clients first; R pads the last chunk.
      counts: ``[D]`` int32, how many of them are real.
      positions: ``[C]`` int, which clients are visited.
      device, row: ``[C]`` int, where each of them is.
    """

    clients: Any
    data: PlacedData
    rows: jax.Array
    counts: jax.Array
    positions: np.ndarray
    device: np.ndarray
    row: np.ndarray


class Residence(NamedTuple):
    """Where clients live between rounds.

    Attributes:
      init: ``(first, given) -> clients``; ``first(given)`` is one client's first state, compiled
        once for each ``first``.
      stage: ``(clients, round, cohort, next_cohort, score) -> Staged`` with training data, and
        with evaluation data if ``score``; ``next_cohort`` (or None) is what to read ahead.
      keep: ``(staged, new_states, round) -> clients`` after a round.
      every: ``clients -> iterator of Staged`` that covers all clients, with evaluation data.
      one: ``(clients, k) -> state`` of the client at position ``k``.
      save: ``clients -> ClientSnapshot``, what `restore` needs.
      restore: ``(ClientSnapshot, first, given, round, held) -> clients``, as `save` found them
        after ``round``; ``held`` are rounds before it that a store in files still holds.
      hold: ``rounds -> None``, see `ClientStore`; nothing where clients are on devices.
      reads_ahead: whether ``stage`` wants to know the next cohort.
    """

    init: Callable[[Callable, jax.Array], Any]
    stage: Callable[..., Staged]
    keep: Callable[[Staged, Any, int], Any]
    every: Callable[[Any], Iterator[Staged]]
    one: Callable[[Any, int], Any]
    save: Callable[[Any], ClientSnapshot]
    restore: Callable[..., Any]
    hold: Callable[[Iterable[int]], None]
    reads_ahead: bool


def on_devices(
    dataset: FederatedDataset, mesh: Mesh, client_chunk: int, cohort_size: int
) -> Residence:
    """Keep all clients and their data on devices, each at home on one of them."""
    sizes = dataset.splits["train"].sizes
    placement = place_clients(sizes, mesh.size)
    data = place_data(dataset, placement, mesh, splits=_splits(dataset), longest=int(sizes.max()))
    sharded = NamedSharding(mesh, OWN)

    def visit(clients, positions, room):
        rows = _rows(placement, positions, sizes, room, client_chunk)
        device, row = placement.device[positions], placement.row[positions]
        return Staged(clients, data, *over_devices(rows, mesh), positions, device, row)

    everyone = visit(None, np.arange(dataset.num_clients), placement.rows)

    @functools.cache
    def program(first):
        def stacked(given):
            shape = (mesh.size, placement.rows)
            return jax.tree.map(lambda a: jnp.broadcast_to(a, shape + a.shape), first(given))

        return jax.jit(stacked, out_shardings=sharded)

    def init(first, given):
        return program(first)(given)

    def stage(clients, round_index, cohort, next_cohort, score):
        if len(cohort) == dataset.num_clients:
            return everyone._replace(clients=clients)
        return visit(clients, cohort, min(cohort_size, placement.rows))

    def one(clients, k):
        device, row = placement.device[k], placement.row[k]

        def own(a):
            if not a.is_fully_addressable:
                return a[device, row]
            (shard,) = (s for s in a.addressable_shards if s.index[0].start in (device, None))
            return jnp.asarray(np.asarray(shard.data)[0, row])  # no program over all devices

        return jax.tree.map(own, clients)

    table = by_device(placement, np.arange(dataset.num_clients, dtype=np.int32), -1)
    return Residence(
        init,
        stage,
        lambda staged, new_states, round_index: new_states,
        lambda clients: iter([everyone._replace(clients=clients)]),
        one,
        lambda clients: ClientSnapshot(table, clients),
        lambda saved, *_: arranged(saved, table, sharded),
        lambda rounds: None,
        reads_ahead=False,
    )


def staged_from(
    dataset: FederatedDataset,
    mesh: Mesh,
    client_chunk: int,
    cohort_size: int,
    open_store: Callable[..., ClientStore],
    in_files: bool,
) -> Residence:
    """Keep clients in a store; only a cohort's states and data are on devices.

    While a round runs, a thread reads the next cohort's data and states; states that the running
    round still changes come from its result. A written round is on its way to the store while the
    next one runs, in the same thread, so that reads and writes keep their order.

    With several processes every client is at home in one of them, which stores its state and reads
    its data; devices are balanced within a process.

    Args:
      dataset: all clients; ``x`` may be memory-mapped.
      mesh, client_chunk, cohort_size: see `pflalign_jax.federated.federate`.
      open_store: ``(first, until=None, held=()) -> ClientStore`` of all clients, from a client's
        first state; see `disk_store`.
      in_files: whether the store holds rounds by itself.
    """
    sizes = dataset.splits["train"].sizes
    longest = int(sizes.max())
    process_of = np.array([device.process_index for device in mesh.devices.flat])
    mine = process_of == jax.process_index()
    hosts = [np.flatnonzero(process_of == p) for p in sorted(set(process_of.tolist()))]
    home = place_clients(sizes, len(hosts)).device
    even = -(-cohort_size // mesh.size)
    most = cohort_size if mesh.size == 1 else min(cohort_size, even + even // 4 + 1)
    thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="client-store")
    box: dict[str, Any] = {}

    def init(first, given):
        store = open_store(jax.jit(first)(given))
        if store.last_round():
            raise StoreError(
                f"the store holds client states after round {store.last_round()}; a new run needs "
                "an empty one, choose another directory"
            )
        return start(store, 0)

    def start(store, round_index):
        box.update(store=store, round=round_index, ahead=None, latest=None, writing=None)
        return ()

    def save(clients):
        settle()
        if in_files:
            return ClientSnapshot(None, ())
        if len(hosts) > 1:
            raise StoreError(
                "client states in the memory of several processes cannot be saved; keep them on "
                "devices or on disk, or save no checkpoints"
            )
        written = np.flatnonzero(box["store"].written()).astype(np.int32)
        return ClientSnapshot(written, box["store"].read(written))

    def restore(saved, first, given, round_index, held):
        if in_files != (saved.positions is None):
            kept = "in files" if saved.positions is None else "in memory"
            raise StoreError(f"client states were kept {kept}; federate with the same place")
        first = jax.jit(first)(given)
        if in_files:
            return start(open_store(first, round_index, held), round_index)
        store = open_store(first)
        store.write(saved.positions, saved.states, round_index)
        return start(store, round_index)

    def hold(rounds):
        settle()
        box["store"].hold(rounds)

    def place(positions, splits, room=_bucket):
        """Return who goes where, this process's table of positions, data and rows on devices."""
        placement = _place(sizes[positions], home[positions], hosts, most)
        chosen = select_clients(dataset, positions)
        data = place_data(chosen, placement, mesh, splits=splits, longest=longest, room=room)
        order = np.arange(len(positions))
        rows = _rows(placement, order, sizes[positions], placement.rows, client_chunk)
        table = by_device(placement, positions, -1)[mine]
        return placement, table, data, over_devices(rows, mesh)

    def staged(states, positions, placed):
        placement, _, data, rows = placed
        sharding = NamedSharding(mesh, OWN)
        clients = jax.tree.map(
            lambda a: jax.make_array_from_process_local_data(
                sharding, a, (mesh.size, *a.shape[1:])
            ),
            states,
        )
        return Staged(clients, data, *rows, positions, placement.device, placement.row)

    blocks = [
        np.arange(start, min(start + cohort_size, dataset.num_clients))
        for start in range(0, dataset.num_clients, cohort_size)
    ]

    @functools.cache
    def rooms():
        """Return, by split, what has room for every block: one program for all of them."""
        devices = [_place(sizes[block], home[block], hosts, most).device for block in blocks]
        return {
            split: max(
                int(np.bincount(device, dataset.splits[split].sizes[block]).max())
                for block, device in zip(blocks, devices, strict=True)
            )
            for split in _splits(dataset)
        }

    def read_ahead(positions):
        placed = place(positions, ("train",))
        return positions, placed, box["store"].read(placed[1])

    def settle():
        """Wait until what was written is in the store; raises what went wrong there."""
        if box["writing"] is not None:
            box["writing"].result()
            box["writing"] = None

    def stage(clients, round_index, cohort, next_cohort, score):
        if round_index != box["round"]:
            raise StoreError(
                f"the store holds client states after round {box['round']}, the state given is of "
                f"round {round_index}; client states in a store cannot go back"
            )
        ahead = box["ahead"].result() if box["ahead"] is not None else None
        if ahead is None or not np.array_equal(ahead[0], cohort):
            settle()
            ahead = read_ahead(cohort)
        elif box["latest"] is not None:
            _patch(ahead[1][1], ahead[2], *box["latest"])
        _, placed, states = ahead
        if score:
            placed = place(cohort, _splits(dataset))
        box["table"] = placed[1]
        box["ahead"] = None if next_cohort is None else thread.submit(read_ahead, next_cohort)
        return staged(states, cohort, placed)

    def keep(done, new_states, round_index):
        states = jax.tree.map(_own_rows, new_states)
        settle()
        box.update(latest=(box["table"], states), round=round_index)
        box["writing"] = thread.submit(box["store"].write, box["table"], states, round_index)
        return ()

    def every(clients):
        settle()
        for positions in blocks:
            placed = place(positions, _splits(dataset), lambda split, examples: rooms()[split])
            yield staged(box["store"].read(placed[1]), positions, placed)

    def one(clients, k):
        settle()
        state = jax.tree.map(lambda a: a[0], box["store"].read(np.array([k])))
        if len(hosts) > 1:
            state = multihost_utils.broadcast_one_to_all(state, is_source=mine[hosts[home[k]][0]])
        return jax.tree.map(jnp.asarray, state)

    return Residence(init, stage, keep, every, one, save, restore, hold, reads_ahead=True)


def _place(work, home, hosts, most):
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
    rows = most if highest == most else -(-highest // 8) * 8
    return Placement(device, row, rows, sum(map(len, hosts)))


def _own_rows(array):
    """Return the rows of this process's devices as a NumPy array."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def choose_place(states: int, data: int, mesh: Mesh, state_dir: str | os.PathLike | None) -> str:
    """Return the first of `PLACES` with room for all clients in two fifths of its memory.

    Devices must hold states and data, the host the states only. A CPU's devices are the host.
    All processes are taken to be as large as this one, on hosts of their own.

    Args:
      states: bytes of all clients' states.
      data: bytes of all examples.
      mesh: the devices.
      state_dir: for ``"disk"``.

    Raises:
      ValueError: if only the disk has room and there is no ``state_dir``.
    """
    processes = len({device.process_index for device in mesh.devices.flat})
    host = processes * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in mesh.local_devices]
    known = [limit for limit in limits if limit]
    if states + data <= 0.4 * (processes * sum(known) if len(known) == len(limits) else host):
        return "device"
    if states <= 0.4 * host:
        return "host"
    if state_dir is None:
        raise ValueError(
            f"the clients' states take {states / 1e9:.1f} GB, too much for devices and host; pass "
            "state_dir, a directory to keep them on disk"
        )
    return "disk"


def _patch(table, states, done, new_states):
    """Put states of the round just done over those that were read before it ended.

    ``table`` and ``done`` are ``[D, R]`` positions, -1 where there is no client.
    """
    where = {int(k): index for index, k in np.ndenumerate(done) if k >= 0}
    for index, k in np.ndenumerate(table):
        if int(k) in where:
            for read, made in zip(
                jax.tree.leaves(states), jax.tree.leaves(new_states), strict=True
            ):
                read[index] = made[where[int(k)]]


def _splits(dataset):
    return [split for split, owned in dataset.splits.items() if len(owned.indices)]


def _bucket(split, examples):
    """Round up to one of few lengths: a multiple of 64, and at most a quarter more for many."""
    step = max(64, 1 << max(int(examples).bit_length() - 3, 0))
    return -(-max(examples, 1) // step) * step


def _rows(placement, positions, sizes, room, client_chunk):
    """Return ``[D, S]`` rows, the largest clients first, and ``[D]`` counts."""
    width = -(-room // client_chunk) * client_chunk
    rows = np.full((placement.num_devices, width), placement.rows, np.int32)
    counts = np.zeros(placement.num_devices, np.int32)
    for k in positions[np.argsort(-sizes[positions], kind="stable")]:
        d = placement.device[k]
        rows[d, counts[d]] = placement.row[k]
        counts[d] += 1
    return rows, counts
