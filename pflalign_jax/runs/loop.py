"""The rounds of a run: train, check, count, evaluate, write, save."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from pflalign_jax.federated import (
    ClientScores,
    Federation,
    FederationState,
    RoundResult,
    summarise,
)
from pflalign_jax.federated.inject_hyperparams import hyperparams_of
from pflalign_jax.runs import files, round_files
from pflalign_jax.runs.build import Experiment
from pflalign_jax.runs.checkpointing import Checkpointing, start_checkpointing
from pflalign_jax.runs.compile_time import compile_time
from pflalign_jax.runs.diagnostics_log import DiagnosticsLog
from pflalign_jax.runs.evaluation import evaluate, scores_cohort
from pflalign_jax.runs.generation import GENERATED, Generation, generation_of
from pflalign_jax.runs.growing_files import SIZES, GrowingFiles
from pflalign_jax.runs.hardware import matmul_peak, room_on_devices, step_flops
from pflalign_jax.runs.headline import headline_of
from pflalign_jax.runs.metrics import (
    Row,
    Tally,
    examples_visited,
    finite_or_none,
    privacy_columns,
    speed_columns,
    summary_of,
    traffic_columns,
)
from pflalign_jax.runs.processes import agree
from pflalign_jax.runs.round_checks import DIVERGED, DivergedError, check_round
from pflalign_jax.runs.signals import StoppedError


class Start(NamedTuple):
    """Where a run begins, or goes on.

    Attributes:
      state: of the federation; None for a new run.
      rows: those of ``metrics.jsonl`` so far.
      tally: what was counted since the last of them.
      seconds: that the run has taken so far.
    """

    state: FederationState | None = None
    rows: tuple[Row, ...] = ()
    tally: Tally = Tally()
    seconds: float = 0.0


class RunPlan(NamedTuple):
    """What `train` is to do.

    Attributes:
      experiment: from `pflalign_jax.runs.build.build`.
      workdir: directory that the run's files are written to as they come, described before by
        `pflalign_jax.runs.resuming.prepare`; None writes nothing, as all processes but the first
        do.
      start: from `pflalign_jax.runs.resuming.prepare`; the default is a new run.
      checkpoints: directory of the run's checkpoints, the same in all processes; None: without.
      on_round: called after every round with the number done and, if it was evaluated, its row.
      stop: the signal to stop for, 0 as long as there is none; asked after every round.
      on_end: called with what came of the run before ``summary.json`` makes it a finished one: what
        this writes is there whenever the run is finished.
      save_last: whether the last round's state is saved, too.
    """

    experiment: Experiment
    workdir: pathlib.Path | None = None
    start: Start = Start()
    checkpoints: pathlib.Path | None = None
    on_round: Callable[[int, Row | None], None] = lambda done, row: None
    stop: Callable[[], int] = lambda: 0
    on_end: Callable[["Outcome"], None] = lambda outcome: None
    save_last: bool = True


class Outcome(NamedTuple):
    """A finished run.

    Attributes:
      summary: as in ``summary.json``.
      rows: as in ``metrics.jsonl``.
      scores: `ClientScores` by name, of the last round.
      experiment: what was run.
    """

    summary: dict[str, Any]
    rows: list[Row]
    scores: dict[str, ClientScores]
    experiment: Experiment


class Progress(NamedTuple):
    """How far a run is: all that changes from round to round.

    Attributes:
      done: rounds.
      state: of the federation after them.
      tally: what was counted since the last row.
      rows: of ``metrics.jsonl``.
      scores: of the last evaluated round; empty if there was none since the run went on.
    """

    done: int
    state: FederationState
    tally: Tally
    rows: tuple[Row, ...]
    scores: Mapping[str, ClientScores]


@dataclasses.dataclass(frozen=True)
class RunInProgress:
    """A run between its first and its last round; see `in_progress`.

    Attributes:
      plan: what it is to do.
      checkpointing: saves its states; None: it has no checkpoints.
      diagnostics: takes what its rounds measure besides scores.
      growing: the files that its rounds append to; None: it writes none.
      generation: what its clients' models are asked to complete; None: nothing.
      began: when it began on `time.perf_counter`, without the pauses in which it was interrupted.
      step_flops, matmul_peak: see `speed_columns`.
    """

    plan: RunPlan
    checkpointing: Checkpointing | None
    diagnostics: DiagnosticsLog
    growing: GrowingFiles | None
    generation: Generation | None
    began: float
    step_flops: float
    matmul_peak: float

    def first(self) -> Progress:
        """Return how far the run is at its start."""
        config, federation = self.plan.experiment.config, self.plan.experiment.federation
        start, state = self.plan.start, self.plan.start.state
        if state is None:
            # Hyperparameters that the compiled programs take as data.
            values = {name: config.algorithm[name] for name in hyperparams_of(federation.shapes[0])}
            with room_on_devices(None):
                state = federation.init(jax.random.key(config.seed), **values)
        return Progress(int(state.round), state, start.tally, start.rows, {})

    def is_over(self, progress: Progress) -> bool:
        """Tell whether all rounds are done."""
        return progress.done >= self.plan.experiment.config.rounds

    def is_evaluated(self, done: int) -> bool:
        """Tell whether all clients are scored after a round."""
        config = self.plan.experiment.config
        return done % config.eval_every == 0 or done == config.rounds

    def scores_cohort(self, progress: Progress) -> bool:
        """Tell whether the next round also scores the models that its cohort has trained."""
        return scores_cohort(self.plan.experiment) and self.is_evaluated(progress.done + 1)

    def after_round(
        self, before: Progress, state: FederationState, result: RoundResult, seconds: float
    ) -> Progress:
        """Do everything that follows a round, and return how far the run is then.

        Args:
          before: how far it was.
          state, result: what the round returned.
          seconds: that it took, without those of compiling.

        Raises:
          DivergedError: when the training loss is not finite, or one client's with
            ``config.on_nonfinite="raise"``; after a checkpoint.
          StoppedError: after a checkpoint, when the plan's ``stop`` says so.
          MemoryExhaustedError: when a device has no room.
          WorkdirError, CheckpointError, StoreError: for what cannot be written.
        """
        plan, experiment = self.plan, self.plan.experiment
        # The round is done whatever follows: what is saved from here on is the state after it.
        progress = before._replace(done=before.done + 1, state=state)
        done = progress.done
        try:
            loss = check_round(done, result, experiment.config, experiment.dataset, plan.workdir)
        except DivergedError as error:
            # The state is kept for whoever wants to see what happened, not to go on from.
            self._save(progress, None, now=True, diverged=str(error))
            raise
        examples = examples_visited(experiment, result.cohort)
        progress = progress._replace(tally=progress.tally.plus(result, examples, seconds))
        self.diagnostics.add(done, result.metrics)
        # Between evaluations a round leaves no row, only its share of the next one's counts.
        row = None
        if self.is_evaluated(done):
            row, scores = self._evaluate(progress, result, loss)
            progress = progress._replace(rows=(*progress.rows, row), scores=scores, tally=Tally())
        # After the row is on disk, so that what is shown is never ahead of what is kept.
        plan.on_round(done, row)
        (signum,) = agree(plan.stop())  # one process was asked, all stop
        # Stopped, diverged or done: in these cases a checkpoint does not wait for its turn.
        save_last = plan.save_last and self.is_over(progress)
        merit = None if row is None else _merit(row, experiment)
        self._save(progress, merit, now=save_last or bool(signum))
        # A run that is asked to stop in its last round just ends.
        if signum and not self.is_over(progress):
            raise StoppedError(signum, done)
        return progress

    def finish(self, progress: Progress) -> Outcome:
        """Write the summary and return what came of the run."""
        experiment, workdir = self.plan.experiment, self.plan.workdir
        if self.checkpointing is not None:
            self.checkpointing.wait()
        scores = dict(progress.scores)
        if not scores and workdir is not None:  # it was killed after its last evaluation
            # Scores of the last round are read back from clients.csv.
            names = experiment.dataset.client_names
            metrics = experiment.federation.task.metrics
            scores = round_files.read_scores(workdir, experiment.config.rounds, names, metrics)
        summary = summary_of(experiment, progress.rows)
        outcome = Outcome(summary, list(progress.rows), scores, experiment)
        self.plan.on_end(outcome)
        if workdir is not None:
            files.write_summary(workdir, summary)
        agree(0)  # all end together: JAX does not wait long at its end for one that still writes
        return outcome

    def _evaluate(
        self, progress: Progress, result: RoundResult, loss: float
    ) -> tuple[Row, dict[str, ClientScores]]:
        """Score all clients, write the scores, and return the row and the scores."""
        experiment, workdir = self.plan.experiment, self.plan.workdir
        dataset, federation = experiment.dataset, experiment.federation
        clock = time.perf_counter()
        with room_on_devices(federation.client_chunk):
            scores, new, rate = evaluate(experiment, progress.state, result.adapted)
            generated = self._generate(progress)
        # Times and counts are of the rounds since the last row, the row's own evaluation apart.
        tally, devices = progress.tally, federation.mesh.size
        row = finite_or_none(
            {
                "round": progress.done,
                "seconds": tally.seconds / tally.rounds,
                "seconds_evaluation": time.perf_counter() - clock,
                "seconds_total": self._seconds(),
                **speed_columns(tally, result.work, devices, self.step_flops, self.matmul_peak),
                **traffic_columns(tally, federation),
                **privacy_columns(experiment, progress.done),
                "loss/train/mean": loss,
                **({} if rate is None else {"adapt_learning_rate": rate}),
                **summarise({**scores, **new}),
                **generated,
            }
        )
        if workdir is not None:
            round_files.append_row(workdir, row)
            round_files.append_clients(workdir, progress.done, dataset.client_names, scores)
            if dataset.new_clients is not None:
                # New clients have names of their own; their scores begin with new_clients.
                names = dataset.new_clients.client_names
                round_files.append_clients(workdir, progress.done, names, new)
        return row, dict(scores)

    def _generate(self, progress: Progress) -> Row:
        """Return scores of generated texts; None for each where it is not their round."""
        generation, config = self.generation, self.plan.experiment.config
        if generation is None:
            return {}
        now = progress.done % config.generate_every == 0 or self.is_over(progress)
        if not now:
            return dict.fromkeys(GENERATED)
        return generation.scores(self.plan.experiment.federation, progress.state)

    def _save(
        self, progress: Progress, merit: float | None, now: bool, diverged: str | None = None
    ) -> None:
        """Save a checkpoint if it is time for one, or ``now``; ``diverged`` says why it is last."""
        if self.checkpointing is not None:
            about = functools.partial(self._about, progress.tally, diverged)
            self.checkpointing.after_round(progress.state, merit, about, now)

    def _about(self, tally: Tally, diverged: str | None) -> dict[str, Any]:
        """Return what a checkpoint says besides the state; `resuming` reads it."""
        self.diagnostics.write()
        return {
            **({SIZES: {}} if self.growing is None else self.growing.sync()),
            **({} if diverged is None else {DIVERGED: diverged}),
            "tally": {**tally._asdict(), "seconds_total": self._seconds()},
            "processes": jax.process_count(),
        }

    def _seconds(self) -> float:
        return time.perf_counter() - self.began


def _merit(row: Row, experiment: Experiment) -> float | None:
    """Return how good a row's round is on validation, more is better; None if that is not known."""
    headline = headline_of(experiment.federation.task)
    score = row.get(headline.key("validation"))
    return None if score is None else headline.merit(score)


