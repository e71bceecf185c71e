"""Checkpoints of a federation, with orbax: written beside training, whole or not at all.

A directory holds one folder per checkpoint, named by its round: ``state`` has the arrays, numbered,
``meta`` says in json what they are. Nothing in them is ever executed.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging as absl_logging

from pflalign_jax.errors import UserError
from pflalign_jax.federated.snapshot import ClientSnapshot, Snapshot
from pflalign_jax.runs.named_arrays import NamedArraysError, named_arrays, tree_of_named
from pflalign_jax.runs.versions import versions

FORMAT = 1
"""Version of what is written; a checkpoint of another is refused."""

DIGITS = 8
"""Of a round in a folder's name."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message names it and says what to do."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """A directory that checkpoints are written to; see `open_checkpoints`.

    Attributes:
      directory: where.
      manager: orbax's, which writes in the background.
      scores: of the rounds that have a checkpoint with one.
    """

    directory: pathlib.Path
    manager: Any
    scores: dict[int, float]

    def save(self, saved: Snapshot, about: Mapping[str, Any], score: float | None = None) -> None:
        """Copy a state and write it in the background, after the checkpoint before is whole.

        Args:
          saved: the state; arrays that this process has all of get checksums.
          about: what else belongs to it, as json.
          score: with one it can be the best checkpoint, which is kept.

        Raises:
          CheckpointError: for what the operating system refuses, also of the write before.
        """
        import orbax.checkpoint as ocp

        arrays, meta = _flat(saved)
        meta = {**meta, "score": score, "about": about}
        meta["checksum"] = _checksum(meta)
        # The arrays as a tree of numbered leaves, and what they are as json.
        items = {"state": ocp.args.PyTreeSave(arrays), "meta": ocp.args.JsonSave(meta)}
        if score is not None:
            self.scores[saved.round] = float(score)
        with _named_write_errors(self.directory):
            self.manager.save(saved.round, args=ocp.args.Composite(**items), force=True)

    def busy(self) -> bool:
        """Tell whether one is still being written."""
        return self.manager.is_saving_in_progress()

    def wait(self) -> list[int]:
        """Wait until nothing is being written; return the rounds of all that are whole, sorted.

        Raises:
          CheckpointError: for what the operating system refused.
        """
        with _named_write_errors(self.directory):
            self.manager.wait_until_finished()
        return sorted(self.manager.all_steps())

    def close(self) -> None:
        """Wait likewise, for good."""
        with _named_write_errors(self.directory):
            self.manager.close()


def open_checkpoints(directory: str | os.PathLike, keep: int = 2) -> Checkpoints:
    """Return a directory to write checkpoints to; it is made if it is missing.

    Args:
      directory: remains of checkpoints that were never finished are deleted.
      keep: how many of the latest to keep, besides the one with the highest score (the earliest of
        equals).

    Raises:
      CheckpointError: naming the directory, for what the operating system refuses.
    """
    import orbax.checkpoint as ocp  # half a second that only those pay who write checkpoints

    _tell_failed_writes_once()
    directory = pathlib.Path(directory).absolute()
    scores = _scores(directory)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_LatestAndBest(keep, scores),
        step_format_fixed_length=DIGITS,
        cleanup_tmp_directories=True,
        # In the background its failure would keep other threads waiting for 20 minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with _named_write_errors(directory):
        manager = ocp.CheckpointManager(directory, options=options, item_names=("state", "meta"))
    return Checkpoints(directory, manager, scores)


class _LatestAndBest(NamedTuple):
    """Which checkpoints are kept, as orbax asks for it.

    orbax's own policy knows only the scores that were given to this process: after a restart the
    best checkpoint would be deleted.
    """

    keep: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tell for each of them, oldest first, whether it is kept."""
        rounds = [checkpoint.step for checkpoint in checkpoints]
        kept = {*rounds[len(rounds) - self.keep :], best_round(rounds, self.scores)}
        return [round_index in kept for round_index in rounds]


