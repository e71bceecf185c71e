"""A federation as functions: clients placed on devices, rounds, scores by client."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.federated.algorithm import Algorithm
from pflalign_jax.federated.evaluation import ClientScores
from pflalign_jax.federated.participation import sample_cohort
from pflalign_jax.federated.placement import AXIS, place_clients, place_data
from pflalign_jax.federated.step import (
    COHORT,
    INIT,
    OWN,
    SAME,
    Setting,
    Work,
    output_shapes,
    own_block,
    round_step,
    score_step,
)
from pflalign_jax.models import Model


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
      work: what the round cost in local steps.
      adapted: name ``split/personal/adapted`` to `ClientScores` of the cohort's models after
        their local steps; empty unless asked for. Clients outside the cohort have no examples.
    """

    cohort: np.ndarray
    metrics: Mapping[str, jax.Array]
    work: Work
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
    setting = Setting(algorithm, model.apply, mesh, client_chunk, eval_batch_size)
    train_round, score_clients = round_step(setting), score_step(setting)
    sharded, everywhere = NamedSharding(mesh, OWN), NamedSharding(mesh, SAME)

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
        return model.init(jax.random.fold_in(key, INIT), example)

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
        cohort_key = jax.random.fold_in(state.key, COHORT)
        cohort = sample_cohort(cohort_key, state.round, dataset.client_ids, cohort_size)
        return cohort, rows_of(cohort, min(cohort_size, placement.rows))

    def lower_round(state):
        _, (rows, counts) = draw_cohort(state)
        return train_round.lower(*state, data, rows, counts, score=False)

    def run_round(state, score=False):
        cohort, (rows, counts) = draw_cohort(state)
        server, clients, done, metrics, work, table = train_round(
            *state, data, rows, counts, score=score
        )
        adapted = named_scores(table, "personal/adapted", cohort) if score else {}
        return FederationState(state.key, done, server, clients), RoundResult(
            cohort, metrics, work, adapted
        )

    def evaluate(state, adapt=True):
        tables = score_clients(*state, data, *everyone, adapt=adapt)
        return {k: v for name, t in tables.items() for k, v in named_scores(t, name).items()}

    def client_state(state, k):
        if not 0 <= k < num_clients:
            raise ValueError(f"client {k} does not exist; {dataset.name} has {num_clients} clients")
        where = int(placement.device[k]), int(placement.row[k])
        return jax.tree.map(lambda a: a[where], state.clients)

    def personal_params(state, k):
        received = algorithm.broadcast(state.server)
        return algorithm.personal_params(received, client_state(state, k))

    def exchanged(state, data):
        """Return what one client receives and sends, for their shapes."""
        clients, block = own_block(state.clients, data)
        received = algorithm.broadcast(state.server)
        return received, output_shapes(setting, received, clients, block).message

    shapes = jax.eval_shape(exchanged, jax.eval_shape(init, jax.random.key(0)), data)
    bytes_down, bytes_up = (cohort_size * _num_bytes(tree) for tree in shapes)

    return Federation(
        init,
        run_round,
        evaluate,
        client_state,
        personal_params,
        lower_round,
        (bytes_up, bytes_down),
        cohort_size,
        client_chunk,
        mesh,
    )


def _eval_batch_size(dataset):
    """Return a power of two in 8..128 near the mean size of the evaluation sets."""
    sizes = [owned.sizes for split, owned in dataset.splits.items() if split != "train"]
    mean = np.concatenate(sizes).mean() if sizes else 1
    return int(2 ** np.clip(np.ceil(np.log2(max(mean, 1))), 3, 7))


def _num_bytes(shapes):
    """Return the bytes of a tree of arrays or their shapes."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(shapes))
