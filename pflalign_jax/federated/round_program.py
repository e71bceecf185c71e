"""The device program of a round, over a mesh of devices.

A round has three stages. Each device visits its members of the cohort and adds up what they send;
the sums are reduced over devices; the server takes the aggregate. Inside, every function works on
one device's block: leaves ``[R, ...]`` of its R clients.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from pflalign_jax.federated.algorithm import (
    Aggregate,
    Aggregation,
    Algorithm,
    ClientOutput,
    Gathered,
    Mean,
)
from pflalign_jax.federated.client_rows import (
    finite_rows,
    map_clients,
    read_rows,
    rows_or_zero,
    select_rows,
    visit_rows,
    write_rows,
)
from pflalign_jax.federated.device_program import (
    ProgramOptions,
    ScoreTable,
    Visits,
    add_device_axis,
    client_data,
    compiler_options,
    drop_device_axis,
    empty_table,
    received_params,
    score_chunk,
    sharded_program,
    update_chunk,
)
from pflalign_jax.federated.random_keys import LOCAL
from pflalign_jax.federated.sharding import AXIS, REPLICATED, SHARDED, PlacedData


class Work(NamedTuple):
    """What a round cost, int32 scalars.

    A vmapped chunk of clients runs as long as its longest; the others' steps are masked.

    Attributes:
      useful: local steps that clients took.
      executed: local steps that were computed, masked ones included.
      slowest: loop turns (steps of a whole chunk) of the device that had most.
      all_devices: loop turns of all devices together.
    """

    useful: jax.Array
    executed: jax.Array
    slowest: jax.Array
    all_devices: jax.Array


class Counts(NamedTuple):
    """How many clients of a round, int32 scalars.

    Attributes:
      answered: those whose messages count in the mean.
      nonfinite: those that were left out, since their loss, message or new state was not finite.
    """

    answered: jax.Array
    nonfinite: jax.Array


class RoundSums(NamedTuple):
    """What is added up over the clients of a round: first on each device, then over all of them.

    Attributes:
      messages: the weighted sum of messages, at least in float32; if messages are gathered, a
        `Gathered` with a row for every client.
      weight: float32 scalar, the sum of the clients' weights.
      metrics: name to `Mean`.
      unit_messages: `Mean` of the messages scaled to norm 1; () without diagnostics.
      counts: see `Counts`.
      steps: int32 scalar, local steps taken.
      turns: int32 scalar, loop turns.
    """

    messages: Any
    weight: jax.Array
    metrics: Any
    unit_messages: Any
    counts: Counts
    steps: jax.Array
    turns: jax.Array


class Visited(NamedTuple):
    """What the visit of a cohort carries from one chunk of clients to the next.

    Attributes:
      clients: states, leaves ``[R, ...]``.
      sums: so far.
      left_out: ``[R]`` bool, clients whose loss, message or new state was not finite.
      scores: of local models; {} unless they are scored.
    """

    clients: Any
    sums: RoundSums
    left_out: jax.Array
    scores: ScoreTable


class RoundOutput(NamedTuple):
    """What the program of a round returns.

    Attributes:
      server, clients: the next states.
      metrics: name to scalar, means over the cohort.
      work: see `Work`.
      counts: see `Counts`.
      left_out: ``[D, R]`` bool, clients that were left out as not finite.
      scores: score table ``[D, R]`` of the local models; {} unless they are scored.
    """

    server: Any
    clients: Any
    metrics: Any
    work: Work
    counts: Counts
    left_out: jax.Array
    scores: ScoreTable


def round_programs(options: ProgramOptions) -> tuple[Callable, Callable]:
    """Return the jitted round, and the same of several federations at once.

    Its arguments: ``key, round_index, server, clients, data, visits`` and the static ``score``.
    ``clients`` is donated. It returns a `RoundOutput`.

    A client whose loss, message or new state is not finite is left out: it does not count in any
    mean, keeps the state it had, and is scored with the model it received. If nobody is left the
    server's state does not change.

    The second function takes tuples of S of ``key``, ``server``, ``clients`` and ``visits`` (of the
    last also only one, for all), vmaps over them, and returns S results.
    """

    def program(key, round_index, server, clients, data, visits, score):
        out_specs = RoundOutput(
            server=REPLICATED,
            clients=SHARDED,
            metrics=REPLICATED,
            work=REPLICATED,
            counts=REPLICATED,
            left_out=SHARDED,
            scores=SHARDED,
        )
        device_round = functools.partial(_device_round, options, score=score)
        sharded = sharded_program(options, device_round, out_specs)
        output = sharded(key, round_index, server, clients, data, visits)
        means = {name: mean.total / mean.weight for name, mean in output.metrics.items()}
        return output._replace(metrics=means)

    jit = functools.partial(
        jax.jit,
        static_argnames="score",
        donate_argnames="clients",
        compiler_options=compiler_options(options.mesh),
    )

    @jit
    def train_round(key, round_index, server, clients, data, visits, *, score):
        return program(key, round_index, server, clients, data, visits, score)

    @jit
    def train_rounds(key, round_index, server, clients, data, visits, *, score):
        stack = functools.partial(jax.tree.map, lambda *a: jnp.stack(a))
        visits_axis = None if len(visits) == 1 else 0
        results = jax.vmap(
            functools.partial(program, score=score), in_axes=(0, None, 0, 0, None, visits_axis)
        )(
            stack(*key),
            round_index,
            stack(*server),
            stack(*clients),
            data,
            visits[0] if len(visits) == 1 else stack(*visits),
        )
        return [jax.tree.map(lambda a, i=i: a[i], results) for i in range(len(key))]

    return train_round, train_rounds


def _device_round(
    options: ProgramOptions,
    key: jax.Array,
    round_index: jax.Array,
    server: Any,
    clients: Any,
    data: PlacedData,
    visits: Visits,
    *,
    score: bool,
) -> RoundOutput:
    """Return one device's part of a round: visit the cohort, reduce over devices, serve."""
    clients, data, visits = drop_device_axis(clients, data, visits)
    algorithm, limit = options.algorithm, options.step_limit
    visitor = _CohortVisitor(
        options,
        data,
        received=algorithm.broadcast(server),
        key=jax.random.fold_in(jax.random.fold_in(key, LOCAL), round_index),
        step_limit=limit and functools.partial(limit, key, round_index),
        score=score,
    )
    output_shapes = visitor.output_shapes(clients)
    visited = visitor.visit_cohort(clients, visits, output_shapes)
    totals, slowest = _reduce_over_devices(algorithm.aggregation, visited.sums)
    aggregate = _aggregate(algorithm.aggregation, totals, output_shapes.message)
    metrics = totals.metrics
    if visitor.measures_agreement(output_shapes.message):
        metrics = {**metrics, "update/cosine": _agreement(totals.unit_messages, aggregate.value)}
    return RoundOutput(
        server=_serve(algorithm, server, aggregate, totals.weight),
        clients=add_device_axis(visited.clients),
        metrics=metrics,
        work=Work(
            useful=totals.steps,
            executed=totals.turns * options.client_chunk,
            slowest=slowest,
            all_devices=totals.turns,
        ),
        counts=totals.counts,
        left_out=add_device_axis(visited.left_out),
        scores=add_device_axis(visited.scores),
    )


