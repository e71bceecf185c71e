"""Every file of a run's directory: its name, who writes it and how it is read back.

The rows of files that grow are written and read by `pflalign_jax.runs.round_files`.

    command.txt        the command that does the run again
    config.json        the resolved config
    data.json          what models must know of the data, and what tells data apart
    partition.npz      who owns which examples
    metrics.jsonl      a row for every evaluated round; grows
    clients.csv        every client's scores of every evaluated round; grows
    diagnostics.jsonl  what rounds measured besides scores; grows
    deployment.json    of a run on its clients' own machines: its name, and who they are
    nodes.jsonl        of such a run: who was asked in every round, and who answered; grows
    summary.json       the result; a run that has it is finished
    trial.json         which trial of a comparison the run is, and whether its states may go
    checkpoints/       see `pflalign_jax.runs.checkpoints`
    client_states/     see `pflalign_jax.federated.disk_store`; a folder for every process
    plots/             pictures
    lock               who is writing here now

With ``--log`` there may be ``metrics.csv``, ``tensorboard/``, ``wandb/`` and ``wandb_id.txt``, too.
A comparison's directory holds runs in ``trials/`` and ``search/``, that of a map or a sweep
comparisons in ``cells/``.

A killed run loses nothing that was measured: small files are written whole, to a temporary name
that is then renamed; files that grow are cut back to what they were at the last checkpoint.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
import socket
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pflalign_jax.datasets.array_files import ArrayFileError, open_npz
from pflalign_jax.errors import UserError
from pflalign_jax.models import Model
from pflalign_jax.runs import read_types
from pflalign_jax.runs.checkpoints import checkpoint_rounds
from pflalign_jax.runs.factories import table_key
from pflalign_jax.runs.headline import Headline

COMMAND = "command.txt"
CONFIG = "config.json"
DATA = "data.json"
PARTITION = "partition.npz"
METRICS = "metrics.jsonl"
CLIENTS = "clients.csv"
DIAGNOSTICS = "diagnostics.jsonl"
DEPLOYMENT = "deployment.json"
NODES = "nodes.jsonl"
SUMMARY = "summary.json"
TRIAL = "trial.json"

GOES_ON = "# To go on with this run, or with more rounds of it: "
"""What the comment in ``command.txt`` begins with."""

INFINITIES = {math.inf: "Infinity", -math.inf: "-Infinity"}
"""What stands in ``config.json`` for numbers that json has no word for."""
LOCK = "lock"
METRICS_CSV = "metrics.csv"
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id.txt"

CHECKPOINTS = "checkpoints"
CLIENT_STATES = "client_states"
CLIENT_STATE_LOG = "rounds.log"  # of `pflalign_jax.federated.disk_store`, in each of its folders
PLOTS = "plots"
TRIALS = "trials"
SEARCH = "search"
CELLS = "cells"

TEMPORARY = "temporary_states"
"""In ``trial.json``: whether the states that a trial saves may be deleted when it has ended."""

RESULTS = (CONFIG, METRICS, CLIENTS, PARTITION, SUMMARY)
"""Files that a run leaves for its reader; a directory with one of them has been used."""

GROWING = (METRICS, CLIENTS, DIAGNOSTICS, NODES)
"""Files that rounds append to."""


class WorkdirError(UserError):
    """A workdir that cannot be used; the message names it and says what to do."""


class RunError(WorkdirError):
    """A run that cannot be read or asked; the message names the file and says what to do."""


# The directory.


def create(workdir: str | os.PathLike, go_on: bool = False) -> pathlib.Path:
    """Create a run's directory.

    Args:
      workdir: its name.
      go_on: whether it may hold a run; `pflalign_jax.runs.resuming.prepare` then sees whether that
        goes on.

    Raises:
      WorkdirError: if it holds a run already, or cannot be written.
    """
    workdir = pathlib.Path(workdir)
    if is_comparison(workdir):
        raise WorkdirError(
            f"workdir {workdir} holds a comparison ({TRIALS}/); choose another --workdir"
        )
    # os.path, as a name may be too long for the file system: `make_writable` says so.
    held = [name for name in RESULTS if os.path.exists(workdir / name)]
    if held and not go_on:
        state = "a finished run" if SUMMARY in held else "an unfinished run"
        raise WorkdirError(
            f"workdir {workdir} holds {state} ({', '.join(held)}); it is not overwritten. "
            "Choose another --workdir, or move or delete that directory"
        )
    make_writable(workdir)
    (workdir / PLOTS).mkdir(exist_ok=True)
    return workdir


def create_comparison(root: pathlib.Path) -> None:
    """Make the directory of a comparison, unless it is there.

    Raises:
      WorkdirError: if it holds a run, or cannot be made or written.
    """
    held = [name for name in (*RESULTS, CHECKPOINTS) if os.path.exists(root / name)]
    if held:
        raise WorkdirError(
            f"workdir {root} holds a run ({', '.join(held)}); choose another --workdir for a "
            "comparison"
        )
    make_writable(root)


def make_writable(workdir: pathlib.Path) -> None:
    """Make the directory of a run or of a comparison, unless it is there.

    Raises:
      WorkdirError: if it cannot be made or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"  # a directory that exists may still be read-only
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may try at the same time
    except OSError as error:
        raise WorkdirError(
            f"workdir {workdir} cannot be written: {error.strerror or error}; "
            "choose another --workdir or change its permissions"
        ) from error


