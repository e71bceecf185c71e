"""The round engine: one jitted function per round over a mesh of devices."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.federated.algorithm import Algorithm, ClientData
from pflalign_jax.federated.evaluation import ClientScores, score_client
from pflalign_jax.federated.participation import sample_cohort
from pflalign_jax.federated.placement import AXIS, place_clients, place_data
from pflalign_jax.federated.rows import each, read_rows, visit_rows, write_rows
from pflalign_jax.models import Model

_INIT, _COHORT, _LOCAL, _ADAPT = range(4)
"""What a random draw is for: ``fold_in(key, purpose)``, then round, then client id."""


class FederationState(NamedTuple):
    """Everything that changes from round to round.

    Attributes:
      key: the run's key; never changes, draws are folded in.
      round: int32 scalar, rounds done.
      server: the algorithm's server state, on every device.
      clients: the algorithm's client states, leaves ``[D, R, ...]``: each client's on its own
        device.
    """

    key: jax.Array
    round: jax.Array
    server: Any
    clients: Any


class RoundResult(NamedTuple):
    """What is known after a round.

    Attributes:
      cohort: ``[C]`` int, positions of the clients that took part.
      metrics: name to scalar array, means over the cohort, e.g. ``loss`` in training (nats).
      adapted: name ``split/personal/adapted`` to `ClientScores` of the cohort's models after
        their local steps; empty unless asked for. Clients outside the cohort have no examples.
    """

    cohort: np.ndarray
    metrics: Mapping[str, jax.Array]
    adapted: Mapping[str, ClientScores]


class Federation(NamedTuple):
    """A simulated federation as functions; see `federate`.

    Attributes:
      init: ``key -> FederationState``.
      run_round: ``(state, score=False) -> (state, RoundResult)``; the given state's buffers are
        donated, use the returned one. ``score=True`` also scores the cohort's local models.
      evaluate: ``(state, adapt=True) -> {name: ClientScores}`` for all clients; changes nothing.
        ``adapt=True`` trains every client from the current global model, scores it and throws
        the result away.
      client_state: ``(state, k) -> client state`` of the client at position ``k``.
      personal_params: ``(state, k) -> params``, the model that client ``k`` starts a round with.
      lower_round: ``state -> jax.stages.Lowered``, the round's program, to look at before or
        after compilation.
      bytes_per_round: ``(up, down)``, message and broadcast bytes of a cohort's round.
      cohort_size: C.
      client_chunk: clients vmapped at a time on each device.
      mesh: the devices.
    """

    init: Callable[[jax.Array], FederationState]
    run_round: Callable[..., tuple[FederationState, RoundResult]]
    evaluate: Callable[..., dict[str, ClientScores]]
    client_state: Callable[[FederationState, int], Any]
    personal_params: Callable[[FederationState, int], Any]
    lower_round: Callable[[FederationState], jax.stages.Lowered]
    bytes_per_round: tuple[int, int]
    cohort_size: int
    client_chunk: int
    mesh: Mesh


def federate(
    algorithm: Algorithm,
    model: Model,
    dataset: FederatedDataset,
    *,
    cohort_size: int | None = None,
    client_chunk: int | None = None,
    mesh: Mesh | None = None,
    eval_batch_size: int | None = None,
) -> Federation:
    """Simulate a federation of a dataset's clients.

    Clients and their data are assigned to devices once, balanced by training examples. A round is
    one jitted function over the mesh axis ``clients``: each device visits its members of the
    cohort, ``client_chunk`` at a time, and one all-reduce forms the mean message. Results do not
    depend on the chunk, the number of devices or the order of clients, up to float rounding.

    Args:
      algorithm: e.g. from `pflalign_jax.algorithms.pflalign`.
      model: its ``apply`` is used for scores, its ``init`` for the first global model.
      dataset: the clients' data.
      cohort_size: clients per round, drawn uniformly every round; None: all take part.
      client_chunk: clients vmapped at a time on one device; None: 1 on a CPU, 16 elsewhere.
      mesh: a mesh with the one axis ``clients``; None: all devices.
      eval_batch_size: examples per step when scoring; None: from the size of the test sets.

    Raises:
      ValueError: for a cohort larger than the population, a chunk below 1, another mesh axis.
    """
    num_clients = dataset.num_clients
    cohort_size = num_clients if cohort_size is None else cohort_size
    if not 1 <= cohort_size <= num_clients:
        raise ValueError(
            f"cohort_size={cohort_size} is not possible: {dataset.name} has {num_clients} clients; "
            f"use a number in 1..{num_clients}, or None for all"
        )
    mesh = Mesh(np.array(jax.devices()), (AXIS,)) if mesh is None else mesh
    if mesh.axis_names != (AXIS,):
        raise ValueError(f"mesh has axes {mesh.axis_names}; it must have the one axis ('{AXIS}',)")
    if client_chunk is None:
        client_chunk = 1 if mesh.devices.flat[0].platform == "cpu" else 16
    if client_chunk < 1:
        raise ValueError(f"client_chunk={client_chunk} is not allowed; it must be >= 1")

    train_sizes = dataset.splits["train"].sizes
    placement = place_clients(train_sizes, mesh.size)
    data = place_data(dataset, placement, mesh)
    eval_splits = tuple(split for split in data.splits if split != "train")
    if eval_batch_size is None:
        eval_batch_size = _eval_batch_size(dataset)
    sharded = NamedSharding(mesh, PartitionSpec(AXIS))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def rows_of(cohort, room):
        """Return ``[D, S]`` rows, the largest clients first, and ``[D]`` counts."""
        rows = np.full((mesh.size, -(-room // client_chunk) * client_chunk), placement.rows)
        counts = np.zeros(mesh.size, np.int32)
        for k in cohort[np.argsort(-train_sizes[cohort], kind="stable")]:
            d = placement.device[k]
            rows[d, counts[d]] = placement.row[k]
            counts[d] += 1
        return jax.device_put((rows.astype(np.int32), counts), sharded)

    everyone = rows_of(np.arange(num_clients), placement.rows)

    def client_data(data, start, size):
        train = data.splits["train"]
        return ClientData(train.x, train.y, start, size, data.positions, data.mean, data.std)

    def update_chunk(received, states, data, rows, key):
        """Run ``client_update`` on a chunk; also returns ``[chunk]`` training sizes."""
        train = data.splits["train"]
        starts, sizes, ids = read_rows((train.start, train.size, data.ids), rows)

        def one(state, start, size, client_id):
            client_key = jax.random.fold_in(key, client_id)
            return algorithm.client_update(
                received, state, client_data(data, start, size), client_key
            )

        return each(one, rows, states, starts, sizes, ids), sizes

    def score_chunk(params, data, rows, table, *, shared=False):
        """Write a chunk's scores of ``[chunk, ...]`` (or shared) params into ``table``."""
        for split in eval_splits:
            block = data.splits[split]
            starts, sizes = read_rows((block.start, block.size), rows)
            score = functools.partial(
                score_client, model.apply, mean=data.mean, std=data.std, batch_size=eval_batch_size
            )

            def one(start, size, *own, block=block, score=score):
                return score(params if shared else own[0], block.x, block.y, start, size)

            own = () if shared else (params,)
            table = {
                **table,
                split: write_rows(table[split], rows, each(one, rows, starts, sizes, *own)),
            }
        return table

    def empty_table():
        zeros = jnp.zeros(placement.rows)
        return {split: (zeros, zeros) for split in eval_splits}

    def per_device(function, **specs):
        """Jit ``function`` of one device's blocks over the mesh."""
        return jax.shard_map(function, mesh=mesh, check_vma=False, **specs)

    own, same = PartitionSpec(AXIS), PartitionSpec()
    data_specs = data._replace(
        splits=jax.tree.map(lambda _: own, data.splits),
        ids=own,
        positions=same,
        mean=same,
        std=same,
    )

    def local_block(data):
        """Drop the leading device axis, which is 1 on each device."""
        splits, ids = jax.tree.map(lambda a: a[0], (data.splits, data.ids))
        return data._replace(splits=splits, ids=ids)

    @functools.partial(jax.jit, static_argnames="score", donate_argnames="clients")
    def round_step(key, round_index, server, clients, data, rows, counts, *, score):
        @functools.partial(
            per_device,
            in_specs=(same, same, same, own, data_specs, own, own),
            out_specs=(same, own, same, own),
        )
        def step(key, round_index, server, clients, data, rows, counts):
            data, rows, count = local_block(data), rows[0], counts[0]
            clients = jax.tree.map(lambda a: a[0], clients)
            received = algorithm.broadcast(server)
            local_key = jax.random.fold_in(jax.random.fold_in(key, _LOCAL), round_index)
            wide = functools.partial(jnp.promote_types, jnp.float32)
            total = jax.tree.map(lambda a: jnp.zeros(a.shape, wide(a.dtype)), sent.message)
            metrics = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), sent.metrics)

            def visit(carry, chosen):
                clients, total, weight, metrics, table = carry
                output, sizes = update_chunk(
                    received, read_rows(clients, chosen), data, chosen, local_key
                )
                weights, real = (a.astype(jnp.float32) for a in (sizes, sizes > 0))
                total = jax.tree.map(_add_weighted(weights), total, output.message)
                metrics = jax.tree.map(_add_weighted(real), metrics, output.metrics)
                if score:
                    table = score_chunk(output.params, data, chosen, table)
                clients = write_rows(clients, chosen, output.state)
                return clients, total, weight + weights.sum(), metrics, table

            table = empty_table() if score else {}
            carry = (clients, total, jnp.zeros(()), metrics, table)
            clients, *sums, table = visit_rows(visit, carry, rows, count, client_chunk)
            total, weight, metrics = jax.lax.psum(sums, AXIS)
            mean = jax.tree.map(
                lambda t, a: (t / weight.astype(t.dtype)).astype(a.dtype), total, sent.message
            )
            server = algorithm.server_update(server, mean)
            return server, *jax.tree.map(lambda a: a[None], (clients,)), metrics, _lead(table)

        server, clients, metrics, table = step(
            key, round_index, server, clients, data, rows, counts
        )
        means = {name: mean.total / mean.weight for name, mean in metrics.items()}
        return server, clients, round_index + 1, means, table

    @functools.partial(jax.jit, static_argnames="adapt")
    def score_step(key, round_index, server, clients, data, rows, counts, *, adapt):
        @functools.partial(
            per_device,
            in_specs=(same, same, same, own, data_specs, own, own),
            out_specs=own,
        )
        def step(key, round_index, server, clients, data, rows, counts):
            data, rows, count = local_block(data), rows[0], counts[0]
            clients = jax.tree.map(lambda a: a[0], clients)
            received = algorithm.broadcast(server)
            adapt_key = jax.random.fold_in(jax.random.fold_in(key, _ADAPT), round_index)

            def visit(tables, chosen):
                tables = dict(tables)
                states = read_rows(clients, chosen)

                def score(name, params, shared=False):
                    tables[name] = score_chunk(params, data, chosen, tables[name], shared=shared)

                if algorithm.global_params is not None:
                    score("global", algorithm.global_params(received), shared=True)
                start = functools.partial(algorithm.personal_params, received)
                score("personal/received", each(start, chosen, states))
                if adapt:
                    output, _ = update_chunk(received, states, data, chosen, adapt_key)
                    score("personal/adapted", output.params)
                return tables

            names = [] if algorithm.global_params is None else ["global"]
            names += ["personal/received"] + (["personal/adapted"] if adapt else [])
            tables = {name: empty_table() for name in names}
            return _lead(visit_rows(visit, tables, rows, count, client_chunk))

        return step(key, round_index, server, clients, data, rows, counts)

    def named_scores(table, name, cohort=slice(None)):
        """Return one model's `ClientScores` by split, in the dataset's order."""
        scores = {}
        for split in eval_splits:
            examples = np.zeros(num_clients, np.int64)
            examples[cohort] = dataset.splits[split].sizes[cohort]
            hits, losses = (
                np.asarray(a, np.float64)[placement.device, placement.row] for a in table[split]
            )
            count = np.where(examples > 0, examples, np.nan)
            scores[f"{split}/{name}"] = ClientScores(examples, hits / count, losses / count)
        return scores

    def first_params(key):
        example = jnp.zeros((1, *dataset.x.shape[1:]), jnp.float32)
        return model.init(jax.random.fold_in(key, _INIT), example)

    def one_client(key, data):
        """Return what a client receives and sends, for shapes only."""
        server, client = algorithm.init(first_params(key))
        received = algorithm.broadcast(server)
        train = jax.tree.map(lambda a: a[0], data.splits["train"])
        data = data._replace(splits={**data.splits, "train": train})
        window = client_data(data, train.start[0], train.size[0])
        return received, algorithm.client_update(received, client, window, key)

    received, sent = jax.eval_shape(one_client, jax.random.key(0), data)

    def stack(tree):
        shape = (mesh.size, placement.rows)
        return jax.tree.map(lambda a: jnp.broadcast_to(a, shape + a.shape), tree)

    @jax.jit
    def first_server(key):
        return algorithm.init(first_params(key))[0]

    @functools.partial(jax.jit, out_shardings=sharded)
    def first_clients(key):
        return stack(algorithm.init(first_params(key))[1])

    def init(key):
        key, start = jax.device_put((key, jnp.zeros((), jnp.int32)), everywhere)
        server = jax.device_put(first_server(key), everywhere)
        return FederationState(key, start, server, first_clients(key))

    def draw_cohort(state):
        if cohort_size == num_clients:
            return np.arange(num_clients), everyone
        cohort_key = jax.random.fold_in(state.key, _COHORT)
        cohort = sample_cohort(cohort_key, state.round, dataset.client_ids, cohort_size)
        return cohort, rows_of(cohort, min(cohort_size, placement.rows))

    def lower_round(state):
        _, (rows, counts) = draw_cohort(state)
        return round_step.lower(*state, data, rows, counts, score=False)

    def run_round(state, score=False):
        cohort, (rows, counts) = draw_cohort(state)
        server, clients, done, metrics, table = round_step(*state, data, rows, counts, score=score)
        adapted = named_scores(table, "personal/adapted", cohort) if score else {}
        return FederationState(state.key, done, server, clients), RoundResult(
            cohort, metrics, adapted
        )

    def evaluate(state, adapt=True):
        tables = score_step(*state, data, *everyone, adapt=adapt)
        return {k: v for name, t in tables.items() for k, v in named_scores(t, name).items()}

    def client_state(state, k):
        if not 0 <= k < num_clients:
            raise ValueError(f"client {k} does not exist; {dataset.name} has {num_clients} clients")
        where = int(placement.device[k]), int(placement.row[k])
        return jax.tree.map(lambda a: a[where], state.clients)

    def personal_params(state, k):
        received = algorithm.broadcast(state.server)
        return algorithm.personal_params(received, client_state(state, k))

    return Federation(
        init,
        run_round,
        evaluate,
        client_state,
        personal_params,
        lower_round,
        (cohort_size * _num_bytes(sent.message), cohort_size * _num_bytes(received)),
        cohort_size,
        client_chunk,
        mesh,
    )


def _add_weighted(weights):
    """Return ``(sum, values) -> sum + Σ weights * values`` over ``[chunk, ...]`` values."""

    def add(total, values):
        return total + jnp.tensordot(weights.astype(total.dtype), values.astype(total.dtype), 1)

    return add


def _lead(tree):
    """Put back the leading device axis."""
    return jax.tree.map(lambda a: a[None], tree)


def _eval_batch_size(dataset):
    """Return a power of two in 8..128 near the mean size of the evaluation sets."""
    sizes = [owned.sizes for split, owned in dataset.splits.items() if split != "train"]
    mean = np.concatenate(sizes).mean() if sizes else 1
    return int(2 ** np.clip(np.ceil(np.log2(max(mean, 1))), 3, 7))


def _num_bytes(shapes):
    """Return the bytes of a tree of arrays or their shapes."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(shapes))
