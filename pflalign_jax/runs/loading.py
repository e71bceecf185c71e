"""A run's directory, loaded: its config, its metrics, and its models, ready to predict."""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pflalign_jax.datasets.features import are_tokens, normalise
from pflalign_jax.federated.client_store import disk_store
from pflalign_jax.federated.device_program import training_data
from pflalign_jax.federated.random_keys import INIT, STATES
from pflalign_jax.federated.snapshot import client_of
from pflalign_jax.models import Model
from pflalign_jax.runs.build import build_algorithm, build_dataset, build_model
from pflalign_jax.runs.checkpoints import (
    CheckpointError,
    checkpoint_rounds,
    load_checkpoint,
    read_about,
)

__all__ = ["CheckpointError", "Run", "RunError", "load_run"]

BATCH = 256
"""Examples per step of a prediction."""


class RunError(Exception):
    """A run that cannot be loaded or asked; the message names the file and says what to do."""


class Run(NamedTuple):
    """What a run left.

    Attributes:
      config: as it was run, every default filled in.
      metrics: a row for every evaluated round up to the last checkpoint, name to number.
      round: rounds done when the models here were saved.
      model: pure functions; `Model.apply` maps parameters and normalised features to logits.
      client_names: in the dataset's order.
      global_params: the global model; None where the algorithm has none.
      personal_params: ``client -> params``, the model that a client starts a round with.
      predict: ``(x, client=None) -> logits`` as NumPy, ``[N, num_classes]``, for sequences
        ``[N, L, num_classes]``; ``x`` are features as the dataset stores them (``[N, ...]``, not
        normalised), ``client`` a name or a position, None for the global model.
    """

    config: Mapping[str, Any]
    metrics: list[dict[str, float]]
    round: int
    model: Model
    client_names: tuple[str, ...]
    global_params: Any
    personal_params: Callable[[str | int], Any]
    predict: Callable[..., np.ndarray]


