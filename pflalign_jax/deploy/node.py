"""A node: one client with its data, its state and its part of every round.

What an algorithm keeps for a client (`ClientOutput.state`) stays in files of the node. The node
answers three kinds of requests: ``describe``, ``train`` and ``evaluate``.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pflalign_jax.datasets import SPLITS, FederatedDataset, select_clients
from pflalign_jax.datasets.features import normalise
from pflalign_jax.deploy import node_files
from pflalign_jax.deploy.compact import compact
from pflalign_jax.deploy.limits import check_deployable, check_model
from pflalign_jax.deploy.node_training import NodeFederation
from pflalign_jax.deploy.packets import (
    FORMAT,
    Packet,
    RefusedError,
    config_hash,
    list_of,
    packed,
    refusal,
    unpacked,
    value_of,
)
from pflalign_jax.errors import UserError
from pflalign_jax.federated import Algorithm, ClientScores, federate
from pflalign_jax.federated.inject_hyperparams import hyperparams_of
from pflalign_jax.federated.sharding import client_mesh
from pflalign_jax.models import Model
from pflalign_jax.runs import files, message_config
from pflalign_jax.runs.build import (
    build_algorithm,
    build_dataset,
    build_model,
    build_participation,
    build_task,
    errors_of,
    with_hyperparams,
)
from pflalign_jax.runs.config import resolve
from pflalign_jax.runs.config_checks import ConfigError
from pflalign_jax.tasks import Task


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One client and its own part of a run; made by `open_node`.

    Attributes:
      config: resolved.
      dataset: with this client only.
      task, model: of the config.
      directory: of its files, see `pflalign_jax.deploy.node_files`.
      hash: of the config, see `config_hash`.
    """

    config: ConfigDict
    dataset: FederatedDataset
    task: Task
    model: Model
    directory: pathlib.Path
    hash: str

    @property
    def client(self) -> str:
        """The client's name."""
        return str(self.dataset.client_names[0])

    @property
    def client_id(self) -> int:
        """The client's identity, by which random draws are keyed."""
        return int(self.dataset.client_ids[0])

    @functools.cached_property
    def federation(self) -> Callable[[int], NodeFederation]:
        """``number of clients -> the federation of this client alone``; compiled once for each."""
        return functools.cache(self._federation)

    def answer(self, kind: str, request: Packet) -> Packet:
        """Return the answer to a request; one that says why, if the request is refused.

        Args:
          kind: ``"describe"``, ``"train"`` or ``"evaluate"``.
          request: from `pflalign_jax.deploy.federation`.
        """
        answers = {"describe": self._describe, "train": self._train, "evaluate": self._evaluate}
        if kind not in answers:
            return refusal(f"request {kind!r} is unknown; a node knows {', '.join(answers)}")
        try:
            self._check_sender(request)
            with node_files.alone(self.directory):
                return answers[kind](request)
        except UserError as error:
            return refusal(f"client {self.client}: {error}")

    # What is asked for

    def _describe(self, request: Packet) -> Packet:
        """Return what a server must know of the data: shapes, types and how many there are."""
        del request
        dataset = self.dataset
        arrays = {name: np.asarray(getattr(dataset, name), np.float32) for name in ("mean", "std")}
        frozen = self.model.frozen
        return Packet(
            arrays,
            {
                "client": self.client,
                "client_id": self.client_id,
                "name": dataset.name,
                "task": self.task.name,
                "num_classes": int(dataset.num_classes),
                "features": [str(dataset.x.dtype), *map(str, dataset.x.shape[1:])],
                "targets": [str(dataset.y.dtype), *map(str, dataset.y.shape[1:])],
                "sizes": [int(dataset.splits[split].sizes[0]) for split in SPLITS],
                "frozen": "" if frozen is None else frozen.digest,
            },
        )

    def _train(self, request: Packet) -> Packet:
        """Take part in a round: keep the new state, return the message."""
        federation, directory = self._of_run(request)
        done, begun_with = (value_of(request, name, int) for name in ("round", "state_round"))
        received = unpacked(request, "received", federation.shapes.server)
        state = self._state(federation, directory, begun_with, received)
        score, held = value_of(request, "score", bool), list_of(request, "held", int)
        secret = b""
        if self.config.messages.local_noise is not None:
            secret = node_files.secret_for(self.directory, request)
        trained = federation.train(done, received, state, score, secret)
        values = {"round": done, "steps": trained.steps, "nonfinite": trained.nonfinite}
        self._see(directory, request)
        if trained.nonfinite:  # nothing of it counts, and the state is the one it had
            return Packet({}, values)
        node_files.write_tree(directory, node_files.STATE, done + 1, trained.state)
        states = node_files.rounds_of(directory, node_files.STATE)
        kept = node_files.rounds_to_keep(states, begun_with, done + 1, held)
        node_files.forget(directory, node_files.STATE, kept)
        message = compact(packed("message", trained.message), self.config.messages.compression)
        arrays = {**message, **packed("metrics", trained.metrics)}
        return Packet(arrays, {**values, **_score_values(trained.scores)})

    def _evaluate(self, request: Packet) -> Packet:
        """Return the scores of this client's models; keep what was received, to predict with."""
        federation, directory = self._of_run(request)
        done, state_round = (value_of(request, name, int) for name in ("round", "state_round"))
        received = unpacked(request, "received", federation.shapes.server)
        state = self._state(federation, directory, state_round, received)
        names, numbers = (
            list_of(request, "adapt_names", str),
            list_of(request, "adapt_values", float),
        )
        if len(names) != len(numbers) or set(names) - set(hyperparams_of(received)):
            raise RefusedError(f"adapt_names={names} are no hyperparameters of this run")
        values = dict(zip(names, numbers, strict=True))
        adapt = value_of(request, "adapt", bool)
        scores = federation.scores(done, received, state, adapt, values)
        self._see(directory, request)
        node_files.write_tree(directory, node_files.RECEIVED, done, received)
        num_clients = request.values["num_clients"]
        node_files.write_model(directory, node_files.ModelFiles(done, state_round, num_clients))
        node_files.forget(directory, node_files.RECEIVED, [done])
        return Packet({}, {"round": done, **_score_values(scores)})

    # What it is for

    def predict(self, x: np.ndarray, run: str | None = None) -> np.ndarray:
        """Return the outputs of the client's personal model, as of the last evaluated round.

        Args:
          x: ``[N, ...]`` features as the dataset stores them, not normalised.
          run: name of the run; None: the only one that this node took part in.

        Returns:
          ``[N, ...]`` as `pflalign_jax.runs.Run.predict`.

        Raises:
          RefusedError: if there is no such run, or its files cannot be used.
        """
        directory = node_files.directory_of_run(self.directory, run)
        about = node_files.read_model(directory)
        federation = self.federation(about.num_clients)
        shapes = federation.shapes.server
        received = node_files.read_tree(directory, node_files.RECEIVED, about.round, shapes)
        state = self._state(federation, directory, about.state_round, received)
        params = federation.start_params(received, state)
        apply = federation.algorithm.predict or self.model.apply
        features = normalise(
            jnp.asarray(x), *map(jnp.asarray, (self.dataset.mean, self.dataset.std))
        )
        return np.asarray(self.task.of_model(apply(params, features)))

    # Checks and parts

    def _check_sender(self, request: Packet) -> None:
        """Refuse another format or another config."""
        found = value_of(request, "format", int)
        if found != FORMAT:
            raise RefusedError(
                f"the server's packets have format {found}, this node's {FORMAT}; install the same "
                "version of pFLAlign-JAX on both"
            )
        found = value_of(request, "config", str)
        if found != self.hash:
            raise RefusedError(
                f"the server runs another config (hash {found[:12]}) than this node "
                f"({self.hash[:12]}); give both the same"
            )

    def _of_run(self, request: Packet) -> tuple[NodeFederation, pathlib.Path]:
        """Return the federation of a request and the directory of its run, after a look at it."""
        found = value_of(request, "client_id", int)
        if found != self.client_id:
            raise RefusedError(f"the request is for client id {found}, this is {self.client_id}")
        run = value_of(request, "run", str)
        if not re.fullmatch("[0-9a-f]{8,64}", run):  # it becomes the name of a folder
            raise RefusedError(f"run={run[:80]!r} is no name of a run, which is hexadecimal")
        directory = self.directory / run
        with files.named_write_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        start, done = (value_of(request, name, int) for name in ("start", "round"))
        seen_start, seen_round = node_files.read_seen(directory)
        # A server that begins again may go back to a checkpoint; nobody else may.
        if (start, done) < (seen_start, seen_round):
            raise RefusedError(
                f"the request is of round {done}, but round {seen_round} was asked for before: it "
                "is an old one"
            )
        state_round = value_of(request, "state_round", int)
        if not 0 <= state_round <= done:
            raise RefusedError(f"state_round={state_round} is not possible in round {done}")
        num_clients = value_of(request, "num_clients", int)
        if not 1 <= num_clients <= 2**20:
            raise RefusedError(f"num_clients={num_clients} is not possible")
        return self.federation(num_clients), directory

    def _see(self, directory: pathlib.Path, request: Packet) -> None:
        node_files.write_seen(directory, request.values["start"], request.values["round"])

    def _state(
        self, federation: NodeFederation, directory: pathlib.Path, round_index: int, received: Any
    ) -> Any:
        """Return the client's state after a round; its first one after round 0."""
        if not round_index:
            return federation.first_state(received)
        shapes = federation.shapes.client
        return node_files.read_tree(directory, node_files.STATE, round_index, shapes)

    def _federation(self, num_clients: int) -> NodeFederation:
        config, dataset = self.config, self.dataset

        def make(**values: Any) -> Algorithm:
            with errors_of("algorithm"):
                outputs = self.task.num_outputs(dataset)
                algorithm = build_algorithm(
                    config, self.model, self.task, outputs, num_clients, values
                )
            # What the server does with messages is not done here.
            return message_config.wrap(algorithm, config, dataset, by=("clients",))[0]

        algorithm = with_hyperparams(make(), config, make)
        federation = federate(
            _of_one_client(algorithm, self.client_id),
            self.model,
            dataset,
            task=self.task,
            participation=build_participation(config),
            client_chunk=1,
            mesh=client_mesh(jax.devices()[:1]),
            client_state_in="device",
            drop_last=config.drop_last,
        )
        return NodeFederation.of(federation, config.seed)


