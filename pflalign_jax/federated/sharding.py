"""How clients and their data are spread over devices: a fixed, balanced assignment."""

import heapq
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.datasets.shift import shift_features

AXIS = "clients"
"""Name of the mesh axis over which clients are sharded."""

SHARDED: Any = PartitionSpec(AXIS)
"""Of arrays ``[D, ...]`` whose row d is on device d."""

REPLICATED: Any = PartitionSpec()
"""Of arrays that every device has whole."""


def client_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh along `AXIS`, over which clients are sharded.

    Args:
      devices: its devices; None: all, those of other processes among them.
    """
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


class Placement(NamedTuple):
    """Which device and row holds each client.

    Attributes:
      device: ``[K]`` int, index into the mesh's devices.
      row: ``[K]`` int, the client's row among its device's clients.
      rows: R, rows per device (the largest number of clients on one device).
      num_devices: D.
    """

    device: np.ndarray
    row: np.ndarray
    rows: int
    num_devices: int


class Block(NamedTuple):
    """One split's examples, grouped by client, on the devices of a mesh.

    Attributes:
      x: ``[D, N_d, ...]`` features as stored.
      y: ``[D, N_d]`` labels.
      start, size: ``[D, R]`` int32, where each row's client begins and how many examples it has.
    """

    x: jax.Array
    y: jax.Array
    start: jax.Array
    size: jax.Array


class PlacedData(NamedTuple):
    """A dataset on the devices of a mesh; every client's data on its own device only.

    Attributes:
      splits: ``{"train", "validation", "test"}`` to `Block`; a split without examples is left out.
      ids: ``[D, R]`` int32 client identities that random draws are keyed by; -1 for padding.
      positions: ``[n_max]`` int32 ``0..n_max-1``, on every device.
      mean, std: normalisation, on every device.
    """

    splits: dict[str, Block]
    ids: jax.Array
    positions: jax.Array
    mean: jax.Array
    std: jax.Array


def place_clients(work: np.ndarray, num_devices: int, rows: int | None = None) -> Placement:
    """Assign clients to devices: the largest first, each onto the least loaded device.

    Args:
      work: ``[K]`` cost of each client, e.g. its training examples.
      num_devices: D >= 1.
      rows: R, the most clients that a device may hold, ``D * R >= K``; None: as many as come.

    Returns:
      A `Placement`. Deterministic; ties go to the lower client and device.

    >>> place_clients(np.array([5, 1, 4, 2]), 2).device.tolist()
    [0, 0, 1, 1]
    """
    device = np.zeros(len(work), np.int64)
    row = np.zeros(len(work), np.int64)
    loads = [(0, 0, d) for d in range(num_devices)]  # work, clients, device
    for client in np.argsort(-work, kind="stable"):
        load, clients, d = heapq.heappop(loads)
        device[client], row[client] = d, clients
        if clients + 1 != rows:
            heapq.heappush(loads, (load + int(work[client]), clients + 1, d))
    return Placement(device, row, int(row.max()) + 1 if rows is None else rows, num_devices)


def choose_chunk(mesh: Mesh, client_bytes: int, clients_per_device: int) -> int:
    """Return how many clients to vmap at a time on one device.

    On a CPU one: measured best from logistic regression to the CNN, since a client's parameters
    then stay in the cache and no step is padded. Elsewhere as many as a quarter of the device's
    memory holds, taking six times a client's states for what its local steps need (not yet
    measured on accelerators), at most 64.

    Args:
      mesh: the devices.
      client_bytes: of the states that one client's local training works on.
      clients_per_device: of a cohort.
    """
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return 1
    limit = (device.memory_stats() or {}).get("bytes_limit", 16e9)
    fit = int(limit / 4 / (6 * max(client_bytes, 1)))
    return max(1, min(fit, 64, clients_per_device))


def by_device(placement: Placement, values: np.ndarray, fill: int) -> np.ndarray:
    """Arrange ``[K]`` values as ``[D, R]`` by device and row, ``fill`` where there is no client."""
    table = np.full((placement.num_devices, placement.rows), fill, values.dtype)
    table[placement.device, placement.row] = values
    return table


def place_data(
    dataset: FederatedDataset,
    placement: Placement,
    mesh: Mesh,
    *,
    splits: Sequence[str],
    longest: int,
    room: Callable[[str, int], int] = lambda split, examples: examples,
) -> PlacedData:
    """Copy a dataset to the devices of ``mesh``, each client's examples to its own device only.

    Args:
      dataset: of the clients to place.
      placement: where they go.
      mesh: the devices.
      splits: which splits to copy.
      longest: n_max, the training examples of the largest client that will ever come.
      room: from a split and its most examples on one device to the length of the flat arrays;
        rounds up where the same program shall serve blocks of different sizes.
    """
    blocks = {split: _block(dataset, split, placement, room, mesh) for split in splits}
    ids = by_device(placement, dataset.client_ids.astype(np.int32), -1)
    mean, std = (np.asarray(a, np.float32) for a in (dataset.mean, dataset.std))
    shared = put_replicated((np.arange(longest, dtype=np.int32), mean, std), mesh)
    return PlacedData(blocks, put_sharded(ids, mesh), *shared)


def put_sharded(values: Any, mesh: Mesh) -> Any:
    """Return a tree of arrays ``[D, ...]`` with row d on device d of ``mesh``.

    Every process has the same values and copies the rows of its own devices.
    """
    sharding = NamedSharding(mesh, SHARDED)
    return jax.tree.map(
        lambda a: jax.make_array_from_callback(a.shape, sharding, lambda index: a[index]), values
    )


def put_replicated(values: Any, mesh: Mesh) -> Any:
    """Return a tree of arrays on every device of ``mesh``; every process has the same values."""
    sharding = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(
        lambda a: jax.make_array_from_callback(a.shape, sharding, lambda _: a), values
    )


def _block(
    dataset: FederatedDataset,
    split: str,
    placement: Placement,
    room: Callable[[str, int], int],
    mesh: Mesh,
) -> Block:
    """Return the `Block` of one split; a process reads the examples of its own devices only."""
    owned = dataset.splits[split]
    indices, starts = [], np.zeros(len(owned.sizes), np.int32)
    for d in range(placement.num_devices):
        members = np.flatnonzero(placement.device == d)
        members = members[np.argsort(placement.row[members])]
        starts[members] = np.cumsum(owned.sizes[members]) - owned.sizes[members]
        indices.append(owned.of_clients(members).indices)
    longest = room(split, max(map(len, indices)))

    def on_devices(examples: np.ndarray) -> jax.Array:
        def of_device(index: Any) -> np.ndarray:
            chosen = indices[index[0].start or 0]
            block = np.zeros((1, longest, *examples.shape[1:]), examples.dtype)
            block[0, : len(chosen)] = examples[chosen]
            return block

        # A callback: JAX asks for a device's block only in the process that the device is of.
        shape = (placement.num_devices, longest, *examples.shape[1:])
        return jax.make_array_from_callback(shape, NamedSharding(mesh, SHARDED), of_device)

    x = on_devices(dataset.x)
    if dataset.shift is not None and len(owned.indices):
        x = _shifted(x, dataset, owned, indices, mesh)
    sizes = by_device(placement, owned.sizes.astype(np.int32), 0)
    start, size = put_sharded((by_device(placement, starts, 0), sizes), mesh)
    return Block(x, on_devices(dataset.y), start, size)


def _shifted(x, dataset, owned, indices, mesh):
    """Apply every client's feature shift to its examples, on their device."""
    kind, amounts, low, high, seed = dataset.shift
    amount_of = np.zeros(len(dataset.y), np.float32)
    amount_of[owned.indices] = np.repeat(amounts, owned.sizes)
    number, amount = np.zeros(x.shape[:2], np.int32), np.zeros(x.shape[:2], np.float32)
    for d, mine in enumerate(indices):
        number[d, : len(mine)], amount[d, : len(mine)] = mine, amount_of[mine]

    def block(x, amount, number):
        shift = shift_features(
            x[0], amount[0], number[0], jnp.int32(seed), kind=kind, low=low, high=high
        )
        return shift[None]

    on_devices = jax.shard_map(
        block, mesh=mesh, in_specs=(SHARDED,) * 3, out_specs=SHARDED, check_vma=False
    )
    return jax.jit(on_devices)(x, *put_sharded((amount, number), mesh))