@contextlib.contextmanager
def in_progress(plan: RunPlan) -> Iterator[RunInProgress]:
    """Yield a run that is about to begin or to go on; at the end everything is written."""
    config, _, model, federation, _ = plan.experiment
    with contextlib.ExitStack() as stack:
        checkpointing = None
        if plan.checkpoints is not None and config.checkpoint_every != 0:
            merits = [_merit(row, plan.experiment) for row in plan.start.rows]
            checkpointing = start_checkpointing(
                plan.checkpoints,
                federation,
                config.checkpoint_every,
                config.checkpoints_kept,
                # Of a run that goes on: the best round before must not be forgotten.
                max((merit for merit in merits if merit is not None), default=None),
            )
            stack.callback(checkpointing.close)
        diagnostics = DiagnosticsLog(plan.workdir if config.diagnostics else None)
        stack.callback(diagnostics.close)
        flops = step_flops(model, federation.dataset, config.batch_size, federation.task)
        peak = matmul_peak()
        began = time.perf_counter() - plan.start.seconds
        generation = generation_of(config, plan.experiment.dataset, federation)
        growing = None if plan.workdir is None else GrowingFiles(plan.workdir)
        yield RunInProgress(
            plan, checkpointing, diagnostics, growing, generation, began, flops, peak
        )


