"""What the device programs share: a chunk of clients, trained or scored, on a device's block."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pflalign_jax.datasets import FederatedDataset, select_clients
from pflalign_jax.federated.algorithm import Algorithm, ClientData, ClientOutput
from pflalign_jax.federated.client_rows import map_clients, read_rows, write_rows
from pflalign_jax.federated.metrics import Scoring, score_client
from pflalign_jax.federated.sharding import (
    REPLICATED,
    SHARDED,
    PlacedData,
    client_mesh,
    place_clients,
    place_data,
)
from pflalign_jax.models.frozen import Frozen, as_argument

ScoreTable = dict[str, dict[str, Any]]
"""``{split: {metric name: statistics}}``, leaves ``[R, ...]``."""


class ProgramOptions(NamedTuple):
    """What is fixed when the programs are built.

    Attributes:
      algorithm: see `Algorithm`.
      apply: ``(params, x) -> logits``, for scores; personal models may have their own.
      mesh: devices along the one axis ``clients``.
      client_chunk: clients vmapped at a time on one device.
      scoring: what is scored, and how.
      adapt_steps: the most local steps of an adaptation that is scored; None: as in a round.
      diagnostics: whether rounds measure how far clients agree.
      step_limit: ``(key, round, client id) -> int32``, the most local steps of a client in a
        round; None: no limit.
      drop_last: whether local epochs leave out a last batch that is not full.
      newcomers: whether clients never trained and start with the state of ``algorithm.newcomer``;
        False: they bring their states.
      frozen: weights of the model that nobody trains.
    """

    algorithm: Algorithm
    apply: Callable[[Any, jax.Array], jax.Array]
    mesh: Mesh
    client_chunk: int
    scoring: Scoring
    adapt_steps: int | None = None
    diagnostics: bool = False
    step_limit: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    drop_last: bool = False
    newcomers: bool = False
    frozen: Frozen | None = None


class Visits(NamedTuple):
    """Which of its clients each device visits.

    Attributes:
      rows: ``[D, S]`` int32, the rows to visit, largest clients first; numbers out of range (R) pad
        the last chunk.
      counts: ``[D]`` int32, how many of them are real.
    """

    rows: jax.Array
    counts: jax.Array


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


def sharded_program(
    options: ProgramOptions, function: Callable[..., Any], out_specs: Any
) -> Callable[..., Any]:
    """Return ``function`` of each device's blocks over the mesh.

    Its arguments are the model's frozen weights and those of ``function``: ``key, round_index,
    server, clients, data, visits``.
    """
    data = PlacedData(
        splits=SHARDED,  # one spec in the place of a tree
        ids=SHARDED,
        positions=REPLICATED,
        mean=REPLICATED,
        std=REPLICATED,
    )
    return jax.shard_map(
        as_argument(options.frozen, function),
        mesh=options.mesh,
        in_specs=(REPLICATED, REPLICATED, REPLICATED, REPLICATED, SHARDED, data, SHARDED),
        out_specs=out_specs,
        # A server's state stays the same on all devices, since it is made of sums over all of them;
        # the check cannot see that through loops of a client's own length.
        check_vma=False,
    )


def drop_device_axis(
    clients: Any, data: PlacedData, visits: Visits
) -> tuple[Any, PlacedData, Visits]:
    """Drop the leading device axis, which is 1 on each device."""
    clients, splits, ids, visits = jax.tree.map(
        lambda a: a[0], (clients, data.splits, data.ids, visits)
    )
    return clients, data._replace(splits=splits, ids=ids), visits


def add_device_axis(tree: Any) -> Any:
    """Put the leading device axis back."""
    return jax.tree.map(lambda a: a[None], tree)


def client_data(
    data: PlacedData, start: jax.Array, size: jax.Array, client_id: jax.Array
) -> ClientData:
    """Return a client's window on its device's training examples."""
    train = data.splits["train"]
    return ClientData(
        x=train.x,
        y=train.y,
        start=start,
        size=size,
        positions=data.positions,
        mean=data.mean,
        std=data.std,
        client_id=client_id,
    )


def map_client_data(
    function: Callable[..., Any], data: PlacedData, rows: jax.Array, *stacked: Any
) -> Any:
    """Apply ``function(ClientData, ...)`` to every client of a chunk.

    Args:
      function: of one client: its training examples, and a client's part of each of ``stacked``.
      data: of the device.
      rows: ``[chunk]``.
      stacked: trees with leaves ``[chunk, ...]``.
    """
    train = data.splits["train"]
    starts, sizes, ids = read_rows((train.start, train.size, data.ids), rows)

    def of_client(start, size, client_id, *parts):
        return function(client_data(data, start, size, client_id), *parts)

    return map_clients(of_client, rows, starts, sizes, ids, *stacked)


def update_chunk(
    options: ProgramOptions,
    received: Any,
    states: Any,
    data: PlacedData,
    rows: jax.Array,
    key: jax.Array,
    step_limit: Callable[[jax.Array], jax.Array] | None = None,
) -> ClientOutput:
    """Run ``client_update`` on a chunk.

    Args:
      options: of the programs.
      received: what clients download, the algorithm's broadcast.
      states: of the chunk's clients.
      data: of the device.
      rows: ``[chunk]``.
      key: of the round; a client's is folded with its id.
      step_limit: ``client id -> max_steps``; None: no limit.
    """

    def update(window: ClientData, state: Any) -> ClientOutput:
        client_id = window.client_id
        assert client_id is not None
        window = window._replace(
            max_steps=step_limit and step_limit(client_id),
            drop_last=jnp.asarray(True) if options.drop_last else None,
        )
        client_key = jax.random.fold_in(key, client_id)
        own = _delivered(options, received, window)
        return options.algorithm.client_update(own, state, window, client_key)

    return map_client_data(update, data, rows, states)


def received_params(
    options: ProgramOptions, received: Any, states: Any, data: PlacedData, rows: jax.Array
) -> Any:
    """Return a chunk's personal models as they start a round."""

    def start(window: ClientData, state: Any) -> Any:
        own = _delivered(options, received, window)
        return options.algorithm.personal_params(own, state, window)

    return map_client_data(start, data, rows, states)