@dataclasses.dataclass(frozen=True)
class _CohortVisitor:
    """Trains one device's members of the cohort and adds up what they yield.

    Attributes:
      options: of the programs.
      data: of the device.
      received: what clients download.
      key: of local training in this round.
      step_limit: ``client id -> max_steps``; None: no limit.
      score: whether local models are scored.
    """

    options: ProgramOptions
    data: PlacedData
    received: Any
    key: jax.Array
    step_limit: Callable[[jax.Array], jax.Array] | None
    score: bool

    def output_shapes(self, clients: Any) -> ClientOutput:
        """Return the shapes of one client's output."""
        train, algorithm = self.data.splits["train"], self.options.algorithm
        state = jax.tree.map(lambda a: a[0], clients)
        window = client_data(self.data, train.start[0], train.size[0], self.data.ids[0])
        own = algorithm.deliver(self.received, self.data.ids[0])
        return jax.eval_shape(algorithm.client_update, own, state, window, jax.random.key(0))

    def measures_agreement(self, message: Any) -> bool:
        """Tell whether clients' messages are compared with their mean."""
        gathered = self.options.algorithm.aggregation.gathered
        return self.options.diagnostics and not gathered and bool(jax.tree.leaves(message))

    def visit_cohort(self, clients: Any, visits: Visits, output: ClientOutput) -> Visited:
        """Return what a visit of all members of the cohort leaves behind.

        Args:
          clients: states of all clients of the device.
          visits: whom to visit.
          output: shapes of one client's.
        """
        start = Visited(
            clients,
            self._no_sums(output, len(visits.rows)),
            left_out=jnp.zeros(self.data.ids.shape, bool),
            scores=empty_table(self.data) if self.score else {},
        )
        # A client's slot is its place in the visit; gathered messages are kept by slot.
        slots = jnp.arange(len(visits.rows), dtype=jnp.int32)
        return visit_rows(
            self._visit_chunk, start, (visits.rows, slots), visits.counts, self.options.client_chunk
        )

    def _no_sums(self, output: ClientOutput, slots: int) -> RoundSums:
        messages = jax.tree.map(lambda a: jnp.zeros(a.shape, _wide(a.dtype)), output.message)
        units = Mean(messages, jnp.zeros(()))
        if self.options.algorithm.aggregation.gathered:
            messages = Gathered(
                jax.tree.map(lambda a: jnp.zeros((slots, *a.shape), a.dtype), output.message),
                weights=jnp.zeros(slots),
                ids=jnp.full(slots, -1, jnp.int32),
            )
        zero = jnp.zeros((), jnp.int32)
        return RoundSums(
            messages,
            weight=jnp.zeros(()),
            metrics=jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), output.metrics),
            unit_messages=units if self.measures_agreement(output.message) else (),
            counts=Counts(zero, zero),
            steps=zero,
            turns=zero,
        )

    def _visit_chunk(self, visited: Visited, chunk_and_slots: tuple) -> Visited:
        """Train a chunk of clients; add what they yield, write their new states back."""
        chunk, slots = chunk_and_slots
        states = read_rows(visited.clients, chunk)
        output = update_chunk(
            self.options, self.received, states, self.data, chunk, self.key, self.step_limit
        )
        finite = finite_rows(chunk, (output.metrics.get("loss"), output.message, output.state))
        sizes = read_rows(self.data.splits["train"].size, chunk)
        scores = visited.scores
        if self.score:
            start = received_params(self.options, self.received, states, self.data, chunk)
            params = select_rows(finite, output.params, start)
            scores = score_chunk(self.options, params, self.data, chunk, scores)
        left_out = jnp.logical_and(sizes > 0, ~finite)
        return Visited(
            write_rows(visited.clients, chunk, select_rows(finite, output.state, states)),
            self._add(visited.sums, output, chunk, slots, sizes, finite),
            left_out=write_rows(visited.left_out, chunk, left_out),
            scores=scores,
        )

    def _add(
        self,
        sums: RoundSums,
        output: ClientOutput,
        chunk: jax.Array,
        slots: jax.Array,
        sizes: jax.Array,
        finite: jax.Array,
    ) -> RoundSums:
        """Add a chunk's output; ``sizes`` and ``finite`` are ``[chunk]``.

        Rows that only pad the chunk have size 0.
        """
        aggregation = self.options.algorithm.aggregation
        real = jnp.logical_and(sizes > 0, finite)
        counted = real if aggregation.weights == "clients" else sizes * real
        weights = counted.astype(jnp.float32)
        message, metrics = rows_or_zero(real, (output.message, output.metrics))
        if aggregation.gathered:
            ids = jnp.where(real, read_rows(self.data.ids, chunk), -1)
            messages = write_rows(sums.messages, slots, Gathered(message, weights, ids))
        else:
            messages = jax.tree.map(_add_weighted(weights), sums.messages, message)
        units = sums.unit_messages
        if self.measures_agreement(output.message):
            norms = map_clients(optax.tree.norm, chunk, message)
            moved = real * (norms > 0)
            add = _add_weighted(moved / jnp.where(norms > 0, norms, 1))
            units = Mean(jax.tree.map(add, units.total, message), units.weight + moved.sum())
        bad = jnp.logical_and(sizes > 0, ~finite)
        return RoundSums(
            messages,
            weight=sums.weight + weights.sum(),
            metrics=jax.tree.map(_add_weighted(real), sums.metrics, metrics),
            unit_messages=units,
            counts=jax.tree.map(jnp.add, sums.counts, Counts(real.sum(), bad.sum())),
            steps=sums.steps + output.steps.sum(),
            turns=sums.turns + output.steps.max(),
        )