def timed_rounds(
    federation: Federation, states: Sequence[FederationState], scores_cohort: bool
) -> tuple[list[tuple[FederationState, RoundResult]], float]:
    """Do a round of one run, or of several as one program, to its end.

    Returns:
      The next state and the result of each, and the seconds of each without those of compiling:
      of several an equal share.

    Raises:
      MemoryExhaustedError: when a device has no room.
    """
    clock = time.perf_counter()
    with room_on_devices(federation.client_chunk), compile_time() as compiling:
        # JAX returns before a round is done: its time is known when its metrics are.
        results = federation.run_rounds(states, scores_cohort)
        jax.block_until_ready([result.metrics for _, result in results])
    # JAX reports times of a clock that may be set meanwhile, which must not end a run.
    seconds = max(time.perf_counter() - clock - compiling.seconds, 1e-6)
    return results, seconds / len(results)


def train(plan: RunPlan) -> Outcome:
    """Run all rounds that are still to be done; see `RunPlan`.

    Raises:
      DivergedError, StoppedError, MemoryExhaustedError, WorkdirError, CheckpointError, StoreError:
        as `RunInProgress.after_round`.
    """
    federation = plan.experiment.federation
    with in_progress(plan) as run:
        progress = run.first()
        while not run.is_over(progress):
            results, seconds = timed_rounds(
                federation, [progress.state], run.scores_cohort(progress)
            )
            progress = run.after_round(progress, *results[0], seconds)
        return run.finish(progress)
