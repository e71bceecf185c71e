"""A run's directory, loaded: its config, its metrics, and its models, ready to predict."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.features import are_tokens, as_stored, normalise
from pflalign_jax.federated import Algorithm, StoreError
from pflalign_jax.federated.algorithm import ClientData
from pflalign_jax.federated.client_states import ON_NODES
from pflalign_jax.federated.device_program import training_data
from pflalign_jax.federated.disk_store import DiskStore
from pflalign_jax.federated.federate import prepared
from pflalign_jax.federated.snapshot import Snapshot, client_of
from pflalign_jax.models import Model
from pflalign_jax.models.frozen import as_argument, weights_of
from pflalign_jax.random_purposes import INIT, STATES
from pflalign_jax.runs import files, round_files
from pflalign_jax.runs.build import build_algorithm, build_dataset, build_model, rebuild_task
from pflalign_jax.runs.checkpoints import (
    CheckpointError,
    best_round,
    checkpoint_path,
    checkpoint_rounds,
    hyperparams_in,
    load_checkpoint,
    read_about,
)
from pflalign_jax.runs.files import RunError
from pflalign_jax.runs.growing_files import size_at
from pflalign_jax.runs.message_config import own_states
from pflalign_jax.runs.outside_code import refuse_code
from pflalign_jax.tasks import Task

BATCH = 256
"""Examples per step of a prediction."""


class _Source(NamedTuple):
    """What the models of a run are made from.

    Attributes:
      workdir: the run's directory.
      data: as in ``data.json``.
      algorithm: its own, without what messages go through.
      received: what the server sends, before `Algorithm.deliver`.
      saved: the algorithm's own states.
    """

    workdir: pathlib.Path
    data: Mapping[str, Any]
    algorithm: Algorithm
    received: Any
    saved: Snapshot


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """What a run left.

    Attributes:
      config: as it was run, every default filled in.
      metrics: a row for every evaluated round up to the last checkpoint, name to number.
      round: rounds done when the models here were saved.
      task: what the models learned.
      model: pure functions; `Model.apply` maps parameters and normalised features to logits, of a
        regression to numbers.
      client_names: in the dataset's order.
      global_params: the global model; None where the algorithm has none.
      class_names: what the labels ``0..num_classes-1`` are called, of the task multilabel the
        labels of an example; None: not known, as in runs of earlier versions, or numbers.
      feature_names: names of the columns of features ``[N, F]``; None: not known.
    """

    config: Mapping[str, Any]
    metrics: list[dict[str, float]]
    round: int
    task: Task
    model: Model
    client_names: tuple[str, ...]
    global_params: Any
    class_names: tuple[str, ...] | None
    feature_names: tuple[str, ...] | None
    _source: _Source

    def __repr__(self) -> str:
        # Not the dataclass's, which would print all parameters.
        return (
            f"Run({str(self._source.workdir)!r}: {self.config['algorithm']['name']} on "
            f"{self._source.data['name']}, {len(self.client_names)} clients, after round "
            f"{self.round})"
        )

    @property
    def features_shape(self) -> tuple[int, ...]:
        """Shape of one example, as the dataset stores it."""
        return tuple(self._source.data["features_shape"])

    def personal_params(self, client: str | int) -> Any:
        """Return the model that a client starts a round with.

        Args:
          client: its name, or its position among `client_names`.

        Raises:
          RunError: if there is no such client.
        """
        algorithm, source, k = self._source.algorithm, self._source, self._position(client)
        received = algorithm.deliver(source.received, jnp.int32(source.data["client_ids"][k]))
        data = cast(ClientData, _LazyData(self.config, self.model, k))
        return algorithm.personal_params(received, self._state_of(k), data)

    def predict(self, x: np.ndarray, client: str | int | None = None) -> np.ndarray:
        """Return the outputs of a model for examples.

        Logits ``[N, num_classes]``, of sequences ``[N, L, num_classes]``; of other tasks (see
        `pflalign_jax.tasks`) the logits ``[N, 1]`` of a binary label or ``[N, L]`` of several, or
        predicted numbers ``[N, M]`` in the units of ``y``. ``task.predict`` turns them into labels
        or probabilities.

        Args:
          x: ``[N, ...]`` features as the dataset stores them, not normalised; numbers of any type.
          client: name or position of the client whose model predicts; None: the global model.

        Raises:
          RunError: for features of another shape, which are no numbers, not finite or not what
            the dataset's type can hold; for an unknown client, or if the algorithm has no global
            model.
        """
        x = self._checked_features(x)
        if self.model.prepare is not None and len(x):
            x = self.model.prepare(x)
        params, apply = self._params_of(client), self.model.apply
        if client is not None:
            apply = self._source.algorithm.predict or apply
        # Batches are of one size, so that one program is compiled; no examples are one batch, too.
        size = min(BATCH, max(len(x), 1))
        outputs = []
        for start in range(0, max(len(x), 1), BATCH):
            batch = x[start : start + BATCH]
            missing = np.zeros((size - len(batch), *x.shape[1:]), x.dtype)
            batch = np.concatenate([batch, missing])
            found = self._outputs(apply, weights_of(self.model.frozen), params, batch)
            outputs.append(np.asarray(found)[: len(x) - start])
        return np.concatenate(outputs)

    def save_adapter(
        self, folder: str | os.PathLike, client: str | int | None = None
    ) -> pathlib.Path:
        """Write a client's adapters and head as a folder of Hugging Face's PEFT; return its path.

        See `pflalign_jax.models.pretrained.save_adapter`.

        Args:
          folder: to be written.
          client: name or position of the client; None: the global model.

        Raises:
          PretrainedError: if the model is no pretrained one with adapters, or the method's is of
            another kind.
          RunError: for an unknown client, or if the algorithm has no global model.
        """
        from pflalign_jax.models.pretrained import save_adapter  # here, as few runs need flax

        return save_adapter(folder, self.model, self._params_of(client))

    def _params_of(self, client: str | int | None) -> Any:
        """Return the model of a client, or the global one."""
        if client is not None:
            return self.personal_params(client)
        if self.global_params is None:
            name = self.config["algorithm"]["name"]
            raise RunError(f"{name} has no global model; name a client")
        return self.global_params

    @functools.cached_property
    def _outputs(self) -> Any:
        mean, std = (jnp.asarray(self._source.data[name], jnp.float32) for name in ("mean", "std"))

        @functools.partial(jax.jit, static_argnums=0)
        def outputs(apply: Callable, weights: Any, params: Any, x: jax.Array) -> jax.Array:
            with_weights = as_argument(self.model.frozen, apply)
            return self.task.of_model(with_weights(weights, params, normalise(x, mean, std)))

        return outputs

    @functools.cached_property
    def _first_state(self) -> Any:
        """Return the state of a client that never took part."""
        key = jax.random.wrap_key_data(
            jnp.asarray(self._source.saved.key), impl=self._source.saved.key_impl
        )
        example = _example(self._source.data)
        params = self.model.init(
            jax.random.fold_in(key, INIT), jnp.zeros(example.shape, example.dtype)
        )
        return self._source.algorithm.init(params, jax.random.fold_in(key, STATES))[1]

    def _state_of(self, k: int) -> Any:
        """Return the state of the client at position ``k``."""
        if self._source.saved.clients.positions is not None:
            # A client that never took part has the algorithm's first state.
            found = client_of(self._source.saved.clients, k, None)
            return self._first_state if found is None else found
        workdir, first, names = self._source.workdir, self._first_state, self.client_names
        if self.config.get("client_state_in") == ON_NODES and jax.tree.leaves(first):
            raise RunError(
                f"{workdir} was run on nodes, which keep their clients' states: open_node there"
            )
        # Every process kept the states of its own clients.
        for directory in files.client_state_dirs(workdir):
            with _while_kept(workdir, self.round):
                store = DiskStore(
                    first, len(names), directory, self.round, names=names, read_only=True
                )
                if store.written()[k]:
                    found = store.read(np.array([k]))
                    if not store.checked:  # of an earlier version: a run that goes on writes there
                        checkpoint_path(workdir / files.CHECKPOINTS, self.round).stat()
                    return jax.tree.map(lambda a: jnp.asarray(a[0]), found)
        return first

    def _position(self, client: str | int) -> int:
        names = self.client_names
        if isinstance(client, str) and client in names:
            return names.index(client)
        if isinstance(client, int) and 0 <= client < len(names):
            return client
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise RunError(
            f"client {client!r} is not in {self._source.workdir}, which has {len(names)}: {some}"
        )

    def _checked_features(self, x: np.ndarray) -> np.ndarray:
        data = self._source.data
        try:
            return as_stored(x, data["features_shape"], data["features_dtype"])
        except DatasetError as error:
            raise RunError(
                f"{error}; the models of {self._source.workdir} take features as {data['name']} "
                "stores them"
            ) from error


class _LazyData:
    """A client's `ClientData`, read when an algorithm first looks at it: few of them do."""

    def __init__(self, config: Mapping[str, Any], model: Model, k: int) -> None:
        self._config, self._model, self._k = config, model, k

    def __getattr__(self, name: str) -> Any:
        return getattr(self._read, name)

    @functools.cached_property
    def _read(self) -> ClientData:
        return training_data(prepared(build_dataset(self._config), self._model), self._k)


