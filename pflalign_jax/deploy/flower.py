"""Runs on clients' own machines over Flower: a ``ClientApp`` for nodes and a ``ServerApp``.

Flower brings the messages (SuperLink, SuperNodes, TLS, keys of nodes); what is in them and what is
done with them is the rest of `pflalign_jax.deploy`. ``python -m experiments.deploy new`` writes an
app of a few lines that uses these two functions; docs/howto/deploy.md has the commands.
"""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from pflalign_jax.deploy.federation import greeting
from pflalign_jax.deploy.flower_messages import content_of, flower, packet_of
from pflalign_jax.deploy.flower_nodes import FlowerNodes
from pflalign_jax.deploy.node import Node, open_node
from pflalign_jax.deploy.packets import config_hash, refusal
from pflalign_jax.deploy.server import train_on_nodes
from pflalign_jax.errors import UserError
from pflalign_jax.runs.config import resolve
from pflalign_jax.runs.config_checks import ConfigError
from pflalign_jax.runs.metrics import Row


def client_app(config: ConfigDict) -> Any:
    """Return the app of a node, a ``ClientApp``.

    The node is set up by its ``--node-config``: ``directory`` (required), where it keeps its state;
    ``client``, ``client-id`` and ``data`` as of `open_node`.

    Args:
      config: the same as the server's.
    """
    app = flower("clientapp").ClientApp()
    opened = functools.cache(functools.partial(_opened, config))

    def answer(kind: str, message: Any, context: Any) -> Any:
        try:
            # The node is opened once in a process, however many messages it answers.
            node = opened(tuple(sorted(context.node_config.items())))
            reply = node.answer(kind, packet_of(message.content))
        except UserError as error:
            reply = refusal(str(error))
        return flower("app").Message(content_of(reply), reply_to=message)

    app.query("describe")(functools.partial(answer, "describe"))
    app.train()(functools.partial(answer, "train"))
    app.evaluate()(functools.partial(answer, "evaluate"))
    return app


def server_app(config: ConfigDict) -> Any:
    """Return the app of the server, a ``ServerApp``.

    It is set up by the run config: ``workdir``, an absolute path, the run's directory; an
    unfinished run in it goes on; ``num-clients``, how many nodes the run has; ``deadline``, the
    most seconds that a node has for an answer; ``wait``, the most seconds to wait for nodes to be
    there: all of them before the first round, one later.

    Args:
      config: the same as the nodes'.
    """
    app = flower("serverapp").ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:
        settings = context.run_config
        workdir = pathlib.Path(setting(settings, "workdir", str))
        if not workdir.is_absolute():
            raise ConfigError(f"workdir={str(workdir)!r} is not allowed; give an absolute path")
        nodes = FlowerNodes(
            grid,
            greeting(config_hash(resolve(config))),
            deadline=float(setting(settings, "deadline", (int, float))),
            wait=float(setting(settings, "wait", (int, float))),
        )
        introductions = nodes.introductions(setting(settings, "num-clients", int))
        say = functools.partial(print, flush=True)  # what `flwr log` shows
        train_on_nodes(config, workdir, introductions, nodes, on_round=_tell, say=say)

    return app


def setting(settings: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """Return a setting of a node or of a run.

    Raises:
      ConfigError: if it is missing or of another type.
    """
    value = settings.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(k.__name__ for k in kinds)
        raise ConfigError(f"{name}={value!r} is not allowed; set {name} to a {names}")
    return value


def _opened(config: ConfigDict, settings: tuple[tuple[str, Any], ...]) -> Node:
    """Return a node by its ``--node-config``."""
    given = dict(settings)
    known = ("directory", "client", "client-id", "data")
    unknown = sorted(set(given) - {*known, "partition-id", "num-partitions"})
    if unknown:
        raise ConfigError(f"--node-config has {unknown}, which is unknown; it takes {known}")
    directory = pathlib.Path(setting(given, "directory", str))
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # Flower starts a process for every message: the programs must outlive it.
        jax.config.update("jax_compilation_cache_dir", os.fspath(directory / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    client, data = given.get("client"), given.get("data")
    return open_node(
        config,
        directory,
        None if client is None else str(client),
        setting(given, "client-id", int) if "client-id" in given else None,
        None if data is None else str(data),
    )


def _tell(done: int, row: Row | None) -> None:
    """Print a round and its loss, for `flwr log`."""
    loss = "" if row is None else f", training loss {row['loss/train/mean']}"
    print(f"round {done} is done{loss}", flush=True)