def best_round(rounds: Iterable[int], scores: Mapping[int, float]) -> int | None:
    """Return the earliest of the rounds with the highest score; None if none has one."""
    scored = [r for r in rounds if r in scores]
    return max(scored, key=lambda r: (scores[r], -r), default=None)


def _scores(directory: pathlib.Path) -> dict[int, float]:
    """Return the scores of the checkpoints in a directory that have one and are whole."""
    found = {}
    for round_index in checkpoint_rounds(directory):
        with contextlib.suppress(CheckpointError):
            found[round_index] = read_about(directory, round_index)["score"]
    return {r: score for r, score in found.items() if score is not None}


@contextlib.contextmanager
def _named_write_errors(directory: pathlib.Path) -> Iterator[None]:
    """Turn what goes wrong with writing into a `CheckpointError` that names the directory."""
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many kinds
        raise CheckpointError(
            f"{directory} cannot take a checkpoint; those before it are whole. Make room or "
            f"change permissions, and go on with the same workdir "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error


def checkpoint_path(directory: str | os.PathLike, round_index: int) -> pathlib.Path:
    """Return the folder of a round's checkpoint."""
    return pathlib.Path(directory) / f"{round_index:0{DIGITS}d}"


def checkpoint_rounds(directory: str | os.PathLike) -> list[int]:
    """Return the rounds that a directory has checkpoints of, oldest first; [] if it is missing."""
    directory = pathlib.Path(directory)
    # What orbax is still writing has another name.
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch(rf"[0-9]{{{DIGITS}}}", name))


def read_about(directory: str | os.PathLike, round_index: int) -> dict[str, Any]:
    """Return what a checkpoint says about itself: ``score``, ``versions``, ``about``, leaves.

    Raises:
      CheckpointError: naming it, if it is damaged, of another version, or not ours.
    """
    path = checkpoint_path(directory, round_index)
    try:
        meta = json.loads((path / "meta" / "metadata").read_text(encoding="utf-8"))
        known, written = meta["pflalign_jax_checkpoint"], meta["round"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or was not written by pFLAlign-JAX "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    # Before anything else is believed.
    if known != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {known}, this version of pFLAlign-JAX reads format "
            f"{FORMAT}; use the version that wrote it: {meta.get('versions')}"
        )
    if meta.get("checksum") != _checksum({k: v for k, v in meta.items() if k != "checksum"}):
        raise CheckpointError(f"checkpoint {path} is damaged: meta does not match its checksum")
    if written != round_index:
        raise CheckpointError(f"checkpoint {path} is of round {written}, not of its name's")
    return meta


def hyperparams_in(directory: str | os.PathLike, round_index: int) -> list[str]:
    """Return the hyperparameters that a checkpoint's server state has for data of the programs.

    Trials of a comparison have some that a run of the same config has as constants.

    Raises:
      CheckpointError: as `read_about`.
    """
    names = [str(leaf[0]) for leaf in read_about(directory, round_index)["leaves"]]
    # As of `pflalign_jax.federated.inject_hyperparams.InjectedState`.
    prefix = "server.values."
    if not any(name.startswith("server.inner") for name in names):
        return []
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def load_checkpoint(
    directory: str | os.PathLike,
    round_index: int,
    shapes: tuple[Any, Any],
    where: tuple[str, str] = ("server", "clients"),
) -> tuple[Snapshot, dict[str, Any]]:
    """Read one checkpoint whole, as NumPy arrays.

    Args:
      directory: of `open_checkpoints`.
      round_index: which one.
      shapes: ``(server, client)``, the shapes that the algorithm's states must have; client states
        may have leading axes.
      where: path of both in what was saved; below the default are the parts of states that
        something around the algorithm keeps beside the algorithm's own.

    Returns:
      The state, and ``about``.

    Raises:
      CheckpointError: naming it, if it is damaged, of another version, not ours, or of another
        algorithm or model.
    """
    path = checkpoint_path(directory, round_index).absolute()
    meta = read_about(directory, round_index)
    try:
        arrays = _read_arrays(path, meta["leaves"])
        key, key_impl, about = arrays["key"], meta["key_impl"], meta["about"]
    except Exception as error:  # orbax and tensorstore raise many kinds
        raise CheckpointError(
            f"checkpoint {path} is damaged ({type(error).__name__}: {_first_line(error)})"
        ) from error
    clients = ClientSnapshot(None, ())
    try:
        server = tree_of_named(arrays, where[0], shapes[0])
        if "positions" in arrays:
            # Client states lie as they lay on devices, in a store in a row.
            positions = arrays["positions"]
            states = tree_of_named(arrays, where[1], shapes[1], positions.ndim)
            clients = ClientSnapshot(positions, states)
    except NamedArraysError as error:
        raise CheckpointError(
            f"checkpoint {path} is of another algorithm or model, or of another version of it: "
            f"{error}"
        ) from error
    return Snapshot(round_index, key, key_impl, server, clients), about