def load_run(workdir: str | os.PathLike, which: str | int = "last") -> Run:
    """Load what `experiments.run` left in a directory, finished or not.

    Client states are read when they are first asked for, all at once unless they are on disk.

    Args:
      workdir: the run's directory.
      which: ``"last"``, ``"best"`` (on validation) or a round that has a checkpoint.

    Raises:
      RunError: if the directory holds no run, or not this round.
      CheckpointError: naming the checkpoint, if it is damaged or of another version.
    """
    workdir = pathlib.Path(workdir)
    config, data = (_read_json(workdir / name) for name in ("config.json", "data.json"))
    directory = workdir / "checkpoints"
    rounds = checkpoint_rounds(directory)
    if not rounds:
        raise RunError(
            f"{directory} holds no checkpoint; run with checkpoints "
            "(config.checkpoint_every is not 0), or let the run come to its first one"
        )
    chosen = _choose(directory, rounds, which)
    names, ids = tuple(data["client_names"]), data["client_ids"]
    model = build_model(config, data["num_classes"])
    algorithm = build_algorithm(config, model, data["num_classes"], len(names))
    shape, dtype = data["features_shape"], np.dtype(data["features_dtype"])
    example = jax.ShapeDtypeStruct((1, *shape), jnp.int32 if are_tokens(dtype) else jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), example)
    shapes = jax.eval_shape(algorithm.init, params, jax.random.key(0))
    around = _wrapped(config)
    saved, _ = load_checkpoint(directory, chosen, shapes, around)
    if saved.clients.positions is None and around[1] != "clients":
        raise RunError(
            f"{workdir} keeps client states on disk together with what messages left out; such "
            "runs cannot be loaded, only resumed"
        )
    received = algorithm.broadcast(jax.tree.map(jnp.asarray, saved.server))
    shared = None if algorithm.global_params is None else algorithm.global_params(received)

    def position(client):
        if isinstance(client, str) and client in names:
            return names.index(client)
        if isinstance(client, int) and 0 <= client < len(names):
            return client
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise RunError(f"client {client!r} is not in {workdir}, which has {len(names)}: {some}")

    @functools.cache
    def first_state():
        """Return the state of a client that never took part."""
        key = jax.random.wrap_key_data(jnp.asarray(saved.key), impl=saved.key_impl)
        zeros = jnp.zeros(example.shape, example.dtype)
        first = model.init(jax.random.fold_in(key, INIT), zeros)
        return algorithm.init(first, jax.random.fold_in(key, STATES))[1]

    def state_of(k):
        if saved.clients.positions is not None:
            found = client_of(saved.clients, k, None)
            return first_state() if found is None else found
        for log in sorted((workdir / "client_states").rglob("rounds.log")):
            store = disk_store(first_state(), len(names), log.parent, chosen)
            if store.written()[k]:
                return jax.tree.map(lambda a: jnp.asarray(a[0]), store.read(np.array([k])))
        return first_state()

    def personal_params(client):
        k = position(client)
        own = algorithm.deliver(received, jnp.int32(ids[k]))
        return algorithm.personal_params(own, state_of(k), _DataWhenAsked(config, k))

    mean, std = (np.asarray(data[name], np.float32) for name in ("mean", "std"))

    @functools.partial(jax.jit, static_argnums=0)
    def logits(apply, params, x):
        return apply(params, normalise(x, mean, std))

    def predict(x, client=None):
        x = np.asarray(x)
        if list(x.shape[1:]) != shape or (x.dtype != dtype and not np.can_cast(x.dtype, dtype)):
            raise RunError(
                f"x is {x.dtype}{list(x.shape)}; the models of {workdir} take {dtype} of shape "
                f"[N, {', '.join(map(str, shape))}], features as {data['name']} stores them"
            )
        if client is None and shared is None:
            raise RunError(f"{config['algorithm']['name']} has no global model; name a client")
        params = shared if client is None else personal_params(client)
        apply = model.apply if client is None else algorithm.predict or model.apply
        parts = [np.zeros((0, *x.shape[1:]), dtype)] if not len(x) else []
        parts += [x[i : i + BATCH].astype(dtype) for i in range(0, len(x), BATCH)]
        room = min(BATCH, max(len(x), 1))
        found = []
        for part in parts:
            padded = np.concatenate([part, np.zeros((room - len(part), *x.shape[1:]), dtype)])
            found.append(np.asarray(logits(apply, params, padded))[: len(part)])
        return np.concatenate(found)

    last = read_about(directory, rounds[-1])["about"]["files"]["metrics.jsonl"]
    lines = (workdir / "metrics.jsonl").read_bytes()[:last].decode().splitlines()
    rows = [json.loads(line) for line in lines]
    return Run(config, rows, chosen, model, names, shared, personal_params, predict)


class _DataWhenAsked:
    """A client's `ClientData`, read when an algorithm first looks at it: few of them do."""

    def __init__(self, config, k):
        self._config, self._k = config, k

    def __getattr__(self, name):
        return getattr(self._read, name)

    @functools.cached_property
    def _read(self):
        return training_data(build_dataset(self._config), self._k)


def _choose(directory, rounds, which):
    """Return the round of a checkpoint."""
    if which == "last":
        return rounds[-1]
    if which == "best":
        scores = {r: read_about(directory, r)["score"] for r in rounds}
        scored = {r: score for r, score in scores.items() if score is not None}
        if scored:
            return max(scored, key=lambda r: (scored[r], -r))
        raise RunError(f"{directory} has no checkpoint with a validation score")
    if which not in rounds:
        raise RunError(
            f"which={which!r} is not possible; {directory} has rounds {rounds}: use one of them, "
            "'last' or 'best'"
        )
    return which


def _read_json(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(
            f"{path.parent} holds no run: {path.name} is missing; name the --workdir of "
            "experiments.run"
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _wrapped(config):
    """Return where a checkpoint has the algorithm's own states: messages may keep more."""
    messages = config["messages"]
    private = messages["private_clip"] is not None
    changed = any(messages[name] is not None for name in ("clip", "compression", "local_noise"))
    return "server.own" if private else "server", "clients.own" if changed else "clients"
