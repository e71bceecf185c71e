"""The device program that scores clients, over a mesh of devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from pflalign_jax.federated.client_rows import finite_rows, read_rows, select_rows, visit_rows
from pflalign_jax.federated.device_program import (
    ProgramOptions,
    add_device_axis,
    compiler_options,
    drop_device_axis,
    empty_table,
    newcomer_states,
    received_params,
    score_chunk,
    sharded_program,
    update_chunk,
)
from pflalign_jax.federated.inject_hyperparams import adapting
from pflalign_jax.federated.sharding import SHARDED
from pflalign_jax.random_purposes import ADAPT


def eval_program(options: ProgramOptions) -> Callable[..., Any]:
    """Return the jitted scoring of clients; nothing is changed.

    Its arguments are those of the round's program, with the static ``adapt`` instead of ``score``.
    It returns ``{model name: score table}``; with ``adapt`` the clients are trained from the
    current global model as well, with draws of their own, and scored after it.
    """

    @functools.partial(
        jax.jit, static_argnames="adapt", compiler_options=compiler_options(options.mesh)
    )
    def score_clients(weights, key, round_index, server, clients, data, visits, *, adapt):
        device_scores = functools.partial(_device_scores, options, adapt=adapt)
        program = sharded_program(options, device_scores, out_specs=SHARDED)
        return program(weights, key, round_index, server, clients, data, visits)

    return score_clients


def _device_scores(options, key, round_index, server, clients, data, visits, *, adapt):
    """Return one device's tables of scores, ``{model name: ScoreTable}``."""
    clients, data, visits = drop_device_axis(clients, data, visits)
    algorithm = options.algorithm
    received = algorithm.broadcast(server)
    adapt_key = jax.random.fold_in(jax.random.fold_in(key, ADAPT), round_index)
    step_limit = None
    if options.adapt_steps is not None:
        step_limit = lambda client_id: options.adapt_steps  # noqa: E731

    to_adapt = adapting(server, received)

    def visit(tables, chunk):
        tables, states = dict(tables), read_rows(clients, chunk)
        if options.newcomers:
            states = newcomer_states(options, received, data, chunk)

        def score(name, params, shared=False):
            tables[name] = score_chunk(options, params, data, chunk, tables[name], shared)

        if algorithm.global_params is not None:
            score("global", algorithm.global_params(received), shared=True)
        start = received_params(options, received, states, data, chunk)
        score("personal/received", start)
        if adapt:
            output = update_chunk(options, to_adapt, states, data, chunk, adapt_key, step_limit)
            # As in a round: where training left the finite numbers, the received model counts.
            finite = finite_rows(chunk, (output.metrics.get("loss"), output.params))
            score("personal/adapted", select_rows(finite, output.params, start))
        return tables

    names = [] if algorithm.global_params is None else ["global"]
    names += ["personal/received"] + (["personal/adapted"] if adapt else [])
    tables = {name: empty_table(options, data) for name in names}
    tables = visit_rows(visit, tables, visits.rows, visits.counts, options.client_chunk)
    return add_device_axis(tables)
