"""Begin a run in its directory, or go on with the one that is in it."""

import importlib.metadata
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pflalign_jax.runs import files
from pflalign_jax.runs.build import Experiment
from pflalign_jax.runs.checkpointing import together
from pflalign_jax.runs.checkpoints import (
    CheckpointError,
    checkpoint_rounds,
    load_checkpoint,
    read_about,
    set_aside,
)
from pflalign_jax.runs.files import WorkdirError, describe_data, describe_run
from pflalign_jax.runs.loop import Start

MAY_CHANGE = ("rounds", "client_chunk", "checkpoint_every", "checkpoints_kept")
"""Fields that a run may go on with other values of; ``rounds`` not below what is done."""


def prepare(
    path: pathlib.Path, experiment: Experiment, first: bool, say: Callable[[str], None]
) -> Start:
    """Describe a new run in its directory, or find where an unfinished one goes on.

    Its growing files are cut to what they were when the checkpoint was saved.

    Args:
      path: from `pflalign_jax.runs.files.create`; all processes see it.
      experiment: from `pflalign_jax.runs.build.build`.
      first: whether this process writes the run's files; the others follow it.
      say: told where the run goes on and what could not be used.

    Raises:
      WorkdirError: for a run of another config, other data or another number of processes; if
        there are checkpoints, but none can be used.
      StoreError: if client states on disk do not go with the checkpoint.
    """
    config, dataset, _, federation, _ = experiment
    directory, shapes = path / "checkpoints", federation.shapes
    if not first:
        (done,) = together(0)
        if not done:
            return Start()
        saved, about = load_checkpoint(directory, done, shapes)
        return Start(_restored(federation, saved, directory), (), about["tally"])
    if not (path / "config.json").exists():
        describe_run(path, config, dataset)
        together(0)
        return Start()
    _refuse_other_config(path, config.to_dict())
    if (path / "data.json").exists():
        _refuse_other_data(path, dataset)
    found = _last_usable(directory, shapes, say)
    if found is None:
        _start_again(path, federation, directory)
        describe_run(path, config, dataset)
        say(f"{path} holds an unfinished run without a checkpoint; it starts again from round 0")
        together(0)
        return Start()
    saved, about = found
    if saved.round > config.rounds:
        raise WorkdirError(
            f"{path} is after round {saved.round} already; config.rounds={config.rounds} is too few"
        )
    if saved.clients.positions is None and about["processes"] != jax.process_count():
        raise WorkdirError(
            f"{path} has client states on the disks of {about['processes']} processes; go on with "
            f"as many, not {jax.process_count()}"
        )
    files.cut(path, about["files"])
    together(saved.round)
    state = _restored(federation, saved, directory)
    describe_run(path, config, dataset)
    say(
        f"going on in {path} after round {saved.round} of {config.rounds}{_since(directory, saved)}"
    )
    return Start(state, tuple(files.read_rows(path)), about["tally"])


def unfinished(path: pathlib.Path) -> bool:
    """Tell whether a directory holds a run that can go on from a checkpoint."""
    return bool(checkpoint_rounds(path / "checkpoints")) and not (path / "summary.json").exists()


def _restored(federation, saved, directory):
    held = [r for r in checkpoint_rounds(directory) if r < saved.round]
    return federation.restore(saved, held)


def _last_usable(directory, shapes, say):
    """Load the last checkpoint that is whole; set aside those that are not."""
    rounds, reasons = checkpoint_rounds(directory), []
    for r in reversed(rounds):
        try:
            found = load_checkpoint(directory, r, shapes)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason, bad in zip(reasons, reversed(rounds), strict=False):
            say(f"{reason}; it is set aside as {set_aside(directory, bad).name}")
        return found
    if reasons:
        raise WorkdirError(
            f"no checkpoint in {directory} can be used: {'; '.join(reasons)}. To start again, "
            "choose another --workdir or delete this one"
        )
    return None


def _start_again(path, federation, directory):
    """Empty what the first rounds of a run left that has no checkpoint yet.

    A run without checkpoints may have come far; it is refused.
    """
    if not directory.is_dir() and (path / "metrics.jsonl").exists():
        raise WorkdirError(
            f"workdir {path} holds an unfinished run that saved no checkpoints; it is not "
            "overwritten. Choose another --workdir, or move or delete that directory"
        )
    files.cut(path, dict.fromkeys(files.GROWING, 0))
    for log in (path / "client_states").rglob("rounds.log"):
        log.unlink()


def _refuse_other_config(path, config):
    found, wanted = _read(path / "config.json"), json.loads(json.dumps(config))
    before, now = leaves(found), leaves(wanted)
    differ = [
        f"config.{name} was {before.get(name, 'not there')}, is {now.get(name, 'not there')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in MAY_CHANGE
    ]
    if differ:
        raise WorkdirError(
            f"workdir {path} holds an unfinished run of another config: {'; '.join(differ)}. Go on "
            "with its own config, or choose another --workdir"
        )


def _refuse_other_data(path, dataset):
    before, now = _read(path / "data.json"), json.loads(json.dumps(describe_data(dataset)))
    # What an earlier version did not write cannot differ; label counts follow from the rest.
    compared = (before.keys() & now.keys()) - {"label_counts"}
    differ = sorted(k for k in compared if before[k] != now[k])
    if not differ:
        return
    gone = [n for n in before.get("client_names", ()) if n not in set(now["client_names"])]
    come = [n for n in now["client_names"] if n not in set(before.get("client_names", ()))]
    who = f"; gone are clients {', '.join(gone[:10])}" if gone else ""
    who += f"; new are clients {', '.join(come[:10])}" if come else ""
    smaller = [] if gone or come else _other_sizes(path, dataset)
    who += f"; other examples have clients {', '.join(smaller[:10])}" if smaller else ""
    raise WorkdirError(
        f"workdir {path} holds an unfinished run of other data than {dataset.name} is now: "
        f"{', '.join(differ)} differ{who}. Put the data back as they were, or choose another "
        "--workdir"
    )


def _other_sizes(path, dataset):
    """Return the names of clients that owned another number of examples."""
    differ = np.zeros(dataset.num_clients, bool)
    with np.load(path / "partition.npz", allow_pickle=False) as partition:
        for split, owned in dataset.splits.items():
            differ |= np.diff(partition[f"{split}_offsets"]) != owned.sizes
    return dataset.client_names[differ].tolist()


def _since(directory, saved):
    """Say it if other versions than now wrote the checkpoint."""
    written = read_about(directory, saved.round)["versions"]
    other = {k: v for k, v in written.items() if importlib.metadata.version(k) != v}
    if not other:
        return ""
    text = ", ".join(f"{k} {v}" for k, v in other.items())
    return f" (which {text} computed: last digits may differ from here on)"


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested dict as ``{path: text of the value}``."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: repr(value)}
    return found


def _read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WorkdirError(
            f"{path} cannot be read ({error}); put it back, or choose another --workdir"
        ) from error
