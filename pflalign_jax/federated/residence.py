"""Where clients live: all on devices, or in a store from which each round stages its cohort."""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from pflalign_jax.datasets import select_clients
from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.federated.placement import PlacedData, Placement, place_clients, place_data
from pflalign_jax.federated.step import OWN
from pflalign_jax.federated.store import ClientStore, StoreError

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
      init: ``(first, key) -> clients``; ``first(key)`` is one client's first state.
      stage: ``(clients, round, cohort, next_cohort, score) -> Staged`` with training data, and
        with evaluation data if ``score``; ``next_cohort`` (or None) is what to read ahead.
      keep: ``(staged, new_states, round) -> clients`` after a round.
      every: ``clients -> iterator of Staged`` that covers all clients, with evaluation data.
      one: ``(clients, k) -> state`` of the client at position ``k``.
      reads_ahead: whether ``stage`` wants to know the next cohort.
    """

    init: Callable[[Callable, jax.Array], Any]
    stage: Callable[..., Staged]
    keep: Callable[[Staged, Any, int], Any]
    every: Callable[[Any], Iterator[Staged]]
    one: Callable[[Any, int], Any]
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
        return Staged(clients, data, *jax.device_put(rows, sharded), positions, device, row)

    everyone = visit(None, np.arange(dataset.num_clients), placement.rows)

    def init(first, key):
        @functools.partial(jax.jit, out_shardings=sharded)
        def stacked(key):
            shape = (mesh.size, placement.rows)
            return jax.tree.map(lambda a: jnp.broadcast_to(a, shape + a.shape), first(key))

        return stacked(key)

    def stage(clients, round_index, cohort, next_cohort, score):
        if len(cohort) == dataset.num_clients:
            return everyone._replace(clients=clients)
        return visit(clients, cohort, min(cohort_size, placement.rows))

    def one(clients, k):
        return jax.tree.map(lambda a: a[placement.device[k], placement.row[k]], clients)

    return Residence(
        init,
        stage,
        lambda staged, new_states, round_index: new_states,
        lambda clients: iter([everyone._replace(clients=clients)]),
        one,
        reads_ahead=False,
    )


def staged_from(
    dataset: FederatedDataset,
    mesh: Mesh,
    client_chunk: int,
    cohort_size: int,
    open_store: Callable[[Any], ClientStore],
) -> Residence:
    """Keep clients in a store; only a cohort's states and data are on devices.

    While a round runs, a thread reads the next cohort's data and states; states that the running
    round still changes come from its result. A written round is on its way to the store while the
    next one runs, in the same thread, so that reads and writes keep their order.

    Args:
      dataset: all clients; ``x`` may be memory-mapped.
      mesh, client_chunk, cohort_size: see `pflalign_jax.federated.federate`.
      open_store: from a client's first state to a store of all clients.
    """
    sizes = dataset.splits["train"].sizes
    longest = int(sizes.max())
    sharded = NamedSharding(mesh, OWN)
    even = -(-cohort_size // mesh.size)
    rows_per_device = cohort_size if mesh.size == 1 else min(cohort_size, even + even // 4 + 1)
    thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="client-store")
    box: dict[str, Any] = {}

    def init(first, key):
        store = open_store(jax.jit(first)(key))
        if store.last_round():
            raise StoreError(
                f"the store holds client states after round {store.last_round()}; a new run needs "
                "an empty one, choose another directory"
            )
        box.update(store=store, round=0, ahead=None, latest=None, writing=None)
        return ()

    def place(positions, splits):
        """Return data, placement and rows of some clients, on devices."""
        chosen = select_clients(dataset, positions)
        placement = place_clients(sizes[positions], mesh.size, rows_per_device)
        data = place_data(chosen, placement, mesh, splits=splits, longest=longest, room=_bucket)
        order = np.arange(len(positions))
        rows = _rows(placement, order, sizes[positions], rows_per_device, client_chunk)
        return data, placement, jax.device_put(rows, sharded)

    def staged(states, positions, placed):
        data, placement, rows = placed
        device, row = placement.device, placement.row

        def arrange(leaf):
            block = np.zeros((mesh.size, rows_per_device, *leaf.shape[1:]), leaf.dtype)
            block[device, row] = leaf
            return block

        clients = jax.device_put(jax.tree.map(arrange, states), sharded)
        return Staged(clients, data, *rows, positions, device, row)

    def read_ahead(positions):
        return positions, box["store"].read(positions), place(positions, ("train",))

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
            _patch(ahead, box["latest"])
        placed = place(cohort, _splits(dataset)) if score else ahead[2]
        box["ahead"] = None if next_cohort is None else thread.submit(read_ahead, next_cohort)
        return staged(ahead[1], cohort, placed)

    def keep(done, new_states, round_index):
        states = jax.tree.map(lambda a: np.asarray(a)[done.device, done.row], new_states)
        settle()
        box.update(latest=(done.positions, states), round=round_index)
        box["writing"] = thread.submit(box["store"].write, done.positions, states, round_index)
        return ()

    def every(clients):
        settle()
        for start in range(0, dataset.num_clients, cohort_size):
            positions = np.arange(start, min(start + cohort_size, dataset.num_clients))
            states = box["store"].read(positions)
            yield staged(states, positions, place(positions, _splits(dataset)))

    def one(clients, k):
        settle()
        return jax.tree.map(lambda a: jnp.asarray(a[0]), box["store"].read(np.array([k])))

    return Residence(init, stage, keep, every, one, reads_ahead=True)


def choose_place(states: int, data: int, mesh: Mesh, state_dir: str | os.PathLike | None) -> str:
    """Return the first of `PLACES` with room for all clients in two fifths of its memory.

    Devices must hold states and data, the host the states only. A CPU's devices are the host.

    Args:
      states: bytes of all clients' states.
      data: bytes of all examples.
      mesh: the devices.
      state_dir: for ``"disk"``.

    Raises:
      ValueError: if only the disk has room and there is no ``state_dir``.
    """
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in mesh.devices.flat]
    if states + data <= 0.4 * (sum(limits) if all(limits) else host):
        return "device"
    if states <= 0.4 * host:
        return "host"
    if state_dir is None:
        raise ValueError(
            f"the clients' states take {states / 1e9:.1f} GB, too much for devices and host; pass "
            "state_dir, a directory to keep them on disk"
        )
    return "disk"


def _patch(ahead, latest):
    """Put states of the round just done over those that were read before it ended."""
    positions, states = ahead[:2]
    done, new_states = latest
    _, here, there = np.intersect1d(positions, done, return_indices=True)
    for old, new in zip(jax.tree.leaves(states), jax.tree.leaves(new_states), strict=True):
        old[here] = new[there]


def _splits(dataset):
    return [split for split, owned in dataset.splits.items() if len(owned.indices)]


def _bucket(examples):
    """Round up to one of few sizes: a multiple of 64, and at most an eighth more for large ones."""
    step = max(64, 1 << max(int(examples).bit_length() - 4, 0))
    return -(-max(examples, 1) // step) * step


def _rows(placement: Placement, positions, sizes, room, client_chunk):
    """Return ``[D, S]`` rows, the largest clients first, and ``[D]`` counts."""
    width = -(-room // client_chunk) * client_chunk
    rows = np.full((placement.num_devices, width), placement.rows, np.int32)
    counts = np.zeros(placement.num_devices, np.int32)
    for k in positions[np.argsort(-sizes[positions], kind="stable")]:
        d = placement.device[k]
        rows[d, counts[d]] = placement.row[k]
        counts[d] += 1
    return rows, counts
