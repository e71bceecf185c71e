"""The models of all clients, received or adapted, as arrays on the host; nothing is changed."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pflalign_jax.federated.client_rows import (
    finite_rows,
    read_rows,
    rows_or_zero,
    select_rows,
    visit_rows,
    write_rows,
)
from pflalign_jax.federated.client_states import StagedClients
from pflalign_jax.federated.device_program import (
    ProgramOptions,
    add_device_axis,
    compiler_options,
    drop_device_axis,
    map_client_data,
    newcomer_states,
    received_params,
    sharded_program,
    update_chunk,
)
from pflalign_jax.federated.inject_hyperparams import adapting
from pflalign_jax.federated.sharding import SHARDED, PlacedData
from pflalign_jax.random_purposes import ADAPT

STAGES = ("received", "adapted", "unseen", "fisher")
"""Which models: as a round starts with them; after a round's local steps from there; as a round
would start if the client had no example, which cannot depend on any of its data. And, in the place
of the adapted ones, the algorithm's ``fisher`` there."""


def models_program(options: ProgramOptions) -> Callable[..., Any]:
    """Return the jitted program that gives clients' models, leaves ``[D, R, ...]``.

    Its arguments are those of `pflalign_jax.federated.eval_program.eval_program`, with the static
    ``stage``, one of `STAGES`, instead of ``adapt``. Adapted models are those that it scores.
    """

    @functools.partial(
        jax.jit, static_argnames="stage", compiler_options=compiler_options(options.mesh)
    )
    def models(weights, key, round_index, server, clients, data, visits, *, stage):
        device_models = functools.partial(_device_models, options, stage=stage)
        program = sharded_program(options, device_models, out_specs=SHARDED)
        return program(weights, key, round_index, server, clients, data, visits)

    return models


def _device_models(options, key, round_index, server, clients, data, visits, *, stage):
    """Return one device's models, leaves ``[1, R, ...]``."""
    clients, data, visits = drop_device_axis(clients, data, visits)
    received = options.algorithm.broadcast(server)
    to_adapt = adapting(server, received)
    # As in an evaluation: the same draws give the same adapted models.
    adapt_key = jax.random.fold_in(jax.random.fold_in(key, ADAPT), round_index)
    data = _without_examples(data) if stage == "unseen" else data

    def models(chunk):
        states = read_rows(clients, chunk)
        if options.newcomers:
            states = newcomer_states(options, received, data, chunk)
        start = received_params(options, received, states, data, chunk)
        if stage in ("received", "unseen"):
            return start
        steps = options.adapt_steps
        limit = None if steps is None else lambda client_id: steps
        output = update_chunk(options, to_adapt, states, data, chunk, adapt_key, limit)
        finite = finite_rows(chunk, (output.metrics.get("loss"), output.params))
        if stage == "adapted":
            return select_rows(finite, output.params, start)
        found = map_client_data(
            lambda window, state: options.algorithm.fisher(state, window), data, chunk, output.state
        )
        # Nothing is known where the adapted model is the received one.
        return rows_or_zero(finite & finite_rows(chunk, found), found)

    (num_rows,) = data.ids.shape
    shapes = jax.eval_shape(models, visits.rows[: options.client_chunk])
    empty = jax.tree.map(lambda a: jnp.zeros((num_rows, *a.shape[1:]), a.dtype), shapes)
    filled = visit_rows(
        lambda table, chunk: write_rows(table, chunk, models(chunk)),
        empty,
        visits.rows,
        visits.counts,
        options.client_chunk,
    )
    return add_device_axis(filled)


def _without_examples(data: PlacedData) -> PlacedData:
    """Return a device's data with nothing of the clients' training examples in it."""
    train = jax.tree.map(jnp.zeros_like, data.splits["train"])
    return data._replace(splits={**data.splits, "train": train})


def gather_models(num_clients: int, parts: Iterable[tuple[StagedClients, Any]]) -> Any:
    """Return models as NumPy arrays ``[K, ...]`` in the dataset's order.

    Args:
      num_clients: K.
      parts: clients that were visited, and their models ``[D, R, ...]``.
    """
    gathered: Any = None
    for staged, models in parts:
        rows = jax.tree.map(lambda a, s=staged: _on_host(a)[s.device, s.row], models)
        if gathered is None:
            gathered = jax.tree.map(lambda a: np.zeros((num_clients, *a.shape[1:]), a.dtype), rows)
        for whole, part in zip(jax.tree.leaves(gathered), jax.tree.leaves(rows), strict=True):
            whole[staged.positions] = part
    return gathered


def _on_host(array: jax.Array) -> np.ndarray:
    """Return an array of all devices; every process must call."""
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