def how_to_go_on(workdir: pathlib.Path) -> str:
    """Return what the same command does with what a run left that ended early, for messages.

    Args:
      workdir: of the run, of a comparison or of one of its trials.
    """
    if has_trial(workdir):  # the comparison's command goes on with it
        workdir = workdir.parent.parent
    if workdir.parent.name == CELLS:
        workdir = workdir.parent.parent
    same = f"the same command with --workdir={workdir}"
    if is_comparison(workdir) or os.path.isdir(workdir / CELLS):
        return f"{same} goes on"
    if is_finished(workdir):
        return f"the run in {workdir} is finished"
    if rounds := checkpoint_rounds(workdir / CHECKPOINTS):
        return f"{same} goes on from the checkpoint after round {rounds[-1]}"
    if may_start_again(workdir):
        return f"{same} starts again from round 0"
    return (
        f"it cannot go on, as it saved no checkpoint (config.checkpoint_every=0); choose another "
        f"--workdir, or move or delete {workdir}"
    )


def may_start_again(workdir: pathlib.Path) -> bool:
    """Tell whether a run without a checkpoint starts again from round 0 in its directory.

    One that was not to save any may have come far.
    """
    return (workdir / CHECKPOINTS).is_dir() or not (workdir / METRICS).exists()


def client_state_dir(workdir: pathlib.Path, process: int) -> pathlib.Path:
    """Return where a process keeps the states of its clients, if they are on disk."""
    return workdir / CLIENT_STATES / str(process)


