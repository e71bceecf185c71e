"""The device program that scores clients, over a mesh of devices."""

import functools
from collections.abc import Callable

import jax

from pflalign_jax.federated.client_rows import read_rows, visit_rows
from pflalign_jax.federated.device_program import (
    OWN,
    Setting,
    compiler_options,
    empty_table,
    fresh_states,
    lead,
    over_devices,
    own_block,
    received_params,
    score_chunk,
    update_chunk,
)
from pflalign_jax.federated.finite import finite_rows, where_rows
from pflalign_jax.federated.random_keys import ADAPT


def score_step(setting: Setting) -> Callable:
    """Return the jitted scoring of clients; nothing is changed.

    Its arguments are those of `round_step`, with the static ``adapt`` instead of ``score``. It
    returns ``{model name: score table}``; with ``adapt`` the clients are trained from the current
    global model as well, with draws of their own, and scored after it.
    """
    algorithm = setting.algorithm
    names = [] if algorithm.global_params is None else ["global"]

    def device_scores(key, round_index, server, clients, data, rows, counts, *, adapt):
        clients, data = own_block(clients, data)
        rows, count = rows[0], counts[0]
        received = algorithm.broadcast(server)
        adapt_key = jax.random.fold_in(jax.random.fold_in(key, ADAPT), round_index)

        def visit(tables, chosen):
            tables, states = dict(tables), read_rows(clients, chosen)
            if setting.fresh_state is not None:
                states = fresh_states(setting, server, key, received, data, chosen)

            def score(name, params, shared=False):
                tables[name] = score_chunk(setting, params, data, chosen, tables[name], shared)

            if algorithm.global_params is not None:
                score("global", algorithm.global_params(received), shared=True)
            start = received_params(setting, received, states, data, chosen)
            score("personal/received", start)
            if adapt:
                steps = setting.adapt_steps
                limit = None if steps is None else lambda client_id: steps
                output, _ = update_chunk(setting, received, states, data, chosen, adapt_key, limit)
                finite = finite_rows(chosen, (output.metrics.get("loss"), output.params))
                score("personal/adapted", where_rows(finite, output.params, start))
            return tables

        scored = [*names, "personal/received"] + (["personal/adapted"] if adapt else [])
        tables = {name: empty_table(data) for name in scored}
        return lead(visit_rows(visit, tables, rows, count, setting.client_chunk))

    @functools.partial(
        jax.jit, static_argnames="adapt", compiler_options=compiler_options(setting.mesh)
    )
    def score_clients(key, round_index, server, clients, data, rows, counts, *, adapt):
        program = over_devices(setting, functools.partial(device_scores, adapt=adapt), data, OWN)
        return program(key, round_index, server, clients, data, rows, counts)

    return score_clients
