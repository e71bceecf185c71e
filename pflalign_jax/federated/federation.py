"""A federation as functions: clients placed on devices, rounds, scores by client."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.datasets.features import are_tokens
from pflalign_jax.federated.algorithm import Algorithm
from pflalign_jax.federated.client_states import PLACES, choose_place, on_devices, staged_from
from pflalign_jax.federated.client_store import disk_store, host_store
from pflalign_jax.federated.device_program import SAME, Setting, training_data
from pflalign_jax.federated.eval_program import score_step
from pflalign_jax.federated.inject_hyperparams import values_of
from pflalign_jax.federated.interface import Federation, FederationState, RoundResult
from pflalign_jax.federated.message_size import message_shapes, num_bytes, sent_bytes
from pflalign_jax.federated.participation import Participation, Turnout, uniform
from pflalign_jax.federated.random_keys import COHORT, INIT, STATES
from pflalign_jax.federated.round_program import round_step
from pflalign_jax.federated.sharding import (
    AXIS,
    choose_chunk,
    everywhere,
)
from pflalign_jax.federated.snapshot import Snapshot
from pflalign_jax.federated.tables import eval_batch_size as default_eval_batch_size
from pflalign_jax.federated.tables import named_scores, on_host
from pflalign_jax.models import Model


def federate(
    algorithm: Algorithm,
    model: Model,
    dataset: FederatedDataset,
    *,
    cohort_size: int | None = None,
    participation: Participation | None = None,
    client_chunk: int | None = None,
    mesh: Mesh | None = None,
    eval_batch_size: int | None = None,
    client_state_in: str | None = None,
    state_dir: str | os.PathLike | None = None,
    new_client_steps: int | None = None,
    drop_last: bool = False,
    diagnostics: bool = False,
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
      cohort_size: C, the most answers per round; None: all K clients.
      participation: who is invited and who answers, from `pflalign_jax.federated.participation`;
        None: C clients are drawn uniformly in every round, and all answer.
      client_chunk: clients vmapped at a time on one device; None: see
        `pflalign_jax.federated.sharding.choose_chunk`.
      mesh: a mesh with the one axis ``clients``; None: all devices.
      eval_batch_size: examples per step when scoring; None: from the size of the test sets.
      client_state_in: where client states live between rounds. ``"device"``: all on devices with
        their data, each client at home on one. ``"host"`` or ``"disk"``: only a cohort's states
        and data are on devices, balanced anew every round, the next cohort's read while a round
        runs; memory on devices does not grow with K, and ``dataset.x`` may be memory-mapped.
        None: see `pflalign_jax.federated.client_states.choose_place`.
      state_dir: for ``"disk"``, an empty or new directory; see `disk_store`.
      new_client_steps: the most local steps of a new client before its adapted model is scored;
        None: as many as in a round.
      drop_last: True leaves out the last batch of a local epoch where it is not full, as PFLlib
        does; a client with less than one batch keeps it (in PFLlib such a client never trains).
      diagnostics: True adds ``update/cosine`` to every round's metrics, the mean over the cohort of
        the cosine between a client's message and the mean message, where messages are reduced.

    Raises:
      ValueError: for a cohort larger than the population, a chunk below 1, another mesh axis, an
        unknown place.
    """
    num_clients = dataset.num_clients
    cohort_size = num_clients if cohort_size is None else cohort_size
    if not 1 <= cohort_size <= num_clients:
        raise ValueError(
            f"cohort_size={cohort_size} is not possible: {dataset.name} has {num_clients} clients; "
            f"use a number in 1..{num_clients}, or None for all"
        )
    each = algorithm.deliver is not Algorithm._field_defaults["deliver"]
    if each and dataset.client_ids.max() >= num_clients:
        raise ValueError(
            f"the algorithm keeps something for each of {num_clients} clients, whose ids must be "
            f"0..{num_clients - 1}; {dataset.name} has {dataset.client_ids.max()}"
        )
    mesh = Mesh(np.array(jax.devices()), (AXIS,)) if mesh is None else mesh
    if mesh.axis_names != (AXIS,):
        raise ValueError(f"mesh has axes {mesh.axis_names}; it must have the one axis ('{AXIS}',)")
    if client_chunk is not None and client_chunk < 1:
        raise ValueError(f"client_chunk={client_chunk} is not allowed; it must be >= 1")
    if new_client_steps is not None and new_client_steps < 0:
        raise ValueError(f"new_client_steps={new_client_steps} is not allowed; it must be >= 0")

    eval_splits = [s for s in ("validation", "test") if len(dataset.splits[s].indices)]
    if eval_batch_size is None:
        eval_batch_size = default_eval_batch_size(dataset)

    def first_params(key):
        dtype = jnp.int32 if are_tokens(dataset.x.dtype) else jnp.float32
        example = jnp.zeros((1, *dataset.x.shape[1:]), dtype)
        return model.init(jax.random.fold_in(key, INIT), example)

    def first_states(key, values):
        return algorithm.init(first_params(key), jax.random.fold_in(key, STATES), **values)

    def first_client_state(key_and_values):
        return first_states(*key_and_values)[1]

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, SAME))
    def first_server_state(key_and_values):
        return first_states(*key_and_values)[0]

    first_server, first_client = jax.eval_shape(first_states, jax.random.key(0), {})
    if client_chunk is None:
        per_device = -(-cohort_size // mesh.size)
        client_chunk = choose_chunk(mesh, num_bytes((first_server, first_client)), per_device)
    participation = uniform() if participation is None else participation

    def step_limit(key, round_index, client_id):
        cohort_key = jax.random.fold_in(key, COHORT)
        return participation.step_limit(cohort_key, round_index, client_id)

    setting = Setting(
        *(algorithm, model.apply, mesh, client_chunk, eval_batch_size),
        diagnostics=diagnostics,
        step_limit=step_limit if participation.step_limit else None,
        drop_last=drop_last,
    )
    (train_round, train_rounds), score_clients = round_step(setting), score_step(setting)
    place = client_state_in
    if place is None:
        place = choose_place(
            num_clients * num_bytes(first_client), dataset.x.nbytes, mesh, state_dir
        )
    if place not in PLACES:
        raise ValueError(f"client_state_in={place!r} is unknown; use one of {PLACES} or None")
    if place == "disk" and state_dir is None:
        raise ValueError(
            "client_state_in='disk' needs a directory; pass state_dir, it will hold the states"
        )

    def open_store(first, until=None, held=()):
        if place == "host":
            return host_store(first, num_clients)
        return disk_store(first, num_clients, state_dir, until, held)

    if place == "device":
        residence = on_devices(dataset, mesh, client_chunk, cohort_size)
    else:
        in_files = place == "disk"
        residence = staged_from(dataset, mesh, client_chunk, cohort_size, open_store, in_files)

    def init(key, **values):
        if values.keys() - values_of(first_server).keys():
            raise ValueError(
                f"init: {sorted(values)} cannot be chosen; the algorithm's hyperparameters in its "
                f"state are {sorted(values_of(first_server))}, see federated.inject_hyperparams"
            )
        data = everywhere(np.asarray(jax.random.key_data(key)), mesh)
        key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
        start = everywhere(np.zeros((), np.int32), mesh)
        values = everywhere({k: np.asarray(v, np.float32) for k, v in values.items()}, mesh)
        server = first_server_state((key, values))
        clients = residence.init(first_client_state, (key, values))
        return FederationState(key, start, server, clients)

    def save(state):
        key, impl = jax.random.key_data(state.key), str(jax.random.key_impl(state.key))
        return Snapshot(int(state.round), key, impl, state.server, residence.save(state.clients))

    def restore(saved, held=()):
        data, done = everywhere((np.asarray(saved.key), np.asarray(saved.round, np.int32)), mesh)
        key = jax.random.wrap_key_data(data, impl=saved.key_impl)
        server = everywhere(jax.tree.map(np.asarray, saved.server), mesh)
        clients = residence.restore(
            saved.clients, first_client_state, (key, values_of(server)), saved.round, held
        )
        return FederationState(key, done, server, clients)

    # The last cohorts: this round's was drawn when the round before looked ahead.
    drawn: dict[tuple[bytes, int], Turnout] = {}
    sizes = dataset.splits["train"].sizes

    everyone = participation.sure and cohort_size == num_clients

    def turnout_of(key, round_index):
        if everyone:
            return Turnout(np.arange(num_clients), num_clients)
        name = (np.asarray(jax.random.key_data(key)).tobytes(), round_index)
        if name not in drawn:
            turnout = participation.draw(
                jax.random.fold_in(key, COHORT), round_index, dataset.client_ids, sizes, cohort_size
            )
            while len(drawn) > 1:
                del drawn[next(iter(drawn))]
            drawn[name] = turnout
        return drawn[name]

    def stage(state, score):
        done = int(state.round)
        ahead = turnout_of(state.key, done + 1).cohort if residence.reads_ahead else None
        cohort = turnout_of(state.key, done).cohort
        return residence.stage(state.clients, done, cohort, ahead, score)

    def lower_round(state):
        staged = stage(state, False)
        return train_round.lower(*state._replace(clients=staged.clients), *staged[1:4], score=False)

    def run_round(state, score=False):
        staged = stage(state, score)
        state = state._replace(clients=staged.clients)
        return finish(state, staged, train_round(*state, *staged[1:4], score=score), score)

    def run_rounds(states, score=False):
        if len(states) == 1:
            return [run_round(states[0], score)]
        if place != "device":
            raise ValueError(f"clients live in {place!r}; several runs at once need 'device'")
        staged = [stage(state, score) for state in states]
        visited = staged[:1] if everyone else staged
        results = train_rounds(
            tuple(state.key for state in states),
            states[0].round,
            tuple(state.server for state in states),
            tuple(state.clients for state in states),
            staged[0].data,
            tuple(each.rows for each in visited),
            tuple(each.counts for each in visited),
            score=score,
        )
        return [finish(*run, score) for run in zip(states, staged, results, strict=True)]

    def finish(state, staged, result, score):
        server, new_states, metrics, work, counts, left_out, table = result
        if algorithm.between_rounds is not None and int(counts.answered):
            server = jax.tree.map(
                lambda a: everywhere(a, mesh) if isinstance(a, np.ndarray) else a,
                algorithm.between_rounds(server),
            )
        done = state.round + 1
        clients = residence.keep(staged, new_states, int(done))
        invited = turnout_of(state.key, int(done) - 1).invited
        table = {"personal/adapted": table}
        adapted = named_scores(dataset, eval_splits, [(staged, table)]) if score else {}

        def nonfinite():
            return staged.positions[on_host(left_out)[staged.device, staged.row] > 0]

        return FederationState(state.key, done, server, clients), RoundResult(
            staged.positions, invited, metrics, work, counts, adapted, nonfinite
        )

    def evaluate(state, adapt=True):
        parts = (
            (
                staged,
                score_clients(*state._replace(clients=staged.clients), *staged[1:4], adapt=adapt),
            )
            for staged in residence.every(state.clients)
        )
        return named_scores(dataset, eval_splits, parts)

    new = dataset.new_clients

    def fresh_state(server, key, received, data):
        if algorithm.newcomer is not None:
            return algorithm.newcomer(received, data)
        if algorithm.global_params is None:
            return first_client_state((key, values_of(server)))
        params = algorithm.global_params(algorithm.broadcast(server))
        return algorithm.init(params, jax.random.fold_in(key, STATES), **values_of(server))[1]

    score_newcomers = score_step(
        setting._replace(adapt_steps=new_client_steps, fresh_state=fresh_state)
    )

    @functools.cache
    def newcomers():
        return on_devices(new, mesh, client_chunk, new.num_clients)

    def evaluate_new(state, adapt=True):
        if new is None:
            raise ValueError(f"{dataset.name} has no new clients; make it with num_new_clients=...")
        (staged,) = newcomers().every(())
        tables = score_newcomers(*state._replace(clients=staged.clients), *staged[1:4], adapt=adapt)
        scores = named_scores(new, ["test"], [(staged, tables)])
        return {name.replace("test/", "new_clients/", 1): s for name, s in scores.items()}

    def client_state(state, k):
        if not 0 <= k < num_clients:
            raise ValueError(f"client {k} does not exist; {dataset.name} has {num_clients} clients")
        return residence.one(state.clients, k)

    def personal_params(state, k):
        own = client_state(state, k)
        received = algorithm.deliver(algorithm.broadcast(state.server), dataset.client_ids[k])
        return algorithm.personal_params(received, own, training_data(dataset, k))

    def downloaded(server):
        return algorithm.deliver(algorithm.broadcast(server), dataset.client_ids[0])

    down = jax.eval_shape(downloaded, first_server)
    message = message_shapes(algorithm, down, first_client, dataset)
    up = sent_bytes(algorithm.aggregation, message)

    return Federation(
        init,
        run_round,
        run_rounds,
        evaluate,
        evaluate_new,
        save,
        restore,
        residence.hold,
        (first_server, first_client),
        client_state,
        personal_params,
        lower_round,
        (cohort_size * up, cohort_size * (num_bytes(down) - num_bytes(values_of(down)))),
        cohort_size,
        everyone,
        client_chunk,
        place,
        mesh,
    )