def newcomer_states(
    options: ProgramOptions, received: Any, data: PlacedData, rows: jax.Array
) -> Any:
    """Return a chunk's states of clients that never trained, as the algorithm makes them."""
    newcomer = options.algorithm.newcomer
    assert newcomer is not None

    def first_state(window: ClientData) -> Any:
        return newcomer(_delivered(options, received, window), window)

    return map_client_data(first_state, data, rows)


def _delivered(options: ProgramOptions, received: Any, window: ClientData) -> Any:
    """Return what one client has downloaded of the broadcast."""
    assert window.client_id is not None
    return options.algorithm.deliver(received, window.client_id)


def score_chunk(
    options: ProgramOptions,
    params: Any,
    data: PlacedData,
    rows: jax.Array,
    table: ScoreTable,
    shared: bool = False,
) -> ScoreTable:
    """Write a chunk's scores of ``[chunk, ...]`` params, or of shared ones, into ``table``."""
    return {
        split: write_rows(scores, rows, _score_split(options, params, data, split, rows, shared))
        for split, scores in table.items()
    }


def _score_split(options, params, data, split, rows, shared):
    """Return the statistics of a chunk, leaves ``[chunk, ...]``."""
    block = data.splits[split]
    starts, sizes = read_rows((block.start, block.size), rows)
    # The global model is always the model's own; personal ones may have further parts.
    apply = options.apply if shared else options.algorithm.predict or options.apply

    def score(start, size, params=params):
        return score_client(
            options.scoring,
            apply,
            params,
            block.x,
            block.y,
            start,
            size,
            data.mean,
            data.std,
        )

    return map_clients(score, rows, starts, sizes, *(() if shared else (params,)))


def empty_table(options: ProgramOptions, data: PlacedData) -> ScoreTable:
    """Return a table of zeros for the splits to be scored."""
    (num_rows,) = data.ids.shape
    zeros = jax.tree.map(
        lambda a: jnp.zeros((num_rows, *a.shape), a.dtype), dict(options.scoring.shapes)
    )
    return {split: zeros for split in data.splits if split != "train"}


def training_data(dataset: FederatedDataset, k: int) -> ClientData:
    """Return the training examples of the client at position ``k``, outside of any program."""
    client = select_clients(dataset, np.array([k]))
    mesh = client_mesh(jax.local_devices()[:1])
    sizes = client.splits["train"].sizes
    longest = int(dataset.splits["train"].sizes.max())
    data = place_data(client, place_clients(sizes, 1), mesh, splits=("train",), longest=longest)
    # Bound to no device, so that they go together with arrays on any.
    data = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), data)
    train = data.splits["train"]
    train, client_id = jax.tree.map(lambda a: a[0], (train, data.ids))
    data = data._replace(splits={"train": train})
    return client_data(data, train.start[0], train.size[0], client_id[0])