def _reduce_over_devices(aggregation: Aggregation, sums: RoundSums) -> tuple[RoundSums, jax.Array]:
    """Return the sums over all devices, and the turns of the device that had most."""
    # Scalars travel as one vector: an all-reduce has a fixed cost on every device.
    scalars, unravel = jax.flatten_util.ravel_pytree((sums.weight, sums.metrics))
    scalars, (steps, counts, turns), units, messages = jax.lax.psum(
        (
            scalars,
            (sums.steps, sums.counts, sums.turns),
            sums.unit_messages,
            () if aggregation.gathered else sums.messages,
        ),
        AXIS,
    )
    if aggregation.gathered:
        messages = jax.lax.all_gather(sums.messages, AXIS, tiled=True)
    weight, metrics = unravel(scalars)
    totals = RoundSums(messages, weight, metrics, units, counts, steps, turns)
    return totals, jax.lax.pmax(sums.turns, AXIS)


def _aggregate(aggregation: Aggregation, totals: RoundSums, message: Any) -> Aggregate:
    """Return what the server is given; ``message`` has the shapes of one client's."""
    fixed = aggregation.divide_by
    divisor = totals.weight if fixed is None else jnp.float32(fixed)
    if aggregation.gathered:
        return Aggregate(totals.messages, divisor)
    mean = jax.tree.map(
        lambda total, a: (total / divisor.astype(total.dtype)).astype(a.dtype),
        totals.messages,
        message,
    )
    return Aggregate(mean, divisor)


def _agreement(unit_messages: Mean, mean: Any) -> Mean:
    """Return the mean cosine between the clients' messages and the mean message."""
    return Mean(optax.tree.vdot(unit_messages.total, mean) / optax.tree.norm(mean),
                unit_messages.weight)  # fmt: skip


def _serve(algorithm: Algorithm, server: Any, aggregate: Aggregate, weight: jax.Array) -> Any:
    """Return the server's next state; the one that it has if nobody answered (weight 0)."""
    return jax.tree.map(
        lambda new, old: jnp.where(weight > 0, new, old),
        algorithm.server_update(server, aggregate),
        server,
    )


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _add_weighted(weights):
    """Return ``(sum, values) -> sum + Σ weights * values`` over ``[chunk, ...]`` values."""

    def add(total, values):
        return total + jnp.tensordot(weights.astype(total.dtype), values.astype(total.dtype), 1)

    return add
