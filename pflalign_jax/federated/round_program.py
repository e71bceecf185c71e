"""The device program of a round, over a mesh of devices.

A round has three stages. Each device visits its members of the cohort and adds up what they send
(`pflalign_jax.federated.cohort_visit`); the sums are reduced over devices; the server takes the
aggregate.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from pflalign_jax.federated.algorithm import Aggregate, Aggregation, Algorithm, Mean
from pflalign_jax.federated.cohort_visit import CohortVisitor, Counts, RoundSums
from pflalign_jax.federated.device_program import (
    ProgramOptions,
    ScoreTable,
    Visits,
    add_device_axis,
    compiler_options,
    drop_device_axis,
    sharded_program,
)
from pflalign_jax.federated.sharding import AXIS, REPLICATED, SHARDED, PlacedData
from pflalign_jax.random_purposes import LOCAL


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

    Its arguments: ``weights`` (the model's frozen ones), ``key, round_index, server, clients, data,
    visits`` and the static ``score``. ``clients`` is donated. It returns a `RoundOutput`.

    A client whose loss, message or new state is not finite is left out: it does not count in any
    mean, keeps the state it had, and is scored with the model it received. If nobody is left the
    server's state does not change.

    The second function takes tuples of S of ``key``, ``server``, ``clients`` and ``visits`` (of the
    last also only one, for all), vmaps over them, and returns S results.
    """

    def program(weights, key, round_index, server, clients, data, visits, score):
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
        output = sharded(weights, key, round_index, server, clients, data, visits)
        means = {name: mean.total / mean.weight for name, mean in output.metrics.items()}
        return output._replace(metrics=means)

    jit = functools.partial(
        jax.jit,
        static_argnames="score",
        donate_argnames="clients",
        compiler_options=compiler_options(options.mesh),
    )

    @jit
    def train_round(weights, key, round_index, server, clients, data, visits, *, score):
        return program(weights, key, round_index, server, clients, data, visits, score)

    @jit
    def train_rounds(weights, key, round_index, server, clients, data, visits, *, score):
        stack = functools.partial(jax.tree.map, lambda *a: jnp.stack(a))
        visits_axis = None if len(visits) == 1 else 0
        results = jax.vmap(
            functools.partial(program, score=score),
            in_axes=(None, 0, None, 0, 0, None, visits_axis),
        )(
            weights,
            stack(*key),
            round_index,
            stack(*server),
            stack(*clients),
            data,
            visits[0] if len(visits) == 1 else stack(*visits),
        )
        return [jax.tree.map(lambda a, i=i: a[i], results) for i in range(len(key))]

    return train_round, train_rounds


def visitor_of_round(
    options: ProgramOptions,
    key: jax.Array,
    round_index: jax.Array,
    received: Any,
    data: PlacedData,
    *,
    score: bool,
) -> CohortVisitor:
    """Return what trains a device's clients in a round, with the round's keys.

    Args:
      options: of the programs.
      key: of the run.
      round_index: int32 scalar, rounds done.
      received: what clients download.
      data: of the device.
      score: whether local models are scored.
    """
    limit = options.step_limit
    return CohortVisitor(
        options,
        data,
        received=received,
        key=jax.random.fold_in(jax.random.fold_in(key, LOCAL), round_index),
        step_limit=limit and functools.partial(limit, key, round_index),
        score=score,
    )


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
    algorithm = options.algorithm
    visitor = visitor_of_round(
        options, key, round_index, algorithm.broadcast(server), data, score=score
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
