"""From an algorithm, a model and a dataset to a simulated federation."""

import functools
import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from pflalign_jax.datasets.base import FederatedDataset
from pflalign_jax.federated.algorithm import Algorithm
from pflalign_jax.federated.client_states import (
    PLACES,
    ClientStates,
    StatesOnDevices,
    choose_place,
)
from pflalign_jax.federated.client_store import ClientStore, HostStore
from pflalign_jax.federated.device_program import ProgramOptions
from pflalign_jax.federated.disk_store import DiskStore
from pflalign_jax.federated.federation import Federation, StateShapes, first_states
from pflalign_jax.federated.message_size import num_bytes
from pflalign_jax.federated.metrics import scoring_of
from pflalign_jax.federated.participation import Participation, uniform
from pflalign_jax.federated.sharding import AXIS, choose_chunk, client_mesh
from pflalign_jax.federated.stored_states import StatesInStore
from pflalign_jax.models import Model
from pflalign_jax.random_purposes import COHORT
from pflalign_jax.tasks import Task, infer_task


def federate(
    algorithm: Algorithm,
    model: Model,
    dataset: FederatedDataset,
    *,
    task: Task | None = None,
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
      model: its ``apply`` is used for scores, its ``init`` for the first global model. If it has
        ``prepare``, that is called with all features first.
      dataset: the clients' data.
      task: what the model learns, from `pflalign_jax.tasks`: it says by what metrics clients are
        scored. The algorithm trains with ``loss=task.loss(model)``. None: as `infer_task` finds it
        in ``dataset.y``, where integers are classes.
      cohort_size: C, the most answers per round; None: all K clients.
      participation: who is invited and who answers, from `pflalign_jax.federated.participation`;
        None: C clients are drawn uniformly in every round, and all answer.
      client_chunk: clients vmapped at a time on one device; None: chosen for the devices, on a CPU
        1 and elsewhere as many as have room (`choose_chunk`).
      mesh: a mesh with the one axis ``clients``; None: all devices.
      eval_batch_size: examples per step when scoring; None: from the size of the test sets.
      client_state_in: where client states live between rounds. ``"device"``: all on devices with
        their data, each client at home on one. ``"host"`` or ``"disk"``: only a cohort's states
        and data are on devices, balanced anew every round, the next cohort's read while a round
        runs; memory on devices does not grow with K, and ``dataset.x`` may be memory-mapped.
        None: the first of the three that has room (`choose_place`).
      state_dir: for ``"disk"``, an empty or new directory; see `DiskStore`.
      new_client_steps: the most local steps of a new client before its adapted model is scored;
        None: as many as in a round.
      drop_last: True leaves out the last batch of a local epoch where it is not full, as PFLlib
        does; a client with less than one batch keeps it (in PFLlib such a client never trains).
      diagnostics: True adds ``update/cosine`` to every round's metrics, the mean over the cohort of
        the cosine between a client's message and the mean message, where messages are reduced.

    Raises:
      DatasetError: for ``y`` that does not fit the task, or leaves in doubt what the task is.
      ValueError: for a cohort larger than the population, a chunk below 1, another mesh axis, an
        unknown place, a model without the outputs that the task needs.
    """
    cohort_size = dataset.num_clients if cohort_size is None else cohort_size
    mesh = client_mesh() if mesh is None else mesh
    _check_arguments(algorithm, dataset, cohort_size, mesh, client_chunk, new_client_steps)
    task = infer_task(dataset) if task is None else task
    dataset = prepared(dataset, model)
    _check_classes(algorithm, task)
    scoring = scoring_of(task, model, dataset, eval_batch_size)
    participation = uniform() if participation is None else participation
    shapes = _state_shapes(algorithm, model, dataset)
    if client_chunk is None:
        clients_per_device = -(-cohort_size // mesh.size)
        client_chunk = choose_chunk(mesh, num_bytes(shapes), clients_per_device)
    if client_state_in is None:
        state_bytes = dataset.num_clients * num_bytes(shapes.client)
        client_state_in = choose_place(state_bytes, dataset.x.nbytes, mesh, state_dir)
    client_states = _client_states(
        client_state_in, dataset, mesh, client_chunk, cohort_size, state_dir
    )
    options = ProgramOptions(
        algorithm,
        model.apply,
        mesh,
        client_chunk,
        scoring,
        diagnostics=diagnostics,
        step_limit=_step_limit(participation),
        drop_last=drop_last,
        frozen=model.frozen,
    )
    return Federation(
        algorithm=algorithm,
        model=model,
        dataset=dataset,
        participation=participation,
        mesh=mesh,
        task=task,
        cohort_size=cohort_size,
        client_chunk=client_chunk,
        client_state_in=client_state_in,
        new_client_steps=new_client_steps,
        _options=options,
        _client_states=client_states,
    )


def _check_classes(algorithm: Algorithm, task: Task) -> None:
    if algorithm.classes_only and task.name not in ("classification", "next_token"):
        raise ValueError(
            f"{algorithm.classes_only} works with classes and does not go with task {task.name!r}; "
            "use an algorithm that takes loss=task.loss(model), e.g. pflalign, fedavg or ditto"
        )


def prepared(dataset: FederatedDataset, model: Model) -> FederatedDataset:
    """Return a dataset with the features that a model takes, where those stored are others."""
    if model.prepare is None:
        return dataset
    # They come from a network, and are not normalised.
    x, mean, std = model.prepare(dataset.x), np.zeros((), np.float32), np.ones((), np.float32)
    new = dataset.new_clients
    if new is not None:
        new = new._replace(x=x, mean=mean, std=std)
    return dataset._replace(x=x, mean=mean, std=std, new_clients=new)


def _check_arguments(
    algorithm: Algorithm,
    dataset: FederatedDataset,
    cohort_size: int,
    mesh: Mesh,
    client_chunk: int | None,
    new_client_steps: int | None,
) -> None:
    num_clients = dataset.num_clients
    if not 1 <= cohort_size <= num_clients:
        raise ValueError(
            f"cohort_size={cohort_size} is not possible: {dataset.name} has {num_clients} clients; "
            f"use a number in 1..{num_clients}, or None for all"
        )
    keeps_for_each = algorithm.deliver is not Algorithm._field_defaults["deliver"]
    if keeps_for_each and dataset.client_ids.max() >= num_clients:
        raise ValueError(
            f"the algorithm keeps something for each of {num_clients} clients, whose ids must be "
            f"0..{num_clients - 1}; {dataset.name} has {dataset.client_ids.max()}"
        )
    if mesh.axis_names != (AXIS,):
        raise ValueError(f"mesh has axes {mesh.axis_names}; it must have the one axis ('{AXIS}',)")
    if client_chunk is not None and client_chunk < 1:
        raise ValueError(f"client_chunk={client_chunk} is not allowed; it must be >= 1")
    if new_client_steps is not None and new_client_steps < 0:
        raise ValueError(f"new_client_steps={new_client_steps} is not allowed; it must be >= 0")


def _state_shapes(algorithm: Algorithm, model: Model, dataset: FederatedDataset) -> StateShapes:
    states = functools.partial(first_states, algorithm, model, dataset)
    return StateShapes(*jax.eval_shape(states, jax.random.key(0), {}))


def _client_states(
    place: str,
    dataset: FederatedDataset,
    mesh: Mesh,
    client_chunk: int,
    cohort_size: int,
    state_dir: str | os.PathLike | None,
) -> ClientStates:
    if place not in PLACES:
        raise ValueError(f"client_state_in={place!r} is unknown; use one of {PLACES} or None")
    if place == "device":
        return StatesOnDevices(dataset, mesh, client_chunk, cohort_size)
    return StatesInStore(
        dataset,
        mesh,
        client_chunk,
        cohort_size,
        _store_opener(place, dataset.client_names, state_dir),
        in_files=place == "disk",
    )


def _store_opener(
    place: str, names: np.ndarray, state_dir: str | os.PathLike | None
) -> Callable[..., ClientStore]:
    """Return ``(first, until=None, held=()) -> ClientStore``; see `StatesInStore`."""
    if place == "host":
        return lambda first, until=None, held=(): HostStore(first, len(names))
    if state_dir is None:
        raise ValueError(
            "client_state_in='disk' needs a directory; pass state_dir, it will hold the states"
        )
    directory = state_dir
    return lambda first, until=None, held=(): DiskStore(
        first, len(names), directory, until, held, names
    )


def _step_limit(participation: Participation) -> Callable | None:
    """Return ``(run's key, round, client id) -> most local steps``; None where all finish."""
    limit = participation.step_limit
    if limit is None:
        return None
    return lambda key, round_index, client_id: limit(
        jax.random.fold_in(key, COHORT), round_index, client_id
    )