def load_run(
    workdir: str | os.PathLike, which: str | int = "last", modules: Sequence[str] = ()
) -> Run:
    """Load what a run left in its directory, finished or not.

    Client states are read when they are first asked for, all at once unless they are on disk.

    Args:
      workdir: the run's directory.
      which: ``"last"``, ``"best"`` (on validation) or a round that has a checkpoint.
      modules: outside the package, whose functions the run may call; of a run whose
        ``config.json`` names algorithms, models, data or metrics as ``module:function``. What this
        process has named itself needs not be repeated.

    Raises:
      RunError: if the directory holds no run, or not this round; if it names code of other modules.
      CheckpointError: naming the checkpoint, if it is damaged or of another version.
    """
    workdir = pathlib.Path(workdir)
    config, data = files.read_config(workdir), files.read_data(workdir)
    refuse_code(workdir, config, modules)
    directory = workdir / files.CHECKPOINTS
    chosen, rows = choose_round(workdir, which)
    names = tuple(data["client_names"])
    task, num_outputs = _task_of(config, data)
    model = build_model(config, num_outputs)
    files.refuse_other_weights(workdir, model)
    algorithm = build_algorithm(config, model, task, num_outputs, len(names))
    # Shapes tell whether the checkpoint is of this algorithm; no dataset is needed for them.
    params = jax.eval_shape(model.init, jax.random.key(0), _example(data))
    shapes = jax.eval_shape(algorithm.init, params, jax.random.key(0))
    with _while_kept(workdir, chosen):
        # What messages go through may keep states of its own, which predictions do not need.
        own = own_states(config, bool(hyperparams_in(directory, chosen)))
        saved, _ = load_checkpoint(directory, chosen, shapes, own)
    on_nodes = config.get("client_state_in") == ON_NODES
    if saved.clients.positions is None and own.clients != "clients" and not on_nodes:
        raise RunError(
            f"{workdir} keeps client states on disk together with what messages left out; such "
            "runs cannot be loaded, only resumed"
        )
    received = algorithm.broadcast(jax.tree.map(jnp.asarray, saved.server))
    shared = None if algorithm.global_params is None else algorithm.global_params(received)
    source = _Source(workdir, data, algorithm, received, saved)
    # Earlier versions wrote no names of classes and features.
    classes, features = (
        tuple(data[k]) if k in data else None for k in ("class_names", "feature_names")
    )
    return Run(config, rows, chosen, task, model, names, shared, classes, features, source)


