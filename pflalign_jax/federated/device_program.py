"""What the device programs share: a chunk of clients, trained or scored, on a device's block."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from pflalign_jax.datasets import FederatedDataset, select_clients
from pflalign_jax.federated.algorithm import Algorithm, ClientData, ClientOutput
from pflalign_jax.federated.client_rows import each, read_rows, write_rows
from pflalign_jax.federated.metrics import score_client
from pflalign_jax.federated.sharding import AXIS, PlacedData, place_clients, place_data

OWN: Any = PartitionSpec(AXIS)
SAME: Any = PartitionSpec()
"""Where an array of a tree lives; in the tree's place."""

ScoreTable = dict[str, tuple[jax.Array, jax.Array]]
"""``{split: (sums of hits, sums of losses)}``, ``[R]`` each."""


class Setting(NamedTuple):
    """What is fixed when the programs are built.

    Attributes:
      algorithm: see `Algorithm`.
      apply: ``(params, x) -> logits``, for scores; personal models may have their own.
      mesh: devices along the one axis ``clients``.
      client_chunk: clients vmapped at a time on one device.
      eval_batch_size: examples per step when scoring.
      adapt_steps: the most local steps of an adaptation that is scored; None: as in a round.
      diagnostics: whether rounds measure how far clients agree.
      step_limit: ``(key, round, client id) -> int32``, the most local steps of a client in a
        round; None: no limit.
      drop_last: whether local epochs leave out a last batch that is not full.
      fresh_state: ``(server, key, received, data) -> state``, of clients that never trained; None:
        clients bring their states.
    """

    algorithm: Algorithm
    apply: Callable[[Any, jax.Array], jax.Array]
    mesh: Mesh
    client_chunk: int
    eval_batch_size: int
    adapt_steps: int | None = None
    diagnostics: bool = False
    step_limit: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    drop_last: bool = False
    fresh_state: Callable[[Any, jax.Array, Any, ClientData], Any] | None = None


def output_shapes(setting: Setting, received: Any, client: Any, window: ClientData) -> ClientOutput:
    """Return the shapes of one client's output."""
    update = setting.algorithm.client_update
    return jax.eval_shape(update, received, client, window, jax.random.key(0))


def compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """Return options for XLA's CPU backend: no copies of loop state, the widest vectors.

    Together they save 5 to 7 % of a round; nothing is needed elsewhere.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return {
        "xla_cpu_copy_insertion_use_region_analysis": True,
        "xla_cpu_prefer_vector_width": 512,
    }


def over_devices(
    setting: Setting, function: Callable[..., Any], data: PlacedData, out_specs: Any
) -> Callable[..., Any]:
    """Return ``function`` of each device's blocks over the mesh."""
    specs = data._replace(
        splits=jax.tree.map(lambda _: OWN, data.splits),
        ids=OWN,
        positions=SAME,
        mean=SAME,
        std=SAME,
    )
    return jax.shard_map(
        function,
        mesh=setting.mesh,
        in_specs=(SAME, SAME, SAME, OWN, specs, OWN, OWN),
        out_specs=out_specs,
        check_vma=False,
    )


