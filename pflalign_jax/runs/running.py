"""A run as a whole: from a config to a directory with everything that came of it."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import jax
from ml_collections import ConfigDict

from pflalign_jax.runs import files
from pflalign_jax.runs.build import Experiment, build
from pflalign_jax.runs.lock import locked
from pflalign_jax.runs.loop import Outcome, RunPlan, train
from pflalign_jax.runs.metrics import Row
from pflalign_jax.runs.processes import is_first_process
from pflalign_jax.runs.resuming import prepare


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    on_round: Callable[[int, Row | None], None] = lambda done, row: None,
    say: Callable[[str], None] = print,
    stop: Callable[[], int] = lambda: 0,
    watch: Callable[[RunPlan], AbstractContextManager[RunPlan]] = contextlib.nullcontext,
) -> Outcome:
    """Do a run: build what its config says, train, evaluate, and write all of it to a directory.

    An unfinished run in the directory goes on from its last checkpoint, to the same results; a
    finished one does, too, if ``config.rounds`` is more than it has. The directory is locked as
    long as the run writes to it. Where several processes have joined (`jax.distributed`), all of
    them call this with the same directory; the first one writes.

    Args:
      config: from `default_config`, with what is to be different.
      workdir: the run's directory; made if it is missing.
      on_round: called after every round with the number done and, if it was evaluated, its row of
        ``metrics.jsonl``.
      say: told what is to be known about the data, where a run goes on, and what could not be
        used.
      stop: asked after every round; a number other than 0 stops the run, after a checkpoint. See
        `pflalign_jax.runs.signals.asked_to_stop`.
      watch: for what has to be opened before the first round and closed after the last, such as
        a progress bar: gets what `train` is to do and yields it, perhaps with other callbacks.

    Returns:
      The outcome; `pflalign_jax.runs.load` has the models.

    Raises:
      UserError: naming what is wrong and what to do. Its kinds are ConfigError and DatasetError
        (nothing was run); WorkdirError (the directory holds a finished run of as many rounds, or
        one of another config, or cannot be written); DivergedError and MemoryExhaustedError (in a
        round).
      StoppedError: when ``stop`` said so.
    """
    with open_run(config, workdir, say) as plan:
        with watch(plan._replace(on_round=on_round, stop=stop)) as watched:
            return train(watched)


@contextlib.contextmanager
def open_run(
    config: ConfigDict, workdir: str | os.PathLike, say: Callable[[str], None] = print
) -> Iterator[RunPlan]:
    """Yield a run that is ready for `train`; until then and as long as it takes it has the lock.

    Arguments and errors are those of `run`.
    """
    workdir = pathlib.Path(workdir)
    states = files.client_state_dir(workdir, jax.process_index())
    experiment = build(config, states)  # first, so that a wrong config leaves no directory
    with open_built(experiment, workdir, say) as plan:
        yield plan


@contextlib.contextmanager
def open_built(
    experiment: Experiment, workdir: pathlib.Path, say: Callable[[str], None] = print
) -> Iterator[RunPlan]:
    """Yield a run of an experiment that has been built, as `open_run` does."""
    for note in experiment.dataset.notes:
        say(f"{experiment.dataset.name}: {note}")
    first = is_first_process()
    with contextlib.ExitStack() as stack:
        # Other processes see the directory, but only read it.
        if first:
            files.create(workdir, go_on=True)
            stack.enter_context(locked(workdir, say))
        start = prepare(workdir, experiment, say)
        checkpoints = workdir / files.CHECKPOINTS
        yield RunPlan(experiment, workdir if first else None, start, checkpoints)
