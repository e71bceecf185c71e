"""The device program of a round, over a mesh of devices.

Inside, every function works on one device's block: leaves ``[R, ...]`` of its R client rows.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from pflalign_jax.federated.algorithm import Aggregate, Gathered, Mean
from pflalign_jax.federated.client_rows import each, read_rows, visit_rows, write_rows
from pflalign_jax.federated.device_program import (
    OWN,
    SAME,
    Setting,
    client_data,
    compiler_options,
    empty_table,
    lead,
    output_shapes,
    over_devices,
    own_block,
    received_params,
    score_chunk,
    update_chunk,
)
from pflalign_jax.federated.finite import finite_rows, rows_or_zero, where_rows
from pflalign_jax.federated.random_keys import LOCAL
from pflalign_jax.federated.sharding import AXIS


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


def round_step(setting: Setting) -> tuple[Callable, Callable]:
    """Return the jitted round, and the same of several federations at once.

    Its arguments: ``key, round_index, server, clients, data, rows, counts`` and the static
    ``score``; ``rows`` is ``[D, S]`` int32, each device's members of the cohort, ``counts``
    ``[D]`` how many are real. ``clients`` is donated.

    It returns the next ``server`` and ``clients``, the training metrics as means over the cohort,
    the `Work`, the `Counts`, ``[D, R]`` bool, which clients were left out, and a score table of the
    local models (empty without ``score``).

    A client whose loss, message or new state is not finite is left out: it does not count in any
    mean, keeps the state it had, and is scored with the model it received. If nobody is left the
    server's state does not change.

    The second function takes tuples of S of ``key``, ``server``, ``clients``, ``rows`` and
    ``counts`` (of the last two also only one, for all), vmaps over them, and returns S results.
    """
    algorithm, aggregation = setting.algorithm, setting.algorithm.aggregation

    def device_round(key, round_index, server, clients, data, rows, counts, *, score):
        clients, data = own_block(clients, data)
        rows, count = rows[0], counts[0]
        received = algorithm.broadcast(server)
        local_key = jax.random.fold_in(jax.random.fold_in(key, LOCAL), round_index)
        limit = setting.step_limit and functools.partial(setting.step_limit, key, round_index)
        train = data.splits["train"]
        one_client = jax.tree.map(lambda a: a[0], clients)
        window = client_data(data, train.start[0], train.size[0], data.ids[0])
        sent = output_shapes(setting, algorithm.deliver(received, data.ids[0]), one_client, window)
        total = jax.tree.map(lambda a: jnp.zeros(a.shape, _wide(a.dtype)), sent.message)
        if aggregation.gathered:
            room = rows.shape
            total = jax.tree.map(lambda a: jnp.zeros(room + a.shape, a.dtype), sent.message)
            total = Gathered(total, jnp.zeros(room), jnp.full(room, -1, jnp.int32))
        metrics = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), sent.metrics)
        compared = setting.diagnostics and not aggregation.gathered and bool(jax.tree.leaves(total))
        units = Mean(jax.tree.map(jnp.zeros_like, total), jnp.zeros(())) if compared else ()

        def visit(carry, chosen_and_slots):
            clients, total, units, weight, metrics, useful, counts, turns, left_out, table = carry
            chosen, slots = chosen_and_slots
            states = read_rows(clients, chosen)
            output, (sizes, ids) = update_chunk(
                setting, received, states, data, chosen, local_key, limit
            )
            finite = finite_rows(chosen, (output.metrics.get("loss"), output.message, output.state))
            real = jnp.logical_and(sizes > 0, finite)
            counted = real if aggregation.weights == "clients" else sizes * real
            weights = counted.astype(jnp.float32)
            message, own = rows_or_zero(real, (output.message, output.metrics))
            if aggregation.gathered:
                row = Gathered(message, weights, jnp.where(real, ids, -1))
                total = write_rows(total, slots, row)
            else:
                total = jax.tree.map(_add_weighted(weights), total, message)
            if compared:
                norms = each(optax.tree.norm, chosen, message)
                moved = real * (norms > 0)
                add = _add_weighted(moved / jnp.where(norms > 0, norms, 1))
                sums = jax.tree.map(add, units.total, message)
                units = Mean(sums, units.weight + moved.sum())
            metrics = jax.tree.map(_add_weighted(real), metrics, own)
            if score:
                start = received_params(setting, received, states, data, chosen)
                params = where_rows(finite, output.params, start)
                table = score_chunk(setting, params, data, chosen, table)
            clients = write_rows(clients, chosen, where_rows(finite, output.state, states))
            bad = jnp.logical_and(sizes > 0, ~finite)
            left_out = write_rows(left_out, chosen, bad)
            counts = jax.tree.map(jnp.add, counts, Counts(real.sum(), bad.sum()))
            weight, useful = weight + weights.sum(), useful + output.steps.sum()
            turns += output.steps.max()
            sums = units, weight, metrics, useful, counts
            return clients, total, *sums, turns, left_out, table

        table = empty_table(data) if score else {}
        none, nobody = jnp.zeros((), jnp.int32), jnp.zeros(data.ids.shape, bool)
        sums = units, jnp.zeros(()), metrics, none, Counts(none, none)
        slots = jnp.arange(len(rows), dtype=jnp.int32)
        clients, total, *sums, turns, left_out, table = visit_rows(
            visit,
            (clients, total, *sums, none, nobody, table),
            (rows, slots),
            count,
            setting.client_chunk,
        )
        units, weight, metrics, useful, counts = sums
        small, unravel = jax.flatten_util.ravel_pytree((weight, metrics))  # one all-reduce
        big = () if aggregation.gathered else total
        small, (useful, counts, turns_of_all), units, big = jax.lax.psum(
            (small, (useful, counts, turns), units, big), AXIS
        )
        weight, metrics = unravel(small)
        if aggregation.gathered:
            value = jax.lax.all_gather(total, AXIS, tiled=True)
        executed = turns_of_all * setting.client_chunk
        work = Work(useful, executed, jax.lax.pmax(turns, AXIS), turns_of_all)
        fixed = aggregation.divide_by
        divisor = weight if fixed is None else jnp.float32(fixed)
        if not aggregation.gathered:
            value = jax.tree.map(
                lambda t, a: (t / divisor.astype(t.dtype)).astype(a.dtype), big, sent.message
            )
        if compared:
            cosines = optax.tree.vdot(units.total, value) / optax.tree.norm(value)
            metrics = {**metrics, "update/cosine": Mean(cosines, units.weight)}
        server = jax.tree.map(
            lambda new, old: jnp.where(weight > 0, new, old),
            algorithm.server_update(server, Aggregate(value, divisor)),
            server,
        )
        return server, lead(clients), metrics, work, counts, *lead((left_out, table))

    def program(key, round_index, server, clients, data, rows, counts, score):
        sharded = over_devices(
            setting,
            functools.partial(device_round, score=score),
            data,
            (SAME, OWN, SAME, SAME, SAME, OWN, OWN),
        )
        server, clients, metrics, *others = sharded(
            key, round_index, server, clients, data, rows, counts
        )
        means = {name: mean.total / mean.weight for name, mean in metrics.items()}
        return server, clients, means, *others

    jit = functools.partial(
        jax.jit,
        static_argnames="score",
        donate_argnames="clients",
        compiler_options=compiler_options(setting.mesh),
    )

    @jit
    def train_round(key, round_index, server, clients, data, rows, counts, *, score):
        return program(key, round_index, server, clients, data, rows, counts, score)

    @jit
    def train_rounds(key, round_index, server, clients, data, rows, counts, *, score):
        shared = len(rows) == 1
        key, server, clients, rows, counts = (
            jax.tree.map(lambda *a: jnp.stack(a), *each)
            for each in (key, server, clients, rows, counts)
        )
        if shared:
            rows, counts = rows[0], counts[0]
        own = None if shared else 0
        results = jax.vmap(
            functools.partial(program, score=score), in_axes=(0, None, 0, 0, None, own, own)
        )(key, round_index, server, clients, data, rows, counts)
        return [jax.tree.map(lambda a, i=i: a[i], results) for i in range(len(key))]

    return train_round, train_rounds


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _add_weighted(weights):
    """Return ``(sum, values) -> sum + Σ weights * values`` over ``[chunk, ...]`` values."""

    def add(total, values):
        return total + jnp.tensordot(weights.astype(total.dtype), values.astype(total.dtype), 1)

    return add
