"""The files of a node: states of its client by round, written whole or not at all.

    secret                 keys the noise on what this node sends
    RUN/seen.json          the last request that was answered
    RUN/state-ROUND.npz    the client's state after a round that it trained in
    RUN/received-ROUND.npz what it last received to be scored with
    RUN/model.json         of which rounds the client's model is that predicts

The server may go back to a checkpoint. Then a node goes back, too: it keeps the states of the
rounds that the server holds.
"""

import contextlib
import fcntl
import hmac
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from pflalign_jax.datasets.array_files import ArrayFileError, open_npz
from pflalign_jax.deploy.packets import Packet, RefusedError, packed
from pflalign_jax.runs import files
from pflalign_jax.runs.named_arrays import NamedArraysError, named_arrays, tree_of_named
from pflalign_jax.runs.read_types import ReadError, read_object

SEEN, MODEL, SECRET = "seen.json", "model.json", "secret"
STATE, RECEIVED = "state", "received"


@contextlib.contextmanager
def alone(directory: pathlib.Path) -> Iterator[None]:
    """Wait until no other process answers for this node; the directory is made if it is missing.

    A request that comes while a late one is still being answered must find its files as they are.

    Raises:
      WorkdirError: naming the file, for what the operating system refuses.
    """
    path = directory / files.LOCK
    with files.named_write_errors(path):
        directory.mkdir(parents=True, exist_ok=True)
        lock = path.open("ab")
    with lock:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def rounds_of(directory: pathlib.Path, kind: str) -> list[int]:
    """Return the rounds that a node has files of, ascending."""
    found = [re.fullmatch(rf"{kind}-(\d+)\.npz", path.name) for path in directory.glob("*.npz")]
    return sorted(int(match[1]) for match in found if match)


def write_tree(directory: pathlib.Path, kind: str, round_index: int, tree: Any) -> None:
    """Write a tree of a round, whole or not at all, and push it to disk.

    Raises:
      WorkdirError: naming the file, for what the operating system refuses.
    """
    path = directory / f"{kind}-{round_index}.npz"
    temporary = path.with_name(path.name + ".partial")
    with files.named_write_errors(path):
        with temporary.open("wb") as file:
            np.savez(file, **packed(kind, tree))  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        # The name as well: the answer is sent after this.
        folder = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_tree(directory: pathlib.Path, kind: str, round_index: int, shapes: Any) -> Any:
    """Return a tree of a round.

    Raises:
      RefusedError: if it is missing, damaged, or of another algorithm or model.
    """
    path = directory / f"{kind}-{round_index}.npz"
    if not path.exists():
        raise RefusedError(
            f"{path} is missing: this node has no {kind} of round {round_index}, but of rounds "
            f"{rounds_of(directory, kind)}. Put the node's directory back, or begin a new run"
        )
    try:
        with open_npz(path) as arrays:
            found = {name: arrays[name] for name in arrays}
        for name, leaf in named_arrays(kind, shapes).items():
            # NumPy does not know bfloat16 and reads as many bytes without a type.
            if name in found and found[name].dtype == f"V{leaf.dtype.itemsize}":
                found[name] = found[name].view(leaf.dtype)
        return tree_of_named(found, kind, shapes)
    except (ArrayFileError, NamedArraysError) as error:
        raise RefusedError(f"{path} cannot be used: {error}; put it back") from error


def forget(directory: pathlib.Path, kind: str, kept: Iterable[int]) -> None:
    """Delete the files of all rounds but ``kept``."""
    for round_index in set(rounds_of(directory, kind)) - set(kept):
        (directory / f"{kind}-{round_index}.npz").unlink()


def rounds_to_keep(
    rounds: Iterable[int], begun_with: int, done: int, held: Iterable[int]
) -> set[int]:
    """Return whose states are kept after a round.

    Args:
      rounds: that there are states of.
      begun_with: the state that the round began with; later ones did not count.
      done: the round.
      held: rounds that the server may go back to.

    >>> sorted(rounds_to_keep([2, 3, 5, 6], begun_with=5, done=9, held=[4, 8]))
    [3, 5, 9]
    """
    counted = [r for r in rounds if r <= begun_with]
    before = [max((r for r in counted if r <= h), default=0) for h in held]
    return {*before, begun_with, done}


def secret_for(directory: pathlib.Path, request: Packet) -> bytes:
    """Return 16 bytes that nobody but this node can tell, the same for the same request only.

    With noise that the server could draw again it would know what is below it. With the same noise
    on two messages it would know how they differ.

    Args:
      directory: of the node; the secret is drawn when it is first asked for.
      request: that is answered.
    """
    path = directory / SECRET
    with files.named_write_errors(path):
        if not path.exists():
            temporary = path.with_name(path.name + ".partial")
            temporary.unlink(missing_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(os.urandom(32))
                os.fsync(file.fileno())
            temporary.replace(path)
        digest = hmac.new(path.read_bytes(), digestmod="sha256")
    arrays = sorted(request.arrays.items())
    # All names and shapes come first: they say where each array's bytes begin and end.
    kinds = [(name, str(array.dtype), array.shape) for name, array in arrays]
    digest.update(json.dumps([dict(request.values), kinds], sort_keys=True).encode())
    for _, array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()[:16]


def read_seen(directory: pathlib.Path) -> tuple[int, int]:
    """Return ``(start, round)`` of the last request that was answered; zeros without any.

    Raises:
      RefusedError: if the file is damaged.
    """
    try:
        found = read_object(directory / SEEN, {"start": int, "round": int}, required=True)
    except FileNotFoundError:
        return 0, 0
    except (OSError, ReadError) as error:
        raise RefusedError(f"{directory / SEEN} cannot be read ({error}); put it back") from error
    return found["start"], found["round"]


def write_seen(directory: pathlib.Path, start: int, round_index: int) -> None:
    """Remember the last request that was answered."""
    files.write_json(directory / SEEN, {"start": start, "round": round_index})


class ModelFiles(NamedTuple):
    """Of which rounds a client's model is made, and how many clients the run has."""

    round: int
    state_round: int
    num_clients: int


def write_model(directory: pathlib.Path, about: ModelFiles) -> None:
    """Remember what the client's model is made of."""
    files.write_json(directory / MODEL, about._asdict())


def read_model(directory: pathlib.Path) -> ModelFiles:
    """Return what the client's model is made of.

    Raises:
      RefusedError: if the client was never evaluated, or the file is damaged.
    """
    path = directory / MODEL
    try:
        found = read_object(path, get_type_hints(ModelFiles), required=True)
        return ModelFiles(*(found[name] for name in ModelFiles._fields))
    except (OSError, ReadError) as error:
        raise RefusedError(
            f"{path} cannot be read ({error}); a node has a model after the first evaluation"
        ) from error


def directory_of_run(directory: pathlib.Path, run: str | None) -> pathlib.Path:
    """Return a run's directory on a node.

    Args:
      directory: of the node.
      run: its name; None: the only one.

    Raises:
      RefusedError: if it is not there, or there are several to choose from.
    """
    runs = sorted(path.parent.name for path in directory.glob(f"*/{SEEN}"))
    if run is None and len(runs) == 1:
        return directory / runs[0]
    if run is None or run not in runs:
        raise RefusedError(
            f"run={run!r} is not possible; {directory} has {', '.join(runs) or 'no runs'}"
        )
    return directory / run