def _read_arrays(path: pathlib.Path, leaves: list[Any]) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint by name, after a look at their checksums."""
    import orbax.checkpoint as ocp

    # Arrays are stored under their numbers; those without elements are not stored.
    stored = [f"{i:05d}" for i, (_, shape, _, _) in enumerate(leaves) if 0 not in shape]
    as_numpy = {number: ocp.RestoreArgs(restore_type=np.ndarray) for number in stored}
    with _without_tracebacks(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        read = reader.restore(path / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    arrays = {}
    for i, (name, shape, dtype, crc) in enumerate(leaves):
        found = np.zeros(shape, dtype) if 0 in shape else read[f"{i:05d}"]
        if (list(found.shape), str(found.dtype)) != (shape, dtype):
            raise ValueError(f"{name} is {found.dtype}{list(found.shape)}")
        if crc not in (None, _crc(found)):
            raise ValueError(f"{name} does not match its checksum")
        arrays[name] = found
    return arrays


def set_aside(directory: str | os.PathLike, round_index: int) -> pathlib.Path:
    """Rename a checkpoint that cannot be used, so that it is neither read nor in the way."""
    path = checkpoint_path(directory, round_index)
    name, number = f"unusable-{path.name}", 1
    while (path.parent / name).exists():
        name, number = f"unusable-{path.name}-{number}", number + 1
    return path.rename(path.parent / name)


def delete_checkpoint(directory: str | os.PathLike, round_index: int) -> None:
    """Delete a checkpoint; one that is deleted in part has another name."""
    shutil.rmtree(set_aside(directory, round_index))


def _flat(saved: Snapshot) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays of a state by number, and what they are."""
    named = {"key": saved.key, **named_arrays("server", saved.server)}
    if saved.clients.positions is not None:
        named |= {
            "positions": saved.clients.positions,
            **named_arrays("clients", saved.clients.states),
        }
    # Numbers for names: paths of parameters are no file names, and may be long.
    arrays = {f"{i:05d}": a for i, a in enumerate(named.values()) if a.size}
    meta = {
        "pflalign_jax_checkpoint": FORMAT,
        "round": saved.round,
        "key_impl": saved.key_impl,
        "leaves": [[name, list(a.shape), str(a.dtype), _crc(a)] for name, a in named.items()],
        "versions": versions("jax", "jaxlib", "orbax-checkpoint"),
    }
    return arrays, meta


def _crc(array: Any) -> int | None:
    """Return the CRC-32 of an array's bytes, None where other processes have some of them."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    # Rows that lie on several devices are taken in their order; copies of all count once.
    parts = [array]
    if isinstance(array, jax.Array) and not array.is_fully_replicated:
        shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        parts = [shards[start] for start in sorted(shards)]
    crc = 0
    for part in parts:
        crc = zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, crc)
    return crc


def _checksum(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _tell_failed_writes_once() -> None:
    """Keep orbax's threads from printing, with tracebacks, what `Checkpoints.wait` raises."""
    absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)  # once, however often it is called


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return record.exc_info is None or "orbax" not in record.pathname


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keep asyncio from printing what orbax raises in tasks beside the one that is told."""
    logger = logging.getLogger("asyncio")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
