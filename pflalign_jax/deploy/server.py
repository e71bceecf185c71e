"""A run whose clients are nodes: from a config and introductions to a run's directory."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.deploy.federation import DeployedFederation, Nodes
from pflalign_jax.deploy.introductions import Introduction, dataset_of
from pflalign_jax.deploy.letters import echoing
from pflalign_jax.deploy.limits import check_deployable, check_model
from pflalign_jax.deploy.packets import config_hash
from pflalign_jax.deploy.run_files import RunFiles, StatesOnNodes
from pflalign_jax.federated import Algorithm
from pflalign_jax.federated.client_states import ON_NODES
from pflalign_jax.federated.sharding import client_mesh
from pflalign_jax.models import Model
from pflalign_jax.runs import message_config
from pflalign_jax.runs.build import Experiment, build, build_algorithm, with_hyperparams
from pflalign_jax.runs.config import resolve
from pflalign_jax.runs.loop import Outcome, train
from pflalign_jax.runs.metrics import Row
from pflalign_jax.runs.running import open_built
from pflalign_jax.tasks import Task


def train_on_nodes(
    config: ConfigDict,
    workdir: str | os.PathLike,
    introductions: Sequence[Introduction],
    nodes: Nodes,
    *,
    on_round: Callable[[int, Row | None], None] = lambda done, row: None,
    say: Callable[[str], None] = print,
    stop: Callable[[], int] = lambda: 0,
) -> Outcome:
    """Do a run on nodes, or go on with the one in the directory; as `pflalign_jax.runs.run`.

    Args:
      config: the same as the nodes'.
      workdir, on_round, say, stop: as of `pflalign_jax.runs.run`.
      introductions: of all clients, also of those that will not be asked in every round.
      nodes: to ask.

    Raises:
      UserError: as `pflalign_jax.runs.run`.
      RefusedError: for nodes that do not go together.
    """
    workdir = pathlib.Path(workdir)
    experiment = deployed(config, workdir, introductions, nodes)
    with open_built(experiment, workdir, say) as plan:
        return train(plan._replace(on_round=on_round, stop=stop))


def deployed(
    config: ConfigDict,
    workdir: pathlib.Path,
    introductions: Sequence[Introduction],
    nodes: Nodes,
) -> Experiment:
    """Return a config's experiment with nodes for clients; see `train_on_nodes`."""
    config = resolve(config)
    check_deployable(config)
    digest = config_hash(config)
    # States of clients take no memory on the host before they are written, which they never are.
    config.client_state_in = "host"
    simulated = build(config, dataset=dataset_of(introductions))
    config, dataset, model, federation, participation = simulated
    check_model(model)
    run_files = RunFiles(workdir, dataset.client_names)
    mesh = client_mesh(jax.local_devices()[:1])
    options = federation._options._replace(
        algorithm=_echo(config, model, dataset, federation.task), mesh=mesh, client_chunk=1
    )
    fields: dict[str, Any] = {
        field.name: getattr(federation, field.name) for field in dataclasses.fields(federation)
    }
    fields |= {
        "mesh": mesh,
        "client_chunk": 1,
        "client_state_in": ON_NODES,
        "_options": options,
        "_client_states": StatesOnNodes(run_files),
        "_drawn": {},
    }
    on_nodes = DeployedFederation(**fields, nodes=nodes, config_hash=digest, run_files=run_files)
    config.client_state_in, config.client_chunk = ON_NODES, 1
    return Experiment(config, dataset, model, on_nodes, participation)


def _echo(config: ConfigDict, model: Model, dataset: FederatedDataset, task: Task) -> Algorithm:
    """Return the algorithm whose clients send what is in their letters; see `echoing`."""

    def make(**values: Any) -> Algorithm:
        outputs = task.num_outputs(dataset)
        algorithm = build_algorithm(config, model, task, outputs, dataset.num_clients, values)
        return message_config.wrap(echoing(algorithm), config, dataset, by=("server",))[0]

    return with_hyperparams(make(), config, make)
