"""Begin a run in its directory, or go on with the one that is in it."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pflalign_jax.datasets import FederatedDataset
from pflalign_jax.datasets.checksum import sampled_checksum
from pflalign_jax.federated import Federation, FederationState, StoreError
from pflalign_jax.federated.disk_store import damaged_clients
from pflalign_jax.federated.snapshot import Snapshot
from pflalign_jax.models import Model
from pflalign_jax.runs import files, growing_files, round_files
from pflalign_jax.runs.build import Experiment
from pflalign_jax.runs.checkpoints import (
    CheckpointError,
    checkpoint_path,
    checkpoint_rounds,
    delete_checkpoint,
    load_checkpoint,
    read_about,
    set_aside,
)
from pflalign_jax.runs.description import describe_data, write_description
from pflalign_jax.runs.effective import BUILT, effective_config
from pflalign_jax.runs.files import WorkdirError
from pflalign_jax.runs.loop import Start
from pflalign_jax.runs.metrics import Tally
from pflalign_jax.runs.processes import agree, is_first_process
from pflalign_jax.runs.prolonging import (
    knows_its_best,
    refuse_finished,
    round_evaluated_as_last,
)
from pflalign_jax.runs.round_checks import DIVERGED, DivergedError
from pflalign_jax.runs.versions import other_versions

MAY_CHANGE = ("rounds", "client_chunk", "client_state_in", "checkpoint_every", "checkpoints_kept")
"""Fields that a run may go on with other values of; ``rounds`` not below what is done."""

OF_DATA = ("cohort_size", "dataset.num_clients")
"""Fields that change by themselves when clients come or go in the data."""

Checkpoint = tuple[Snapshot, dict[str, Any]]
"""A state, and what its checkpoint says besides."""


def prepare(workdir: pathlib.Path, experiment: Experiment, say: Callable[[str], None]) -> Start:
    """Describe a new run in its directory, or find where the one in it goes on.

    It is unfinished, or is to have more rounds.

    Its growing files are cut to what they were when the checkpoint was saved. Every process of a
    run calls this; the first one decides and writes, the others follow it.

    Args:
      workdir: from `pflalign_jax.runs.files.create`; all processes see it.
      experiment: from `pflalign_jax.runs.build.build`.
      say: told where the run goes on and what could not be used.

    Raises:
      WorkdirError: for a finished run without further rounds, one of another config, other data or
        another number of processes; if there are checkpoints, but none can be used.
      StoreError: if client states on disk do not go with the checkpoint.
    """
    config, dataset, _, federation, _ = experiment
    directory, first = workdir / files.CHECKPOINTS, is_first_process()
    if first:
        # One process decides, so that all go on from the same round.
        found = _find(workdir, experiment, say)
        agree(0 if found is None else found[0].round)
    else:
        (done,) = agree(0)
        found = load_checkpoint(directory, done, federation.shapes) if done else None
    if found is None:
        return Start()
    saved, about = found
    state = _restored(federation, saved, directory)
    if first:
        # Fields that may change have changed.
        write_description(workdir, config, dataset, federation.task, experiment.model)
        where = f"going on in {workdir} after round {saved.round} of {config.rounds}"
        say(f"{where}{_other_versions(directory, saved)}")
    rows = tuple(round_files.read_rows(workdir)) if first else ()
    counted = about["tally"]
    tally = Tally(**{name: counted[name] for name in Tally._fields if name in counted})
    return Start(state, rows, tally, counted["seconds_total"])


def is_unfinished(workdir: pathlib.Path) -> bool:
    """Tell whether a directory holds a run that can go on from a checkpoint."""
    held = checkpoint_rounds(workdir / files.CHECKPOINTS)
    return bool(held) and not files.is_finished(workdir)


def _find(
    workdir: pathlib.Path, experiment: Experiment, say: Callable[[str], None]
) -> Checkpoint | None:
    """Return the checkpoint that a run goes on from, its files cut back; None for a new run."""
    config, dataset, _, federation, _ = experiment
    refuse_finished(workdir, config)
    if not files.has_config(workdir):
        _refuse_remains(workdir)
        write_description(workdir, config, dataset, federation.task, experiment.model)
        return None
    if checkpoint_rounds(workdir / files.CHECKPOINTS) and not files.has_data(workdir):
        raise WorkdirError(  # nothing else tells whether the data are the same
            f"{workdir / files.DATA} is missing, which says what the run's data are; put it back, "
            "or choose another --workdir"
        )
    _refuse_another_run(workdir, experiment)
    too_far = round_evaluated_as_last(workdir, config)
    found = _last_usable(workdir, experiment, say, too_far)
    if found is None:
        _forget_end(workdir, too_far)
        _start_again(workdir)
        write_description(workdir, config, dataset, federation.task, experiment.model)
        lacks = "without a checkpoint" if too_far is None else _why_back(too_far)
        say(f"{workdir} holds an unfinished run {lacks}; it starts again from round 0")
        return None
    saved, about = found
    if DIVERGED in about:
        raise DivergedError(f"{about[DIVERGED]} ({workdir} stays as it is)")
    if saved.round > config.rounds:
        raise WorkdirError(
            f"{workdir} is after round {saved.round} already; config.rounds={config.rounds} is too "
            "few"
        )
    # Each process has the states of its own clients on its own disk.
    if saved.clients.positions is None and about["processes"] != jax.process_count():
        raise WorkdirError(
            f"{workdir} has client states on the disks of {about['processes']} processes; go on "
            f"with as many, not {jax.process_count()}"
        )
    if too_far is not None:
        say(f"{workdir} goes back to round {saved.round}: it holds a run {_why_back(too_far)}")
    _forget_end(workdir, too_far)
    # Rounds after the checkpoint will come again, and so will their rows.
    growing_files.cut_back(workdir, about)
    return found


def _why_back(too_far: int) -> str:
    return f"whose round {too_far} was evaluated only because it was the last"


def _forget_end(workdir: pathlib.Path, too_far: int | None) -> None:
    """Make a finished run an unfinished one, up to before a round if one is named."""
    files.forget_summary(workdir)
    for round_index in reversed(checkpoint_rounds(workdir / files.CHECKPOINTS)):
        if too_far is not None and round_index >= too_far:
            delete_checkpoint(workdir / files.CHECKPOINTS, round_index)


def _restored(federation: Federation, saved: Snapshot, directory: pathlib.Path) -> FederationState:
    """Return a checkpoint's state; client states on disk are kept for those before it as well."""
    # A later kill may make an earlier checkpoint the last usable one.
    held = [r for r in checkpoint_rounds(directory) if r < saved.round]
    return federation.restore(saved, held)


