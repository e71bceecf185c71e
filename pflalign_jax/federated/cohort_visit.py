"""The first stage of a round: one device visits its members of the cohort and adds up their output.

Every function works on one device's block: leaves ``[R, ...]`` of its R clients.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pflalign_jax.federated.algorithm import ClientOutput, Gathered, Mean
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
    client_data,
    empty_table,
    received_params,
    score_chunk,
    update_chunk,
)
from pflalign_jax.federated.sharding import PlacedData


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


@dataclasses.dataclass(frozen=True)
class CohortVisitor:
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
            scores=empty_table(self.options, self.data) if self.score else {},
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


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _add_weighted(weights):
    """Return ``(sum, values) -> sum + Σ weights * values`` over ``[chunk, ...]`` values."""

    def add(total, values):
        return total + jnp.tensordot(weights.astype(total.dtype), values.astype(total.dtype), 1)

    return add