def open_node(
    config: ConfigDict,
    directory: str | os.PathLike,
    client: str | None = None,
    client_id: int | None = None,
    data: str | os.PathLike | None = None,
) -> Node:
    """Return the node of one client.

    Args:
      config: the same as the server's.
      directory: of the node's files; it must survive restarts.
      client: which of the dataset's clients this is; None: the only one that it has.
      client_id: its identity among all, different on each node, 0 and up; None: the one that the
        dataset gives, which is right only where all nodes read all clients.
      data: ``config.dataset.path`` on this machine; None: as the config says.

    Raises:
      ConfigError, DatasetError: naming the field or the file, its value and what to do.
    """
    config = resolve(config)
    check_deployable(config)
    digest = config_hash(config)
    if data is not None:
        if "path" not in config.dataset:
            raise ConfigError(
                f"data={str(data)!r} is not possible: dataset {config.dataset.name!r} has no path"
            )
        config.dataset.path = str(data)
    everyone = build_dataset(config)
    names = [str(name) for name in everyone.client_names]
    if client is None and len(names) > 1:
        raise ConfigError(
            f"client is not set, and {everyone.name} has {len(names)} clients: name the one of "
            f"this node, of {', '.join(names[:5])}..."
        )
    if client is not None and client not in names:
        raise ConfigError(
            f"client={client!r} is not in {everyone.name}, which has {', '.join(names[:10])}"
        )
    dataset = select_clients(everyone, np.array([names.index(client or names[0])]))
    if client_id is not None:
        if not 0 <= client_id < 2**31:
            raise ConfigError(f"client_id={client_id!r} is not allowed; it must be >= 0")
        dataset = dataset._replace(client_ids=np.array([client_id], np.int32))
    task = build_task(config, dataset)
    with errors_of("model"):
        model = build_model(config, task.num_outputs(dataset))
    check_model(model)
    return Node(config, dataset, task, model, pathlib.Path(directory), digest)


def _of_one_client(algorithm: Algorithm, client_id: int) -> Algorithm:
    """Return an algorithm whose server's state is what one client receives of it.

    Its messages are gathered: as they are, without a mean.
    """

    def init(params: Any, key: jax.Array, **values: Any) -> tuple[Any, Any]:
        server, client = algorithm.init(params, key, **values)
        return algorithm.deliver(algorithm.broadcast(server), jnp.int32(client_id)), client

    defaults = Algorithm._field_defaults
    return algorithm._replace(
        init=init,
        broadcast=defaults["broadcast"],
        deliver=defaults["deliver"],
        between_rounds=None,
        aggregation=algorithm.aggregation._replace(gathered=True, divide_by=None),
    )


def _score_values(scores: Mapping[str, ClientScores]) -> dict[str, Any]:
    """Return one client's scores as values: for every score its examples and its metrics."""
    values: dict[str, Any] = {}
    for name, score in scores.items():
        if score.examples[0]:
            metrics = [float(value[0]) for value in score.values.values()]
            values[f"score/{name}"] = [float(score.examples[0]), *metrics]
    return values