def _last_usable(
    workdir: pathlib.Path,
    experiment: Experiment,
    say: Callable[[str], None],
    before: int | None = None,
) -> Checkpoint | None:
    """Load the last checkpoint that is whole; set aside those that are not.

    Args:
      workdir, experiment, say: as of `prepare`.
      before: a round that is too far; None: none is.
    """
    directory = workdir / files.CHECKPOINTS
    rounds, reasons = checkpoint_rounds(directory), []
    if before is not None:
        rounds = [r for r in rounds if r < before and knows_its_best(workdir, r)]
    for round_index in reversed(rounds):
        try:
            found = load_checkpoint(directory, round_index, experiment.federation.shapes)
            if found[0].clients.positions is None:
                _check_states_on_disk(workdir, round_index, experiment.dataset)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        # Now that one can be used, those after it are only in the way.
        for reason, bad in zip(reasons, reversed(rounds), strict=False):
            say(f"{reason}; it is set aside as {set_aside(directory, bad).name}")
        return found
    if reasons:
        raise WorkdirError(
            f"no checkpoint in {directory} can be used: {'; '.join(reasons)}. To start again, "
            "choose another --workdir or delete this one"
        )
    return None


def _check_states_on_disk(
    workdir: pathlib.Path, round_index: int, dataset: FederatedDataset
) -> None:
    """Refuse a checkpoint whose client states, in files beside it, are not what was written.

    Raises:
      CheckpointError: naming the file and the clients.
    """
    checkpoint = checkpoint_path(workdir / files.CHECKPOINTS, round_index)
    for directory in files.client_state_dirs(workdir):
        try:
            damaged = damaged_clients(directory, round_index)
        except StoreError as error:
            raise CheckpointError(f"checkpoint {checkpoint}: {error}") from error
        if damaged:
            names = dataset.client_names[damaged[:10]].tolist()
            more = f" and {len(damaged) - 10} more" if len(damaged) > 10 else ""
            raise CheckpointError(
                f"checkpoint {checkpoint}: in {directory} the states of clients "
                f"{', '.join(names)}{more} do not match their checksums"
            )


def _refuse_remains(workdir: pathlib.Path) -> None:
    """Refuse a directory that holds what rounds leave, but not what they were rounds of."""
    remains = (*files.GROWING, files.CHECKPOINTS, files.CLIENT_STATES)
    if held := [name for name in remains if (workdir / name).exists()]:
        raise WorkdirError(
            f"workdir {workdir} holds {', '.join(held)} of a run, but its {files.CONFIG} is "
            "missing; put it back, or choose another --workdir, or move or delete that directory"
        )


def _start_again(workdir: pathlib.Path) -> None:
    """Empty what the first rounds of a run left that has no checkpoint yet.

    A run that was not to save checkpoints may have come far; it is refused.
    """
    if not files.may_start_again(workdir):
        raise WorkdirError(
            f"workdir {workdir} holds an unfinished run that saved no checkpoints; it is not "
            "overwritten. Choose another --workdir, or move or delete that directory"
        )
    # Nothing is lost that a checkpoint could have brought back.
    growing_files.empty(workdir)
    files.forget_client_states(workdir)