def _task_of(config: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Task, int]:
    """Return a run's task and the outputs that its model has."""
    about = data.get("task")
    if about is None:  # of an earlier version, which knew classifications only
        return rebuild_task(config, "classification", None), data["num_classes"]
    moments = about["target_moments"]
    if moments is not None:
        moments = tuple(np.array(part, np.float32) for part in moments)
    return rebuild_task(config, about["name"], moments), about["num_outputs"]


def choose_round(workdir: pathlib.Path, which: str | int) -> tuple[int, list[dict[str, float]]]:
    """Return the round of a checkpoint, and the rows of metrics up to the last checkpoint.

    Raises:
      RunError: if there is no checkpoint, or not of this round.
    """
    directory = workdir / files.CHECKPOINTS
    rounds = checkpoint_rounds(directory)
    if not rounds:
        raise RunError(
            f"{directory} holds no checkpoint; run with checkpoints "
            "(config.checkpoint_every is not 0), or let the run come to its first one"
        )
    with _while_kept(workdir, rounds[-1]):
        # Rows after the last checkpoint come again when the run goes on.
        size = size_at(workdir, files.METRICS, read_about(directory, rounds[-1])["about"])
    rows = round_files.read_rows(workdir, size)
    if which == "best":
        return _best(workdir, rounds, size), rows
    if which == "last":
        return rounds[-1], rows
    if not isinstance(which, int) or which not in rounds:
        raise RunError(
            f"which={which!r} is not possible; {directory} has rounds {rounds}: use one of them, "
            "'last' or 'best'"
        )
    return which, rows


def _best(workdir: pathlib.Path, rounds: list[int], size: int) -> int:
    """Return the round that was the best on validation, which has a checkpoint."""
    directory = workdir / files.CHECKPOINTS
    merits = round_files.read_merits(workdir, size)
    best = best_round(merits, merits)
    if best is None:
        raise RunError(f"{directory} has no checkpoint with a validation score")
    if best not in rounds:
        # Versions that forgot it when a run went on; or it was damaged, and set aside.
        raise RunError(
            f"round {best} was the best on validation, but its checkpoint is not in {directory} "
            f"any more, which has rounds {rounds}: use one of them or 'last'"
        )
    return best


@contextlib.contextmanager
def _while_kept(workdir: pathlib.Path, round_index: int) -> Iterator[None]:
    """Tell what cannot be read because the run went on in the meantime from what is damaged."""
    try:
        yield
    except (CheckpointError, StoreError, OSError) as error:
        if checkpoint_path(workdir / files.CHECKPOINTS, round_index).exists():
            raise
        raise RunError(
            f"the run in {workdir} goes on and no longer keeps its checkpoint of round "
            f"{round_index}; load it again"
        ) from error


def _example(data: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    """Return shape and type of a batch of one example, as the model takes it."""
    # Models take tokens as they are, other features normalised.
    tokens = are_tokens(np.dtype(data["features_dtype"]))
    return jax.ShapeDtypeStruct((1, *data["features_shape"]), jnp.int32 if tokens else jnp.float32)