def client_state_dirs(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Return the directories in which processes have kept states of clients."""
    return [log.parent for log in sorted((workdir / CLIENT_STATES).rglob(CLIENT_STATE_LOG))]


def forget_client_states(workdir: pathlib.Path) -> None:
    """Empty the stores of client states: without its log a store holds nothing."""
    for directory in client_state_dirs(workdir):
        (directory / CLIENT_STATE_LOG).unlink()


def drop_temporary_states(workdir: pathlib.Path) -> None:
    """Delete the states that a trial has saved: what it measured stays, its models are gone.

    States that its ``trial.json`` does not call temporary stay: whoever made them wants them, which
    may have been another command.
    """
    if has_temporary_states(workdir):
        for name in (CHECKPOINTS, CLIENT_STATES):
            shutil.rmtree(workdir / name, ignore_errors=True)


# Small files, written once; those that say what a run is by `pflalign_jax.runs.description`.


def write_command(workdir: pathlib.Path, command: str, go_on: str | None = None) -> None:
    """Write ``command.txt``: a command, and as a comment the one that goes on."""
    comment = "" if go_on is None else f"{GOES_ON}{go_on}\n"
    write_text(workdir / COMMAND, f"{command}\n{comment}")


def read_command(workdir: pathlib.Path) -> str | None:
    """Return the command that does a run or a comparison again; None if it is not known."""
    path = workdir / COMMAND
    if not path.exists():
        return None
    # It is shown, not run: whatever is in it will do.
    found = path.read_bytes().decode("utf-8", "backslashreplace")
    return found.partition(f"\n{GOES_ON}")[0].strip()


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Return ``config.json``.

    Raises:
      RunError: if it is missing or damaged; so do the other readers of this module.
    """
    return infinities_of_text(_read_json(workdir / CONFIG, read_types.CONFIG, required=True))


def flat_fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested config as ``{dotted name: text of the value}``."""
    fields: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        inner = isinstance(value, Mapping)
        fields |= flat_fields(value, f"{name}.") if inner else {name: repr(value)}
    return fields


def as_written(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, or what describes data, as it will be read: tuples are lists there."""
    return infinities_of_text(json.loads(json.dumps(infinities_as_text(value))))


def infinities_as_text(value: Any) -> Any:
    """Return a tree of json with infinity, for which json has no word, as a text."""
    if isinstance(value, Mapping):
        return {key: infinities_as_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [infinities_as_text(item) for item in value]
    return INFINITIES.get(value, value) if isinstance(value, float) else value


def infinities_of_text(value: Any) -> Any:
    """Undo `infinities_as_text`."""
    if isinstance(value, Mapping):
        return {key: infinities_of_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [infinities_of_text(item) for item in value]
    return float(value) if value in INFINITIES.values() else value


def has_config(workdir: pathlib.Path) -> bool:
    """Tell whether a run has begun in a directory."""
    return (workdir / CONFIG).exists()


def has_data(workdir: pathlib.Path) -> bool:
    """Tell whether a directory says what a run's data are."""
    return (workdir / DATA).exists()


def read_data(workdir: pathlib.Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return ``data.json``, or where there is none ``default`` if one is given."""
    if default is not None and not has_data(workdir):
        return default
    return _read_json(workdir / DATA, read_types.DATA)


def refuse_other_weights(workdir: pathlib.Path, model: Model) -> None:
    """Refuse a model whose frozen weights are not those that a run began with.

    Raises:
      RunError: if they differ.
    """
    if not has_data(workdir):  # a run that was killed while it was described
        return
    before = read_data(workdir).get("frozen")
    now = None if model.frozen is None else model.frozen.digest
    if before != now:
        raise RunError(
            f"{workdir} was run with frozen weights of SHA-256 {before}, and now they are {now}. "
            "Give the model the files that it had"
        )


def read_headline(workdir: pathlib.Path) -> Headline:
    """Return a run's headline: accuracy where an earlier version wrote none."""
    found = read_data(workdir, default={}).get("task", {}).get("headline", {})
    try:
        read_types.check_fields(found, read_types.HEADLINE)
        return Headline(**found)
    except (read_types.ReadError, TypeError) as error:
        raise _changed(workdir / DATA, error) from error


def read_sizes(workdir: pathlib.Path, split: str) -> np.ndarray:
    """Return ``[K]``, how many examples of a split every client owns, by ``partition.npz``."""
    try:
        with open_npz(workdir / PARTITION) as partition:
            return np.diff(partition[f"{split}_offsets"])
    except (ArrayFileError, KeyError, TypeError) as error:
        raise _changed(workdir / PARTITION, error) from error


def write_summary(workdir: pathlib.Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``, with which a run is finished."""
    write_json(workdir / SUMMARY, summary)


def forget_summary(workdir: pathlib.Path) -> None:
    """Make a finished run an unfinished one."""
    (workdir / SUMMARY).unlink(missing_ok=True)


def write_diverged(workdir: pathlib.Path) -> None:
    """Write the ``summary.json`` of a run whose training diverged, which finishes it as well."""
    write_json(workdir / SUMMARY, {"diverged": True})


def is_finished(workdir: pathlib.Path) -> bool:
    """Tell whether a run is finished."""
    return (workdir / SUMMARY).exists()


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
    """Return ``summary.json`` of a finished run; `has_diverged` says what it may lack."""
    return _read_json(workdir / SUMMARY, read_types.SUMMARY)


def has_diverged(summary: Mapping[str, Any]) -> bool:
    """Tell whether a summary is of a run whose training diverged: then it has no scores."""
    return "diverged" in summary


# Trials of a comparison.


class TrialName(NamedTuple):
    """Which trial of a comparison a run is: ``trial.json``.

    Attributes:
      method: name in the table: an algorithm, or one of ``config.compare.variants``.
      learning_rate: step size.
      field, own: the method's own hyperparameter and its value; None: its default.
      seed: of the run.
    """

    method: str
    learning_rate: float
    field: str | None
    own: float | None
    seed: int

    def folder(self) -> str:
        """Return the name of the trial's directory."""
        own = "" if self.own is None else f"-{self.field}-{self.own:g}"
        return f"{table_key(self.method)}-{self.learning_rate:g}{own}-{self.seed}"


def write_trial(workdir: pathlib.Path, name: TrialName, temporary: bool = False) -> None:
    """Write ``trial.json``.

    Args:
      workdir: of the trial.
      name: which it is.
      temporary: whether the states that it saves may be deleted when it has ended.
    """
    write_json(workdir / TRIAL, {**name._asdict(), TEMPORARY: temporary})


def has_trial(workdir: pathlib.Path) -> bool:
    """Tell whether a directory says which trial it holds."""
    return (workdir / TRIAL).exists()


def has_temporary_states(workdir: pathlib.Path) -> bool:
    """Tell whether a trial says that its states may be deleted; earlier versions said nothing."""
    found = _read_json(workdir / TRIAL, {TEMPORARY: bool}) if has_trial(workdir) else {}
    return bool(found.get(TEMPORARY))


def keep_states(workdir: pathlib.Path) -> None:
    """Say that the states of a trial are not temporary any more."""
    if has_temporary_states(workdir):
        write_trial(workdir, read_trial(workdir))


def read_trial(workdir: pathlib.Path) -> TrialName:
    """Return which trial a run is; of one without ``trial.json`` what its config says."""
    if has_trial(workdir):
        try:
            kinds = typing.get_type_hints(TrialName)
            found = _read_json(workdir / TRIAL, kinds, required=True)
            found.pop(TEMPORARY, None)
            return TrialName(**found)
        except TypeError as error:  # it has further fields
            raise _changed(workdir / TRIAL, error) from error
    config = read_config(workdir)
    algorithm = config["algorithm"]
    return TrialName(algorithm["name"], algorithm["learning_rate"], None, None, config["seed"])


def is_comparison(root: pathlib.Path) -> bool:
    """Tell whether a directory holds a comparison."""
    return os.path.isdir(root / TRIALS)


def trial_dirs(root: pathlib.Path, place: str) -> list[pathlib.Path]:
    """Return the directories of a comparison's `TRIALS`, or of its shorter `SEARCH` if any."""
    return sorted((root / place).iterdir()) if (root / place).is_dir() else []


# Reading and writing.


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Write a json file whole."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file whole: to a temporary name, then renamed."""
    # Renaming replaces a file at once: a reader sees the old or the new one, never a part. The
    # name is of this process alone, as others may write the same file.
    whose = f"{socket.gethostname()}-{os.getpid()}"
    temporary = path.with_name(f"{path.name}.{whose}.partial")
    with named_write_errors(path):
        # Paths may have bytes that are no characters.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)


@contextlib.contextmanager
def named_write_errors(path: pathlib.Path) -> Iterator[None]:
    """Turn what the operating system refuses into a `WorkdirError` that names the file."""
    try:
        yield
    except OSError as error:
        raise WorkdirError(
            f"{path} cannot be written: {error.strerror or error}. Make room or change "
            f"permissions; {how_to_go_on(path.parent)}"
        ) from error


def _read_json(
    path: pathlib.Path, kinds: Mapping[str, Any], required: bool = False
) -> dict[str, Any]:
    """Return the object in a file; see `read_types.check_fields`."""
    try:
        return read_types.read_object(path, kinds, required)
    except FileNotFoundError as error:
        raise RunError(
            f"{path.parent} holds no run: {path.name} is missing; name the --workdir of "
            "experiments.run"
        ) from error
    except (OSError, read_types.ReadError) as error:
        raise _changed(path, error) from error


def _changed(path: pathlib.Path, error: Exception) -> RunError:
    return RunError(f"{path} cannot be read ({error}); put it back, or choose another --workdir")