def update_chunk(
    setting: Setting,
    received: Any,
    states: Any,
    data: PlacedData,
    rows: jax.Array,
    key: jax.Array,
    limit: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[ClientOutput, tuple[jax.Array, jax.Array]]:
    """Run ``client_update`` on a chunk; also return its ``[chunk]`` training sizes and ids.

    ``limit`` is ``client id -> max_steps``; None: no limit.
    """
    train = data.splits["train"]
    starts, sizes, ids = read_rows((train.start, train.size, data.ids), rows)

    def one(state, start, size, client_id):
        window = client_data(data, start, size, client_id)
        window = window._replace(
            max_steps=limit and limit(client_id),
            drop_last=jnp.asarray(True) if setting.drop_last else None,
        )
        client_key = jax.random.fold_in(key, client_id)
        own = setting.algorithm.deliver(received, client_id)
        return setting.algorithm.client_update(own, state, window, client_key)

    return each(one, rows, states, starts, sizes, ids), (sizes, ids)


def received_params(
    setting: Setting, received: Any, states: Any, data: PlacedData, rows: jax.Array
) -> Any:
    """Return a chunk's personal models as they start a round."""
    train = data.splits["train"]
    starts, sizes, ids = read_rows((train.start, train.size, data.ids), rows)

    def start(state, start, size, client_id):
        own = setting.algorithm.deliver(received, client_id)
        window = client_data(data, start, size, client_id)
        return setting.algorithm.personal_params(own, state, window)

    return each(start, rows, states, starts, sizes, ids)


def fresh_states(
    setting: Setting, server: Any, key: jax.Array, received: Any, data: PlacedData, rows: jax.Array
) -> Any:
    """Return a chunk's states of clients that never trained."""
    assert setting.fresh_state is not None
    make_state, train = setting.fresh_state, data.splits["train"]
    starts, sizes, ids = read_rows((train.start, train.size, data.ids), rows)

    def fresh(start, size, client_id):
        own = setting.algorithm.deliver(received, client_id)
        return make_state(server, key, own, client_data(data, start, size, client_id))

    return each(fresh, rows, starts, sizes, ids)


def score_chunk(
    setting: Setting,
    params: Any,
    data: PlacedData,
    rows: jax.Array,
    table: ScoreTable,
    shared: bool = False,
) -> ScoreTable:
    """Write a chunk's scores of ``[chunk, ...]`` params, or of shared ones, into ``table``."""
    return {
        split: write_rows(
            scores, rows, _score_split(setting, params, data, data.splits[split], rows, shared)
        )
        for split, scores in table.items()
    }


def _score_split(setting, params, data, block, rows, shared):
    """Return sums of hits and losses, ``[chunk]`` each, on one split's `Block`."""
    starts, sizes = read_rows((block.start, block.size), rows)
    apply = setting.apply if shared else setting.algorithm.predict or setting.apply

    def one(start, size, params=params):
        return score_client(
            apply,
            params,
            *(block.x, block.y, start, size, data.mean, data.std),
            batch_size=setting.eval_batch_size,
        )

    return each(one, rows, starts, sizes, *(() if shared else (params,)))


def empty_table(data: PlacedData) -> ScoreTable:
    """Return ``{split: (hits [R], loss sums [R])}`` of zeros for the splits to be scored."""
    zeros = jnp.zeros(data.ids.shape)
    return {split: (zeros, zeros) for split in data.splits if split != "train"}


def client_data(
    data: PlacedData, start: jax.Array, size: jax.Array, client_id: jax.Array
) -> ClientData:
    """Return a client's window on its device's training examples."""
    train = data.splits["train"]
    shared = data.positions, data.mean, data.std
    return ClientData(train.x, train.y, start, size, *shared, client_id=client_id)


def training_data(dataset: FederatedDataset, k: int) -> ClientData:
    """Return the training examples of the client at position ``k``, outside of any program."""
    client = select_clients(dataset, np.array([k]))
    mesh = Mesh(np.array(jax.local_devices()[:1]), (AXIS,))
    sizes = client.splits["train"].sizes
    longest = int(dataset.splits["train"].sizes.max())
    data = place_data(client, place_clients(sizes, 1), mesh, splits=("train",), longest=longest)
    # Bound to no device, so that they go together with arrays on any.
    _, data = own_block((), jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), data))
    train = data.splits["train"]
    return client_data(data, train.start[0], train.size[0], data.ids[0])


def own_block(clients: Any, data: PlacedData) -> tuple[Any, PlacedData]:
    """Drop the leading device axis, which is 1 on each device."""
    clients, splits, ids = jax.tree.map(lambda a: a[0], (clients, data.splits, data.ids))
    return clients, data._replace(splits=splits, ids=ids)


def lead(tree: Any) -> Any:
    """Put the leading device axis back."""
    return jax.tree.map(lambda a: a[None], tree)