def _refuse_another_run(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Refuse a directory whose config or data are not the experiment's."""
    config, dataset, model, federation, _ = experiment
    found = differences(files.read_config(workdir), config, dataset, model, federation)
    may_change = set(MAY_CHANGE)
    if config.learning_rate_schedule != "constant":
        may_change.remove("rounds")  # with another number of them every step size is another one
    differ = {name: values for name, values in found.items() if name not in may_change}
    files.refuse_other_weights(workdir, model)
    if differ.keys() <= set(OF_DATA):
        refuse_other_data(workdir, dataset)  # which says who came or went
    if differ:
        said = [f"config.{name} was {was}, is {now}" for name, (was, now) in differ.items()]
        why = ""
        if "rounds" in differ:
            why = f", and learning_rate_schedule={config.learning_rate_schedule!r} depends on it"
        state = "a finished" if files.is_finished(workdir) else "an unfinished"
        raise WorkdirError(
            f"workdir {workdir} holds {state} run of another config: {'; '.join(said)}{why}. Go "
            "on with its own config, or choose another --workdir"
        )


def differences(
    found: Mapping[str, Any],
    config: ConfigDict,
    dataset: FederatedDataset,
    model: Model | None = None,
    federation: Federation | None = None,
) -> dict[str, tuple[str, str]]:
    """Return the fields in which a ``config.json`` is of another run than a config would make.

    None is the same as the value that is used for it, as earlier versions wrote None for more
    fields, and as no such field. What is decided only by building is not compared where it is not
    known.

    Args:
      found: what ``config.json`` holds.
      config: resolved.
      dataset, model, federation: as of `pflalign_jax.runs.effective.effective_config`.

    Returns:
      ``{field: (text of its value in config.json, text of the config's)}``.
    """
    was = ConfigDict(dict(found))
    if "head" in config.algorithm and "algorithm" in was and "head" not in was.algorithm:
        was.algorithm.head = None  # earlier versions left it out

    def texts(side: ConfigDict) -> dict[str, str]:
        filled = effective_config(side, dataset, model, federation)
        return files.flat_fields(files.as_written(filled.to_dict()))

    before, now = texts(was), texts(config)
    unknown = {name for name in BUILT if now.get(name) == repr(None)}
    return {
        name: (before.get(name, "not there"), now.get(name, "not there"))
        for name in sorted((before.keys() | now.keys()) - unknown)
        if before.get(name, repr(None)) != now.get(name, repr(None))
    }


def refuse_other_data(workdir: pathlib.Path, dataset: FederatedDataset) -> None:
    """Refuse data that are not those that a run began with.

    Raises:
      WorkdirError: naming what differs, and clients that came or went.
    """
    before = files.read_data(workdir, default={})
    now = files.as_written(describe_data(dataset, before))
    if "features_crc32" in before:  # of an earlier version
        now["features_crc32"] = sampled_checksum(dataset.x)
    # What an earlier version did not write cannot differ; label counts follow from the rest, and
    # files may be copied.
    compared = (before.keys() & now.keys()) - {"label_counts", "features_file"}
    differ = sorted(k for k in compared if before[k] != now[k])
    if differ:
        raise WorkdirError(
            f"workdir {workdir} holds a run of other data than {dataset.name} is now: "
            f"{', '.join(differ)} differ{_who_changed(workdir, dataset, before, now)}. Put the "
            "data back as they were, or choose another --workdir"
        )


def _who_changed(
    workdir: pathlib.Path,
    dataset: FederatedDataset,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
) -> str:
    """Name up to ten clients that are gone, are new, or own another number of examples."""
    names, names_now = before.get("client_names", ()), now["client_names"]
    known, known_now = set(names), set(names_now)
    changes = {
        "gone are clients": [name for name in names if name not in known_now],
        "new are clients": [name for name in names_now if name not in known],
    }
    if not any(changes.values()):
        changes = {"other examples have clients": _other_sizes(workdir, dataset)}
    return "".join(f"; {what} {', '.join(who[:10])}" for what, who in changes.items() if who)


def _other_sizes(workdir: pathlib.Path, dataset: FederatedDataset) -> list[str]:
    """Return the names of clients that owned another number of examples."""
    differ = np.zeros(dataset.num_clients, bool)
    for split, owned in dataset.splits.items():
        # Names and sizes can be told without the examples of then.
        differ |= files.read_sizes(workdir, split) != owned.sizes
    return dataset.client_names[differ].tolist()


def _other_versions(directory: pathlib.Path, saved: Snapshot) -> str:
    """Say it if other versions than now wrote the checkpoint."""
    other = other_versions(read_about(directory, saved.round)["versions"])
    return other and f" ({other}: numbers may differ from here on)"
